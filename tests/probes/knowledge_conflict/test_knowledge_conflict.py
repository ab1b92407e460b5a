"""The knowledge-conflict probe: on the circuit whose truth is known, on real data, and as a probe like any other."""

import json

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.knowledge_conflict.items import COUNTS
from tests.support.conflict_files import PROBE, QUICK, conflict_circuit
from workbench.core.errors import InputError
from workbench.engine.edits import HeadAblation
from workbench.engine.head_masks import load_edits, read_mask
from workbench.runs import execution as runs
from workbench.runs.checks import check_probe

JUICE = "subject:Subject,answer:Answer,distractor:Distracted Token,clean_prompt:Clean Prompt,conflict_prompt:"


@pytest.fixture(scope="module")
def circuit(_circuits):
    return conflict_circuit(_circuits)


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
    """2 × heads table of docs/methods/knowledge-conflict.md, exact to 1e-5; the circuit has no MLPs, so direct_mlp
    equals direct."""
    found = effects_of(measured(variant))
    for head, expected in circuit[2][truth].items():
        assert found[head] == pytest.approx(expected, abs=1e-5), head


def test_memory_head_and_context_head_come_first_and_the_head_that_serves_both_is_selected_by_neither(
    circuit, measured
):
    truth = circuit[2]
    for variant in ("direct", "total"):
        heads = measured(variant).table("heads").sort("score", descending=True)
        name = heads.select(
            pl.concat_str([pl.col("layer").cast(pl.String), pl.col("head").cast(pl.String)], separator=".")
        )["layer"].to_list()
        roles = dict(zip(name, heads["role"]))
        assert (name[0], name[-1]) == (truth["first"]["memory"], truth["first"]["context"])
        assert roles[name[0]] == "memory" and roles[name[-1]] == "context"
        assert [roles[h] for h in truth["neither"]] == ["mixed"]
        assert set(heads.filter(pl.col("role") == "mixed")["mixed_by"]) == {"serves both answers"}


def test_the_mediated_path_is_missed_by_the_direct_effect_and_found_by_the_total_one(circuit, measured):
    """Head 1.3 only feeds a later head: this documents the difference between the variants."""
    (mediated,) = circuit[2]["only_total"]
    role = {
        v: {f"{l}.{h}": r for l, h, r in measured(v).table("heads").select("layer", "head", "role").iter_rows()}
        for v in ("direct", "total")
    }
    assert role["direct"][mediated] == "none" and role["total"][mediated] == "context"
    assert effects_of(measured("direct"))[mediated] == pytest.approx([0, 0], abs=1e-5)
    assert effects_of(measured("total"))[mediated] == pytest.approx([0, 0.75], abs=1e-5)


def test_pruning_the_context_head_brings_memory_back_and_pruning_the_memory_head_keeps_the_context(measured):
    run = measured("direct")
    table = run.table("pruning").filter(pl.col("heads") == "top")
    rates = {
        (role, k): (m, c, clean)
        for role, k, m, c, clean in table.select(
            "role", "k", "memory_rate", "context_rate", "clean_accuracy"
        ).iter_rows()
    }
    assert rates[("context", 0)] == rates[("memory", 0)] == (0.0, 1.0, 1.0)
    assert rates[("context", 1)] == (1.0, 0.0, 1.0)
    assert rates[("memory", 1)][1] == 1.0
    random = run.table("pruning").filter(
        (pl.col("role") == "context") & (pl.col("heads") == "random") & (pl.col("k") == 1)
    )
    assert random["draw"].to_list() == [0, 1, 2, 3, 4] and random["memory_rate"].max() == 0.0
    summary = run.summary
    assert (
        summary["context_pruned_gain_over_random"]["value"] == 1.0
        and summary["context_pruned_clean_change"]["value"] == 0.0
    )
    answers = run.table("answers").filter(pl.col("role") == "context")
    assert set(answers["before_kind"]) == {"context"} and set(answers["after_kind"]) == {"memory"}
    assert all(a.startswith(answer) for a, answer in zip(answers["after"], answers["answer"]))


