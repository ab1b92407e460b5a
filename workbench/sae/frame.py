"""The units in which an autoencoder was trained, and those of the plain model."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Frame:
    """How a plain model's activations become those that an autoencoder was trained on: without the gain and bias of the
    norm that made them, then without their mean over the width."""

    gain: torch.Tensor | None = None  # [d]
    bias: torch.Tensor | None = None
    center: bool = False  # what it reads
    center_out: bool = False  # what it rebuilds

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [n, d] of the site, as the autoencoder reads them."""
        if self.gain is not None and self.bias is not None:
            x = (x - self.bias) / self.gain
        return x - x.mean(-1, keepdim=True) if self.center else x

    def target(self, y: torch.Tensor) -> torch.Tensor:
        """Activations [n, d] of a transcoder's output, as it rebuilds them."""
        return y - y.mean(-1, keepdim=True) if self.center_out else y

    def leave(self, rebuilt: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """A reconstruction [n, d] of activations x of the same site, in the model's own units."""
        if self.center:
            rebuilt = rebuilt + x.mean(-1, keepdim=True)
        return rebuilt if self.gain is None or self.bias is None else rebuilt * self.gain + self.bias


PLAIN = Frame()
