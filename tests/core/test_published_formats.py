"""Files as they are published: small ones in the same shape, and what probes read of them."""

from __future__ import annotations

import gzip
import json

import polars as pl
import pytest

from probes.branching_factor.config import Config as BranchingConfig
from probes.branching_factor.config import read_prompts
from probes.knowledge_conflict.items import read_conflicts
from workbench.core.column_names import column_map
from workbench.core.errors import InputError
from workbench.core.sample_tables import read_samples, texts, turns_before
from workbench.core.tables import read_table

SAID = "Say it in one word."
PAIRS = {
    "alpaca": ([{"instruction": SAID, "input": "red or blue", "output": "Red"}], f"{SAID}\n\nred or blue"),
    "alpaca_no_input": ([{"instruction": SAID, "input": "", "output": "Red"}], SAID),
    "dolly": ([{"instruction": SAID, "context": "c", "response": "Red", "category": "qa"}], f"{SAID}\n\nc"),
    "gsm8k": ([{"question": SAID, "answer": "Red"}], SAID),
    "bbh": ({"canary": "x", "examples": [{"input": SAID, "target": "Red"}]}, SAID),
    "completion": ([{"prompt": SAID, "completion": "Red"}], SAID),
    "self_instruct": (
        [{"id": "a", "instruction": SAID, "instances": [{"input": "i", "output": "Red"}]}],
        f"{SAID}\n\ni",
    ),
    "messages": (
        [{"messages": [{"role": "user", "content": SAID}, {"role": "assistant", "content": "Red"}]}],
        SAID,
    ),
    "openai_parts": (
        [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": SAID}]},
                    {"role": "assistant", "content": "Red"},
                ]
            }
        ],
        SAID,
    ),
    "sharegpt": (
        [{"conversations": [{"from": "human", "value": SAID}, {"from": "gpt", "value": "Red"}]}],
        SAID,
    ),
    "capitals": ([{"Question": SAID, "Answer": "Red"}], SAID),
}


def written(folder, value, name="data.json"):
    path = folder / name
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("name", PAIRS)
def test_published_pairs_are_prompts_and_responses_and_keep_their_own_columns(tmp_path, name):
    value, prompt = PAIRS[name]
    said = []
    found = read_samples(written(tmp_path, value), what="pool", tell=said.append)
    assert found.select("prompt", "response").to_dicts() == [{"prompt": prompt, "response": "Red"}]
    first = value["examples"][0] if isinstance(value, dict) else value[0]
    assert set(first) <= set(found.columns)
    assert len(said) == 1 and said[0].startswith("data.json: ") and " from " in said[0]


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_files_give_the_prompt_alone_and_the_text(tmp_path, name):
    value, prompt = PAIRS[name]
    path = written(tmp_path, value)
    assert read_table(path, required=("prompt",))["prompt"].to_list() == [prompt]
    assert read_table(path, required=("text",))["text"].to_list() == [f"{prompt}\n\nRed"]


def test_a_column_that_is_there_is_never_replaced(tmp_path):
    said = []
    path = written(tmp_path, [{"prompt": "own", "response": "mine", "instruction": "x", "output": "y", "text": "t"}])
    assert texts(read_samples(path, what="pool", tell=said.append)) == ["own mine"]
    assert read_table(path, required=("text",), tell=said.append)["text"].to_list() == ["t"] and not said


def test_a_label_is_not_read_together_with_an_answer_that_may_hold_it(tmp_path):
    path = written(tmp_path, [{"question": "Is it so?", "answer": "yes", "label": 1}])
    with pytest.raises(InputError, match="no column 'text'"):
        read_table(path, required=("text", "label"))


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": " 2 "},
]


@pytest.mark.parametrize("how", ["lists", "text in a cell"])
def test_a_talk_of_several_turns_stays_a_talk_and_reads_as_one_prompt(tmp_path, how):
    said = []
    if how == "lists":
        path = written(tmp_path, [{"messages": TALK}, {"messages": TALK[1:3]}])
    else:
        path = tmp_path / "data.csv"
        pl.DataFrame({"messages": [json.dumps(TALK), json.dumps(TALK[1:3])]}).write_csv(path)
    found = read_samples(path, what="pool", tell=said.append)
    assert found["prompt"].to_list() == ["Be brief.\n\nOne?\n\n1\n\nTwo?", "One?"]
    assert found["response"].to_list() == [" 2 ", "1"]
    assert found["messages"].to_list() == [TALK, TALK[1:3]]
    assert "in 1 rows several turns" in said[0] and "1 with a system message" in said[0]
    turns = turns_before(found.row(0, named=True))
    assert turns == [("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?")]
    assert turns_before({"prompt": "p", "response": "other", "messages": TALK}) == [("user", "p")]


