"""What a person would quote of a run: of each task the language that leads in every stretch of layers, the areas, the
layer where the target overtakes the pivot, and how many layers turn the answer's language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from probes.latent_language.config import Config

RATE = 0.05


def summary_of(
    layers: pl.DataFrame, courses: pl.DataFrame, steering: pl.DataFrame, pivot: str, config: Config
) -> dict[str, Any]:
    """Of the read-out `show` and the first lens; `pivot`: the first language."""
    chosen = (pl.col("readout") == config.show) & (pl.col("lens") == config.lenses[0])
    found: dict[str, Any] = {"readout": config.show, "lens": config.lenses[0]}
    keys = ("task", "source", "target")
    for (task, source, target), part in layers.filter(chosen).group_by(keys, maintain_order=True):
        name = "_".join(_name(str(task), str(source), str(target)).split())
        own = courses.filter(chosen, task=task, source=source, target=target)
        found[f"{name}_leads"] = leads_in_words(part)
        last = part.filter(pl.col("layer") == part["layer"].max())
        found |= {f"{name}_{g}_at_the_end": _row(row, "probability") for g, row in _by_language(last, (target, pivot))}
        for g, row in _by_language(own, (target, pivot)):
            found[f"{name}_{g}_area"] = {
                "value": row["area"],
                "low": row["area_low"],
                "high": row["area_high"],
                "n": row["n"],
                "rows": row["rows"],
            }
            if g != target and row["crossing"] is not None:
                found[f"{name}_crossing_{g}"] = {
                    "value": row["crossing"],
                    "low": row["crossing_low"],
                    "high": row["crossing_high"],
                    "n": row["n"],
                }
    for (task, source, target, towards), part in steering.group_by((*keys, "towards"), maintain_order=True):
        told = part.filter(direction="language")
        above = told.filter((pl.col("p_adjusted") < RATE) & (pl.col("excess") > 0))["layer"].to_list()
        name = "_".join(f"{_name(str(task), str(source), str(target))} steered to {towards}".split())
        found[f"{name}_layers"] = f"{len(above)} of {told.height} layers above random directions: {_listed(above)}"
    return found


def _name(task: str, source: str, target: str) -> str:
    return f"{task} {source} {target}" if source != target else f"{task} {target}"


def leads_in_words(part: pl.DataFrame) -> str:
    """``english 0–11, german 12–23``: the language with the largest mean probability in each stretch of layers."""
    led = part.filter(pl.col("leads")).sort("layer").select("layer", "language").rows()
    stretches: list[list[Any]] = []
    for layer, language in led:
        if stretches and stretches[-1][0] == language and stretches[-1][2] == layer - 1:
            stretches[-1][2] = layer
        else:
            stretches.append([language, layer, layer])
    return ", ".join(f"{g} {a}" if a == b else f"{g} {a}–{b}" for g, a, b in stretches)


def _by_language(frame: pl.DataFrame, languages: Sequence[str]) -> list[tuple[str, dict]]:
    rows = {row["language"]: row for row in frame.iter_rows(named=True)}
    return [(g, rows[g]) for g in dict.fromkeys(languages) if g in rows]


def _row(row: dict, column: str) -> dict:
    return {"value": row[column], "low": row["ci_low"], "high": row["ci_high"], "n": row["n"], "rows": row["rows"]}


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"
