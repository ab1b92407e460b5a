"""Autoencoders of every kind: our sparse rows are what sae-lens computes, a wrong site or width is refused, sparsify is
read right."""

import json

import pytest
import torch
from safetensors.torch import save_file

from workbench.core.errors import InputError
from workbench.engine.capture import capture
from workbench.models.gated_mlp import gate_neurons
from workbench.models.loading import load
from workbench.models.sites import Site
from workbench.sae import load as sae

KINDS = ("topk", "topk scaled", "jumprelu", "standard", "gated")


def make(
    folder, kind="topk", *, d_in=64, d_sae=256, hook="blocks.2.hook_resid_post", seed=0, normalize="none", **metadata
):
    """A random autoencoder, saved by sae-lens."""
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    name, _, scaled = kind.partition(" ")
    cls, config = get_sae_class(name)
    extra = {"k": 8, "rescale_acts_by_decoder_norm": bool(scaled)} if name == "topk" else {}
    torch.manual_seed(seed)
    made = cls(
        config(
            d_in=d_in,
            d_sae=d_sae,
            normalize_activations=normalize,
            metadata=SAEMetadata(hook_name=hook, **metadata),
            **extra,
        )
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
        if name == "jumprelu":
            made.threshold.abs_()
    made.save_model(folder)
    return folder


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def activations(model):
    ids = [model.encode("Once upon a time there was a little dog."), model.encode("Lily likes cake.")]
    return capture(model, ids, ["resid_post.2"], positions="all")["resid_post.2"]


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_rows_are_what_sae_lens_encodes_and_decodes(tmp_path, kind, activations):
    from sae_lens import SAE

    made = sae.load(make(tmp_path / "sae", kind))
    reference = SAE.load_from_disk(tmp_path / "sae")
    expected = reference.encode(activations)
    rows = made.encode(activations)
    assert made.site == Site("resid_post", 2) and (made.d_in, made.d_sae) == (64, 256)
    assert made.k == (8 if kind.startswith("topk") else None)
    torch.testing.assert_close(rows.dense(), expected, atol=2e-6, rtol=1e-5)
    assert 0 < len(rows.value) == int((expected != 0).sum()) < expected.numel()
    torch.testing.assert_close(made.decode(rows), reference.decode(expected), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(made.reconstruct(activations), reference(activations), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", KINDS)
def test_reconstructions_are_those_of_sae_lens_in_every_normalisation_and_order(
    tmp_path, kind, normalize, activations, monkeypatch
):
    """Tokens are encoded in chunks, and another batch comes in between: each token is rebuilt with its own scale."""
    from sae_lens import SAE

    made = sae.load(make(tmp_path / "sae", kind, normalize=normalize))
    reference = SAE.load_from_disk(tmp_path / "sae")
    monkeypatch.setitem(sae.PRE_ACTIVATIONS, "cpu", 256 * 5)
    rows = made.encode(activations)
    made.encode(activations[:3] * 7)
    torch.testing.assert_close(rows.dense(), reference.encode(activations), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.decode(rows, activations), reference(activations), atol=1e-4, rtol=1e-4)
    if normalize != "none":
        with pytest.raises(InputError, match="needs the activations"):
            made.decode(rows)


def test_an_autoencoder_of_whole_heads_is_rebuilt_head_by_head(tmp_path):
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    cls, config = get_sae_class("topk")
    torch.manual_seed(0)
    cls(
        config(
            d_in=32, d_sae=64, k=4, reshape_activations="hook_z", metadata=SAEMetadata(hook_name="blocks.1.attn.hook_z")
        )
    ).save_model(tmp_path / "sae")
    x = torch.randn(9, 4, 8, generator=torch.Generator().manual_seed(0))
    made, reference = sae.load(tmp_path / "sae"), SAE.load_from_disk(tmp_path / "sae")
    torch.testing.assert_close(made.decode(made.encode(x), x), reference(x), atol=1e-5, rtol=1e-4)


def test_rows_do_not_depend_on_how_many_tokens_are_encoded_at_once(tmp_path, activations, monkeypatch):
    made = sae.load(make(tmp_path / "sae"))
    whole = made.encode(activations).dense()
    monkeypatch.setitem(sae.PRE_ACTIVATIONS, "cpu", 256 * 3)
    torch.testing.assert_close(made.encode(activations).dense(), whole, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shift", [0.0, -2.5])
@pytest.mark.parametrize("shape", [(40, 1024, 16), (7, 512, 32), (9, 768, 24), (5, 30, 4), (3, 8, 20), (0, 512, 8)])
def test_largest_is_the_full_search_without_what_is_not_positive(shape, shift):
    n, d, k = shape
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0)) + shift  # shifted down, few are above 0
    row, column, value = sae.largest(x, k)
    expected, place = x.topk(min(k, d), dim=-1)
    dense = torch.zeros(n, d).scatter(1, place, expected.clamp(min=0))
    found = torch.zeros(n, d)
    found[row, column] = value
    assert torch.equal(found, dense)
    assert bool((row.diff() >= 0).all()) and bool((value > 0).all()) and len(value) == int((dense > 0).sum())


def test_of_equal_activations_exactly_k_are_kept_and_the_first_ones():
    x = torch.zeros(4, 1024)
    x[0] = 1.0
    x[1, ::2] = 2.0
    x[1, 5], x[1, 7] = 3.0, 1.0
    x[2, 100:103] = 1.0
    row, column, value = sae.largest(x, 16)
    assert column[row == 0].tolist() == list(range(16))
    assert column[row == 1].tolist() == sorted([5, *range(0, 30, 2)]) and set(value[row == 1].tolist()) == {2.0, 3.0}
    assert column[row == 2].tolist() == [100, 101, 102] and not bool((row == 3).any())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [(3, 5), (3, slice(None))])
def test_a_token_whose_activations_are_not_numbers_is_refused_and_not_left_empty(tmp_path, kind, where, activations):
    made = sae.load(make(tmp_path / "sae", kind))
    broken = activations.clone()
    broken[where] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        made.encode(broken)
    with pytest.raises(InputError, match="NaN"):
        sae.neuron_rows(torch.cat([broken] * 8, 1), 4)


def test_a_sparsify_checkpoint_follows_the_formula_of_its_own_code(tmp_path, activations):
    g = torch.Generator().manual_seed(1)
    weights = {
        "encoder.weight": torch.randn(96, 64, generator=g),
        "encoder.bias": torch.randn(96, generator=g),
        "W_dec": torch.randn(96, 64, generator=g),
        "b_dec": torch.randn(64, generator=g),
    }
    folder = tmp_path / "layers.3"
    folder.mkdir()
    save_file(weights, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(
        json.dumps(
            {"d_in": 64, "k": 5, "expansion_factor": 32, "num_latents": 96, "normalize_decoder": True, "signed": False}
        )
    )
    made = sae.load(folder)
    assert made.site == Site("resid_post", 3) and made.k == 5
    before = torch.relu((activations - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"])
    value, index = before.topk(5)
    expected = torch.zeros(len(before), 96).scatter(1, index, value)
    rows = made.encode(activations)
    torch.testing.assert_close(rows.dense(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.decode(rows), expected @ weights["W_dec"] + weights["b_dec"], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("key", ["signed", "skip_connection"])
def test_sparsify_variants_that_mean_something_else_are_refused(tmp_path, key):
    folder = tmp_path / "layers.3"
    folder.mkdir()
    save_file({"encoder.weight": torch.ones(4, 2)}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": 2, "k": 1, key: True}))
    with pytest.raises(InputError, match=key):
        sae.load(folder)


def test_hook_names_become_sites():
    names = {
        "blocks.5.hook_resid_pre": "resid_pre.5",
        "layers.30": "resid_post.30",
        "model.layers.4": "resid_post.4",
        "transformer.h.7": "resid_post.7",
        "layers.3.mlp": "mlp_out.3",
        "model.layers.2.self_attn": "attn_out.2",
        "blocks.1.attn.hook_z": "head_out.1",
        "embed_tokens": "resid_pre.0",
    }
    assert {hook: str(sae.site_of(hook)) for hook in names} == names
    assert sae.site_of("somewhere") is None


def test_an_autoencoder_of_another_site_width_or_depth_is_refused(tmp_path, model):
    made = make(tmp_path / "sae")
    with pytest.raises(InputError, match="trained on resid_post.2, not on resid_post.1"):
        sae.load(made, site="resid_post.1")
    with pytest.raises(InputError, match="reads 32 numbers, but resid_post.2 of .* has 64"):
        sae.check_fits(sae.load(make(tmp_path / "narrow", d_in=32)), model)
    with pytest.raises(InputError, match="beyond the model"):
        sae.check_fits(sae.load(make(tmp_path / "deep", hook="blocks.31.hook_resid_post")), model)
    with pytest.raises(InputError, match="give the site"):
        sae.load(make(tmp_path / "lost", hook="custom_hook"))
    assert sae.load(tmp_path / "lost", site="resid_post.1").site == Site("resid_post", 1)
    other = sae.load(make(tmp_path / "other", model_fingerprint="0" * 64, model_name="another"))
    assert "trained on other weights (another)" in sae.check_fits(other, model)[0]


def test_an_autoencoder_of_another_model_by_name_is_pointed_out(tmp_path, model):
    other = sae.check_fits(sae.load(make(tmp_path / "other", model_name="gpt2-small")), model)
    assert len(other) == 1 and "trained on the model 'gpt2-small', not on" in other[0]
    assert sae.check_fits(sae.load(make(tmp_path / "own", model_name="tiny-llama")), model) == []
    assert (
        sae.check_fits(
            sae.load(make(tmp_path / "same", model_name="elsewhere", model_fingerprint=model.fingerprint)), model
        )
        == []
    )
    assert sae.same_model("gpt2-small", "openai-community/gpt2") and sae.same_model("/models/Llama-X", "meta/llama-x/")
    assert not sae.same_model("gpt2-medium", "gpt2")


def test_the_autoencoder_that_ships_is_of_the_organism_that_ships():
    from workbench import organisms

    made = sae.load(organisms.WEIGHTS / "sae" / "organism")
    assert made.trained_on["model_fingerprint"] and sae.check_fits(made, load("organism")) == []


def test_what_is_no_autoencoder_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="has no cfg.json"):
        sae.load(tmp_path)
    with pytest.raises(InputError, match="There is no sparse autoencoder"):
        sae.load(tmp_path / "absent")
    broken = make(tmp_path / "broken")
    (broken / "cfg.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        sae.load(broken)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "cfg.json").write_text("{}")
    with pytest.raises(InputError, match="no sae_weights.safetensors"):
        sae.load(empty)


def test_damaged_weights_are_refused_by_name(tmp_path):
    from safetensors.torch import load_file

    folder = make(tmp_path / "sae")
    weights = load_file(folder / "sae_weights.safetensors")
    weights["b_enc"][3] = float("nan")
    save_file(weights, folder / "sae_weights.safetensors")
    with pytest.raises(InputError, match="b_enc"):
        sae.load(folder)


def test_splicing_in_replaces_every_token_but_bos_and_leaves_no_hook(model):
    ids = [model.encode("Once upon a time"), model.encode("The dog ran to the big park.")]
    site = Site("resid_post", 2)
    plain = capture(model, ids, ["resid_post.2", "resid_post.4"], positions="all")
    with sae.spliced(model, site, lambda x: x):
        same = capture(model, ids, ["resid_post.4"], positions="all")
    torch.testing.assert_close(same["resid_post.4"], plain["resid_post.4"])
    with sae.spliced(model, site, lambda x: torch.zeros_like(x)):
        changed = capture(model, ids, ["resid_post.4"], positions="all")
    first = [0, len(ids[0])]
    torch.testing.assert_close(changed["resid_post.4"][first], plain["resid_post.4"][first])
    assert float((changed["resid_post.4"] - plain["resid_post.4"])[1].abs().max()) > 1e-2
    again = capture(model, ids, ["resid_post.4"], positions="all")
    torch.testing.assert_close(again["resid_post.4"], plain["resid_post.4"])


def test_gate_neurons_are_the_activated_gate_projection(model):
    ids = [model.encode("The dog ran.")]
    site, function, _ = gate_neurons(model, 3)
    x = capture(model, ids, [str(site)], positions="all")[str(site)]
    mlp = model.hf.model.layers[3].mlp
    states = model.hf(torch.tensor(ids), output_hidden_states=True).hidden_states[3]
    block = model.hf.model.layers[3]
    middle = states + capture(model, ids, ["attn_out.3"], positions="all")["attn_out.3"]
    expected = torch.nn.functional.silu(mlp.gate_proj(block.post_attention_layernorm(middle)))[0]
    torch.testing.assert_close(function(x), expected, atol=1e-5, rtol=1e-4)
    rows = sae.neuron_rows(function(x), 6)
    assert float(rows.value.min()) > 0 and len(rows.value) <= 6 * rows.n


@pytest.mark.parametrize("k", [0, -1, 257])
def test_a_number_of_active_features_that_cannot_be_is_refused(tmp_path, k):
    folder = make(tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"k": k}))
    with pytest.raises(InputError, match=f"says that {k} features are active per token .k., of 256"):
        sae.load(folder)