def test_every_instance_of_a_task_is_a_sample(tmp_path):
    two = [{"input": "a", "output": "A"}, {"input": "", "output": "B"}]
    found = read_samples(written(tmp_path, [{"instruction": "Do", "instances": two, "id": 7}]), what="pool")
    assert found["prompt"].to_list() == ["Do\n\na", "Do"] and found["response"].to_list() == ["A", "B"]
    assert found["id"].to_list() == [7, 7]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": TALK[:2]}, ["row 2", "no turn of the assistant"]),
        ({"messages": TALK[2:3]}, ["row 2", "no turn of the user"]),
        ({"messages": [{"role": "narrator", "content": "x"}]}, ["row 2", "turn 1", "'narrator'", "user, assistant"]),
        ({"messages": [{"role": "user", "content": None}]}, ["row 2", "turn 1", "no text"]),
        ({"messages": []}, ["row 2", "'messages'", "list of objects"]),
        ({"messages": "hello"}, ["row 2", "'messages'", "list of objects"]),
        ({"messages": None}, ["row 2", "'messages'", "list of objects"]),
    ],
)
def test_a_talk_that_is_none_is_named_by_its_row(tmp_path, row, words):
    path = written(tmp_path, [{"messages": TALK}, row])
    with pytest.raises(InputError) as caught:
        read_samples(path, what="pool")
    assert str(path) in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


def test_a_prompt_is_not_made_of_a_talk_of_several_turns(tmp_path):
    path = written(tmp_path, [{"messages": TALK[1:2]}, {"messages": TALK}])
    with pytest.raises(InputError, match="row 2: the talk has 2 turns of the user, where a prompt is one"):
        read_table(path, required=("prompt",))
    said = []
    short = read_table(written(tmp_path, [{"messages": TALK[:3]}]), required=("prompt",), tell=said.append)
    assert short["prompt"].to_list() == ["One?"] and "1 system messages are left out" in said[0]


@pytest.mark.parametrize("question", ["question", "retrieval_question"])
def test_needles_as_the_official_code_has_them(tmp_path, question):
    path = tmp_path / "needles.jsonl"
    path.write_text(json.dumps({"needle": "The key is red.", "real_needle": "red", question: "Which key?"}))
    found = read_table(path, required=("needle", "question", "answer"))
    assert found.select("needle", "question", "answer").row(0) == ("The key is red.", "Which key?", "red")


JUICE = {
    "Category": "World Capital",
    "Subject": "Peru",
    "Answer": ["Lima", "City of Lima"],
    "Distracted Token": "Oslo",
    "Clean Prompt": "The capital of Peru is",
    "Substitution Conflict": "The capital of Peru is Oslo. The capital of Peru is",
    "Coherent Conflict": "Peru moved its seat to Oslo. The capital of Peru is",
}
COMP_MECH = {
    "base_prompt": "Game Boy is produced by",
    "template": "{}: Game Boy is produced by{}. Game Boy is produced by",
    "target_true": " Nintendo",
    "target_new": " Nissan",
    "prompt": "Redefine: Game Boy is produced by Nissan. Game Boy is produced by",
    "subject": "Game Boy",
}


