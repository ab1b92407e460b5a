"""The Explorer's tables as figures: lens maps, patching maps and paths into a head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.core.wording import cut
from workbench.explorer.patch_maps import HEADS, PatchMap
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks

LENS_COLOURS = {
    "probability": "probability of the top token",
    "rank": "rank of what follows (log)",
    "entropy": "entropy, nats",
    "kl": "KL to the end, nats",
    "target": "target",
    "target_rank": "rank of the target (log)",
}
COLUMN_OF = {"rank": "next_rank"}
MOST = 48  # columns of a map that hold words


def lens_figure(
    frame: pl.DataFrame, tokens: Sequence[str], *, colour: str = "probability", said: str = "", title: str = ""
) -> go.Figure:
    """A lens map (`lens_map`): layers upwards, tokens to the right, the top token in each cell. `said`: the target in
    words.

    Raises InputError for an unknown colour, and for the target's where the map has none."""
    if colour not in LENS_COLOURS:
        raise InputError(f"A lens map is not coloured by '{colour}'; choose {', '.join(LENS_COLOURS)}.")
    column = COLUMN_OF.get(colour, colour)
    first, last = int(frame["layer"].min()), int(frame["layer"].max())  # pyright: ignore[reportArgumentType]
    shape = last - first + 1, len(tokens)
    values = np.full(shape, np.nan)
    words, custom = np.full(shape, "", object), np.full((*shape, 3), "", object)
    at = frame["layer"].to_numpy() - first, frame["position"].to_numpy()
    values[at] = frame[column].cast(pl.Float64).to_numpy()
    ranked = colour.endswith("rank")
    shown = np.log10(values + 1) if ranked else values
    words[at] = [traces.safe(text or "", 12) for text in frame["text"]]
    custom[at] = [
        (layer_name(layer), f"{position} {traces.safe(tokens[position], 24)}", traces.number(value))
        for layer, position, value in zip(frame["layer"], frame["position"], values[at])
    ]
    label = said if colour == "target" and said else LENS_COLOURS[colour]
    diverging = colour == "target" and bool(np.nanmin(values) < 0 < np.nanmax(values))
    if not np.isfinite(shown).any():
        raise InputError(f"The lens map has no value to colour by: {LENS_COLOURS[colour]}.")
    ends = (0.0, 1.0) if colour == "probability" else traces.limits(shown, diverging=diverging)
    fig = sheet(
        title=title,
        x="token",
        y="layer",
        x_ticks=ticks(range(shape[1]), [cut(text, 12) for text in tokens], keep=shape[1] <= MOST),
        y_ticks=ticks(range(shape[0]), [layer_name(layer) for layer in range(first, last + 1)]),
        aspect=min(1.2, max(0.3, 0.55 * shape[0] / shape[1])),
        cells=shape,
        note=f"Top token of each read-out; colour: {label}.",
    )
    traces.colour_scale(fig, ends, label, diverging=diverging)
    hover = "layer %{customdata[0]}, token %{customdata[1]}<br>" + traces.safe(label) + ": %{customdata[2]}"
    texts = words if shape[1] <= MOST else None
    traces.add_cells(fig, 0, shown, custom=custom, hover=hover, ends=ends, diverging=diverging, labels=texts)
    return dressed(fig)


def layer_name(layer: int) -> str:
    """``in`` for the embeddings, otherwise the number."""
    return "in" if layer < 0 else str(layer)


def patch_figure(found: PatchMap, tokens: Sequence[str], *, kind: str, said: str, title: str = "") -> go.Figure:
    """A patching map: layers upwards, tokens or heads to the right, colour: the change of the target's value."""
    of_heads = kind == HEADS
    frame, across = found.cells, "head" if of_heads else "position"
    shape = int(frame["layer"].max()) + 1, int(frame[across].max()) + 1  # pyright: ignore[reportArgumentType]
    values, custom = np.full(shape, np.nan), np.full((*shape, 4), "", object)
    at = frame["layer"].to_numpy(), frame[across].to_numpy()
    values[at] = frame["change"].to_numpy()
    names = [str(h) for h in range(shape[1])] if of_heads else [cut(text, 12) for text in tokens]
    custom[at] = [
        (str(layer), f"{i}" if of_heads else f"{i} {traces.safe(names[i])}", traces.number(change), share(recovered))
        for layer, i, change, recovered in frame.select("layer", across, "change", "recovered").iter_rows()
    ]
    ends = traces.limits(values, diverging=True)
    fig = sheet(
        title=title,
        x=across if of_heads else "token",
        y="layer",
        x_ticks=ticks(range(shape[1]), names, keep=not of_heads and shape[1] <= MOST),
        y_ticks=ticks(range(shape[0])),
        aspect=min(1.2, max(0.25, 0.6 * shape[0] / shape[1])),
        cells=shape,
        note=f"{kind.replace('_', ' ')} taken from the donor, one cell at a time. {said} is {traces.number(found.own)} "
        f"on the prompt and {traces.number(found.donor)} on the donor.",
    )
    traces.colour_scale(fig, ends, f"change of {said}", diverging=True)
    where = "head" if of_heads else "token"
    hover = f"layer %{{customdata[0]}}, {where} %{{customdata[1]}}<br>change %{{customdata[2]}}, %{{customdata[3]}}"
    traces.add_cells(fig, 0, values, custom=custom, hover=hover, ends=ends, diverging=True)
    return dressed(fig)


def share(recovered: float | None) -> str:
    """How much of the gap between prompt and donor a patch closes, in words."""
    return "no gap to close" if recovered is None else f"{recovered:.0%} of the gap"


def paths_figure(frame: pl.DataFrame, receiver: tuple[int, int], *, said: str, title: str = "") -> go.Figure:
    """Three maps of the heads before a receiver: what each says to its query, its key and its value."""
    shape = int(frame["layer"].max()) + 1, int(frame["head"].max()) + 1  # pyright: ignore[reportArgumentType]
    ends = traces.limits(frame["change"].to_numpy(), diverging=True)
    names = {"q": "to its query", "k": "to its key", "v": "to its value"}
    fig = sheet(
        list(names.values()),
        title=title,
        x="head",
        y="layer",
        x_ticks=ticks(range(shape[1])),
        y_ticks=ticks(range(shape[0])),
        aspect=min(1.15, max(0.45, shape[0] / shape[1])),
        cells=shape,
        note=f"Paths into head {receiver[0]}.{receiver[1]} at the last token, one sender carrying the donor at a time.",
    )
    traces.colour_scale(fig, ends, f"change of {said}", diverging=True)
    for i, side in enumerate(names):
        mine = frame.filter(pl.col("through") == side)
        values, custom = np.full(shape, np.nan), np.full((*shape, 3), "", object)
        at = mine["layer"].to_numpy(), mine["head"].to_numpy()
        values[at] = mine["change"].to_numpy()
        custom[at] = [(str(a), str(b), traces.number(v)) for a, b, _, v in mine.iter_rows()]
        hover = "head %{customdata[0]}.%{customdata[1]}<br>change %{customdata[2]}"
        traces.add_cells(fig, i, values, custom=custom, hover=hover, ends=ends, diverging=True)
    return dressed(fig)
