"""The knowledge-conflict probe: on the circuit whose truth is known, on real data, on bad data, and as a probe like any other."""

# ruff: noqa: B023 (every hook runs within the turn of the loop that made it)

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.architectures import build
from tests.conftest import shared
from workbench import load, runs
from workbench.checks import check_probe
from workbench.conflicts import COUNTS, STATED, read_conflicts
from workbench.errors import InputError
from workbench.figures.knowledge_conflict import figures
from workbench.intervene import HeadAblation, load_edits, read_mask
from workbench.models import wrap
from workbench.organisms import circuits
from workbench.pruning import export_pruned, negative_log_likelihood, random_heads

PROBE = "knowledge-conflict"
JUICE = "subject:Subject,answer:Answer,distractor:Distracted Token,clean_prompt:Clean Prompt,conflict_prompt:"
ESSAYS = Path(__file__).parents[1] / "probes" / "material" / "retrieval" / "haystack.txt"
QUICK = {"prune_k": (1, 3), "random_draws": 5, "draws": 200, "flow_items": 4}


@pytest.fixture(scope="module")
def circuit(tmp_path_factory):
    """(model, folder, truth) of the hand-built conflict circuit."""
    place = circuits.folder("circuit-conflict", tmp_path_factory.mktemp("circuits"))
    return load(str(place)), place, circuits.truth(place)


@pytest.fixture(scope="module")
def measured(circuit, tmp_path_factory):
    """The run of each variant on the circuit, made once."""
    model, place, _ = circuit
    kept = {}

    def get(variant):
        if variant not in kept:
            out = tmp_path_factory.mktemp("runs") / variant
            config = {**QUICK, "variant": variant, "metric": "logit"}
            kept[variant] = runs.execute(PROBE, model, config=config, data=place / "conflicts.jsonl", out=out)
        return kept[variant]

    return get


def effects_of(run):
    columns = ("layer", "head", "memory_importance", "context_importance")
    return {f"{l}.{h}": [m, c] for l, h, m, c in run.table("heads").select(columns).iter_rows()}


@pytest.mark.parametrize("variant, truth", [("direct", "direct"), ("direct_mlp", "direct"), ("total", "total")])
def test_every_head_of_the_circuit_gets_its_planted_effect(circuit, measured, variant, truth):
    """2 × heads table of the method page, section 7, exact to 1e-5; the circuit has no MLPs, so direct_mlp equals direct."""
    found = effects_of(measured(variant))
    for head, expected in circuit[2][truth].items():
        assert found[head] == pytest.approx(expected, abs=1e-5), head


def test_memory_head_and_context_head_come_first_and_the_head_that_serves_both_is_selected_by_neither(circuit, measured):
    truth = circuit[2]
    for variant in ("direct", "total"):
        heads = measured(variant).table("heads").sort("score", descending=True)
        name = heads.select(pl.concat_str([pl.col("layer").cast(pl.String), pl.col("head").cast(pl.String)], separator="."))["layer"].to_list()
        roles = dict(zip(name, heads["role"]))
        assert (name[0], name[-1]) == (truth["first"]["memory"], truth["first"]["context"])
        assert roles[name[0]] == "memory" and roles[name[-1]] == "context"
        assert [roles[h] for h in truth["neither"]] == ["none"]


def test_the_mediated_path_is_missed_by_the_direct_effect_and_found_by_the_total_one(circuit, measured):
    """Head 1.3 only feeds a later head: this documents the difference between the variants."""
    (mediated,) = circuit[2]["only_total"]
    role = {v: {f"{l}.{h}": r for l, h, r in measured(v).table("heads").select("layer", "head", "role").iter_rows()} for v in ("direct", "total")}
    assert role["direct"][mediated] == "none" and role["total"][mediated] == "context"
    assert effects_of(measured("direct"))[mediated] == pytest.approx([0, 0], abs=1e-5)
    assert effects_of(measured("total"))[mediated] == pytest.approx([0, 0.75], abs=1e-5)


