"""Sets whose labels are numbers: scikit-learn's ridge done slowly, intervals and nulls with a known truth."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from transformers import AutoModelForCausalLM

from probes import concept_depth
from probes.concept_depth import Config
from probes.concept_depth.above_chance import CEILING, FOUND, HAS_NONE, NEVER, UNSURE, AboveChance, above_chance
from probes.concept_depth.label_shuffles import arrangements_of_numbers, shuffle_numbers
from probes.concept_depth.layer_curves import LAYERS
from probes.concept_depth.number_measures import r_squared, r_squared_interval
from probes.concept_depth.number_points import row_of_number_points, share_points
from probes.concept_depth.ridge_probe import PENALTIES, read_held_out
from probes.concept_depth.set_splits import parts_in_proportion
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.runs import execution as runs
from workbench.stats.clusters import clusters_of
from workbench.stats.intervals import resampled_spearman

SHORT = {"target": "number", "site": "resid_post", "draws": 100, "shuffles": 0, "causal": "off"}


@pytest.fixture(scope="module")
def stories(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture
def counts(tmp_path):
    """How many dogs a text names, and a little more: 90 rows in 30 groups."""
    rows = [
        {"text": f"Tom saw {' and '.join(['a dog'] * k)} on day {i}", "label": k + 0.1 * (i % 7), "group": f"g{i % 30}"}
        for i in range(30)
        for k in (1, 2, 4)
    ]
    path = tmp_path / "counts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def slow_ridge(x, y, test, parts, standardize=False):
    """Penalty by squared error over the parts, then scikit-learn's Ridge: what it reads in `test`, and its alpha."""
    train = np.setdiff1d(np.arange(len(y)), test)

    def fitted(rows, alpha):
        scale = x[rows].std(0) if standardize else 1.0
        model = Ridge(alpha=alpha, solver="cholesky").fit(x[rows] / scale, y[rows])
        return lambda others: model.predict(x[others] / scale)

    own = x[train] / (x[train].std(0) if standardize else 1.0)
    unit = ((own - own.mean(0)) ** 2).sum(1).mean()
    errors = [
        sum(((y[train[p]] - fitted(np.delete(train, p), unit * a)(train[p])) ** 2).sum() for p in parts)
        for a in PENALTIES
    ]
    alpha = unit * PENALTIES[int(np.argmin(errors))]
    return fitted(train, alpha)(test), alpha


# the probe


@pytest.mark.parametrize(("n", "d", "standardize"), [(60, 12, False), (40, 70, False), (50, 15, True)])
def test_the_ridge_probe_and_its_penalty_are_scikit_learns(n, d, standardize):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((2, n, d)) * np.geomspace(0.1, 10, d) + 5
    y = np.stack([x[0, :, -1] + rng.standard_normal(n) * 3, rng.standard_normal(n)])
    tests = np.array_split(rng.permutation(n), 3)
    parts = {len(t): np.array_split(np.arange(n - len(t)), 4) for t in tests}
    found = read_held_out(
        list(torch.from_numpy(x)), y, tests, lambda train: parts[n - len(train)], standardize=standardize
    )
    at = 0
    for k, test in enumerate(tests):
        for target in range(2):
            for layer in range(2):
                read, alpha = slow_ridge(x[layer], y[target], test, parts[len(test)], standardize)
                own = found.read[target, layer, at : at + len(test)]
                assert np.allclose(own, read, atol=1e-6 * np.abs(read).max())
                if target == 0:
                    assert found.alpha[k, layer] == pytest.approx(alpha)
        train = np.delete(np.arange(n), test)
        assert np.allclose(found.guess[:, at : at + len(test)], y[:, train].mean(1)[:, None])
        at += len(test)
    w = found.probes.scores(list(torch.from_numpy(x)))[0, tests[0]]
    assert np.allclose(w, found.read[0, 0, : len(tests[0])])


# a run


