"""Both probes on the trained organism: concepts converge in the order of their difficulty, and RankMe falls before it
rises."""

from pathlib import Path

import pytest

from probes import concept_depth, representation_geometry
from probes.concept_depth.above_chance import CEILING, FOUND
from workbench import organisms
from workbench.core.context import Context
from workbench.models.checkpoints import find
from workbench.models.loading import load

# From one word over the words of a whole story to a recalled fact that is weighed against a source: the generator's
# difficulty, and what it says a reader must do (organisms/data/organism.json).
CONCEPTS = ("sentiment", "topic", "conflict")


@pytest.fixture(scope="module")
def organism():
    return load("organism")


@pytest.mark.slow
def test_concepts_converge_at_layers_in_the_order_of_their_difficulty(organism):
    config = concept_depth.Config(
        site="resid_post", split="kfold", folds=3, sets=CONCEPTS, control_tasks=0, causal="off", draws=200
    )
    result = concept_depth.run(organism, config, Context(data=Path(organisms.data("concepts/topic")).parent))
    difficulty = dict(result.tables["sets"].select("dataset", "difficulty").iter_rows())
    assert [difficulty[name] for name in CONCEPTS] == sorted(difficulty.values())
    sentiment, topic, conflict = (result.tables["depth"].filter(dataset=name).row(0, named=True) for name in CONCEPTS)
    assert sentiment["converge_stable_says"] == CEILING and sentiment["converge_stable"] is None
    assert topic["converge_stable_says"] == FOUND and topic["converge_stable_high"] < 1
    # conflict rises by a few points up to the last layer: where topic has settled, it has not
    settled, last = (
        result.tables["layers"].filter(dataset="conflict", layer=layer).row(0, named=True)
        for layer in (round(topic["converge_stable"] * 6), 5)
    )
    assert settled["above_chance"] and settled["ci_high"] < last["ci_low"]
    assert conflict["jump_says"] == FOUND and conflict["jump"] == 1 / 6
    assert all(row["peak_accuracy"] > 0.9 for row in (sentiment, topic, conflict))


@pytest.mark.slow
def test_rankme_over_training_falls_before_it_rises(organism):
    steps = sorted(step for _, step, _ in find(organism, ["organism@*"]))
    few = [steps[0], *(s for s in steps if s in (26, 104)), steps[-1]]
    assert len(few) == 4
    config = representation_geometry.Config(
        checkpoints=tuple(f"organism@step-{s}" for s in few), limit=150, loss_rows=0, map=(), draws=60, curve=False
    )
    result = representation_geometry.run(organism, config, Context(data=Path(organisms.data("texts"))))
    layers = result.tables["layers"].sort("step")
    least = layers.row(layers["rankme"].arg_min(), named=True)
    assert least["ci_high"] < layers["ci_low"][0] and least["ci_high"] < layers["ci_low"][-1]
    # alpha, of 150 texts, says something else, which stands in brackets
    named = [name.partition(" (")[0] for name in result.tables["phases"]["phase"][:2]]
    assert named == ["warm-up", "entropy-seeking"]
