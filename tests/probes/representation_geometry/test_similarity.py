"""Unbiased CKA against its formula with explicit matrices, where its value is known, beside texts in another order."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes import representation_geometry
from probes.representation_geometry import Config
from probes.representation_geometry.similarity import similarities
from tests.support.text_states import last_states
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.runs import execution as runs


def slow_hsic(k, ell):
    """Unbiased HSIC of two Gram matrices as it is written (Song et al. 2012, Eq. 5)."""
    n = len(k)
    k, ell, one = k - np.diag(np.diag(k)), ell - np.diag(np.diag(ell)), np.ones((len(k), 1))
    middle = (one.T @ k @ one) @ (one.T @ ell @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ ell) + middle - 2 / (n - 2) * one.T @ k @ ell @ one).item() / (n * (n - 3))


def slow(x, y):
    k, ell = x @ x.T, y @ y.T
    return slow_hsic(k, ell) / np.sqrt(slow_hsic(k, k) * slow_hsic(ell, ell))


def of_pairs(x, y):
    """The same as a mean over all quadruples of different texts: what is unbiased about it."""
    k, ell = x @ x.T, y @ y.T
    four = list(itertools.permutations(range(len(x)), 4))
    a, b, c, d = np.array(four).T
    return (k[a, b] * (ell[a, b] + ell[c, d] - 2 * ell[a, c])).mean()


def alike(x, y, *, draws=20, seed=0):
    places = [torch.from_numpy(x), torch.from_numpy(y)]
    return similarities(places, [(0, 1)], draws=draws, rng=np.random.default_rng(seed))[0]


def planted(rng, n, noise, maps):
    """States of six common causes in two places, each with noise of its own; and the population's CKA."""
    z = rng.standard_normal((n, 6))
    x, y = (z @ m + noise * rng.standard_normal((n, m.shape[1])) for m in maps)
    a, b = (m.T @ m + noise**2 * np.eye(m.shape[1]) for m in maps)
    return x, y, ((maps[0].T @ maps[1]) ** 2).sum() / np.sqrt((a**2).sum() * (b**2).sum())


def test_values_and_those_without_each_text_are_those_of_explicit_matrices():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 30)) + 5
    y = x @ rng.standard_normal((30, 7)) + rng.standard_normal((12, 7))
    found = alike(x, y)
    assert found.value == pytest.approx(slow(x, y), rel=1e-9)
    few = np.arange(6)
    assert of_pairs(x[few], y[few]) == pytest.approx(slow_hsic(x[few] @ x[few].T, y[few] @ y[few].T), rel=1e-9)
    # the jackknife's variance on Fisher's scale, each text left out in turn and everything computed again
    z, without = np.arctanh(slow(x, y)), [np.arctanh(slow(np.delete(x, i, 0), np.delete(y, i, 0))) for i in range(12)]
    pseudo = 12 * z - 11 * np.array(without)
    half = 2.200985 * pseudo.std(ddof=1) / np.sqrt(12)
    assert (found.low, found.high) == pytest.approx((np.tanh(z - half), np.tanh(z + half)), rel=1e-5)


def test_groups_of_texts_are_left_out_of_everything():
    rng = np.random.default_rng(1)
    x, y, _ = planted(rng, 130, 1.0, [rng.standard_normal((6, 9)), rng.standard_normal((6, 4))])
    from workbench.stats.jackknife import deletions, jackknife_interval

    some = deletions(np.zeros(130), np.random.default_rng(0))
    without = [np.arctanh(slow(x[some.group != g], y[some.group != g])) for g in range(some.n)]
    low, high = jackknife_interval(np.arctanh([slow(x, y)]), np.array([without]), some)
    found = alike(x, y)
    assert some.n == 50 and (found.low, found.high) == pytest.approx((np.tanh(low[0]), np.tanh(high[0])), rel=1e-9)


