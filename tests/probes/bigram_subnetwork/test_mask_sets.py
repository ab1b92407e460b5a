"""Random masks have the size of the mask in every matrix; what a layer or a draw takes away is what it says."""

import numpy as np
import polars as pl
import pytest
import torch

from probes.bigram_subnetwork.mask_sets import kept_by_layer, random_like, without_layer, without_random
from probes.bigram_subnetwork.mask_tables import parameter_table, shares_of_parts
from tests.support import architectures
from workbench.models.block_weights import block_weights
from workbench.models.loading import wrap


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "phi3"])
def case(request):
    model = wrap(architectures.build(request.param))
    weights = block_weights(model, for_what="a test")
    draw = torch.Generator().manual_seed(0)
    return model, weights, {own.name: torch.rand(own.shape, generator=draw) < 0.2 for own in weights}


def size(masks) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def test_random_masks_keep_as_many_weights_of_every_matrix_and_others_each_time(case):
    _, _, masks = case
    one, two = (random_like(masks, np.random.default_rng(seed)) for seed in (0, 1))
    assert all(
        int(one[name].sum()) == int(mask.sum()) and one[name].shape == mask.shape for name, mask in masks.items()
    )
    assert any(not torch.equal(one[name], two[name]) for name in masks)
    again = random_like(masks, np.random.default_rng(0))
    assert all(torch.equal(one[name], again[name]) for name in masks)


def test_a_layer_or_as_many_random_weights_are_gone_and_nothing_is_added(case):
    model, weights, masks = case
    kept, total = kept_by_layer(masks, weights, model.n_layers)
    assert kept.sum() == size(masks) and total.sum() == sum(mask.numel() for mask in masks.values())
    for layer in range(model.n_layers):
        gone = without_layer(masks, weights, layer)
        drawn = without_random(masks, int(kept[layer]), np.random.default_rng(layer))
        assert size(gone) == size(drawn) == size(masks) - kept[layer]
        assert all(not (some[name] & ~masks[name]).any() for some in (gone, drawn) for name in masks)
        assert kept_by_layer(gone, weights, model.n_layers)[0][layer] == 0


def test_rows_of_the_parameters_add_up_and_fused_maps_are_taken_apart(case):
    model, weights, masks = case
    table = parameter_table(masks, weights)
    assert table["kept"].sum() == size(masks) and table["of_subnetwork"].sum() == pytest.approx(1)
    assert table["total"].sum() == sum(mask.numel() for mask in masks.values())
    first = table.filter(pl.col("layer") == 0)
    assert {"attention q", "attention k", "attention v", "attention o", "mlp in", "mlp out"} <= set(first["module"])
    shares = shares_of_parts(table)
    assert shares["MLP"] + shares["values and output"] + shares["queries and keys"] == pytest.approx(1)
    if model.architecture == "GPT2LMHeadModel":  # by hand: columns of the transposed map
        own = masks["transformer.h.0.attn.c_attn.weight"]
        by_role = dict(first.select("module", "kept").iter_rows())
        assert [by_role[f"attention {role}"] for role in "qkv"] == own.reshape(32, 3, 32).sum((0, 2)).tolist()
    if model.architecture == "GPTNeoXForCausalLM":  # interleaved by head
        own = masks["gpt_neox.layers.0.attention.query_key_value.weight"]
        by_role = dict(first.select("module", "kept").iter_rows())
        assert [by_role[f"attention {role}"] for role in "qkv"] == own.reshape(4, 3, 8, 32).sum((0, 2, 3)).tolist()
