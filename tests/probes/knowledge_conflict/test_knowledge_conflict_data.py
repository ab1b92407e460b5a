"""The files of the knowledge-conflict probe: rows that cannot be used, items that are skipped, corrupted prompts,
splits."""

import json

import numpy as np
import polars as pl
import pytest

from probes.knowledge_conflict.items import STATED, read_conflicts
from tests.support.conflict_files import PROBE, QUICK, about, circuit_rows, conflict_circuit, conflict_file
from workbench.core.errors import InputError
from workbench.runs import execution as runs

GOOD = {
    "subject": "France",
    "answer": "Paris",
    "distractor": "Boston",
    "clean_prompt": "The capital of France is",
    "conflict_prompt": "The capital of France is Boston . The capital of France is",
}


@pytest.fixture(scope="module")
def circuit(_circuits):
    return conflict_circuit(_circuits)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"subject": "Narnia"}, r"row 2: the subject 'Narnia' is not found in the field 'conflict_prompt'"),
        ({"distractor": "Milan"}, r"row 2: the distractor 'Milan' is not found"),
        ({"clean_prompt": "The capital is"}, r"row 2: the subject 'France' is not found in the field 'clean_prompt'"),
        ({"answer": ""}, r"row 2: the field 'answer' is empty"),
        ({"answer": ["Lutetia", "boston"]}, r"row 2: the distractor 'Boston' is one of the answers"),
        ({"split": "find"}, r"row 1: the split is '', while other rows say find, validation, test"),
        ({"conflict_prompt": None}, r"row 2: the field 'conflict_prompt' is empty"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_before_a_model_is_loaded(tmp_path, change, message):
    data = tmp_path / "bad.jsonl"
    data.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(InputError, match=message):
        runs.prepare(PROBE, {}, data)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"columns": "subject:Nope"}, "no column 'Nope'"),
        ({"columns": "subjct:subject"}, "did you mean 'subject'"),
        ({"find_share": 0.6, "validation_share": 0.5}, "nothing to test on"),
        ({"test_relations": "capital"}, "no relation 'capital'"),
        ({"variant": "indirect"}, "variant"),
        ({"prune_k": "0"}, "prune_k"),
    ],
)
def test_a_config_that_does_not_fit_the_data_is_refused_before_a_model_is_loaded(tmp_path, config, message):
    data = tmp_path / "good.jsonl"
    data.write_text(json.dumps(GOOD) + "\n")
    with pytest.raises(InputError, match=message):
        runs.prepare(PROBE, config, data)


def test_aliases_may_be_a_list_in_some_rows_only_and_a_list_in_a_cell(tmp_path):
    data = conflict_file(tmp_path / "c.jsonl", [GOOD, GOOD | {"answer": ["Paris", "Lutetia"]}])
    assert [row["answers"] for row in read_conflicts(data)] == [["Paris"], ["Paris", "Lutetia"]]
    pl.DataFrame([GOOD | {"answer": '["Paris", "Lutetia"]'}]).write_csv(tmp_path / "c.csv")
    assert read_conflicts(tmp_path / "c.csv")[0]["answers"] == ["Paris", "Lutetia"]


def test_answers_with_the_same_first_token_are_skipped_and_counted(circuit, tmp_path):
    model, place, _ = circuit
    rows = [json.loads(line) for line in (place / "conflicts.jsonl").read_text().splitlines()]
    rows[3] = about(rows[3]["subject"], rows[3]["answer"], rows[3]["answer"] + " Boston")
    run = runs.execute(
        PROBE,
        model,
        config={**QUICK, "prune_k": (1,), "flow_items": 0},
        data=conflict_file(tmp_path / "c.jsonl", rows),
        out=tmp_path / "run",
    )
    assert run.summary["skipped_same_first_token"] == 1 and 3 not in run.table("inputs")["row"].to_list()
    assert any(
        "1 of 24 items were skipped: answer and distractor start with the same token" in w for w in run.info["warnings"]
    )


