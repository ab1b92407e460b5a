"""A stopped run of the branching factor loses less than a twentieth of what it has sampled."""

import json

import numpy as np
import pytest

from probes.branching_factor import conditions
from workbench.core.errors import Cancelled
from workbench.engine.generate import sample
from workbench.runs import execution

SHAPES = {"many prompts": (60, 8), "few prompts": (2, 240)}


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.fixture
def start(stories, tmp_path, shape):
    prompts, samples = shape
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"The dog saw {n} birds"}) + "\n" for n in range(prompts)))

    def go(name):
        config = {"samples": samples, "max_new_tokens": 3}
        return execution.execute("branching-factor", stories, config=config, data=data, out=tmp_path / name)

    return go


def sampled(monkeypatch, *, kill_at=None):
    """How many rows each part asks for; the part number `kill_at` is killed while it is sampled."""
    asked: list[int] = []

    def counted(model, ids, **options):
        asked.append(len(ids) * options["samples"])
        if len(asked) == kill_at:
            raise KeyboardInterrupt
        return sample(model, ids, **options)

    monkeypatch.setattr(conditions, "sample", counted)
    return asked


@pytest.mark.parametrize("kill_at", [1, 9, 24])
def test_a_kill_loses_less_than_a_twentieth_of_the_run(start, shape, monkeypatch, kill_at):
    whole = shape[0] * shape[1]
    asked = sampled(monkeypatch, kill_at=kill_at)
    with pytest.raises(Cancelled):
        start("killed")
    monkeypatch.undo()
    again = sampled(monkeypatch)
    resumed = start("killed")
    monkeypatch.undo()
    assert max(asked + again) < 0.05 * whole
    assert sum(asked) + sum(again) - whole == asked[-1]  # what was open is sampled again, and nothing else
    straight = start("straight")
    for name in straight.tables:
        assert straight.table(name).equals(resumed.table(name)), name


def test_parts_hold_what_one_pass_over_all_samples_gives(start, monkeypatch):
    found = start("parts")
    for name in ("LEAST_ROWS", "MOST_ROWS"):
        monkeypatch.setattr(conditions, name, 10_000)
    at_once = start("at once")
    a, b = (run.table("samples").sort("row", "sample") for run in (found, at_once))
    assert a["generated_ids"].to_list() == b["generated_ids"].to_list()
    np.testing.assert_allclose(a["nll"].to_numpy(), b["nll"].to_numpy(), atol=1e-4)


def test_samples_drawn_later_are_those_that_were_drawn_at_once(stories):
    ids = [stories.encode("The dog"), stories.encode("Lily and Tom")]
    options = {"max_new_tokens": 5, "seed": 3}
    whole = sample(stories, ids, samples=6, **options)
    parts = [sample(stories, ids, samples=2, first=first, **options) for first in (0, 2, 4)]
    for p in range(2):
        own = [part.tokens(p, m) for part in parts for m in range(2)]
        assert own == [whole.tokens(p, m) for m in range(6)]


def test_so_few_samples_are_not_taken_apart(stories, tmp_path, monkeypatch):
    data = tmp_path / "p.jsonl"
    data.write_text(json.dumps({"prompt": "The dog"}) + "\n")
    asked = sampled(monkeypatch)
    config = {"samples": 12, "max_new_tokens": 2}
    execution.execute("branching-factor", stories, config=config, data=data, out=tmp_path / "run")
    assert asked == [12]
