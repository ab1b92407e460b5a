"""Scores, recall and the end of an answer are taken on what follows the thinking."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.retrieval_heads.answers import warn_of_answers
from probes.retrieval_heads.config import Config
from probes.retrieval_heads.detection import measure
from probes.retrieval_heads.haystack import Haystack
from probes.retrieval_heads.head_scores import score
from probes.retrieval_heads.masking import Masking, mask
from probes.retrieval_heads.needle_grid import read_grid
from probes.retrieval_heads.shipped import material
from tests.probes.retrieval_heads.test_retrieval_heads import HAYSTACK, NEEDLES
from tests.support.chat_templates import PLAIN, QWEN, R1, with_template
from workbench.core.config import build
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models import thinking
from workbench.models.answer_ends import answer_text, stop_rule
from workbench.models.loading import load
from workbench.models.needle_prompts import split_template
from workbench.models.prompt_style import PromptStyle
from workbench.models.thinking import NO_THINKING, ThinkingSpan, ThinkingTags, thinking_splitter


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture
def grid(tmp_path):
    """grid(model, **config) → the grid, its config and a context."""
    (tmp_path / "needles.jsonl").write_text("".join(json.dumps(n) + "\n" for n in NEEDLES))
    (tmp_path / "haystack.txt").write_text(HAYSTACK)

    def made(model, **keys):
        shape = {"haystack": str(tmp_path / "haystack.txt"), "lengths": (160,), "depths": (0, 60)}
        config = build(Config, shape | {"max_new_tokens": 16, "keep": "all"} | keys, literal=True)
        context = Context(seed=0, data=tmp_path / "needles.jsonl")
        return read_grid(model, config, context), config, context

    return made


def slow(tiny_llama, trial, *, closing, words, max_new_tokens, tokenizer, eos):
    """Plain greedy decoding with eager attention: the emitted ids, how many are thinking (up to the first token with
    which `closing` is complete; all without it, none where it is None), and Eq. 1 of what follows [layers, H]."""
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32, attn_implementation="eager").eval()
    ids, (start, end) = list(trial.ids), trial.span
    generated, attended, thought = [], [], 0 if closing is None else None
    with torch.no_grad():
        past, token = hf(torch.tensor([ids[:-1]]), use_cache=True).past_key_values, ids[-1]
        while len(generated) < max_new_tokens:
            out = hf(torch.tensor([[token]]), past_key_values=past, use_cache=True, output_attentions=True)
            token = int(out.logits[0, -1].argmax())
            generated.append(token)
            attended.append(torch.stack([a[0, :, -1].argmax(-1) for a in out.attentions]).numpy())
            if token in eos:
                break
            if thought is None:
                if closing in tokenizer.decode(generated):
                    thought = len(generated)
                continue
            piece, answer = tokenizer.decode([token]), tokenizer.decode(generated[thought:])
            if any(word in piece and (word.strip() or any(map(str.isalnum, answer))) for word in words):
                break
    thought = len(generated) if thought is None else thought
    wanted, steps = set(ids[start:end]), list(zip(generated, attended))[thought:]
    copied = [
        [
            len({t for t, a in steps if start <= a[l, h] < end and ids[a[l, h]] == t})
            for h in range(attended[0].shape[1])
        ]
        for l in range(len(attended[0]))
    ]
    return generated, thought, np.array(copied) / len(wanted)


@pytest.mark.parametrize("thinks", [False, True], ids=["no thinking", "thinking"])
def test_answers_after_the_thinking_equal_plain_greedy_decoding(plain, tiny_llama, grid, monkeypatch, thinks):
    """Fast path, scores and masking, against a loop in plain transformers. The closing tag is something that the random
    model says in the middle of its responses."""
    model = with_template(plain, R1)
    found, config, context = grid(model, thinking="auto", stop=("Zz",))
    said = measure(model, config, context, found, Haystack(model, found.haystack)).generated
    pieces = [model.token_strings(ids) for ids in said]
    closing = next(
        p for p in pieces[0][2:10] if p.strip() and sum(p in "".join(row[:-1]) for row in pieces) >= len(pieces) // 2
    )
    if not thinks:
        closing, model = None, plain
    else:
        monkeypatch.setattr(thinking, "TAGS", (ThinkingTags("<think>", closing),))
    words = tuple(dict.fromkeys(["\n", " ", *(row[-3].strip() or "\n" for row in pieces[:2])]))
    found, config, context = grid(model, thinking="auto", stop=words)
    haystack = Haystack(model, found.haystack)
    measured = measure(model, config, context, found, haystack)
    how = {"closing": closing, "words": words, "max_new_tokens": 16, "tokenizer": model.tokenizer, "eos": model.eos_ids}
    states = set()
    for i, trial in enumerate(found.trials):
        generated, thought, scores = slow(tiny_llama, trial, **how)
        assert measured.generated[i] == generated and measured.thinking[i].end == thought
        assert measured.responses[i] == model.decode(generated[thought:]).strip()
        assert len(measured.steps[i][0]) == len(generated) - thought
        np.testing.assert_allclose(score(trial, measured.steps[i], "set"), scores, atol=1e-6)
        assert np.isnan(measured.mass[i]).all() == (len(generated) == thought)
        states.add(measured.thinking[i].state)
    assert "finished" in states if thinks else states == {"none"}
    numbers = list(range(len(found.trials)))
    masked = mask(model, config, context, found, haystack, numbers, [Masking(0, "top", 0, ())])
    assert masked.sort("trial")["response"].to_list() == measured.responses


def test_a_leading_line_break_does_not_end_an_answer_and_none_ends_the_thinking(plain):
    model = with_template(plain, QWEN)
    split = thinking_splitter(model, inside=False)
    stops = stop_rule(model, ("\n", "."), split)

    def ends(text):
        """After which of its characters the response ends."""
        ids = model.encode(text, bos=False)
        at = next((k for k in range(1, len(ids) + 1) if stops(ids[:k])), None)
        return None if at is None else model.decode(ids[:at])

    assert ends("Lily\nTom") == "Lily\n"
    assert ends("\n\n*\nLily\nTom") == "\n\n*\nLily\n"
    assert ends("\n . Tom") == "\n ."  # a stop that is no white space ends it at once
    assert ends("<think>\nTom ran.\n\n</think>\n\nLily\nTom") == "<think>\nTom ran.\n\n</think>\n\nLily\n"
    assert ends("<think>\nTom ran.\nHe") is None
    assert stops([*model.encode("<think>", bos=False), model.eos_ids[0]])
    ids = model.encode("<think>\nTom.</think>\n\n Lily", bos=False)
    assert answer_text(model, ids, split) == "Lily" and answer_text(model, ids[: split(ids).end - 1], split) == ""


@pytest.mark.parametrize(
    ("answers", "spans", "says"),
    [
        (["", "", "x"], [NO_THINKING] * 3, "2 are empty"),
        (["<tool>", "[INST] x", "x"], [NO_THINKING] * 3, "2 begin with a tag"),
        (["", "", "x"], [ThinkingSpan(5, "unfinished")] * 2 + [NO_THINKING], "not finished within max_new_tokens=50"),
        (["", "x", "y"], [NO_THINKING] * 3, None),
    ],
)
def test_most_answers_empty_tagged_or_unfinished_is_a_warning_that_says_what_to_set(answers, spans, says):
    context = Context()
    warn_of_answers(answers, spans, Config(), context)
    assert len(context.warnings) == (says is not None)
    for warning in context.warnings:
        assert says in warning and "set thinking=off, a larger max_new_tokens or another template" in warning


def test_a_model_with_a_chat_template_is_asked_in_it_and_any_other_with_the_papers_text(plain):
    paper = ("", "Based on the content of the book, Question: {question}\nAnswer:", False)
    chat = ("<|user|><book>", f"</book>\n{paper[1]}<|end|>\n<|assistant|>", False)
    assert split_template(plain, PromptStyle()) == paper == split_template(plain, PromptStyle("raw"))
    assert split_template(with_template(plain, PLAIN), PromptStyle()) == chat
    r1 = with_template(plain, R1)  # writes BOS, which is put in front of the tokens
    assert split_template(r1, PromptStyle()) == (chat[0], chat[1] + "<think>\n", True)
    assert split_template(r1, PromptStyle(thinking="off"))[1:] == (chat[1] + "<think>\n\n</think>\n\n", False)
    own = split_template(r1, PromptStyle("chat:{context} | {question}", system="Be brief.", thinking="off"))
    assert own[0] == "<|system|>Be brief.<|end|>\n<|user|>" and own[1].startswith(" | {question}<|end|>")
    with pytest.raises(InputError, match="use template=paper"):
        split_template(with_template(plain, PLAIN.replace("m.content", "m.content | upper")), PromptStyle())


def test_what_ships_with_a_model_goes_before_auto():
    assert material(Config(), "some/model")["template"] == "auto"
    assert "{context} Question" in material(Config(), "organism")["template"]
    assert "template" not in material(Config(template="paper"), "some/model")


def test_a_question_before_its_context_is_refused():
    with pytest.raises(InputError, match=r"\{question\} before \{context\}"):
        build(Config, {"template": "{question} {context}"})
