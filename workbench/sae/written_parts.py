"""What single features add to an activation, and how one is read off it, in the model's own units."""

from __future__ import annotations

import torch

from workbench.core.errors import InputError
from workbench.sae.autoencoder import Sae
from workbench.sae.frame import Frame
from workbench.sae.sparse_rows import Rows

AT_ONCE = 1 << 23  # numbers of (entries × width) held at once


@torch.no_grad()
def rebuilt(sae: Sae, rows: Rows, x: torch.Tensor) -> torch.Tensor:
    """The reconstruction [n, …] of sparse rows of activations x [n, …], in the units of `sae.writes`. Affine in the
    values of the rows: what an autoencoder takes from x itself (a scale, a mean) is that of x."""
    out = sae.decode(rows, x)
    return out if sae.site_out is not None else _frame(sae).leave(out.reshape(x.shape), x.float())


@torch.no_grad()
def parts(sae: Sae, rows: Rows, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(what every entry adds to its token's reconstruction [entries, …], what is there without any [n, …]). They sum to
    `rebuilt`. Raises InputError for one layer of a cross-layer transcoder."""
    empty = rebuilt(sae, _none(rows.n, rows), x)
    step = max(1, AT_ONCE // max(1, empty[0].numel()))
    blocks = [
        _single(sae, rows.feature[start : start + step], rows.value[start : start + step], x[own], empty[own])
        for start in range(0, len(rows.row), step)
        for own in [rows.row[start : start + step]]
    ]
    return torch.cat(blocks) if blocks else empty[:0], empty


def _single(sae: Sae, feature: torch.Tensor, value: torch.Tensor, x: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """What one entry each adds to x [m, …]."""
    alone = Rows(torch.arange(len(feature), device=feature.device), feature, value, len(feature), sae.d_sae)
    return rebuilt(sae, alone, x) - empty


def _none(n: int, like: Rows) -> Rows:
    return Rows(like.row[:0], like.feature[:0], like.value[:0], n, like.width)


@torch.no_grad()
def added(sae: Sae, rows: Rows, x: torch.Tensor) -> torch.Tensor:
    """What entries of either sign add together to x [n, …], without bias."""
    return rebuilt(sae, rows, x) - rebuilt(sae, _none(rows.n, rows), x)


@torch.no_grad()
def directions_at(sae: Sae, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What one unit of each feature [k] adds at a token x […], [k, …]."""
    here = x[None].expand(len(features), *x.shape)
    ones = torch.ones(len(features), device=x.device)
    return _single(
        sae, features, ones, here, rebuilt(sae, Rows(features[:0], features[:0], ones[:0], 1, sae.d_sae), x[None])
    )


@torch.no_grad()
def encoder_rows(sae: Sae, features: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight [k, d], constant [k]) with pre-activation = weight · x + constant for each of k features at a token x
    [d] (heads side by side): the encoder with whatever it takes from x itself (its scale, its mean) held as it is
    there. Of a gated autoencoder the pre-activation of the magnitude.

    Raises InputError where that is not what the autoencoder itself computes."""
    inner, frame = sae.inner, _frame(sae)
    flat = x.float().flatten()
    w = inner.W_enc[:, features].float().T
    if sae.architecture == "gated":
        w, constant = w * inner.r_mag[features].exp()[:, None], inner.b_mag[features].float()
    else:
        constant = inner.b_enc[features].float()
    real_in = inner.process_sae_in(frame.enter(x[None].float()))[0]
    real = w @ real_in + constant
    constant = constant - w @ (inner.b_dec.float() * inner.cfg.apply_b_dec_to_input)
    entered = frame.enter(flat[None])[0]
    if inner.cfg.normalize_activations == "layer_norm":
        w = (w - w.mean(-1, keepdim=True)) / (entered.std() + 1e-5)
    elif inner.cfg.normalize_activations == "constant_norm_rescale":
        w = w * (len(flat) ** 0.5 / entered.norm())
    if frame.center:
        w = w - w.mean(-1, keepdim=True)
    if frame.gain is not None and frame.bias is not None:
        w = w / frame.gain
        constant = constant - w @ frame.bias
    factor = torch.ones_like(constant)
    if getattr(inner.cfg, "rescale_acts_by_decoder_norm", False):
        factor = inner.W_dec[features].norm(dim=-1)
    w, constant = w * factor[:, None], constant * factor
    off = (w @ flat + constant - real * factor).abs()
    if not bool((off <= 1e-3 * (1 + (w.abs() @ flat.abs()))).all()):
        raise InputError(
            f"What the encoder of '{sae.path}' reads cannot be taken apart: it is not linear once its scale is fixed."
        )
    return w, constant


def _frame(sae: Sae) -> Frame:
    if sae.frame is None:
        raise InputError(f"The sparse autoencoder '{sae.path}' was not held against a model yet.")
    return sae.frame
