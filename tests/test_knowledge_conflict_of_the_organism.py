"""The headline of the knowledge-conflict probe on the organism: pruning heads of one side brings the answers of the other."""

import pytest

from workbench import organisms, runs

TWENTY_POINTS, TWO_POINTS = 0.20, 0.02


@pytest.mark.slow
@pytest.mark.parametrize("data", ("conflicts", "conflicts-unmarked"))
def test_pruning_either_side_brings_the_other_answer_and_leaves_the_facts_alone(tmp_path, data):
    """Heads from the find split, k from validation, rates on subjects that neither has seen; random heads of the same layers beside them."""
    config = {"prune_k": (1, 3, 5, 7), "flow_items": 0, "limit": 400}
    run = runs.execute("knowledge-conflict", "organism", config=config, data=organisms.data(data), out=tmp_path / "run")
    summary = run.summary
    assert summary["known"]["value"] > 0.9 and summary["items_test"] >= 40
    for role in ("context", "memory"):
        assert summary[f"{role}_pruned_k"], f"nothing is pruned: {run.info['warnings']}"
        over, gain, clean = (summary[f"{role}_pruned_{what}"] for what in ("gain_over_random", "gain", "clean_change"))
        assert over["value"] >= TWENTY_POINTS and over["low"] > 0 and gain["low"] > 0, (role, over, gain)
        assert clean["value"] >= -TWO_POINTS, (role, clean)
        assert not any(f"{role} heads is not shown" in warning for warning in run.info["warnings"])
    drawn = run.table("pruning").filter(run.table("pruning")["heads"] == "random")
    assert drawn.group_by("role", "k").len()["len"].min() >= 5
