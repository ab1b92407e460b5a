"""Combinations in which a plausible wrong number could hide: each one against plain Hugging Face, or refused with a
reason."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from probes.retrieval_heads.speculative_decoding import greedy_steps
from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine.capture import capture, logits
from workbench.engine.edits import KnockOut, Patch, ProjectOut
from workbench.engine.kv_cache import feed
from workbench.models.architecture import examine, find_anatomy
from workbench.models.attention import observe
from workbench.models.batching import pad
from workbench.models.files import resolve
from workbench.models.loading import load, wrap
from workbench.models.sites import Site
from workbench.store.activation_store import Store

IDS = [[1, 5, 9, 2, 40, 41, 7, 33, 12, 50, 22, 23, 24, 25], [3, 4, 5, 6, 7, 8, 9, 10, 11], [2, 9], [17]]
BASE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "intermediate_size": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
GPT_NEO = {
    "hidden_size": 32,
    "num_layers": 4,
    "num_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "window_size": 6,
    "attention_types": [[["global", "local"], 2]],
    "intermediate_size": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny(kind, config, seed=0):
    """Any architecture, randomly initialised as in tests/architectures.py."""
    torch.manual_seed(seed)
    hf = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**config), attn_implementation="eager").eval()
    for parameter in hf.parameters():
        parameter.data = (
            parameter.data * 6 if parameter.ndim >= 2 else parameter.data + 0.1 * torch.randn_like(parameter)
        )
    return hf


def plain(hf, ids):
    with torch.no_grad():
        return [hf(torch.tensor([row]), output_attentions=True, use_cache=False) for row in ids]


def plain_decode(hf, prompt, steps):
    """Greedy tokens and each step's most attended position of every head, from uncached eager passes."""
    ids, tokens, places = list(prompt), [], []
    for _ in range(steps):
        out = plain(hf, [ids])[0]
        places.append(torch.stack([a[0, :, -1] for a in out.attentions]).argmax(-1))
        tokens.append(int(out.logits[0, -1].argmax()))
        ids.append(tokens[-1])
    return tokens, torch.stack(places)


# the store


def test_stored_captures_do_not_depend_on_the_size_of_batches(tiny_llama, tmp_path, monkeypatch):
    """The same key, read with another batch size, must give every prompt its own rows."""
    monkeypatch.setattr("workbench.engine.stored_capture.SHARD_BYTES", 3000)
    model, store = load(str(tiny_llama)), Store(tmp_path / "store")
    ids = [[1, 2 + i, 3, 4 + i % 5, 7][: 3 + i % 3] for i in range(36)]
    wanted = capture(model, ids, ["resid_post.1"])["resid_post.1"]
    for tokens in (20, 26, 34, 8192):
        found = capture(model, ids, ["resid_post.1"], store=store, max_tokens=tokens)["resid_post.1"]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


# edits


def test_a_position_before_the_start_of_a_prompt_is_refused_not_moved(tiny_llama):
    model = load(str(tiny_llama))
    edit = Patch(Site("resid_post", 1), torch.zeros(model.width), positions=(-4,))
    logits(model, [[1, 5, 6, 7]], edits=[edit])
    with pytest.raises(InputError, match="Position -4 .*is not among"):
        logits(model, [[1, 5, 6]], edits=[edit])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "olmo2", "opt"])
