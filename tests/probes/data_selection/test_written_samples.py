"""Data selection in a chat: what is fed and what counts is what the tokenizer's own template gives, by hand."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.data_selection import sample_vectors
from probes.data_selection.config import Config
from probes.data_selection.samples import tokenize
from tests.support.chat_templates import GRANITE, PLAIN, QWEN, with_template
from tests.support.selection_pool import execute, read, write
from workbench.core.errors import InputError
from workbench.core.sample_tables import read_samples, texts
from workbench.models.loading import load
from workbench.models.prompt_style import PromptStyle
from workbench.runs import execution as runs

TALK = [
    ("system", "Be kind."),
    ("user", "Who is Tom? "),
    ("assistant", "Tom is a cat."),
    ("user", "Tom is a cat. And Lily?"),
    ("assistant", "Lily is Tom."),
]
CHAT = PromptStyle("chat")


@pytest.fixture(scope="module")
def chat(tiny_llama):
    return with_template(load(str(tiny_llama)), PLAIN)


def talk(turns):
    return {"messages": [{"role": role, "content": said} for role, said in turns]}


def by_hand(model, turns, **more):
    """Ids of a talk, and which tokens hold what the assistant says: turn by turn, from what is written before it."""
    tokenizer = model.tokenizer
    messages = [{"role": role, "content": said} for role, said in turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False, **more)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = []
    for number, (role, said) in enumerate(turns):
        if role == "assistant":
            before = tokenizer.apply_chat_template(messages[: number + 1], tokenize=False, **more)
            start = before.rindex(said.strip())
            spans.append((start, start + len(said.strip())))
    inside = [any(a < stop and b > start and b > a for start, stop in spans) for a, b in encoded["offset_mapping"]]
    return encoded["input_ids"], np.array(inside)


@pytest.mark.parametrize("part", ["all", "response", "prompt"])
def test_talks_are_fed_turn_by_turn_and_all_that_the_assistant_says_is_the_response(chat, tmp_path, part):
    talks = [TALK, TALK[1:], TALK[1:3], [("user", "Yes."), ("assistant", "Yes.")]]
    table = read_samples(write(tmp_path / "pool.jsonl", [talk(turns) for turns in talks]), what="pool")
    found = tokenize(chat, table, what="pool", tokens=part, style=CHAT, specials=True)
    for ids, mask, turns in zip(found.ids, found.masks, talks):
        expected, inside = by_hand(chat, turns)
        own = {"all": np.ones(len(expected), bool), "response": inside, "prompt": ~inside}[part]
        assert ids.tolist() == expected and mask.tolist() == own.tolist()


@pytest.mark.parametrize("template", ["{{ m.content }}[end]", " {{ m.content | trim }} </s> e"])
def test_a_short_response_is_found_where_the_chat_template_puts_it(chat, template):
    model = with_template(chat, "{% for m in messages %}<{{ m.role }}>" + template + "{% endfor %}")
    for response in ("e", "end", "s", " the sea \n"):
        table = pl.DataFrame({"prompt": ["Is it e, end or s?"], "response": [response]})
        found = tokenize(model, table, what="pool", tokens="response", style=CHAT, specials=True)
        turns = [{"role": "user", "content": "Is it e, end or s?"}, {"role": "assistant", "content": response}]
        text = model.tokenizer.apply_chat_template(turns, tokenize=False)
        said = response.strip() if "trim" in template else response
        start = text.index("<assistant>") + len("<assistant>") + ("trim" in template)
        assert text[start : start + len(said)] == said
        encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        inside = [a < start + len(said) and b > start and b > a for a, b in encoded["offset_mapping"]]
        assert found.ids[0].tolist() == encoded["input_ids"] and found.masks[0].tolist() == inside


@pytest.mark.parametrize("part", ["all", "response", "prompt"])
def test_without_a_chat_a_talk_is_one_text_and_the_same_turns_are_the_response(chat, tmp_path, part):
    table = read_samples(write(tmp_path / "pool.jsonl", [talk(TALK)]), what="pool")
    found = tokenize(chat, table, what="pool", tokens=part)
    text = "\n\n".join(said.strip() for _, said in TALK[:-1]) + " " + TALK[-1][1]
    encoded = chat.tokenizer(text, return_offsets_mapping=True)
    first = text.index("Tom is a cat.")
    spans = [(first, first + len("Tom is a cat.")), (len(text) - len("Lily is Tom."), len(text))]
    inside = np.array([any(a < y and b > x and b > a for x, y in spans) for a, b in encoded["offset_mapping"]])
    ordinary = np.array(encoded["input_ids"]) != chat.bos_id
    expected = {"all": ordinary, "response": inside, "prompt": ~inside & ordinary}[part]
    assert found.ids[0].tolist() == encoded["input_ids"] and found.masks[0].tolist() == expected.tolist()
    assert texts(table, "response") == ["Tom is a cat.\n\nLily is Tom."]
    assert texts(table, "prompt") == ["Be kind.\n\nWho is Tom? \n\nTom is a cat. And Lily?"]


def test_scores_in_a_chat_are_those_of_plain_hugging_face_on_the_written_talks(chat, tiny_llama, material, tmp_path):
    from sae_lens import SAE

    config = {"template": "chat", "system": "Be kind.", "tokens": "response", "baselines": (), "features": 0}
    run = execute(chat, material, tmp_path / "run", **config, explain=0, resamples=0)
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32, attn_implementation="eager").eval()
    sae = SAE.load_from_disk(material / "sae")

    def vectors(name):
        out = []
        for row in read(material / name):
            turns = [("system", "Be kind."), ("user", row["prompt"]), ("assistant", row["response"])]
            ids, inside = by_hand(chat, turns)
            with torch.no_grad():
                z = sae.encode(hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0]).double().numpy()
            out.append(z[inside].mean(0))
        return np.array(out)

    pool, p = vectors("pool.jsonl"), vectors("sea.jsonl").mean(0)
    expected = np.array([np.minimum(z, p).sum() / np.maximum(z, p).sum() for z in pool])
    found = run.table("scores").filter(target="sea").sort("row")["score"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_all_talks_begin_with_is_read_once_and_changes_nothing(chat, material, tmp_path, monkeypatch):
    config = {"template": "chat", "system": "You answer questions about places in a few short sentences.", "explain": 0}
    once = execute(chat, material, tmp_path / "once", **config, features=0, resamples=0)
    monkeypatch.setattr(sample_vectors, "beginning", lambda *_, **__: None)
    whole = execute(chat, material, tmp_path / "whole", **config, features=0, resamples=0)
    assert once.info["counters"]["tokens"] < 0.8 * whole.info["counters"]["tokens"]
    np.testing.assert_allclose(once.table("scores")["score"], whole.table("scores")["score"], atol=2e-6)


def test_raw_is_the_default_text_and_auto_asks_the_model(chat, tiny_llama, material):
    plain, table = load(str(tiny_llama)), read_samples(material / "pool.jsonl", what="pool")[:8]
    before = [chat.encode(f"{prompt} {said}") for prompt, said in table.select("prompt", "response").iter_rows()]

    def fed(model, template):
        return [ids.tolist() for ids in tokenize(model, table, what="pool", style=PromptStyle(template)).ids]

    assert before == fed(chat, "raw") == fed(plain, "auto") == fed(chat, "{prompt} {response}")
    assert fed(chat, "auto") == fed(chat, "chat") != before
    double = pl.DataFrame({"text": ["<s> Tom saw the sea."]})
    assert tokenize(plain, double, what="pool").ids[0].tolist().count(plain.bos_id) == 1
    model, rows = with_template(chat, "{{ bos_token }}" + PLAIN), table
    assert all(ids.tolist().count(chat.bos_id) == 1 for ids in tokenize(model, rows, what="pool", style=CHAT).ids)


def test_thinking_and_arguments_reach_the_template(chat):
    table = pl.DataFrame({"prompt": ["Who?"], "response": ["Tom."]})

    def text(model, **style):
        ids = tokenize(model, table, what="pool", style=PromptStyle("chat", **style)).ids[0]
        return model.tokenizer.decode(ids)

    granite = with_template(chat, GRANITE)
    assert "Write your thoughts" in text(granite, thinking="on") and "Write your" not in text(granite)
    named = with_template(chat, "{{ mood }}" + PLAIN)
    assert text(named, arguments=(("mood", "glad"),)).strip().startswith("glad")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"template": "chat:{prompt} {response}"}, "would write one turn.*use template=chat"),
        ({"template": "{response} {prompt}"}, "needs {prompt} and then {response}, or is one of auto, raw, chat"),
        ({"system": "Be kind."}, "a system message needs a chat template"),
        ({"template": "raw", "thinking": "on"}, "thinking=on needs a chat template.*template=raw"),
        ({"template": "chat", "template_args": ("mood",)}, "takes name:value"),
    ],
)
def test_keys_that_cannot_go_together_are_one_sentence(config, said):
    with pytest.raises(ValueError, match=said) as error:
        Config(**config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "config", "said"),
    [
        ([talk(TALK), talk(TALK[:2])], {}, "pool.jsonl, row 2: the talk has no turn of the assistant"),
        ([talk(TALK[1:]), talk(TALK)], {"system": "Be brief."}, "pool.jsonl, row 2: the talk begins with a system"),
        ([{"text": "Tom."}] * 3, {}, "pool.jsonl has texts, not prompts with responses"),
    ],
)
def test_pools_that_are_no_chats_are_refused_before_a_model_is_loaded(material, tmp_path, rows, config, said):
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"template": "chat", "target": (str(material / "sea.jsonl"),), "sae": "none", "k": 1} | config
    with pytest.raises(InputError, match=said) as error:
        runs.execute("data-selection", "no/such-model", data=pool, config=given)
    assert "\n" not in str(error.value)


def test_a_template_that_drops_text_is_one_sentence(chat):
    table = pl.DataFrame({"prompt": ["Who?"], "response": ["<think>Hm.</think>Tom."]})
    with pytest.raises(InputError, match="changes the answer"):
        tokenize(with_template(chat, QWEN), table, what="pool", style=CHAT)
    with pytest.raises(InputError, match="knows no thinking"):
        runs_with(chat, thinking="on")


def runs_with(model, **style):
    table = pl.DataFrame({"prompt": ["Who?"], "response": ["Tom."]})
    return tokenize(model, table, what="pool", style=PromptStyle("chat", **style))


def test_new_keys_at_their_defaults_are_no_part_of_a_run(chat, material):
    from workbench.runs.description import identify

    given = {"target": (str(material / "sea.jsonl"),), "sae": "none"}
    asked = given | {"template": "chat", "system": "Be kind."}
    ready = [runs.prepare("data-selection", one, material / "pool.jsonl", model="organism") for one in (given, asked)]
    ids = [identify(one, chat, seed=0)["config"] for one in ready]
    assert not {"system", "thinking", "template_args"} & set(ids[0]) and ids[1]["system"] == "Be kind."
