"""A sparse autoencoder or transcoder that is ready to encode: activations become sparse rows, and back.

Activations are computed in float32 by each autoencoder's own convention (scale matters: Jaccard is not scale
invariant). What a convention changes in the activations themselves is a `Frame`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.core.errors import InputError
from workbench.models.devices import is_cpu
from workbench.models.sites import Site
from workbench.sae.frame import PLAIN, Frame
from workbench.sae.largest import largest
from workbench.sae.recorded_conventions import Conventions
from workbench.sae.sparse_rows import Rows, check_values

PRE_ACTIVATIONS = {
    "cpu": 1_000_000,
    "accelerator": 256_000_000,
}  # numbers held at once while encoding: on a CPU, what fits its cache
DASHBOARD = "https://neuronpedia.org"


@dataclass(eq=False)
class Sae:
    """A sparse autoencoder that is ready to encode. `k` is None where the number of active features is not fixed.

    A transcoder reads `site` and rebuilds what is at `site_out`. Where a convention needs the model's weights, `frame`
    is None until `conventions.obey` has set it, and nothing is encoded before."""

    inner: Any  # the sae_lens SAE, float32
    site: Site
    path: str
    trained_on: dict[str, Any] = field(default_factory=dict)  # model_name, model_fingerprint where recorded
    report: dict[str, Any] = field(default_factory=dict)  # its quality.json, where there is one
    site_out: Site | None = None  # of a transcoder
    top_k: int | None = None  # features kept per token, where the sae_lens class does not do so itself
    reconstructs: bool = True  # one layer of a cross-layer transcoder does not
    conventions: Conventions = field(default_factory=Conventions)
    frame: Frame | None = PLAIN
    neuronpedia_id: str | None = None  # "gpt2-small/8-res-jb"

    @property
    def d_in(self) -> int:
        return int(self.inner.cfg.d_in)

    @property
    def d_sae(self) -> int:
        return int(self.inner.cfg.d_sae)

    @property
    def architecture(self) -> str:
        return self.inner.cfg.architecture()

    @property
    def k(self) -> int | None:
        return int(self.inner.cfg.k) if self.architecture == "topk" else self.top_k

    @property
    def writes(self) -> Site:
        """Where a reconstruction belongs: the site itself, or a transcoder's output."""
        return self.site_out or self.site

    def neuronpedia(self, feature: int) -> str | None:
        """The address of a feature's page on Neuronpedia; None where the release has none there."""
        return f"{DASHBOARD}/{self.neuronpedia_id}/{int(feature)}" if self.neuronpedia_id else None

    def describe(self) -> dict[str, Any]:
        """What a run records of the autoencoder it used."""
        out = {
            "path": self.path,
            "site": str(self.site),
            "architecture": self.architecture,
            "width": self.d_sae,
            "k": self.k,
            "conventions": self.conventions.recorded(),
            "conventions_unknown": self.conventions.unknown(),
        }
        return out | ({"site_out": str(self.site_out)} if self.site_out else {})

    def encode(self, x: torch.Tensor) -> Rows:
        """Feature activations of activations [n, d] (or [n, H, d_head]), one sparse row per token, float32; all ≥ 0,
        finite."""
        x = self._flat(x)
        step = max(1, PRE_ACTIVATIONS["cpu" if is_cpu(x.device) else "accelerator"] // self.d_sae)
        blocks = []
        with torch.no_grad():
            for start in range(0, max(1, len(x)), step):
                row, feature, value = self._entries(self._framed().enter(x[start : start + step].float()))
                blocks.append((row + start, feature, value))
        row, feature, value = (torch.cat(column) for column in zip(*blocks))
        check_values(value)
        return Rows(row, feature, value, len(x), self.d_sae)

    def _flat(self, x: torch.Tensor) -> torch.Tensor:
        """[n, d] of [n, …]; an autoencoder of whole heads reshapes them itself."""
        return x if self.inner.cfg.reshape_activations == "hook_z" else x.flatten(1)

    def _framed(self) -> Frame:
        if self.frame is None:
            raise InputError(
                f"The sparse autoencoder '{self.path}' reads activations of a model whose weights were processed; hold "
                f"it against the model first (workbench.sae.conventions.obey)."
            )
        return self.frame

    def _entries(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.k is None:
            found = self.inner.encode(x)
            row, feature = found.nonzero(as_tuple=True)
            return row, feature, found[row, feature]
        inner = self.inner
        before = torch.addmm(inner.b_enc, inner.process_sae_in(x), inner.W_enc)
        if getattr(inner.cfg, "rescale_acts_by_decoder_norm", False):
            before *= inner.W_dec.norm(dim=-1)
        return largest(before, self.k)

    @property
    def scales_input(self) -> bool:
        """Whether each token's activations are normalised first: a reconstruction then needs that token's own scale."""
        return self.inner.cfg.normalize_activations not in ("none", "expected_average_only_in")

    def decode(self, rows: Rows, like: torch.Tensor | None = None) -> torch.Tensor:
        """Reconstructions [n, d] (or [n, H, d_head]) of sparse token rows (ascending), float32: of what `target` gives.

        `like` [n, ...]: the activations that were encoded. An autoencoder that normalises its input takes the scale of
        every token from them, one of whole heads their shape, a skip transcoder what it adds. Raises InputError where
        they are needed and absent, and for one layer of a cross-layer transcoder."""
        inner = self.inner
        if not self.reconstructs:
            raise InputError(
                f"'{self.path}' is one layer of a cross-layer transcoder, which rebuilds nothing without the others."
            )
        heads = inner.cfg.reshape_activations == "hook_z"
        skip = getattr(inner, "W_skip", None)
        if like is None and (self.scales_input or heads or skip is not None):
            raise InputError(
                f"The sparse autoencoder '{self.path}' needs the activations that it encoded to rebuild them (like=)."
            )
        with torch.no_grad():
            value = rows.value
            if getattr(inner.cfg, "rescale_acts_by_decoder_norm", False):
                value = value / inner.W_dec.norm(dim=-1)[rows.feature]
            starts = torch.searchsorted(rows.row, torch.arange(rows.n, device=rows.row.device))
            mixed = (
                torch.nn.functional.embedding_bag(
                    rows.feature, inner.W_dec, starts, mode="sum", per_sample_weights=value
                )
                + inner.b_dec
            )
            if like is None:
                return mixed
            x = self._framed().enter(self._flat(like).float())
            if skip is not None:
                mixed = mixed + x @ skip.T
            if (self.scales_input or heads) and self.site_out is None:
                inner.process_sae_in(x)  # leaves the scales of exactly these tokens behind
                mixed = inner.reshape_fn_out(inner.run_time_activation_norm_fn_out(mixed), inner.d_head)
            return mixed

    def target(self, y: torch.Tensor) -> torch.Tensor:
        """Activations [n, ...] of `writes`, as a reconstruction aims at them: in the autoencoder's own frame."""
        frame = self._framed()
        return frame.target(y.float()) if self.site_out else frame.enter(y.float())

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [n, d] through the autoencoder and back, in the model's own units; of a transcoder what it
        predicts of `writes`."""
        rebuilt = self.decode(self.encode(x), x)
        if self.site_out is None:
            rebuilt = self._framed().leave(rebuilt.reshape(x.shape), x.float())
        return rebuilt

    def directions(self) -> torch.Tensor:
        """Decoder directions [d_sae, d_in]: what an activation of one adds to the site."""
        weight = self.inner.W_dec.detach()
        return (
            weight / weight.norm(dim=-1, keepdim=True)
            if getattr(self.inner.cfg, "rescale_acts_by_decoder_norm", False)
            else weight
        )