def test_an_edit_between_attention_and_mlp_reaches_the_residual_stream(name):
    """resid_post = resid_mid + mlp_out must hold with the edited resid_mid, so a patch makes the rest of the model the
    donor's."""
    model = wrap(build(name), name=name)
    donor = capture(model, IDS[:1], ["resid_mid.2", "final_norm"], positions="all")
    patch = Patch(Site("resid_mid", 2), donor["resid_mid.2"][None], positions=tuple(range(14)))
    other = [[7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]]
    found = capture(model, other, ["resid_mid.2", "final_norm"], positions="all", edits=[patch])
    torch.testing.assert_close(found["resid_mid.2"], donor["resid_mid.2"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["final_norm"], donor["final_norm"], atol=1e-4, rtol=1e-4)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    acts = capture(
        model,
        other,
        ["resid_mid.1", "mlp_out.1", "resid_post.1"],
        positions="all",
        edits=[ProjectOut(Site("resid_mid", 1), direction)],
    )
    assert (acts["resid_mid.1"] @ direction).abs().max() < 1e-3
    torch.testing.assert_close(acts["resid_mid.1"] + acts["mlp_out.1"], acts["resid_post.1"], atol=1e-5, rtol=1e-5)


def test_knocking_out_a_source_that_had_all_the_attention_leaves_the_next_best():
    """Scores −inf, even where float32 gives the rest of the row no weight at all: what plain Hugging Face attends to
    when its mask hides the source."""

    def sharp():
        hf = build("llama")
        for layer in hf.model.layers:
            layer.self_attn.q_proj.weight.data *= 300
        return hf

    model, plain, ids = wrap(sharp(), name="sharp"), sharp(), IDS[:1]
    T = len(ids[0])
    with torch.no_grad(), observe(model, lambda _l, rows: rows.clone(), layers=[0]) as seen:
        model.forward(pad(ids, pad_id=0))
    row = seen[0][0, :, 0]
    assert (row.amax(-1) == 1).all(), "the case needs rows without any other weight"
    block = plain.model.layers[0]
    with torch.no_grad():
        x = block.input_layernorm(plain.model.embed_tokens(torch.tensor(ids)))
        values = block.self_attn.v_proj(x).unflatten(-1, (2, 8))[0]
    for head, best in enumerate(row.argmax(-1).tolist()):
        mask = torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), torch.finfo(torch.float32).min)
        mask[-1, best] = torch.finfo(torch.float32).min
        with torch.no_grad():
            rows = plain(torch.tensor(ids), attention_mask=mask[None, None], output_attentions=True).attentions[0]
        expected = rows[0, head, -1] @ values[:, head // 2]
        cut = KnockOut((0,), ((best,),), heads=(head,))
        out = capture(model, ids, [f"head_out.0.{head}"], edits=[cut])[f"head_out.0.{head}"][0]
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
        evenly = values[[i for i in range(T) if i != best], head // 2].mean(0)
        assert (expected - evenly).norm() > 1e-2


# architectures


def test_local_layers_of_gpt_neo_are_a_window():
    """Its local attention counts columns, as any sliding window does: no padding may stand inside a sequence."""
    assert wrap(tiny("gpt_neo", GPT_NEO)).sliding


@pytest.mark.parametrize(
    "kind, config",
    [
        ("gpt_neo", GPT_NEO),
        ("mistral", BASE | GROUPED | {"sliding_window": 6}),
        (
            "llama4_text",
            BASE
            | GROUPED
            | {
                "head_dim": 8,
                "attention_chunk_size": 6,
                "intermediate_size_mlp": 48,
                "num_local_experts": 4,
                "no_rope_layers": [1, 0, 1],
            },
        ),
    ],
)
def test_guesses_never_change_a_token_where_attention_slides(kind, config):
    hf, model = tiny(kind, config), wrap(tiny(kind, config), name=kind)
    prompts = IDS[:2]
    reference = [plain_decode(hf, p, 6) for p in prompts]
    guesses = [reference[0][0][:2] + [63, 63], [62]]
    found = greedy_steps(
        model, None, prompts, guesses, max_new_tokens=6, stops=lambda _t: False, spans=torch.tensor([[1], [1]])
    )
    for steps, (tokens, places) in zip(found, reference):
        assert [s.token for s in steps] == tokens
        assert torch.equal(torch.stack([s.reading for s in steps])[..., 0].long(), places)


def test_rows_of_different_lengths_after_a_prefix_are_refused_where_attention_slides():
    model = wrap(build("mistral"), name="mistral")
    past, _ = feed(model, [IDS[0][:7]], None)
    with pytest.raises(InputError, match="window"):
        greedy_steps(model, past.fork(2), [[3, 4, 5], [6]], [(), ()], max_new_tokens=3, stops=lambda _t: False)


@pytest.mark.parametrize(
    "kind, config, groups",
    [
        (
            "gpt_bigcode",
            {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64, "multi_query": False},
            4,
        ),
        (
            "gpt_bigcode",
            {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64, "multi_query": True},
            1,
        ),
        ("falcon", BASE | {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}, 2),
        ("falcon", BASE | {"multi_query": True, "new_decoder_architecture": False, "alibi": False}, 1),
        ("falcon", BASE | {"multi_query": False, "new_decoder_architecture": False, "alibi": False}, 4),
    ],
)
def test_key_value_heads_are_counted_as_the_model_computes_them(kind, config, groups):
    assert wrap(tiny(kind, config)).n_kv_heads == groups


def test_heads_that_are_mixed_before_the_output_projection_are_refused_where_they_are_wanted():
    """BitNet normalises the concatenated heads: what the projection reads is no longer one head's output per slice."""
    model = wrap(tiny("bitnet", BASE | GROUPED))
    with pytest.raises(InputError, match="does not fit head_out.1: heads are mixed before the output projection"):
        capture(model, IDS, ["head_out.1"])
    assert capture(model, IDS, ["resid_post.1"])["resid_post.1"].isfinite().all()


def test_attention_sinks_are_refused_where_rows_are_wanted():
    model = wrap(tiny("gpt_oss", BASE | GROUPED | {"head_dim": 8, "num_local_experts": 4, "sliding_window": 6}))
    with pytest.raises(InputError, match="sinks"):
        logits(model, IDS, edits=[KnockOut((0,), ((0,),))])
    with pytest.raises(InputError, match="rows of layer 0 do not sum to 1"), observe(model, lambda _l, w: w):
        pass


def test_rotations_that_depend_on_the_length_of_the_batch_give_single_numbers_or_a_refusal():
    """Long-context Phi-3 rotates by other factors once any row of a batch is beyond the original context."""
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [8.0] * 4,
        "original_max_position_embeddings": 10,
        "rope_theta": 10000.0,
    }
    config = BASE | GROUPED | {"rope_parameters": rope, "original_max_position_embeddings": 10}
    hf, model = tiny("phi3", config), wrap(tiny("phi3", config), name="phi3")
    reference = plain(hf, IDS)
    alone = torch.cat([logits(model, [row]) for row in IDS])
    torch.testing.assert_close(alone, torch.stack([o.logits[0, -1] for o in reference]), atol=1e-4, rtol=0)
    within = logits(model, IDS[1:])
    torch.testing.assert_close(within, alone[1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(model, IDS), alone, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="one by one"):
        model.forward(pad(IDS, pad_id=0))
    past, _ = feed(model, [IDS[1]], None)
    with pytest.raises(InputError, match="length"):
        feed(model, [[3, 4, 5, 6]], past)


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "gemma2", "olmo2", "phi3"])
def test_blocks_are_read_right_in_low_precision_with_massive_activations(name):
    """A huge residual hides what a sublayer adds below any relative tolerance; the order of the modules must not be
    guessed from it."""
    hf = build(name).to(torch.bfloat16)
    embedding = hf.get_input_embeddings().weight
    with torch.no_grad():
        embedding[:, 3] = 4000.0
    parts = find_anatomy(hf)
    examine(hf, parts, torch.tensor([[1, 5, 9, 2, 40, 41, 7]]))
    assert parts.parallel_blocks == (name == "gpt_neox")
    assert parts.post_norms == (name in ("gemma2", "olmo2"))
    assert all((b.mid_reader is None) == (name == "gpt_neox") for b in parts.blocks)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_small_embeddings_before_a_large_first_layer_are_not_taken_for_a_post_norm(name):
    hf = build(name).to(torch.bfloat16)
    with torch.no_grad():
        hf.get_input_embeddings().weight.mul_(1e-3)
        hf.model.layers[0].self_attn.o_proj.weight.mul_(20)
    parts = find_anatomy(hf)
    examine(hf, parts, torch.tensor([[1, 5, 9, 2, 40, 41, 7]]))
    assert parts.post_norms == (name == "gemma2") and not parts.parallel_blocks