def test_conflicts_of_juice_and_comp_mech_load_as_published(tmp_path):
    juice = read_conflicts(written(tmp_path, [JUICE]))[0]
    assert juice["answers"] == JUICE["Answer"] and juice["relation"] == "World Capital"
    assert (juice["subject"], juice["distractor"], juice["clean_prompt"], juice["conflict_prompt"]) == (
        "Peru",
        "Oslo",
        JUICE["Clean Prompt"],
        JUICE["Substitution Conflict"],
    )
    other = read_conflicts(written(tmp_path, [JUICE]), {"conflict_prompt": "Coherent Conflict"})[0]
    assert other["conflict_prompt"] == JUICE["Coherent Conflict"]
    mech = read_conflicts(written(tmp_path, [COMP_MECH]))[0]
    assert (mech["answers"], mech["distractor"], mech["subject"]) == (["Nintendo"], "Nissan", "Game Boy")
    assert (mech["clean_prompt"], mech["conflict_prompt"]) == (COMP_MECH["base_prompt"], COMP_MECH["prompt"])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({key: value for key, value in COMP_MECH.items() if key != "subject"}, ["comp-mech", "no column 'subject'"]),
        (
            {"question": "q", "counter_memory": "m", "counter_answer": "a", "memory_answer": "b"},
            ["ConflictQA", "no subject", "whole sentences"],
        ),
        ({"claim": "c", "contrary_claim": "d", "question": "q"}, ["ConflictQA", "yes and no"]),
    ],
)
def test_a_published_file_that_cannot_be_conflicts_says_what_is_missing(tmp_path, row, words):
    with pytest.raises(InputError) as caught:
        read_conflicts(written(tmp_path, [row]))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_column_may_be_asked_for_under_several_names_and_given_once(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\nx,y\n")
    found = read_table(path, required=("p", "q"), columns={"p": "a", "q": "a"})
    assert found.select("p", "q", "b").row(0) == ("x", "x", "y") and "a" not in found.columns
    both = read_table(path, required=("a", "b"), columns={"a": "b", "b": "a"})
    assert both.select("a", "b").row(0) == ("y", "x")
    with pytest.raises(InputError, match="'p' is given twice, as 'a' and as 'b'"):
        column_map(("p:a", "p:b"), ("p",))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("file", "rows", "prompt", "response"),
    [
        ("instruct/bbh/boolean_expressions.json", 250, "not ( True ) and ( True ) is", "False"),
        ("instruct/bbh/object_counting.json", 250, "I have a flute, a piano", "8"),
        ("instruct/dolly_1000.json", 1000, "How do I start running?", "Make sure you get"),
        ("instruct/gsm8k_train_1000.jsonl", 1000, "Natalia sold clips to 48", "Natalia sold 48/2"),
        ("instruct/self_instruct_seed_tasks.jsonl", 175, "Is there anything I can eat", "Yes, you can have"),
    ],
)
def test_real_instruction_files_load_as_they_are_packed_or_not(shared, tmp_path, file, rows, prompt, response):
    path = shared(file)
    packed = tmp_path / f"{path.name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    plain = read_samples(path, what="pool")
    assert plain.height == rows
    assert plain["prompt"][0].startswith(prompt) and plain["response"][0].startswith(response)
    assert read_samples(packed, what="pool").equals(plain)


@pytest.mark.shared_data
def test_real_texts_and_conflicts_load_as_they_are(shared):
    for file, rows, first in (
        ("text/tinystories_500.json", 500, "One day, a little girl named Lily"),
        ("text/wikitext_300.json", 300, "= Valkyria Chronicles III ="),
    ):
        found = read_table(shared(file), required=("text",))["text"]
        assert len(found) == rows and found[0].startswith(first)
    items = read_conflicts(shared("conflict/juice/world_capital.json"))
    assert len(items) == 218 and items[0]["subject"] == "American Samoa" and items[0]["answers"] == ["Pago Pago"]
    with pytest.raises(InputError, match="looks like ConflictQA"):
        read_conflicts(shared("conflict/conflictQA_example.json"))


