"""Autoencoders trained and judged without sinks, on a model without BOS whose first word carries a massive activation:
against plain Hugging Face in float64."""

import json

import numpy as np
import pytest
import torch

from tests.support import sink_model
from tests.support.sink_model import slow_sinks, slow_states
from workbench.cli.main import run as command
from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.sae import load as saes
from workbench.sae import train as train_sae
from workbench.sae.quality import quality
from workbench.sae.train import Feed, SaeRecipe, train, windows

LAYER = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sink_model.save(tmp_path_factory.mktemp("sinks") / "gpt2")


@pytest.fixture(scope="module")
def model(folder):
    return load(str(folder))


@pytest.fixture(scope="module")
def texts():
    return [*sink_model.texts(90, low=8), *(f"{text} sea dog cat ball" for text in sink_model.texts(10, seed=1, low=8))]


@pytest.fixture(scope="module")
def ids(model, texts):
    return windows(model, texts, 64)


@pytest.fixture(scope="module")
def ordinary(folder, ids):
    """Of every text, the states [tokens, d] that are no sinks and all states."""
    out = []
    for states in slow_states(folder, ids):
        x = states[LAYER]
        out.append((x[~slow_sinks(np.linalg.norm(x, axis=1))], x))
    return out


def short(**options):
    values = {"site": f"resid_post.{LAYER}", "width": "4x", "k": 6, "tokens": 128 * 60, "batch": 128, "lr": 3e-3}
    return SaeRecipe(**values | options)


@pytest.fixture(scope="module")
def trained(model, ids, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    return place, {how: train(model, ids, place / how, short(sinks=how)) for how in ("leave_out", "keep")}


def test_one_massive_token_makes_a_poor_autoencoder_look_perfect_and_no_longer_does(model, ids, trained):
    place, report = trained
    assert report["keep"]["explained_variance"] > 0.99
    kept = saes.load(place / "keep")
    honest = quality(model, kept, ids[:30])
    assert honest["explained_variance"] < 0.6, "of the text it explains far less"
    own = report["leave_out"]
    assert own["explained_variance"] > honest["explained_variance"] + 0.1 and own["explained_variance"] < 0.99
    assert honest["dead_fraction"] > 2 * quality(model, saes.load(place / "leave_out"), ids[:30])["dead_fraction"]


@pytest.mark.parametrize("how", ["leave_out", "keep"])
def test_the_report_is_that_of_the_slow_computation(folder, model, ids, ordinary, trained, how):
    made = saes.load(trained[0] / how)
    some = range(90, 100)
    report = quality(model, made, [ids[i] for i in some], sinks=how)
    x = np.concatenate([ordinary[i][0 if how == "leave_out" else 1] for i in some])
    inner = made.inner.to(torch.float64)
    z = inner.encode(torch.from_numpy(x))
    lost = float((torch.from_numpy(x) - inner.decode(z)).pow(2).sum())
    inner.to(torch.float32)
    assert report["tokens"] == len(x)
    assert report["explained_variance"] == pytest.approx(1 - lost / ((x - x.mean(0)) ** 2).sum(), abs=1e-4)
    assert report["l0"] == pytest.approx(float((z > 0).sum()) / len(x), rel=1e-3)
    assert report["dead_fraction"] == pytest.approx(float((z > 0).sum(0).eq(0).double().mean()), abs=0.01)
    left_out = sum(len(ordinary[i][1]) - len(ordinary[i][0]) for i in some)
    assert left_out >= 20, "the first word of each, and a word of massive norm inside"
    assert (report["sinks_left_out"], report["texts_with_sinks"]) == ((left_out, 10) if how == "leave_out" else (0, 0))


def test_sinks_stay_as_they_are_where_the_reconstruction_is_spliced_in(folder, model, ids, ordinary, trained):
    """The loss by hand: a hook that replaces the tokens that are no sinks, one text at a time."""
    made, some = saes.load(trained[0] / "leave_out"), ids[90:96]
    report = quality(model, made, some)
    block = model.hf.transformer.h[LAYER]

    def loss(change):
        total, n = 0.0, 0
        for row, (_, x) in zip(some, ordinary[90:96]):
            sinks = torch.from_numpy(slow_sinks(np.linalg.norm(x, axis=1)))

            def hook(_module, _args, output, sinks=sinks):
                x = output if isinstance(output, torch.Tensor) else output[0]
                new = torch.where(sinks[None, :, None], x, change(x[0])[None])
                return new if isinstance(output, torch.Tensor) else (new, *output[1:])

            handle = block.register_forward_hook(hook)
            with torch.no_grad():
                scores = model.hf(torch.tensor([row])).logits[0].double().log_softmax(-1)
            handle.remove()
            total -= float(scores[:-1][torch.arange(len(row) - 1), row[1:]].sum())
            n += len(row) - 1
        return total / n

    assert report["loss_clean"] == pytest.approx(loss(lambda x: x), abs=1e-4)
    assert report["loss_zeros"] == pytest.approx(loss(torch.zeros_like), abs=1e-4)
    assert report["loss_spliced"] == pytest.approx(loss(made.reconstruct), abs=1e-4)


def test_only_tokens_that_are_no_sinks_are_fed_and_every_batch_is_full(model, ids, ordinary, monkeypatch):
    monkeypatch.setattr(train_sae, "BLOCK_BYTES", sink_model.WIDTH * 4 * 600)
    recipe = short(batch=16)
    feed = Feed(model, ids, recipe)
    assert len(feed.blocks) > 2
    taken = feed.batches()
    epoch = [next(taken) for _ in range(sum(feed.steps))]
    everything = torch.from_numpy(np.concatenate([own for own, _ in ordinary])).float()
    assert all(len(batch) == 16 for batch in epoch)
    distance = torch.cdist(torch.cat(epoch), everything, compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distance.min(1).values.max()) < 1e-3
    assert len(set(distance.min(1).indices.tolist())) > 0.95 * (len(everything) - 16 * len(feed.blocks))
    assert sum(feed.sinks.values()) == sum(len(x) - len(own) for own, x in ordinary)
    for skip in (3, sum(feed.steps) - 1):
        torch.testing.assert_close(next(Feed(model, ids, recipe).batches(skip)), epoch[skip], atol=1e-4, rtol=1e-5)


def test_what_was_left_out_is_recorded_and_survives_a_stop(model, ids, trained, tmp_path):
    place, report = trained
    assert json.loads((place / "leave_out" / "recipe.json").read_text())["recipe"]["sinks"] == "leave_out"
    for how in ("leave_out", "keep"):
        assert json.loads((place / how / "cfg.json").read_text())["metadata"]["sinks"] == how
        assert json.loads((place / how / "quality.json").read_text())["sinks"] == how
    assert report["leave_out"]["sinks_left_out_training"] >= 95 and report["keep"]["sinks_left_out_training"] == 0

    def stop(done, total, label):
        if done >= 128 * 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, ids, tmp_path / "parts", short(), progress=stop)
    again = train(model, ids, tmp_path / "parts", short())
    assert again["sinks_left_out_training"] == report["leave_out"]["sinks_left_out_training"]


