"""What stands beside pruning: a sentence that asks for the answer, and context-aware decoding, on the same items, by
the same measure, paired with the plain model."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch

from probes.knowledge_conflict import Config
from probes.knowledge_conflict.answers import first_mention
from probes.knowledge_conflict.asking import asking
from probes.knowledge_conflict.baselines import instructed
from probes.knowledge_conflict.figures import figures
from tests.support.conflict_files import PROBE, QUICK, circuit_rows, conflict_circuit
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.runs import execution as runs


@pytest.fixture(scope="module")
def circuit(_circuits):
    return conflict_circuit(_circuits)


@pytest.fixture(scope="module")
def measured(circuit, tmp_path_factory):
    """A run with both baselines; the words of the sentences are words of the circuit."""
    model, place, _ = circuit
    config = {
        **QUICK,
        "flow_items": 0,
        "baselines": ("prompt", "decoding"),
        "ask_memory": "The capital of Peru is Boston .",  # another city of the context, for the context heads to find
        "ask_context": "is",
        "decoding_weight": 0.5,
    }
    out = tmp_path_factory.mktemp("baselines") / "run"
    return runs.execute(PROBE, model, config=config, data=place / "conflicts.jsonl", out=out)


def test_baselines_are_off_unless_asked_for_and_then_no_part_of_a_runs_identity():
    own = {field.name: field for field in dataclasses.fields(Config)}
    assert Config().baselines == ()
    assert all(own[name].metadata["later"] for name in ("baselines", "ask_memory", "ask_context", "decoding_weight"))


def test_rates_of_decoding_are_those_of_the_formula_with_plain_transformers(circuit, measured):
    """Both prompts read anew for every token by the eager model in float64."""
    model, place, _ = circuit
    rows, hf = circuit_rows(place), model.hf.double()
    try:
        test = measured.table("inputs").filter(pl.col("split") == "test")
        for wanted, role, weight in (("memory", "context", -0.5), ("context", "memory", 0.5)):
            kinds, p = [], []
            for row in test.iter_rows(named=True):
                written: list[int] = []
                for _ in range(10):
                    with torch.no_grad():
                        first, second = (
                            hf(torch.tensor([[*row[ids], *written]])).logits[0, -1] for ids in ("ids", "clean_ids")
                        )
                    scores = (1 + weight) * first - weight * second
                    if not written:
                        p.append(scores.softmax(-1)[[row["memory_id"], row["context_id"]]].tolist())
                    written.append(int(scores.argmax()))
                    if written[-1] == hf.config.eos_token_id:
                        break
                item = rows[row["row"]]
                sides = {"memory": [item["answer"]], "context": [item["distractor"]]}
                kinds.append(first_mention(model.decode(written), sides, "other"))
            found = measured.table("pruning").filter(pl.col("role") == role, pl.col("heads") == "decoding")
            assert found["k"].item() == 0 and found["rows"].item() == len(kinds)
            for side in ("memory", "context", "other"):
                assert found[f"{side}_rate"].item() == pytest.approx(kinds.count(side) / len(kinds))
            assert found.select("p_memory", "p_context").row(0) == pytest.approx(np.mean(p, 0).tolist(), abs=1e-5)
            plain = measured.table("answers").filter(pl.col("role") == role)["before_kind"]
            gain = measured.summary[f"decoding_for_{wanted}_gain"]
            assert gain["value"] == pytest.approx(kinds.count(wanted) / len(kinds) - (plain == wanted).mean())
            assert gain["n"] == gain["rows"] == test["row"].n_unique() and gain["low"] < gain["high"]
    finally:
        model.hf.float()


def test_decoding_at_weight_1_for_memory_is_answering_with_the_book_closed(circuit, tmp_path):
    model, place, _ = circuit
    config = {**QUICK, "flow_items": 0, "baselines": ("decoding",), "prune_k": (1,)}
    run = runs.execute(PROBE, model, config=config, data=place / "conflicts.jsonl", out=tmp_path / "run")
    row = run.table("pruning").filter(pl.col("heads") == "decoding", pl.col("role") == "context")
    assert row["which"].item() == "α = -1 (closed book: the scores without the context)"
    assert row["memory_rate"].item() == 1.0  # the circuit knows all of its capitals
    assert run.summary["decoding_for_memory_gain"]["value"] == 1.0
    # pruning does as well here: no more, no less, with an interval that has a width
    over = run.summary["context_pruned_gain_over_decoding"]
    assert over["value"] == 0 and over["low"] < 0 < over["high"]


def test_the_cost_of_decoding_is_said_to_be_0_by_construction_and_not_printed_as_measured(measured):
    rows = measured.table("pruning").filter(pl.col("heads") == "decoding")
    assert rows.height == 2 and rows.select("clean_accuracy", "clean_low", "clean_high").null_count().row(0) == (
        2,
        2,
        2,
    )
    assert measured.summary["decoding_clean_change"].startswith("0 by construction")
    assert not [name for name in measured.summary if name.startswith("decoding_for") and "clean" in name]


def test_the_prompt_that_asks_is_measured_on_the_same_items_with_its_cost(circuit, measured):
    """The other city is copied, too: the circuit then says either, and no longer what it knows."""
    model, place, _ = circuit
    rows = circuit_rows(place)
    test = measured.table("inputs").filter(pl.col("split") == "test")["row"].to_list()
    right, kinds = [], []
    for n in test:
        said = []
        for field in ("clean_prompt", "conflict_prompt"):
            ids = torch.tensor([model.encode("The capital of Peru is Boston . " + rows[n][field])])
            with torch.no_grad():
                said.append(model.decode([int(model.hf(ids).logits[0, -1].argmax())]))
        right.append(said[0] == rows[n]["answer"])
        sides = {"memory": rows[n]["answer"], "context": rows[n]["distractor"]}
        kinds.append(next((side for side, word in sides.items() if word == said[1]), "other"))
    found = measured.table("pruning").filter(pl.col("heads") == "prompt", pl.col("role") == "context")
    assert found["which"].item() == "The capital of Peru is Boston ."
    assert found["clean_accuracy"].item() == pytest.approx(np.mean(right)) and np.mean(right) < 1
    assert found["memory_rate"].item() == pytest.approx(kinds.count("memory") / len(kinds))
    assert measured.summary["prompt_for_memory_clean_change"]["value"] == pytest.approx(np.mean(right) - 1)
    # a word in front changes nothing for the circuit, and no change still has an interval with a width
    nothing = measured.summary["prompt_for_context_gain"]
    assert nothing["value"] == 0 and nothing["low"] < 0 < nothing["high"]
    memory = measured.summary["context_pruned_memory_rate"]["value"]
    assert measured.summary["context_pruned_gain_over_prompt"]["value"] == pytest.approx(
        memory - kinds.count("memory") / len(kinds)
    )


def test_the_same_words_in_a_random_order_stand_beside_the_prompt_that_asks(circuit, measured):
    model, place, _ = circuit
    rows = circuit_rows(place)
    found = measured.table("pruning").filter(pl.col("heads") == "prompt, shuffled", pl.col("role") == "context")
    words, sentence = found["which"].item(), "The capital of Peru is Boston ."
    assert sorted(words.split()) == sorted(sentence.split()) and words != sentence
    kinds = []
    for n in measured.table("inputs").filter(pl.col("split") == "test")["row"].to_list():
        ids = torch.tensor([model.encode(f"{words} {rows[n]['conflict_prompt']}")])
        with torch.no_grad():
            said = model.decode([int(model.hf(ids).logits[0, -1].argmax())])
        kinds.append(said == rows[n]["answer"])
    assert found["memory_rate"].item() == pytest.approx(np.mean(kinds))
    asked = measured.table("pruning").filter(pl.col("heads") == "prompt", pl.col("role") == "context")["memory_rate"]
    over = measured.summary["prompt_for_memory_gain_over_shuffled"]
    assert over["value"] == pytest.approx(asked.item() - np.mean(kinds)) and over["low"] < over["high"]


def test_curves_and_costs_begin_at_the_unpruned_model_and_the_baselines_stand_beside_them(measured):
    found = figures(measured)
    table = measured.table("pruning")
    plain = table.filter(pl.col("k") == 0, pl.col("heads") == "top")
    curve = next(t for t in found["pruning"].data if t.name == "memory answers" and t.mode == "lines+markers")
    assert curve.x[0] == 0 and curve.y[0] == pytest.approx(plain["memory_rate"].mean())
    beside = [t for t in found["pruning"].data if t.name and t.name.endswith(", decoding")]
    assert {t.name for t in beside} == {f"{side} answers, decoding" for side in ("memory", "context", "other")}
    assert len(beside) == 6 and all(t.x[0] > table["k"].max() for t in beside)
    cost = next(t for t in found["cost"].data if t.name == "context heads" and t.mode == "lines+markers")
    assert cost.y[0] == pytest.approx(plain["clean_accuracy"].mean())


def test_a_sentence_that_the_tokenizer_does_not_know_is_warned_of_and_one_without_room_refused(circuit):
    from probes.knowledge_conflict.items import Item

    model, _, _ = circuit
    how, context = asking(model), Context()
    texts = ("The capital of Peru is",) * 2
    item = Item(0, "Peru", ["Lima"], "Boston", [1], [1], [1], 1, 2, {}, {}, "test", texts)
    instructed(Config(baselines=("prompt",)), context, how, [item])
    assert any("does not know the words of" in said and "set ask_memory" in said for said in context.warnings)
    with pytest.raises(InputError, match="no room for the sentence ask_memory in the context of 128 tokens"):
        instructed(Config(baselines=("prompt",), ask_memory="is " * 120), Context(), how, [item])
    with pytest.raises(ValueError, match="leave neither empty"):
        Config(baselines=("prompt",), ask_context=" ")
