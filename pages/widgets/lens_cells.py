"""The logit lens as the cells of a map and as a figure, kept between clicks: a click chooses a cell and reads
nothing off anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import polars as pl
import streamlit as st

from pages.widgets import cached, styling
from pages.widgets.cell_map import CellMap
from workbench.core.wording import number
from workbench.explorer import drawn
from workbench.explorer.opened_model import Opened, next_strings
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target
from workbench.explorer.token_groups import TokenGroups, group_figure

WIDE = 512  # tokens that a map shows at once
MANY = 2500  # cells from which on hovering says less


@dataclass(frozen=True)
class LensCells:
    """What the lens shows: the table, the cells, the layer of each row from the bottom, and how they are coloured."""

    frame: pl.DataFrame
    cells: CellMap
    layers: list[int]
    diverging: bool
    ends: tuple[float, float] | None


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=cached.BY_MODEL)
def lens_cells(
    who: str,
    ids: tuple[int, ...],
    switches: Switches,
    of: str,
    read: str,
    colour: str,
    target: Target,
    first: int,
    opened: Opened,
) -> LensCells:
    """The lens of one prompt. ``of`` is what is read off, ``read`` its name on the screen, ``colour`` what colours the
    cells; the cells are of the WIDE tokens from `first` on."""
    whole = cached.lens_map(who, ids, switches, of, target, opened)
    frame, tokens = part_of(whole, ids, first, opened)
    what = {**drawn.LENS_COLOURS, "target": target.in_words(opened.model)}[colour]
    layers = frame["layer"].unique().sort().to_list()
    values = frame[drawn.COLUMN_OF.get(colour, colour)].cast(pl.Float64).to_list()
    ranked = colour.endswith("rank")
    shown = [None if v is None else (v + 1) ** 0.25 if ranked else v for v in values]
    cells = CellMap(
        f"logit lens, {read}",
        [drawn.layer_name(layer) for layer in layers],
        tokens,
        shown,
        titles(frame, tokens, first, what, values, opened),
        words=[styling.token(text or "") for text in frame["text"]],
        corner="layer",
        say=f"{what}{' (fourth root)' if ranked else ''}; click a cell to go to its layer and token",
    )
    ends = (0.0, 1.0) if colour == "probability" else least_to_most(shown) if colour == "target" else None
    diverging = colour == "target" and any(v is not None and v > 0 for v in values)
    return LensCells(whole, cells, layers, diverging, ends)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=cached.BY_MODEL)
def lens_figure(
    who: str, ids: tuple[int, ...], switches: Switches, of: str, colour: str, target: Target, first: int, opened: Opened
) -> go.Figure:
    """The figure that is taken home: of the tokens that are shown."""
    frame, tokens = part_of(cached.lens_map(who, ids, switches, of, target, opened), ids, first, opened)
    return drawn.lens_figure(frame, tokens, colour=colour, said=target.in_words(opened.model))


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=cached.BY_MODEL)
def group_cells(
    who: str,
    ids: tuple[int, ...],
    switches: Switches,
    of: str,
    read: str,
    groups: str,
    first: int,
    _groups: TokenGroups,
    opened: Opened,
) -> tuple[LensCells, go.Figure]:
    """The lens of one prompt by groups of tokens (called `groups`), and its figure: the hue of a cell is that of the
    group that has most of what the layer would say next, its strength how much; as `lens_cells` else."""
    whole = cached.group_map(who, ids, switches, of, groups, _groups, opened)
    frame, tokens = part_of(whole, ids, first, opened)
    names = list(_groups.groups)
    layers = frame["layer"].unique().sort().to_list()
    shares = frame.select(f"share of {name}" for name in names).rows()
    titles = [
        f"layer {drawn.layer_name(layer)}, token {position} {tokens[position - first]!r}: {group} {p:.3g}\n"
        + "\n".join(f"{name} {number(share)}" for name, share in zip(names, own))
        for layer, position, group, p, own in zip(*frame.select("layer", "position", "group", "probability"), shares)
    ]
    cells = CellMap(
        f"{_groups.kind}s of the logit lens, {read}",
        [drawn.layer_name(layer) for layer in layers],
        tokens,
        frame["probability"].to_list(),
        titles,
        words=[styling.token(group) for group in frame["group"]],
        corner="layer",
        say=f"the {_groups.kind} with most of what is said next, paler for less; click a cell to go to it",
        kinds=[names.index(group) for group in frame["group"]],
        kind_names=names,
    )
    return LensCells(whole, cells, layers, False, (0.0, 1.0)), group_figure(frame, tokens, kind=_groups.kind)


def part_of(whole: pl.DataFrame, ids: tuple[int, ...], first: int, opened: Opened) -> tuple[pl.DataFrame, list[str]]:
    """The rows and the tokens of the WIDE tokens from `first` on."""
    frame = whole.filter(pl.col("position").is_between(first, first + WIDE - 1)) if len(ids) > WIDE else whole
    return frame, [styling.token(text) for text in opened.model.token_strings(ids[first : first + WIDE])]


def titles(
    frame: pl.DataFrame,
    tokens: Sequence[str],
    first: int,
    what: str,
    values: Sequence[float | None],
    opened: Opened,
) -> list[str]:
    """What hovering over a cell says, and a screen reader reads: ``layer 3, token 5 ' cat': ' sat' 0.412``, then the
    value that colours it and the next likely tokens."""
    most = 5 if frame.height <= MANY else 1
    tops = [top[:most] for top in frame["top"].to_list()]
    chances = [chance[:most] for chance in frame["top_probability"].to_list()]
    words = dict(zip(ids := sorted({i for top in tops for i in top}), next_strings(opened, ids)))
    found = []
    for layer, position, top, chance, value in zip(
        frame["layer"].to_list(), frame["position"].to_list(), tops, chances, values
    ):
        said = [f"{words[i]!r} {p:.3f}" for i, p in zip(top, chance)]
        valued = number(value) if value is not None else "nothing follows"
        name = f"layer {drawn.layer_name(layer)}, token {position} {tokens[position - first]!r}: {said[0]}"
        found.append("\n".join([name, f"{what}: {valued}", *said[1:]]))
    return found


def stretch(count: int, at: int) -> int:
    """Where the WIDE tokens around one begin."""
    return max(0, min(at - WIDE // 2, count - WIDE))


def least_to_most(values: Sequence[float | None]) -> tuple[float, float] | None:
    """The ends of a scale that need not begin at zero; None where one does, in its middle."""
    known = [v for v in values if v is not None]
    return None if not known or max(known) > 0 or min(known) == max(known) else (min(known), max(known))
