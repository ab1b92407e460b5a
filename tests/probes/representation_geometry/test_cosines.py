"""Mean cosines against loops over pairs, where their value is known, beside states with random signs."""

import json

import numpy as np
import pytest
import torch

from probes import representation_geometry
from probes.representation_geometry import Config
from probes.representation_geometry.cosines import mean_cosine
from tests.support.text_states import last_states
from workbench.core.context import Context
from workbench.models.loading import load
from workbench.stats.jackknife import deletions, jackknife_interval


def slow(x, centred):
    x = x - x.mean(0) if centred else x
    each = [
        (a @ b) / (np.linalg.norm(a) * np.linalg.norm(b)) for i, a in enumerate(x) for j, b in enumerate(x) if i != j
    ]
    return float(np.mean(each))


def found(x, *, centred=False, seed=0):
    return mean_cosine(torch.from_numpy(x), centred=centred, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("centred", [False, True])
def test_it_is_the_mean_over_pairs_and_its_interval_leaves_each_text_out(centred):
    x = np.random.default_rng(0).standard_normal((14, 6)) + 0.7
    one = found(x, centred=centred)
    assert one.value == pytest.approx(slow(x, centred), abs=1e-12)
    without = np.array([[np.arctanh(slow(np.delete(x, i, 0), centred)) for i in range(14)]])
    some = deletions(np.zeros(14), np.random.default_rng(1))
    low, high = jackknife_interval(np.arctanh([one.value]), without, some)
    assert (one.low, one.high) == pytest.approx((np.tanh(low[0]), np.tanh(high[0])), abs=1e-9)
    assert one.null_low < one.null < one.null_high


@pytest.mark.parametrize(("n", "shift"), [(8, 0.5), (30, 0.2), (120, 1.0)])
def test_intervals_hold_what_all_texts_would_give(n, shift):
    rng = np.random.default_rng(n)
    many = rng.standard_normal((200_000, 20)) + shift
    truth = ((many / np.linalg.norm(many, axis=1, keepdims=True)).mean(0) ** 2).sum()
    each = [found(many[rng.integers(0, len(many), n)], seed=seed) for seed in range(200)]
    assert np.mean([one.low <= truth <= one.high for one in each]) >= 0.92


def test_a_common_direction_stands_out_of_random_signs_and_is_gone_when_centred():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((60, 40))
    without = [found(rng.standard_normal((60, 40))) for _ in range(60)]
    assert np.mean([one.null_low <= one.value <= one.null_high for one in without]) >= 0.85
    common = found(x + 2)
    assert common.low > 0.5 > common.null_high
    centred = found(x + 2, centred=True)
    assert abs(centred.value) < 0.03 and centred.value == pytest.approx(found(x, centred=True).value, abs=1e-9)
    same = found(np.ones((20, 4)))
    assert same.value == pytest.approx(1) and np.isnan(same.low)
    assert np.isnan(found(np.ones((20, 4)), centred=True).value)


def test_the_table_is_that_of_hidden_states(tiny_llama, tmp_path):
    rng = np.random.default_rng(0)
    words = "Tom Lily dog cat park tree ball happy sad big small ran saw and the a went to play with was".split()
    path = tmp_path / "texts.jsonl"
    rows = [{"text": " ".join(rng.choice(words, rng.integers(3, 15)))} for _ in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"draws": 0, "curve": False, "loss_rows": 0, "ablate": (), "map": (), "fit_range": (5, 20)}
    options |= {"also": ("cosine",), "layers": "all"}
    result = representation_geometry.run(load(str(tiny_llama)), Config(**options), Context(data=path))
    states = last_states(tiny_llama, result.tables["inputs"]["ids"])
    table = result.tables["cosine"]
    assert table.height == 5 and table["n"].unique().to_list() == [30]
    for row in table.iter_rows(named=True):
        for name, centred in (("cosine", False), ("centred", True)):
            assert row[name] == pytest.approx(slow(states[row["layer"]], centred), abs=1e-5)
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert result.summary["mean cosine"]["value"] == table["cosine"][-1]
    assert result.summary["mean cosine, random signs"]["high"] == table["cosine_null_high"][-1]
    off = representation_geometry.run(load(str(tiny_llama)), Config(**options | {"also": ()}), Context(data=path))
    assert off.tables["cosine"].is_empty() and not any("cosine" in key for key in off.summary)
