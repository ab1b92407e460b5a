"""Figures of latent languages are drawn from tables only, of a small run and of one of 32 layers and six languages."""

from __future__ import annotations

import types

import numpy as np
import polars as pl
import pytest

from probes.latent_language.figures import figures, language_map, languages, steering
from workbench.core.errors import InputError

LANGUAGES = ("english", "french", "german", "spanish", "chinese", "japanese")


def layer_rows(layers: int) -> list[dict]:
    """English in the middle, the target at the end."""
    rows = []
    for task, source, target in (("translation", "french", "german"), ("cloze", "japanese", "japanese")):
        for layer in range(layers):
            p = dict.fromkeys(LANGUAGES, 1e-5)
            p["english"] += 0.4 * np.exp(-(((layer - 0.6 * layers) / 4) ** 2))
            p[target] += 0.7 / (1 + np.exp(0.8 * layers - layer))
            for language in LANGUAGES:
                row = {"task": task, "source": source, "target": target, "lens": "logit", "readout": "word"}
                row |= {"layer": layer, "language": language, "probability": p[language], "entropy": 11 - layer / 4}
                row |= {"ci_low": 0.8 * p[language], "ci_high": 1.2 * p[language], "n": 70}
                row |= {"mean_log_p": float(np.log(p[language])), "null_probability": p[language] / 20}
                rows.append(row | {"leads": p[language] == max(p.values())})
    return rows


def steering_rows(layers: int) -> list[dict]:
    rows = []
    for layer in (0, layers // 2, layers - 1):
        for draw in range(-1, 4):
            row = {"task": "translation", "source": "french", "target": "german", "towards": "english", "layer": layer}
            row |= {"direction": "random" if draw >= 0 else "language", "draw": max(draw, 0), "base_log_odds": -5.0}
            rows.append(
                row | {"log_odds": 6.0 if draw < 0 else 0.1 * draw, "log_odds_low": 5.0, "log_odds_high": 7.0, "n": 40}
            )
    return rows


def fake(depth: int, **tables: list[dict]):
    kept = {name: pl.DataFrame(rows) for name, rows in tables.items()}
    info = {"model": {"name": "some/model", "layers": depth}, "config": {"show": "word", "strength": 1.0}}
    return types.SimpleNamespace(id="x", info=info, tables=list(kept), table=kept.get, summary={})


@pytest.fixture(scope="module", params=[2, 32])
def run(request):
    layers = request.param
    return fake(layers, layers=layer_rows(layers), steering=steering_rows(layers))


def test_every_figure_that_the_tables_allow_is_drawn(run):
    found = figures(run)
    assert set(found) == {"languages", "language_map", "entropy", "steering"}
    assert all(figure.layout.height <= 1000 and figure.data for figure in found.values())


def test_curves_are_the_columns_of_the_table(run):
    figure = languages(run)
    frame = run.table("layers").filter(task="translation", language="english").sort("layer")
    drawn = next(trace for trace in figure.data if trace.name == "english" and len(trace.y) == frame.height)
    np.testing.assert_allclose(drawn.y, frame["probability"])
    assert "concepts" in figure.layout.meta["interval"] and figure.layout.meta["n"] == "70 concepts"
    assert figure.layout.meta["panels"][1]["title"] == "cloze, japanese"


def test_the_line_of_the_steering_figure_is_where_the_two_languages_are_even(run):
    assert any(shape.y0 == shape.y1 == 5.0 for shape in steering(run).layout.shapes)


def test_a_run_without_the_table_of_a_figure_says_so():
    empty = fake(2, layers=layer_rows(2))
    with pytest.raises(InputError, match="no table 'steering'"):
        steering(empty)
    with pytest.raises(InputError, match="lacks the column 'leads'"):
        language_map(fake(2, layers=[{k: v for k, v in row.items() if k != "leads"} for row in layer_rows(2)]))
