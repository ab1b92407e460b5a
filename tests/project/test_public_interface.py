"""The public interface: the names that scripts rely on, each documented, none loaded before it is asked for."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import workbench
import workbench.core

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "load", "wrap", "probe", "probes", "figure", "open_run", "compare", "read_table", "capture", "logits", "score",
    "greedy", "sample", "observe", "Site", "check_probe", "HeadAblation", "HeadScale", "DualRun", "ComponentScale",
    "explore", "activation_map", "Patch", "ProjectOut",
    "KnockOut", "Pass", "Rule", "Steer", "Store",
    "DropModules",
}  # fmt: skip


def test_these_names_and_no_others_are_public():
    assert set(workbench.__all__) == NAMES
    assert NAMES <= set(dir(workbench))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_documented(name):
    text = inspect.getdoc(getattr(workbench, name)) or ""
    assert len(text.split()) >= 5, f"{name} says nothing of itself"
    assert name in (workbench.__doc__ or "")


@pytest.mark.parametrize("name", workbench.core.__all__)
def test_what_a_probe_is_written_with_is_documented(name):
    assert inspect.getdoc(getattr(workbench.core, name))


def test_a_name_that_is_not_there_is_said_to_be_missing():
    with pytest.raises(AttributeError, match="workbench.*no_such_name"):
        workbench.no_such_name  # noqa: B018


def test_importing_the_package_imports_none_of_what_is_heavy():
    code = (
        "import sys, time; t = time.perf_counter(); import workbench; took = time.perf_counter() - t;"
        "heavy = {'torch', 'transformers', 'polars', 'numpy', 'plotly', 'streamlit'} & set(sys.modules);"
        "print(sorted(heavy), took)"
    )
    found = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    texts = [done.stdout.split("] ") for done in found]
    assert all(text[0] == "[" for text in texts), texts
    assert min(float(text[1]) for text in texts) < 0.2


def test_the_readme_uses_only_what_is_public():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    used = {module for block in blocks for module in re.findall(r"^\s*(?:from|import) (workbench[\w.]*)", block, re.M)}
    assert used == {"workbench", "workbench.core"}


def test_the_three_lines_work_through_public_names_alone(tmp_path):
    run = workbench.probe("branching-factor", samples=2, max_new_tokens=4, max_prompts=2)
    model = workbench.load("organism")
    one, two = (run.run(model, seed=seed, out=tmp_path / str(seed)) for seed in (0, 1))
    assert "branching-factor" in workbench.probes()
    assert workbench.open_run(one.folder).id == one.id
    found = workbench.compare(tmp_path / "0", two)
    assert found["settings"]["seed"] == [0, 1] and found["tables"]["prompts"]["matched"] == 2
    assert workbench.figure(one).data
