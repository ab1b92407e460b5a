"""What the documentation says is so: every probe has a page that names its keys, defaults, choices, tables and columns,
and every module, file and link that is written down exists."""

import dataclasses
import importlib
import re
import tomllib
from pathlib import Path

import pytest

from workbench.core import registry

ROOT = Path(__file__).resolve().parents[2]
METHODS = ROOT / "docs" / "methods"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROBES = sorted(f.parent.name.replace("_", "-") for f in (ROOT / "probes").glob("*/__init__.py"))
TOP = ("workbench", "probes", "pages", "tests", "docs")


def page_of(name: str) -> str:
    return (METHODS / f"{name}.md").read_text(encoding="utf-8")


def as_written(value) -> str:
    """A default as `--set` takes it; "(empty)" for nothing."""
    if isinstance(value, tuple):
        return ",".join(map(as_written, value)) or "(empty)"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value) or "(empty)"


def cells(text: str, first: str) -> list[str]:
    """The row of a Markdown table that begins with `first`, in code marks."""
    rows = [line for line in text.splitlines() if line.startswith(f"| `{first}` |")]
    assert len(rows) == 1, f"{first}: {len(rows)} rows"
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", rows[0])[1:-1]]


def section(text: str, table: str) -> str:
    """What stands under the heading of a table."""
    found = re.search(rf"^### `{re.escape(table)}`$(.*?)(?=^#|\Z)", text, re.M | re.S)
    assert found, f"there is no heading for the table {table}"
    return found[1]


def test_there_are_probes_and_pages():
    assert len(PROBES) >= 6 and len(PAGES) >= 9


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_has_a_page_and_the_index_and_the_readme_lead_to_it(name):
    assert page_of(name).startswith("# ")
    assert f"]({name}.md)" in page_of("README")
    assert f"](docs/methods/{name}.md)" in PAGES[0].read_text(encoding="utf-8")


def test_every_page_of_the_methods_is_of_a_probe():
    """A method that went leaves no page behind; pages on what all have in common are linked from the index."""
    for file in METHODS.glob("*.md"):
        assert file.stem in ("README", *PROBES) or f"]({file.name})" in page_of("README"), file.name


@pytest.mark.parametrize("name", PROBES)
def test_every_config_key_is_on_the_page_with_its_default(name):
    page = page_of(name).partition("\n## Defaults\n")[2].partition("\n## ")[0]
    fields = dataclasses.fields(registry.get(name).config)
    for field in fields:
        default = as_written(field.default)
        written = cells(page, field.name)[1]
        assert written == (default if default == "(empty)" else f"`{default}`"), f"{field.name}: {written}"
    keys = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(keys) == sorted(field.name for field in fields)


@pytest.mark.parametrize("name", PROBES)
def test_every_choice_of_every_config_key_is_on_the_page(name):
    page = page_of(name)
    for field in dataclasses.fields(registry.get(name).config):
        for choice in field.metadata["choices"] or ():
            assert f"`{choice}`" in page or f"`{field.name}={choice}`" in page, f"{field.name}={choice}"


@pytest.mark.parametrize("name", PROBES)
def test_every_declared_table_and_column_is_on_the_page(name):
    page = page_of(name)
    for table, columns in registry.get(name).tables.items():
        text = section(page, table)
        missing = [column for column in columns if f"`{column}`" not in text]
        assert not missing, f"{table}: {missing}"


@pytest.mark.parametrize("file", PAGES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_path_that_is_written_down_exists(file):
    text = file.read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w/.])(?:{'|'.join(TOP)})/[\w./-]*[\w/]", text))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("file", PAGES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_module_that_is_written_down_exists(file):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set(
        re.findall(rf"(?<![\w/.-])(?:{'|'.join(TOP[:4])})(?:\.[A-Za-z_]\w*)+", file.read_text(encoding="utf-8"))
    )
    named -= set(project["entry-points"])  # groups of entry points are called like modules
    assert [name for name in sorted(named) if not resolves(name)] == []


def resolves(name: str) -> bool:
    """Whether a dotted name is a module of the project, or something in one."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:size])
        if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file():
            found = importlib.import_module(".".join(parts[:size]))
            for part in parts[size:]:
                if not hasattr(found, part):
                    return False
                found = getattr(found, part)
            return True
    return False


@pytest.mark.parametrize("file", PAGES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(file):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text(encoding="utf-8")):
        assert (file.parent / target).exists(), target


def tree() -> list[Path]:
    """Every folder and file that README's tree names, entries and those in the text beside them."""
    block = re.search(r"## Where things are\n\n```text\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.S)[1]
    found, above, here = [], {}, ROOT
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        names, text = [], line.strip()
        if indent < 8:  # further in, a line goes on with what the one before says
            entry, _, text = line.strip().partition("  ")
            names = [name.strip() for name in entry.split(",")]
            parent = next((above[i] for i in sorted(above, reverse=True) if i < indent), ROOT)
            found += [parent / name for name in names]
            here = parent / names[0]
            above = {i: path for i, path in above.items() if i < indent} | {indent: here}
        if here.suffix != ".py":
            found += [here / name for name in re.findall(r"(?<![\w/.])\w+(?:\.(?:py|md)\b|/(?!\w))", text)]
    return found


def test_every_entry_of_the_tree_exists():
    assert [str(path.relative_to(ROOT)) for path in tree() if not path.exists()] == []


def test_the_tree_has_every_package_every_probe_and_every_room_of_the_engine():
    named = set(tree())
    for inside in ("workbench", "probes"):
        for file in (ROOT / inside).glob("*/__init__.py"):
            assert file.parent in named, file.parent.name
    for file in (ROOT / "workbench" / "engine").glob("[!_]*.py"):
        assert file in named, file.name
