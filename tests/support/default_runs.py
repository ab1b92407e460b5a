"""What a run with a probe's default data has to hold on any tokenizer: what was fed is the text that ships, and the
tables say something of it."""

from __future__ import annotations

import json
import unicodedata

import polars as pl

from workbench.core import config as configs
from workbench.core import registry
from workbench.core.errors import InputError
from workbench.core.tables import read_table
from workbench.runs import execution as runs


def plain(text: str) -> str:
    """A text as every tokenizer gives it back: composed, nothing at its ends (a space in front is the tokenizer's)."""
    return unicodedata.normalize("NFC", text).strip()


def source(probe: str) -> pl.DataFrame:
    """The rows that ship for models of which nothing is known."""
    return read_table(runs.prepare(probe, model="gpt2").data, what="rows")


def check(run, model, probe: str, template: str = "raw") -> None:
    """A complete run of this model, prompt by prompt and table by table. `template`: "chat" where turns were written
    around the texts."""
    assert run.status == "complete"
    names_nothing_of_the_organism(run)
    inputs = run.table("inputs")
    assert inputs.height
    bos = model.bos_id if model.prepends_bos else None
    for ids in inputs["ids"].to_list():
        assert ids and (bos is None or ids[:2] != [bos, bos])
        if template == "raw" and bos is not None:
            assert ids[0] == bos and bos not in ids[1:]
        assert "\N{REPLACEMENT CHARACTER}" not in model.decode(ids)
    CHECKS[probe](run, model, inputs, template)


def names_nothing_of_the_organism(run) -> None:
    assert "organism" not in json.dumps({key: value for key, value in run.info.items() if key != "files"})


def reads(model, ids, text: str, template: str, *, cut: bool = False) -> None:
    """These ids are this text: all of it, or with turns or a prompt around it, or its beginning where it was cut."""
    found, text = plain(model.decode(ids)), plain(text)
    if cut and len(found) < len(text):
        assert len(found) > 100 and text.startswith(found)
    else:
        assert found == text if template == "raw" else text in found, (found, text)


def _geometry(run, model, inputs, template: str) -> None:
    texts = source("representation-geometry")["text"]
    for row, ids in inputs.select("row", "ids").iter_rows():
        reads(model, ids, texts[row], template, cut=True)
    last = run.table("layers").row(-1, named=True)
    assert 1 < last["rankme"] < min(inputs.height, model.width)
    assert run.table("ablation")["loss"].is_finite().all()


def _retrieval(run, model, inputs, template: str) -> None:
    needles, trials = source("retrieval-heads"), run.table("trials")
    assert trials["trial"].to_list() == inputs["row"].to_list()
    for row, trial in zip(inputs.iter_rows(named=True), trials.iter_rows(named=True)):
        needle = needles.row(trial["needle"], named=True)
        assert plain(model.decode(row["ids"][row["span_start"] : row["span_end"]])) == needle["answer"]
        written = model.decode(row["ids"])
        assert needle["needle"] in written and written.find(needle["question"]) > written.find(needle["needle"])
        assert trial["response"] == "" or row["generated_ids"]
    assert run.table("heads").height == model.n_layers * model.n_heads


def _conflict(run, model, inputs, template: str) -> None:
    rows = source("knowledge-conflict")
    for row in inputs.iter_rows(named=True):
        item = rows.row(row["row"], named=True)
        reads(model, row["clean_ids"], item["clean_prompt"], template)
        written = plain(model.decode(row["ids"]))
        if template == "raw":
            assert written.endswith(" " + item["clean_prompt"]) and item["distractor"] not in item["answer"]
        assert len(row["ids"]) == len(row["corrupt_ids"]) and row["ids"] != row["corrupt_ids"]
        answer = item["answer"][0]
        if template == "raw":  # the token that follows when prompt and answer are read in one piece
            whole = model.encode(f"{written} {answer}")
            assert (whole[: len(row["ids"])], whole[len(row["ids"])]) == (row["ids"], row["memory_id"])
        assert answer.startswith(plain(model.decode([row["memory_id"]])))
        assert f" {plain(model.decode([row['context_id']]))}" in written  # of the distractor, which is in the context
        assert row["memory_id"] != row["context_id"]
    assert run.table("heads").height == model.n_layers * model.n_heads


def _branching(run, model, inputs, template: str) -> None:
    prompts = source("branching-factor")["prompt"]
    for number, ids in enumerate(inputs["ids"].to_list()):
        reads(model, ids, prompts[number], template)
    assert (run.table("prompts")["bf"] >= 1).all()


def _depth(run, model, inputs, template: str) -> None:
    folder = runs.prepare("concept-depth", model="gpt2").data
    for (name,), part in inputs.group_by("dataset"):
        texts = {plain(text) for text in read_table(folder / f"{name}.jsonl", what="set")["text"]}
        for ids in part["ids"].to_list():
            found = plain(model.decode(ids))
            assert found in texts if template == "raw" else any(text in found for text in texts)
    assert run.table("layers")["accuracy"].is_between(0, 1).all()


def _selection(run, model, inputs, template: str) -> None:
    pool = source("data-selection")
    for row, ids in inputs.filter(role="pool").select("row", "ids").iter_rows():
        prompt, response = pool.row(row, named=True)["prompt"], pool.row(row, named=True)["response"]
        if template == "raw":
            reads(model, ids, f"{prompt} {response}", template, cut=True)
        else:
            for text in (prompt, response):
                reads(model, ids, text, template)
    assert inputs.filter(role="pool").height == pool.height
    assert run.table("scores")["score"].is_finite().all()


def _talking(run, model, inputs, template: str) -> None:
    rows = source("talking-heads")
    for row in inputs.iter_rows(named=True):
        if row["data_row"] is None:  # words said twice
            assert row["ids"].index(row["ids"][-1]) == row["target"][0] - 1
            continue
        item = rows.row(row["data_row"], named=True)
        reads(model, row["ids"], item["prompt"], template)
        assert item["target"] in model.decode([row["ids"][i] for i in row["target"]])
    assert run.table("heads").height == model.n_layers * model.n_heads
    assert run.table("channels")["score"].is_between(0, 1).all() and run.table("ablation").height


CHECKS = {
    "retrieval-heads": _retrieval,
    "concept-depth": _depth,
    "knowledge-conflict": _conflict,
    "data-selection": _selection,
    "branching-factor": _branching,
    "representation-geometry": _geometry,
    "talking-heads": _talking,
}


def takes_chat(probe: str) -> bool:
    """Whether a probe writes its prompts in the model's chat template when told template=chat."""
    try:
        return configs.build(registry.get(probe).config, {"template": "chat"}).template == "chat"
    except InputError:
        return False
