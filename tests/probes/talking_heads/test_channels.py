"""Channels whose truth is known: planted in weights, learnt by the organism, shared by a group of heads."""

import json
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from probes.talking_heads.ablation import Chosen, channels_into, random_sets
from probes.talking_heads.channel_edits import Channel, removed
from probes.talking_heads.config import Config
from probes.talking_heads.scan import RATE, TELLING, ModelHeads, _adjusting, against_others, read_weights, scan
from tests.benchmarks.composition import random_heads
from tests.support.architectures import build
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.composition import components
from workbench.engine.edits import apply
from workbench.models.attention import observe
from workbench.models.batching import pad
from workbench.models.loading import load, wrap
from workbench.organisms import circuits
from workbench.stats.clusters import false_discovery


def scanned(model, **values):
    config, context = Config(**values), Context()
    weights = read_weights(model, config, context)
    return weights, scan(weights, config, context, model.device)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = circuits.folder("circuit-channel", tmp_path_factory.mktemp("planted"))
    model = load(str(folder))
    return model, folder, circuits.truth(folder), *scanned(model)


def test_the_planted_channel_is_the_first_and_the_only_one(planted):
    _, _, truth, _, found = planted
    first = found["channels"].row(0, named=True)
    assert (first["source_layer"], first["source_head"], first["component"]) == (0, 5, 0)
    assert (first["target_layer"], first["target_head"], first["kind"]) == (2, 11, "q")
    assert first["rank"] == 1 and first["z"] > 20 and first["z_heads"] > 20 and first["p_adjusted"] < 1e-6
    assert first["score"] == pytest.approx(truth["receiver"]["composition_score"], abs=1e-4)
    assert first["singular_value"] == pytest.approx(truth["sender"]["singular_value"], abs=1e-4)
    assert found["channels"]["is_channel"].sum() == found["tests"][1] == 1


def attention_on(model, folder, edits):
    """The receiver's attention from the last token to `target`, text by text, in plain passes."""
    rows = [json.loads(line) for line in (folder / "sequences.jsonl").read_text().splitlines()]
    found = []
    for row in rows:
        ids = model.encode(row["text"])
        with torch.no_grad(), apply(model, edits), observe(model, lambda _, w: w[0, 11, 0], layers=[2]) as seen:
            model.forward(pad([ids], pad_id=0))
        found.append((float(seen[2][row["target"]]), len(ids)))
    return found


def test_cutting_it_takes_the_known_logit_from_the_receiver_and_no_other_component_does(planted):
    model, folder, truth, weights, _ = planted
    score = truth["score"]["intact"]
    for seen, length in attention_on(model, folder, []):
        assert seen == pytest.approx(np.exp(score) / (np.exp(score) + length - 1), rel=1e-4)
    for seen, length in attention_on(model, folder, [removed(weights, [Channel(0, 5, 0)])]):
        assert seen == pytest.approx(1 / length, rel=1e-4)
    intact = [seen for seen, _ in attention_on(model, folder, [])]
    for other in [Channel(0, 5, i) for i in range(1, 16)] + [Channel(layer, 3, i) for layer in (0, 1) for i in (0, 9)]:
        kept = [seen for seen, _ in attention_on(model, folder, [removed(weights, [other])])]
        assert kept == pytest.approx(intact, rel=1e-5), other


def test_the_organism_talks_from_its_previous_token_head_to_its_induction_head():
    """0.1 looks at the token before, 1.0 and 1.1 (one group) at what followed before: in the weights alone."""
    _, found = scanned(load("organism"))
    marked = found["channels"].filter("is_channel")
    pairs = set(marked.select("source_layer", "source_head", "target_layer", "target_head", "kind").iter_rows())
    assert pairs == {(0, 1, 1, 0, "k")} and marked["target_heads"].unique().to_list() == [2]


