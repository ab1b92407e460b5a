"""How conflict items are asked: in a chat template, with answers placed after it and names found in it, against the
template applied by hand and a plain Hugging Face forward pass."""

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.knowledge_conflict.answers import answer_table, clean_right
from probes.knowledge_conflict.asking import TURN, asking
from probes.knowledge_conflict.config import Config
from probes.knowledge_conflict.items import SOURCES, answer_tokens, build_items, read_conflicts
from tests.support.chat_templates import PLAIN, QWEN, R1, R1_ITSELF, with_template
from tests.support.conflict_files import about, conflict_file
from workbench import load
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.passes import Pass
from workbench.runs import execution as runs

NAMES = [("Tom", "dog", "ball"), ("Lily", "cat", "tree"), ("Ben", "park", "car"), ("Sam", "fish", "bird")]
ROWS = [about(*names) for names in NAMES]
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
BROKEN = (  # a line break that stands between header and answer only where the answer is there
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return conflict_file(tmp_path_factory.mktemp("rows") / "rows.jsonl", ROWS)


def items_of(model, data, **config):
    context = Context(data=data)
    how = asking(model, Config(**config))
    return build_items(
        model,
        read_conflicts(data),
        data,
        chosen=range(len(ROWS)),
        room=10,
        rng=context.rng,
        check=lambda: None,
        how=how,
    )[0]


def by_hand(model, prompt, **options):
    """The ids of a chat as Hugging Face makes them."""
    turns = [{"role": "user", "content": TURN.replace("{prompt}", prompt)}]
    text = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    return text, model.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("template, options", [(PLAIN, {}), (QWEN, {"enable_thinking": False}), (LLAMA2, {})])
def test_prompts_and_probabilities_are_those_of_the_template_applied_by_hand(
    plain, tiny_llama, data, template, options
):
    model = with_template(plain, template)
    items = items_of(model, data, template="chat")
    table = answer_table(model, Config(template="chat"), Context(data=data), items, Pass())
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager", dtype=torch.float64)
    gap = " " if template == LLAMA2 else ""
    assert len(items) >= 3
    for item, row in zip(items, table.iter_rows(named=True)):
        source = ROWS[item.row]
        assert item.clean == by_hand(model, source["clean_prompt"], **options)[1]
        text, ids = by_hand(model, source["conflict_prompt"], **options)
        assert item.conflict == ids and ids.count(model.bos_id) == (template == LLAMA2)
        for answer, found in ((source["answer"], item.memory_id), (source["distractor"], item.context_id)):
            assert model.tokenizer(text + gap + answer, add_special_tokens=False)["input_ids"][len(ids)] == found
        with torch.no_grad():
            p = hf(torch.tensor([ids])).logits[0, -1].softmax(-1)
        assert row["p_memory"] == pytest.approx(float(p[item.memory_id]), rel=1e-4)
        assert row["p_context"] == pytest.approx(float(p[item.context_id]), rel=1e-4)


def test_an_answer_follows_a_chat_header_without_a_space_and_a_raw_prompt_with_one(plain, data):
    row, chat = read_conflicts(data)[0], with_template(plain, PLAIN)
    how, prompt = asking(chat, Config(template="chat")), row["clean_prompt"]
    text, ids = by_hand(chat, prompt)
    assert (
        how.first_token(prompt, "dog") == chat.tokenizer(text + "dog", add_special_tokens=False)["input_ids"][len(ids)]
    )
    assert asking(plain).first_token(prompt, "dog") == plain.encode(prompt + " dog")[len(plain.encode(prompt))]
    assert how.first_token(prompt, "dog") != asking(plain).first_token(prompt, "dog")


def test_a_line_break_that_the_template_writes_before_answers_is_part_of_the_prompt(plain, data):
    model = with_template(plain, BROKEN)
    how = asking(model, Config(template="chat"))
    assert how.write("Tom is").text.endswith("<|assistant|>\n")
    memory, context = answer_tokens(model, read_conflicts(data)[0], "here", how)
    assert memory != context


def test_the_answer_begins_with_the_prefix_and_what_follows_is_measured(plain, data):
    model = with_template(plain, PLAIN)
    how = asking(model, Config(template="chat", answer_prefix="The answer is"))
    asked = how.write(ROWS[0]["conflict_prompt"])
    assert asked.text == by_hand(model, ROWS[0]["conflict_prompt"])[0] + "The answer is"
    whole = model.tokenizer(asked.text + " dog", add_special_tokens=False)["input_ids"]
    assert how.first_token(ROWS[0]["conflict_prompt"], "dog") == whole[len(asked.ids)]


@pytest.mark.parametrize("template", ["chat", "chat:France or Tom? {prompt}", "Tom! {prompt} The dog is"])
def test_names_are_found_in_the_written_prompt_and_a_corrupted_one_differs_there_only(plain, data, template):
    """Also where a name stands in the template too: that is no mention of the subject's."""
    model = with_template(plain, PLAIN)
    items = items_of(model, data, template=template)
    assert items
    for item in items:
        names = dict(zip(SOURCES, (item.subject, item.distractor, item.subject)))
        for name, positions in item.sources.items():
            said = "".join(model.token_strings([item.conflict[p] for p in positions]))
            assert said.strip() == names[name]
        inside = {p for positions in item.sources.values() for p in positions}
        assert len(item.corrupt) == len(item.conflict) and item.corrupt != item.conflict
        assert {k for k, (a, b) in enumerate(zip(item.conflict, item.corrupt)) if a != b} <= inside


def test_raw_prompts_are_those_that_the_tokenizer_makes_of_the_text(plain, data):
    for model in (plain, with_template(plain, PLAIN)):
        for item in items_of(model, data):
            assert item.clean == plain.encode(ROWS[item.row]["clean_prompt"])
            assert item.conflict == plain.encode(ROWS[item.row]["conflict_prompt"])


def test_a_true_answer_in_the_template_could_be_copied(plain, data):
    model = with_template(plain, PLAIN)
    context = Context(data=data)
    how = asking(model, Config(template="chat:a dog. {prompt}"))
    rows = read_conflicts(data)
    with pytest.raises(InputError, match="conflict prompts of 1 hold the true answer"):
        build_items(model, rows, data, chosen=[0], room=1, rng=context.rng, check=lambda: None, how=how)


def test_a_prompt_that_ends_in_thought_is_refused_and_off_closes_it(plain):
    model = with_template(plain, R1)
    with pytest.raises(InputError, match="end inside a block of thinking.*thinking=off"):
        asking(model, Config(template="chat", thinking="auto"))
    assert asking(model, Config(template="chat")).write("Tom is").text.endswith("</think>\n\n")


@pytest.mark.parametrize(
    "config, message",
    [
        ({"template": "chat", "thinking": "on"}, "thinking cannot be on"),
        ({"answer_prefix": "It is"}, "answer_prefix"),
        ({"template": "Q: {prompt}", "answer_prefix": "It is"}, "answer_prefix"),
        ({"template": "chat:no slot"}, "prompt"),
        ({"system": "Be short."}, "system message needs a chat template"),
    ],
)
def test_keys_that_cannot_go_together_are_refused_before_a_model_is_loaded(data, config, message):
    with pytest.raises(InputError, match=message):
        runs.prepare("knowledge-conflict", config, data)


def test_a_chat_with_a_model_without_a_template_is_one_sentence(plain):
    with pytest.raises(InputError, match="has no chat template"):
        asking(plain, Config(template="chat"))
    with pytest.raises(InputError, match="answer_prefix begins the answer of a chat"):
        asking(plain, Config(template="auto", answer_prefix="It is"))


@pytest.mark.parametrize(
    "response, right, warned",
    [
        ("\n\n dog", True, False),
        ("<think>a ball, no</think>\n\ndog", True, False),
        ("<think>a dog", False, True),
        ("", False, True),
        ("<tool_call> dog", True, True),
    ],
)
def test_an_answer_is_what_follows_the_thinking(plain, data, monkeypatch, response, right, warned):
    model = with_template(plain, R1_ITSELF)
    ids = model.encode(response, bos=False)
    monkeypatch.setattr(
        "probes.knowledge_conflict.answers.greedy", lambda _m, prompts, **_: [ids or [1]] * len(prompts)
    )
    items = items_of(model, data, template="chat", thinking="auto")[:1]
    context = Context(data=data)
    assert clean_right(model, Config(template="chat", thinking="auto"), context, items, Pass()) == [right]
    assert any("thinking=off" in message for message in context.warnings) == warned


def test_the_length_that_must_fit_is_that_of_the_written_prompt(plain, data):
    model = with_template(plain, PLAIN)
    assert items_of(model, data, template="chat")
    with pytest.raises(InputError, match="too many for the model's context"):
        items_of(model, data, template="chat", system="Be short. " * (model.context_length // 2))


def test_a_run_in_chat_holds_the_ids_that_were_fed(plain, data, tmp_path):
    model = with_template(plain, PLAIN)
    config = {"template": "chat", "keep": "all", "prune_k": (1,), "random_draws": 1, "draws": 100, "flow_items": 2}
    run = runs.execute("knowledge-conflict", model, config=config, data=data, out=tmp_path / "run")
    inputs = run.table("inputs")
    for row in inputs.iter_rows(named=True):
        assert row["ids"] == by_hand(model, ROWS[row["row"]]["conflict_prompt"])[1]
        assert row["clean_ids"] == by_hand(model, ROWS[row["row"]]["clean_prompt"])[1]
        assert row["position"] == len(row["ids"]) - 1
    assert run.table("heads").select(pl.col("score").is_finite().all()).item()
