"""Autoencoders as people publish them, written small in each format: what we encode and decode is what sae-lens' own
loader gives of the same files, or, where it has none, the format's formula written out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from workbench.core.errors import InputError
from workbench.models.sites import Site
from workbench.sae import load as saes

D, F = 16, 40  # width and features


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.5


def linear(prefix="encoder", decoder="decoder"):
    """The tensors of two torch.nn.Linear."""
    return {
        f"{prefix}.weight": random(F, D, seed=1),
        f"{prefix}.bias": random(F, seed=2),
        f"{decoder}.weight": random(D, F, seed=3),
        f"{decoder}.bias": random(D, seed=4),
    }


@pytest.fixture
def x():
    return random(30, D, seed=9) * 3


@pytest.fixture
def theirs(monkeypatch, tmp_path):
    """sae-lens' loader of a conversion, reading the folder that stands for a repository."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def here(repo_id, filename, subfolder=None, **_):
        path = tmp_path / repo_id / (subfolder or "") / filename
        if not path.is_file():
            from huggingface_hub.utils import EntryNotFoundError

            raise EntryNotFoundError(str(path))
        return str(path)

    def shapes(repo_id, filename):
        from safetensors.torch import load_file

        return {name: list(value.shape) for name, value in load_file(tmp_path / repo_id / filename).items()}

    monkeypatch.setattr(loaders, "hf_hub_download", here)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)

    def load(conversion, repository, inside, *, scale=None, **overrides):
        found = loaders.NAMED_PRETRAINED_SAE_LOADERS[conversion](
            repository, inside, "cpu", False, {"dtype": "float32", "device": "cpu"} | overrides
        )
        made = SAE.load_from_disk(tmp_path, converter=lambda *_, **__: found[:2])
        if scale is not None:
            made.fold_activation_norm_scaling_factor(scale)
        return made

    return load


def agree(made, reference, x, *, out=None):
    """Encode and decode, sparse rows against sae-lens' dense ones."""
    with torch.no_grad():
        inside = x.view(len(x), 4, D // 4) if made.inner.cfg.reshape_activations == "hook_z" else x
        expected = reference.encode(inside)
        rows = made.encode(inside)
        torch.testing.assert_close(rows.dense(), expected, atol=1e-5, rtol=1e-4)
        assert 0 < len(rows.value) < expected.numel()
        torch.testing.assert_close(made.decode(rows, inside), reference(inside), atol=1e-4, rtol=1e-4)
    assert made.site_out == (Site.parse(out) if out else None)


def scope(folder, **more):
    folder.mkdir(parents=True)
    tensors = {
        "W_enc": random(D, F, seed=1),
        "W_dec": random(F, D, seed=3),
        "b_enc": random(F, seed=2),
        "b_dec": random(D, seed=4),
        "threshold": random(F, seed=5).abs(),
    }
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in (tensors | more).items()})


@pytest.mark.parametrize("which, site", [("res", "resid_post"), ("mlp", "mlp_out"), ("att", "head_out")])
def test_gemma_scope_is_read_as_sae_lens_reads_it_and_its_site_stands_in_the_names(tmp_path, theirs, x, which, site):
    repository, inside = f"gemma-scope-2b-pt-{which}", "layer_20/width_16k/average_l0_71"
    scope(tmp_path / repository / inside)
    made = saes.load(tmp_path / repository / inside)
    assert made.site == Site(site, 20) and made.trained_on["model_name"] == "gemma-2-2b" and made.k is None
    assert made.conventions.prepend_bos is True and made.conventions.context_size == 1024
    agree(made, theirs("gemma_2", repository, inside, d_in=D, d_sae=F), x)
    assert saes.recorded_site(tmp_path / repository / inside) == made.site
    assert saes.load(tmp_path / repository / inside / "params.npz").site == made.site


def test_gemma_scope_of_embeddings_undoes_their_scale(tmp_path, theirs, x):
    repository, inside = "gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6"
    scope(tmp_path / repository / inside)
    made = saes.load(tmp_path / repository / inside)
    assert made.site == Site("resid_pre", 0)
    agree(made, theirs("gemma_2", repository, inside, d_in=D, d_sae=F), x)