def test_a_run_is_one_text_per_forward_and_scikit_learn_in_the_same_folds(stories, tiny_llama, counts):
    result = concept_depth.run(stories, Config(**SHORT | {"shuffles": 5}), Context(data=counts))
    inputs, numbers = result.tables["inputs"], result.tables["numbers"]
    assert inputs.group_by("group").agg(n=pl.col("fold").n_unique())["n"].max() == 1
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    layer = 1
    with torch.no_grad():
        x = (
            torch.stack(
                [
                    hf(torch.tensor([i.to_list()]), output_hidden_states=True).hidden_states[layer + 1][0, -1]
                    for i in inputs["ids"]
                ]
            )
            .double()
            .numpy()
        )
    y, fold, groups = inputs["label"].to_numpy(), inputs["fold"].to_numpy(), inputs["group"].to_numpy()
    assert sorted(set(y)) == sorted({k + 0.1 * (i % 7) for i in range(30) for k in (1, 2, 4)})
    rng, read, guess, rho = Context().rng("penalty counts"), np.empty(len(y)), np.empty(len(y)), []
    for k in range(5):
        test, train = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
        parts = parts_in_proportion(np.zeros(len(train), dtype=int), groups[train], 4, rng)
        assert all(not set(groups[train[p]]) & set(groups[np.delete(train, p)]) for p in parts)
        read[test], guess[test] = slow_ridge(x, y, test, parts)[0], y[train].mean()
        rho.append(spearmanr(read[test], y[test])[0])
    row = numbers.row(layer, named=True)
    assert row["r2"] == pytest.approx(1 - ((y - read) ** 2).sum() / ((y - guess) ** 2).sum(), abs=1e-3)
    assert row["spearman"] == pytest.approx(np.mean(rho), abs=0.01)
    assert row["r2_low"] < row["r2"] < row["r2_high"] <= 1 and row["n"] == 30 and row["n_test"] == 90
    assert row["above_shuffled"] == pytest.approx(row["r2"] - row["control_r2"]) and row["above_chance"]
    assert abs(row["control_r2"]) < 0.15 and row["control_low"] <= row["control_r2"] <= row["control_high"]
    depth = result.tables["number_depth"].row(0, named=True)
    assert depth["peak_low"] < depth["peak_r2"] < depth["peak_high"] and depth["peak_control"] < 0.1
    assert depth["peak_r2"] <= numbers["r2"].max() + 0.05
    assert result.summary["counts: peak R²"]["n"] == 30
    assert all(result.tables[name].is_empty() for name in ("layers", "depth", "classes", "causal", "controls"))
    assert result.tables["sets"].select("lowest", "highest", "n_classes").row(0) == (1.0, pytest.approx(4.6), 0)


def test_a_set_of_classes_has_the_columns_that_an_empty_table_of_layers_has(stories, tmp_path):
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps({"text": f"Tom {i} ran", "label": i % 2}) + "\n" for i in range(40)))
    config = Config(**SHORT | {"target": "class", "split": "paper", "groups": "no", "control_tasks": 0})
    result = concept_depth.run(stories, config, Context(data=path))
    assert result.tables["layers"].schema == pl.DataFrame(schema=LAYERS).schema
    assert result.tables["numbers"].is_empty() and result.tables["number_depth"].is_empty()


@pytest.mark.parametrize(
    ("labels", "config", "message"),
    [
        ([1, 2, "tall"], {}, "row 3: the label 'tall' is not a number"),
        ([1, 2, "inf"], {}, "row 3: the label 'inf' is not a number"),
        ([1, 2, "nan"], {}, "row 3: the field 'label' is empty"),
        ([3, 3, 3], {}, "every row has the number 3"),
        ([1, 2, 3], {}, "too few for 5 folds of two"),
        ([1, 2, 3], {"c": 0.1}, "are of classes; leave them out with target=number"),
        ([1, 2, 3], {"transfer": True}, "are of classes; leave them out with target=number"),
    ],
)
def test_what_cannot_be_read_as_a_number_is_refused_before_a_model_is_loaded(tmp_path, labels, config, message):
    path = tmp_path / "n.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}", "label": str(v)}) + "\n" for i, v in enumerate(labels)))
    with pytest.raises(InputError, match=message):
        runs.prepare("concept-depth", {"target": "number"} | config, path)


# intervals


@pytest.mark.parametrize("clusters", [8, 30])
def test_the_interval_of_r_squared_holds_the_truth_as_often_as_it_says(clusters):
    """Of y = a + b a probe reads a, b partly shared within clusters of four rows: R² is ½."""
    rng, inside = np.random.default_rng(clusters), 0
    for _ in range(1000):
        group = np.repeat(np.arange(clusters), 4)
        shared = rng.standard_normal((2, clusters))[:, group] * np.sqrt(0.5)
        a, b = shared + rng.standard_normal((2, len(group))) * np.sqrt(0.5)
        low, high = r_squared_interval(b**2, (a + b) ** 2, clusters_of(group))
        inside += low <= 0.5 <= high
    assert 0.90 < inside / 1000 < 0.98, inside


def test_r_squared_is_nothing_for_the_mean_and_one_for_the_truth():
    y = np.random.default_rng(0).standard_normal(50)
    spread = (y - 0.3) ** 2
    assert r_squared(spread, spread) == 0 and r_squared(0 * y, spread) == 1
    assert np.isnan(r_squared_interval(spread, spread, clusters_of(np.arange(50) % 4))[0])


def test_spearman_of_a_resample_is_that_of_its_rows():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 40).astype(float), rng.standard_normal(40)
    counts = rng.multinomial(40, np.full(40, 1 / 40), 5).astype(float)
    rows = [np.repeat(np.arange(40), c.astype(int)) for c in counts]
    assert np.allclose(resampled_spearman(x, y, counts), [spearmanr(x[r], y[r])[0] for r in rows])
    assert np.isnan(resampled_spearman(x, y, np.eye(40)[:1])).all()


