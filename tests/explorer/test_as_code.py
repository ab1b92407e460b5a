"""A panel's Python, command and notebook make that very panel again."""

import json
import shlex

import polars as pl
import pytest

from workbench import explore
from workbench.cli.main import run as command_line
from workbench.core.errors import InputError
from workbench.explorer import as_code
from workbench.explorer.panel_papers import ENTRIES, PAPERS, bibtex

MODEL, PROMPT = "circuit-copy-gqa", "lantern velvet\nharbor 'quartz' lantern velvet"
DONOR = PROMPT.replace("harbor", "velvet", 1)
CALLS = (
    "lens(of='mlp', colour='entropy')",
    "waterfall(position=3, heads=2)",
    "direct_effects(position=2)",
    f"patch_map({DONOR!r}, kind='heads')",
    f"paths({DONOR!r}, (1, 1))",
)
NAMES = {"model": MODEL, "prompt": PROMPT}


@pytest.fixture(scope="module")
def views():
    plain = explore(MODEL, PROMPT)
    pair = explore(MODEL, PROMPT, other=5)
    off = plain.switched(heads=[(1, 1), (0, 2)], mlps=[0], how="mean")
    patched = plain.switched(heads=[(1, 0)], how="patch", donor=DONOR)
    return {"plain": plain, "pair": pair, "mean": off, "patch": patched}


def test_every_panel_of_the_public_class_has_code():
    assert {as_code.parse_call(call)[0] for call in CALLS} <= set(as_code.panels())
    assert "switched" not in as_code.panels() and "reading" not in as_code.panels()


@pytest.mark.parametrize("kind", ["plain", "pair", "mean", "patch"])
@pytest.mark.parametrize("call", CALLS[:3])
def test_the_python_of_a_panel_makes_it(views, kind, call):
    view = views[kind]
    there: dict = {}
    exec(as_code.python(view, call, **NAMES).replace("figure.show()", ""), there)
    table, figure = eval(f"view.{call}", {"view": view})
    assert there["table"].equals(table) and there["figure"] == figure
    assert there["view"].switches == view.switches and there["view"].target == view.target


@pytest.mark.parametrize("kind, call", [(kind, CALLS[0]) for kind in ("plain", "pair", "mean", "patch")])
def test_the_command_of_a_panel_gives_its_table_and_its_file(views, kind, call, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = eval(f"view.{call}", {"view": views[kind]})[0]
    words = shlex.split(as_code.command(views[kind], call, **NAMES))
    assert words[0] == "workbench" and words[-3:] == ["--", MODEL, PROMPT]
    at = words.index("--out")
    assert command_line([*words[1:at], *words[at + 2 :]]) == 0
    printed = capsys.readouterr().out
    assert printed == as_code.csv(table)
    words[at + 1] = "lens.html"
    assert command_line(words[1:]) == 0
    caption = (tmp_path / "lens.caption.txt").read_text()
    assert (tmp_path / "lens.html").stat().st_size > 10_000 and views[kind].said in caption
    assert (tmp_path / "lens.bib").read_text().strip() == bibtex("lens")


@pytest.mark.parametrize("call", CALLS[1:])
def test_every_panels_command_reads_its_own_arguments(views, call, capsys):
    words = shlex.split(as_code.command(views["plain"], call, **NAMES))
    at = words.index("--out")
    assert command_line([*words[1:at], "--json", *words[at + 2 :]]) == 0
    table = eval(f"view.{call}", {"view": views["plain"]})[0]
    found = json.loads(capsys.readouterr().out)
    assert len(found) == table.height and list(found[0]) == table.columns
    name = next(c for c, kind in table.schema.items() if kind == pl.Float64)
    assert [row[name] for row in found] == pytest.approx(table[name].to_list(), nan_ok=True)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--panel", "lense"], "There is no panel 'lense'"),
        (["--set", "color=entropy"], "no setting 'color'"),
        (["--panel", "patch_map"], "needs donor"),
        (["--off", "1"], "no list of heads"),
        (["--off", "9.0"], "9.0"),
        (["--mlps", "x"], "no list of layers"),
        (["--out", "lens.docx"], "says no format"),
        (["--target", "id=x"], "no list of tokens"),
    ],
)
def test_what_the_command_cannot_do_is_one_sentence_and_bad_input(words, said, capsys):
    assert command_line(["explore", *words, MODEL, "lantern velvet"]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_a_notebook_opens_the_view_and_its_cells_make_the_panels(views):
    made = json.loads(as_code.notebook(views["mean"], CALLS[:2], title="two panels", **NAMES))
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5) and set(made) == {
        "cells",
        "metadata",
        "nbformat",
        "nbformat_minor",
    }
    ids = [cell["id"] for cell in made["cells"]]
    assert len(set(ids)) == len(ids) and all(cell["metadata"] == {} for cell in made["cells"])
    there: dict = {}
    found = []
    for cell in made["cells"]:
        assert isinstance(cell["source"], list) and ("outputs" in cell) == (cell["cell_type"] == "code")
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), there)
            found.append(there.get("table"))
    for table, call in zip(found[1:], CALLS):
        assert table.equals(eval(f"view.{call}", {"view": views["mean"]})[0])


def test_a_call_that_is_more_than_plain_values_is_not_taken():
    for call in ("lens(of=__import__('os'))", "lens", "view.lens()", "lens(", "nothing()"):
        with pytest.raises(InputError):
            as_code.parse_call(call)


def test_the_papers_are_those_of_panels_and_every_entry_is_whole():
    assert set(PAPERS) >= set(as_code.panels()) & {"lens", "waterfall", "direct_effects", "patch_map", "paths"}
    assert {key for keys in PAPERS.values() for key in keys} == set(ENTRIES)
    for key, entry in ENTRIES.items():
        assert entry.split("{", 1)[1].startswith(f"{key},") and entry.count("{") == entry.count("}")
        assert all(f"  {field} = " in entry for field in ("title", "author", "year"))
    assert bibtex("steps") == ""
