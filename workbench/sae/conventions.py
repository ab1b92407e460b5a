"""What an autoencoder expects of the model and of the texts, as its file records it: obeyed, refused or warned of.

Most were trained on TransformerLens' copy of a model. Where that copy had centred writing weights, activations of the
stream are those of the plain model without their mean over the width: exactly so where every norm subtracts the mean
(LayerNorm), while models with RMSNorm are never centred. Its `hook_normalized` comes before the gain and bias of the
norm, which are part of what the plain model's MLP reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from workbench.core.errors import InputError
from workbench.models.float32 import in_float32
from workbench.models.model import Model
from workbench.sae.autoencoder import Sae
from workbench.sae.frame import Frame

STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # what centred writing weights centre


def obey(sae: Sae, model: Model) -> tuple[Sae, list[str]]:
    """(the autoencoder as it reads this model's activations, what deserves a warning).

    Raises InputError where its convention cannot be kept on this model."""
    own = sae.conventions
    name = f"The sparse autoencoder '{sae.path}'"
    if own.fold_value_biases and sae.site.kind == "head_out":
        raise InputError(
            f"{name} was trained on heads without their value biases (fold_value_biases); {model.name} has them in."
        )
    if own.module_output and model.anatomy.post_norms and sae.writes.kind in ("attn_out", "mlp_out"):
        raise InputError(
            f"{name} was trained on the output of a module, which {model.name} normalises before it joins the stream; "
            f"{sae.writes} is another activation."
        )
    gain = bias = None
    if own.before_gain:
        gain, bias = _affine(model, sae)
    center = bool(own.center_writing_weights) and _centred(model, sae)
    frame = Frame(gain, bias, center and sae.site.kind in STREAM, center and sae.writes.kind in STREAM)
    return replace(sae, frame=frame), texts_warned(sae, model)


def _centred(model: Model, sae: Sae) -> bool:
    """Whether centred writing weights show at the site. Raises InputError where they would not be a mere shift."""
    if sae.site.kind not in STREAM and sae.writes.kind not in STREAM:
        return False
    norms = [norm for block in model.anatomy.blocks for norm in block.norms.values()] + [model.final_norm]
    subtract = [_subtracts_mean(norm, model.width) for norm in norms]
    if not any(subtract):
        return False  # TransformerLens centres no model with RMSNorm
    if not all(subtract) or model.anatomy.post_norms:
        raise InputError(
            f"The sparse autoencoder '{sae.path}' was trained on centred writing weights, and some norms of "
            f"{model.name} do not subtract the mean: its activations cannot be told from those of the plain model."
        )
    return True


def _subtracts_mean(norm: torch.nn.Module, width: int) -> bool:
    """Whether a norm gives the same for x and x + 1."""
    weight = next(norm.parameters(), None)
    device = weight.device if weight is not None else "cpu"
    x = torch.linspace(-1, 1, width, device=device).sin()[None] * 3
    with torch.no_grad():
        one, other = in_float32(norm, x), in_float32(norm, x + 1)
    return bool(torch.allclose(one, other, atol=1e-3, rtol=1e-3))


def _affine(model: Model, sae: Sae) -> tuple[torch.Tensor, torch.Tensor]:
    """(gain, bias) [d] of the norm before the site, read off what it gives for ±1. Raises InputError where there is no
    such norm, or its gain is zero somewhere."""
    where = sae.site
    norm = model.final_norm if where.kind == "final_norm" else model.anatomy.blocks[where.layer].norms.get("ln2")
    if norm is None or where.kind not in ("final_norm", "mlp_in"):
        raise InputError(
            f"The sparse autoencoder '{sae.path}' reads what a norm gives before its gain, and {model.name} has no "
            f"such norm at {where}."
        )
    weight = next(norm.parameters(), model.unembed.weight)
    sign = torch.ones(model.width, device=weight.device)
    sign[1::2] = -1  # mean 0, deviation 1: a norm leaves it as it is, but for its epsilon
    with torch.no_grad():
        up, down = in_float32(norm, 1e4 * sign[None])[0], in_float32(norm, -1e4 * sign[None])[0]
    gain, bias = (up - down) / 2 * sign, (up + down) / 2
    if bool((gain.abs() < 1e-6).any()):
        raise InputError(
            f"The sparse autoencoder '{sae.path}' reads what a norm gives before its gain, which is zero in places in "
            f"{model.name}: that cannot be undone."
        )
    return gain.to(sae.inner.W_enc.device), bias.to(sae.inner.W_enc.device)


@dataclass(frozen=True)
class TextFeed:
    """How texts are fed to an autoencoder that says so: BOS in front or not, and which positions count."""

    front: int | None = None  # a token to put in front
    without: int | None = None  # a token to take away there
    positions: slice | None = None

    def apply(self, ids: list[int], counted: Any) -> tuple[list[int], Any]:
        """Token ids and which count (a boolean array), as the autoencoder was fed; BOS that is added does not count."""
        if self.front is not None and ids[:1] != [self.front]:
            ids, counted = [self.front, *ids], np.append(False, counted)
        elif self.without is not None and ids[:1] == [self.without]:
            ids, counted = ids[1:], counted[1:]
        if self.positions is not None:
            inside = np.zeros(len(ids), bool)
            inside[self.positions] = True
            counted = counted & inside
        return ids, counted


def feed_of(sae: Sae, model: Model) -> TextFeed:
    """What its conventions ask of the tokens. Nothing where none is recorded, or the tokenizer does it already."""
    own = sae.conventions
    add = own.prepend_bos is True and not model.prepends_bos
    drop = own.prepend_bos is False and model.prepends_bos
    return TextFeed(
        front=model.bos_id if add else None,
        without=model.bos_id if drop else None,
        positions=slice(*own.seqpos_slice) if own.seqpos_slice not in (None, (None,)) else None,
    )


def texts_warned(sae: Sae, model: Model) -> list[str]:
    """What of its conventions about texts cannot be kept with this tokenizer."""
    own, name = sae.conventions, f"The sparse autoencoder '{sae.path}'"
    if own.prepend_bos is True and not model.prepends_bos and model.bos_id is None:
        return [
            f"{name} was trained with a BOS token in front, and the tokenizer of {model.name} has none: texts are fed "
            f"without, and the features of their first tokens are not what they were in training."
        ]
    return []


def lengths_warned(sae: Sae, lengths: Sequence[int], what: str) -> list[str]:
    """What to say of texts that are longer than the sequences of its training."""
    size = sae.conventions.context_size
    longer = sum(int(n) > size for n in lengths) if size else 0
    if not longer:
        return []
    return [
        f"{longer} of {len(lengths)} rows of the {what} are longer than the {size} tokens that the sparse autoencoder "
        f"'{sae.path}' was trained on; its features are unproven beyond."
    ]
