"""What a selection says of features: where they fire, what they mean, how well they describe the model."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from tests.support.selection_pool import execute
from workbench.core.context import Context
from workbench.core.sample_tables import read_samples, texts


def test_explanations_are_the_activations_that_they_show(model, tiny_llama, material, tmp_path):
    from sae_lens import SAE

    run = execute(model, material, tmp_path / "run")
    sae, inputs = SAE.load_from_disk(material / "sae"), run.table("inputs")
    passages = run.table("passages")
    assert passages.height and set(passages["feature"]) == set(run.table("features")["feature"])
    everything = []
    for ids, mask in inputs.filter(role="pool").select("ids", "mask").iter_rows():
        with torch.no_grad():
            z = sae.encode(model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0])
        everything.append(z * torch.tensor(mask)[:, None])
    for p in passages.filter(place=1).iter_rows(named=True):
        highest = max(float(z[:, p["feature"]].max()) for z in everything)
        assert p["activation"] == pytest.approx(highest, rel=2e-3)  # ties are broken to three digits
        assert p["activation"] == pytest.approx(float(everything[p["row"]][p["peak"], p["feature"]]), abs=1e-4)
        assert p["activations"][p["peak"] - p["start"]] == pytest.approx(p["activation"], abs=1e-5) and len(
            p["tokens"]
        ) == len(p["activations"])
    tokens = sum(int(z.any(1).sum()) for z in everything)  # copies count as often as they are in the pool
    for row in run.table("features").iter_rows(named=True):
        assert row["density"] == pytest.approx(sum(int((z[:, row["feature"]] > 0).sum()) for z in everything) / tokens)
    shared = run.table("shared")
    assert (shared["both"] <= shared["in_sample"] + 1e-12).all() and (
        shared["both"] <= shared["in_target"] + 1e-12
    ).all()
    best = run.table("selected").filter(target="sea")["row"][0]
    z = everything[best].double().sum(0) / int(sum(inputs["mask"][best]))
    for row in shared.filter(target="sea", row=best).iter_rows(named=True):
        assert row["in_sample"] == pytest.approx(float(z[row["feature"]]), abs=1e-5)
    quality = run.table("quality").row(0, named=True)
    assert quality["l0"] == pytest.approx(8) and quality["tokens"] == tokens
    assert quality["dead_fraction"] == pytest.approx(
        float(np.mean([not any(bool(z[:, f].any()) for z in everything) for f in range(512)]))
    )


def test_explained_variance_is_one_minus_the_share_that_is_lost(model, material, tmp_path):
    from sae_lens import SAE

    run = execute(model, material, tmp_path / "run", baselines=())
    sae, inputs = SAE.load_from_disk(material / "sae"), run.table("inputs").filter(role="pool")
    states = []
    for ids in inputs["ids"].to_list():
        with torch.no_grad():
            states.append(model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0][1:])
    x = torch.cat(states)
    lost = (x - sae(x)).double().pow(2).sum() / (x.double() - x.double().mean(0)).pow(2).sum()
    row = run.table("quality").row(0, named=True)
    assert row["tokens"] == len(x)
    assert row["explained_variance"] == pytest.approx(1 - float(lost), abs=1e-4)
    other = (
        execute(model, material, tmp_path / "other", baselines=(), chunk=7, max_tokens=40)
        .table("quality")
        .row(0, named=True)
    )
    assert other["explained_variance"] == pytest.approx(row["explained_variance"], abs=1e-6), (
        "parts and batches do not matter"
    )


def test_logit_effects_point_the_way_that_adding_the_feature_moves_the_logits(model, material):
    from workbench.sae import features
    from workbench.sae import load as sae

    made = sae.load(material / "sae")
    effect = features.logit_effect(model, made, [3], top=model.vocab_size).row(0, named=True)
    direction = made.directions()[3]
    gain = model.final_norm.weight
    expected = (direction * gain) @ model.unembed.weight.T
    assert effect["promoted_by"] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-4)
    torch.testing.assert_close(features.norm_gain(model), gain.detach().float(), atol=1e-5, rtol=1e-4)


def test_density_and_quality_count_all_tokens_when_only_the_last_makes_the_vector(model, material, tmp_path):
    mean, last = (
        execute(model, material, tmp_path / how, aggregate=how, baselines=(), features=500, passages=0, explain=0)
        for how in ("mean", "last")
    )
    for column in ("l0", "dead_fraction", "tokens", "explained_variance"):
        assert last.table("quality")[column][0] == pytest.approx(mean.table("quality")[column][0], abs=1e-6)
    pairs = mean.table("features").join(last.table("features"), on=["target", "feature"])
    assert pairs.height > 10
    np.testing.assert_allclose(pairs["density"], pairs["density_right"], atol=1e-12)


def test_an_autoencoder_that_does_not_describe_the_model_is_pointed_out(model, material, tmp_path):
    run = execute(model, material, tmp_path / "run", baselines=(), features=0, explain=0)
    assert run.summary["explained_variance"] < 0.5
    assert any("of the variance of these activations" in w and "cannot be trusted" in w for w in run.info["warnings"])


@pytest.mark.slow
def test_the_map_holds_the_samples_asked_for(model, material, tmp_path):
    threads = torch.get_num_threads()
    run = execute(model, material, tmp_path / "run", map_rows=20, baselines=(), explain=0, features=0)
    assert torch.get_num_threads() == threads and "material" not in run.info
    table = run.table("map")
    pool = texts(read_samples(material / "pool.jsonl", what="pool"))
    assert all(
        pool[row][:200] == text[:200] and len(text) <= 240 for row, text in table.select("row", "text").iter_rows()
    )
    assert table["row"].n_unique() == table.height == 20 and table.select(pl.col("x", "y").is_finite().all()).row(
        0
    ) == (True, True)


def test_the_report_of_an_autoencoder_counts_only_for_the_weights_it_was_trained_on(model, material, tmp_path):
    import shutil

    shutil.copytree(material / "sae", tmp_path / "sae")
    (tmp_path / "sae" / "quality.json").write_text(json.dumps({"loss_recovered": 0.9}))
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())

    def recovered(fingerprint, name):
        (tmp_path / "sae" / "cfg.json").write_text(
            json.dumps(cfg | {"metadata": cfg["metadata"] | {"model_fingerprint": fingerprint}})
        )
        run = execute(
            model,
            material,
            tmp_path / name,
            sae=str(tmp_path / "sae"),
            baselines=(),
            features=0,
            explain=0,
            resamples=0,
        )
        return run.table("quality")["loss_recovered_training"][0]

    assert recovered(model.fingerprint, "own") == 0.9 and recovered("0" * 64, "other") is None


def test_features_that_are_silent_in_the_pool_have_no_passages(model, material):
    from probes.data_selection.config import Config
    from probes.data_selection.contributions import lifts, target_features
    from probes.data_selection.explanations import explain
    from probes.data_selection.prototypes import of_targets
    from probes.data_selection.sample_vectors import open_reader
    from probes.data_selection.samples import tokenize

    table = pl.DataFrame({"text": ["The boat is near the sea."] * 2})
    pool = tokenize(model, table, what="pool")
    reader = open_reader(model, Config(sae=str(material / "sae"), baselines=()), Context())
    targets = of_targets(reader, {"sea": pool}, {"sea": table})
    silent = {"top value": np.zeros((1, 2), np.float32), "top row": np.array([[0, 1]])}
    silent |= {"parts": np.zeros((1, 512)), "fired": np.ones(512), "tokens": np.array([10.0, 10.0, 2.0])}
    lifted = [lifts(target_features(reader, pool, targets.center(0)), silent, 0)]
    found = explain(reader, pool, targets, [np.array([0])], [3], silent, lifted)
    assert found["passages"].height == 0 and found["effects"].height == 1 and found["shared"].height > 0