def test_flow_shows_the_layer_that_reads_the_context(measured):
    flow = measured("direct").table("flow").filter(pl.col("component") == "knockout")
    value = {
        (s, w): (m, c)
        for s, w, m, c in flow.select("source", "window_start", "delta_memory", "delta_context").iter_rows()
    }
    assert value[("attribute_context", 1)][1] < -0.3 and value[("attribute_context", 1)][0] > 0.1
    # without one mention of the subject the memory head reads the other, and only head 1.2 loses a third of what it
    # looks at
    assert value[("subject_question", 1)][0] < -0.02 and value[("subject_question", 1)] == pytest.approx(
        value[("subject_context", 1)], abs=1e-5
    )
    for source in ("subject_context", "attribute_context", "subject_question"):
        assert value[(source, 0)] == pytest.approx((0, 0), abs=1e-6) and value[(source, 2)] == pytest.approx(
            (0, 0), abs=1e-6
        )


def test_inputs_are_enough_to_recompute_an_importance_with_plain_transformers(circuit, measured):
    """One forward pass of the eager Hugging Face model per prompt, with the head's slice put in by a hook: the total
    effect."""
    _, place, _ = circuit
    run = measured("total")
    hf = AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager").eval()
    inputs = run.table("inputs")
    d = hf.config.n_embd // hf.config.n_head
    lost = []
    for row in inputs.filter(pl.col("split") == "find").iter_rows(named=True):
        kept = []
        projection = hf.transformer.h[1].attn.c_proj
        hook = projection.register_forward_pre_hook(lambda _m, a, kept=kept: kept.append(a[0].detach().clone()))
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
    assert all(
        len(a) == len(b) and p == len(a) - 1 for a, b, p in inputs.select("ids", "corrupt_ids", "position").iter_rows()
    )


def test_corrupted_prompts_are_made_when_the_file_has_none(circuit, tmp_path):
    """Other names of the file, every other token in place, neither answer left in the prompt."""
    model, place, truth = circuit
    rows = [json.loads(line) for line in (place / "conflicts.jsonl").read_text().splitlines()]
    data = tmp_path / "plain.jsonl"
    data.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "corrupt_prompt"}) + "\n" for r in rows))
    run = runs.execute(
        PROBE,
        model,
        config={**QUICK, "variant": "direct", "metric": "logit", "prune_k": (1,), "flow_items": 0},
        data=data,
        out=tmp_path / "run",
    )
    found = effects_of(run)
    for head, expected in truth["direct"].items():
        assert found[head] == pytest.approx(expected, abs=1e-5), head
    for row, ids, corrupt, m, c in (
        run.table("inputs").select("row", "ids", "corrupt_ids", "memory_id", "context_id").iter_rows()
    ):
        changed = [i for i, (a, b) in enumerate(zip(ids, corrupt)) if a != b]
        words = rows[row]["conflict_prompt"].split()
        assert changed == [i for i, word in enumerate(words) if word in (rows[row]["subject"], rows[row]["distractor"])]
        assert not {m, c} & set(corrupt)


def test_the_head_mask_of_a_run_prunes_the_same_heads_elsewhere(circuit, measured):
    from workbench.engine.generate import greedy

    model, _, _ = circuit
    run = measured("direct")
    (edit,) = load_edits(run.folder / "pruned_heads.json")
    assert isinstance(edit, HeadAblation) and (1, 1) in edit.heads and edit.how == "zero"
    rows = run.table("inputs").filter(pl.col("split") == "test").sort("row")
    texts = [
        model.decode(ids).strip() for ids in greedy(model, rows["ids"].to_list(), max_new_tokens=10, edits=(edit,))
    ]
    assert texts == run.table("answers").filter(pl.col("role") == "context").sort("row")["after"].to_list()


