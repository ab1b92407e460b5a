"""What is fed is what was asked for: a text in its template, its place in what is fed, thinking on and off."""

import types
from dataclasses import replace

import pytest

from tests.support.chat_templates import (
    CHANNELS,
    COHERE,
    GRANITE,
    MAGISTRAL,
    PLAIN,
    QWEN,
    R1,
    R1_ITSELF,
    THINKING,
    V31,
    with_template,
)
from workbench.core.errors import InputError
from workbench.models.load_options import DAY
from workbench.models.loading import load
from workbench.models.prompt_style import (
    PromptStyle,
    check_style,
    style_of,
    token_span,
    way_of,
    write_messages,
    write_prompt,
)
from workbench.models.prompt_templates import prompt_ids


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def chat(plain):
    return lambda template=PLAIN: with_template(plain, template)


def write(model, text="Who is Lily?", **keys):
    fixed = {name: keys.pop(name) for name in ("prefix", "answer") if name in keys}
    return write_prompt(model, {"prompt": text}, style=PromptStyle(**keys), **fixed)


def test_auto_is_the_chat_template_where_there_is_one_and_the_bare_text_elsewhere(plain, chat):
    assert write(plain).text == "Who is Lily?" and write(plain).ids == plain.encode("Who is Lily?")
    assert write(chat()).text == "<|user|>Who is Lily?<|end|>\n<|assistant|>"
    assert write(chat(), template="raw").ids == write(plain).ids
    assert write(chat(), template="chat").ids == write(chat()).ids == prompt_ids(chat(), "Who is Lily?")
    assert [way_of(m, PromptStyle()) for m in (plain, chat())] == ["raw", "chat"]


def test_a_text_of_ones_own_is_raw_or_the_users_turn(plain, chat):
    assert write(chat(), template="Q: {prompt}\nA:").text == "Q: Who is Lily?\nA:"
    assert write(chat(), template="chat:Say {prompt} now").text == "<|user|>Say Who is Lily? now<|end|>\n<|assistant|>"
    with pytest.raises(InputError, match="has no chat template"):
        write(plain, template="chat:{prompt}")


def test_a_text_that_looks_like_a_slot_is_left_as_it_is(plain):
    fields = {"context": "see {question}", "question": "{context}?"}
    found = write_prompt(plain, fields, style=PromptStyle("raw"), plain="{context}|{question}")
    assert found.text == "see {question}|{context}?"
    assert {name: found.text[a:b] for name, (a, b) in found.spans.items()} == fields


@pytest.mark.parametrize("template", ["raw", "chat", "Lily? {prompt} Lily?", "chat:Lily? {prompt} Lily?"])
@pytest.mark.parametrize("text", ["Lily?", "user", " Who is Lily? \n", "<|end|>", "assistant user"])
def test_the_place_of_the_text_is_found_by_character_and_by_token(chat, template, text):
    """Also where its words stand in the template too."""
    for model in (chat(), chat(PLAIN.replace("m.content", "m.content | trim"))):
        found = write(model, text, template=template, system="" if template[0] != "c" else "Who is Lily? user")
        a, b = found.spans["prompt"]
        assert found.text[a:b].strip() == text.strip()
        assert found.text[:a].count("<|user|>") == (template[0] == "c") and "<|assistant|>" not in found.text[:b]
        start, end = token_span(model, found, "prompt")
        assert text.strip() in model.tokenizer.decode(found.ids[start:end], skip_special_tokens=False)
        if text == text.strip():
            inner = model.tokenizer.decode(found.ids[start + 1 : end - 1], skip_special_tokens=False)
            assert text not in inner


def test_bos_is_never_there_twice(plain, chat):
    assert write(plain, "<s> Hi").ids.count(plain.bos_id) == 1
    assert write(chat("{{ bos_token }}" + PLAIN)).ids.count(plain.bos_id) == 1
    found = write(plain, "<s> Lily")
    assert token_span(plain, found, "prompt") == (0, len(found.ids))


