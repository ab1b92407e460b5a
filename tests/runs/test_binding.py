"""probe(NAME, ...).run(model, ...): where data, seed, model and keys go, and what is said where they do not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from workbench import probe
from workbench.core.errors import InputError
from workbench.organisms import DATA

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402

MODEL = tiny_probes.fake_model()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\ntwo\n")
    return path


@pytest.fixture
def counting(monkeypatch):
    """A probe that says what it was given."""
    from dataclasses import dataclass

    import polars as pl

    from workbench.core.context import Result
    from workbench.core.registry import DataSpec, Probe, option, register, unregister

    @dataclass(frozen=True)
    class Config:
        most: int = option(1, "how many")

    def run(model, config, context):
        return Result({"rows": pl.DataFrame({"data": [str(context.data)], "seed": [context.seed]})})

    register(Probe("counting", "S.", run, Config, {"rows": ("data", "seed")}, "@misc{x}", data=DataSpec(("text",))))
    yield
    unregister("counting")


@pytest.mark.parametrize("where", ["probe", "run"])
def test_data_and_seed_are_taken_in_probe_and_in_run(counting, file, where):
    given = {"data": str(file), "seed": 3}
    bound = probe("counting", most=2, **(given if where == "probe" else {}))
    run = bound.run(MODEL, **(given if where == "run" else {}))
    assert run.table("rows").rows() == [(str(file), 3)] and run.info["seed"] == 3 and run.info["config"] == {"most": 2}


@pytest.mark.parametrize(("key", "value"), [("data", "file"), ("seed", 0)])
def test_what_is_given_twice_is_refused(counting, file, key, value):
    value = str(file) if value == "file" else value
    with pytest.raises(InputError, match=f"'{key}' is given twice, in probe"):
        probe("counting", **{"data": str(file), key: value}).run(MODEL, **{key: value})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "organism"}, r"'model' is no key .* probe\('retrieval-heads', \.\.\.\)\.run\(model\)"),
        ({"device": "cpu"}, r"run\(model, device=\.\.\.\)"),
        ({"out": "x"}, r"run\(model, out=\.\.\.\)"),
        ({"edit": "x"}, r"run\(model, edits=\.\.\.\)"),
        ({"fresh": True}, r"run\(model, fresh=\.\.\.\)"),
        ({"config": {"lengths": 128}}, r"probe\('retrieval-heads', \*\*config\)"),
        ({"data": "no-such-file.csv"}, "There is no needles file no-such-file.csv"),
        ({"seed": -1}, "The seed must be"),
        ({"lenghts": 128}, "did you mean 'lengths'"),
        ({"data": str(DATA / "pool.jsonl"), "needles": str(DATA / "needles.jsonl")}, "given twice"),
    ],
)
def test_probe_says_where_what_it_does_not_take_belongs(given, words):
    with pytest.raises(InputError, match=words):
        probe("retrieval-heads", **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lengths": (128,)}, r"go to probe: probe\('retrieval-heads', lengths=\.\.\.\)\.run\(model\)"),
        ({"config": {}}, "go to probe"),
        ({"devise": "cpu"}, "did you mean 'device'"),
    ],
)
def test_run_says_where_what_it_does_not_take_belongs(given, words):
    with pytest.raises(InputError, match=words):
        probe("retrieval-heads").run(MODEL, **given)


@pytest.mark.parametrize("given", [5, ["a.csv", "b.csv"], {"text": ["a"]}, b"a.csv"])
def test_data_that_is_no_path_is_a_sentence_that_says_what_to_do(counting, given):
    for ask in (lambda: probe("counting", data=given), lambda: probe("counting").run("a", data=given)):
        with pytest.raises(InputError, match=f"not a {type(given).__name__}; write it to a file and give its path"):
            ask()