def test_pruning_the_context_head_brings_memory_back_and_pruning_the_memory_head_keeps_the_context(measured):
    run = measured("direct")
    table = run.table("pruning").filter(pl.col("heads") == "top")
    rates = {(role, k): (m, c, clean) for role, k, m, c, clean in table.select("role", "k", "memory_rate", "context_rate", "clean_accuracy").iter_rows()}
    assert rates[("context", 0)] == rates[("memory", 0)] == (0.0, 1.0, 1.0)
    assert rates[("context", 1)] == (1.0, 0.0, 1.0)
    assert rates[("memory", 1)][1] == 1.0
    random = run.table("pruning").filter((pl.col("role") == "context") & (pl.col("heads") == "random") & (pl.col("k") == 1))
    assert random["draw"].to_list() == [0, 1, 2, 3, 4] and random["memory_rate"].max() == 0.0
    summary = run.summary
    assert summary["context_pruned_gain_over_random"]["value"] == 1.0 and summary["context_pruned_clean_change"]["value"] == 0.0
    answers = run.table("answers").filter(pl.col("role") == "context")
    assert set(answers["before_kind"]) == {"context"} and set(answers["after_kind"]) == {"memory"}
    assert all(a.startswith(answer) for a, answer in zip(answers["after"], answers["answer"]))


def test_flow_shows_the_layer_that_reads_the_context(measured):
    flow = measured("direct").table("flow").filter(pl.col("component") == "knockout")
    value = {(s, w): (m, c) for s, w, m, c in flow.select("source", "window_start", "delta_memory", "delta_context").iter_rows()}
    assert value[("attribute_context", 1)][1] < -0.3 and value[("attribute_context", 1)][0] > 0.1
    # without one mention of the subject the memory head reads the other, and only head 1.2 loses a third of what it looks at
    assert value[("subject_question", 1)][0] < -0.02 and value[("subject_question", 1)] == pytest.approx(value[("subject_context", 1)], abs=1e-5)
    for source in ("subject_context", "attribute_context", "subject_question"):
        assert value[(source, 0)] == pytest.approx((0, 0), abs=1e-6) and value[(source, 2)] == pytest.approx((0, 0), abs=1e-6)


def test_inputs_are_enough_to_recompute_an_importance_with_plain_transformers(circuit, measured):
    """One forward pass of the eager Hugging Face model per prompt, with the head's slice put in by a hook: the total effect."""
    _, place, _ = circuit
    run = measured("total")
    hf = AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager").eval()
    inputs = run.table("inputs")
    d = hf.config.n_embd // hf.config.n_head
    lost = []
    for row in inputs.filter(pl.col("split") == "find").iter_rows(named=True):
        kept = []
        projection = hf.transformer.h[1].attn.c_proj
        hook = projection.register_forward_pre_hook(lambda _m, a: kept.append(a[0].detach().clone()))
        with torch.no_grad():
            hf(torch.tensor([row["corrupt_ids"]]))
            hook.remove()
            before = hf(torch.tensor([row["ids"]])).logits[0, row["position"]]

            def put(_m, a, kept=kept):
                x = a[0].clone()
                x[0, -1, 3 * d : 4 * d] = kept[0][0, -1, 3 * d : 4 * d]
                return (x,)

            hook = projection.register_forward_pre_hook(put)
            after = hf(torch.tensor([row["ids"]])).logits[0, row["position"]]
            hook.remove()
        lost.append(float((before - after)[row["context_id"]]))
    assert sum(lost) / len(lost) == pytest.approx(effects_of(run)["1.3"][1], abs=1e-5)
    assert set(inputs["split"]) == {"find", "validation", "test"} and inputs["row"].n_unique() == inputs.height
    assert all(len(a) == len(b) and p == len(a) - 1 for a, b, p in inputs.select("ids", "corrupt_ids", "position").iter_rows())


def test_corrupted_prompts_are_made_when_the_file_has_none(circuit, tmp_path):
    """Other names of the file, every other token in place, neither answer left in the prompt."""
    model, place, truth = circuit
    rows = [json.loads(line) for line in (place / "conflicts.jsonl").read_text().splitlines()]
    data = tmp_path / "plain.jsonl"
    data.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "corrupt_prompt"}) + "\n" for r in rows))
    run = runs.execute(PROBE, model, config={**QUICK, "metric": "logit", "prune_k": (1,), "flow_items": 0}, data=data, out=tmp_path / "run")
    found = effects_of(run)
    for head, expected in truth["direct"].items():
        assert found[head] == pytest.approx(expected, abs=1e-5), head
    for row, ids, corrupt, m, c in run.table("inputs").select("row", "ids", "corrupt_ids", "memory_id", "context_id").iter_rows():
        changed = [i for i, (a, b) in enumerate(zip(ids, corrupt)) if a != b]
        words = rows[row]["conflict_prompt"].split()
        assert changed == [i for i, word in enumerate(words) if word in (rows[row]["subject"], rows[row]["distractor"])]
        assert not {m, c} & set(corrupt)


