"""What the README says works: its Python runs, its commands parse, its benchmark table is the one of the raw
results."""

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_python_block_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"readme_block_{number}.py"
    file.write_text(BLOCKS[number])
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
        if hasattr(module, "Config"):
            from workbench.core import registry
            from workbench.runs import execution as runs

            run = runs.execute("text-entropy", "organism")
            assert run.table("texts").height == 2 and run.summary["mean_entropy"] > 0
            registry.unregister("text-entropy")
    finally:
        sys.modules.pop(file.stem)


def test_every_command_exists():

    import subprocess
    import sys

    lines = [line[2:] for block in re.findall(r"```console\n(.*?)```", README, re.S) for line in block.splitlines()]
    named = [shlex.split(line, comments=True)[1] for line in lines if line.startswith("workbench ")]
    assert named
    for name in set(named):
        done = subprocess.run(
            [sys.executable, "-c", "from workbench.cli import main; main()", name, "--help"], capture_output=True
        )
        assert done.returncode == 0, name


def test_the_needle_grid_of_the_first_command_fits_the_model():
    """Whatever else a command says: prompt and answer within the organism's context."""
    from probes.retrieval_heads import Config
    from probes.retrieval_heads.needle_grid import read_grid
    from workbench import load
    from workbench.core.config import build, parse_assignments
    from workbench.core.context import Context
    from workbench.organisms.needles import own_needles

    (line,) = re.findall(r"\$ workbench run retrieval-heads --model organism (.*)", README)
    words = shlex.split(line)
    assert words[::2] == ["--set"] * (len(words) // 2)
    config = build(Config, parse_assignments(words[1::2]))
    grid = read_grid(load("organism"), config, Context(data=own_needles("organism")))
    assert len(grid.trials) == 4 * 3 * 3


def test_the_published_table_is_that_of_the_raw_results():
    from tests.benchmarks.__main__ import RESULTS, table

    published = README.split("<!-- benchmarks -->\n")[1].split("<!-- /benchmarks -->")[0].strip()
    assert published == table(json.loads(RESULTS.read_text())).strip()


def test_the_published_launches_are_those_that_were_counted():
    from tests.benchmarks.card_run import LAUNCHES, launches_table

    published = README.split("<!-- launches -->\n")[1].split("<!-- /launches -->")[0].strip()
    assert published == launches_table(json.loads(LAUNCHES.read_text())).strip()


def test_every_probe_is_in_the_readme():
    import probes

    assert len(probes.ORDER) == 12
    for folder in probes.ORDER:
        assert f"`{folder.replace('_', '-')}`" in README


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
