"""The sampled continuations of one prompt as a tree: width is probability, colour the local branching factor."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.figure_geometry import TREE_BRANCH, TREE_RUN, TREE_TEXT
from workbench.figures.layout import dressed, sheet, ticks


def tree_figure(
    nodes: pl.DataFrame,
    *,
    leaves: int = 14,
    levels: int = 5,
    least: float = 0.0,
    title: str = "",
    note: str = "",
    n: int | str | None = None,
) -> go.Figure:
    """Draw a prefix tree: a table with node, parent (−1 for the prompt), text, probability, bf (as
    `probes.branching_factor.prefix_tree.build` gives it).

    ``leaves``, ``levels``, ``least``: at most so many ends and columns, and the smallest probability that is shown;
    what is pruned is counted where it leaves. Raises InputError for a table without a branch.
    """
    children: dict[int, list[int]] = {}
    row_of: dict[int, dict] = {}
    for row in nodes.iter_rows(named=True):
        row_of[row["node"]] = row
        if row["parent"] is not None and row["parent"] >= 0:
            children.setdefault(row["parent"], []).append(row["node"])
    roots = [number for number, row in row_of.items() if row["parent"] is None or row["parent"] < 0]
    if not roots or not children.get(roots[0]):
        raise InputError("There is no tree to draw: the samples of this prompt are empty.")
    root = roots[0]
    shown, level = _prune(root, children, row_of, leaves=leaves, levels=levels, least=least)
    place = _rows(root, shown)
    columns = max(level.values())
    ends = sum(1 for number in shown if not shown[number])
    values = np.array([row_of[number]["bf"] if row_of[number]["bf"] is not None else np.nan for number in shown])
    bounds = (1.0, max(float(np.nanmax(values)) if np.isfinite(values).any() else 2.0, 1.5))

    fig = sheet(
        title=title,
        y_ticks=ticks(range(ends), [""] * ends, keep=True),
        bare=True,
        row=1.55,
        aspect=0.12,
        note=" ".join(filter(None, [note, "Width: probability. Colour: branching factor of the choices that follow."])),
        n=n,
    )
    fig.update_layout(
        coloraxis={
            "colorscale": theme.scale(theme.SEQUENTIAL[2:]),
            "cmin": bounds[0],
            "cmax": bounds[1],
            "colorbar": {"title": {"text": "local branching factor"}},
        }
    )
    for number in shown:
        for child in shown[number]:
            start = (level[number] - 1 + TREE_RUN if number != root else 0.0, place[number])
            _branch(
                fig,
                start,
                (float(level[child] - 1) + (0.12 if number == root else 0.0), place[child]),
                row_of[child]["probability"],
            )
    x, y, lifted, text, custom, hover, colours = [], [], [], [], [], [], []
    for number in shown:
        if number == root:
            continue
        row, left = row_of[number], float(level[number] - 1) + (0.12 if row_of[number]["parent"] == root else 0.0)
        colour = traces.stop_colour(float(row["bf"]) if row["bf"] is not None else np.nan, bounds)
        fig.add_scatter(
            x=[left, level[number] - 1 + TREE_RUN],
            y=[place[number]] * 2,
            mode="lines",
            line={"color": colour},
            hoverinfo="skip",
            showlegend=False,
            meta={TREE_BRANCH: row["probability"]},
            xaxis="x",
            yaxis="y",
        )
        pruned = [c for c in children.get(number, []) if c not in shown]
        rest = sum(row_of[c]["probability"] for c in pruned) + (row.get("hidden") or 0) / max(1, _samples(row_of[root]))
        words = _plain(str(row["text"] or ""))
        x.append(left)
        y.append(place[number])
        lifted.append(place[number] - 0.17 * row["probability"])  # above the branch, however wide
        text.append(traces.safe(words))
        custom.append(
            [words, f"{row['probability']:.0%}" + (f" (+{rest:.0%} pruned)" if rest > 0.005 and pruned else "")]
        )
        bf = "n/a" if row["bf"] is None or not np.isfinite(row["bf"]) else f"{row['bf']:.2f}"
        hover.append(
            f"{traces.safe(words, 200)}<br>probability {row['probability']:.1%}<br>branching factor {bf}"
            + (f"<br>pruned from here: {rest:.1%}" if rest > 0.005 else "")
        )
        colours.append(row["bf"] if row["bf"] is not None else np.nan)
    fig.add_scatter(
        x=x,
        y=y,
        mode="markers",
        marker={"color": colours, "coloraxis": "coloraxis"},
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
        xaxis="x",
        yaxis="y",
    )
    fig.add_scatter(
        x=[v + 0.02 for v in x],
        y=lifted,
        mode="text",
        text=text,
        customdata=custom,
        textposition="top right",
        hoverinfo="skip",
        showlegend=False,
        meta=TREE_TEXT,
        xaxis="x",
        yaxis="y",
    )
    fig.layout.xaxis.update(range=[-0.05, columns], showline=False, zeroline=False)
    fig.layout.yaxis.update(range=[ends - 0.45, -0.85], showline=False, zeroline=False)
    return dressed(fig)


def _prune(root, children, row_of, *, leaves, levels, least) -> tuple[dict[int, list[int]], dict[int, int]]:
    """{shown node: its shown children}, and the column of each: the likeliest nodes first, until there are enough
    ends."""
    shown: dict[int, list[int]] = {root: []}
    level = {root: 0}
    ends = 1
    waiting = list(children.get(root, []))
    while waiting:
        best = max(waiting, key=lambda number: (row_of[number]["probability"], -number))
        waiting.remove(best)
        parent = row_of[best]["parent"]
        new_end = bool(shown[parent])  # the first child takes its parent's place as an end
        if row_of[best]["probability"] < least or (new_end and ends >= leaves):
            continue
        ends += new_end
        shown[parent].append(best)
        shown[best] = []
        level[best] = level[parent] + 1
        if level[best] < levels:
            waiting += children.get(best, [])
    return shown, level


def _rows(root: int, shown: dict[int, list[int]]) -> dict[int, float]:
    """The height of every node: ends one below the other, the others in the middle of their children."""
    place: dict[int, float] = {}
    order: list[int] = []
    stack = [root]
    while stack:
        number = stack.pop()
        order.append(number)
        stack.extend(reversed(shown[number]))
    row = 0
    for number in order:
        if not shown[number]:
            place[number] = float(row)
            row += 1
    for number in reversed(order):
        if shown[number]:
            place[number] = (place[shown[number][0]] + place[shown[number][-1]]) / 2
    return place


def _branch(fig: go.Figure, start: tuple[float, float], end: tuple[float, float], probability: float) -> None:
    t = np.linspace(0, 1, 14)
    smooth = 3 * t**2 - 2 * t**3
    fig.add_scatter(
        x=start[0] + (end[0] - start[0]) * t,
        y=start[1] + (end[1] - start[1]) * smooth,
        mode="lines",
        line={"color": theme.alpha(theme.NEUTRAL, 0.45)},
        hoverinfo="skip",
        showlegend=False,
        meta={TREE_BRANCH: probability},
        xaxis="x",
        yaxis="y",
    )


def _plain(text: str) -> str:
    """Tokens on one line: breaks shown, the space that most tokens begin with left out at the start."""
    text = text.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥").replace("Ġ", " ").replace("▁", " ").strip()
    return text or "␣"


def _samples(root: dict) -> int:
    return int(root.get("count") or 1)


def words_tree(texts: list[str]) -> pl.DataFrame:
    """The prefix tree of texts by words, for samples whose tokens are not known; bf is exp of the entropy of what the
    samples themselves did next (an underestimate where samples are few)."""
    import re

    rows = [re.findall(r"\s*\S+", text) for text in texts]
    out: list[dict] = []

    def add(parent: int, members: list[int], start: int, stop: int) -> None:
        number = len(out)
        groups: dict[str, list[int]] = {}
        for m in members:
            if len(rows[m]) > stop:
                groups.setdefault(rows[m][stop], []).append(m)
        going = np.array([len(g) for g in groups.values()], dtype=float)
        share = going / going.sum() if len(going) else going
        out.append(
            {
                "node": number,
                "parent": parent,
                "text": "".join(rows[members[0]][start:stop]),
                "count": len(members),
                "probability": len(members) / len(rows),
                "bf": float(np.exp(-(share * np.log(share)).sum())) if len(share) else None,
            }
        )
        for group in sorted(groups.values(), key=len, reverse=True):
            end = stop + 1
            while all(len(rows[m]) > end and rows[m][end] == rows[group[0]][end] for m in group):
                end += 1
            add(number, group, stop, end)

    if rows:
        add(-1, list(range(len(rows))), 0, 0)
    schema = {
        "node": pl.Int64,
        "parent": pl.Int64,
        "text": pl.String,
        "count": pl.Int64,
        "probability": pl.Float64,
        "bf": pl.Float64,
    }
    return pl.DataFrame(out, schema=schema)