def test_turned_shifted_and_scaled_states_are_the_same_and_few_unrelated_ones_are_not_alike():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((40, 300))
    turn = np.linalg.qr(rng.standard_normal((300, 300)))[0]
    same = alike(x, 3 * x @ turn + 7)
    assert same.value == pytest.approx(1) and np.isnan(same.low)
    others = [rng.standard_normal((40, 300)) for _ in range(40)]
    assert abs(np.mean([alike(x, other, draws=2).value for other in others])) < 0.02
    grams = [(c := other - other.mean(0)) @ c.T for other in (x, others[0])]
    assert (grams[0] * grams[1]).sum() / np.prod([np.linalg.norm(one) for one in grams]) > 0.8  # the biased one
    constant = alike(x, np.ones((40, 5)))
    assert np.isnan(constant.value) and np.isnan(constant.low)
    assert np.isnan(alike(x[:4], x[:4]).value)


@pytest.mark.parametrize(("n", "noise"), [(8, 1.0), (30, 0.3), (120, 3.0)])
def test_intervals_hold_the_similarity_of_the_population_and_the_null_is_around_zero(n, noise):
    rng = np.random.default_rng(n)
    maps = [rng.standard_normal((6, 20)), rng.standard_normal((6, 15))]
    held, null = [], []
    for seed in range(120):
        x, y, truth = planted(rng, n, noise, maps)
        found = alike(x, y, seed=seed)
        held.append(found.low <= truth <= found.high)
        null.append(found.null)
        assert found.null_low <= found.null <= found.null_high
    assert np.mean(held) >= 0.9 and abs(np.mean(null)) < 0.02


# in a run


@pytest.fixture(scope="module")
def stories(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rng = np.random.default_rng(0)
    words = "Tom Lily dog cat park tree ball happy sad big small ran saw and the a went to play with was".split()
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"text": " ".join(rng.choice(words, rng.integers(3, 15)))} for _ in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


OPTIONS = {"draws": 0, "curve": False, "loss_rows": 0, "ablate": (), "map": (), "fit_range": (5, 30)}


def test_layers_and_checkpoints_are_compared_on_the_states_of_the_same_texts(stories, tiny_llama, texts, tmp_path):
    for step, size in ((0, 0.0), (10, 0.02)):
        hf = AutoModelForCausalLM.from_pretrained(tiny_llama)
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in hf.model.layers[-1].parameters():
                weight += size * torch.randn_like(weight)
        hf.save_pretrained(tmp_path / f"step-{step}")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_llama / file, tmp_path / f"step-{step}")
    options = OPTIONS | {"also": ("similarity",), "also_rows": 30, "layers": "all", "checkpoints": (str(tmp_path),)}
    result = representation_geometry.run(stories, Config(**options), Context(data=texts))
    chosen = np.sort(Context().rng("also").permutation(40)[:30])
    ids = [result.tables["inputs"]["ids"][int(i)] for i in chosen]
    states = {f"step-{step}": last_states(tmp_path / f"step-{step}", ids) for step in (0, 10)}
    table = result.tables["similarity"]
    assert table.height == 2 * 10 + 1 and table["n"].unique().to_list() == [30]
    for row in table.iter_rows(named=True):
        a, b = (states[row[f"checkpoint_{end}"]][row[f"layer_{end}"]] for end in "ab")
        assert row["value"] == pytest.approx(slow(a, b), abs=1e-4) and row["low"] < row["value"] < row["high"]
    between = table.row(-1, named=True)
    assert (between["checkpoint_a"], between["checkpoint_b"]) == ("step-0", "step-10")
    assert (between["step_a"], between["step_b"], between["layer_a"], between["layer_b"]) == (0, 10, 4, 4)
    assert 0 < between["value"] < 0.999 and "states" not in result.tables
    said = result.summary["CKA of the first and the last checkpoint"]
    assert (said["value"], said["n"]) == (between["value"], 30)
    first = table.filter(checkpoint_a="step-10", checkpoint_b="step-10", layer_a=0, layer_b=4).row(0, named=True)
    assert result.summary["CKA of the first and the last layer"]["value"] == first["value"]
    assert result.summary["CKA of the first and the last layer, texts in another order"]["value"] == first["null"]


def test_one_place_has_nothing_to_be_compared_with(stories, texts):
    with pytest.raises(InputError, match="compares layers or checkpoints; set layers=all"):
        runs.prepare("representation-geometry", {"also": "similarity"}, texts)
    result = representation_geometry.run(stories, Config(**OPTIONS), Context(data=texts))
    assert result.tables["similarity"].is_empty() and not any("CKA" in key for key in result.summary)