def test_the_head_mask_of_a_run_prunes_the_same_heads_elsewhere(circuit, measured):
    from workbench.generate import greedy

    model, _, _ = circuit
    run = measured("direct")
    (edit,) = load_edits(run.folder / "pruned_heads.json")
    assert isinstance(edit, HeadAblation) and (1, 1) in edit.heads and edit.how == "zero"
    rows = run.table("inputs").filter(pl.col("split") == "test").sort("row")
    texts = [model.decode(ids).strip() for ids in greedy(model, rows["ids"].to_list(), max_new_tokens=10, edits=(edit,))]
    assert texts == run.table("answers").filter(pl.col("role") == "context").sort("row")["after"].to_list()
    (other,) = load_edits(run.folder / "pruned_heads_memory.json")
    assert other.heads == ((1, 0),)


@pytest.mark.parametrize("ablation", ("mean", "uniform"))
def test_other_ablations_run_and_are_recorded(circuit, tmp_path, ablation):
    model, place, _ = circuit
    run = runs.execute(PROBE, model, config={**QUICK, "ablation": ablation, "prune_k": (1,), "flow_items": 0}, data=place / "conflicts.jsonl", out=tmp_path / "run")
    table = run.table("pruning")
    assert set(table["ablation"]) == {ablation}
    assert table.filter((pl.col("role") == "context") & (pl.col("heads") == "top") & (pl.col("k") == 1))["memory_rate"].item() == 1.0


@pytest.mark.slow
def test_it_keeps_to_the_contract_of_probes(circuit):
    model, place, _ = circuit
    passed = check_probe(PROBE, model, config={**QUICK, "prune_k": (1,), "random_draws": 2, "variant": "total"}, data=place / "conflicts.jsonl")
    assert "cancel" in passed and "batching" in passed and "threads" in passed


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ("Substitution Conflict", "Coherent Conflict"))
def test_juice_runs_as_it_is_with_a_column_map(stories260k, tmp_path, prompt):
    """A real file on a real tokenizer; the model knows no capitals, so all items are kept and no role is expected."""
    config = {"columns": JUICE + prompt, "keep": "all", "limit": "24", "prune_k": "1", "random_draws": "1", "flow_items": "2", "draws": "100"}
    run = runs.execute(PROBE, str(stories260k), config=config, data=shared("conflict/juice/world_capital.json"), out=tmp_path / "run")
    inputs, summary = run.table("inputs"), run.summary
    skipped = sum(summary[name] for name in COUNTS if name.startswith("skipped"))
    assert inputs.height + skipped == 24 and inputs.height >= 8
    assert summary["neutral_text"].startswith("English essays") and summary["perplexity"] > 1
    assert all(len(a) == len(b) and a != b for a, b in inputs.select("ids", "corrupt_ids").iter_rows())
    assert run.table("heads").height == 5 * 8 and run.table("heads").drop_nans().height == 5 * 8


GOOD = {
    "subject": "France", "answer": "Paris", "distractor": "Boston", "clean_prompt": "The capital of France is",
    "conflict_prompt": "The capital of France is Boston . The capital of France is",
}  # fmt: skip


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


