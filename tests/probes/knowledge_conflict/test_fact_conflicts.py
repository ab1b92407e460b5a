"""Conflicts about real facts: what every model that is no organism is asked by default."""

import json
from collections import Counter

import numpy as np
import pytest

from probes.knowledge_conflict import fact_conflicts as facts
from probes.knowledge_conflict.config import Config
from probes.knowledge_conflict.items import answer_tokens, build_items, read_conflicts
from tests.support.conflict_files import PROBE, QUICK
from workbench import load, organisms
from workbench.core import registry
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.figures import build
from workbench.figures.export import caption
from workbench.models.model_outline import outline
from workbench.models.text_positions import find
from workbench.runs import execution as runs

ROWS = facts.fact_conflicts(facts.read_facts())
KNOWN = {(fact["relation"], fact["subject"]): fact for fact in facts.read_facts()}
SMALL = QUICK | {"limit": 40, "prune_k": (1,), "random_draws": 2, "draws": 100, "flow_items": 2}


def test_the_file_that_ships_is_what_the_facts_give_and_they_always_give_the_same():
    assert [json.loads(line) for line in facts.CONFLICTS.read_text(encoding="utf-8").splitlines()] == ROWS
    assert facts.fact_conflicts(facts.read_facts()) == ROWS and len(ROWS) > 500


def test_a_fact_is_one_item_and_every_relation_is_asked_in_three_phrasings_or_more():
    """Two items about one fact would count one piece of evidence twice."""
    assert len({(row["relation"], row["subject"]) for row in ROWS}) == len(ROWS)
    assert {row["relation"] for row in ROWS} == {fact["relation"] for fact in facts.read_facts()}
    for relation in facts.PHRASINGS:
        forms = Counter(row["form"] for row in ROWS if row["relation"] == relation)
        assert len(forms) >= 3 and max(forms.values()) - min(forms.values()) <= 1


def test_the_answer_and_its_aliases_are_right_and_the_distractor_is_an_answer_of_others_and_never_right():
    answers = {relation: {f["answer"] for f in KNOWN.values() if f["relation"] == relation} for relation, _ in KNOWN}
    for row in ROWS:
        fact = KNOWN[row["relation"], row["subject"]]
        right = [fact["answer"], *fact["aliases"]]
        assert row["answer"] == right and row["distractor"] in answers[row["relation"]]
        assert not any(find(row["distractor"], name) or find(name, row["distractor"]) for name in right)
        assert row["distractor"] != facts.ALSO_TRUE.get((row["relation"], row["subject"]))


def test_what_many_subjects_share_is_no_distractor_unless_there_is_nothing_else():
    """The dollar is legal tender in Panama too."""
    for relation in facts.PHRASINGS:
        shared = Counter(fact["answer"] for fact in KNOWN.values() if fact["relation"] == relation)
        drawn = {row["distractor"] for row in ROWS if row["relation"] == relation}
        assert relation == "continent" or all(shared[name] == 1 for name in drawn)


def test_prompts_end_before_the_answer_and_state_the_distractor_only():
    for row in ROWS:
        assert row["conflict_prompt"].endswith(f". {row['clean_prompt']}") and row["clean_prompt"][-1].isalpha()
        assert len(find(row["conflict_prompt"], row["distractor"])) == 1
        assert len(find(row["conflict_prompt"], row["subject"])) == 2
        assert not any(find(row["conflict_prompt"], answer) for answer in row["answer"])


def test_an_answer_that_any_text_may_hold_is_not_asked_for():
    names = {name.lower() for row in ROWS for name in (*row["answer"], row["distractor"])}
    assert not names & facts.EVERYDAY and min(map(len, names)) > 1


def test_a_distractor_that_begins_like_the_answer_is_replaced_and_no_other(tiny_llama):
    model, rows = load(str(tiny_llama)), read_conflicts(facts.CONFLICTS)
    chosen = range(0, len(rows), 4)
    fitted, placed, changed = facts.fit(model, rows, chosen, facts.CONFLICTS)
    again, *_ = facts.fit(model, rows, chosen, facts.CONFLICTS)
    assert placed == list(chosen)
    alike = [n for n in chosen if len(set(answer_tokens(model, rows[n], "here"))) == 1]
    assert fitted == again and 0 < changed <= len(alike)
    left = [n for n in alike if len(set(answer_tokens(model, fitted[n], "here"))) == 1]
    assert len(left) == len(alike) - changed
    assert [n for n in range(len(rows)) if fitted[n] != rows[n]] == [n for n in alike if n not in left]
    for n in chosen:
        old, new = rows[n], fitted[n]
        assert all(new[field] == old[field] for field in ("subject", "answers", "clean_prompt", "relation", "form"))
        assert facts.distractors(new["relation"], new["subject"], new["answers"], [new["distractor"]])
        assert len(find(new["conflict_prompt"], new["distractor"])) == 1


def test_an_answer_that_the_tokenizer_cannot_place_costs_its_own_item_only(tiny_llama, monkeypatch):
    """Who gave no file cannot mend it."""
    rows = read_conflicts(facts.CONFLICTS)
    odd = {3, 4}
    bad = [rows[n]["subject"] for n in odd]

    def tokens(_model, row, where, _how=None):
        if row["subject"] in bad:
            raise InputError(f"{where}: not placed.")
        return 1, 2

    monkeypatch.setattr(facts, "answer_tokens", tokens)
    assert facts.fit(None, rows, range(8), facts.CONFLICTS) == (rows, [n for n in range(8) if n not in odd], 0)
    with pytest.raises(InputError, match="row 5: not placed"):
        facts.fit(None, rows, sorted(odd), facts.CONFLICTS)