@pytest.mark.parametrize(
    "rows, message",
    [
        ([about("France", "Paris", "Paris Boston"), about("Italy", "Rome", "Rome Milan")], "start with the same token"),
        (
            [about("France", "France", "Boston"), about("Italy", "Italy", "Milan")],
            "the conflict prompts of 2 hold the true answer",
        ),
        (
            [about("France", "Paris", "Boston", corrupt_prompt="The capital of Italy is")],
            "cannot be aligned with a corrupted prompt of equal length",
        ),
        ([about("France", "Rome", "Boston"), about("Italy", "Paris", "Milan")], "the model knows none of the 2 items"),
        ([about("France", "Paris", "Boston"), about("Italy", "Rome", "Milan")], "no item is left for the split 'test'"),
        (
            [about("France", "Paris", "Boston", clean_prompt="France " * 130 + "is")],
            "too many for the model's context of 128",
        ),
    ],
)
def test_a_file_of_which_nothing_can_be_measured_is_refused_with_the_reason(circuit, tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        runs.execute(
            PROBE, circuit[0], config=QUICK, data=conflict_file(tmp_path / "c.jsonl", rows), out=tmp_path / "run"
        )


def test_items_whose_true_answer_stands_in_the_prompt_are_skipped_and_counted(circuit, tmp_path):
    model, place, _ = circuit
    rows = circuit_rows(place)
    rows[5] = about(rows[5]["subject"], [rows[5]["answer"], rows[5]["subject"]], rows[5]["distractor"])
    run = runs.execute(
        PROBE,
        model,
        config={**QUICK, "prune_k": (1,), "flow_items": 0},
        data=conflict_file(tmp_path / "c.jsonl", rows),
        out=tmp_path / "run",
    )
    assert run.summary[STATED] == 1 and 5 not in run.table("inputs")["row"].to_list()
    assert any(
        "1 of 24 items were skipped: the true answer stands in the conflict prompt" in w for w in run.info["warnings"]
    )


def test_names_of_a_corrupted_prompt_are_of_the_same_relation(circuit, tmp_path):
    """Words of the circuit's vocabulary in two relations; the third has one item, whose names must come from elsewhere,
    which is said."""
    from probes.knowledge_conflict.items import FOREIGN, build_items

    model, place, _ = circuit
    rows = circuit_rows(place)
    for n, row in enumerate(rows):
        row.pop("corrupt_prompt")
        row["relation"] = "capital" if n < 12 else "seat" if n < 23 else "lonely"
    rows = read_conflicts(conflict_file(tmp_path / "c.jsonl", rows))
    items, counts = build_items(
        model,
        rows,
        tmp_path / "c.jsonl",
        chosen=range(24),
        room=1,
        rng=lambda name: np.random.default_rng(len(name)),
        check=lambda: None,
    )
    assert len(items) == 24 and counts[FOREIGN] == 1
    for item in items[:23]:
        relation = [row for row in rows if row["relation"] == item.group["relation"]]
        words, before = model.decode(item.corrupt).split(), rows[item.row]["conflict_prompt"].split()
        new = {a: b for a, b in zip(before, words) if a != b}
        assert set(new) == {item.subject, item.distractor}
        assert new[item.subject] in {row["subject"] for row in relation}
        assert new[item.distractor] in {row["distractor"] for row in relation} | {row["answers"][0] for row in relation}


def test_the_run_says_that_names_of_other_relations_were_needed(circuit, tmp_path):
    model, place, _ = circuit
    rows = [
        {k: v for k, v in row.items() if k != "corrupt_prompt"} | {"relation": "capital" if n else "lonely"}
        for n, row in enumerate(circuit_rows(place))
    ]
    config = {**QUICK, "prune_k": (1,), "random_draws": 1, "flow_items": 0}
    run = runs.execute(
        PROBE, model, config=config, data=conflict_file(tmp_path / "c.jsonl", rows), out=tmp_path / "run"
    )
    assert run.summary["corrupted_across_relations"] == 1
    assert any("1 of 24 items have a corrupted prompt with names of other relations" in w for w in run.info["warnings"])


def made(subject, relation, split=None):
    from probes.knowledge_conflict.items import Item

    group = {"relation": relation} | ({"split": split} if split else {})
    return Item(0, subject, ["a"], "b", [1], [1, 2], [1, 3], 4, 5, {}, group)


def test_no_subject_is_in_two_splits_and_held_out_relations_are_only_tested_on():
    from probes.knowledge_conflict.items import assign_splits

    options = {"find": 0.3, "validation": 0.2, "rng": np.random.default_rng(0)}
    items = assign_splits(
        [made(f"s{i % 20}", "capital" if i < 30 else "language") for i in range(60)], test_relations=(), **options
    )
    where = {s: {i.split for i in items if i.subject == s} for s in {i.subject for i in items}}
    assert all(len(w) == 1 for w in where.values())
    assert [sum(w == {name} for w in where.values()) for name in ("find", "validation", "test")] == [6, 4, 10]
    held = assign_splits(
        [made(f"s{i % 20}", "capital" if i < 30 else "language") for i in range(60)],
        test_relations=("language",),
        **options,
    )
    assert {i.split for i in held if i.group["relation"] == "language"} == {"test"}
    assert {i.split for i in held if i.group["relation"] == "capital"} == {"find", "validation"}
    assert not {i.subject for i in held if i.split == "test"} & {i.subject for i in held if i.split != "test"}


def test_the_splits_of_the_file_are_taken_where_it_names_them():
    from probes.knowledge_conflict.items import assign_splits

    items = [made("x", "r", name) for name in ("test", "find", "validation", "test")]
    found = assign_splits(items, find=0.3, validation=0.2, test_relations=(), rng=np.random.default_rng(0))
    assert [i.split for i in found] == ["test", "find", "validation", "test"]
    other = assign_splits(
        [made(f"s{i}", "r", "heldout") for i in range(9)],
        find=0.3,
        validation=0.2,
        test_relations=(),
        rng=np.random.default_rng(0),
    )
    assert {i.split for i in other} == {"find", "validation", "test"}


def test_items_that_repeat_others_are_counted(circuit, tmp_path):
    from probes.knowledge_conflict.items import REPEATED, build_items

    model, place, _ = circuit
    rows = read_conflicts(conflict_file(tmp_path / "c.jsonl", circuit_rows(place)))
    for chosen, again in ((rows, 0), ([*rows, *rows[:3]], 3)):
        _, counts = build_items(
            model,
            chosen,
            tmp_path / "c.jsonl",
            chosen=range(len(chosen)),
            room=1,
            rng=lambda _: np.random.default_rng(0),
            check=lambda: None,
        )
        assert counts[REPEATED] == again


@pytest.mark.parametrize(
    ("answer", "read"),
    [(42.0, ["42"]), ([1.5, "NaN", None], ["1.5", "NaN"]), (True, ["true"]), ('["a", "b"]', ["a", "b"])],
)
def test_answers_are_read_as_a_person_writes_them(tmp_path, answer, read):
    path = conflict_file(tmp_path / "a.jsonl", [GOOD | {"answer": answer}])
    assert read_conflicts(path)[0]["answers"] == read


@pytest.mark.parametrize("answer", ["NaN", '["", NaN]', "null"])
def test_an_answer_that_is_not_a_number_is_an_empty_one(tmp_path, answer):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GOOD | {"answer": "HERE"}).replace('"HERE"', answer) + "\n")
    with pytest.raises(InputError, match="row 1: the field 'answer' is empty"):
        read_conflicts(path)


def test_an_answer_that_is_an_object_is_refused(tmp_path):
    with pytest.raises(InputError, match="row 1: the field 'answer' must be a word"):
        read_conflicts(conflict_file(tmp_path / "a.jsonl", [GOOD | {"answer": {"text": "Paris"}}]))


def test_a_kind_of_conflict_is_the_same_whether_a_number_or_its_text(tmp_path):
    rows = [GOOD | {"relation": 1, "source": " web "}, GOOD | {"relation": "1.0", "source": "web"}]
    found = read_conflicts(conflict_file(tmp_path / "a.jsonl", rows))
    assert [(row["relation"], row["source"]) for row in found] == [("1", "web")] * 2
    runs.prepare(PROBE, {"test_relations": "1.0"}, tmp_path / "a.jsonl")
