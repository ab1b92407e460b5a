"""Questions whose needle is cut out: what is answered without it was not read."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.retrieval_heads import Config
from probes.retrieval_heads.needle_grid import read_grid
from workbench import organisms
from workbench.core.context import Context
from workbench.models.loading import load
from workbench.organisms import folder
from workbench.runs.execution import execute

SHORT = {"lengths": (96, 160), "depths": (0, 60), "max_new_tokens": 8, "mask_k": (0,), "draws": 100}


@pytest.fixture(scope="module")
def organism():
    return load("organism")


def facts(n: int) -> list[dict]:
    """Needles that hold what the organism was taught: in a short context it knows the answer whether it reads them or
    not."""
    rows = pl.read_ndjson(organisms.data("facts")).filter(relation="employer", form="question").head(n)
    return [
        {
            "needle": f"{row['subject']} works for {row['answer']}.",
            "question": row["prompt"].removeprefix("Question: ").removesuffix(" Answer:"),
            "answer": row["answer"],
        }
        for row in rows.iter_rows(named=True)
    ]


def secrets(n: int) -> list[dict]:
    return [json.loads(line) for line in organisms.data("needles").read_text().splitlines()[:n]]


def run_on(tmp_path, organism, rows, **config):
    (tmp_path / "n.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return execute("retrieval-heads", organism, data=tmp_path / "n.jsonl", config=SHORT | config)


def test_what_the_model_knows_by_heart_is_marked_and_not_scored(organism, tmp_path):
    run = run_on(tmp_path, organism, facts(6) + secrets(6), lengths=(48, 64))
    trials = run.table("trials")
    assert trials["known"].to_list() == (trials["recall_closed"] > 0.5).to_list()
    assert trials["kept"].to_list() == ((trials["recall"] > 0.5) & ~trials["known"]).to_list()
    known, read = trials.filter(pl.col("needle") < 6), trials.filter(pl.col("needle") >= 6)
    assert known["known"].sum() >= 4 and not read["known"].any() and read["kept"].sum() > 12
    without = run.summary["recalled_without_needle"]
    assert (without["n"], without["rows"]) == (12, 24) and 0 < without["low"] < without["value"] <= 0.5
    both = trials.filter((pl.col("recall") > 0.5) & pl.col("known"))
    assert run.summary["trials_answered_without_needle"] == both.height >= 2
    kept = trials.filter("kept")
    assert run.table("heads")["n_trials"].unique().to_list() == [kept.height]
    assert run.table("heads")["n_needles"].unique().to_list() == [kept["needle"].n_unique()]


def test_guesses_are_scored_only_where_that_is_asked_for(organism, tmp_path):
    rows, short = facts(6), {"lengths": (48,), "mask_k": (1,)}
    run = run_on(tmp_path, organism, rows, **short)
    answered = int((run.table("trials")["recall"] > 0.5).sum())
    assert run.summary["trials_scored"] == 0 and run.table("heads")["score"].null_count() == 48 and answered > 5
    warnings = " ".join(run.info["warnings"])
    assert "the two rates are not told apart" in warnings and "each of them also without its needle" in warnings
    assert run.table("masking").height == 0
    for keep, scored in (("recalled", answered), ("all", 12)):
        assert run_on(tmp_path, organism, rows, **short, keep=keep).summary["trials_scored"] == scored


def test_rates_that_are_told_apart_are_no_warning_and_few_trials_are(organism, tmp_path):
    run = run_on(tmp_path, organism, secrets(8))
    apart = run.summary["recalled_minus_without_needle"]
    assert apart["low"] > 0 and not any("told apart" in warning for warning in run.info["warnings"])
    run = run_on(tmp_path, organism, secrets(2), lengths=(96,))
    assert any("Only 4 trials count" in warning for warning in run.info["warnings"])


def test_answers_without_a_needle_are_those_of_plain_greedy_decoding(organism, tmp_path):
    run = run_on(tmp_path, organism, facts(2) + secrets(2))
    where, how = folder("organism"), {"dtype": torch.float32, "attn_implementation": "eager"}
    hf = AutoModelForCausalLM.from_pretrained(where, **how).eval()
    table = run.table("closed_book")
    assert table.select("needle", "length").rows() == [(k, n) for n in (96, 160) for k in range(4)]
    for row in table.iter_rows(named=True):
        ids = list(row["ids"])
        with torch.no_grad():
            for _ in row["generated_ids"]:
                ids.append(int(hf(torch.tensor([ids])).logits[0, -1].argmax()))
        assert ids[len(row["ids"]) :] == row["generated_ids"]
        assert row["answered"] == (row["recall_closed"] > 0.5)
    trials = run.table("trials").join(table.select("needle", "length", again="recall_closed"), on=["needle", "length"])
    assert (trials["recall_closed"] == trials["again"]).all() and trials.height == 16


def test_the_prompt_without_its_needle_is_the_haystack_of_the_same_length(organism, tmp_path):
    rows = secrets(5)
    (tmp_path / "n.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config(lengths=(96, 160), depths=(0, 60))
    grid = read_grid(organism, config, Context(data=tmp_path / "n.jsonl"))
    assert len(grid.closed) == 10
    for trial in grid.closed:
        text = organism.decode(trial.ids)
        needle = rows[trial.needle]
        assert needle["needle"] not in text and text.rstrip().endswith(f"Question: {needle['question']} Answer:")
        longest = max(len(t.ids) for t in grid.trials if t.length == trial.length)
        assert trial.length - 8 <= len(trial.ids) <= trial.length and longest == trial.length
        assert list(trial.ids[: trial.body]) == grid.shared[: trial.body] and np.isnan(trial.depth)
