"""The head that the Explorer opens on, found by induction alone."""

import numpy as np
import polars as pl
import pytest
import torch

from tests.explorer.test_explorer import eager
from tests.support.architectures import build
from workbench.explorer import head_sets, readings
from workbench.explorer.opened_model import Opened, open_model
from workbench.explorer.opening_head import induction
from workbench.models.loading import wrap

COLUMNS = [f"induction{part}" for part in ("", "_control", "_difference", "_low", "_high", "_p_adjusted", "_above")]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_induction_of_rows_of_several_lengths_is_that_of_eager_attention_row_by_row(name):
    opened = Opened(wrap(build(name), None, name=name))
    rows = [[5, 9, 17, 5, 9, 17], [4, 8, 3, 11, 4, 8, 3, 11], [7, 9, 30, 7, 9, 30]]
    expected = []
    for ids in rows:
        _, weights, _ = eager(opened, ids)
        per_query = []
        for i in range(len(ids)):
            after = [j + 1 for j in range(i) if ids[j] == ids[i] and j + 1 < i]
            if after:
                per_query.append(weights[:, :, i, after].sum(-1))
        expected.append(torch.stack(per_query).mean(0))
    found = induction(opened, rows)
    np.testing.assert_allclose(found["induction"].to_numpy(), torch.stack(expected).mean(0).ravel(), atol=1e-6)


def test_induction_alone_names_the_head_that_all_scores_name():
    opened = open_model("circuit-copy-gqa")
    rows = readings.repeated_tokens(opened)
    alone, whole = induction(opened, rows), readings.head_scores(opened, rows)
    for column in COLUMNS:
        a, b = (frame[column].cast(pl.Float64).to_numpy() for frame in (alone, whole))
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=column)
    assert head_sets.top_heads(alone, "induction", 1) == head_sets.top_heads(whole, "induction", 1) != []


def test_a_text_without_repeats_has_no_induction():
    opened = Opened(wrap(build("llama"), None, name="llama"))
    assert induction(opened, [[5, 9, 17, 30]])["induction"].null_count() == opened.model.n_layers * 4
