"""Losses are those that transformers computes, text by text."""

import pytest
import torch

from tests.support.architectures import NAMES, build
from workbench.engine.edits import HeadAblation, apply
from workbench.engine.evaluation import token_losses
from workbench.models.loading import wrap

TEXTS = [[5, 9, 13, 21, 7], [33, 8, 2], [11, 60, 4, 4, 9, 12, 50], [17]]


@pytest.mark.parametrize("name", NAMES)
def test_token_losses_add_up_to_the_loss_of_transformers(name):
    model = wrap(build(name), None, name=name)
    edits = [HeadAblation(((0, 1),))]
    for changed in ((), edits):
        found = token_losses(model, TEXTS, edits=changed, max_tokens=9)
        assert [len(row) for row in found] == [len(text) - 1 for text in TEXTS]
        for text, losses in zip(TEXTS[:3], found):
            row = torch.tensor([text])
            with torch.no_grad(), apply(model, changed):
                expected = float(model.hf(row, labels=row).loss)
            assert losses.mean() == pytest.approx(expected, rel=1e-4)
