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


def _redundancy(run, model, inputs, template: str) -> None:
    texts = source("layer-redundancy")["text"]
    for row, ids in inputs.select("row", "ids").iter_rows():
        reads(model, ids, texts[row], template, cut=True)
    assert set(inputs["split"]) == {"similarity", "loss"}
    layers = run.table("layers")
    assert layers["similarity"].is_between(-1, 1).all() and layers.height == 3 * model.n_layers
    assert run.table("dropping")["loss"].is_finite().all()


def _filter(run, model, inputs, template: str) -> None:
    needles, trials = source("token-filter"), run.table("trials")
    assert trials["trial"].to_list() == inputs["row"].to_list()
    for row, trial in zip(inputs.iter_rows(named=True), trials.iter_rows(named=True)):
        needle = needles.row(trial["needle"], named=True)
        assert plain(model.decode(row["ids"][row["span_start"] : row["span_end"]])) == needle["answer"]
        assert needle["needle"] in plain(model.decode(row["ids"][row["needle_start"] : row["needle_end"]]))
        assert needle["question"] in model.decode(row["ids"][row["question_start"] :])
    layers = run.table("layers")
    assert layers["needle_recall"].is_between(0, 1).all() and layers["layer"].n_unique() == model.n_layers
    assert (run.table("answers").filter(arm="filter")["positions"].list.len() == layers["k"][0]).all()


def _hopping(run, model, inputs, template: str) -> None:
    rows = source("hopping")
    for row, ids, t1, t2 in inputs.select("row", "ids", "t1", "t2").iter_rows():
        item = rows.row(row, named=True)
        phrase = item["r1_template"].format(item["e1"])
        written = "T" + item["r2_template"].format(phrase)[1:] + " is"  # as a sentence begins
        reads(model, ids, written, template)
        assert t2 == len(ids) - 1
        if template == "raw":
            tail = item["r2_template"].partition("{}")[2] + " is"
            assert plain(model.decode(ids[t1 + 1 :])) == plain(tail)
            assert plain(model.decode(ids[: t1 + 1])).endswith(phrase)
        else:
            assert phrase in model.decode(ids[: t1 + 1])
    assert run.table("items").height == inputs.height


def _languages(run, model, inputs, template: str) -> None:
    words = {row["concept"]: row for row in source("latent-language").iter_rows(named=True)}
    for row in inputs.iter_rows(named=True):
        concept, task = words[row["concept"]], row["task"]
        asked = concept[f"cloze_{row['target']}"] if task == "cloze" else concept[row["source"]]
        assert plain(asked) in plain(model.decode(row["ids"])).split("\n")[-1] or template == "chat"
        if template == "raw":
            reads(model, row["ids"], row["text"], template)
    told = run.table("tokens").filter(language="english").row(0, named=True)
    assert told["with_word"] > 0 and told["unwritable"] == 0
    last = run.table("layers").filter(layer=model.n_layers - 1)
    assert last["probability"].is_between(0, 1).all() and last["entropy"].is_finite().all()


def _bigram(run, model, inputs, template: str) -> None:
    texts = source("bigram-subnetwork")["text"]
    bos = model.bos_id if model.prepends_bos else None
    for (row,), pieces in inputs.group_by("row"):
        ids = [i for piece in pieces.sort("stretch")["ids"] for i in piece if i != bos]
        written = plain(model.decode(ids))
        assert len(written) > 0.8 * len(plain(texts[row])) and plain(texts[row]).startswith(written)
    assert set(inputs["split"]) == {"search", "held out"}
    assert run.table("parameters")["total"].sum() > 0
    assert run.table("evaluation").filter(model="full")["correlation"][0] is not None


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
    "layer-redundancy": _redundancy,
    "token-filter": _filter,
    "hopping": _hopping,
    "latent-language": _languages,
    "bigram-subnetwork": _bigram,
    "talking-heads": _talking,
}


def takes_chat(probe: str) -> bool:
    """Whether a probe writes its prompts in the model's chat template when told template=chat."""
    try:
        return configs.build(registry.get(probe).config, {"template": "chat"}).template == "chat"
    except InputError:
        return False
