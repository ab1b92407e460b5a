"""Two prompts or models as whole views: the same panels here and there in columns, and there less here beside them.

Panel by panel, so that what does not fit on each other is refused by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
import streamlit as st

from pages.widgets import cached, cell_map, export_panel, head_colours, lens_cells, pattern_map, styling, url_state
from pages.widgets.cell_map import CellMap
from pages.widgets.map_cards import Looking
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.wording import number
from workbench.explorer import as_code, differences, drawn, readings
from workbench.explorer.exploring import Exploration
from workbench.explorer.opened_model import Opened
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target

SCREEN = "explorer"
NEXT = 8  # next tokens
MOST = 1024  # tokens up to which a whole pattern is sent to the browser
NAMES = ("here", "there", "there less here")


@dataclass(frozen=True)
class Side:
    """One of two views: a model under its name, a prompt as text and as tokens, what is switched, the token that is
    looked at."""

    name: str
    opened: Opened
    ids: tuple[int, ...]
    switches: Switches
    prompt: str
    at: int

    @property
    def tokens(self) -> list[str]:
        """The tokens of the prompt as they are shown."""
        return [styling.token(text) for text in self.opened.model.token_strings(self.ids)]

    @property
    def reading(self) -> readings.Reading:
        """The pass over the prompt."""
        return cached.reading(self.name, self.ids, self.switches, self.opened)


@dataclass(frozen=True)
class Two:
    """Both sides, the target here, the head that is chosen, and for each token here the one there it is put on."""

    here: Side
    there: Side
    target: Target
    layer: int
    head: int
    where: tuple[int, ...]

    def target_there(self) -> Target:
        """The same target there. Raises InputError where the other tokenizer has no such token."""
        return differences.shared_target(self.target, self.here.opened, self.there.opened)

    @property
    def said(self) -> str:
        """The target in words."""
        return self.target.in_words(self.here.opened.model)


def show(looking: Looking, name: str, opened: Opened, ids: tuple[int, ...], switches: Switches, prompt: str) -> None:
    """The view that is looked at beside another: model by name and opened, tokens, switches, prompt."""
    where = differences.aligned(looking.opened, looking.ids, opened, ids)
    last = looking.at == len(looking.ids) - 1
    here = Side(
        looking.name, looking.opened, looking.ids, looking.switches, st.session_state.get("prompt", ""), looking.at
    )
    there = Side(name, opened, ids, switches, prompt, len(ids) - 1 if last else where[looking.at])
    both = Two(here, there, looking.target, looking.layer, looking.head, where)
    styling.unseen_heading("Side by side")
    for panel in (heads, lens, following, patterns):
        with styling.guard():
            panel(both)
    st.caption(
        "Tokens are put on each other as patching aligns them, layers and heads by their numbers; a difference is "
        "there less here."
    )


def three(both: Two, what: str) -> list[Any]:
    """Three columns, each with its heading."""
    sides = [f", {styling.short(side.name)}, {len(side.ids)} tokens" for side in (both.here, both.there)]
    columns = st.columns(3, gap="medium")
    for column, name, side in zip(columns, NAMES, [*sides, ""]):
        column.html(styling.heading(f"{what}: {name}{side}"))
    return list(columns)


def refused(column: Any, error: WorkbenchError) -> None:
    """Why there is no difference, in its place."""
    column.info(styling.md(error))


# ---- heads


def heads(both: Two) -> None:
    """The heads of both in the colour of the head grid."""
    chosen = st.session_state.get("colour") or head_colours.HERE
    columns = three(both, f"heads by {chosen.replace('_', ' ')}")
    if chosen not in head_colours.LIVE:
        sentence = "This colour is what a finished run says, whatever the prompt: choose a score of the prompt instead."
        return refused(columns[0], InputError(sentence))
    repeated = st.session_state.get("scored") == head_colours.PROMPTS[1]
    targets = [both.target, both.target_there() if chosen == head_colours.EFFECT else both.target]
    found = [
        head_colours.live(chosen, side.name, side.opened, side.ids, side.switches, target, side.at, repeated=repeated)
        for side, target in zip((both.here, both.there), targets)
    ]
    column, share = found[0][0], found[0][2]
    values = [[None if v is None else float(v) for v in table[column].to_list()] for _, table, _ in found]
    known = [v for side in values for v in side if v is not None and v == v]
    diverging = any(v < 0 for v in known)
    whole = share and all(0 <= v <= 1 for v in known)
    ends = (0.0, 1.0) if whole else styling.limits(known, diverging=diverging)
    for place, side, shown, name in zip(columns, (both.here, both.there), values, NAMES):
        with place:
            grid(both, side.opened, shown, f"heads by {column}, {name}", diverging=diverging, ends=ends)
    try:
        apart = differences.heads_apart(found[0][1], found[1][1], column)
    except WorkbenchError as error:
        return refused(columns[2], error)
    with columns[2]:
        difference = apart["difference"].to_list()
        grid(both, both.here.opened, difference, f"heads by {column}, difference", diverging=True)
        label = chosen.replace("_", " ")
        of = "direct_effects" if chosen == head_colours.EFFECT else chosen
        plain = chosen in readings.SCORES and not repeated
        last = chosen == head_colours.EFFECT and both.here.at == len(both.here.ids) - 1
        take_home(
            both,
            "heads",
            apart,
            lambda: differences.difference_figure(apart, "layer", "head", label=label),
            f"of={of!r}" if plain or last else "",
        )


def grid(
    both: Two,
    opened: Opened,
    values: Sequence[float | None],
    name: str,
    *,
    diverging: bool,
    ends: tuple[float, float] | None = None,
) -> None:
    """Every head as a cell; a click chooses that head."""
    model = opened.model
    cells = CellMap(
        name,
        [str(layer) for layer in range(model.n_layers)],
        [str(head) for head in range(model.n_heads)],
        values,
        [f"layer {a}, head {b}: {valued(v)}" for (a, b), v in zip(model.heads(), values)],
        corner="layer",
    )
    cell_map.show(
        cells,
        key=f"side {name.rpartition(', ')[2]} heads",
        at=(both.layer, both.head),
        on_pick=lambda layer, head: url_state.put(SCREEN, "head", f"{layer}.{head}"),
        diverging=diverging,
        ends=ends,
    )


def valued(value: float | None) -> str:
    return "no value" if value is None else number(value)


# ---- logit lens


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=cached.BY_MODEL)
def lenses_apart(
    here: tuple[str, tuple[int, ...], Switches],
    there: tuple[str, tuple[int, ...], Switches],
    targets: tuple[Target, Target],
    where: tuple[int, ...],
    opened: Opened,
    other: Opened,
) -> pl.DataFrame:
    """Two lens maps of the target, and there less here."""
    sides = [
        (model, cached.reading(*side, model), target)
        for side, model, target in zip((here, there), (opened, other), targets)
    ]
    return differences.lenses_apart(*sides, where)


def lens(both: Two) -> None:
    """What every layer would give the target at every token."""
    goal = both.target_there()
    columns = three(both, f"logit lens, {both.said}")
    sides = list(zip((both.here, both.there), (both.target, goal)))
    first = [lens_cells.stretch(len(side.ids), side.at) for side, _ in sides]
    found = [
        lens_cells.lens_cells(
            side.name, side.ids, side.switches, "stream", "stream", "target", target, start, side.opened
        )
        for (side, target), start in zip(sides, first)
    ]
    known = [v for one in found for v in one.cells.values if v is not None]
    diverging = any(one.diverging for one in found)
    ends = styling.limits(known, diverging=True) if diverging else lens_cells.least_to_most(known)
    for place, (side, _), one, name, start in zip(columns, sides, found, NAMES, first):
        with place:
            map_of_layers(
                both, replace(one.cells, name=f"logit lens, {name}", say=""), one.layers, side.at - start,
                start if side is both.here else None, f"{name} lens", diverging=diverging, ends=ends,
            )  # fmt: skip
    of = [(side.name, side.ids, side.switches) for side, _ in sides]
    try:
        whole = lenses_apart(*of, (both.target, goal), both.where, both.here.opened, both.there.opened)
    except WorkbenchError as error:
        return refused(columns[2], error)
    apart = whole.filter(pl.col("position").is_between(first[0], first[0] + lens_cells.WIDE - 1))
    tokens, theirs = both.here.tokens, both.there.tokens
    titles = [
        f"layer {drawn.layer_name(row)}, token {i} {tokens[i]!r}, there {j} {theirs[j]!r}: {valued(off)}\n"
        f"{valued(a)} here, {valued(b)} there"
        for row, i, j, a, b, off in apart.iter_rows()
    ]
    cells = replace(
        found[0].cells, name="logit lens, difference", values=apart["difference"].to_list(), titles=titles,
        words=[theirs[j] for j in apart["there_position"]], say="in a cell: the token there that it is put on",
    )  # fmt: skip
    with columns[2]:
        map_of_layers(
            both, cells, found[0].layers, both.here.at - first[0], first[0], "difference lens", diverging=True
        )
        take_home(
            both,
            "lens",
            whole,
            lambda: differences.difference_figure(whole, "layer", "position", label=both.said, names=tokens),
            "of='lens'",
        )


def map_of_layers(
    both: Two,
    cells: CellMap,
    layers: Sequence[int],
    at: int,
    first: int | None,
    key: str,
    *,
    diverging: bool,
    ends: tuple[float, float] | None = None,
) -> None:
    """Layers by tokens; a click chooses the layer, and the token where columns are tokens here, from `first` on."""

    def pick(row: int, column: int) -> None:
        url_state.put(SCREEN, "head", f"{max(0, layers[row])}.{both.head}")
        if first is not None:
            url_state.put(SCREEN, "at", str(first + column))

    place = min(max(0, both.layer - layers[0]), len(layers) - 1), at
    cell_map.show(cells, key=f"side {key}", at=place, on_pick=pick, diverging=diverging, ends=ends)


# ---- next tokens


def following(both: Two) -> None:
    """The next tokens of both."""
    columns = three(both, "next token")
    colours = styling.accent(), styling.contrast()
    for place, side, colour in zip(columns, (both.here, both.there), colours):
        frame = readings.next_tokens(side.opened, side.reading, k=NEXT)
        rows = [(text, p, (p, colour)) for text, p in frame.select("text", "probability").iter_rows()]
        place.html(styling.table(rows, [("token", "tok"), ("probability", "num"), ("", "bar")]))
    try:
        apart = differences.next_tokens_apart(
            (both.here.opened, both.here.reading), (both.there.opened, both.there.reading), k=NEXT
        )
    except WorkbenchError as error:
        return refused(columns[2], error)
    most = apart.sort(pl.col("difference").abs(), descending=True, maintain_order=True).head(NEXT)
    rows = [(text, off, (abs(off), colours[off > 0])) for text, off in most.select("text", "difference").iter_rows()]
    with columns[2]:
        st.html(styling.table(rows, [("token", "tok"), ("difference", "num"), ("", "bar")]))
        take_home(both, "next-tokens", apart, lambda: differences.next_tokens_figure(apart), "of='next_tokens'")


# ---- attention of the chosen head


def patterns(both: Two) -> None:
    """Where the chosen head looks from every token."""
    chosen, named = (both.layer, both.head), f"{both.layer}.{both.head}"
    columns = three(both, f"attention of head {named}")
    found: list[np.ndarray] = []
    for place, side, name in zip(columns, (both.here, both.there), NAMES):
        with place:
            try:
                found.append(pattern(side, chosen))
            except WorkbenchError as error:
                refused(place, error)
                continue
            pattern_map.show(
                found[-1],
                side.tokens,
                at=side.at,
                label=f"attention of head {named} {name}",
                key=f"side {name} pattern",
                on_pick=(lambda i: url_state.put(SCREEN, "at", str(i))) if side is both.here else lambda _: None,
            )
    if len(found) < 2:
        return refused(columns[2], InputError("Attention is not compared: one side has no pattern to show."))
    count, tokens = len(both.where), both.here.tokens
    apart = differences.patterns_apart(found[0], found[1], both.where)
    with columns[2]:
        difference = np.zeros((count, count))
        difference[apart["query"].to_numpy(), apart["key"].to_numpy()] = apart["difference"].to_numpy()
        pattern_map.show(
            difference,
            tokens,
            at=both.here.at,
            label=f"attention of head {named}, there less here",
            key="side difference pattern",
            on_pick=lambda i: url_state.put(SCREEN, "at", str(i)),
            diverging=True,
        )
        take_home(
            both,
            "pattern",
            apart,
            lambda: differences.difference_figure(
                apart, "query", "key", label=f"attention of head {named}", names=tokens
            ),
            f"of='pattern', head={chosen}",
        )


def pattern(side: Side, head: tuple[int, int]) -> np.ndarray:
    """The pattern of a head. Raises InputError where the model has no such head, and for too long a prompt."""
    if len(side.ids) > MOST:
        raise InputError(f"A whole pattern is shown up to {MOST:,} tokens; here are {len(side.ids):,}.")
    if head[0] >= side.opened.model.n_layers or head[1] >= side.opened.model.n_heads:
        raise InputError(f"There is no head {head[0]}.{head[1]} in this model.")
    return cached.pattern(side.name, side.ids, *head, side.switches, side.opened)


# ---- to take home


def take_home(both: Two, panel: str, table: pl.DataFrame, figure: Callable[[], go.Figure], arguments: str) -> None:
    """A panel as files, and the Python that makes it, where `difference` has the `arguments` for it."""
    with st.popover(
        "Take home", width="stretch", help="Both sides and their difference as a file.", key=f"take {panel}"
    ):
        columns = st.columns(len(export_panel.MIME), gap="small")
        for column, (kind, mime) in zip(columns, export_panel.MIME.items()):
            column.download_button(
                kind.upper(),
                lambda kind=kind: as_code.csv(table).encode() if kind == "csv" else export_panel.drawn(figure(), kind),
                f"side-by-side-{panel}.{kind}",
                mime,
                on_click="ignore",
                key=f"side {panel} {kind}",
                width="stretch",
                help="The table, every column." if kind == "csv" else "The figure, light, at the width of two columns.",
            )
        if arguments:
            st.code(python_of(both, arguments), language="python", wrap_lines=True)


def python_of(both: Two, arguments: str) -> str:
    """The lines that make a panel of differences in a notebook."""
    lines = []
    for name, side in (("view", both.here), ("other", both.there)):
        view = Exploration(side.opened, side.ids, both.target, side.switches)
        made = as_code.view_python(view, model=side.name, prompt=side.prompt).removeprefix("view = ")
        if side is both.there:  # its target is the one here
            made = re.sub(r", target=\d+(, other=\d+)?\)", ")", made, count=1)
        lines.append(f"{name} = {made}")
    lines += [f"table, figure = view.difference(other, {arguments})", "figure.show()"]
    return "from workbench import explore\n\n" + "\n".join(lines)
