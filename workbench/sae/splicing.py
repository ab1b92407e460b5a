"""A reconstruction in place of the activations, while a pass runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from workbench.engine.edit_sites import at_site
from workbench.models.model import Model
from workbench.models.running_pass import positions
from workbench.models.sinks import sinks_of
from workbench.models.sites import Site


@contextmanager
def spliced(
    model: Model, site: Site, change: Callable[[torch.Tensor], torch.Tensor], *, spare_sinks: bool = False
) -> Iterator[None]:
    """While open, the activations [tokens, …] of `site` are replaced by change(them), except at each sequence's first
    token when the tokenizer prepends BOS there (autoencoders are not trained on it), and at sinks to `spare_sinks`."""

    def through(x: torch.Tensor) -> torch.Tensor:
        new = change(x.flatten(0, 1)).to(x.dtype).reshape(x.shape)
        here = positions()
        spared = torch.zeros_like(here.mask)
        if model.prepends_bos:
            spared = (here.position_ids == 0) & here.mask
        spared = spared.to(x.device)
        if spare_sinks:
            spared = spared | sinks_of(x, here.mask)
        return torch.where(spared.reshape(*spared.shape, *[1] * (x.ndim - 2)), x, new)

    with ExitStack() as stack:
        at_site(model, site, through, stack)
        yield