@pytest.mark.shared_data
def test_most_facts_can_be_measured_with_a_tokenizer_that_is_used(shared, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(shared("tokenizers/llama2"))
    size = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(LlamaConfig(**size, vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, path = load(str(tmp_path)), facts.CONFLICTS
    rows, *_ = facts.fit(model, read_conflicts(path), range(len(ROWS)), path)
    items, counts = build_items(
        model,
        rows,
        path,
        chosen=range(len(rows)),
        room=10,
        rng=lambda name: np.random.default_rng(len(name)),
        check=lambda: None,
    )
    assert len(items) >= 300 and counts["skipped_same_first_token"] == 0
    assert all(item.memory_id != item.context_id for item in items)
    assert min(Counter(item.group["relation"] for item in items).values()) >= 30


# which model is asked what


@pytest.mark.parametrize("name", ("organism", "organism-chat", "circuit-conflict"))
def test_organisms_and_circuits_keep_their_own_world(name):
    ready = runs.prepare(PROBE, model=name)
    assert ready.data == organisms.data("conflicts")
    assert ready.data_name == "workbench:organisms/data/conflicts.jsonl"
    assert facts.example(outline(name)) == {"limit": 40, "prune_k": (1, 3), "flow_items": 8, "random_draws": 2}


@pytest.mark.parametrize("name", ("someone/some-model", "./here", "~nobody-of-this-name/x", "x" * 5000, "a\0b", None))
def test_every_other_name_means_the_facts(name):
    ready = runs.prepare(PROBE, model=name)
    assert facts.is_shipped(ready.data) and ready.data_name == facts.SHIPPED


def test_a_relation_is_looked_for_in_the_data_of_the_model_that_is_named():
    assert runs.prepare(PROBE, {"test_relations": "currency"}, model="someone/some-model")
    with pytest.raises(InputError, match="has no relation 'currency'"):
        runs.prepare(PROBE, {"test_relations": "currency"}, model="organism")
    assert runs.prepare(PROBE, {"test_relations": "pet"}, model="organism")


def test_a_model_that_was_named_late_gets_its_own_data():
    from workbench.runs.preparation import with_own_data

    late, early = runs.prepare(PROBE), runs.prepare(PROBE, model="organism")
    assert with_own_data(late, "organism") == early and with_own_data(early, "someone/some-model") == late


def test_a_model_that_knows_no_fact_is_told_what_to_do_and_no_file_is_named(tiny_llama, tmp_path):
    with pytest.raises(InputError) as said:
        runs.execute(PROBE, str(tiny_llama), config={"limit": 24}, out=tmp_path / "run")
    text = str(said.value)
    assert "the model knows none of the" in text and "real facts that ships" in text
    assert "--data" in text and "keep=all" in text
    assert "jsonl" not in text and "organism" not in text and str(tmp_path) not in text


def test_few_known_facts_are_said_to_be_few_and_what_to_give_instead(tiny_llama, tmp_path, monkeypatch):
    knows(monkeypatch, lambda n: n == 0)
    with pytest.raises(InputError, match=r"no item is left .*\(of 1 .*file of items that the model knows \(--data\)"):
        runs.execute(PROBE, str(tiny_llama), config=SMALL, out=tmp_path / "run")


def test_a_run_on_facts_that_are_known_is_complete_and_names_what_it_read(tiny_llama, tmp_path, monkeypatch):
    knows(monkeypatch, lambda n: n % 4 != 0)
    run = runs.execute(PROBE, str(tiny_llama), config=SMALL, out=tmp_path / "run")
    spec = registry.get(PROBE)
    assert set(spec.tables) <= set(run.tables) and all(run.table(name).height for name in spec.tables)
    data = run.info["data"]
    assert (data["name"], data["rows"], data["rows_in_file"]) == (facts.SHIPPED, 40, len(ROWS)) and "path" not in data
    assert len(data["fingerprint"]) == 64 and "--data" not in run.info["command"]
    assert "fact_conflicts.jsonl" in caption(run, next(iter(build(run).values())))
    assert run.info["counters"]["distractors_replaced"] > 0
    asked = {row["subject"] for row in ROWS}
    assert set(run.table("answers")["subject"]) <= asked
    inputs = run.table("inputs")
    assert set(inputs["relation"]) <= set(facts.PHRASINGS) and set(inputs["form"]) <= set(facts.PHRASINGS["capital"])
    assert (inputs["memory_id"] != inputs["context_id"]).all()
    assert {"relation", "form"} <= set(run.table("groups")["column"]) & set(run.table("head_groups")["column"])


def test_any_alias_of_a_fact_counts_as_known(tiny_llama, monkeypatch):
    from probes.knowledge_conflict import answers

    model, context = load(str(tiny_llama)), Context(data=facts.CONFLICTS)
    rows = read_conflicts(facts.CONFLICTS)
    items, _ = build_items(
        model,
        rows,
        facts.CONFLICTS,
        chosen=[n for n, other in enumerate(rows) if len(other["answers"]) > 1][:20],
        room=10,
        rng=context.rng,
        check=context.check,
    )
    said = [f"surely {item.answers[-1]}." for item in items]
    monkeypatch.setattr(answers, "_continuations", lambda *_: said)
    run = answers.edited(context)
    assert said and all(answers.clean_right(model, Config(), context, items, run))
    said[:] = [f"surely {item.distractor}." for item in items]
    assert not any(answers.clean_right(model, Config(), context, items, run))


def knows(monkeypatch, which):
    """A model that answers the n-th clean prompt for which `which(n)` holds."""
    from probes.knowledge_conflict import answers

    monkeypatch.setattr(answers, "clean_right", lambda _m, _c, _x, items, _r: [which(n) for n in range(len(items))])