# template, thinking → what stands after the user's turn, and whether the response begins inside a block
HEADERS = {
    "Qwen3": (QWEN, {"auto": ("", False), "on": ("", False), "off": ("<think>\n\n</think>\n\n", False)}),
    "R1": (R1, {"auto": ("<think>\n", True), "on": ("<think>\n", True), "off": ("<think>\n\n</think>\n\n", False)}),
    "R1 that opens itself": (
        R1_ITSELF,
        {"auto": ("", False), "on": ("<think>\n", True), "off": ("<think>\n\n</think>\n\n", False)},
    ),
    "V3.1": (V31, {"auto": ("</think>", False), "on": ("<think>", True), "off": ("</think>", False)}),
    "Granite": (GRANITE, {"auto": ("", False), "on": ("", False), "off": ("", False)}),
    "Magistral": (
        MAGISTRAL,
        {"auto": ("", False), "on": ("[THINK]", True), "off": ("[THINK][/THINK]", False)},
    ),
    "Cohere": (
        COHERE,
        {"auto": ("", False), "on": ("", False), "off": ("<|START_THINKING|><|END_THINKING|>", False)},
    ),
    "channels": (
        CHANNELS,
        {
            "auto": ("", False),
            "on": ("<|channel|>analysis<|message|>", True),
            "off": ("<|channel|>final<|message|>", False),
        },
    ),
    "no thinking": (PLAIN, {"auto": ("", False), "off": ("", False)}),
}
CASES = [(name, thinking) for name, (_, headers) in HEADERS.items() for thinking in headers]


@pytest.mark.parametrize(("name", "thinking"), CASES, ids=[f"{a}, {b}" for a, b in CASES])
def test_thinking_is_switched_or_its_block_opened_or_filled(chat, name, thinking):
    template, headers = HEADERS[name]
    found = write(chat(template), "Is <think> a tag?", thinking=thinking)
    header = found.text.rpartition("assistant")[2].removeprefix("|>")
    assert (header, found.thinks) == headers[thinking]
    assert ("thoughts" in found.text) == (name == "Granite" and thinking == "on")


def test_thinking_of_a_model_that_knows_none_is_refused(plain, chat):
    with pytest.raises(InputError, match="knows no thinking"):
        write(chat(), thinking="on")
    with pytest.raises(InputError, match="thinking=on needs a chat template"):
        write(plain, thinking="on")
    with pytest.raises(InputError, match="ends every prompt after a block"):
        write(chat(PLAIN.replace("<|assistant|>", "<|assistant|><think></think>")), thinking="on")
    assert write(plain, thinking="off").ids == write(plain).ids


def test_a_beginning_of_the_answer_follows_the_header_and_never_stands_in_the_thinking(chat):
    assert write(chat(QWEN), thinking="off", prefix="It is").text.endswith("</think>\n\nIt is")
    assert write(chat(), template="raw", prefix=" It is").text == "Who is Lily? It is"
    with pytest.raises(InputError, match="inside a block of thinking.*thinking=off"):
        write(chat(R1), prefix="It is")


def test_arguments_reach_the_template_and_unknown_ones_are_refused(chat):
    model = chat(PLAIN + "{% if mood %}({{ mood }} {{ level + 1 }}){% endif %}")
    assert write(model, arguments=(("mood", "calm"), ("level", 2))).text.endswith("(calm 3)")
    with pytest.raises(InputError, match=r"no argument 'mod' \(did you mean 'mood'\?\); it reads level, mood"):
        write(model, arguments=(("mod", "calm"),))
    with pytest.raises(InputError, match="it reads none"):
        write(chat(), arguments=(("mood", "calm"),))
    with pytest.raises(InputError, match="cannot give 'messages'"):
        write(chat(), arguments=(("messages", "x"),))
    with pytest.raises(InputError, match="template_args need a chat template"):
        write(chat(), template="raw", arguments=(("mood", "calm"),))
    assert write(chat(QWEN), arguments=(("enable_thinking", False),)).text == write(chat(QWEN), thinking="off").text
    with pytest.raises(InputError, match="sets enable_thinking itself"):
        write(chat(QWEN), thinking="on", arguments=(("enable_thinking", False),))


def test_a_system_message_needs_a_chat_template(plain, chat):
    assert write(chat(), system="Be kind.").text.startswith("<|system|>Be kind.<|end|>\n<|user|>Who")
    with pytest.raises(InputError, match="A system message needs a chat template"):
        write(plain, system="Be kind.")


TALK = [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "Who is Lily?")]