# nulls


def test_shuffled_numbers_keep_parts_and_how_alike_the_rows_of_a_group_are():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), [1, 2, 3, 4] * 3)
    numbers = rng.standard_normal(12)[groups] * 3 + 0.1 * rng.standard_normal(len(groups))
    tests = [np.flatnonzero(groups < 6), np.flatnonzero(groups >= 6)]
    out = shuffle_numbers(numbers, tests, groups, rng)
    for test in tests:
        inside = sorted(set(groups[test]))
        means = [[v[groups == g].mean() for g in inside] for v in (numbers, out)]
        assert np.allclose(sorted(means[0]), sorted(means[1])) and not np.allclose(*means)
    for g in range(12):
        off = [np.sort(v[groups == g] - v[groups == g].mean()) for v in (numbers, out)]
        assert np.allclose(*off)
    alone = shuffle_numbers(numbers, tests, None, rng)
    assert all(np.allclose(np.sort(alone[t]), np.sort(numbers[t])) for t in tests)
    assert arrangements_of_numbers(np.array([1.0, 2, 3, 3]), [np.arange(4)], None) == pytest.approx(12)
    assert arrangements_of_numbers(np.array([1.0, 1, 4, 6]), [np.arange(4)], np.array([0, 0, 1, 1])) == pytest.approx(4)


def test_numbers_of_groups_that_say_nothing_are_above_chance_in_one_set_in_twenty():
    """Groups of three rows with almost the same number and alike features, which have nothing to do with each other.
    At most 9 of 80 (three standard errors of 0.05); what the shuffles leave is nothing, R² of 0 within 0.05."""
    found, left = 0, []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(24), 3)
        x = rng.standard_normal((3, 24, 6))[:, groups] + 0.3 * rng.standard_normal((3, 72, 6))
        y = rng.standard_normal(24)[groups] + 0.1 * rng.standard_normal(72)
        tests = parts_in_proportion(np.zeros(72, dtype=int), groups, 3, rng)
        targets = np.stack([y, *(shuffle_numbers(y, tests, groups, rng) for _ in range(20))])

        def inner(train, groups=groups, rng=rng):
            return parts_in_proportion(np.zeros(len(train), dtype=int), groups[train], 4, rng)

        read = read_held_out(list(torch.from_numpy(x)), targets, tests, inner)
        truth = targets[:, np.concatenate(tests)]
        r2 = r_squared((truth[:, None] - read.read) ** 2, ((truth - read.guess) ** 2)[:, None])
        judged = above_chance(r2[0], r2[1:], arrangements_of_numbers(y, tests, groups))
        found += (judged.above & (r2[0] >= 0.05)).any()
        left.append(r2[1:].mean())
    assert found <= 9 and abs(np.mean(left)) < 0.1, (found, np.mean(left))


# depths


def judged(above):
    return AboveChance(np.zeros(len(above)), np.zeros(len(above)), np.array(above, dtype=bool))


def test_points_are_where_a_share_of_the_highest_r_squared_is_reached():
    curve = np.array([0.0, 0.1, 0.44, 0.7, 0.8, 0.75, 0.6, 0.5])
    found = share_points(np.stack([curve, curve * 0.05]))
    assert found["half_way"].tolist()[0] == 2 / 8 and found["nine_tenths"].tolist()[0] == 4 / 8
    assert np.isnan(found["half_way"][1]), "its highest is below 0.05"
    row = row_of_number_points(curve, np.stack([curve] * 20), judged(curve > 0.05), 20)
    assert (row["onset"], row["half_way"], row["nine_tenths"]) == (1 / 8, 2 / 8, 4 / 8)
    assert row["half_way_says"] == FOUND and row["layers_above_chance"] == 7
    assert row["half_way_low"] == row["half_way_high"] == 2 / 8


@pytest.mark.parametrize(
    ("curve", "above", "says"),
    [
        ([0.0, 0.01, 0.02], [0, 0, 0], NEVER),
        ([0.9, 0.92, 0.95], [1, 1, 1], CEILING),
        ([0.01, 0.02, 0.04], [0, 0, 1], HAS_NONE),
        ([0.0, 0.3, 0.6], [0, 1, 1], FOUND),
    ],
)
def test_words_say_why_there_is_no_depth(curve, above, says):
    row = row_of_number_points(np.array(curve), None, judged(above), 20)
    assert row["nine_tenths_says"] == says and np.isfinite(row["nine_tenths"]) == (says == FOUND)
    assert np.isfinite(row["onset"]) == any(above)
    if says == FOUND:
        flat = np.stack([curve] * 18 + [[0.0, 0.0, 0.01]] * 2)  # in a tenth of the resamples nothing is read
        assert row_of_number_points(np.array(curve), flat, judged(above), 20)["half_way_says"] == UNSURE