@pytest.mark.parametrize("ablation", ("mean", "uniform"))
def test_other_ablations_run_and_are_recorded(circuit, tmp_path, ablation):
    model, place, _ = circuit
    run = runs.execute(
        PROBE,
        model,
        config={**QUICK, "ablation": ablation, "prune_k": (1,), "flow_items": 0},
        data=place / "conflicts.jsonl",
        out=tmp_path / "run",
    )
    table = run.table("pruning")
    assert set(table["ablation"]) == {ablation}
    assert (
        table.filter((pl.col("role") == "context") & (pl.col("heads") == "top") & (pl.col("k") == 1))[
            "memory_rate"
        ].item()
        == 1.0
    )


@pytest.mark.slow
def test_it_keeps_to_the_contract_of_probes(circuit):
    model, place, _ = circuit
    passed = check_probe(
        PROBE,
        model,
        config={**QUICK, "prune_k": (1,), "random_draws": 2, "flow_items": 2, "limit": 12, "variant": "total"},
        data=place / "conflicts.jsonl",
    )
    assert "cancel" in passed and "batching" in passed and "threads" in passed


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("prompt", ("Substitution Conflict", "Coherent Conflict"))
def test_juice_runs_as_it_is_with_a_column_map(stories260k, shared, tmp_path, prompt):
    """A real file on a real tokenizer; the model knows no capitals, so all items are kept and no role is expected."""
    config = {
        "columns": JUICE + prompt,
        "keep": "all",
        "limit": "24",
        "prune_k": "1",
        "random_draws": "1",
        "flow_items": "2",
        "draws": "100",
    }
    neutral = tmp_path / "neutral.txt"
    neutral.write_text("Once upon a time there was a little cat.\n")
    config |= {"neutral": str(neutral)} if prompt == "Coherent Conflict" else {}
    run = runs.execute(
        PROBE, str(stories260k), config=config, data=shared("conflict/juice/world_capital.json"), out=tmp_path / "run"
    )
    inputs, summary = run.table("inputs"), run.summary
    skipped = sum(summary[name] for name in COUNTS if name.startswith("skipped"))
    assert inputs.height + skipped == 24 and inputs.height >= 8
    assert (
        summary["neutral_text"].endswith(neutral.name)
        if "neutral" in config
        else summary["neutral_text"].startswith("English essays")
    )
    assert summary["perplexity"] > 1
    assert all(len(a) == len(b) and a != b for a, b in inputs.select("ids", "corrupt_ids").iter_rows())
    assert run.table("heads").height == 5 * 8 and run.table("heads").drop_nans().height == 5 * 8


def test_a_model_that_always_follows_one_side_is_said_to(measured):
    assert any("Every test item already follows context" in w for w in measured("direct").info["warnings"])


def test_the_engine_must_be_hf(circuit, tmp_path):
    with pytest.raises(InputError, match="engine 'hf'"):
        runs.execute(
            PROBE, circuit[0], config=QUICK, data=circuit[1] / "conflicts.jsonl", out=tmp_path / "run", engine="nnsight"
        )


def test_the_note_of_a_mask_says_what_it_does_and_the_mask_whose_it_is(circuit, measured):
    run = measured("direct")
    mask = read_mask(run.folder / "pruned_heads.json")
    assert "memory rate on test +1.000 (+1.000 over random heads), clean accuracy +0.000 (-0." in mask.note
    clean = run.summary["context_pruned_clean_change"]  # 0, of few subjects: not a sign that nothing is lost
    assert mask.note.endswith(f"({clean['low']:+.3f} to {clean['high']:+.3f})") and clean["low"] < -0.05
    assert any("costs no facts is not shown" in said for said in run.info["warnings"])
    assert mask.model["fingerprint"] == circuit[0].fingerprint and mask.mismatch_warning(circuit[0]) is None
