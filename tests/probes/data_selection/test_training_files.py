"""The selected rows as files to train on."""

from __future__ import annotations

import json

import pytest

from probes.data_selection.training_files import written
from tests.support.selection_pool import execute, read
from workbench.core.errors import InputError
from workbench.core.sample_tables import read_samples, texts
from workbench.runs import execution as runs
from workbench.runs.verify import verify

FAST = {"baselines": (), "features": 0, "explain": 0, "resamples": 0, "k": 4}


def selected_rows(run, target="sea") -> list[int]:
    return run.table("selected").filter(target=target).sort("rank")["row"].to_list()


def test_rows_come_as_they_came_and_load_back_through_our_own_reader(model, material, tmp_path):
    run = execute(model, material, tmp_path / "run", **FAST)
    pool = read(material / "pool.jsonl")
    for target in ("sea", "park"):
        file = run.folder / f"train-{target}.jsonl"
        assert read(file) == [pool[row] for row in selected_rows(run, target)]
        back = read_samples(file, what="pool")
        assert texts(back) == [f"{pool[r]['prompt']} {pool[r]['response']}" for r in selected_rows(run, target)]
    assert "train-sea.jsonl" in run.files and verify(run.folder).status == "ok"


def test_chats_and_alpaca_hold_the_same_texts_in_the_shape_that_trainers_read(model, material, tmp_path):
    import datasets

    pool = read(material / "pool.jsonl")
    found = {}
    for form in ("messages", "alpaca"):
        run = execute(model, material, tmp_path / form, **FAST, export=form, export_scores=True)
        rows = [pool[row] for row in selected_rows(run)]
        loaded = datasets.Dataset.from_json(str(run.folder / "train-sea.jsonl"), cache_dir=str(tmp_path / "cache"))
        found[form] = loaded.to_list()
        assert [row["selection_row"] for row in found[form]] == selected_rows(run)
        assert [row["selection_rank"] for row in found[form]] == [1, 2, 3, 4]
        scores = run.table("selected").filter(target="sea")["score"].to_list()
        assert [row["selection_score"] for row in found[form]] == pytest.approx(scores)
    chats = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}] for row in rows
    ]
    assert [row["messages"] for row in found["messages"]] == chats
    assert [(row["instruction"], row["input"], row["output"]) for row in found["alpaca"]] == [
        (row["prompt"], "", row["response"]) for row in rows
    ]


def test_fields_that_only_some_rows_have_and_mixed_values_stay_what_they_are(model, material, tmp_path):
    rows = read(material / "pool.jsonl")[:12]
    for i, row in enumerate(rows):
        row["meta"] = {"a": i} if i % 2 else [i]
        if i % 3 == 0:
            row["only_here"] = True
        row["selection_rank"] = "mine"
    (tmp_path / "pool.json").write_text(json.dumps(rows))
    config = FAST | {"target": (str(material / "sea.jsonl"),), "sae": str(material / "sae"), "export_scores": True}
    run = runs.execute("data-selection", model, data=tmp_path / "pool.json", config=config, out=tmp_path / "run")
    for line in read(run.folder / "train-sea.jsonl"):
        row = rows[line["selection_row"]]
        assert {name: line[name] for name in row} == row and isinstance(line["selection_rank_"], int)
        assert set(line) - set(row) == {"selection_target", "selection_rank_", "selection_row", "selection_score"}


def test_tables_keep_their_columns(model, material, tmp_path):
    rows = read(material / "pool.jsonl")[:12]
    text = "prompt,response,Source id\n" + "".join(f"{r['prompt']},{r['response']},{i}\n" for i, r in enumerate(rows))
    (tmp_path / "pool.csv").write_text(text)
    config = FAST | {"target": (str(material / "sea.jsonl"),), "sae": str(material / "sae")}
    run = runs.execute("data-selection", model, data=tmp_path / "pool.csv", config=config, out=tmp_path / "run")
    for line, number in zip(read(run.folder / "train-sea.jsonl"), selected_rows(run), strict=True):
        assert line == {
            "prompt": rows[number]["prompt"],
            "response": rows[number]["response"],
            "Source id": str(number),
        }


def test_none_writes_no_file_and_the_default_keeps_the_id_of_the_run(model, material, tmp_path):
    run = execute(model, material, tmp_path / "none", **FAST, export="none")
    assert not list(run.folder.glob("train-*")) and list(run.folder.glob("selected-*.jsonl"))
    from workbench.runs.description import identify

    plain, asked = (
        runs.prepare("data-selection", FAST | more, material / "pool.jsonl", model="organism")
        for more in ({}, {"export": "messages"})
    )
    ids = [identify(ready, model, seed=0)["config"] for ready in (plain, asked)]
    assert "export" not in ids[0] and "export_scores" not in ids[0] and ids[1]["export"] == "messages"


def test_texts_without_prompts_cannot_be_chats_and_it_is_said_before_a_model_is_loaded(tmp_path):
    (tmp_path / "pool.jsonl").write_text('{"text": "a b c"}\n' * 40)
    for form in ("messages", "alpaca"):
        with pytest.raises(InputError, match=rf"cannot be written as {form}; use export=as_they_came"):
            runs.execute(
                "data-selection",
                "no/such-model",
                data=tmp_path / "pool.jsonl",
                config={"export": form, "target": (str(tmp_path / "pool.jsonl"),)},
            )


def test_a_chat_stays_the_chat_that_it_was():
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    sample = {"prompt": "q", "response": "a"}
    assert written("messages", {"messages": chat, "id": 3}, sample) == {"messages": chat}
    assert written("messages", {"system": "s"} | sample, sample) == {"messages": chat}
    alpaca = {"instruction": "i", "input": "n", "output": "o", "id": 3}
    assert written("alpaca", alpaca, sample) == {"instruction": "i", "input": "n", "output": "o"}


@pytest.mark.parametrize(
    "row",
    [
        {"system_prompt": "Be brief.", "question": "One?", "response": "1"},
        {"system": "Be brief.", "question": "One?", "response": "1"},
        {
            "system": "Be brief.",
            "messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}],
        },
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "1"}]},
    ],
)
def test_a_system_message_of_another_column_stands_once_in_the_chat_and_loads_back(tmp_path, row):
    pool = tmp_path / "pool.jsonl"
    pool.write_text(json.dumps(row) + "\n")
    [read_row] = read_samples(pool, what="pool").to_dicts()
    found = written("messages", row, read_row)
    assert [turn["content"] for turn in found["messages"]] == ["Be brief.", "One?", "1"]
    assert [turn["role"] for turn in found["messages"]] == ["system", "user", "assistant"]
    pool.write_text(json.dumps(found) + "\n")
    [back] = read_samples(pool, what="back").to_dicts()
    assert (
        (back["prompt"], back["response"]) == (read_row["prompt"], read_row["response"]) == ("Be brief.\n\nOne?", "1")
    )


def test_a_talk_of_several_turns_is_written_turn_by_turn(tmp_path):
    row = {"conversations": ["One?", "1", "Two?", "2"]}
    pool = tmp_path / "pool.jsonl"
    pool.write_text(json.dumps(row) + "\n")
    [read_row] = read_samples(pool, what="pool").to_dicts()
    assert [turn["content"] for turn in written("messages", row, read_row)["messages"]] == row["conversations"]