def test_the_copy_circuit_hands_the_previous_token_to_the_keys_of_its_copy_head(tmp_path_factory):
    """Rotary positions, two key/value heads: 0.0 and 0.2 write the previous token (twins), 1.1 looks for it by its
    keys, which it shares with 1.0. Heads have fewer components than numbers; those that are there are tested."""
    model = load(str(circuits.folder("circuit-copy-gqa", tmp_path_factory.mktemp("copy"))))
    weights, found = scanned(model)
    first = found["channels"].head(4).rows(named=True)
    assert {(row["source_layer"], row["source_head"]) for row in first} == {(0, 0), (0, 2)}
    reader = ("target_layer", "target_head", "target_heads", "kind")
    assert {tuple(row[name] for name in reader) for row in first} == {(1, 0, 2, "k")}
    assert all(row["z"] > 10 for row in first)
    values = weights.components[0].values
    there = int((values > 1e-6 * values.max()).sum())
    assert 0 < there < values.numel() and found["tests"][0] <= there * (4 + 2 + 2)
    assert found["channels"]["score"].is_finite().all()


def test_z_against_other_components_is_robust_to_channels_and_told_of_enough_components_only():
    rng = np.random.default_rng(0)
    scores = rng.normal(0.1, 0.01, (500, 2))
    scores[:20, 0] = 0.9  # twenty channels do not hide each other
    z = against_others(scores)
    assert z[:20, 0].min() > 50 and abs(z[20:].std() - 1) < 0.1
    few = scores[:7]
    assert np.isnan(against_others(few)).all()
    same = np.full((50, 1), 0.25)
    assert np.isnan(against_others(same)).all()
    same[3] = 0.75
    assert against_others(same)[3, 0] == pytest.approx(0.5 / np.std(same))


@pytest.mark.parametrize(("name", "kv"), [("llama", 2), ("gemma2", 2), ("gpt_neox", 4), ("gpt2", 4), ("olmo2", 2)])
def test_keys_and_values_are_tested_once_for_each_head_that_is_there(name, kv):
    model = wrap(build(name))
    _, found = scanned(model)
    before = [4 * 8 * layer for layer in (1, 2)]  # heads × components of the earlier layers
    assert found["tests"][0] == sum(before) * (4 + kv + kv)
    channels, step = found["channels"], 4 // kv
    assert channels.filter(kind="q")["target_heads"].unique().to_list() == [1]
    shared = channels.filter(pl.col("kind") != "q")
    assert shared["target_heads"].unique().to_list() == [step]
    assert (shared["target_head"] % step == 0).all()
    pairs = found["pair_scores"]
    assert np.isnan(pairs[:, 1, :, 0]).all() and np.isfinite(pairs[:, 0, :, 1]).all()
    for kind in (1, 2):
        grouped = pairs[kind].reshape(3, 4, 3, kv, step)
        assert np.array_equal(grouped[..., :1].repeat(step, -1), grouped, equal_nan=True)


def test_rotary_models_are_averaged_over_offsets_where_asked_and_others_stay():
    same, turned = (
        [scanned(wrap(build(n)), offsets=o)[1]["pair_scores"] for o in ((0,), (1, 5, 20))] for n in ("gpt2", "llama")
    )
    np.testing.assert_allclose(same[0], same[1], rtol=1e-4)
    assert np.nanmax(np.abs(turned[0][:2] - turned[1][:2])) > 0.01
    np.testing.assert_array_equal(turned[0][2], turned[1][2])  # values are not turned


def test_strengths_are_the_largest_of_what_leaves_and_arrives(planted):
    _, _, _, _, found = planted
    heads, channels = found["heads"], found["channels"]
    least = channels.with_columns(pl.min_horizontal("z", "z_heads").alias("least"))
    sender = heads.filter(layer=0, head=5).row(0, named=True)
    receiver = heads.filter(layer=2, head=11).row(0, named=True)
    assert sender["out_strength"] == receiver["in_strength"] == receiver["in_q_strength"] == least["least"][0]
    assert heads.filter(layer=0)["in_strength"].null_count() == 16
    assert heads.filter(layer=2)["out_strength"].null_count() == 16
    for row in least.filter(rank_in=1).iter_rows(named=True):
        own = heads.filter(layer=row["target_layer"], head=row["target_head"])
        assert own[f"in_{row['kind']}_strength"].item() == pytest.approx(row["least"])


