"""The headline of the knowledge-conflict probe on the organism: without its context heads it answers from memory, and
still knows its facts.

The other way does not work on this model, and the probe says so: no few heads carry memory's side, because facts are
recalled by many.
"""

import pytest

from workbench import organisms
from workbench.runs import execution as runs

TWENTY_POINTS, TWO_POINTS = 0.20, 0.02


@pytest.mark.slow
def test_pruning_context_heads_brings_the_memory_answer_and_no_gain_is_claimed_where_there_is_none(tmp_path):
    """Heads from the find split, k from validation, rates on subjects that neither has seen; random heads of the same
    layers beside them."""
    (tmp_path / "neutral.txt").write_text(
        "The mayor walked home after the long meeting.\n"
    )  # the perplexity of every pruned model is not the headline
    config = {"variant": "total", "prune_k": (1, 3, 5), "flow_items": 0, "neutral": str(tmp_path / "neutral.txt")}
    run = runs.execute(
        "knowledge-conflict", "organism", config=config, data=organisms.data("conflicts-unmarked"), out=tmp_path / "run"
    )
    summary = run.summary
    assert summary["known"]["value"] > 0.9 and summary["items_test"] >= 40
    over, gain, clean = (summary[f"context_pruned_{what}"] for what in ("gain_over_random", "gain", "clean_change"))
    assert over["value"] >= TWENTY_POINTS and over["low"] > 0 and gain["low"] > 0, (over, gain)
    assert clean["value"] >= -TWO_POINTS, clean
    assert (tmp_path / "run" / "pruned_heads.json").is_file()
    if summary["memory_pruned_k"] == 0:  # the probe's word for "no mask of this side helps"
        assert any("No memory heads are pruned" in warning for warning in run.info["warnings"])
        assert not list((tmp_path / "run").glob("pruned_heads*memory*"))
    else:
        assert summary["memory_pruned_clean_change"]["value"] >= -3 * TWO_POINTS
    drawn = run.table("pruning").filter(run.table("pruning")["heads"] == "random")
    sets = {(role, k): n for role, k, n in drawn.group_by("role", "k").len().iter_rows()}
    chosen = {("context", summary["context_pruned_k"]), ("memory", summary["memory_pruned_k"])}
    assert all(n == (20 if pair in chosen else 3) for pair, n in sets.items()) and ("context", 0) not in chosen