def conflict_file(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def about(subject, answer, distractor, **more):
    clean = f"The capital of {subject} is"
    return {"subject": subject, "answer": answer, "distractor": distractor, "clean_prompt": clean, "conflict_prompt": f"{clean} {distractor} . {clean}"} | more


def test_aliases_may_be_a_list_in_some_rows_only_and_a_list_in_a_cell(tmp_path):
    data = conflict_file(tmp_path / "c.jsonl", [GOOD, GOOD | {"answer": ["Paris", "Lutetia"]}])
    assert [row["answers"] for row in read_conflicts(data)] == [["Paris"], ["Paris", "Lutetia"]]
    pl.DataFrame([GOOD | {"answer": '["Paris", "Lutetia"]'}]).write_csv(tmp_path / "c.csv")
    assert read_conflicts(tmp_path / "c.csv")[0]["answers"] == ["Paris", "Lutetia"]


def test_answers_with_the_same_first_token_are_skipped_and_counted(circuit, tmp_path):
    model, place, _ = circuit
    rows = [json.loads(line) for line in (place / "conflicts.jsonl").read_text().splitlines()]
    rows[3] = about(rows[3]["subject"], rows[3]["answer"], rows[3]["answer"] + " Boston")
    run = runs.execute(PROBE, model, config={**QUICK, "prune_k": (1,), "flow_items": 0}, data=conflict_file(tmp_path / "c.jsonl", rows), out=tmp_path / "run")
    assert run.summary["skipped_same_first_token"] == 1 and 3 not in run.table("inputs")["row"].to_list()
    assert any("1 of 24 items were skipped: answer and distractor start with the same token" in w for w in run.info["warnings"])


@pytest.mark.parametrize(
    "rows, message",
    [
        ([about("France", "Paris", "Paris Boston"), about("Italy", "Rome", "Rome Milan")], "start with the same token"),
        ([about("France", "France", "Boston"), about("Italy", "Italy", "Milan")], "the conflict prompts of 2 hold the true answer"),
        ([about("France", "Paris", "Boston", corrupt_prompt="The capital of Italy is")], "cannot be aligned with a corrupted prompt of equal length"),
        ([about("France", "Rome", "Boston"), about("Italy", "Paris", "Milan")], "the model knows none of the 2 items"),
        ([about("France", "Paris", "Boston"), about("Italy", "Rome", "Milan")], "no item is left for the split 'test'"),
        ([about("France", "Paris", "Boston", clean_prompt="France " * 130 + "is")], "too many for the model's context of 128"),
    ],
)
def test_a_file_of_which_nothing_can_be_measured_is_refused_with_the_reason(circuit, tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        runs.execute(PROBE, circuit[0], config=QUICK, data=conflict_file(tmp_path / "c.jsonl", rows), out=tmp_path / "run")


def test_a_model_that_always_follows_one_side_is_said_to(measured):
    assert any("Every test item already follows context" in w for w in measured("direct").info["warnings"])


def test_the_engine_must_be_hf(circuit, tmp_path):
    with pytest.raises(InputError, match="engine 'hf'"):
        runs.execute(PROBE, circuit[0], config=QUICK, data=circuit[1] / "conflicts.jsonl", out=tmp_path / "run", engine="nnsight")


def circuit_rows(place):
    return [json.loads(line) for line in (place / "conflicts.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def reported(circuit, tmp_path_factory):
    """One run on the circuit's items, of three sources and two relations, some of which name the subject once only; with too large k and
    too many random draws."""
    model, place, _ = circuit
    rows = circuit_rows(place)
    for n, row in enumerate(rows):
        row |= {"source": ("law", "rumour", "law", "diary")[n % 4], "relation": "capital" if n < 16 else "seat"}
        if n % 3 == 0:  # the question does not name the subject
            row["conflict_prompt"] = row["conflict_prompt"].rpartition(" . ")[0] + " ."
            row["corrupt_prompt"] = row["corrupt_prompt"].rpartition(" . ")[0] + " ."
    folder = tmp_path_factory.mktemp("reported")
    config = {"prune_k": (1, 3, 5, 7), "random_draws": 9, "draws": 200, "flow_items": 24, "metric": "logit", "find_share": 0.5}
    return runs.execute(PROBE, model, config=config, data=conflict_file(folder / "c.jsonl", rows), out=folder / "run"), rows


def test_rates_and_importances_are_reported_for_every_kind_of_conflict(reported):
    """Counted again from the tables `answers` and `inputs` and from the arrays."""
    run, rows = reported
    assert set(figures(run)) >= {"groups", "gradient", "flow", "head_map", "pruning"}
    groups, answers, inputs = run.table("groups"), run.table("answers"), run.table("inputs")
    assert set(groups["column"]) == {"source", "relation"}
    for row, source, relation in inputs.select("row", "source", "relation").iter_rows():
        assert (source, relation) == (rows[row]["source"], rows[row]["relation"])
    assert answers.select("row", "source").unique().sort("row")["source"].to_list() == [rows[n]["source"] for n in sorted(set(answers["row"]))]
    for entry in groups.filter(pl.col("heads") == "top").iter_rows(named=True):
        part = answers.filter((pl.col("role") == entry["role"]) & (pl.col(entry["column"]) == entry["group"]))
        told = part["before_kind" if entry["k"] == 0 else "after_kind"].to_list()
        assert entry["n"] == len(told) > 0
        for side in ("memory", "context", "other"):
            assert entry[f"{side}_rate"] == pytest.approx(told.count(side) / len(told))
            assert entry[f"{side}_low"] <= entry[f"{side}_rate"] <= entry[f"{side}_high"]
    assert {(r, h) for r, h in groups.select("role", "heads").iter_rows()} == {(r, h) for r in ("memory", "context") for h in ("top", "random")}
    find, effects = inputs.filter(pl.col("split") == "find"), torch.from_numpy(run.array("effects")).double()
    for column, group, n in run.table("head_groups").select("column", "group", "n").unique().iter_rows():
        chosen = [i for i, value in enumerate(find[column]) if value == group]
        part = run.table("head_groups").filter((pl.col("column") == column) & (pl.col("group") == group)).sort("layer", "head")
        assert n == len(chosen)
        for side, name in enumerate(("memory", "context")):
            torch.testing.assert_close(torch.tensor(part[f"{name}_importance"].to_list()).double(), effects[chosen].mean(0)[..., side].flatten(), atol=1e-6, rtol=0)


def test_a_k_beyond_the_heads_of_a_side_is_reported_once_and_under_the_number_that_is_pruned(reported):
    run, _ = reported
    for table in ("pruning", "validation"):
        found = run.table(table).filter(pl.col("heads") == "top")
        assert (found["k"] == found["n_heads"]).all() and found.select("role", "which").is_duplicated().sum() == 0
    assert any("Only 1 memory heads can be pruned: k = 3, 5, 7 would all prune these, and k = 1 is reported" in w for w in run.info["warnings"])


def test_random_sets_of_heads_are_all_different_and_fewer_than_asked_are_owned_up_to(reported):
    """Eight heads per layer: beside one of them stand seven others, so that nine draws cannot be had."""
    run, _ = reported
    random = run.table("pruning").filter(pl.col("heads") == "random")
    assert random.select("role", "k", "which").is_duplicated().sum() == 0
    one = random.filter((pl.col("role") == "memory") & (pl.col("k") == 1))
    assert sorted(one["which"]) == [f"1.{h}" for h in range(1, 8)] and one["draw"].to_list() == list(range(7))
    assert random.group_by("role", "k").len()["len"].max() == 9
    assert any("hold only 7 different sets of other heads" in w for w in run.info["warnings"])


def test_flow_leaves_out_items_that_lack_the_span(reported):
    run, rows = reported
    find = run.table("inputs").filter(pl.col("split") == "find")["row"].to_list()
    flow, named_twice = run.table("flow"), sum(n % 3 != 0 for n in find)
    assert 0 < named_twice < len(find)
    for source, n in (("all", len(find)), ("subject_context", named_twice), ("attribute_context", len(find)), ("subject_question", len(find))):
        assert set(flow.filter(pl.col("source") == source)["n"]) == {n}, source


def test_a_span_that_no_item_has_gets_no_panel(circuit, tmp_path):
    model, place, _ = circuit
    rows = circuit_rows(place)
    for row in rows:
        for name in ("conflict_prompt", "corrupt_prompt"):
            row[name] = row[name].rpartition(" . ")[0] + " ."
    run = runs.execute(PROBE, model, config={**QUICK, "prune_k": (1,), "random_draws": 1, "keep": "all"}, data=conflict_file(tmp_path / "c.jsonl", rows), out=tmp_path / "run")
    assert set(run.table("flow")["source"]) == {"all", "attribute_context", "subject_question"}
    assert any("No item has a span 'subject_context'" in w for w in run.info["warnings"])
    assert run.table("flow")["memory_low"].null_count() == run.table("flow").height  # four items


def test_spearman_of_the_gradient_is_reported_with_the_direct_and_the_total_effect(reported):
    from scipy.stats import spearmanr

    run, _ = reported
    heads = run.table("heads")
    for side in ("memory", "context"):
        for name, column in (("", f"{side}_importance"), ("_direct", f"direct_{side}"), ("_total", f"total_{side}")):
            expected = spearmanr(heads[column], heads[f"gradient_{side}"]).statistic
            assert run.summary[f"gradient_spearman_{side}{name}"]["value"] == pytest.approx(expected, abs=1e-9)
    assert heads["direct_context"].to_list() != heads["total_context"].to_list()


def test_few_items_give_no_role_and_no_interval_and_are_warned_of(circuit, tmp_path):
    model, place, _ = circuit
    rows = circuit_rows(place)
    for n, row in enumerate(rows):
        row["split"] = "find" if n == 0 else "validation" if n < 4 else "test"
    run = runs.execute(PROBE, model, config={**QUICK, "prune_k": (1,), "flow_items": 0, "metric": "logit"}, data=conflict_file(tmp_path / "c.jsonl", rows), out=tmp_path / "run")
    heads = run.table("heads")
    assert set(heads["role"]) == {"none"} and heads["ci_low"].null_count() == heads.height and set(heads["n"]) == {1}
    assert run.summary["memory_heads"] == 0 and run.summary["context_pruned_gain"]["value"] == 1.0
    assert any("split 'find' has only 1 item: no head gets a role" in w for w in run.info["warnings"])
    assert any("split 'validation' has only 3 items: k hangs on single answers" in w for w in run.info["warnings"])
    rate = run.summary["context_pruned_memory_rate"]
    assert (rate["value"], rate["high"], rate["n"]) == (1.0, 1.0, 20) and 0.8 < rate["low"] < 0.9  # Wilson


def test_items_whose_true_answer_stands_in_the_prompt_are_skipped_and_counted(circuit, tmp_path):
    model, place, _ = circuit
    rows = circuit_rows(place)
    rows[5] = about(rows[5]["subject"], [rows[5]["answer"], rows[5]["subject"]], rows[5]["distractor"])
    run = runs.execute(PROBE, model, config={**QUICK, "prune_k": (1,), "flow_items": 0}, data=conflict_file(tmp_path / "c.jsonl", rows), out=tmp_path / "run")
    assert run.summary[STATED] == 1 and 5 not in run.table("inputs")["row"].to_list()
    assert any("1 of 24 items were skipped: the true answer stands in the conflict prompt" in w for w in run.info["warnings"])


def test_names_of_a_corrupted_prompt_are_of_the_same_relation(circuit, tmp_path):
    """Words of the circuit's vocabulary in two relations; the third has one item, whose names must come from elsewhere, which is said."""
    from workbench.conflicts import FOREIGN, build_items

    model, place, _ = circuit
    rows = circuit_rows(place)
    for n, row in enumerate(rows):
        row.pop("corrupt_prompt")
        row["relation"] = "capital" if n < 12 else "seat" if n < 23 else "lonely"
    rows = read_conflicts(conflict_file(tmp_path / "c.jsonl", rows))
    items, counts = build_items(model, rows, tmp_path / "c.jsonl", chosen=range(24), room=1, rng=lambda name: np.random.default_rng(len(name)), check=lambda: None)
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
    rows = [{k: v for k, v in row.items() if k != "corrupt_prompt"} | {"relation": "capital" if n else "lonely"} for n, row in enumerate(circuit_rows(place))]
    config = {**QUICK, "prune_k": (1,), "random_draws": 1, "flow_items": 0}
    run = runs.execute(PROBE, model, config=config, data=conflict_file(tmp_path / "c.jsonl", rows), out=tmp_path / "run")
    assert run.summary["corrupted_across_relations"] == 1
    assert any("1 of 24 items have a corrupted prompt with names of other relations" in w for w in run.info["warnings"])


def context_of(tmp_path=None):
    from workbench.context import Context

    return Context(out=tmp_path)


def validation_row(k, memory, clean, p=0.5):
    return {"k": k, "memory_rate": memory, "context_rate": 1 - memory, "p_memory": p, "p_context": 1 - p, "clean_accuracy": clean}


@pytest.mark.parametrize(
    "rows, chosen, warned",
    [
        ([validation_row(0, 0.5, 1), validation_row(1, 0.3, 1), validation_row(3, 0.4, 1)], 0, "No context heads are pruned"),
        ([validation_row(0, 0.5, 1), validation_row(1, 0.9, 0.9), validation_row(3, 0.95, 0.8)], 0, "costs at most 2% of clean accuracy"),
        ([validation_row(0, 0.5, 1), validation_row(1, 0.6, 0.99), validation_row(3, 0.9, 0.9)], 1, None),
        ([validation_row(0, 0.5, 1), validation_row(1, 0.6, 1), validation_row(3, 0.6, 1, 0.7), validation_row(5, 0.6, 1, 0.7)], 3, None),
    ],
)
def test_k_may_be_none_at_all_where_pruning_does_not_help_or_costs_too_much(rows, chosen, warned):
    from probes.knowledge_conflict import Config, _choose

    context = context_of()
    assert _choose(Config(), context, "context", rows) == chosen
    assert any(warned in w for w in context.warnings) if warned else not context.warnings


def test_where_nothing_is_pruned_no_mask_is_written(circuit, tmp_path, monkeypatch):
    import probes.knowledge_conflict as module

    choose = module._choose
    monkeypatch.setattr(module, "_choose", lambda config, context, role, rows: 0 if role == "context" else choose(config, context, role, rows))
    model, place, _ = circuit
    run = runs.execute(PROBE, model, config={**QUICK, "prune_k": (1,), "flow_items": 0}, data=place / "conflicts.jsonl", out=tmp_path / "run")
    assert sorted(p.name for p in run.folder.glob("*.json")) == ["pruned_heads_memory.json", "run.json", "summary.json"]
    assert run.summary["context_pruned_k"] == 0 and run.summary["context_pruned_gain"] is None
    assert not run.table("pruning").filter(pl.col("role") == "context")["chosen"].any()


def test_the_note_of_a_mask_says_what_it_does_and_the_mask_whose_it_is(circuit, measured):
    run = measured("direct")
    mask = read_mask(run.folder / "pruned_heads.json")
    assert "memory rate on test +1.000 (+1.000 over random heads), clean accuracy +0.000" in mask.note
    assert mask.model["fingerprint"] == circuit[0].fingerprint and mask.doubt(circuit[0]) is None


def kinds_of(kinds, right, perplexity=2.0):
    return pl.DataFrame({"kind": kinds, "clean_right": right, "perplexity": [perplexity] * len(kinds)})


def test_a_gain_that_is_not_shown_and_a_cost_above_two_points_are_warned_of():
    from probes.knowledge_conflict import Config, _gain

    before = kinds_of(["context"] * 40, [True] * 40)
    helped = kinds_of(["memory"] * 30 + ["context"] * 10, [True] * 39 + [False])
    for top, randoms, warnings in (
        (helped, [before], ["costs 2.5% of clean accuracy"]),
        (before, [before], ["more memory answers than pruning none", "more memory answers than pruning random heads"]),
        (helped.with_columns(clean_right=pl.lit(True)), [helped], ["than pruning random heads"]),
        (helped.with_columns(clean_right=pl.lit(True)), [before], []),
    ):
        context = context_of()
        found = _gain(context, Config(), "context", 3, before, top, randoms)
        assert len(context.warnings) == len(warnings) and all(any(part in w for w in context.warnings) for part in warnings)
        assert found["context_pruned_gain"]["value"] == pytest.approx((top["kind"] == "memory").mean())
        assert found["context_pruned_gain_over_random"]["value"] == pytest.approx((top["kind"] == "memory").mean() - (randoms[0]["kind"] == "memory").mean())
        assert found["context_pruned_clean_change"]["value"] == pytest.approx(top["clean_right"].mean() - 1)
    few = _gain(context_of(), Config(), "context", 1, before[:3], helped[:3], [before[:3]])
    assert few["context_pruned_gain"] == {"value": 1.0, "low": None, "high": None, "n": 3}


def made(subject, relation, split=None):
    from workbench.conflicts import Item

    group = {"relation": relation} | ({"split": split} if split else {})
    return Item(0, subject, ["a"], "b", [1], [1, 2], [1, 3], 4, 5, {}, group)


def test_no_subject_is_in_two_splits_and_held_out_relations_are_only_tested_on():
    from workbench.conflicts import assign_splits

    options = {"find": 0.3, "validation": 0.2, "rng": np.random.default_rng(0)}
    items = assign_splits([made(f"s{i % 20}", "capital" if i < 30 else "language") for i in range(60)], test_relations=(), **options)
    where = {s: {i.split for i in items if i.subject == s} for s in {i.subject for i in items}}
    assert all(len(w) == 1 for w in where.values())
    assert [sum(w == {name} for w in where.values()) for name in ("find", "validation", "test")] == [6, 4, 10]
    held = assign_splits([made(f"s{i % 20}", "capital" if i < 30 else "language") for i in range(60)], test_relations=("language",), **options)
    assert {i.split for i in held if i.group["relation"] == "language"} == {"test"}
    assert {i.split for i in held if i.group["relation"] == "capital"} == {"find", "validation"}
    assert not {i.subject for i in held if i.split == "test"} & {i.subject for i in held if i.split != "test"}


def test_the_splits_of_the_file_are_taken_where_it_names_them():
    from workbench.conflicts import assign_splits

    items = [made("x", "r", name) for name in ("test", "find", "validation", "test")]
    found = assign_splits(items, find=0.3, validation=0.2, test_relations=(), rng=np.random.default_rng(0))
    assert [i.split for i in found] == ["test", "find", "validation", "test"]
    other = assign_splits([made(f"s{i}", "r", "heldout") for i in range(9)], find=0.3, validation=0.2, test_relations=(), rng=np.random.default_rng(0))
    assert {i.split for i in other} == {"find", "validation", "test"}


# ---- what pruning rests on


@pytest.mark.parametrize("name", ("llama", "gpt2", "gpt_neox", "gemma2"))
def test_an_exported_model_gives_the_scores_of_the_model_with_these_heads_ablated(tmp_path, name):
    from workbench.capture import logits

    model = wrap(build(name), None, name=name)
    before = {key: value.clone() for key, value in model.hf.state_dict().items()}
    heads = ((0, 1), (2, 3), (2, 0))
    folder = export_pruned(model, heads, tmp_path / "pruned")
    ids = [[5, 9, 13, 21, 7], [33, 8, 2]]
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    wanted = logits(model, ids, edits=(HeadAblation(heads),))
    for row, expected in zip(ids, wanted):
        with torch.no_grad():
            torch.testing.assert_close(plain(torch.tensor([row])).logits[0, -1], expected, atol=1e-5, rtol=1e-5)
    assert (logits(model, ids) - wanted).abs().max() > 1e-2
    assert all(torch.equal(value, before[key]) for key, value in model.hf.state_dict().items())
    with pytest.raises(InputError, match="not an empty folder"):
        export_pruned(model, heads, folder)
    with pytest.raises(InputError, match="Head 9.0 does not exist"):
        export_pruned(model, [(9, 0)], tmp_path / "other")


def test_neutral_text_hangs_on_the_tokenizer_and_not_on_the_name(circuit, stories260k, tmp_path):
    from workbench.pruning import neutral_texts

    options = {"essays": ESSAYS, "otherwise": [[2, 3, 4]]}
    organism = load("organism")
    texts, which = neutral_texts(organism, "auto", **options)
    assert which == "documents of the organism" and len(texts) == 64
    assert neutral_texts(wrap(organism.hf, organism.tokenizer, name="a copy"), "auto", **options) == (texts, which)
    assert neutral_texts(circuit[0], "auto", **options)[0] == [[2, 3, 4]] and "knows no English" in neutral_texts(circuit[0], "auto", **options)[1]
    stories = load(str(stories260k))
    texts, which = neutral_texts(stories, "auto", **options)
    assert which == "English essays that ship with the project" and len(texts) == 64 and max(map(len, texts)) == 256
    (tmp_path / "mine.txt").write_text("Once upon a time.\nx\n")
    texts, which = neutral_texts(stories, str(tmp_path / "mine.txt"), **options)
    assert texts[0] == stories.encode("Once upon a time.") and which.endswith("mine.txt")


def test_random_draws_never_repeat_while_the_layers_hold_others():
    import itertools

    from workbench.pruning import random_draws

    options = {"n_layers": 3, "rng": np.random.default_rng(0)}
    found = random_draws(((1, 0),), 8, draws=7, **options)
    assert sorted(found) == [((1, h),) for h in range(1, 8)]
    assert len(random_draws(((1, 0),), 8, draws=12, **options)) == 7
    pairs = random_draws(((0, 1), (0, 2), (2, 3)), 4, draws=3, **options)  # heads 0 and 3 of layer 0; one of three of layer 2
    assert sorted(pairs) == sorted(tuple(sorted([(0, 0), (0, 3), (2, h)])) for h in (0, 1, 2))
    many = random_draws(((1, 0), (1, 1)), 8, draws=15, **options)
    assert sorted(many) == sorted(tuple((1, h) for h in pair) for pair in itertools.combinations(range(2, 8), 2))


def test_random_heads_are_of_the_same_layers_and_never_the_chosen_ones():
    rng = np.random.default_rng(0)
    heads = ((1, 0), (1, 3), (4, 2))
    draws = {random_heads(heads, 8, rng, n_layers=6) for _ in range(50)}
    assert len(draws) > 20
    for drawn in draws:
        assert sorted(layer for layer, _ in drawn) == [1, 1, 4] and not set(drawn) & set(heads)
    full = tuple((2, h) for h in range(4))
    elsewhere = random_heads(full, 4, rng, n_layers=3)
    assert len(set(elsewhere)) == 4 and all(layer != 2 for layer, _ in elsewhere)
    with pytest.raises(InputError, match="not enough other heads"):
        random_heads(tuple((l, h) for l in range(2) for h in range(2)), 2, rng, n_layers=2)


def test_neutral_likelihood_equals_the_loss_of_transformers():
    model = wrap(build("llama"), None, name="llama")
    texts = [[5, 9, 13, 21, 7], [33, 8, 2], [11, 60, 4, 4, 9, 12, 50]]
    total, count = negative_log_likelihood(model, texts)
    for text, nll, n in zip(texts, total, count):
        row = torch.tensor([text])
        with torch.no_grad():
            assert nll == pytest.approx(float(model.hf(row, labels=row).loss) * (len(text) - 1), rel=1e-5) and n == len(text) - 1
