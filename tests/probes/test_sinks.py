"""sinks=leave_out|keep in the probes, on a model without BOS whose first word carries a massive activation: with the
default its effects are gone, with keep they are there."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest

from tests.support import sink_model
from tests.support.sink_model import slow_sinks, slow_states
from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.runs import execution as runs

LAYERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sink_model.save(tmp_path_factory.mktemp("sinks") / "gpt2")


@pytest.fixture(scope="module")
def model(folder):
    return load(str(folder))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def execute(probe, model, data, **config):
    return runs.execute(probe, model, data=data, config=config)


def rank_of(x):
    """RankMe of features [n, d]: exp of the entropy of the covariance's eigenvalues."""
    values = np.linalg.eigvalsh(np.cov(x.T))
    p = values[values > 0] / values[values > 0].sum()
    return float(np.exp(-(p * np.log(p)).sum()))


# geometry


@pytest.fixture(scope="module")
def passages(tmp_path_factory):
    return write(tmp_path_factory.mktemp("texts") / "texts.jsonl", [{"text": t} for t in sink_model.texts(60)])


GEOMETRY = {"layers": "all", "final": "residual", "draws": 0, "curve": False, "ablate": (), "loss_rows": 0, "map": ()}


def test_the_rank_of_means_is_that_of_the_text_and_not_of_the_first_word(folder, model, passages):
    default = execute("representation-geometry", model, passages, **GEOMETRY, token="mean")
    kept = execute("representation-geometry", model, passages, **GEOMETRY, token="mean", sinks="keep")
    states = slow_states(folder, sink_model.ids_of(folder, sink_model.texts(60)))
    left_out = 0
    for layer in range(LAYERS):
        sinks = [slow_sinks(np.linalg.norm(s[layer], axis=1)) for s in states]
        left_out += sum(int(found.sum()) for found in sinks)
        expected = rank_of(np.stack([s[layer][~found].mean(0) for s, found in zip(states, sinks)]))
        with_them = rank_of(np.stack([s[layer].mean(0) for s in states]))
        assert default.table("layers")["rankme"][layer] == pytest.approx(expected, rel=1e-3)
        assert kept.table("layers")["rankme"][layer] == pytest.approx(with_them, rel=1e-3)
        assert with_them < 1.2 and expected > 10
    assert default.summary["sinks_left_out"] == default.info["counters"]["sinks_left_out"] == left_out
    assert default.summary["texts_with_sinks"] == 60
    assert not any("sink" in key for key in kept.summary)


@pytest.mark.parametrize("probe", ["representation-geometry", "concept-depth"])
def test_a_position_that_is_a_sink_is_read_counted_and_warned_of(model, tmp_path, passages, probe):
    data, config = passages, GEOMETRY
    if probe == "concept-depth":
        data, config = concepts(tmp_path), DEPTH
    found = execute(probe, model, data, **config, token=0)
    kept = execute(probe, model, data, **config, token=0, sinks="keep")
    assert found.table("layers").equals(kept.table("layers")), "what is asked for is read"
    assert found.summary["sinks_read"] == 60 * LAYERS and found.summary["texts_with_sinks"] == 60
    assert any(
        "token=0 is a sink in 60 of 60 texts" in said and "3 of 3 layers" in said for said in found.info["warnings"]
    )
    assert not any("sink" in said for said in kept.info["warnings"])
    elsewhere = execute(probe, model, data, **config, token=-1)
    assert not any("sink" in said for said in elsewhere.info["warnings"]) and "sinks_read" not in elsewhere.summary


# concept depth

DEPTH = {"site": "resid_post", "shuffles": 0, "causal": "off", "draws": 100, "standardize": False}


def concepts(tmp_path):
    rows = [{"text": text, "label": n % 2} for n, text in enumerate(sink_model.texts(60))]
    return write(tmp_path / "set.jsonl", rows)


