"""Training a sparse autoencoder: order, resumption, quality, what is written, what is refused."""

import json

import numpy as np
import pytest
import torch

from workbench import organisms
from workbench.cli.main import run as command
from workbench.core.errors import InputError
from workbench.engine.capture import capture
from workbench.models.loading import load
from workbench.sae import load as saes
from workbench.sae import train as train_sae
from workbench.sae.quality import quality, text_loss
from workbench.sae.train import Feed, SaeRecipe, train, windows
from workbench.store.activation_store import Store

WORDS = (
    "the a little big dog cat ball tree park sun mom dad Tom Lily ran saw liked found sat played and with near".split()
)


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def ids(model):
    rng = np.random.default_rng(0)
    return windows(model, [" ".join(rng.choice(WORDS, rng.integers(8, 24))) + "." for _ in range(80)], 64)


def short(**options):
    return SaeRecipe(**{"site": "resid_post.2", "width": "4x", "k": 8, "tokens": 128 * 30, "batch": 128} | options)


def test_every_counted_token_is_fed_once_per_epoch_and_skipping_is_the_same_as_going_there(model, ids, monkeypatch):
    monkeypatch.setattr(train_sae, "BLOCK_BYTES", 64 * 4 * 600)
    recipe = short(batch=16)
    feed = Feed(model, ids, recipe)
    assert len(feed.blocks) > 2 and sorted(sum(feed.blocks, [])) == list(range(len(ids))), "every text is in one block"
    steps = sum(feed.steps)
    taken = feed.batches()
    epoch = [next(taken) for _ in range(steps)]
    everything = capture(model, ids, ["resid_post.2"], positions="all")["resid_post.2"][
        torch.tensor([t != model.bos_id for row in ids for t in row])
    ]
    found = torch.cat(epoch)
    assert len(everything) - len(feed.blocks) * 16 < len(found) <= len(everything)
    distance = torch.cdist(found.double(), everything.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distance.min(1).values.max()) < 1e-3, "only activations of counted tokens are fed"
    again = [next(taken) for _ in range(5)]
    assert not torch.equal(again[0], epoch[0]), "the next epoch has an order of its own"
    for skip in (0, 3, steps - 1, steps, steps + 4):
        torch.testing.assert_close(
            next(Feed(model, ids, recipe).batches(skip)), (epoch + again)[skip], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("architecture", train_sae.ARCHITECTURES)
def test_training_finds_structure_and_writes_what_sae_lens_reads(tmp_path, architecture):
    from sae_lens import SAE

    model = load("organism")
    texts = [json.loads(line)["text"] for line in organisms.data("texts").read_text().splitlines()[:200]]
    ids = windows(model, texts, 64)
    report = train(model, ids, tmp_path / "sae", short(architecture=architecture, lr=3e-3), dtype="bfloat16")
    made = SAE.load_from_disk(tmp_path / "sae", dtype="float32")
    assert (
        made.cfg.metadata.hook_name == "blocks.2.hook_resid_post"
        and made.cfg.metadata.model_fingerprint == model.fingerprint
    )
    assert made.cfg.architecture() == {"batchtopk": "jumprelu"}.get(architecture, architecture)
    assert json.loads((tmp_path / "sae" / "cfg.json").read_text())["dtype"] == "bfloat16"
    assert {p.name for p in (tmp_path / "sae").iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
        "recipe.json",
        "quality.json",
    }
    assert 0 < report["l0"] and report["explained_variance"] > 0.2 and report["loss_recovered"] > 0.5
    assert saes.check_fits(saes.load(tmp_path / "sae"), model) == []


@pytest.mark.parametrize("blocks", ("one block", "several blocks"))
def test_a_stopped_training_goes_on_to_the_same_weights(model, ids, tmp_path, monkeypatch, blocks):
    if blocks == "several blocks":  # as any training on a real model has
        monkeypatch.setattr(train_sae, "BLOCK_BYTES", 64 * 4 * 600)

    class Stop(Exception):
        pass

    def stop(done, total, label):
        if done >= 128 * 20:
            raise Stop

    whole = train(model, ids, tmp_path / "whole", short(), save_every=5)
    with pytest.raises(Stop):
        train(model, ids, tmp_path / "parts", short(), save_every=5, progress=stop)
    assert (tmp_path / "parts" / "training.safetensors").is_file() and not (
        tmp_path / "parts" / "quality.json"
    ).exists()
    resumed = train(model, ids, tmp_path / "parts", short(), save_every=5)
    assert resumed["explained_variance"] == pytest.approx(whole["explained_variance"], abs=1e-6)
    for name, value in saes.load(tmp_path / "whole").inner.state_dict().items():
        torch.testing.assert_close(saes.load(tmp_path / "parts").inner.state_dict()[name], value, atol=1e-6, rtol=1e-5)
    stamp = (tmp_path / "parts" / "sae_weights.safetensors").stat().st_mtime_ns
    assert train(model, ids, tmp_path / "parts", short()) == resumed
    assert (tmp_path / "parts" / "sae_weights.safetensors").stat().st_mtime_ns == stamp, (
        "a finished training is not repeated"
    )
    with pytest.raises(InputError, match="holds another training"):
        train(model, ids, tmp_path / "parts", short(seed=1))


def test_the_report_is_what_the_slow_computation_gives(model, ids, tmp_path):
    train(model, ids, tmp_path / "sae", short())
    made = saes.load(tmp_path / "sae")
    some = ids[:6]
    report = quality(model, made, some)
    states, clean, spliced, zeros, n = [], 0.0, 0.0, 0.0, 0
    block = model.hf.model.layers[2]

    def loss(row, change):
        def hook(_module, _args, output):
            x = output if isinstance(output, torch.Tensor) else output[0]
            new = torch.cat([x[:, :1], change(x[:, 1:])], dim=1)  # BOS stays
            return new if isinstance(output, torch.Tensor) else (new, *output[1:])

        handle = block.register_forward_hook(hook)
        with torch.no_grad():
            value = float(model.hf(torch.tensor([row]), labels=torch.tensor([row])).loss) * (len(row) - 1)
        handle.remove()
        return value

    for row in some:
        with torch.no_grad():
            states.append(model.hf(torch.tensor([row]), output_hidden_states=True).hidden_states[3][0][1:])
        clean, n = clean + loss(row, lambda x: x), n + len(row) - 1
        spliced += loss(row, lambda x: made.inner(x))
        zeros += loss(row, torch.zeros_like)
    x = torch.cat(states)
    z = made.inner.encode(x)
    assert report["l0"] == pytest.approx(float((z > 0).sum(1).double().mean()))
    lost = (x - made.inner.decode(z)).double().pow(2).sum() / (x.double() - x.double().mean(0)).pow(2).sum()
    assert report["explained_variance"] == pytest.approx(1 - float(lost), abs=1e-5)
    assert report["dead_fraction"] == pytest.approx(float((z == 0).all(0).double().mean()))
    assert (report["loss_clean"], report["loss_spliced"], report["loss_zeros"]) == pytest.approx(
        (clean / n, spliced / n, zeros / n), abs=1e-4
    )
    assert report["loss_recovered"] == pytest.approx((zeros - spliced) / (zeros - clean), abs=1e-3)
    assert text_loss(model, some, max_tokens=30) == pytest.approx(clean / n, abs=1e-4)


def test_scaling_and_unit_directions_are_folded_into_the_weights(model, ids, tmp_path):
    train(model, ids, tmp_path / "sae", short())
    made = saes.load(tmp_path / "sae")
    torch.testing.assert_close(made.inner.W_dec.norm(dim=1), torch.ones(made.d_sae), atol=1e-5, rtol=0)
    assert made.inner.cfg.normalize_activations == "none" and made.inner.cfg.rescale_acts_by_decoder_norm is False


def test_with_a_store_the_activations_are_computed_once(model, ids, tmp_path, monkeypatch):
    monkeypatch.setattr(train_sae, "MEMORY_BYTES", 0)
    plain = train(model, ids, tmp_path / "plain", short())
    stored = train(model, ids, tmp_path / "stored", short(), store=Store(tmp_path / "store"))
    assert Store(tmp_path / "store").ls().height == 1
    assert stored["explained_variance"] == pytest.approx(plain["explained_variance"], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"site": "resid_post.9"}, "beyond the model"),
        ({"site": "logits"}, "not on logits"),
        ({"architecture": "topp"}, "not an architecture"),
        ({"k": 999}, "cannot be active"),
        ({"width": "wide"}, "must be a number of features"),
        ({"tokens": 5}, "fewer than one batch"),
        ({"batch": 100_000, "tokens": 200_000}, "fewer than one batch of 100000"),
    ],
)
def test_what_cannot_be_trained_is_refused_first(model, ids, tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        train(model, ids, tmp_path / "sae", short(**options))


def test_ctrl_c_keeps_the_step_that_was_reached_and_says_how_to_go_on(tiny_llama, model, tmp_path, capsys, monkeypatch):
    import os
    import signal

    rng = np.random.default_rng(1)
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(rng.choice(WORDS, 20)) for _ in range(60)))
    options = [
        "train-sae",
        "--model",
        str(tiny_llama),
        "--site",
        "resid_post.1",
        "--data",
        str(tmp_path / "texts.txt"),
        "--width",
        "2x",
        "--k",
        "4",
        "--tokens",
        "4k",
        "--batch",
        "128",
    ]
    from sae_lens.training.sae_trainer import SAETrainer

    plain = SAETrainer.step

    def step(self, batch):
        if self.n_training_steps == 12:
            os.kill(os.getpid(), signal.SIGINT)  # while a step is computed
        return plain(self, batch)

    monkeypatch.setattr(SAETrainer, "step", step)
    assert command([*options, "--out", str(tmp_path / "sae")]) == 130
    assert f"the same command goes on with the training in {tmp_path / 'sae'}" in capsys.readouterr().err
    from safetensors import safe_open

    with safe_open(tmp_path / "sae" / "training.safetensors", "pt") as kept:
        assert json.loads(kept.metadata()["counts"])["steps"] == 13
    monkeypatch.setattr(SAETrainer, "step", plain)
    assert (
        command([*options, "--out", str(tmp_path / "sae")])
        == command([*options, "--out", str(tmp_path / "whole")])
        == 0
    )
    one, other = (saes.load(tmp_path / name).inner.state_dict() for name in ("sae", "whole"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=1e-5)


def test_the_command_trains_reports_and_refuses(tiny_llama, tmp_path, capsys):
    rng = np.random.default_rng(1)
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(rng.choice(WORDS, 20)) for _ in range(60)))
    options = [
        "--model",
        str(tiny_llama),
        "--site",
        "resid_post.1",
        "--data",
        str(tmp_path / "texts.txt"),
        "--out",
        str(tmp_path / "sae"),
    ]
    assert (
        command(["train-sae", *options, "--width", "2x", "--k", "4", "--tokens", "4k", "--batch", "128", "--json"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["width"] == 128 and report["k"] == 4 and report["l0"] == pytest.approx(4)
    assert command(["train-sae", *options, "--tokens", "many"]) == 2
    assert "is not a number of tokens" in capsys.readouterr().err
