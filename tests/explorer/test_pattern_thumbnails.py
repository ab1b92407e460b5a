"""Patterns of many heads, held to the eager attention of the plain model and to maxima taken in a loop."""

import base64
import json

import numpy as np
import pytest
import torch

from pages.widgets import pattern_grid
from tests.explorer.test_waterfall import IDS
from tests.support.architectures import build
from workbench import explore
from workbench.core.errors import InputError
from workbench.explorer.opened_model import Opened
from workbench.explorer.pattern_thumbnails import HEADS, MOST, Thumbnails, patterns_figure, table, thumbnails
from workbench.models.loading import wrap


@pytest.fixture(scope="module")
def llama():
    return Opened(wrap(build("llama"), None, name="llama"))


@torch.no_grad()
def eager(opened, ids):
    hf = opened.model.hf
    hf.set_attn_implementation("eager")
    weights = hf(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
    hf.set_attn_implementation("workbench")
    return np.stack([w[0].numpy() for w in weights])  # [layers, H, T, T]


@pytest.mark.parametrize(("length", "side"), [(6, None), (17, 8), (16, 4), (16, 1)])
def test_a_block_has_the_largest_weight_of_its_tokens_as_the_plain_model_attends(llama, length, side):
    ids = (IDS * 3)[:length]
    heads = [(2, 3), (0, 1), (2, 0)]
    found = thumbnails(llama, ids, heads, side=side)
    block = 1 if side is None else -(-length // side)
    n = -(-length // block)
    weights, rows = eager(llama, ids), []
    assert found.heads == tuple(heads) and found.block == block and found.weights.shape == (3, n, n)
    for i, (layer, head) in enumerate(heads):
        for q in range(n):
            for k in range(q + 1):
                some = weights[layer, head, q * block : (q + 1) * block, k * block : (k + 1) * block]
                assert found.weights[i, q, k] == pytest.approx(some.max(), abs=1e-6)
                rows.append((layer, head, q * block, k * block))
    assert table(found).select("layer", "head", "query", "key").rows() == rows


def test_the_figure_draws_the_root_of_the_weight_of_every_block_that_can_be_seen(llama):
    found = thumbnails(llama, IDS, [(1, 2), (0, 0)])
    fig = patterns_figure(found)
    shown = [t for t in fig.data if t.type == "bar" and not isinstance(t.marker.color, str)]
    assert len(shown) == 2
    for trace, weights in zip(shown, found.weights):
        assert len(trace.x) == 21  # on and below the diagonal of 6 × 6
        for key, base, value in zip(trace.x, trace.base, trace.marker.color):
            assert value == pytest.approx(weights[round(base + 0.465), int(key)] ** 0.5, abs=1e-6)
    with pytest.raises(InputError, match="up to 24"):
        patterns_figure(Thumbnails(((0, 0),), np.zeros((1, 30, 30), np.float32), 1, 30))


@pytest.mark.parametrize(
    ("heads", "said"), [([], "not 0"), ([(0, 9)], "0.9 does not exist"), ([(0, h) for h in range(HEADS + 1)], "not 65")]
)
def test_heads_that_are_none_are_refused(llama, heads, said):
    with pytest.raises(InputError, match=said):
        thumbnails(llama, IDS, heads)


@pytest.mark.parametrize("count", [1, 14, 32, 64])
def test_what_is_sent_of_a_layer_at_512_tokens_is_under_a_megabyte_and_weights_survive_it(count):
    side = min(192, int((MOST / count) ** 0.5))
    block = -(-512 // side)
    n = -(-512 // block)
    rng = np.random.default_rng(0)
    weights = np.tril(rng.random((count, n, n)) ** 4).astype(np.float32)
    text = pattern_grid.packed(weights)
    assert len(json.dumps(text)) < 1_000_000
    raw = np.frombuffer(base64.b64decode(text), np.uint8).reshape(count, -1)
    at = 0
    for q in range(n):  # row by row, as the canvas reads it
        np.testing.assert_allclose(raw[:, at : at + q + 1] / 255, weights[:, q, : q + 1] ** 0.5, atol=0.5 / 255 + 1e-6)
        at += q + 1
    assert at == raw.shape[1]


def test_a_notebook_gets_the_patterns_of_a_layer_and_of_chosen_heads(llama):
    view = explore("circuit-copy-gqa", "lantern velvet harbor lantern")
    whole, fig = view.patterns()
    assert set(whole["layer"]) == {1} and whole["head"].n_unique() == 4
    assert fig.layout.meta["panels"][0]["title"] == "1.0"
    some, _ = view.patterns(heads=[(0, 2), (1, 1)])
    assert set(some.select("layer", "head").rows()) == {(0, 2), (1, 1)}
    last = some.filter(layer=1, head=1, query=4)
    assert last["key"][last["weight"].arg_max()] == 2  # the copying head looks at what followed "lantern"