def test_a_conversation_is_written_turn_by_turn(chat):
    found = write_messages(chat(), TALK, style=PromptStyle(), answer=True, prefix="She")
    assert found.text == (
        "<|system|>Be kind.<|end|>\n<|user|>a<|end|>\n<|assistant|>b<|end|>\n<|user|>Who is Lily?<|end|>\n"
        "<|assistant|>She"
    )
    assert found.text[slice(*found.spans["text"])] == "Who is Lily?"
    ended = write_messages(chat(), [*TALK, ("assistant", "Me")], style=PromptStyle(), answer=False)
    assert ended.text.endswith("<|assistant|>Me<|end|>\n") and ended.text[slice(*ended.spans["text"])] == "Me"
    long = [("user", "a"), ("assistant", "b")] * 20 + [("user", "c")]
    assert write_messages(chat(), long, style=PromptStyle(), answer=True).text.count("<|user|>") == 21


def test_one_message_is_a_prompt(plain, chat):
    for model in (plain, chat()):
        found = write_messages(model, [("user", "Hi")], style=PromptStyle(), answer=True)
        assert found.ids == write(model, "Hi").ids and found.text[slice(*found.spans["text"])] == "Hi"


def test_conversations_that_cannot_be_written_are_refused(plain, chat):
    def refused(model, turns, match, answer=True, **keys):
        with pytest.raises(InputError, match=match):
            write_messages(model, turns, style=PromptStyle(**keys), answer=answer)

    refused(plain, TALK, "conversation of 4 messages needs a chat template")
    refused(chat(), [*TALK, ("assistant", "x")], "ends with the message of the assistant")
    refused(chat(), TALK, "system message of its own", system="x")
    refused(chat(), TALK, "writes one turn", template="chat:{prompt}")
    no_tool = "{% for m in messages if m.role != 'tool' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    refused(chat(no_tool), [("user", "a"), ("tool", "b"), ("user", "c")], "leaves out the tool's result; take the tool")
    last = "{{ messages[0].content }}{{ messages[-1].content }}"
    refused(chat(last), [("user", "a"), ("assistant", "b"), ("user", "c")], "leaves out the answer")
    refused(chat(QWEN), [("user", "a"), ("assistant", "<think>x</think>b"), ("user", "c")], "changes the answer")
    refused(chat(), [], "at least one message")


def test_a_style_is_made_of_the_keys_that_a_config_has():
    config = types.SimpleNamespace(template="chat", thinking="off", template_args=("a:1", "b:true", "c:x:y"))
    assert style_of(config) == PromptStyle("chat", "", "off", (("a", 1), ("b", True), ("c", "x:y")))
    assert style_of(types.SimpleNamespace()) == PromptStyle()


@pytest.mark.parametrize("template", THINKING.values(), ids=THINKING)
def test_every_thinking_template_keeps_a_conversation(chat, template):
    model = chat(template)
    for thinking in ("auto", "on", "off"):
        found = write_messages(model, TALK, style=PromptStyle(thinking=thinking), answer=True)
        assert all(text in found.text for _, text in TALK)
        check_style(model, replace(PromptStyle(), thinking=thinking))


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["deepseek_v3", "gemma3", "llama2", "llama3_1", "qwen3"])
def test_published_tokenizers_are_written_as_transformers_writes_them(shared, name):
    """Text, place and thinking, against plain transformers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared(f"tokenizers/{name}"))
    model = tokenizer_only(tokenizer, name)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c?"}]
    talk = [(turn["role"], turn["content"]) for turn in turns]
    if name == "llama2":
        assert write(model).ids == tokenizer("Who is Lily?")["input_ids"]
        return
    found = write_messages(model, talk, style=PromptStyle(), answer=True)
    assert found.ids == list(tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"])
    start, end = token_span(model, found, "text")
    assert tokenizer.decode(found.ids[start:end]) == "c?"
    off = write_messages(model, talk, style=PromptStyle(thinking="off"), answer=True)
    wanted = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, enable_thinking=False)
    assert off.text == wanted
    if name != "qwen3":
        with pytest.raises(InputError, match="knows no thinking"):
            write(model, thinking="on")


def tokenizer_only(tokenizer, name):
    """What a prompt needs of a model, without its weights."""
    from workbench.models.model import Model

    model = object.__new__(Model)
    model.__dict__.update(tokenizer=tokenizer, name=name, day=DAY)
    model.__dict__["prepends_bos"] = bool(tokenizer.bos_token) and tokenizer("a")["input_ids"][:1] == [
        tokenizer.bos_token_id
    ]
    return model