FOUR = ["one", "two", "three", "four"]
ASKED = "How many?\nA. one\nB. two\nC. three\nD. four"
CHOICES = {
    "MMLU": ({"question": "How many?", "choices": FOUR, "answer": 2}, ASKED, "C"),
    "MMLU-Pro": ({"question": "How many?", "options": FOUR, "answer": "C", "answer_index": 2}, ASKED, "C"),
    "ARC": (
        {"question": "How many?", "choices": {"text": FOUR, "label": ["1", "2", "3", "4"]}, "answerKey": "3"},
        "How many?\n1. one\n2. two\n3. three\n4. four",
        "3",
    ),
    "C-Eval": ({"question": "How many?", **dict(zip("ABCD", FOUR)), "answer": "C"}, ASKED, "C"),
    "RACE": ({"article": "Three.", "question": "How many?", "options": FOUR, "answer": "C"}, f"Three.\n\n{ASKED}", "C"),
    "in words": ({"question": "How many?", "choices": FOUR, "answer": "three"}, ASKED, "C"),
    "SQuAD": (
        {"context": "Three.", "question": "How many?", "answers": {"text": ["3", "3"], "answer_start": [0, 0]}},
        "Three.\n\nHow many?",
        "3",
    ),
    "BoolQ": ({"passage": "Three.", "question": "is it", "answer": True}, "Three.\n\nis it", "true"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_question_is_read_with_its_choices_or_its_passage_and_the_answer_as_it_is_named(tmp_path, name):
    row, prompt, response = CHOICES[name]
    path, said = written(tmp_path, [row, row]), []
    found = read_samples(path, what="pool", tell=said.append)
    assert found.select("prompt", "response").rows() == [(prompt, response)] * 2 and "prompt from" in said[0]
    assert read_table(path, required=("text",))["text"].to_list() == [f"{prompt}\n\n{response}"] * 2
    asked = read_prompts(BranchingConfig(), path)
    assert asked.select("prompt", "answer").rows() == [(prompt, response)] * 2


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "q", "choices": FOUR, "answer": 4}, ["row 2", "'4' is none of the choices A, B, C, D"]),
        ({"question": "q", "choices": FOUR, "answer": -1}, ["row 2", "'-1' is none of the choices"]),
        ({"question": "q", "choices": FOUR, "answer": None}, ["row 2", "none of the choices"]),
        ({"question": "q", "choices": ["one"], "answer": 0}, ["row 2", "at least two texts"]),
    ],
)
def test_an_answer_that_is_none_of_the_choices_is_named_by_its_row(tmp_path, row, words):
    path = written(tmp_path, [{"question": "q", "choices": FOUR, "answer": 0}, row])
    with pytest.raises(InputError) as caught:
        read_samples(path, what="pool")
    assert all(word in str(caught.value) for word in [str(path), *words]), caught.value


def test_squad_gives_a_row_for_every_question(tmp_path):
    def asked(text, answer):
        return {"id": text, "question": text, "answers": [{"text": answer, "answer_start": 0}]}

    articles = [
        {"title": "T", "paragraphs": [{"context": "C", "qas": [asked("a?", "A"), asked("b?", "B")]}]},
        {"title": "U", "paragraphs": [{"context": "D", "qas": [asked("c?", "C")]}]},
    ]
    found = read_samples(written(tmp_path, {"version": "1.1", "data": articles}), what="pool")
    assert found.select("prompt", "response").rows() == [("C\n\na?", "A"), ("C\n\nb?", "B"), ("D\n\nc?", "C")]
    unanswerable = [{"title": "T", "paragraphs": [{"context": "C", "qas": [{"question": "a?", "answers": []}]}]}]
    with pytest.raises(InputError, match="row 1: the field 'answers' is empty"):
        read_samples(written(tmp_path, {"data": unanswerable}), what="pool")


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("2+2=<<2+2=4>>4\n#### 4", "4"),  # GSM8K: the whole of a worked answer is in no output
        (["A", "B", "A"], "A|B"),
        ({"value": "A", "aliases": ["A", "a"]}, "A|a"),
        ("plain", "plain"),
        (7, "7"),
    ],
)
def test_an_answer_to_look_for_is_what_an_output_can_hold(tmp_path, answer, read):
    path = written(tmp_path, [{"question": "q", "answer": answer}] * 2)
    assert read_prompts(BranchingConfig(), path)["answer"].to_list() == [read] * 2
    mixed = written(tmp_path, [{"question": "q", "answer": said} for said in ("one", ["A", "B"], None, " ", "[x")])
    assert read_prompts(BranchingConfig(), mixed)["answer"].to_list() == ["one", "A|B", None, None, "[x"]


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_message_in_a_column_of_its_own_is_read_as_one_in_the_talk(tmp_path, column):
    pair = {"question": "Two?", "response": "2"}
    said = []
    path = written(tmp_path, [pair | {column: "Be brief."}, pair | {column: ""}])
    found = read_samples(path, what="pool", tell=said.append)
    assert found["prompt"].to_list() == ["Be brief.\n\nTwo?", "Two?"] and "1 with a system message" in said[0]
    assert [turns_before(row) for row in found.to_dicts()] == [
        [("system", "Be brief."), ("user", "Two?")],
        [("user", "Two?")],
    ]
    assert read_table(path, required=("prompt",), tell=said.append)["prompt"].to_list() == ["Two?", "Two?"]
    assert "1 system messages are left out" in said[1]
    talk = written(tmp_path, [{"messages": TALK[1:3], column: "Be brief."}, {"messages": TALK, column: "Other."}])
    found = read_samples(talk, what="pool")
    assert found["messages"].to_list() == [TALK[:3], TALK]


