"""The samples that a spectrum is of: one state of every text, at every layer of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from probes.representation_geometry.config import Config
from workbench.core.context import Context
from workbench.core.sinks import note_watched
from workbench.engine.capture import shards
from workbench.engine.passes import Pass
from workbench.models.model import Model
from workbench.models.recording import Positions
from workbench.models.sinks import SpanMeans, parted, positions_for
from workbench.models.sites import Site

FINAL = Site("final_norm")


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts that every checkpoint reads."""

    ids: list[list[int]]
    rows: list[int]  # of the data file
    colours: list[str] | None  # of their points on maps
    own: list[tuple[int, int]] | None = None  # [start, end) of each text's own tokens; None: all of them are
    words: list[str] | None = None  # as the data file has them

    def positions(self, token: int | str, *, watched: bool) -> Positions:
        """Where the sample of each text is read; `watched`: its mean without sinks, a position with the word whether it
        is one."""
        if token == "after_first":
            own = self.own or [(0, len(ids)) for ids in self.ids]
            return SpanMeans(tuple((min(a + 1, b - 1), b) for a, b in own), beside_sinks=watched)
        if self.own is not None and token == "mean":
            return SpanMeans(tuple(self.own), beside_sinks=watched)
        if self.own is not None and token == "text":
            return [[end - 1] for _, end in self.own]
        return positions_for("last" if token == "text" else token, watched=watched)

    def of_own(self, row: int, values: np.ndarray) -> np.ndarray:
        """Of values [..., length - 1], one for every token of a text but the first: those of the text's own."""
        if self.own is None:
            return values
        start, end = self.own[row]
        return values[..., max(0, start - 1) : end - 1]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint and what is to be read with it."""

    name: str
    step: int | None
    model: Model
    texts: Texts
    config: Config
    context: Context

    @property
    def where(self) -> dict[str, str | int | None]:
        """The first columns of its rows in every table."""
        return {"checkpoint": self.name, "step": self.step}

    def layers(self) -> dict[int, Site]:
        """layer → the site whose states stand for it, of the layers that are asked for."""
        last = self.model.n_layers - 1
        sites = {layer: Site("resid_post", layer) for layer in range(self.model.n_layers)}
        if self.config.final == "norm":
            sites[last] = FINAL
        return {last: sites[last]} if self.config.layers == "last" else sites

    def features(self, *, counting: bool = False) -> Iterator[tuple[list[int], dict[Site, torch.Tensor]]]:
        """(texts, {site: features [m, d]}) shard by shard: the first pass runs the model, later ones read the store.
        `counting`: sinks of the layers that are asked for are counted and warned of."""
        # with resid_post the whole stack is kept: concept-depth, run on the same texts, reads the same entry
        sites = [*(Site("resid_post", layer) for layer in range(self.model.n_layers)), FINAL]
        if self.config.layers == "last" and self.config.final == "norm":
            sites = [FINAL]
        token, context = self.config.token, self.context
        positions = self.texts.positions(token, watched=self.config.sinks == "leave_out")
        sinks = {site: np.zeros(len(self.texts.ids), np.int64) for site in self.layers().values()}
        run = Pass(
            edits=context.edits, max_tokens=self.model.tokens_at_once(self.config.max_tokens), check=context.check
        )
        for rows, found in shards(
            self.model,
            self.texts.ids,
            sites,
            positions=positions,
            store=context.store,
            context=context,
            engine=context.engine,
            run=run,
        ):
            features = {}
            for site, x in found.items():
                features[site], said = parted(x, positions)
                if said is not None and site in sinks:
                    sinks[site][rows] = said.numpy()
            yield rows, features
        if counting:
            averaged = "mean" if token == "after_first" else token
            note_watched(context, list(sinks.values()), token=averaged, what="texts")
