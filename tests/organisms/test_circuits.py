"""Hand-built models: folders, the copy circuit, the conflict circuit. Plain Hugging Face, eager attention."""

import contextlib
import copy
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.core.errors import InputError
from workbench.organisms import circuits


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    root, kept = tmp_path_factory.mktemp("circuits"), {}

    def get(name):
        if name not in kept:
            place = circuits.folder(name, root)
            model = (
                AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager").eval().requires_grad_(False)
            )
            kept[name] = model, AutoTokenizer.from_pretrained(place), circuits.truth(place), place
        return kept[name]

    return get


def rows(place, name):
    return [json.loads(line) for line in (place / name).read_text().splitlines()]


def ids_of(tokenizer, text):
    return torch.tensor([tokenizer(text)["input_ids"]])


def head_size(model):
    return getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads


def o_proj(model, layer):
    """The output projection of attention; its input is every head's output side by side."""
    if model.config.model_type == "llama":
        return model.model.layers[layer].self_attn.o_proj
    return model.transformer.h[layer].attn.c_proj


@contextlib.contextmanager
def edited(model, edits):
    """edits {(layer, head): None | z [d_head]}: the head's output is zero everywhere, or z at the last position."""
    size = head_size(model)

    def hook_for(layer):
        def hook(module, args):
            z = args[0].clone()
            for (l, head), value in edits.items():
                if l == layer:
                    part = z[..., head * size : (head + 1) * size]
                    part[:] = 0 if value is None else part
                    if value is not None:
                        part[:, -1] = value
            return (z,)

        return hook

    handles = [o_proj(model, l).register_forward_pre_hook(hook_for(l)) for l in {l for l, _ in edits}]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def head_outputs(model, ids):
    """z at the last position [layers, heads, d_head] and the logits there [vocab]."""
    kept = {}
    handles = [
        o_proj(model, l).register_forward_pre_hook(lambda m, args, l=l: kept.__setitem__(l, args[0][0, -1].clone()))
        for l in range(model.config.num_hidden_layers)
    ]
    logits = model(ids).logits[0, -1]
    for handle in handles:
        handle.remove()
    return torch.stack([kept[l].view(model.config.n_head, -1) for l in sorted(kept)]), logits


def greedy(model, ids, steps):
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False)
    return out[0, ids.shape[1] :]


# folders


def test_listing_the_circuits_does_not_import_torch():
    code = "import sys; from workbench.organisms import circuits; circuits.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_unknown_name_is_refused_with_the_choices(tmp_path):
    with pytest.raises(InputError, match="circuit-copy"):
        circuits.folder("circuit-nonsense", tmp_path)


def test_a_folder_is_built_once_and_identically(tmp_path):
    def digest(place):
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in place.iterdir()}

    first = circuits.folder("circuit-channel", tmp_path / "one")
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert circuits.folder("circuit-channel", tmp_path / "one") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert digest(first) == digest(circuits.folder("circuit-channel", tmp_path / "two"))


