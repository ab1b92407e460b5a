"""Features switched off, set or raised where the autoencoder reads them: the activation changes by what the change of
the features is worth to its reconstruction, and all that is not rebuilt stays (the error is kept)."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from workbench.core.errors import InputError
from workbench.engine.edit_sites import Prompts
from workbench.models.host_copies import Resident
from workbench.models.model import Model
from workbench.models.sites import Site
from workbench.sae.autoencoder import Sae
from workbench.sae.features import column_of
from workbench.sae.sparse_rows import Rows
from workbench.sae.splicing import spliced
from workbench.sae.written_parts import added

HOW = ("off", "set", "add")
WRITTEN = re.compile(r"([0-9]{1,9})=(off|add)?([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)?", re.ASCII)


@dataclass(frozen=True, order=True)
class FeatureChange:
    """One feature: off (activation 0), set to `value`, or `value` added to what it is; in units of its activation."""

    feature: int
    how: str = "off"
    value: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.feature}=" + {"off": "off", "set": f"{self.value:.12g}", "add": f"add{self.value:.12g}"}[self.how]
        )


def feature_changes(text: str) -> tuple[FeatureChange, ...]:
    """Changes as one writes them, ``12=off,7=2.5,9=add-1``, by feature. Raises InputError for anything else, for a
    feature that is named twice, and for one that is set below zero."""
    found: dict[int, FeatureChange] = {}
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        match = WRITTEN.fullmatch(piece)
        how = None if match is None else match[2] or "set"
        try:
            value = float(match[3]) if match is not None and match[3] else None
        except ValueError:
            value = math.nan
        if match is None or (value is None) != (how == "off") or not math.isfinite(value or 0.0):
            raise InputError(f"'{piece}' is no change of a feature; write 12=off, 12=2.5 or 12=add2.5.")
        change = FeatureChange(int(match[1]), str(how), value or 0.0)
        if change.feature in found:
            raise InputError(f"Feature {change.feature} is changed twice; name it once.")
        if change.how == "set" and change.value < 0:
            raise InputError(
                f"Feature {change.feature} cannot be set to {change.value:g}: activations are not negative."
            )
        found[change.feature] = change
    return tuple(sorted(found.values()))


@dataclass(frozen=True, eq=False)
class FeatureEdit:
    """Changes of features of one autoencoder at every token; at BOS nothing, where the tokenizer puts it in front
    (autoencoders are not trained on it)."""

    sae: Sae
    changes: tuple[FeatureChange, ...]

    @property
    def site(self) -> Site:
        """Where it hangs: a stream that enters a block is changed where it leaves the one before."""
        here = self.sae.site
        return Site("resid_post", here.layer - 1) if here.kind == "resid_pre" and here.layer else here

    def check(self, model: Model, prompts: Prompts | None = None) -> None:
        """Raise InputError for features that do not exist, and where the autoencoder rebuilds something else than it
        reads."""
        if self.sae.site_out is not None or not self.sae.reconstructs:
            raise InputError(
                f"'{self.sae.path}' is a transcoder, which rebuilds something else than it reads: its features can be "
                f"looked at, not switched."
            )
        model.module(self.site)
        for change in self.changes:
            check_feature(self.sae, change.feature)
            if change.how not in HOW:
                raise InputError(f"'{change.how}' is no way to change a feature; choose {', '.join(HOW)}.")

    def for_prompts(self, indices: Sequence[int]) -> FeatureEdit:
        """Itself: it is the same for every prompt."""
        return self

    def hang(self, model: Model, stack: contextlib.ExitStack) -> None:
        """Hang it on the passes of this thread until `stack` is closed."""
        stack.enter_context(spliced(model, self.site, self._changed))

    def _changed(self, x: torch.Tensor) -> torch.Tensor:
        """x [tokens, …], all changes together."""
        now, n, m = self.sae.encode(x), len(x), len(self.changes)
        place, feature, value, extra = (numbers.on(x.device) for numbers in self._numbers)
        at = torch.zeros(n, m + 1, device=x.device)  # the last of a row holds what is not changed
        at[now.row, place[now.feature]] = now.value.float()
        delta = torch.where(extra, value, value - at[:, :m])
        row = torch.arange(n, device=x.device)[:, None].expand(n, m)
        change = Rows(row.reshape(-1), feature.repeat(n), delta.reshape(-1), n, self.sae.d_sae)
        return (x.float() + added(self.sae, change, x).reshape(x.shape)).to(x.dtype)

    @cached_property
    def _numbers(self) -> tuple[Resident, ...]:
        """Of every feature its place among the changes, [d_sae]; of every change its feature, its value, and whether
        that is added."""
        features = [change.feature for change in self.changes]
        value = torch.tensor([change.value for change in self.changes])
        extra = torch.tensor([change.how == "add" for change in self.changes])
        return tuple(map(Resident, (column_of(features, self.sae.d_sae), torch.tensor(features), value, extra)))


def check_feature(sae: Sae, feature: int) -> None:
    """Raise InputError for a feature that the autoencoder does not have."""
    if not 0 <= feature < sae.d_sae:
        raise InputError(f"There is no feature {feature}: '{sae.path}' has the features 0–{sae.d_sae - 1}.")
