"""`workbench run … --estimate`: what a run would take, without running it."""

import json
from types import SimpleNamespace as Simple

import pytest

from workbench.cli.main import run as command_line
from workbench.models.loading import load
from workbench.runs import cost, execution, memory_plan
from workbench.runs.folder import list_runs

FEW = ["--set", "samples=2", "--set", "max_new_tokens=3", "--set", "max_prompts=4"]
CONFIG = {"samples": 2, "max_new_tokens": 3, "max_prompts": 4}


def test_an_estimate_runs_nothing_and_says_tokens_arithmetic_and_bytes(capsys):
    before = len(list_runs())
    assert command_line(["run", "branching-factor", "--model", "organism", *FEW, "--estimate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    weights = load("organism").hf.num_parameters()
    assert found["prompts"] == 4 and found["parameters"] == weights and found["weight_bytes"] == 4 * weights
    assert found["flops"] == 2 * weights * found["tokens"]  # the organism's embedding is tied
    memory = found["memory"]
    assert memory["weights"] == 4 * weights and memory["tokens"] == 3 + longest_prompt() and memory["rows"] == 8
    assert memory["total"] == sum(memory[part] for part in ("weights", "cache", "activations", "scores", "captured"))
    assert memory["fits"] and memory["total"] < memory["free"] and memory["dtype"] == "float32"
    assert found["seconds"] is None and len(list_runs()) == before


def longest_prompt() -> int:
    """Tokens of the longest of the default prompts."""
    from workbench.core import registry
    from workbench.core.tables import read_table

    path = registry.get("branching-factor").data.default_path("organism")
    model = load("organism")
    return max(len(model.encode(text)) for text in read_table(path)["prompt"].to_list()[:4])


def test_what_has_no_room_is_said_with_what_would_have(capsys, monkeypatch):
    for free, ways in (
        (4.0, "--dtype bfloat16 (as stored)\n"),
        (5.5, "--dtype bfloat16 (as stored) or smaller batches"),
    ):
        monkeypatch.setattr(memory_plan, "free_bytes", lambda device=None, free=free: int(free * 1e6))
        assert command_line(["run", "branching-factor", "--model", "organism", *FEW, "--estimate"]) == 0
        said = capsys.readouterr().out
        assert "keys and values:" in said and "activations of a pass:" in said
        assert f"of {free} MB that are free, which is too little: use {ways}" in said


def test_after_a_run_the_estimate_is_at_its_pace(capsys):
    run = execution.execute("branching-factor", load("organism"), config=CONFIG)
    found = []
    for few in (FEW, [*FEW[:-1], "max_prompts=8"]):
        assert command_line(["run", "branching-factor", "--model", "organism", *few, "--estimate", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["tokens"] == run.info["counters"]["tokens"]
    assert found[0]["seconds"] == pytest.approx(run.info["seconds"]["compute"])
    assert found[1]["seconds"] / found[0]["seconds"] == pytest.approx(found[1]["tokens"] / found[0]["tokens"], rel=1e-3)
    assert cost.plan_of(run).prompts == 4


def test_people_read_sentences(capsys):
    assert command_line(["run", "concept-depth", "--model", "organism", "--dtype", "bfloat16", "--estimate"]) == 0
    said = capsys.readouterr().out
    assert "would feed" in said and "in bfloat16" in said and "of activations" in said and "time:" in said


def test_a_model_that_is_not_here_has_no_estimate(capsys):
    assert command_line(["run", "branching-factor", "--model", "nobody/has-this", *FEW, "--estimate"]) == 2
    assert "not on this machine" in capsys.readouterr().err


def test_an_imported_run_says_nothing_of_pace():
    def run(started, model="m", device="cpu", **more):
        info = {"started": started, "model": {"name": model, "device": device}} | more
        return Simple(probe="p", status="complete", info=info, of=lambda *keys: _inside(info, keys))

    computed, other = run("2026-01-02"), run("2026-01-03", model="n")
    imported = run("2026-01-04", imported={"file": "scores.json"})
    assert cost.last_like([imported, other, computed], "p", "m", "cpu") == (computed, True)
    assert cost.last_like([imported, other], "p", "m", "cpu") == (other, False)
    assert cost.last_like([imported], "p", "m", "cpu") == (None, False)


def _inside(info, keys):
    for key in keys:
        info = (info or {}).get(key)
    return info
