"""Features from a notebook: each panel a table and a figure of it, and the passages of texts held to a slow search."""

import numpy as np
import polars as pl
import pytest
import torch

from tests.explorer.test_exploring import PROMPT, cells
from tests.explorer.test_features import Slow
from workbench import explore, organisms
from workbench.core.errors import InputError
from workbench.core.tables import read_table
from workbench.explorer.autoencoders import open_autoencoder
from workbench.explorer.passages import top_passages
from workbench.explorer.waterfall import WHOLE


@pytest.fixture(scope="module")
def view():
    return explore("organism", PROMPT.format("insect"))


def bars(fig):
    (bar,) = fig.data
    names = dict(zip(fig.layout.yaxis.tickvals, fig.layout.yaxis.ticktext))
    return {names[y]: float(x) for x, y in zip(bar.x, bar.y)}


@pytest.mark.parametrize("position", [None, -1])
def test_the_map_of_features_draws_the_activations_of_the_most_active_ones(view, position):
    table, fig = view.features(position=position, most=10)
    named = {row: int(name) for row, name in zip(fig.layout.yaxis.tickvals, fig.layout.yaxis.ticktext)}
    if position is None:  # BOS does not count
        mine = table.filter(pl.col("position") > 0)
    else:
        mine = table.filter(pl.col("position") == len(view.ids) - 1)
    best = mine.group_by("feature").agg(pl.col("activation").max()).sort("activation", descending=True)["feature"][:10]
    assert [named[row] for row in sorted(named, reverse=True)] == best.to_list()
    drawn = cells(fig)
    assert len(drawn) == 10 * len(view.ids)
    there = {(p, f): a for p, f, a in table.select("position", "feature", "activation").iter_rows()}
    for (row, position_), value in drawn.items():
        assert value == pytest.approx(there.get((position_, named[row]), 0.0))


def test_bars_are_the_numbers_of_their_tables(view):
    effects, fig = view.feature_effects()
    assert bars(fig) == pytest.approx(
        {f"feature {f}": v for f, v in effects.select("feature", "direct_effect").iter_rows()}
    )
    feature = int(effects["feature"][0])
    writes, fig = view.feature_writes(feature)
    assert sorted(bars(fig).values()) == pytest.approx(sorted(writes["per_unit"]))
    sources, fig = view.feature_sources(feature, heads=3)
    whole = sources.filter(~pl.col("part").is_in(["head", "head_bias"]))["contribution"].sum()
    found = bars(fig)
    assert found["sum"] == pytest.approx(whole) == pytest.approx(sum(v for k, v in found.items() if k != "sum"))
    assert sum(name.startswith("head ") for name in found) == 3
    fed, fig = view.head_features((1, 1))
    assert bars(fig) == pytest.approx({f"feature {f}": v for f, v in fed.select("feature", "contribution").iter_rows()})
    value = sources.filter(part="head", layer=1, head=1)["contribution"].item()
    assert fed.filter(feature=feature)["contribution"].item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("features", [0, 3])
def test_a_waterfall_in_features_goes_on_to_the_same_sum(view, features):
    plain, _ = view.waterfall()
    parts, fig = view.waterfall(autoencoder="default", features=features, heads=2)
    found = bars(fig)
    whole = parts.filter(pl.col("part").is_in(WHOLE))["contribution"].sum()
    assert found["sum"] == pytest.approx(whole, abs=1e-3)
    assert whole == pytest.approx(plain.filter(pl.col("part").is_in(WHOLE))["contribution"].sum(), abs=1e-3)
    assert sum(v for k, v in found.items() if k != "sum") == pytest.approx(whole, abs=1e-3)
    assert sum(name.startswith("feature ") for name in found) == features and f"{16 - features} other features" in found
    (bar,) = fig.data
    lengths, starts = np.array(bar.x, float), np.array(bar.base, float)
    np.testing.assert_allclose(starts[1:-1], np.cumsum(lengths)[:-2], atol=1e-9)


def test_a_feature_that_the_answer_hangs_on_takes_it_away_when_it_is_off(view):
    ranked = view.feature_effects()[0].filter(pl.col("direct_effect") > 0)["feature"]
    off, little = (view.switched(features=",".join(f"{f}=off" for f in some)) for some in (ranked[:4], ranked[-4:]))
    value = [float(view.target.value(one.reading.logits)) for one in (view, off, little)]
    assert value[1] < 5 * value[0] and value[1] < 2 * value[2] and off.target == view.target
    table, _ = off.lens()
    assert table["target"][-1] == pytest.approx(value[1], abs=1e-3)
    assert view.switched(features="").switches == view.switched().switches


def test_passages_are_the_texts_in_which_the_feature_is_strongest_and_open_at_their_strongest_token(view):
    feature = int(view.feature_effects()[0]["feature"][0])
    texts = read_table(organisms.data("texts"), required=("text",), what="texts")["text"].to_list()[:40]
    table, fig = view.passages(feature, texts=texts, most=5)
    model = view.opened.model
    slow, hf, strongest = Slow(open_autoencoder(view.opened)), model.hf, []
    for row, text in enumerate(texts):
        ids = model.encode(text)
        with torch.no_grad():
            x = hf(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[4][0].double()
        own = slow.encode(x)[0][:, feature]
        own[0] = 0  # BOS
        strongest.append((float(own.max()), row, int(own.argmax()), own))
    best = sorted(strongest, key=lambda one: -one[0])[:5]
    assert table["row"].to_list() == [row for _, row, _, _ in best]
    assert table["activation"].to_list() == pytest.approx([value for value, *_ in best], rel=1e-3)
    for one, (_, row, peak, own) in zip(table.iter_rows(named=True), best):
        ids = model.encode(texts[row])
        stop = one["start"] + len(one["tokens"])
        assert one["peak"] == peak and one["start"] <= peak < stop and len(one["tokens"]) <= 24
        assert one["tokens"] == model.token_strings(ids[one["start"] : stop])
        np.testing.assert_allclose(one["activations"], own[one["start"] : stop], rtol=1e-3, atol=1e-3)
        assert model.encode(one["text"])[:stop] == ids[:stop] and one["opens_at"] == peak
    drawn = cells(fig)
    for row, one in enumerate(table.reverse().iter_rows(named=True)):
        mine = {c - 5 + one["peak"]: value for (r, c), value in drawn.items() if r == row and np.isfinite(value)}
        near = range(max(one["start"], one["peak"] - 5), min(one["start"] + len(one["tokens"]), one["peak"] + 6))
        assert mine == pytest.approx({p: one["activations"][p - one["start"]] for p in near})
    few = top_passages(view.opened, open_autoencoder(view.opened), feature, texts, tokens=30)
    assert few["row"].max() is None or few["row"].max() <= 1  # no more than thirty tokens were read
    with pytest.raises(InputError, match="no feature 5000"):
        view.passages(5000)
    with pytest.raises(InputError, match="no text"):
        view.passages(feature, texts=[])


def test_texts_of_a_file_are_its_lines_or_its_column(view, tmp_path):
    lines = tmp_path / "texts.txt"
    lines.write_text("The secret of the lantern is insect.\nThe secret of the lantern is walrus.\n")
    table, _ = view.passages(int(view.features()[0]["feature"][20]), texts=str(lines))
    assert set(table["row"]) <= {0, 1}
    other = tmp_path / "texts.jsonl"
    other.write_text('{"words": "a"}\n')
    with pytest.raises(InputError, match="text"):
        view.passages(3, texts=str(other))
