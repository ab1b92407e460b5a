import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.architectures import NAMES, build
from workbench.core.errors import InputError
from workbench.engine.edits import HeadAblation, apply
from workbench.models.attention import observe
from workbench.models.attention_weights import Weights
from workbench.models.files import fingerprint_folder, resolve
from workbench.models.loading import load, wrap


@pytest.fixture
def copied(tiny_llama, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A random GPT-2 whose tokens are letters, without BOS: the other kind of tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("letters")
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate("ABC")}, unk_token="A"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    build("gpt2", vocab_size=3, bos_token_id=None, eos_token_id=None).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="A").save_pretrained(folder)
    return folder


def test_a_folder_loads_offline_with_its_facts(tiny_llama, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = load(str(tiny_llama))
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.d_head, model.width) == (5, 8, 4, 8, 64)
    assert (model.vocab_size, model.context_length, model.architecture) == (512, 512, "LlamaForCausalLM")
    assert [model.kv_group(h) for h in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_bos_is_fed_once_and_only_where_the_tokenizer_puts_it(tiny_llama, letters):
    llama, gpt2 = load(str(tiny_llama)), load(str(letters))
    ids = llama.encode("Once upon a time")
    assert ids[0] == llama.bos_id and llama.encode("Once upon a time", bos=False) == ids[1:]
    assert ids.count(llama.bos_id) == 1
    assert gpt2.bos_id is None and gpt2.encode("ABC") == [0, 1, 2]


def test_many_texts_are_encoded_as_each_alone(tiny_llama, letters):
    texts = ["Once upon a time", "Lily", "", "The little cat saw Lily. "]
    for model in (load(str(tiny_llama)), load(str(letters))):
        for bos in (True, False):
            assert model.encode_all(texts, bos=bos) == [model.encode(text, bos=bos) for text in texts]
    assert load(str(tiny_llama)).encode_all([]) == []


def test_offsets_point_into_the_text(tiny_llama):
    model = load(str(tiny_llama))
    text = "The little cat saw Lily"
    ids, spans = model.encode_with_offsets(text)
    assert len(ids) == len(spans) and spans[0] == (0, 0)
    assert "".join(text[a:b] for a, b in spans).replace(" ", "") == text.replace(" ", "")
    assert model.decode(ids) == text
    assert "".join(model.token_strings(ids)[1:]).strip() == text


@pytest.mark.shared_data
def test_trained_gpt2_sorts_through_our_forward(gpt2_nano_sort):
    """The model knows how to sort six letters: the plain greedy continuation through `Model.forward` does it."""
    from workbench.engine.capture import logits

    model = load(str(gpt2_nano_sort))
    ids = model.encode("CABACB")
    for _ in range(6):
        ids.append(int(logits(model, [ids[-11:]])[0].argmax()))
    assert model.decode(ids[6:]) == "AABBCC"


def test_fingerprint_follows_the_weights(copied):
    first = load(str(copied)).fingerprint
    assert first == fingerprint_folder(copied) and len(first) == 64
    weights = load_file(copied / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name].clone()
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert load(str(copied)).fingerprint != first


def test_fingerprint_of_a_model_in_memory_follows_its_weights():
    assert (
        wrap(build("llama")).fingerprint == wrap(build("llama")).fingerprint != wrap(build("llama", seed=1)).fingerprint
    )


def test_logits_from_the_residual_equal_the_models(tiny_llama):
    from workbench.engine.capture import capture

    for model in (load(str(tiny_llama)), wrap(build("gemma2"))):
        acts = capture(model, [[1, 5, 9]], [f"resid_post.{model.n_layers - 1}", "logits"])
        found = model.logits_from(acts[f"resid_post.{model.n_layers - 1}"])
        torch.testing.assert_close(found, acts["logits"], atol=1e-5, rtol=1e-5)


def test_a_bridge_of_transformer_lens_gives_the_same_logits(tiny_llama):
    model = load(str(tiny_llama))
    ids = torch.tensor([model.encode("Once upon a time there was")])
    with torch.no_grad():
        plain = model.hf(ids).logits
        bridged = model.bridge()(ids)
        after = model.hf(ids).logits
    torch.testing.assert_close(bridged, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after, plain, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes_pass_the_load_check(tiny_llama, dtype):
    assert load(str(tiny_llama), dtype=dtype).dtype == getattr(torch, dtype)


# what is refused, and what it says


def test_missing_and_misspelt_models(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="did you mean 'organism'"):
        resolve("organsm")
    with pytest.raises(InputError, match="not in the local hub cache"):
        resolve("nobody/no-such-model")


def test_incomplete_folders(copied, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no config.json"):
        load(str(empty))
    (copied / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        load(str(copied))
    (copied / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match="only pickled weights"):
        load(str(copied))
    (copied / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    with pytest.raises(InputError, match="incomplete: model-1.safetensors is missing"):
        load(str(copied))


def rewrite(folder, change=None, **config):
    """Change the weights (a function of the dict) and the config of a copied model folder."""
    weights = load_file(folder / "model.safetensors")
    if change is not None:
        change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | config))


def test_a_missing_tensor_is_named_not_drawn_at_random(copied):
    rewrite(copied, lambda weights: weights.pop("model.layers.2.self_attn.q_proj.weight"))
    with pytest.raises(
        InputError, match=r"incomplete: model\.layers\.2\.self_attn\.q_proj\.weight is not in its files"
    ):
        load(str(copied))


def test_layers_that_the_files_do_not_have_are_refused(copied):
    rewrite(copied, num_hidden_layers=12)
    with pytest.raises(InputError, match=r"incomplete: model\.layers\.5\.input_layernorm\.weight and 62 more"):
        load(str(copied))


def test_layers_that_the_model_would_drop_are_refused(copied):
    rewrite(copied, num_hidden_layers=4)
    with pytest.raises(
        InputError,
        match=r"leave out weights of its own files, first model\.layers\.4\.input_layernorm\.weight \(9 in all\).*4 "
        r"layers",
    ):
        load(str(copied))


def test_a_bias_that_the_model_would_drop_is_refused(copied):
    rewrite(copied, lambda weights: weights.update({"model.layers.1.self_attn.q_proj.bias": torch.ones(64)}))
    with pytest.raises(
        InputError, match=r"leave out weights of its own files, first model\.layers\.1\.self_attn\.q_proj\.bias"
    ):
        load(str(copied))


def test_what_is_no_weight_of_a_block_may_be_left_out(copied, letters, tmp_path):
    """Rotary frequencies and causal masks of old checkpoints, and the layers of a multi-token-prediction head."""
    wanted = load(str(copied)).hf(torch.tensor([[1, 5, 9]])).logits
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "mtp.layers.0.mlp.up_proj.weight": torch.ones(2, 2),
    }
    rewrite(copied, lambda weights: weights.update(extra))
    torch.testing.assert_close(load(str(copied)).hf(torch.tensor([[1, 5, 9]])).logits, wanted, atol=0, rtol=0)
    old = tmp_path / "gpt2"
    shutil.copytree(letters, old, copy_function=shutil.copyfile)
    rewrite(
        old,
        lambda weights: weights.update(
            {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "transformer.h.1.attn.masked_bias": torch.ones(1)}
        ),
    )
    assert load(str(old)).n_layers == load(str(letters)).n_layers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_checkpoint_of_every_architecture_loads(name, tied, tmp_path):
    """Fused, tied and stacked weights are named otherwise in the files; none of them is taken for missing or left
    over."""
    hf = build(name, tie_word_embeddings=tied)
    hf.save_pretrained(tmp_path)
    ids = torch.tensor([[1, 5, 9, 2]])
    with torch.no_grad():
        torch.testing.assert_close(load(str(tmp_path)).hf(ids).logits, hf(ids).logits, atol=1e-4, rtol=1e-4)


def test_attention_rows_that_are_not_the_models_are_refused(tiny_llama, monkeypatch):
    """Rows of wrong scores still sum to 1; only the output of the model's own attention shows that they are wrong."""
    scores = Weights.scores
    monkeypatch.setattr(Weights, "scores", lambda self, rows: 0.37 * scores(self, rows))
    model = load(str(tiny_llama))
    wrong = "attention rows of layer 0 are not those that its output is mixed with"
    with pytest.raises(InputError, match=wrong), observe(model, lambda _l, w: w):
        pass
    with pytest.raises(InputError, match=wrong), apply(model, [HeadAblation(((0, 1),), "uniform")]):
        pass


def test_rows_of_the_wrong_key_group_are_refused(tiny_llama, monkeypatch):
    scores = Weights.scores
    monkeypatch.setattr(Weights, "scores", lambda self, rows: scores(self, rows).roll(1, dims=1))
    model = load(str(tiny_llama))
    with pytest.raises(InputError, match="attention rows of layer 0 are not those"), observe(model, lambda _l, w: w):
        pass


@pytest.mark.parametrize("index", ["{}", "[]", "not json", '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
def test_an_index_of_weight_files_that_cannot_be_used(copied, index):
    (copied / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json of"):
        load(str(copied))


def test_damaged_files(copied):
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be loaded"):
        load(str(copied))
    (copied / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="config.json"):
        load(str(copied))


def test_nan_weights_are_named(copied):
    weights = load_file(copied / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="NaN or infinite weights, first in model.norm.weight"):
        load(str(copied))


def test_wrong_dtype_and_device(tiny_llama):
    with pytest.raises(InputError, match="not a dtype"):
        load(str(tiny_llama), dtype="int3")
    for device in ("foo", "cpu:x", "meta", "gpu"):
        with pytest.raises(InputError, match=f"'{device}' is not a device"):
            load(str(tiny_llama), device=device)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no usable GPU"):
            load(str(tiny_llama), device="cuda")


def test_an_architecture_without_a_map_is_refused():
    from transformers import AutoModelForCausalLM, XLNetConfig

    hf = AutoModelForCausalLM.from_config(XLNetConfig(d_model=32, n_layer=1, n_head=4, d_inner=48, vocab_size=64))
    with pytest.raises(InputError, match="no map"):
        wrap(hf)


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(InputError, match="no tokenizer"):
        wrap(build("llama")).encode("hello")