def test_a_training_from_before_kept_its_sinks(model, ids, trained, tmp_path):
    import shutil

    old = shutil.copytree(trained[0] / "keep", tmp_path / "old")
    recipe = json.loads((old / "recipe.json").read_text())
    del recipe["recipe"]["sinks"]
    (old / "recipe.json").write_text(json.dumps(recipe))
    assert train(model, ids, old, short(sinks="keep")) == trained[1]["keep"]
    with pytest.raises(InputError, match="holds another training"):
        train(model, ids, old, short())


def test_the_command_takes_the_choice_and_refuses_another_before_the_model_is_loaded(
    folder, texts, tmp_path, capsys, monkeypatch
):
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    options = ["train-sae", "--site", f"resid_post.{LAYER}", "--data", str(tmp_path / "texts.txt"), "--width", "2x"]
    options += ["--k", "4", "--tokens", "1k", "--batch", "128"]
    assert command([*options, "--model", "nowhere", "--out", str(tmp_path / "no"), "--sinks", "drop"]) == 2
    assert "sinks is 'drop'; choose leave_out or keep" in capsys.readouterr().err
    found = {}
    for how in ("leave_out", "keep"):
        more = ["--model", str(folder), "--out", str(tmp_path / how), "--sinks", how, "--json"]
        assert command([*options, *more]) == 0
        found[how] = json.loads(capsys.readouterr().out)
    assert found["leave_out"]["sinks_left_out"] >= found["leave_out"]["texts"] and found["keep"]["sinks_left_out"] == 0
    assert command([*options, "--model", str(folder), "--out", str(tmp_path / "said")]) == 0
    assert "Left out as sinks (massive activations)" in " ".join(capsys.readouterr().out.split())


def test_another_word_is_refused_from_python(model, ids, tmp_path):
    with pytest.raises(InputError, match="sinks is 'drop'; choose leave_out or keep"):
        train(model, ids, tmp_path / "sae", short(sinks="drop"))
