"""Intrinsic dimension against loops over pairs of points, on manifolds whose dimension is known, beside its null."""

import json

import numpy as np
import pytest
import torch

from probes import representation_geometry
from probes.representation_geometry import Config
from probes.representation_geometry import intrinsic_dimension as method
from tests.support.text_states import last_states
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.runs import execution as runs


def slow(x, k):
    """(two neighbours, k neighbours) of points [n, d], by loops over pairs."""
    ratios, logs = [], []
    for i, point in enumerate(x):
        distances = sorted(float(np.sqrt(((point - other) ** 2).sum())) for j, other in enumerate(x) if j != i)
        ratios.append(distances[1] / distances[0])
        logs += [np.log(distances[k - 1] / distances[j]) for j in range(k - 1)]
    ratios.sort()
    pairs = [(np.log(mu), -np.log(1 - (i + 1) / len(x))) for i, mu in enumerate(ratios) if i < int(0.9 * len(x))]
    across, up = np.array(pairs).T
    return np.linalg.lstsq(across[:, None], up, rcond=None)[0][0], 1 / np.mean(logs)


def embedded(rng, n, d, width=50):
    """Points of the unit cube of d dimensions, bent and put into `width` dimensions."""
    flat = rng.uniform(size=(n, d))
    bent = np.concatenate([flat, 0.3 * np.sin(2 * flat)], axis=1)
    return torch.from_numpy(bent @ np.linalg.qr(rng.standard_normal((width, 2 * d)))[0].T)


def told(x, *, k=10, draws=4, seed=0):
    return method.intrinsic_dimension(x, range(len(x)), k=k, draws=draws, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("d", [2, 5])
def test_both_estimates_are_those_of_loops_over_pairs(d):
    x = embedded(np.random.default_rng(d), 60, d, width=20) + 100  # far from the origin
    found = told(x, k=7)
    assert (found.two_nn.value, found.mle.value) == pytest.approx(slow(x.numpy(), 7), rel=1e-9)


@pytest.mark.parametrize(("d", "low", "high"), [(2, 1.8, 2.1), (5, 4.3, 5.2), (10, 7.5, 9.5)])
def test_the_dimension_of_a_manifold_is_found_and_a_high_one_is_told_too_low(d, low, high):
    found = told(embedded(np.random.default_rng(0), 1500, d))
    assert low < found.two_nn.value < high and low < found.mle.value < high
    assert found.n == 1500 and found.duplicates == 0
    if d == 10:  # what the bias is read from: fewer points say less
        assert found.mle.half < found.mle.value < d and found.two_nn.high < d + 1


@pytest.mark.parametrize(("d", "n"), [(2, 60), (5, 200)])
def test_intervals_hold_what_other_points_give_on_average_and_are_not_far_too_wide(d, n):
    rng = np.random.default_rng(d)
    found = [told(embedded(rng, n, d), draws=1, seed=seed) for seed in range(80)]
    for name in ("two_nn", "mle"):
        each = np.array([[getattr(one, name).value, getattr(one, name).low, getattr(one, name).high] for one in found])
        truth = each[:, 0].mean()
        assert ((each[:, 1] <= truth) & (truth <= each[:, 2])).mean() >= 0.93
        assert np.median(each[:, 2] - each[:, 1]) < 2.2 * 4 * each[:, 0].std()


def test_gaussian_points_are_like_their_null_and_points_on_a_surface_lie_below_it():
    rng = np.random.default_rng(1)
    inside = {"two_nn": 0, "mle": 0}
    for seed in range(40):
        x = torch.from_numpy(rng.standard_normal((80, 12)) * np.arange(1, 13) ** -0.5)
        found = told(x, draws=40, seed=seed)
        for name in inside:
            one = getattr(found, name)
            inside[name] += one.null_low <= one.value <= one.null_high
    assert min(inside.values()) >= 33
    surface = told(embedded(rng, 300, 2), draws=20)
    assert surface.two_nn.high < surface.two_nn.null_low and surface.mle.high < surface.mle.null_low


def test_points_that_repeat_others_are_left_out_and_counted():
    rng = np.random.default_rng(2)
    x = embedded(rng, 120, 3)
    alone = told(x)
    twice = torch.cat([x, x[:30] * (1 + 1e-9), x[30:40] + 0.3])
    names = [*range(120), *range(200, 230), *range(30, 40)]  # the last ten are texts that were there before
    found = method.intrinsic_dimension(twice, names, k=10, draws=4, rng=np.random.default_rng(0))
    assert (found.n, found.duplicates) == (120, 40)
    assert found.two_nn.value == pytest.approx(alone.two_nn.value) and np.isfinite(found.two_nn.high)
    same = told(torch.ones(50, 8, dtype=torch.float64))
    assert same.n == 1 and np.isnan(same.two_nn.value) and "22 that differ, and there are 1" in same.reason


# in a run


@pytest.fixture(scope="module")
def stories(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rng = np.random.default_rng(0)
    words = "Tom Lily dog cat park tree ball happy sad big small ran saw and the a went to play with was".split()
    rows = [" ".join(rng.choice(words, rng.integers(4, 20))) for _ in range(60)]
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in [*rows, *rows[:6]]))
    return path