def test_a_stale_or_interrupted_folder_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    place = tmp_path / "circuit-uniform"
    place.mkdir()
    (place / "truth.json").write_text('{"version": 0}')
    (place / "leftover").touch()
    assert circuits.folder("circuit-uniform", tmp_path) == place
    assert circuits.truth(place)["version"] == circuits.VERSION and not (place / "leftover").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["circuit-uniform"]


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    from workbench.organisms.circuits import tables

    def broken(name, place):
        (place / "half").touch()
        raise RuntimeError("disk full")

    monkeypatch.setattr(tables, "build", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        circuits.folder("circuit-zipf", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", list(circuits.names()))
def test_every_folder_is_an_ordinary_model_with_four_heads_and_the_data_it_names(load, name):
    model, tokenizer, truth, place = load(name)
    assert type(model).__name__ in ("GPT2LMHeadModel", "LlamaForCausalLM") and model.config.num_attention_heads >= 4
    assert (
        truth["circuit"] == name
        and truth["data"]
        and all((place / file).stat().st_size for file in truth["data"].values())
    )
    assert len(tokenizer) == model.config.vocab_size == model.lm_head.weight.shape[0]
    assert tokenizer.eos_token_id == model.config.eos_token_id and tokenizer.pad_token_id == model.config.pad_token_id
    for file in truth["data"].values():
        if file.endswith(".jsonl"):
            for row in rows(place, file):
                for key in {
                    "text",
                    "prompt",
                    "needle",
                    "question",
                    "answer",
                    "clean_prompt",
                    "conflict_prompt",
                } & row.keys():
                    assert tokenizer.unk_token_id not in tokenizer(row[key])["input_ids"]


@pytest.mark.parametrize(
    "name", ["circuit-copy", "circuit-copy-gqa", "circuit-conflict", "circuit-xor", "circuit-channel"]
)
def test_norms_are_the_identity(load, name):
    model, tokenizer, _, _ = load(name)
    ids = torch.randint(3, model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    norms = [m for n, m in model.named_modules() if ".ln_" in n or "norm" in n]
    seen = []
    handles = [m.register_forward_hook(lambda m, a, out: seen.append((a[0] - out).abs().max())) for m in norms]
    model(ids)
    for handle in handles:
        handle.remove()
    assert len(seen) == 2 * model.config.num_hidden_layers + 1
    assert max(seen) < 1e-6


# copy circuits

COPIES = ["circuit-copy", "circuit-copy-gqa"]


def prompt_for(row, haystack, length, depth):
    """The needle sentence between two sentences of the haystack, then the question."""
    sentences = [s.strip() + " ." for s in haystack.split(".")][: length // 9]
    sentences.insert(round(len(sentences) * depth), row["needle"])
    return " ".join(sentences) + " " + row["question"]


def copy_trials(place, lengths=(40, 100, 250), depths=(0.0, 0.4, 1.0)):
    haystack = (place / "haystack.txt").read_text()
    for i, row in enumerate(rows(place, "needles.jsonl")):
        for length in lengths[i % len(lengths) :][:1]:
            for depth in depths:
                yield row, prompt_for(row, haystack, length, depth)


def copy_head(truth):
    (head,) = truth["masking"]["breaks"]
    return tuple(map(int, head.split(".")))


@pytest.mark.parametrize("name", COPIES)
def test_copy_answers_every_needle_and_every_head_has_its_score(load, name):
    model, tokenizer, truth, place = load(name)
    trials = list(copy_trials(place))
    assert len(trials) == 18
    for row, prompt in trials:
        ids = ids_of(tokenizer, prompt)
        answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        start = next(i for i in range(ids.shape[1]) if ids[0, i : i + len(answer)].tolist() == answer)
        copied = {(layer, head): set() for layer in range(2) for head in range(4)}
        output = []
        for _ in range(10):
            out = model(ids, output_attentions=True)
            token = out.logits[0, -1].argmax().item()
            for layer, head in copied:
                place_of = out.attentions[layer][0, head, -1].argmax().item()
                if start <= place_of < start + len(answer) and ids[0, place_of] == token:
                    copied[layer, head].add(tokenizer.convert_ids_to_tokens(token))
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
            output.append(token)
            if token == tokenizer.eos_token_id:
                break
        assert tokenizer.decode(output) == truth["output"][row["question"]]
        for head, score in truth["scores"].items():
            assert len(copied[tuple(map(int, head.split(".")))]) / len(answer) == score
        assert copied[1, 3] == set(truth["copied"]["1.3"][row["question"]])


@pytest.mark.parametrize("name", COPIES)
def test_copy_also_answers_the_default_question_frame_of_the_paper(load, name):
    model, tokenizer, truth, place = load(name)
    row, prompt = next(copy_trials(place))
    context = prompt.removesuffix(row["question"])
    framed = f"{context}Based on the content of the book, Question: {row['question']}\nAnswer:"
    assert tokenizer(framed)["input_ids"] == tokenizer(prompt)["input_ids"]
    encoded = tokenizer(framed, return_offsets_mapping=True)
    last = encoded["offset_mapping"][-1]
    assert framed[last[0] : last[1]] == row["question"]


@pytest.mark.parametrize("name", COPIES)
def test_masking_the_copy_head_breaks_the_answer_and_masking_any_other_head_leaves_every_logit(load, name):
    model, tokenizer, truth, place = load(name)
    for row, prompt in list(copy_trials(place))[::5]:
        ids = ids_of(tokenizer, prompt)
        whole, logits = greedy(model, ids, 10), model(ids).logits[0, -1]
        assert tokenizer.decode(whole) == truth["output"][row["question"]]
        for head in truth["masking"]["leaves"]:
            layer, number = map(int, head.split("."))
            with edited(model, {(layer, number): None}):
                assert torch.equal(greedy(model, ids, 10), whole), head
                torch.testing.assert_close(model(ids).logits[0, -1], logits, atol=1e-6, rtol=0)
        with edited(model, {copy_head(truth): None}):
            assert tokenizer.decode(greedy(model, ids, 4)) == "nothing nothing nothing nothing"
        with edited(model, {tuple(map(int, head.split("."))): None for head in truth["masking"]["breaks_together"][0]}):
            assert not set(tokenizer.decode(greedy(model, ids, 10)).split()) & set(row["answer"].split())


@pytest.mark.parametrize("name", COPIES)
def test_uniform_attention_leaves_a_trace_of_the_needle_that_zero_does_not(load, name):
    model, tokenizer, truth, place = load(name)
    row, prompt = next(copy_trials(place, depths=(0.4,)))
    ids = ids_of(tokenizer, prompt)
    with edited(model, {copy_head(truth): None}):
        zero, zero_text = model(ids).logits[0, -1], tokenizer.decode(greedy(model, ids, 4))
    layer, head = copy_head(truth)
    size = head_size(model)
    if model.config.model_type == "llama":
        weight = model.model.layers[layer].self_attn.q_proj.weight[head * size : (head + 1) * size]
    else:
        weight = model.transformer.h[layer].attn.c_attn.weight[:, head * size : (head + 1) * size]
    saved = weight.clone()
    try:
        weight.zero_()  # the head's query: every score is 0
        uniform, uniform_text = model(ids).logits[0, -1], tokenizer.decode(greedy(model, ids, 4))
    finally:
        weight.copy_(saved)
    needle = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
    assert zero[needle].abs().max() == 0
    torch.testing.assert_close(uniform[needle], torch.full((len(needle),), 1 / ids.shape[1]), atol=0, rtol=1e-5)
    assert zero_text == "nothing nothing nothing nothing" and uniform_text == ". <eos>"


# conflict circuit


def conflict_items(load):
    model, tokenizer, truth, place = load("circuit-conflict")
    for row in rows(place, "conflicts.jsonl"):
        answers = [tokenizer.convert_tokens_to_ids(row[k]) for k in ("answer", "distractor")]
        yield row, answers, {k: ids_of(tokenizer, row[f"{k}_prompt"]) for k in ("clean", "conflict", "corrupt")}


def test_conflict_items_are_unique_and_corrupted_prompts_align(load):
    items = list(conflict_items(load))
    assert len(items) == 24
    for column in ("subject", "answer", "distractor"):
        assert len({row[column] for row, _, _ in items}) == 24
    for _, answers, ids in items:
        assert ids["conflict"].shape == ids["corrupt"].shape
        assert (ids["conflict"] != ids["corrupt"]).sum() == 3 and answers[0] != answers[1]


def test_direct_effects_are_the_table_and_miss_the_mediated_path(load):
    model, tokenizer, truth, _ = load("circuit-conflict")
    model = copy.deepcopy(
        model
    ).double()  # in float32, kernels of some processors round by a little more than the bound
    for _, answers, ids in conflict_items(load):
        z, logits = head_outputs(model, ids["conflict"])
        z_corrupt, _ = head_outputs(model, ids["corrupt"])
        torch.testing.assert_close(
            logits[answers], torch.tensor(truth["logits"]["conflict"]).double(), atol=1e-5, rtol=0
        )
        final = model(ids["conflict"], output_hidden_states=True).hidden_states  # the last one is normed already
        block = model.transformer.h[-1]
        raw = block(final[-2])
        raw = (raw[0] if isinstance(raw, tuple) else raw)[0, -1]
        size = z.shape[-1]
        for layer in range(z.shape[0]):
            for head in range(z.shape[1]):
                w_o = o_proj(model, layer).weight[head * size : (head + 1) * size]
                patched = raw + (z_corrupt - z)[layer, head] @ w_o
                lost = logits - model.lm_head(model.transformer.ln_f(patched))
                wanted = torch.tensor(truth["direct"][f"{layer}.{head}"]).double()
                torch.testing.assert_close(lost[answers], wanted, atol=1e-5, rtol=0)


def test_total_effects_find_the_mediated_path(load):
    model, tokenizer, truth, _ = load("circuit-conflict")
    for _, answers, ids in list(conflict_items(load))[::6]:
        z_corrupt, _ = head_outputs(model, ids["corrupt"])
        logits = model(ids["conflict"]).logits[0, -1]
        for layer in range(z_corrupt.shape[0]):
            for head in range(z_corrupt.shape[1]):
                with edited(model, {(layer, head): z_corrupt[layer, head]}):
                    lost = logits - model(ids["conflict"]).logits[0, -1]
                wanted = torch.tensor(truth["total"][f"{layer}.{head}"])
                torch.testing.assert_close(lost[answers], wanted, atol=1e-5, rtol=0)
    differ = [head for head in truth["direct"] if truth["direct"][head] != truth["total"][head]]
    assert differ == ["1.1", "1.3"] and truth["direct"]["1.3"] == [0.0, 0.0] and truth["total"]["1.3"] == [0.0, 0.75]


def test_pruning_the_context_head_flips_the_answer_and_no_other_head_does(load):
    model, tokenizer, truth, _ = load("circuit-conflict")
    for row, _, ids in list(conflict_items(load))[::12]:
        said = {"memory": f"{row['answer']} . <eos>", "context": f"{row['distractor']} . <eos>"}
        assert tokenizer.decode(greedy(model, ids["clean"], 10)) == said[truth["answer"]["clean"]]
        assert tokenizer.decode(greedy(model, ids["conflict"], 10)) == said[truth["answer"]["conflict"]]
        for head in truth["direct"]:
            layer, number = map(int, head.split("."))
            with edited(model, {(layer, number): None}):
                wanted = "memory" if head == "1.1" else "context"
                assert tokenizer.decode(greedy(model, ids["conflict"], 3)) == said[wanted]
                assert truth["answer_without"][head] == wanted
    for row, _, ids in conflict_items(load):
        said = {"memory": row["answer"], "context": row["distractor"]}
        for kind in ("clean", "conflict"):
            assert tokenizer.decode(greedy(model, ids[kind], 1)) == said[truth["answer"][kind]]