def test_gemma_scope_without_the_name_of_its_repository_needs_a_site(tmp_path):
    scope(tmp_path / "mine" / "layer_20")
    with pytest.raises(InputError, match="does not say which site"):
        saes.load(tmp_path / "mine" / "layer_20")
    assert saes.load(tmp_path / "mine" / "layer_20", site="resid_post.20").site == Site("resid_post", 20)


def test_gemma_scope_transcoders_read_before_the_gain_and_write_what_the_mlp_adds(tmp_path, theirs, x):
    repository, inside = "gemma-scope-2b-pt-transcoders", "layer_3/width_16k/average_l0_12"
    scope(tmp_path / repository / inside)
    made = saes.load(tmp_path / repository / inside)
    assert made.site == Site("mlp_in", 3) and made.writes == Site("mlp_out", 3)
    with pytest.raises(InputError, match="hold it against the model first"):
        made.encode(x)
    made.frame = saes.PLAIN
    agree(made, theirs("gemma_2_transcoder", repository, inside, d_in=D, d_out=D, d_sae=F), x, out="mlp_out.3")


def second(path, *, layers=None, **more):
    path.parent.mkdir(parents=True)
    decoder = random(F, D, seed=3) if layers is None else random(F, layers, D, seed=3)
    tensors = {
        "w_enc": random(D, F, seed=1),
        "w_dec": decoder,
        "b_enc": random(F, seed=2),
        "b_dec": random(D, seed=4),
        "threshold": random(F, seed=5).abs(),
    }
    save_file(tensors | more, path)


