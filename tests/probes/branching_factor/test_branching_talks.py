"""Rows that are talks: the model is given every turn as its own chat template writes it, and what has no use for a talk
says so, with the row."""

import json

import polars as pl
import pytest

from tests.support.chat_templates import PLAIN, R1, with_template
from workbench.core.errors import InputError

SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    SYSTEM,
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Two?"},
]
ANSWER = {"role": "assistant", "content": "No, the dog."}
SHORT = {"samples": 2, "max_new_tokens": 4}


@pytest.fixture
def talks(tmp_path):
    """A prompt, a talk of several turns that ends with its answer, one of one turn, one with a system message."""
    path = tmp_path / "talks.jsonl"
    rows = [
        {"prompt": "The dog", "answer": "the"},
        {"messages": [*TALK, ANSWER], "answer": "the"},
        {"messages": [{"role": "user", "content": "The dog"}], "answer": "the"},
        {"messages": [SYSTEM, {"role": "user", "content": "Two?"}], "answer": "the"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rendered(model, turns):
    """What Hugging Face's own tokenizer makes of the turns."""
    text = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_turn_is_fed_as_the_chat_template_writes_it(run, stories, talks):
    model = with_template(stories, PLAIN)
    found = run(model, data=talks, **SHORT)
    user = {"role": "user", "content": "The dog"}
    expected = [rendered(model, turns) for turns in ([user], TALK, [user], [SYSTEM, {**TALK[3]}])]
    assert found.table("inputs").sort("row")["ids"].to_list() == expected
    assert found.table("prompts")["text"].to_list() == [
        "The dog",
        "Be brief.\n\nOne?\n\nYes.\n\nTwo?",
        "The dog",
        "Be brief.\n\nTwo?",
    ]
    assert found.table("prompts")["bf"].is_not_null().all()


def test_talks_think_and_are_continued_in_the_studies_that_take_them(run, stories, talks):
    model = with_template(stories, R1)
    found = run(model, data=talks, study="decoding", settings="top_p=0.9,temperature=0", **SHORT)
    for condition in ("top_p=0.9", "temperature=0"):
        ids = found.table("inputs").filter(condition=condition)["ids"].to_list()
        assert ids[1] == rendered(model, TALK) and model.tokenizer.decode(ids[1]).endswith("<think>\n")
    cut = run(model, data=talks, study="resampling", cuts="2", **SHORT).table("inputs").filter(condition="cut at 2")
    assert all(ids[: len(r)] == r for r in [rendered(model, TALK)] for ids in cut.filter(prompt=1)["ids"].to_list())


@pytest.mark.parametrize("shape", ["json text", "sharegpt", "parquet", "another name"])
def test_talks_are_read_in_every_shape_that_they_come_in(run, stories, tmp_path, shape):
    model, columns = with_template(stories, PLAIN), ()
    path = tmp_path / "t.jsonl"
    if shape == "json text":
        path = tmp_path / "t.csv"
        pl.DataFrame({"messages": [json.dumps(TALK)]}).write_csv(path)
    elif shape == "parquet":
        path = tmp_path / "t.parquet"
        pl.DataFrame({"messages": [TALK]}).write_parquet(path)
    elif shape == "sharegpt":
        names = {"user": "human", "assistant": "gpt", "system": "system"}
        turns = [{"from": names[t["role"]], "value": t["content"]} for t in TALK]
        path.write_text(json.dumps({"conversations": turns}) + "\n")
    else:
        path.write_text(json.dumps({"dialog": TALK}) + "\n")
        columns = ("messages:dialog",)
    found = run(model, data=path, columns=columns, **SHORT)
    assert found.table("inputs")["ids"].to_list() == [rendered(model, TALK)]


@pytest.mark.parametrize(
    "config, words",
    [
        ({"study": "complexity"}, "shortens the text of a prompt"),
        ({"study": "verbalised"}, "writes a request around"),
        ({"study": "hyperfitted"}, "without a template"),
        ({"template": "raw"}, "template=raw is none"),
        ({"template": "Q: {prompt}"}, "needs the model's chat template"),
        ({"template": "chat:Q: {prompt}"}, "needs the model's chat template"),
        ({"system": "Be kind."}, "system message of its own"),
    ],
)
def test_what_has_no_use_for_a_talk_says_so_before_a_model_is_loaded(run, talks, config, words):
    with pytest.raises(InputError, match=f"talks.jsonl, row 2: .*{words}"):
        run("no-such-model", data=talks, **config)


def test_a_talk_of_several_turns_is_refused_by_a_model_without_a_chat_template(run, stories, talks):
    with pytest.raises(InputError, match="row 2: A conversation of 4 messages needs a chat template"):
        run(stories, data=talks)


@pytest.mark.parametrize(
    "turns, words",
    [
        ([ANSWER], "no turn of the user"),
        ([*TALK, SYSTEM], "a message of the system stands where"),
        ([*TALK, ANSWER, ANSWER], "a message of the assistant stands where"),
        ([{"role": "narrator", "content": "x"}], "'narrator'"),
        ([], "list of objects"),
        (None, "list of objects"),
    ],
)
def test_a_talk_that_no_answer_can_follow_is_named_by_its_row(run, tmp_path, turns, words):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps({"messages": turns}) + "\n")
    with pytest.raises(InputError, match=f"row 2: .*{words}"):
        run("no-such-model", data=path)
