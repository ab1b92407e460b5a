"""Curvature within texts against plain Hugging Face and loops, where its value is known, beside both controls."""

import json

import numpy as np
import pytest
import torch

from probes import representation_geometry
from probes.representation_geometry import Config
from probes.representation_geometry.curvature import bends, shuffled_tokens
from tests.support import sink_model
from tests.support.sink_model import slow_sinks, slow_states
from tests.support.text_states import token_states
from workbench.core.context import Context
from workbench.models.loading import load
from workbench.runs import cost, preparation
from workbench.stats.clusters import cluster_mean

OPTIONS = {"draws": 0, "curve": False, "loss_rows": 0, "ablate": (), "map": (), "fit_range": (5, 20)}
OPTIONS |= {"also": ("curvature",), "layers": "all"}


def angle(a, b, c):
    """In degrees, between the step from a to b and that from b to c."""
    u, v = b - a, c - b
    return np.degrees(np.arccos(np.clip(u @ v / (np.linalg.norm(u) * np.linalg.norm(v)), -1, 1)))


def slow(states, kept):
    """Mean angle over tokens of states [T, d] that are kept with both their neighbours."""
    found = [
        angle(*states[t - 1 : t + 2]) for t in range(1, len(states) - 1) if kept[t - 1] and kept[t] and kept[t + 1]
    ]
    return np.mean(found) if found else np.nan


def chain(x):
    """Angles along all rows of x [T, d], one text."""
    follows = np.arange(len(x)) > 0
    return bends(torch.from_numpy(np.asarray(x, np.float64)), np.zeros(len(x), int), follows)[1]


def test_lines_right_angles_and_states_in_random_order_have_their_angles():
    line = np.outer(np.arange(9.0), [1, 2, 3])
    assert chain(line) == pytest.approx(np.zeros(7), abs=1e-5)
    stairs = np.repeat(np.arange(6), 2)
    assert chain(np.stack([stairs[1:], stairs[:-1]], 1)) == pytest.approx(np.full(9, 90))
    back = chain([[0, 0], [1, 0], [0, 0], [0, 0]])
    assert back[0] == pytest.approx(180) and np.isnan(back[1])
    rng = np.random.default_rng(0)
    assert chain(rng.standard_normal((4000, 500))).mean() == pytest.approx(120, abs=0.3)
    assert chain(rng.standard_normal((4000, 500)).cumsum(0)).mean() == pytest.approx(90, abs=0.3)
    # nothing is measured across two texts, nor where a token between was left out
    text, follows = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([False, True, True, False, True, False, True])
    at, angles = bends(torch.from_numpy(rng.standard_normal((7, 5))), text, follows)
    assert at.tolist() == [0] and len(angles) == 1


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rng = np.random.default_rng(0)
    words = "Tom Lily dog cat park tree ball happy sad big small ran saw and the a went to play with was".split()
    made = [" ".join(rng.choice(words, rng.integers(2, 15))) for _ in range(30)]
    return write(tmp_path_factory.mktemp("texts") / "texts.jsonl", [*made, "a"])


def test_the_table_is_that_of_hidden_states_with_the_tokens_as_they_are_and_shuffled(tiny_llama, texts):
    model, context = load(str(tiny_llama)), Context(data=texts)
    result = representation_geometry.run(model, Config(**OPTIONS | {"sinks": "keep"}), context)
    ids = [list(row) for row in result.tables["inputs"]["ids"]]
    assert ids[0][0] == model.bos_id  # which is no word: its steps are not measured
    seed = context.torch_seed("curvature") % 2**32
    other = shuffled_tokens(ids, [(1, len(row)) for row in ids], seed=seed)
    assert all(sorted(a) == sorted(b) and a[0] == b[0] for a, b in zip(ids, other)) and ids != other
    each = [
        np.array(
            [[slow(s[layer], np.arange(s.shape[1]) > 0) for s in token_states(tiny_llama, those)] for layer in range(5)]
        )
        for those in (ids, other)
    ]
    there = ~np.isnan(each[0][0])
    table = result.tables["curvature"]
    assert 20 < there.sum() < 31 and table["n"].unique().to_list() == [there.sum()]
    for row in table.iter_rows(named=True):
        own, tokens = (found[row["layer"]][there] for found in each)
        expected = {"curvature": own, "shuffled_tokens": tokens, "difference": own - tokens}
        if row["layer"]:
            expected |= {"from_first": each[0][0][there] - own, "from_first_shuffled": each[1][0][there] - tokens}
        for name, values in expected.items():
            one = cluster_mean(values, np.arange(len(values)))
            told = [row[f"{name}{end}"] for end in ("", "_low", "_high")]
            assert told == pytest.approx([one.value, one.low, one.high], abs=5e-3), name
        assert 90 < row["shuffled_states"] < 150 and 0 <= row["p_adjusted"] <= 1
        assert row["angles"] == sum(max(0, len(one) - 3) for one in ids)
    assert table["from_first"][0] is None
    said = result.summary
    assert said["curvature (degrees)"]["value"] == table["curvature"][-1]
    assert said["curvature (degrees), tokens shuffled"]["value"] == table["shuffled_tokens"][-1]
    # an untrained model has no order to be straight in: nothing is told of it
    assert said["layers straighter than with tokens shuffled"].startswith("0 of 5")


def test_no_angle_spans_a_sink_that_is_left_out(tmp_path):
    folder = sink_model.save(tmp_path / "gpt2")
    data = write(tmp_path / "texts.jsonl", [*sink_model.texts(20, low=8), "dog cat ball sea tree park dog cat ball"])
    options = OPTIONS | {"final": "residual", "fit_range": (2, 10)}
    result = representation_geometry.run(load(str(folder)), Config(**options), Context(data=data))
    kept = representation_geometry.run(load(str(folder)), Config(**options | {"sinks": "keep"}), Context(data=data))
    states = slow_states(folder, [list(row) for row in result.tables["inputs"]["ids"]])
    spanned = 0
    for layer, row in enumerate(result.tables["curvature"].iter_rows(named=True)):
        masks = [~slow_sinks(np.linalg.norm(s[layer], axis=1)) for s in states]
        spanned += sum(int((~mask[1:]).sum()) for mask in masks)
        assert row["curvature"] == pytest.approx(np.mean([slow(s[layer], m) for s, m in zip(states, masks)]), abs=5e-3)
        whole = np.mean([slow(s[layer], np.ones(s.shape[1], bool)) for s in states])
        assert kept.tables["curvature"]["curvature"][layer] == pytest.approx(whole, abs=5e-3)
        assert row["angles"] < kept.tables["curvature"]["angles"][layer]
    assert spanned > 0  # a loud word inside a text is one too


def test_texts_without_three_tokens_have_none_and_its_passes_are_in_the_estimate(tiny_llama, texts, tmp_path):
    short = write(tmp_path / "short.jsonl", ["a dog", "a cat", "the park", "the ball"])
    context = Context(data=short)
    result = representation_geometry.run(load(str(tiny_llama)), Config(**OPTIONS | {"fit_range": (1, 2)}), context)
    assert result.tables["curvature"].is_empty() and any("no text has three tokens" in w for w in context.warnings)
    with_it, without = (
        cost.plan(
            "representation-geometry",
            preparation.prepare("representation-geometry", values, texts).config,
            texts,
            "organism",
        )
        for values in ({"also": "curvature", "loss_rows": 0}, {"loss_rows": 0})
    )
    assert with_it.tokens == 3 * without.tokens
