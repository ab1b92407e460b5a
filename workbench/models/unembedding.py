"""The unembedding as a matrix, read block by block over the vocabulary: what is linear in the final states may be
shared before it is scaled and capped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from workbench.models.float32 import plain_unembedding
from workbench.models.model import Model


@dataclass(frozen=True)
class Unembedding:
    """Scores of final states h [..., width] are `finished(h @ weight.T + bias)`."""

    weight: torch.Tensor  # [V, width], in the dtype of the model
    bias: torch.Tensor | None  # [V]
    scale: float | None
    softcap: float | None

    @property
    def dtype(self) -> torch.dtype:
        """What scores are computed in: float32 at least."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    def block(self, words: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weights [b, width] and bias [b] of some of the vocabulary, in `dtype`."""
        return self.weight[words].to(self.dtype), None if self.bias is None else self.bias[words].to(self.dtype)

    def finish(self, scores: torch.Tensor) -> torch.Tensor:
        """Linear scores, scaled and capped in place."""
        if self.scale is not None:
            scores.mul_(self.scale)
        return scores if self.softcap is None else scores.div_(self.softcap).tanh_().mul_(self.softcap)


def unembedding_of(model: Model) -> Unembedding | None:
    """The matrix that scores are read off with; None where the unembedding is more than a linear map of the final norm
    (quantised, adapted, offloaded, hooked) and has to be called."""
    module = model.unembed
    if model.facts.why_not("logits_unembedded") is not None or not plain_unembedding(module):
        return None
    assert isinstance(module, nn.Linear)
    bias = None if module.bias is None else module.bias.detach()
    return Unembedding(module.weight.detach(), bias, model.logit_scale, model.anatomy.softcap)
