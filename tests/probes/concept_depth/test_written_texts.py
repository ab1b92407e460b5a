"""Concept depth in a chat: what is fed, read and edited is what plain Hugging Face gives for the template by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from probes import concept_depth
from probes.concept_depth import Config
from probes.concept_depth.chosen_sets import read_sets
from probes.concept_depth.layer_features import layer_features
from probes.concept_depth.written_texts import answer_ids, read_positions, text_spans, write_texts
from tests.support.chat_templates import PLAIN, QWEN, R1, with_template
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.capture import logits
from workbench.engine.edits import ProjectOut
from workbench.models.loading import load
from workbench.models.sites import Site
from workbench.runs import execution as runs

ANSWERS = ("no", "yes")


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def chat(plain):
    return with_template(plain, PLAIN)


@pytest.fixture(scope="module")
def hf(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """60 statements in two lengths, each with the answer word of its class."""
    path = tmp_path_factory.mktemp("sets") / "places.csv"
    names = ("Tom", "Lily", "Ben", "Anna", "Max", "Mia")
    rows = [
        f"{name} saw the {thing}{' near the big old tree' * (k % 3)}.,{k % 2},{ANSWERS[k % 2]}"
        for k, (name, thing) in enumerate(
            (n, t) for n in names for t in "dog cat sun sea car ball cake park boat hat".split()
        )
    ]
    path.write_text("text,label,answer\n" + "\n".join(rows) + "\n")
    return path


def by_hand(model, texts, system=""):
    """Ids of each text as the user's turn, and of its own tokens the first and the last + 1, by the tokenizer alone."""
    tokenizer, found = model.tokenizer, []
    for text in texts:
        turns = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": text}]
        written = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        encoded = tokenizer(written, add_special_tokens=False, return_offsets_mapping=True)
        start = written.index(text)
        own = [k for k, (a, b) in enumerate(encoded["offset_mapping"]) if a < start + len(text) and b > start and b > a]
        found.append((encoded["input_ids"], own[0], own[-1] + 1))
    return found


def slow_states(hf, ids):
    """resid_post of every layer but the last, [L - 1][T, d]."""
    with torch.no_grad():
        return hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[1:-1]


