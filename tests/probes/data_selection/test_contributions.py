"""What sets a target apart: lift and contribution against the slow computation, and how often chance is taken for
it."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from probes.data_selection import contributions as c
from tests.support.selection_pool import execute, read, slow_vectors


def jaccard_parts(z, p):
    """Of every feature, its part of the similarity."""
    return np.minimum(z, p) / np.maximum(z, p).sum()


@pytest.fixture(scope="module")
def run(model, material, tmp_path_factory):
    return execute(model, material, tmp_path_factory.mktemp("apart") / "run", baselines=(), resamples=0, features=40)


def test_contributions_are_parts_of_the_similarity_of_each_example_to_the_others_less_the_pools(
    run, tiny_llama, material
):
    pool = slow_vectors(tiny_llama, material, read(material / "pool.jsonl"))
    for name in ("sea", "park"):
        examples = slow_vectors(tiny_llama, material, read(material / f"{name}.jsonl"))
        own = np.mean([jaccard_parts(z, np.delete(examples, i, 0).mean(0)) for i, z in enumerate(examples)], axis=0)
        usual = np.mean([jaccard_parts(z, examples.mean(0)) for z in pool], axis=0)
        table = run.table("features").filter(target=name)
        found = (own - usual)[table["feature"].to_list()]
        np.testing.assert_allclose(table["contribution"], found, atol=1e-6)
        best = set(np.argsort(-(own - usual))[:5])
        assert best <= set(table["feature"]) and (table["contribution"] > 0).all()


def test_shared_features_are_those_that_lift_a_row_above_the_pool(run, tiny_llama, material):
    pool = slow_vectors(tiny_llama, material, read(material / "pool.jsonl"))
    p = slow_vectors(tiny_llama, material, read(material / "sea.jsonl")).mean(0)
    parts = np.array([jaccard_parts(z, p) for z in pool])
    shared = run.table("shared").filter(target="sea")
    assert shared.height > 5
    for row, feature, more in shared.select("row", "feature", "contribution").iter_rows():
        assert more == pytest.approx((parts[row] - parts.mean(0))[feature], abs=1e-6) and more > 0
    row = shared["row"][0]
    plain = shared.filter(pl.col("row") == row, ~pl.col("distinctive"))["feature"].to_list()
    order = [f for f in np.argsort(-(parts[row] - parts.mean(0))) if f in plain]
    assert plain == order


def test_lift_is_the_ratio_of_densities_with_an_interval_over_examples(run, model, material):
    from sae_lens import SAE

    sae, inputs = SAE.load_from_disk(material / "sae"), run.table("inputs")
    fired, tokens = {}, {}
    for role, rows in (("pool", inputs.filter(role="pool")), ("sea", inputs.filter(target="sea"))):
        counts = []
        for ids, mask in rows.select("ids", "mask").iter_rows():
            with torch.no_grad():
                z = sae.encode(model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0])
            counts.append((z[torch.tensor(mask)] > 0).sum(0).numpy())
        fired[role], tokens[role] = np.array(counts, float), np.array([sum(mask) for mask in rows["mask"]], float)
    density = {role: fired[role].sum(0) / tokens[role].sum() for role in fired}
    table = run.table("features").filter(target="sea")
    shown, n = table.height, len(fired["sea"])
    tested = ((density["pool"] > 0) | (density["sea"] > 0)).sum()
    for row in table.iter_rows(named=True):
        f = row["feature"]
        assert row["n"] == n == 6 and row["density_target"] == pytest.approx(density["sea"][f])
        lift = density["sea"][f] / density["pool"][f]
        assert row["lift"] == pytest.approx(lift)
        if (fired["sea"][:, f] > 0).sum() < 5:
            assert row["lift_low"] is None and row["p"] is None and not row["distinctive"]
            continue
        off = fired["sea"][:, f] - density["sea"][f] * tokens["sea"]
        se = np.sqrt(n / (n - 1) * (off**2).sum()) / tokens["sea"].sum() / density["sea"][f]
        half = stats.t.ppf(1 - 0.025 * shown / tested, n - 1) * se * np.sqrt(lift) / 2
        ends = max(0, np.sqrt(lift) - half) ** 2, (np.sqrt(lift) + half) ** 2
        assert (row["lift_low"], row["lift_high"]) == pytest.approx(ends)
        assert row["p"] == pytest.approx(2 * stats.t.sf(abs(np.sqrt(lift) - 1) / (se * np.sqrt(lift) / 2), n - 1))
    assert table["lift_low"].null_count() < shown


def counted(fired, tokens):
    """What `target_features` keeps of texts [n, width] and their numbers of tokens [n]."""
    density, variance = c.shares_of_tokens(fired.sum(0), (fired**2).sum(0), (fired * tokens[:, None]).sum(0), tokens)
    return c.TargetFeatures(len(tokens), np.ones(len(density)), density, variance, (fired > 0).sum(0).astype(float))


def texts(rng, n, rate):
    """Numbers of tokens, and of those on which each feature fires: overdispersed, as topics make them."""
    tokens = rng.integers(15, 60, n).astype(float)
    own = rng.gamma(2.0, 0.5, (n, len(rate))) * rate
    return rng.binomial(tokens[:, None].astype(int), own.clip(0, 1)).astype(float), tokens


@pytest.mark.parametrize("n", [5, 12, 20, 60])
def test_examples_that_are_like_the_pool_have_hardly_any_feature_of_their_own(n):
    rng = np.random.default_rng(n)
    rate = np.exp(rng.uniform(np.log(1e-4), np.log(0.2), 500))
    pool, tokens = texts(rng, 4000, rate)
    known = {"fired": pool.sum(0), "tokens": np.array([tokens.sum(), 0, 4000]), "parts": np.zeros((1, 500))}
    marked = [int(c.lifts(counted(*texts(rng, n, rate)), known, 0).distinctive.sum()) for _ in range(60)]
    assert np.mean([many > 0 for many in marked]) <= 0.05
    planted = rate.copy()
    planted[np.argsort(-rate)[20:40]] *= 4
    found = [c.lifts(counted(*texts(rng, n, planted)), known, 0).distinctive for _ in range(20)]
    assert np.mean([marks.sum() for marks in found]) > {5: 0, 12: 10}.get(n, 18)
    wrong = [np.delete(marks, np.argsort(-rate)[20:40]).sum() / max(1, marks.sum()) for marks in found]
    assert np.mean(wrong) <= 0.08


@pytest.mark.parametrize("n", [5, 8, 12, 30])
def test_intervals_of_the_lift_hold_the_truth(n):
    rng = np.random.default_rng(n)
    rate = np.array([0.2, 0.25, 0.3])  # so frequent that it fires in five of five texts
    known = {"fired": rate / 2 * 1e6, "tokens": np.array([1e6, 0, 1.0]), "parts": np.zeros((1, 3))}
    held = []
    for _ in range(1000):
        lift = c.lifts(counted(*texts(rng, n, rate)), known, 0)
        low, high = c.ends_of(lift.lift, lift.spread, n)
        there = np.isfinite(low)
        held += ((low <= 2) & (2 <= high))[there].tolist()
    assert 0.92 <= np.mean(held) <= 0.98


def test_the_summary_says_how_many_marks_chance_may_have_made(model, material, tmp_path):
    found = execute(model, material, tmp_path / "run", baselines=(), resamples=0)
    assert found.summary["expected_false_features"] == pytest.approx(0.05 * found.summary["distinctive_features"])
    assert json.dumps(found.summary)


def test_on_the_organism_no_full_stop_leads_the_explanations(tmp_path):
    from workbench.runs import execution as runs

    config = {"target": ("sea", "kitchen"), "baselines": (), "resamples": 0, "features": 6}
    found = runs.execute("data-selection", "organism", config=config, out=tmp_path / "run")
    leading = found.table("shared").group_by("target", "row", maintain_order=True).first()
    own = found.table("features").filter("distinctive")
    assert leading["distinctive"].mean() > 0.8 and own.height >= 10
    peak = found.table("passages").filter(place=1)
    full_stops = {
        r["feature"] for r in peak.iter_rows(named=True) if r["tokens"][r["peak"] - r["start"]].strip() == "."
    }
    assert not leading["feature"].is_in(list(full_stops)).any()
    assert (own["lift_low"] > 1).all()