def test_right_padding_needs_no_mask(monkeypatch):
    """Rows of different lengths stay on the causal path of SDPA: no mask reaches the attention."""
    from workbench.models import attention_kernel

    model, masks = wrap(build("llama"), name="llama"), []
    real = attention_kernel.sdpa_attention_forward

    def heard(module, query, key, value, attention_mask, **kwargs):
        masks.append(attention_mask)
        return real(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setattr(attention_kernel, "sdpa_attention_forward", heard)
    logits(model, IDS)
    assert masks and all(mask is None for mask in masks)


# decoding


def test_finished_rows_do_not_grow_beyond_the_context():
    """Absolute positions end at the context: a row that is done must not be pushed past it by the others."""
    hf, model = build("gpt2", n_positions=20), wrap(build("gpt2", n_positions=20), name="gpt2")
    long, short = IDS[0], IDS[1][:4]
    first, second = plain_decode(hf, long, 6)[0], plain_decode(hf, short, 6)[0]
    found = greedy_steps(
        model,
        None,
        [long, short],
        [first[:5], ()],
        max_new_tokens=6,
        stops=lambda _t: False,
        spans=torch.tensor([[1], [1]]),
    )
    assert [[s.token for s in row] for row in found] == [first, second]


# names and needles


def test_an_organisms_name_means_the_organism_wherever_one_stands(tmp_path, monkeypatch):
    from workbench import organisms

    name = next(n for n in organisms.names() if n.startswith("circuit-"))
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve(name) == organisms.folder(name)
    assert resolve(f"./{name}") == tmp_path / name


def test_an_organism_brings_its_material_by_name_and_by_folder():
    """The same weights must be the same experiment, or one run id would stand for two."""
    from workbench.organisms import folder
    from workbench.organisms.needles import shipped

    assert shipped("circuit-copy")["needles"] == shipped(str(folder("circuit-copy")))["needles"]


def test_the_tokenizers_fingerprint_follows_its_chat_template(tiny_llama):
    model, other = load(str(tiny_llama)), load(str(tiny_llama))
    other.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert model.tokenizer_fingerprint != other.tokenizer_fingerprint


def test_the_answer_is_found_where_it_stands_whatever_its_case(tiny_llama):
    """'ß' folds to two letters: offsets must be those of the needle itself."""
    from workbench.models.needle_prompts import read_needle

    model = load(str(tiny_llama))
    needle = read_needle(model, 0, "In Straße ß ß ß the Little Cat sat.", "where?", "little cat", " {question}")
    ids = needle.ids[needle.span[0] : needle.span[1]]
    assert model.decode(list(ids)).strip() == "Little Cat"


def test_braces_in_a_template_are_text(tiny_llama):
    from workbench.models.needle_prompts import read_needle

    model = load(str(tiny_llama))
    needle = read_needle(model, 0, "The cat sat.", "where?", "cat", " {json: {question}}")
    assert "{json: where?}" in model.decode(list(needle.tail))


def test_a_question_that_merges_with_the_full_stop_before_it_keeps_no_part_of_it():
    """Some tokenizers have '.B' as one token: the anchor must not leave a second full stop in the prompt."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from workbench.models.needle_prompts import encode_after

    vocab = {c: i for i, c in enumerate(["[UNK]", ".", "B", "a", "s", "e", "Ġ", ".B"])}
    backend = Tokenizer(models.BPE(vocab, [(".", "B")], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model = wrap(build("llama"), PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    ids, spans = encode_after(model, "Base", leading="")
    assert [model.tokenizer.convert_ids_to_tokens(i) for i in ids] == ["B", "a", "s", "e"]
    assert spans == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_knocked_out_sources_stay_the_same_tokens_when_a_window_has_dropped_old_keys():
    """Generation keeps only a window's keys in sliding layers: its columns are the last ones, not the first."""
    from workbench.engine.generate import greedy

    model = wrap(build("mistral"), name="mistral")
    changed = 0
    for source in (9, 11, 13):
        cut, ids = KnockOut((0, 1, 2), ((source,),), queries="all"), list(IDS[0])
        for _ in range(6):
            ids.append(int(logits(model, [ids], edits=[cut])[0].argmax()))
        assert greedy(model, IDS[:1], max_new_tokens=6, edits=[cut], eos=False)[0] == ids[14:]
        changed += ids[14:] != greedy(model, IDS[:1], max_new_tokens=6, eos=False)[0]
    assert changed, "the case needs a cut that matters"


# retrieval heads


def test_a_masking_that_the_model_cannot_do_is_refused_before_the_detection():
    from probes.retrieval_heads import Config, run
    from workbench.core.context import Context

    with pytest.raises(InputError, match="ablation=zero"):
        run(wrap(build("falcon"), name="falcon"), Config(), Context())


def test_the_summary_says_how_often_maxima_tie_and_gives_random_masking_an_interval_over_trials():
    from workbench.runs.execution import execute

    config = {"lengths": (64, 128), "depths": (0, 50, 100), "max_new_tokens": 10, "mask_k": (1,), "ablation": "zero"}
    run = execute("retrieval-heads", "circuit-copy", config=config)
    assert 0 <= run.summary["tied_maxima"] <= 1
    random, top = run.summary["recall_masking_random_1"], run.summary["recall_masking_top_1"]
    trials = run.table("masked_trials")["trial"].n_unique()
    assert random["n"] == top["n"] == 6 and random["rows"] == top["rows"] == trials == 36  # needles, and their trials
    assert (random["value"], top["value"]) == (1.0, 0.0)


def test_a_forked_past_copies_nothing_until_it_grows():
    model = wrap(build("llama"), name="llama")
    cached, _ = feed(model, [IDS[0]], None)
    cut = cached.first(9).fork(5)
    assert cut.cache.get_seq_length() == 9 and cut.cache.layers[1].keys.shape[0] == 5
    assert (
        cut.cache.layers[1].keys.untyped_storage().data_ptr()
        == cached.cache.layers[1].keys.untyped_storage().data_ptr()
    )