def test_p_is_adjusted_as_over_all_tests_where_it_is_small():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.random(3000), rng.random(40) * 1e-4])
    adjust = _adjusting(p[p <= TELLING], len(p))
    plain, ours = false_discovery(p), adjust(p)
    small = plain < RATE
    assert small.sum() > 30
    np.testing.assert_allclose(ours[small], plain[small])
    assert (ours[~small] >= RATE).all()


def test_channels_into_a_head_are_those_of_its_group(planted):
    table = planted[4]["channels"]
    chosen = channels_into(table, (2, 11), Config(ablate=2))
    assert chosen[0].channels == (Channel(0, 5, 0),) and len(chosen) == 2  # one stands out: none are cut together
    grouped = table.with_columns(
        pl.when(pl.col("rank") == 1).then(pl.lit("k")).otherwise("kind").alias("kind"),
        target_heads=pl.when(pl.col("rank") == 1).then(pl.lit(4)).otherwise("target_heads"),
    )
    assert channels_into(grouped, (2, 14), Config(ablate=1))[0].channels == (Channel(0, 5, 0),)
    assert channels_into(grouped, (2, 15), Config(ablate=1))[0].channels != (Channel(0, 5, 0),)


def test_a_rank_is_over_all_tests_and_not_told_where_stronger_ones_are_not_kept():
    weights = random_model(4, 2, 8, 48)
    few, every = (
        scan(weights, Config(keep=keep), Context(), torch.device("cpu"))["channels"] for keep in (5, 1_000_000)
    )
    assert every["rank"].to_list() == list(range(1, every.height + 1))
    own = ["source_layer", "source_head", "component", "target_layer", "target_head", "kind"]
    both = few.join(every, on=own, suffix="_of_all")
    assert both.height == few.height > 5 and both["rank"].drop_nulls().to_list() == [1, 2, 3, 4, 5]
    known = both.drop_nulls("rank")
    assert known["rank"].to_list() == known["rank_of_all"].to_list()
    assert both["rank_of_all"].is_sorted()


def test_random_components_are_of_equal_number_and_none_writes_nothing(planted):
    weights = planted[3]
    values = weights.components[0].values.clone()
    values[5, 4:] = 1e-9  # what is left of a head of rank 4
    own = replace(weights.components[0], values=values)
    poor = replace(weights, components=[own, *weights.components[1:]])
    one = Chosen((Channel(0, 5, 0),), ("q",))
    sets = random_sets(poor, one, Config(random_draws=20), Context())
    assert sorted(sets) == [(Channel(0, 5, 1),), (Channel(0, 5, 2),), (Channel(0, 5, 3),)]
    three = Chosen(tuple(Channel(0, 5, i) for i in range(3)), ("q",) * 3)
    assert random_sets(poor, three, Config(), Context()) == []
    assert len(random_sets(weights, three, Config(random_draws=20), Context())) == 20


def test_an_architecture_without_head_weights_is_refused():
    with pytest.raises(InputError, match="weights of its heads"):
        scanned(wrap(build("falcon")))


def random_model(layers: int, heads: int, size: int, width: int) -> ModelHeads:
    own = [random_heads(layer, heads, size, width) for layer in range(layers)]
    return ModelHeads(own, [components(one) for one in own], [[] for _ in own], width)


def test_random_heads_have_no_channel():
    found = scan(random_model(6, 4, 16, 96), Config(), Context(), torch.device("cpu"))
    assert found["tests"][0] == 15 * 4 * 16 * 12 and found["tests"][1] == 0
    assert found["channels"]["p_adjusted"].min() > 0.001
    assert found["channels"]["null_mean"].mean() == pytest.approx(96**-0.5, rel=0.05)


@pytest.mark.slow
def test_all_pairs_of_a_model_of_144_heads_take_less_than_a_minute_of_one_core():
    begun = time.process_time()
    found = scan(random_model(12, 12, 64, 768), Config(), Context(), torch.device("cpu"))
    assert time.process_time() - begun < 60 and found["tests"].tolist() == [66 * 12 * 64 * 36, 0]
