"""Two prompts, two models, or a model with and without switches: their panels set against each other, cell by cell.

A difference is what stands there less what stands here. Tokens are put on each other as patching aligns them
(`patch_maps.align`), those of two vocabularies where they end in the text, layers and heads by their numbers; what does
not fit is refused by itself."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.core.wording import cut
from workbench.explorer.lens_maps import lens_map
from workbench.explorer.opened_model import Opened
from workbench.explorer.patch_maps import align
from workbench.explorer.readings import Reading
from workbench.explorer.targets import Target, target_of
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks

MOST = 48  # columns of a map that are named


def same_vocabulary(here: Opened, there: Opened) -> bool:
    """Whether every token id reads the same in both; a chat template may be another."""
    mine, theirs = here.model, there.model
    if mine.tokenizer_fingerprint == theirs.tokenizer_fingerprint:
        return True
    if mine.tokenizer is None or theirs.tokenizer is None:
        return False
    return mine.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()


def shared_target(target: Target, here: Opened, there: Opened) -> Target:
    """The same target in another model: the same ids where the vocabularies are one, else the tokens that read the
    same. Raises InputError where there a token of the target is several."""
    if same_vocabulary(here, there):
        return target
    words = here.model.token_strings(target.ids)
    return target_of(there.model, words[0], words[1] if len(words) > 1 else None)


def aligned(here: Opened, ids: Sequence[int], there: Opened, other: Sequence[int]) -> tuple[int, ...]:
    """For each token of a prompt the position in another: as patching aligns them where the vocabularies are one, else
    by their texts."""
    if same_vocabulary(here, there):
        return align(ids, other)
    return align_texts(here.model.token_strings(ids), there.model.token_strings(other))


def align_texts(here: Sequence[str], there: Sequence[str]) -> tuple[int, ...]:
    """For each token the position there of the token in which the same text ends. Stretches of equal words are put on
    each other, and what lies between is spread evenly, ends on ends."""
    at = _characters("".join(here), "".join(there))
    mine, theirs = (np.cumsum([len(text) for text in side]) for side in (here, there))
    found = (at[max(0, end - 1)] if at else 0 for end in mine)
    return tuple(min(int(np.searchsorted(theirs, place, side="right")), len(there) - 1) for place in found)


def _characters(here: str, there: str) -> list[int]:
    """For each character of a text the place of one in the other."""
    words = [re.findall(r"\s+|\w+|[^\w\s]", text) for text in (here, there)]
    starts = [np.cumsum([0, *map(len, side)]).tolist() for side in words]
    out: list[int] = []
    b = 0
    for block in difflib.SequenceMatcher(None, *words, autojunk=False).get_matching_blocks():
        own, other = starts[0][block.a], starts[1][block.b]
        gap, theirs = own - len(out), other - b
        out += [b + ((i + 1) * theirs - 1) // gap if theirs else max(0, b - 1) for i in range(gap)]
        same = starts[0][block.a + block.size] - own
        out += range(other, other + same)
        b = other + same
    return out


def heads_apart(here: pl.DataFrame, there: pl.DataFrame, column: str) -> pl.DataFrame:
    """A score of every head in both: layer, head, here, there, difference. Raises InputError for models of another
    number of layers or heads."""
    sizes = [(int(_most(side, "layer")) + 1, int(_most(side, "head")) + 1) for side in (here, there)]
    if sizes[0] != sizes[1]:
        (a, b), (c, d) = sizes
        raise InputError(f"Heads are not compared: there are {a} × {b} (layers × heads) here and {c} × {d} there.")
    return _apart(here.select("layer", "head", here=column), there.select("layer", "head", there=column))


def lenses_apart(
    here: tuple[Opened, Reading, Target], there: tuple[Opened, Reading, Target], where: Sequence[int]
) -> pl.DataFrame:
    """What every layer would give the target at every token in both (log p in nats, or the difference of logits):
    layer (−1: the embeddings), position, there_position, here, there, difference. `where`: for each token here its
    position there.

    Raises InputError for models of another number of layers, and for positions that there are not."""
    layers = [side[0].model.n_layers for side in (here, there)]
    if layers[0] != layers[1]:
        raise InputError(f"Lens maps are not compared: there are {layers[0]} layers here and {layers[1]} there.")
    if len(where) != len(here[1].ids) or not all(0 <= i < len(there[1].ids) for i in where):
        raise InputError(f"The alignment has to name for each of {len(here[1].ids)} tokens a position of the other.")
    mine, theirs = (lens_map(opened, reading, target=target) for opened, reading, target in (here, there))
    places = pl.DataFrame({"position": list(range(len(where))), "there_position": list(where)})
    mine = mine.select("layer", "position", here="target").join(places, on="position", maintain_order="left")
    return _apart(mine, theirs.select("layer", there_position="position", there="target"))


def patterns_apart(here: np.ndarray, there: np.ndarray, where: Sequence[int]) -> pl.DataFrame:
    """Attention of one head [T, T] in both, over the pairs of tokens here: query, key, here, there, difference. What
    falls on tokens there that no token here is put on is not shown."""
    T = len(where)
    query, key = np.tril_indices(T)
    at = np.asarray(where)
    mine, theirs = here[query, key].astype(float), there[at[query], at[key]].astype(float)
    frame = pl.DataFrame({"query": query, "key": key, "here": mine, "there": theirs})
    return frame.with_columns(difference=pl.col("there") - pl.col("here"))


def next_tokens_apart(here: tuple[Opened, Reading], there: tuple[Opened, Reading], *, k: int = 8) -> pl.DataFrame:
    """The likeliest next tokens of both: id, text, here, there, difference of probabilities, largest first. Raises
    InputError for models of different tokenizers."""
    (mine, reading), (theirs, other) = here, there
    if not same_vocabulary(mine, theirs) or len(reading.logits) != len(other.logits):
        raise InputError("Next tokens are not compared: the two models have different tokenizers.")
    p, q = (side.logits.double().softmax(-1).cpu() for side in (reading, other))
    ids = list(dict.fromkeys([*p.topk(k).indices.tolist(), *q.topk(k).indices.tolist()]))
    texts = [str(i) for i in ids] if mine.model.tokenizer is None else mine.model.token_strings(ids)
    frame = pl.DataFrame({"id": ids, "text": texts, "here": p[ids].tolist(), "there": q[ids].tolist()})
    frame = frame.with_columns(difference=pl.col("there") - pl.col("here"))
    return frame.sort(pl.max_horizontal("here", "there"), descending=True, maintain_order=True)


def _most(frame: pl.DataFrame, column: str) -> int:
    return int(frame[column].max())  # pyright: ignore[reportArgumentType]


def _apart(here: pl.DataFrame, there: pl.DataFrame) -> pl.DataFrame:
    keys = [name for name in here.columns if name in there.columns]
    both = here.join(there, on=keys, how="left", maintain_order="left")
    names = [name for name in both.columns if name not in ("here", "there")]
    return both.select(*names, "here", "there", difference=pl.col("there") - pl.col("here"))


def difference_figure(
    frame: pl.DataFrame, rows: str, columns: str, *, label: str, names: Sequence[str] = (), title: str = ""
) -> go.Figure:
    """Three maps of a table of differences: here, there, and there less here. `rows`, `columns`: the table's columns of
    that name; `names` of the columns, unless they are numbers."""
    first = int(frame[rows].min())  # pyright: ignore[reportArgumentType]
    shape = _most(frame, rows) - first + 1, _most(frame, columns) + 1
    at = frame[rows].to_numpy() - first, frame[columns].to_numpy()
    texts = [cut(name, 12) for name in names] or [str(i) for i in range(shape[1])]
    fig = sheet(
        ["here", "there", "there less here"],
        title=title,
        x="token" if names else columns,
        y=rows,
        x_ticks=ticks(range(shape[1]), texts, keep=bool(names) and shape[1] <= MOST),
        y_ticks=ticks(range(shape[0]), ["in" if r + first < 0 else str(r + first) for r in range(shape[0])]),
        aspect=min(1.2, max(0.4, shape[0] / shape[1])),
        cells=shape,
        note=f"{label} on two sides, and the difference; one scale, symmetric about 0",
    )
    maps = []
    for name in ("here", "there", "difference"):
        values = np.full(shape, np.nan)
        values[at] = frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        maps.append(values)
    ends = traces.limits(np.stack(maps), diverging=True)
    traces.colour_scale(fig, ends, label, diverging=True)
    for i, values in enumerate(maps):
        custom = np.full((*shape, 3), "", object)
        for r in range(shape[0]):
            for c in range(shape[1]):
                custom[r, c] = ("in" if r + first < 0 else str(r + first), traces.safe(texts[c]), "")
        custom[..., 2] = np.vectorize(traces.number, otypes=[object])(values)
        hover = rows + " %{customdata[0]}, " + columns + " %{customdata[1]}<br>%{customdata[2]}"
        traces.add_cells(fig, i, values, custom=custom, hover=hover, ends=ends, diverging=True)
    return dressed(fig)


def next_tokens_figure(frame: pl.DataFrame, *, title: str = "") -> go.Figure:
    """Probabilities of the likeliest next tokens on both sides, and their difference."""
    n = frame.height
    at = list(range(n))[::-1]
    texts = [cut(text, 18) for text in frame["text"]]
    fig = sheet(
        ["here", "there", "there less here"],
        title=title,
        x="probability",
        y_ticks=ticks(at, texts, keep=True),
        share_x=False,
        aspect=0.9,
        note="The likeliest next tokens of both sides",
    )
    for i, (name, colour) in enumerate((("here", theme.BLUE), ("there", theme.OCHRE), ("difference", theme.NEUTRAL))):
        traces.add_bars(
            fig, i, at, frame[name].to_list(), name=name, style=theme.Style(colour), horizontal=True, legend=False
        )
    most = max(frame["here"].max(), frame["there"].max())  # pyright: ignore[reportArgumentType, reportCallIssue]
    fig.update_layout(xaxis={"range": [0, 1.05 * most]}, xaxis2={"range": [0, 1.05 * most]})
    return dressed(fig)