@pytest.mark.parametrize(
    "inside, site, out",
    [
        ("resid_post/layer_17_width_16k_l0_medium", "resid_post.17", None),
        ("mlp_out_all/layer_8_width_16k_l0_small", "mlp_out.8", None),
        ("attn_out/layer_2_width_16k_l0_small", "head_out.2", None),
        ("transcoder_all/layer_4_width_16k_l0_big", "mlp_in.4", "mlp_out.4"),
        ("transcoder_all/layer_4_width_16k_l0_big_affine", "mlp_in.4", "mlp_out.4"),
    ],
)
def test_gemma_scope_2_is_read_as_sae_lens_reads_it_with_its_skip_connections(tmp_path, theirs, x, inside, site, out):
    repository = "gemma-scope-2-4b-pt"
    folder = tmp_path / repository / inside
    affine = "affine" in inside
    second(folder / "params.safetensors", **({"affine_skip_connection": random(D, D, seed=7)} if affine else {}))
    config = {"architecture": "jump_relu", "model_name": "google/gemma-3-4b-pt", "affine_connection": affine}
    (folder / "config.json").write_text(json.dumps(config))
    made = saes.load(folder)
    assert made.site == Site.parse(site)
    reference = theirs("gemma_3", repository, inside)
    if site.startswith("head_out"):  # sae-lens leaves the heads in a row here
        x = x.view(len(x), D)
        rows = made.encode(x.view(len(x), 4, D // 4))
        torch.testing.assert_close(rows.dense(), reference.encode(x), atol=1e-5, rtol=1e-4)
        return
    agree(made, reference, x, out=out)


def test_one_layer_of_a_cross_layer_transcoder_encodes_and_says_that_it_rebuilds_nothing(tmp_path, theirs, x):
    repository, inside = "gemma-scope-2-4b-pt", "clt/width_262k_l0_big/params_layer_5"
    second(tmp_path / repository / f"{inside}.safetensors", layers=3)
    made = saes.load(tmp_path / repository / f"{inside}.safetensors")
    reference = theirs("gemma_3", repository, inside)
    torch.testing.assert_close(made.encode(x).dense(), reference.encode(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.directions(), reference.W_dec)
    assert made.site == Site("mlp_in", 5)
    with pytest.raises(InputError, match="one layer of a cross-layer transcoder"):
        made.decode(made.encode(x), x)


@pytest.mark.parametrize("out", [None, "hook_mlp_out"])
def test_llama_scope_folds_the_scale_of_its_activations_as_sae_lens_does(tmp_path, theirs, x, out):
    repository, inside = "Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L8R-8x"
    folder = tmp_path / repository / inside
    (folder / "checkpoints").mkdir(parents=True)
    hook = "blocks.8.hook_resid_post" if out is None else "blocks.8.mlp.hook_in"
    hyper = {
        "d_model": D,
        "d_sae": F,
        "hook_point_in": hook,
        "hook_point_out": f"blocks.8.{out}" if out else hook,
        "jump_relu_threshold": 0.4,
        "dataset_average_activation_norm": {"in": 7.0, "out": 3.0},
    }
    (folder / "hyperparams.json").write_text(json.dumps(hyper))
    save_file(linear(), folder / "checkpoints" / "final.safetensors")
    made = saes.load(folder)
    scale = D**0.5 / 7
    if out is None:
        assert made.site == Site("resid_post", 8)
        agree(made, theirs("llama_scope", repository, inside, scale=scale), x)
        return
    raw = linear()
    z = (x * scale) @ raw["encoder.weight"].T + raw["encoder.bias"]
    z = torch.where(z > 0.4 * scale, z, 0).clamp(min=0)
    expected = (z @ raw["decoder.weight"].T + raw["decoder.bias"]) * 3 / D**0.5
    rows = made.encode(x)
    torch.testing.assert_close(rows.dense(), z, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.decode(rows), expected, atol=1e-4, rtol=1e-4)
    assert made.site == Site("mlp_in", 8) and made.writes == Site("mlp_out", 8)


@pytest.mark.parametrize("recorded", [True, False])
def test_later_autoencoders_of_lm_saes_find_their_scale_in_the_file_or_on_record(tmp_path, theirs, x, recorded):
    repository, inside = "Llama-Scope-R1-Distill", "800M-Slimpajama-0-OpenR1-Math-220k/L5R"
    folder = tmp_path / repository / inside
    folder.mkdir(parents=True)
    config = {
        "d_model": D,
        "expansion_factor": F / D,
        "hook_point_in": "blocks.5.hook_resid_post",
        "act_fn": "jumprelu",
    }
    scale = 13.77273090622553
    if recorded:
        config |= {"dataset_average_activation_norm": {"in": D**0.5 / 2.5}}
        scale = 2.5
    (folder / "config.json").write_text(json.dumps(config))
    save_file(linear() | {"log_jumprelu_threshold": random(F, seed=6)}, folder / "sae_weights.safetensors")
    made = saes.load(folder)
    agree(made, theirs("llama_scope_r1_distill", repository, inside, scale=scale, d_sae=F), x)
    elsewhere = shutil.copytree(folder, tmp_path / "mine")
    if not recorded:
        with pytest.raises(InputError, match="does not say by how much"):
            saes.load(elsewhere)


DICTIONARIES = {
    "AutoEncoder": lambda: {k: v for k, v in linear().items() if k != "decoder.bias"} | {"bias": random(D, seed=4)},
    "AutoEncoderTopK": lambda: (
        {k: v for k, v in linear().items() if k != "decoder.bias"}
        | {"b_dec": random(D, seed=4), "k": torch.tensor(6), "threshold": torch.tensor(-1.0)}
    ),
    "BatchTopKSAE": lambda: (
        {k: v for k, v in linear().items() if k != "decoder.bias"}
        | {"b_dec": random(D, seed=4), "k": torch.tensor(6), "threshold": torch.tensor(0.7)}
    ),
    "MatryoshkaBatchTopKSAE": lambda: {
        "W_enc": random(D, F, seed=1),
        "b_enc": random(F, seed=2),
        "W_dec": random(F, D, seed=3),
        "b_dec": random(D, seed=4),
        "threshold": torch.tensor(0.5),
        "k": torch.tensor(6),
        "active_groups": torch.tensor(2),
        "group_sizes": torch.tensor([10, 30]),
    },
    "JumpReluAutoEncoder": lambda: {
        "W_enc": random(D, F, seed=1),
        "b_enc": random(F, seed=2),
        "W_dec": random(F, D, seed=3),
        "b_dec": random(D, seed=4),
        "threshold": random(F, seed=5).abs(),
    },
    "GatedAutoEncoder": lambda: {
        "encoder.weight": random(F, D, seed=1),
        "decoder.weight": random(D, F, seed=3),
        "decoder_bias": random(D, seed=4),
        "r_mag": random(F, seed=5),
        "gate_bias": random(F, seed=6),
        "mag_bias": random(F, seed=7),
    },
}


def dictionary(folder, kind, state, **trainer):
    folder.mkdir(parents=True)
    torch.save(state, folder / "ae.pt")
    own = {"dict_class": kind, "activation_dim": D, "dict_size": F, "layer": 4, "lm_name": "EleutherAI/pythia-70m"}
    config = {"trainer": own | {"k": 6, "submodule_name": "resid_post_layer_4"} | trainer, "buffer": {"ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", DICTIONARIES)
def test_every_class_of_dictionary_learning_is_read_as_sae_lens_reads_it(tmp_path, theirs, x, kind):
    folder = dictionary(tmp_path / "lm_sae" / "trainer_0", kind, DICTIONARIES[kind]())
    made = saes.load(folder)
    assert made.site == Site("resid_post", 4) and made.conventions.context_size == 128
    agree(made, theirs("dictionary_learning_1", "lm_sae", "trainer_0"), x)


@pytest.mark.parametrize(
    "name, site", [("mlp_out_layer_4", "mlp_out.4"), ("gpt_neox.layers.4.attention", "attn_out.4")]
)
def test_a_dictionary_of_another_submodule_is_of_its_own_site(tmp_path, name, site):
    folder = dictionary(tmp_path / "a", "AutoEncoder", DICTIONARIES["AutoEncoder"](), submodule_name=name)
    assert saes.load(folder).site == saes.recorded_site(folder) == Site.parse(site)
    odd = dictionary(tmp_path / "b", "AutoEncoder", DICTIONARIES["AutoEncoder"](), submodule_name="some.module")
    with pytest.raises(InputError, match="give the site"):
        saes.load(odd)


def test_a_batch_top_k_dictionary_without_a_learnt_threshold_and_an_unknown_class_are_refused(tmp_path):
    state = DICTIONARIES["BatchTopKSAE"]() | {"threshold": torch.tensor(-1.0)}
    with pytest.raises(InputError, match="no threshold that was learnt"):
        saes.load(dictionary(tmp_path / "a", "BatchTopKSAE", state))
    with pytest.raises(InputError, match="dictionary class 'AutoEncoderNew'"):
        saes.load(dictionary(tmp_path / "b", "AutoEncoderNew", state))


def openai(folder, activation="TopK"):
    folder.mkdir(parents=True)
    state = {
        "pre_bias": random(D, seed=4),
        "latent_bias": random(F, seed=2),
        "encoder.weight": random(F, D, seed=1),
        "decoder.weight": random(D, F, seed=3),
        "stats_last_nonzero": torch.zeros(F, dtype=torch.int64),
        "activation": activation,
        "activation_state_dict": {"k": 6} if activation == "TopK" else {},
    }
    torch.save(state, folder / "8.pt")
    return state


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
@pytest.mark.parametrize("place, site", [("resid_post_mlp", "resid_post.8"), ("resid_delta_attn", "attn_out.8")])
def test_openai_autoencoders_follow_the_formula_of_their_code(tmp_path, x, activation, place, site):
    folder = tmp_path / "gpt2-small" / f"{place}_v5_32k" / "autoencoders"
    state = openai(folder, activation)
    made = saes.load(folder / "8.pt")
    assert made.site == Site.parse(site) and made.k == (6 if activation == "TopK" else None)
    mean, inside = torch.zeros(len(x), 1), x
    deviation = torch.ones(len(x), 1)
    if activation == "TopK":
        mean = x.mean(-1, keepdim=True)
        deviation = (x - mean).std(-1, keepdim=True)
        inside = (x - mean) / (deviation + 1e-5)
    z = torch.relu((inside - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"])
    if activation == "TopK":
        value, index = z.topk(6)
        z = torch.zeros_like(z).scatter(1, index, value)
    rows = made.encode(x)
    torch.testing.assert_close(rows.dense(), z, atol=1e-5, rtol=1e-4)
    expected = (z @ state["decoder.weight"].T + state["pre_bias"]) * deviation + mean
    torch.testing.assert_close(made.decode(rows, x), expected, atol=1e-4, rtol=1e-4)


def test_qwen_scope_is_read_as_sae_lens_reads_it_and_its_k_stands_in_the_repository(tmp_path, theirs, x):
    repository = "SAE-Res-Qwen3-1.7B-Base-W32K-L0_6"
    (tmp_path / repository).mkdir()
    state = {"W_enc": random(F, D, seed=1), "W_dec": random(D, F, seed=3), "b_enc": random(F, seed=2)}
    torch.save(state | {"b_dec": random(D, seed=4)}, tmp_path / repository / "layer7.sae.pt")
    made = saes.load(tmp_path / repository)
    assert made.site == Site("resid_post", 7) and made.k == 6
    agree(made, theirs("qwen_scope", repository, "layer7.sae.pt", d_in=D, d_sae=F), x)
    (tmp_path / "mine").mkdir()
    shutil.copy(tmp_path / repository / "layer7.sae.pt", tmp_path / "mine")
    with pytest.raises(InputError, match="how many features are active"):
        saes.load(tmp_path / "mine", site="resid_post.7")


def test_goodfire_deepseek_and_attention_files_are_read_as_sae_lens_reads_them(tmp_path, theirs, x):
    name = "Llama-3.1-8B-Instruct-SAE-l19.pth"
    (tmp_path / "Goodfire").mkdir()
    repository = "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"
    (tmp_path / repository).mkdir()
    torch.save(linear("encoder_linear", "decoder_linear"), tmp_path / repository / name)
    made = saes.load(tmp_path / repository)
    assert made.site == Site("resid_post", 19)
    agree(made, theirs("goodfire", repository, name, d_in=D, d_sae=F), x)

    name = "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"
    (tmp_path / "qresearch").mkdir()
    torch.save(linear(), tmp_path / "qresearch" / name)
    made = saes.load(tmp_path / "qresearch")
    assert made.site == Site("resid_post", 19)
    agree(made, theirs("deepseek_r1", "qresearch", name, d_in=D, d_sae=F), x)

    (tmp_path / "attention").mkdir()
    state = {"W_enc": random(D, F, seed=1), "W_dec": random(F, D, seed=3), "b_enc": random(F, seed=2)}
    torch.save(state | {"b_dec": random(D, seed=4)}, tmp_path / "attention" / "gpt2_L6.pt")
    config = {"act_size": D, "dict_size": F, "act_name": "blocks.6.attn.hook_z"}
    (tmp_path / "attention" / "gpt2_L6_cfg.json").write_text(json.dumps(config))
    made = saes.load(tmp_path / "attention")
    assert made.site == Site("head_out", 6)
    agree(made, theirs("connor_rob_hook_z", "attention", "gpt2_L6.pt"), x)


def test_transcoders_by_layer_are_read_as_sae_lens_reads_them_and_with_a_skip_by_the_formula(tmp_path, theirs, x):
    folder = tmp_path / "qwen3-0.6b-transcoders"
    folder.mkdir()
    state = {
        "W_enc": random(F, D, seed=1),
        "W_dec": random(F, D, seed=3),
        "b_enc": random(F, seed=2),
        "b_dec": random(D, seed=4),
    }
    for layer in (0, 3):
        save_file(state, folder / f"layer_{layer}.safetensors")
    config = {
        "model_name": "Qwen/Qwen3-0.6B",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    values = {"d_model": D, "d_feature": F, "batch_size": 8}
    (folder / "wandb-config.yaml").write_text(json.dumps({key: {"value": value} for key, value in values.items()}))
    with pytest.raises(InputError, match="holds 2 autoencoders"):
        saes.load(folder)
    made = saes.load(folder / "layer_3.safetensors")
    assert made.site == Site("mlp_in", 3) and made.trained_on["model_name"] == "Qwen/Qwen3-0.6B"
    agree(made, theirs("mwhanna_transcoder", folder.name, "layer_3.safetensors"), x, out="mlp_out.3")

    skip = random(D, D, seed=8)
    save_file(state | {"W_skip": skip}, folder / "layer_9.safetensors")
    made = saes.load(folder / "layer_9.safetensors")
    z = torch.relu(x @ state["W_enc"].T + state["b_enc"])
    expected = z @ state["W_dec"] + state["b_dec"] + x @ skip.T
    torch.testing.assert_close(made.decode(made.encode(x), x), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.reconstruct(x), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="needs the activations"):
        made.decode(made.encode(x))


def test_a_cross_layer_transcoder_by_layer_is_read_as_sae_lens_reads_it(tmp_path, theirs, x):
    folder = tmp_path / "clt"
    folder.mkdir()
    reads = {"W_enc_2": random(F, D, seed=1), "b_enc_2": random(F, seed=2), "b_dec_2": random(D, seed=4)}
    save_file(reads, folder / "W_enc_2.safetensors")
    save_file({"W_dec_2": random(F, 5, D, seed=3)}, folder / "W_dec_2.safetensors")
    config = {
        "model_name": "google/gemma-2-2b",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="summing all decoders"):
        reference = theirs("mntss_clt_layer_transcoder", "clt", "2")
    for source in (folder, folder / "W_enc_2.safetensors", folder / "W_dec_2.safetensors"):
        made = saes.load(source)
        torch.testing.assert_close(made.encode(x).dense(), reference.encode(x), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(made.directions(), reference.W_dec, atol=1e-5, rtol=1e-4)
        assert made.site == Site("mlp_in", 2) and not made.reconstructs


@pytest.mark.parametrize(
    "hook, site, out", [("layers.3.mlp", "mlp_in.3", "mlp_out.3"), ("layers.3", "resid_pre.3", "resid_post.3")]
)
@pytest.mark.parametrize("skip", [True, False])
def test_sparsify_transcoders_follow_the_formula_of_their_code(tmp_path, x, hook, site, out, skip):
    folder = tmp_path / hook
    folder.mkdir()
    raw = {
        "encoder.weight": random(F, D, seed=1),
        "encoder.bias": random(F, seed=2),
        "W_dec": random(F, D, seed=3),
        "b_dec": random(D, seed=4),
    }
    raw |= {"W_skip": random(D, D, seed=5)} if skip else {}
    save_file(raw, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "k": 5, "transcode": True, "skip_connection": skip}))
    made = saes.load(folder)
    assert (made.site, made.writes, made.k) == (Site.parse(site), Site.parse(out), 5)
    value, index = torch.relu(x @ raw["encoder.weight"].T + raw["encoder.bias"]).topk(5)
    z = torch.zeros(len(x), F).scatter(1, index, value)
    expected = z @ raw["W_dec"] + raw["b_dec"] + (x @ raw["W_skip"].T if skip else 0)
    rows = made.encode(x)
    torch.testing.assert_close(rows.dense(), z, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.decode(rows, x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"])
def test_transcoders_that_sae_lens_saves_are_pairs_of_sites(tmp_path, x, kind):
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    cls, config = get_sae_class(kind)
    meta = SAEMetadata(hook_name="blocks.1.mlp.hook_in", hook_name_out="blocks.1.hook_mlp_out")
    made = cls(config(d_in=D, d_out=D + 2, d_sae=F, apply_b_dec_to_input=False, metadata=meta))
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(random(*parameter.shape, seed=i))
    made.save_model(tmp_path)
    found = saes.load(tmp_path)
    assert found.describe()["site_out"] == "mlp_out.1"
    agree(found, SAE.load_from_disk(tmp_path), x, out="mlp_out.1")


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_a_training_checkpoint_by_batch_is_what_sae_lens_makes_of_it_for_inference(tmp_path, x, kind):
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    cls, config = get_sae_training_class(kind)
    extra = {"matryoshka_widths": [10, F]} if kind.startswith("matryoshka") else {}
    made = cls(config(d_in=D, d_sae=F, k=4, metadata=SAEMetadata(hook_name="blocks.1.hook_resid_post"), **extra))
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(random(*parameter.shape, seed=i))
        made.topk_threshold.fill_(0.6)
    made.save_model(tmp_path / "training")
    made.save_inference_model(tmp_path / "inference")
    agree(saes.load(tmp_path / "training"), SAE.load_from_disk(tmp_path / "inference"), x)


def test_an_autoencoder_of_an_old_sae_lens_keeps_its_site_and_conventions(tmp_path, x):
    config = {
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "hook_point": "blocks.3.hook_resid_pre",
        "model_name": "gpt2-small",
        "context_size": 128,
        "normalize_activations": False,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    state = {"W_enc": random(D, F, seed=1), "W_dec": random(F, D, seed=3), "b_enc": random(F, seed=2)}
    save_file(state | {"b_dec": random(D, seed=4)}, tmp_path / "sae_weights.safetensors")
    made = saes.load(tmp_path)
    assert made.site == Site("resid_pre", 3) and made.trained_on["model_name"] == "gpt2-small"
    assert made.conventions.prepend_bos is True and made.conventions.context_size == 128
    assert saes.recorded_site(tmp_path) == made.site
    expected = torch.relu((x - random(D, seed=4)) @ state["W_enc"] + state["b_enc"])
    torch.testing.assert_close(made.encode(x).dense(), expected, atol=1e-5, rtol=1e-4)


def test_a_pickle_is_refused_and_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    torch.save({"pre_bias": Evil()}, tmp_path / "8.pt")
    with pytest.raises(InputError, match="pickled Python objects"):
        saes.load(tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "files, said",
    [
        (["cfg.json"], "looks most like sae-lens .*no sae_weights.safetensors, or sae.safetensors .*sparsify"),
        (["hyperparams.json"], "looks most like Llama Scope .*no checkpoints/final.safetensors"),
        (["hyperparams.json", "config.json"], "looks most like Llama Scope"),
        (["W_enc_3.safetensors"], "cross-layer transcoder .*no W_dec_"),
        (["notes.txt"], "not a sparse autoencoder in a format that we know"),
        (["layer_0/params.npz", "layer_1/params.npz"], "holds some: layer_0, layer_1"),
    ],
)
def test_a_folder_that_holds_none_is_told_what_it_looks_like_and_what_it_lacks(tmp_path, files, said):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=said) as caught:
        saes.load(tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).count(". ") == 0


def test_damaged_and_odd_weights_are_refused_in_one_sentence(tmp_path):
    for name in ("params.npz", "layer_1.safetensors", "1.pt"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing")
        with pytest.raises(InputError, match=name):
            saes.load(tmp_path / name, site="resid_post.1")
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match="those are called"):
        (tmp_path / "weights.bin").write_bytes(b"")
        saes.load(tmp_path / "weights.bin")
    scope(tmp_path / "gemma-scope-2b-pt-res" / "layer_1", b_enc=random(F + 1, seed=1))
    with pytest.raises(InputError, match="b_enc has the shape"):
        saes.load(tmp_path / "gemma-scope-2b-pt-res" / "layer_1")


def test_the_page_on_neuronpedia_is_that_of_the_release(tmp_path):
    from workbench.sae.releases import release_of

    release = release_of("gemma-scope-2b-pt-res-canonical:layer_20/width_16k/canonical")
    assert release.neuronpedia == "gemma-2-2b/20-gemmascope-res-16k"
    twin = release_of(f"{release.repository}:{release.path}")
    assert twin.metadata()["neuronpedia_id"] == release.neuronpedia
    jb = release_of("gpt2-small-res-jb:blocks.8.hook_resid_pre")
    assert jb.metadata()["model_from_pretrained_kwargs"] == {"center_writing_weights": True}
    assert release_of("nothing:here") is None and release_of("a/b:c") is None
    scope(tmp_path / "gemma-scope-2b-pt-res" / "layer_1")
    made = saes.load(tmp_path / "gemma-scope-2b-pt-res" / "layer_1")
    assert made.neuronpedia(3) is None
    made.neuronpedia_id = release.neuronpedia
    assert made.neuronpedia(3) == "https://neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/3"
