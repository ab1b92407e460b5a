"""Figures of the probe, from tables of small and of large models, and from tables that hold little."""

from __future__ import annotations

import types

import numpy as np
import polars as pl
import pytest

from probes.talking_heads.ablation import SCHEMA as ABLATION
from probes.talking_heads.figures import ARROWS, FIGURES, figures
from probes.talking_heads.scan import COMPONENT_SCHEMA, SCHEMA
from probes.talking_heads.sweep import SCHEMA as SWEEP
from workbench.core.errors import InputError
from workbench.figures.export import caption
from workbench.figures.run_tables import collect


def tables(layers: int, heads: int, *, marked: int = 60, receivers: int = 3) -> dict[str, pl.DataFrame]:
    rng = np.random.default_rng(0)
    pairs = [(a, b) for a in range(layers) for b in range(heads)]
    found = {
        "heads": pl.DataFrame(
            {
                "layer": [a for a, _ in pairs],
                "head": [b for _, b in pairs],
                "out_strength": [
                    float(x) if a < layers - 1 else None for (a, _), x in zip(pairs, rng.gamma(3, 2, len(pairs)))
                ],
                "in_strength": [float(x) if a else None for (a, _), x in zip(pairs, rng.gamma(3, 2, len(pairs)))],
            }
        )
    }
    rows = []
    for rank in range(200):
        a, b = sorted(rng.choice(layers, 2, replace=False).tolist())
        blank = dict.fromkeys(SCHEMA)
        rows.append(
            blank
            | {"rank": rank + 1, "source_layer": a, "source_head": int(rng.integers(heads)), "component": rank % 8}
            | {"target_layer": b, "target_head": int(rng.integers(heads)), "target_heads": 1, "kind": "qkv"[rank % 3]}
            | {"score": 0.5, "z": 60.0 - rank / 10, "z_heads": 40.0 - rank / 10, "is_channel": rank < marked}
        )
    found["channels"] = pl.DataFrame(rows, schema=SCHEMA)
    found["components"] = pl.DataFrame(
        [
            {name: row[name] for name in COMPONENT_SCHEMA if name in row}
            | {"component": i, "singular_value": 1 / (i + 1), "score": 0.03 + (i == 2) * 0.4, "z": 1.0}
            | {"null_mean": 0.03, "null_sd": 0.004}
            for row in rows[:12]
            for i in range(64)
        ],
        schema=COMPONENT_SCHEMA,
    )
    cut = []
    for receiver in range(receivers):
        for channels in ("0.1/2", "3.4/15", "0.1/2, 0.1/7, 3.4/0"):
            for way in ("weight", "activation", "random"):
                change = -0.3 * rng.random()
                cut.append(
                    dict.fromkeys(ABLATION)
                    | {"task": "inhibition", "target_layer": 1 + receiver, "target_head": 2, "channels": channels}
                    | {"ablation": way, "metric": "attention", "value": 0.5 + change, "change": change}
                    | {"change_low": change - 0.1, "change_high": change + 0.1, "n": 10, "rows": 20}
                )
    found["ablation"] = pl.DataFrame(cut, schema=ABLATION)
    found["sweep"] = pl.DataFrame(
        [
            dict.fromkeys(SWEEP)
            | {"task": "list", "target_layer": 1, "target_head": 2, "channels": "0.1/2", "scale": scale, "size": size}
            | {"split": split, "metric": metric, "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 6, "rows": 24}
            for scale in (0.0, 1.0, 2.0, 5.0)
            for size in (None, 3, 4, 6, 8)
            for split in ("choosing", "measured")
            for metric in ("attention", "accuracy")
        ],
        schema=SWEEP,
    )
    return found


def run_of(frames, layers: int, heads: int, kv_heads: int | None = None):
    model = {"name": "m", "layers": layers, "heads": heads, "kv_heads": kv_heads or heads}
    info = {"id": "x", "probe": "talking-heads", "model": model, "config": {"outlier": 6.0}}
    return types.SimpleNamespace(id="x", info=info, summary={}, tables=frames, table=frames.__getitem__)


@pytest.mark.parametrize(("layers", "heads", "kv"), [(3, 4, 2), (12, 12, 12), (32, 32, 8)])
def test_every_figure_is_drawn_at_any_size_and_no_larger_than_a_page(layers, heads, kv):
    run = run_of(tables(layers, heads), layers, heads, kv)
    found, reasons = collect(run, FIGURES)
    assert not reasons and set(found) == set(FIGURES)
    for name, fig in found.items():
        assert 200 < fig.layout.height < 1100, name
        assert fig.data and "m" in caption(run, fig)


def test_arrows_are_the_strongest_pairs_with_a_channel():
    run = run_of(tables(12, 12), 12, 12)
    fig = FIGURES["channel_map"](run)
    arrows = [trace for trace in fig.data if trace.type == "scatter"]
    ends = sum(len(trace.x) // 3 for trace in arrows)
    assert ends == ARROWS and {trace.name for trace in arrows} == {"into queries", "into keys", "into values"}
    rows = run.tables["channels"].filter(pl.col("rank") <= ARROWS)
    drawn = {tuple(map(int, (t.y[i], t.x[i], t.y[i + 1], t.x[i + 1]))) for t in arrows for i in range(0, len(t.x), 3)}
    wanted = rows.select("source_layer", "source_head", "target_layer", "target_head").rows()
    assert drawn == set(wanted)


def test_a_model_without_a_channel_has_a_map_that_says_so():
    run = run_of(tables(3, 4, marked=0), 3, 4)
    fig = FIGURES["channel_map"](run)
    assert "No component is a channel" in caption(run, fig)


def test_a_run_of_the_scores_alone_says_why_nothing_was_cut():
    frames = tables(3, 4)
    frames["ablation"], frames["sweep"] = frames["ablation"].clear(), frames["sweep"].clear()
    found = figures(run_of(frames, 3, 4))
    assert set(found) == {"channel_map", "components"}
    for name in ("ablation", "sweep"):
        with pytest.raises(InputError, match="to draw"):
            FIGURES[name](run_of(frames, 3, 4))
