"""The directions that a run leaves: applied by hand they give the probes' scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from probes.concept_depth import linear_probe
from probes.concept_depth.chosen_sets import read_sets
from probes.concept_depth.config import Config
from probes.concept_depth.directions import coefficients, unit_directions
from probes.concept_depth.layer_features import read_features
from probes.concept_depth.set_splits import split
from workbench.core.context import Context
from workbench.models.loading import load
from workbench.runs import execution as runs
from workbench.runs.verify import verify

SHORT = {"site": "resid_post", "split": "paper", "shuffles": 0, "control_tasks": 0, "causal": "off", "draws": 100}


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture
def concepts(tmp_path):
    words = ["sun", "moon", "cat", "dog", "tree", "sea", "boat", "cake"]
    for name, good, bad in (("joy", "glad", "sad"), ("size", "big", "small")):
        rows = [
            f"{name} {i}: the {w} is {good if i % 2 else bad},{'high' if i % 2 else 'low'}"
            for i, w in enumerate(words * 5)
        ]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.parametrize("more", [{}, {"standardize": True, "split": "kfold", "folds": 4, "token": "mean"}])
def test_a_direction_applied_by_hand_gives_the_probes_scores(model, concepts, more):
    run = runs.execute("concept-depth", model, data=concepts / "joy.csv", config=SHORT | more)
    found = load_file(run.folder / "directions.safetensors")
    assert sorted(found) == [f"joy/clean/{part}" for part in ("bias", "direction", "scale")]
    config = Config(**SHORT | more)
    (concept,) = read_sets(config, concepts / "joy.csv")
    features = read_features(model, model.encode_all(concept.texts), config, Context())
    inputs = run.table("inputs")
    train = np.array([row["split"] == "train" if more == {} else None for row in inputs.iter_rows(named=True)])
    if more:
        tests, _ = split(concept, "kfold", rng=Context().rng("split joy"), folds=4, groups="auto")
        train = ~np.isin(np.arange(len(concept)), tests[0])
    refit = linear_probe.fit(
        [x[train.astype(bool)] for x in features], concept.labels[train.astype(bool)], standardize=config.standardize
    )
    expected = refit.scores(features)
    for layer, x in enumerate(features):
        direction, bias, scale = (found[f"joy/clean/{part}"][layer] for part in ("direction", "bias", "scale"))
        distance = x.double().numpy() @ direction + bias
        assert np.linalg.norm(direction) == pytest.approx(1)
        assert scale * distance == pytest.approx(expected[layer], abs=1e-6 * np.abs(expected[layer]).max())
        if not more:
            test = ~train.astype(bool)
            accuracy = ((distance > 0) == (concept.labels == 1))[test].mean()
            assert accuracy == run.table("layers").filter(layer=layer)["accuracy"].item()


def test_the_file_says_what_it_is_of_and_belongs_to_the_run(model, concepts):
    run = runs.execute("concept-depth", model, data=concepts, config=SHORT | {"noise": True})
    with safe_open(run.folder / "directions.safetensors", "numpy") as file:
        about, keys = json.loads(file.metadata()["about"]), set(file.keys())
        assert file.get_tensor("size/noise/direction").shape == (model.n_layers, model.width)
    assert {key.rpartition("/")[0] for key in keys} == {f"{s}/{c}" for s in ("joy", "size") for c in ("clean", "noise")}
    assert (about["site"], about["token"], about["c"]) == ("resid_post", "last", 1.0)
    assert about["layers"] == list(range(model.n_layers)) and about["model"]["fingerprint"] == model.fingerprint
    sets = {row["dataset"]: [row["class0"], row["class1"]] for row in run.table("sets").iter_rows(named=True)}
    assert about["classes"] == sets and sets["joy"] == ["high", "low"]
    assert "directions.safetensors" in run.files and verify(run.id).status == "ok"


def test_a_probe_that_has_found_nothing_has_no_direction():
    probes = linear_probe.fit([np_zeros()], np.array([0, 1, 1]))
    found = unit_directions(coefficients(probes))
    assert found["direction"].tolist() == [[0.0, 0.0]] and found["scale"].tolist() == [1.0]
    assert found["bias"][0] == pytest.approx(float(probes.intercept[0])) == pytest.approx(np.log(2))


def np_zeros():
    import torch

    return torch.zeros(3, 2)