def test_turns_are_texts_in_turn_pairs_or_calls_of_tools(tmp_path):
    one = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    blank = [{"from": who, "value": said} for who, said in (("system", " "), ("human", "a"), ("gpt", "b"))]
    for name, value in (
        ("conversations", ["a", "b"]),  # LIMA
        ("data", ["a", "b"]),  # UltraChat
        ("conversation", [{"input": "a", "output": "b"}]),  # Capybara
        ("conversations", blank),
    ):
        found = read_samples(written(tmp_path, [{name: value}] * 2), what="pool")
        assert found["messages"].to_list() == [one] * 2 and found["prompt"].to_list() == ["a", "a"]
    calls = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": "w()"},
        {"from": "function-response", "value": "sun"},
        {"from": "gpt", "value": "Sunny."},
    ]
    found = read_samples(written(tmp_path, [{"conversations": calls}]), what="pool")
    assert [turn["role"] for turn in found["messages"][0]] == ["user", "assistant", "tool", "assistant"]
    assert found["prompt"][0] == "Weather?\n\nw()\n\nsun" and found["response"][0] == "Sunny."
    for content in (None, ""):
        called = {"role": "assistant", "content": content, "tool_calls": [{"function": {"name": "w"}}]}
        with pytest.raises(InputError, match="row 2: turn 2 of the field 'messages' calls a tool and says nothing"):
            read_samples(written(tmp_path, [{"messages": TALK}, {"messages": [*TALK[1:2], called]}]), what="pool")


def test_rows_that_are_no_prompt_with_a_response_say_what_to_name(tmp_path):
    talks = {"chosen": TALK[1:3], "rejected": TALK[1:2]}
    path = written(tmp_path, [talks] * 2)
    with pytest.raises(InputError, match="pairs of preference.*columns=messages:chosen"):
        read_samples(path, what="pool")
    assert read_samples(path, what="pool", columns={"messages": "chosen"})["response"].to_list() == ["1", "1"]
    beside = written(tmp_path, [{"system": "s", "question": "q", "chosen": "c", "rejected": "r"}])
    assert read_table(beside, required=("prompt",))["prompt"].to_list() == ["q"]
    found = read_samples(beside, what="pool", columns={"response": "chosen"})
    assert found.select("prompt", "response").rows() == [("s\n\nq", "c")]
    message = {"message_id": "1", "parent_id": None, "text": "Hello", "role": "assistant"}
    with pytest.raises(InputError, match="one message a row"):
        read_table(written(tmp_path, [message] * 2), required=("prompt",))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{"instruction": "i", "output": "o"}, {"instruction": "i", "output": ["o"]}],
            "row 2: the field 'output' must",
        ),
        ([{"prompt": "i", "response": "o"}, {"prompt": {"a": 1}, "response": "o"}], "row 2: the field 'prompt' must"),
        ([{"instruction": "i", "output": ["o"]}], "the column 'output' must hold text, not lists"),
        ([{"instruction": "i", "output": " "}], "row 1: the field 'output' is empty"),
        ([{"text": {"a": 1}}, {"text": {"b": 1}}], "row 1: the field 'text' must hold text"),
    ],
)
def test_a_list_where_a_text_belongs_is_never_fed_as_json_and_is_named_as_the_file_names_it(tmp_path, rows, words):
    with pytest.raises(InputError, match=words):
        read_samples(written(tmp_path, rows), what="pool")
    renamed = {"response": "output"} if "output" in rows[0] else {}
    if renamed:
        with pytest.raises(InputError, match="must hold text|is empty"):
            read_samples(written(tmp_path, rows), what="pool", columns=renamed)
