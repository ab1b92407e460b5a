"""Groups of tokens that runs declare (`token_groups` of a probe: the words of a language, say), over the logit lens:
how much of what every layer would say next is of each group, and which group has most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import polars as pl
import torch

from workbench.core.errors import InputError
from workbench.core.wording import cut
from workbench.explorer.drawn import MOST, layer_name
from workbench.explorer.head_sets import probe_of, runs_of
from workbench.explorer.lens_maps import AT_ONCE, lens_states
from workbench.explorer.opened_model import Opened
from workbench.explorer.readings import Reading
from workbench.explorer.sub_blocks import SubBlocks
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks
from workbench.runs.folder import Run


@dataclass(frozen=True, eq=False)
class TokenGroups:
    """Tokens by the name of their group, as a run says; `kind`: what a group is (the name of the column)."""

    run: Run
    kind: str
    groups: Mapping[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        """As it is chosen: ``language (latent-language-1a2b3c)``."""
        return f"{self.kind} ({self.run.id})"


def token_groups(
    runs: Sequence[Run], *, fingerprint: str | None = None, read: Callable[[Run, str], pl.DataFrame] = Run.table
) -> list[TokenGroups]:
    """The groups of the complete runs of this very model, in the order of the runs; groups without a token, and tables
    that cannot be read, are left out."""
    found = []
    for run in runs_of(runs, fingerprint=fingerprint):
        probe = probe_of(run)
        for table, (kind, ids) in (probe.token_groups if probe is not None else {}).items():
            if table not in run.tables:
                continue
            try:
                frame = read(run, table)
            except InputError:
                continue
            rows = frame.select(kind, ids).iter_rows() if {kind, ids} <= set(frame.columns) else ()
            groups = {str(name): tuple(tokens) for name, tokens in rows if tokens}
            if groups:
                found.append(TokenGroups(run, kind, groups))
    return found


@torch.no_grad()
def group_map(
    opened: Opened,
    reading: Reading,
    groups: Mapping[str, Sequence[int]],
    *,
    of: str = "stream",
    parts: SubBlocks | None = None,
) -> pl.DataFrame:
    """One row per layer (−1: the embeddings) and position, of what `lens_map` reads: `group`, the one with the largest
    share of the next-token distribution, its `probability`, and the share of every group under its name.

    Raises InputError as `lens_map`, for no group and for tokens outside the vocabulary."""
    model = opened.model
    model.require("final_norm_ends_stream", "logits_unembedded", for_what="a logit lens")
    names = list(groups)
    if not names or not all(len(groups[name]) for name in names):
        raise InputError("A map of groups needs at least one group of tokens, and a token in each.")
    if max(max(groups[name]) for name in names) >= model.vocab_size:
        raise InputError(f"A group has a token outside the vocabulary of {model.vocab_size}; it is of another model.")
    states, layers = lens_states(reading, of, parts)
    with opened.lock:
        step = max(1, AT_ONCE // model.vocab_size)
        flat = [_shares(opened, block, groups) for block in states.flatten(0, 1).split(step)]
    shares = torch.cat(flat).cpu().double().numpy()  # [layers × T, groups]
    best = shares.argmax(1)
    count = len(reading.ids)
    return pl.DataFrame(
        {
            "layer": np.repeat(layers, count),
            "position": np.tile(np.arange(count), len(layers)),
            "group": [names[k] for k in best],
            "probability": shares[np.arange(len(best)), best],
            **{f"share of {name}": shares[:, k] for k, name in enumerate(names)},
        }
    )


def _shares(opened: Opened, states: torch.Tensor, groups: Mapping[str, Sequence[int]]) -> torch.Tensor:
    p = opened.model.logits_from(states).softmax(-1)
    return torch.stack([p[:, list(ids)].sum(-1) for ids in groups.values()], 1)


def group_figure(frame: pl.DataFrame, tokens: Sequence[str], *, kind: str, title: str = "") -> go.Figure:
    """A map of groups (`group_map`): layers upwards, tokens to the right, the leading group in each cell."""
    first, last = int(frame["layer"].min()), int(frame["layer"].max())  # pyright: ignore[reportArgumentType]
    shape = last - first + 1, len(tokens)
    values, words = np.full(shape, np.nan), np.full(shape, "", object)
    custom = np.full((*shape, 4), "", object)
    at = frame["layer"].to_numpy() - first, frame["position"].to_numpy()
    values[at] = frame["probability"].to_numpy()
    words[at] = [traces.safe(name, 12) for name in frame["group"]]
    custom[at] = [
        (layer_name(layer), f"{i} {traces.safe(tokens[i], 24)}", traces.safe(group, 24), traces.number(p))
        for layer, i, group, p in frame.select("layer", "position", "group", "probability").iter_rows()
    ]
    label = f"share of the leading {kind}"
    fig = sheet(
        title=title,
        x="token",
        y="layer",
        x_ticks=ticks(range(shape[1]), [cut(text, 12) for text in tokens], keep=shape[1] <= MOST),
        y_ticks=ticks(range(shape[0]), [layer_name(layer) for layer in range(first, last + 1)]),
        aspect=min(1.2, max(0.3, 0.55 * shape[0] / shape[1])),
        cells=shape,
        note=f"The {kind} whose tokens have the largest share of what each layer would say next; colour: that share.",
    )
    traces.colour_scale(fig, (0.0, 1.0), label)
    hover = "layer %{customdata[0]}, token %{customdata[1]}<br>%{customdata[2]}: %{customdata[3]}"
    labels = words if shape[1] <= MOST else None
    traces.add_cells(fig, 0, values, custom=custom, hover=hover, ends=(0.0, 1.0), labels=labels)
    return dressed(fig)
