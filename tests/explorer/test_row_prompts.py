"""Rows of a run's tables as prompts: what the run fed, token by token, for every probe that ships."""

import polars as pl
import pytest

from tests.support.figure_runs import retrieval
from workbench.explorer.row_prompts import FED, RowPrompt, offers, prompts_of, text_of
from workbench.models.loading import load

MODEL = "circuit-copy-gqa"


class OneRun:
    """A run of a probe that has these tables."""

    def __init__(self, probe: str, tables: dict[str, pl.DataFrame]) -> None:
        self.probe, self.tables, self._frames = probe, list(tables), tables

    def table(self, name: str) -> pl.DataFrame:
        return self._frames[name]


def prompts(run: OneRun, table: str, row: int) -> list[RowPrompt]:
    frame = run.table(table)
    return prompts_of(run, table, frame.row(row, named=True), frame, read=lambda run, name: run.table(name))


def test_a_trial_is_the_prompt_of_its_number_in_the_inputs_also_when_they_are_in_another_order():
    inputs = pl.DataFrame({"row": [1, 0], "ids": [[1, 5, 6], [1, 7]], "generated_ids": [[8], [9]]})
    trials = pl.DataFrame({"trial": [0, 1], "response": ["a", "b"]})
    run = OneRun("retrieval-heads", {"trials": trials, "inputs": inputs})
    found = prompts(run, "trials", 0)
    assert [prompt.ids for prompt in found] == [(1, 7), (1, 7, 9), ()]
    assert found[0].label == FED and found[2].text == "a"
    assert prompts(run, "trials", 1)[0].ids == (1, 5, 6)


def test_a_row_whose_keys_fit_several_prompts_or_none_is_not_guessed():
    inputs = pl.DataFrame({"row": [0, 0], "condition": ["x", "y"], "prompt": [0, 0], "ids": [[1], [2]]})
    samples = pl.DataFrame({"condition": ["y", "z"], "row": [0, 0], "prompt": [0, 0], "generated_ids": [[3], [4]]})
    run = OneRun("branching-factor", {"samples": samples, "inputs": inputs})
    assert [prompt.ids for prompt in prompts(run, "samples", 0)] == [(2,), (2, 3)]
    assert prompts(run, "samples", 1) == []
    alone = OneRun("branching-factor", {"samples": samples.drop("condition"), "inputs": inputs})
    assert prompts(alone, "samples", 0) == []


def test_a_pair_of_prompts_in_one_row_gives_both_and_the_main_one_first():
    inputs = pl.DataFrame({"row": [3], "corrupt_ids": [[1, 2]], "ids": [[1, 4]], "position": [1]})
    answers = pl.DataFrame({"row": [3], "role": ["memory"]})
    run = OneRun("knowledge-conflict", {"answers": answers, "inputs": inputs})
    for table in ("answers", "inputs"):
        assert [(p.label, p.ids) for p in prompts(run, table, 0)] == [(FED, (1, 4)), (f"{FED}, corrupt", (1, 2))]


def test_texts_are_taken_by_the_name_of_their_column_and_numbers_of_heads_are_no_prompts():
    frame = pl.DataFrame({"layer": [0], "head": [1], "role": ["none"], "score": [0.5]})
    assert not offers(OneRun("unknown-probe", {"heads": frame}), "heads", frame)
    frame = pl.DataFrame({"note": ["x"], "clean_prompt": ["a b"], "text": ["c"], "passage": [None]})
    run = OneRun("unknown-probe", {"items": frame.cast({"passage": pl.String})})
    assert [(p.label, p.text) for p in prompts(run, "items", 0)] == [
        ("the column text", "c"),
        ("the column clean_prompt", "a b"),
    ]


def test_every_table_of_a_run_that_offers_prompts_gives_one_for_its_first_row():
    run = retrieval()
    for name in run.tables:
        frame = run.table(name)
        if offers(run, name, frame) and frame.height:
            assert prompts_of(run, name, frame.row(0, named=True), frame, read=lambda run, name: run.table(name)), name


@pytest.mark.parametrize("name", ["organism", MODEL])
def test_a_fed_prompt_is_typed_as_text_that_gives_the_same_tokens_or_says_where_it_does_not(name):
    model = load(name)
    ids = tuple(model.encode({"organism": "The secret of the lantern is", MODEL: "lantern velvet"}[name]))
    text, note = text_of(model, RowPrompt(FED, ids))
    assert (tuple(model.encode(text)), note) == (ids, "")
    without = ids[1:]  # fed without BOS, which typing puts in front
    text, note = text_of(model, RowPrompt(FED, without))
    assert tuple(model.encode(text)) == ids
    assert note == f"The run fed {len(without)} tokens; typed as text they are {len(ids)}, the same up to token 0."
    assert "the run may have fed other words" in text_of(model, RowPrompt("the column text", text="lantern"))[1]