@pytest.mark.parametrize("token", ["last", "text", "mean", -3])
@pytest.mark.parametrize("sinks", ["keep", "leave_out"])
def test_features_are_those_of_plain_hugging_face_on_the_written_chat(chat, hf, data, token, sinks):
    config = Config(template="chat:Is it so? {text}", system="Be brief.", site="resid_post", token=token, sinks=sinks)
    (concept,) = read_sets(config, data)
    written = write_texts(chat, concept.texts, config)
    hand = by_hand(chat, concept.texts, "Be brief.")
    assert concept.texts[0].startswith("Is it so? Tom") and written.ids == [ids for ids, _, _ in hand]
    assert text_spans(chat, written) == [(a, b) for _, a, b in hand]
    features = layer_features(chat, concept, written, config, Context(data=data))
    for row, (ids, start, end) in enumerate(hand):
        for layer, x in enumerate(slow_states(hf, ids)):
            x = x[0].double()
            norms = x.norm(dim=1)
            ordinary = [k for k in range(start, end) if sinks == "keep" or k == 0 or norms[k] <= 10 * norms.median()]
            expected = {"last": x[-1], "text": x[end - 1], "mean": x[ordinary].mean(0), -3: x[-3]}[token]
            torch.testing.assert_close(features[layer][row].double(), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("token", ["last", "text", "mean"])
def test_the_edit_of_the_causal_check_is_made_where_the_probe_reads(chat, hf, data, token):
    config = Config(template="chat", token=token, site="resid_post")
    (concept,) = read_sets(config, data)
    written = write_texts(chat, concept.texts[:4], config)
    direction = torch.randn(chat.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unit = (direction / direction.norm()).float()
    edit = ProjectOut(Site("resid_post", 1), direction, positions=read_positions(chat, written, token))
    found = logits(chat, written.ids, edits=(edit,))
    for row, (ids, start, end) in enumerate(by_hand(chat, concept.texts[:4])):
        at = {"last": [len(ids) - 1], "text": [end - 1], "mean": list(range(start, end))}[token]

        def without(_module, _args, output, at=at):
            x = (output[0] if isinstance(output, tuple) else output).clone()
            x[:, at] -= (x[:, at] @ unit)[..., None] * unit
            return (x, *output[1:]) if isinstance(output, tuple) else x

        handle = hf.model.layers[1].register_forward_hook(without)
        with torch.no_grad():
            expected = hf(torch.tensor([ids])).logits[0, -1]
        handle.remove()
        torch.testing.assert_close(found[row], expected, atol=2e-4, rtol=1e-4)


def test_a_run_in_a_chat_feeds_the_chat_and_checks_the_answers_after_its_header(chat, data, tmp_path):
    config = {"template": "chat", "noise": True, "split": "kfold", "draws": 100, "shuffles": 0, "random_draws": 1}
    run = runs.execute("concept-depth", chat, data=data, config=config, out=tmp_path / "run")
    texts = read_sets(Config(), data)[0].texts
    inputs = run.table("inputs")
    hand = [ids for ids, _, _ in by_hand(chat, texts)]
    assert inputs.filter(condition="clean")["ids"].to_list() == hand
    noisy = inputs.filter(condition="noise")["ids"].to_list()
    both = [{str(ids) for ids, _, _ in by_hand(chat, [f"{p} {text}" for p in ("aaa", "bbb")])} for text in texts]
    assert all(str(ids) in found for ids, found in zip(noisy, both)) and len(noisy) == len(texts)
    causal = run.table("causal")
    scores = logits(chat, hand)
    words = [chat.tokenizer(f"<|assistant|>{w}", add_special_tokens=False)["input_ids"] for w in ANSWERS]
    header = len(chat.tokenizer("<|assistant|>", add_special_tokens=False)["input_ids"])
    difference = scores[:, words[1][header]] - scores[:, words[0][header]]
    tested = inputs.filter(condition="clean", fold=0)["row"].to_list()
    labels = inputs.filter(condition="clean", fold=0)["label"].to_numpy()
    right = (difference[tested].numpy() > 0) == (labels == 1)
    assert causal.filter(direction="none")["answer_accuracy"][0] == pytest.approx(right.mean())
    assert set(causal["direction"]) == {"none", "probe", "random"}


def test_an_answer_follows_the_header_as_the_template_writes_answers(plain, data):
    (concept,) = read_sets(Config(), data)
    spaced = PLAIN.replace("|>{{ m.content }}", ">: {{ m.content }}").replace("<|assistant|>", "<|assistant>:")
    lined = PLAIN.replace("|>{{ m.content }}", "|>\n{{ m.content }}").replace("<|assistant|>", "<|assistant|>\n")
    for template, space in ((spaced, " "), (lined, ""), (PLAIN, ""), (QWEN, "")):
        model = with_template(plain, template)
        written = write_texts(model, concept.texts[:1], Config(template="chat"))
        assert written.prompts is not None
        text = written.prompts[0].text
        expected = model.tokenizer(f"{text}{space}yes", add_special_tokens=False)["input_ids"]
        assert [*written.ids[0], *(answer_ids(model, concept, written, "yes") or ())] == expected
    assert text.endswith("<think>\n\n</think>\n\n")  # thinking is off unless asked for
    with pytest.raises(InputError, match="inside a block of thinking.*thinking=off, or causal=off"):
        model = with_template(plain, R1)
        answer_ids(model, concept, write_texts(model, concept.texts[:1], Config(template="chat", thinking="on")), "yes")


def test_frames_and_ways_are_two_things_and_raw_is_the_default(plain, chat, data):
    frames = {
        "chat": "{text}",
        "chat:plain": "{text}",
        "chat:So: {text}?": "So: {text}?",
        "raw": "{text}",
        "auto": "{text}",
    }
    for template, frame in frames.items():
        assert read_sets(Config(template=template), data)[0].template == frame
    texts = list(read_sets(Config(), data)[0].texts)
    as_before = plain.encode_all(texts)
    for model, template in ((plain, "file"), (chat, "file"), (chat, "raw"), (plain, "auto"), (chat, "{text}")):
        assert write_texts(model, texts, Config(template=template)).ids == as_before
    assert (
        write_texts(chat, texts, Config(template="auto")).ids == write_texts(chat, texts, Config(template="chat")).ids
    )
    doubled = write_texts(plain, [f"<s>{texts[0]}", texts[1]], Config()).ids
    assert doubled[0].count(plain.bos_id) == 1 and doubled[1] == as_before[1]


def test_published_prompts_become_the_users_turn(chat, tmp_path):
    path = tmp_path / "cities.csv"
    path.write_text(
        "statement,label\n" + "".join(f"The city of Place{i} is in Land{i % 7}.,{i % 2}\n" for i in range(30))
    )
    for template, named in (("chat", "file"), ("chat:code", "code")):
        framed, alone = (read_sets(Config(template=t), path)[0] for t in (template, named))
        assert framed.texts == alone.texts and framed.template == alone.template != "{text}"
    prompt = write_texts(chat, framed.texts[:1], Config(template="chat:code")).prompts[0]
    assert prompt.text == f"<|user|>{framed.texts[0]}<|end|>\n<|assistant|>"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"system": "Be brief."}, "a system message needs a chat template.*template=file"),
        ({"template": "plain", "thinking": "on"}, "thinking=on needs a chat template.*template=plain"),
        ({"template_args": ("a:1",), "template": "Q {text}"}, "template_args are for a chat template.*text of its own"),
        ({"template": "chat:no slot"}, "The template must be"),
        ({"template": "{text} {text}"}, "The template must be"),
        ({"template": "chat", "template_args": ("a",)}, "takes name:value"),
    ],
)
def test_keys_that_cannot_go_together_are_one_sentence(config, said):
    with pytest.raises(ValueError, match=said) as error:
        Config(**config)
    assert "\n" not in str(error.value)


def test_a_chat_on_a_model_without_a_template_and_a_cut_chat_are_refused(plain, chat, data):
    context = Context(data=data)
    with pytest.raises(InputError, match="has no chat template"):
        concept_depth.run(plain, Config(template="chat"), context)
    with pytest.raises(InputError, match="knows no thinking"):
        concept_depth.run(chat, Config(template="chat", thinking="on"), context)
    short = with_template(plain, PLAIN)
    longest = max(len(ids) for ids, _, _ in by_hand(chat, read_sets(Config(), data)[0].texts))
    short.context_length = longest - 1
    with pytest.raises(InputError, match=f"row .* has {longest} tokens, where {longest - 1} fit"):
        concept_depth.run(short, Config(template="chat"), context)
    with pytest.raises(InputError, match="goes on behind the texts of 'places'.*long=skip, or template=raw"):
        concept_depth.run(short, Config(template="chat", long="cut"), context)


def test_new_keys_at_their_defaults_are_no_part_of_a_run(data):
    from workbench.runs.description import identify

    model = "organism"
    ready = [
        runs.prepare("concept-depth", more, data, model=model)
        for more in ({}, {"template": "chat", "system": "Be brief."})
    ]
    ids = [identify(one, load(model), seed=0)["config"] for one in ready]
    assert not {"system", "thinking", "template_args"} & set(ids[0]) and ids[1]["system"] == "Be brief."
