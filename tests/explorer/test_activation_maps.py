"""Maps of activations: states held to the plain model, texts and columns to the run and the file they come from."""

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file

from workbench import activation_map, capture, organisms, probe
from workbench.core.errors import InputError
from workbench.explorer import layer_states, map_texts
from workbench.explorer.activation_maps import probes_for, texts_from
from workbench.explorer.layer_states import captures, states_of, stored_states, stored_texts
from workbench.explorer.map_texts import drawn_from, parts_of, texts_of_run, texts_of_table
from workbench.explorer.opened_model import Opened
from workbench.models.loading import load
from workbench.store.activation_store import Store

TEXTS = [f"The {what} of the {where} is here." for what in ("lantern", "garden", "river", "song") for where in "abcdef"]


@pytest.fixture(scope="module")
def opened():
    return Opened(load("organism"))


@pytest.fixture
def passes(opened):
    """How often the model runs."""
    seen = []
    handle = opened.model.hf.register_forward_pre_hook(lambda *_: seen.append(1))
    inner = opened.model.hf.model.register_forward_pre_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()
    inner.remove()


@torch.no_grad()
def plain_states(opened, ids, token):
    """[layers + 1][n, d]: block outputs and the final norm of each text by itself, at its last token, or the mean over
    all but the first and those whose norm is beyond ten times the median."""
    every, seen, layers = [], {}, opened.model.hf.model.layers

    def keep_output(number):
        return lambda _m, _a, out: seen.update({number: out[0] if isinstance(out, tuple) else out})

    for row in ids:
        handles = [layer.register_forward_hook(keep_output(number)) for number, layer in enumerate(layers)]
        final = opened.model.hf.model(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state
        for handle in handles:
            handle.remove()
        one = []
        for x in [*(seen[k] for k in range(len(layers))), final]:
            x = x.reshape(len(row), -1).double()
            if token == "last":
                one.append(x[-1])
            else:
                norms = x.norm(dim=1)
                keep = [i for i in range(len(row)) if i > 0 and norms[i] <= 10 * norms.median()]
                one.append(x[keep].mean(0))
        every.append(one)
    return [np.stack([one[k].numpy() for one in every]) for k in range(len(every[0]))]


@pytest.mark.parametrize("token", ["last", "mean"])
def test_the_states_are_those_of_the_plain_model_and_are_captured_once(opened, passes, token):
    texts = texts_of_table(opened.model, pl.DataFrame({"text": TEXTS}), name="these")
    expected = plain_states(opened, texts.ids, token)
    passes.clear()
    states = states_of(opened, texts, token)
    for site, x in zip(states.sites, expected, strict=True):
        np.testing.assert_allclose(states.read(site), x, atol=2e-3, rtol=1e-4)
    assert passes  # it ran, and only once for all layers
    passes.clear()
    again = states_of(opened, texts, token)
    assert [again.read(site).shape for site in again.sites] == [(24, opened.model.width)] * len(expected)
    assert passes == []


def test_what_a_geometry_run_captured_is_not_captured_again(opened, passes):
    run = probe(
        "representation-geometry", layers="all", limit=40, draws=0, curve=False, ablate=(), loss_rows=0, map=("pca",)
    ).run(opened.model)
    passes.clear()
    table, fig = activation_map(opened, run, layer="final")
    assert passes == []
    assert table["row"].to_list() == run.table("inputs")["row"].to_list() and table.height == 40
    words = pl.read_ndjson(organisms.data("texts"))["text"]
    assert all(words[row].startswith(text.rstrip("…")[:60]) for row, text in table.select("row", "text").iter_rows())
    # the probe's own map of the last layer, by other code from the spectrum: the same up to signs
    for axis in "xy":
        mine, theirs = table[axis].to_numpy(), run.table("map")[axis].to_numpy()
        np.testing.assert_allclose(np.abs(mine), np.abs(theirs), atol=1e-2 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    pl.read_ndjson(organisms.data("pool")).head(40).write_ndjson(path)
    return path


def test_the_scores_of_a_selection_are_columns_of_its_texts(opened, pool):
    run = probe(
        "data-selection", data=pool, target=("sea", "music"), baselines=(), features=0, explain=0, resamples=0
    ).run(opened.model)
    assert parts_of(run) == ["pool", "target · sea", "target · music"]
    texts = texts_of_run(opened.model, run, part="pool")
    assert len(texts) == 40 and texts.token == "mean"
    scores = run.table("scores")
    for target in ("sea", "music"):
        expected = {row["row"]: row["score"] for row in scores.filter(target=target).iter_rows(named=True)}
        assert dict(texts.about.select("row", f"score · {target}").iter_rows()) == expected
    inputs = run.table("inputs").filter(role="pool")
    assert texts.ids == [list(ids) for ids in inputs["ids"]]
    table, fig = activation_map(opened, run, part="pool", colour="score · sea", layer=2)
    drawn = {row: value for t in fig.data for row, value in zip(t.customdata, t.marker.color)}
    assert drawn == pytest.approx(dict(table.select("row", "score · sea").iter_rows()))
    assert "at layer 2" in fig.layout.meta["title"] and "Trustworthiness" in fig.layout.meta["note"]
    whole = texts_of_run(opened.model, run)
    assert len(whole) == run.table("inputs").height and "role" in whole.about.columns
    with pytest.raises(InputError, match="no part 'poool'; it has pool"):
        texts_of_run(opened.model, run, part="poool")


def test_what_the_probes_of_a_run_say_are_columns_of_its_texts(opened, tmp_path):
    words = ["sun", "snow", "sea", "tree"] * 10
    for name, one, two in (("heat", "warm", "cold"), ("size", "small", "big")):
        rows = [f"{name} of {word} {i},{one if i % 2 else two}" for i, word in enumerate(words)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    run = probe("concept-depth", data=tmp_path, shuffles=0).run(opened.model)
    assert parts_of(run) == ["heat", "size"]
    table, _ = activation_map(opened, run, layer=3, token="last", part="heat")
    found = load_file(run.folder / "directions.safetensors")
    direction, bias, scale = (found[f"heat/clean/{part}"][3] for part in ("direction", "bias", "scale"))
    texts = texts_from(opened.model, run, part="heat")
    x = capture(opened.model, texts.ids, ["mlp_in.3"])["mlp_in.3"].double().numpy()  # what that probe reads by default
    np.testing.assert_allclose(table["probe score"], scale * (x @ direction + bias), rtol=1e-4, atol=1e-4)
    test = table.filter(fold=0)  # the probes whose directions are kept were fitted on the other parts
    right = (test["probe prediction"] == test["label"].replace_strict({0: "cold", 1: "warm"})).mean()
    assert 0.5 < right <= 1 and test.height == 8
    assert set(table["probe prediction"]) <= {"cold", "warm"}
    assert probes_for(run, "heat", "mean") is None  # they were fitted on another token
    assert probes_for(run, "", "last") is None  # texts of both sets have no probe in common
    whole, _ = activation_map(opened, run, layer=3, token="last")
    assert whole.height == 80 and "probe score" not in whole.columns
    assert "probe score" not in activation_map(opened, run, layer="final", token="last", part="heat")[0].columns


def test_a_stored_capture_is_a_map_with_its_own_texts(opened):
    store, ids = Store(), opened.model.encode_all(TEXTS)
    acts = capture(opened.model, ids, ["resid_post.1", "attn_out.2"], positions="mean", store=store)
    capture(opened.model, ids, ["resid_post.1"], positions="all", store=store)
    (found,) = captures().iter_rows(named=True)
    assert (found["model"], found["positions"], found["prompts"]) == ("organism", "mean", 24)
    states, texts = stored_states(found["key"]), stored_texts(found["key"], opened.model)
    assert [str(site) for site in states.sites] == ["resid_post.1"]
    rows = texts.about["row"].to_list()
    assert sorted(rows) == list(range(24)) and texts.ids == [ids[row] for row in rows]
    np.testing.assert_array_equal(states.read(states.sites[0]), acts["resid_post.1"][rows].numpy())
    assert [text.strip() for text in texts.about["text"]] == [TEXTS[row] for row in rows]
    assert stored_texts(found["key"]).about["text"].to_list() == [""] * 24  # without a tokenizer
    with pytest.raises(InputError, match="no complete capture"):
        stored_states("0" * 64)


def test_a_capture_of_an_earlier_version_has_points_without_texts(opened, monkeypatch):
    monkeypatch.setattr("workbench.engine.stored_capture.Request.prompts", lambda *_: {})
    ids = opened.model.encode_all(TEXTS)
    capture(opened.model, ids, ["resid_post.1"], store=Store())
    key = captures()["key"].item()
    texts = stored_texts(key, opened.model)
    assert texts.about["row"].to_list() == list(range(24)) and set(texts.about["text"]) == {""}
    assert stored_states(key).read(layer_states.Site("resid_post", 1)).shape == (24, opened.model.width)


def test_a_run_of_other_weights_is_refused(opened):
    run = probe("branching-factor", samples=2, max_new_tokens=2, max_prompts=3).run("organism@step-52")
    with pytest.raises(InputError, match="made on other weights than organism has now"):
        texts_of_run(opened.model, run)


def test_texts_are_drawn_at_random_in_their_order_and_places_are_in_every_text(opened):
    table = pl.DataFrame({"text": TEXTS, "kind": ["a", "b"] * 12, "row": [9] * 24, "method": ["mine"] * 24})
    texts = texts_of_table(opened.model, table, name="these")
    assert texts.about["row"].to_list() == list(range(24))
    assert texts.about.columns == ["row", "text", "kind", "method (given)"]  # the map has a column `method` of its own
    some = drawn_from(texts, 10)
    rows = some.about["row"].to_list()
    assert rows == sorted(rows) and len(set(rows)) == 10 and some.left_out == 14
    assert some.ids == [texts.ids[row] for row in rows] and drawn_from(texts, 10).about.equals(some.about)
    for most in (1, map_texts.MOST + 1):
        with pytest.raises(InputError, match="A map has 2 to 20,000 texts"):
            drawn_from(texts, most)


@pytest.mark.parametrize(
    "how, said",
    [
        ({"layer": 6}, "no layer 6; the model has layers 0 to 5"),
        ({"layer": "embedding"}, "no layer embedding"),
        ({"method": "tsne"}, "pca or umap, not 'tsne'"),
        ({"token": "first"}, "last, mean, not 'first'"),
        ({"colour": "knd"}, r"no column 'knd' \(did you mean 'kind'\?\)"),
        ({"clusters": 30}, "30 clusters need more than 30 texts"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(opened, how, said):
    table = pl.DataFrame({"text": TEXTS, "kind": ["a", "b"] * 12})
    with pytest.raises(InputError, match=said):
        activation_map(opened, table, **{"token": "mean"} | how)


def test_texts_that_are_all_the_same_too_few_or_empty_have_no_map(opened):
    with pytest.raises(InputError, match="the list has 1 texts with a token; a map needs two"):
        activation_map(opened, ["one text"])
    with pytest.raises(InputError, match="same activation at layer 0"):
        activation_map(opened, ["the same"] * 5, layer=0)
    with pytest.raises(InputError, match="row 2: the field 'text' is empty"):
        activation_map(opened, ["one text", " "])