def test_the_features_of_a_concept_are_means_without_each_layer_s_own_sinks(folder, model, tmp_path):
    from probes.concept_depth.config import Config
    from probes.concept_depth.layer_features import read_features
    from workbench.core.context import Context

    some = [*sink_model.texts(8), "dog cat ball sea tree park dog"]
    ids = sink_model.ids_of(folder, some)
    states = slow_states(folder, ids)
    context = Context()
    found = read_features(model, ids, Config(site="resid_post", token="mean"), context)
    kept = read_features(model, ids, Config(site="resid_post", token="mean", sinks="keep"), Context())
    counted = []
    for layer in range(LAYERS):
        sinks = [slow_sinks(np.linalg.norm(s[layer], axis=1)) for s in states]
        counted.append([int(mask.sum()) for mask in sinks])
        np.testing.assert_allclose(
            found[layer], np.stack([s[layer][~mask].mean(0) for s, mask in zip(states, sinks)]), atol=1e-4
        )
        np.testing.assert_allclose(kept[layer], np.stack([s[layer].mean(0) for s in states]), atol=1e-3)
    assert context.counters["sinks_left_out"] == np.sum(counted) > 9 * LAYERS
    run = execute("concept-depth", model, concepts(tmp_path), **DEPTH, token="mean")
    assert run.summary["sinks_left_out"] >= 60 * LAYERS and run.summary["texts_with_sinks"] == 60


# ids of runs


def test_only_runs_whose_numbers_the_key_changes_have_another_id():
    model = types.SimpleNamespace(name="organism", fingerprint="f", tokenizer_fingerprint="t", dtype="float32")

    def config_of(probe, **config):
        return runs.identify(runs.prepare(probe, config), model, seed=0)["config"]

    for probe in ("representation-geometry", "concept-depth"):
        assert "sinks" not in config_of(probe) and "sinks" not in config_of(probe, sinks="keep")
        assert config_of(probe, token="mean")["sinks"] == "leave_out"
        assert "sinks" not in config_of(probe, token="mean", sinks="keep"), "as it was before the key"
    assert config_of("data-selection")["sinks"] == "leave_out"
    assert "sinks" not in config_of("data-selection", sinks="keep")


@pytest.mark.parametrize("probe", ["representation-geometry", "concept-depth", "data-selection"])
def test_another_word_is_refused(probe):
    with pytest.raises(InputError, match="sinks = 'drop' is wrong"):
        runs.prepare(probe, {"sinks": "drop"})


@pytest.mark.parametrize("probe", ["representation-geometry", "concept-depth", "data-selection"])
def test_single_tokens_among_longer_texts_are_warned_of_and_not_where_sinks_are_kept(model, tmp_path, probe):
    some = [*sink_model.texts(12, low=8), "dog", "cat"]
    rows = [{"text": text, "label": n % 2} for n, text in enumerate(some)]
    data, config = write(tmp_path / "set.jsonl", rows), GEOMETRY | {"token": "mean"}
    if probe == "concept-depth":
        config = DEPTH | {"token": "mean", "split": "code"}
    if probe == "data-selection":
        target = write(tmp_path / "t.jsonl", [{"text": "dog cat ball"}])
        config = {"sae": "none", "target": (str(target),), "resamples": 0, "k": 3, "baselines": ("hidden",)}
    for sinks, warned in (("leave_out", True), ("keep", False)):
        found = execute(probe, model, data, **config, sinks=sinks).info["warnings"]
        assert any("2 of 14" in said and "a single token" in said for said in found) == warned, found
    longer = write(tmp_path / "set.jsonl", rows[:-2])
    assert not any("single token" in said for said in execute(probe, model, longer, **config).info["warnings"])
    if probe == "representation-geometry":  # what is warned of: two words decide the rank of the means
        alone = write(tmp_path / "both.jsonl", rows)
        ranks = [execute(probe, model, path, **config).table("layers")["rankme"][0] for path in (longer, alone)]
        assert ranks[0] > 5 and ranks[1] < 1.2
        last = execute(probe, model, alone, **config | {"token": "last"})
        assert any("2 of 14 texts are a single token" in said for said in last.info["warnings"])
