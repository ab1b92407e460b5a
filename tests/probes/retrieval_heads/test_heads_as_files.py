"""The heads that a run masked, as files for `--edit`."""

from __future__ import annotations

import json
import math

import polars as pl
import pytest

from workbench.engine.head_masks import read_mask
from workbench.explorer import head_sets
from workbench.models.loading import load
from workbench.runs.execution import execute
from workbench.runs.verify import verify

SHORT = {"lengths": (64,), "depths": (0, 50, 100), "max_new_tokens": 10, "mask_k": (1, 2)}


@pytest.fixture(scope="module")
def model():
    return load("circuit-copy")


def masks_of(run) -> dict[str, object]:
    return {path.name: read_mask(path) for path in sorted(run.folder.glob("heads_top*.json"))}


@pytest.mark.parametrize("ablation", ["zero", "uniform", "mean"])
def test_every_k_that_was_tested_leaves_the_very_heads_that_were_masked(model, ablation):
    run = execute("retrieval-heads", model, config=SHORT | {"ablation": ablation})
    masks = masks_of(run)
    assert list(masks) == ["heads_top1.json", "heads_top2.json"]
    for k in (1, 2):
        mask, told = masks[f"heads_top{k}.json"], run.table("masking").filter(k=k, heads="top")
        assert " ".join(f"{layer}.{head}" for layer, head in mask.heads) == told["masked"].item()
        assert mask.how == ("uniform" if ablation == "uniform" else "zero")
        assert mask.model["fingerprint"] == model.fingerprint and mask.mismatch_warning(model) is None
        assert f"top {k} heads of retrieval-heads" in mask.note and f"{told['recall'].item():.3f} with," in mask.note
    assert ("cannot hold means" in " ".join(run.info["warnings"])) == (ablation == "mean")
    assert "heads_top1.json" in run.files and verify(run.id).status == "ok"
    named = head_sets.saved_masks([run], fingerprint=model.fingerprint)
    assert sorted(name.partition(" · ")[0] for name in named) == ["heads top1", "heads top2"]


def test_a_run_with_the_mask_applied_loses_what_the_note_says(model):
    run = execute("retrieval-heads", model, config=SHORT | {"ablation": "zero"})
    mask = masks_of(run)["heads_top1.json"]
    assert mask.heads == ((1, 0),) and "not shown" not in mask.note
    masked = execute("retrieval-heads", model, config=SHORT | {"mask_k": (0,)}, edits=(mask,))
    assert run.summary["recalled"]["value"] == 1.0 and masked.summary["recalled"]["value"] == 0.0
    assert list(masks_of(masked)) == []


def test_a_mask_that_does_no_more_than_random_heads_says_so():
    from probes.retrieval_heads.config import Config
    from probes.retrieval_heads.head_masks import _note, supported
    from probes.retrieval_heads.masked_recall import RECALL

    def table(low, high, n=6):
        rows = [(0, "none", 1.0), (2, "top", 0.5), (2, "random", 0.9), (2, "top_minus_random", -0.4)]
        return pl.DataFrame([(*row, low, high, n, 30, 5) for row in rows], schema=RECALL, orient="row")

    not_shown = "not shown to lower recall more than random heads do"
    for less, interval in ((table(-0.9, 0.1), "[-0.900, +0.100]"), (table(math.nan, math.nan, n=4), "no interval")):
        said = _note(2, less, Config(), crossed=False)
        assert not supported(2, less) and said.endswith(not_shown) and f"-0.400 {interval}, n = " in said
    said = _note(2, table(-0.5, -0.1), Config(), crossed=True)
    assert supported(2, table(-0.5, -0.1)) and "-0.400 [-0.500, -0.100], n = 6 needles (30 trials)" in said
    assert said.endswith("with the heads that one half of the needles chose, on the other half")


def test_a_run_that_answers_nothing_leaves_no_mask(tiny_llama, tmp_path):
    (tmp_path / "needles.jsonl").write_text(
        json.dumps({"needle": "The ball is in the park.", "question": "Where is it?", "answer": "in the park"}) + "\n"
    )
    (tmp_path / "haystack.txt").write_text("A dog ran. A cat sat. " * 20)
    config = {"haystack": str(tmp_path / "haystack.txt"), "lengths": (64,), "depths": (50,), "max_new_tokens": 4}
    run = execute("retrieval-heads", str(tiny_llama), data=tmp_path / "needles.jsonl", config=config)
    assert run.summary["trials_scored"] == 0 and masks_of(run) == {}