OPTIONS = {"draws": 0, "curve": False, "loss_rows": 0, "ablate": (), "map": (), "fit_range": (5, 40)}


def test_the_table_is_that_of_hidden_states_and_says_which_texts_it_left_out(stories, tiny_llama, texts):
    options = OPTIONS | {"also": ("dimension",), "neighbours": 8, "layers": "all", "random_draws": 6}
    result = representation_geometry.run(stories, Config(**options), Context(data=texts))
    states = last_states(tiny_llama, result.tables["inputs"]["ids"][:60])
    table = result.tables["dimension"]
    assert table["layer"].to_list() == [0, 1, 2, 3, 4] and table["site"].to_list()[-1] == "final_norm"
    for row in table.iter_rows(named=True):
        assert (row["two_nn"], row["mle"]) == pytest.approx(slow(states[row["layer"]], 8), rel=1e-3)
        assert (row["n"], row["duplicates"], row["k"], row["d"]) == (60, 6, 8, 64)
        for name in ("two_nn", "mle"):
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
            assert row[f"{name}_null_low"] <= row[f"{name}_null"] <= row[f"{name}_null_high"]
    said = result.summary["intrinsic dimension (two neighbours)"]
    assert said["value"] == table["two_nn"][-1] and said["n"] == 60
    assert (
        result.summary["of Gaussian states with the same covariance (8 neighbours)"]["value"] == table["mle_null"][-1]
    )
    beyond = not (
        table["two_nn_high"][-1] < table["two_nn_null_low"][-1]
        or table["two_nn_null_high"][-1] < table["two_nn_low"][-1]
    )
    assert ("structure beyond the covariance (two neighbours)" in result.summary) == beyond


def test_without_being_asked_nothing_is_measured_and_too_few_texts_are_refused(stories, texts):
    result = representation_geometry.run(stories, Config(**OPTIONS), Context(data=texts))
    assert result.tables["dimension"].is_empty() and not any("intrinsic" in key for key in result.summary)
    with pytest.raises(InputError, match="has 66 texts, and neighbours=40 needs 82"):
        runs.prepare("representation-geometry", {"also": "dimension", "neighbours": 40}, texts)
    with pytest.raises(InputError, match="neighbours=40 needs 82 texts .* leave 50"):
        runs.prepare("representation-geometry", {"also": "dimension", "neighbours": 40, "limit": 50}, texts)
    options = OPTIONS | {"also": ("dimension",), "min_length": 17}
    context = Context(data=texts)
    few = representation_geometry.run(stories, Config(**options), context)
    assert "need 42 that differ" in few.tables["dimension"]["missing"][0]
    assert few.tables["dimension"]["two_nn"][0] is None and any("no intrinsic dimension" in w for w in context.warnings)
    assert few.summary["intrinsic dimension"].startswith("not told")
