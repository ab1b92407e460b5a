"""The dual run beside pruning: which heads are in which list, against random heads with the same scales, as a file."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch

from probes.knowledge_conflict import Config, dual_runs
from probes.knowledge_conflict.dual_runs import TRIED, head_lists
from probes.knowledge_conflict.items import Item
from tests.support.conflict_files import PROBE, QUICK, circuit_rows, conflict_circuit
from workbench.core.context import Context
from workbench.engine.dual_run import DualRun
from workbench.engine.generate import greedy
from workbench.engine.head_masks import load_edits
from workbench.runs import execution as runs


@pytest.fixture(scope="module")
def circuit(_circuits):
    return conflict_circuit(_circuits)


@pytest.fixture(scope="module")
def measured(circuit, tmp_path_factory):
    model, place, _ = circuit
    config = {**QUICK, "flow_items": 0, "dual_heads": 2, "prune_k": (1,), "variant": "total"}
    out = tmp_path_factory.mktemp("dual") / "run"
    return runs.execute(PROBE, model, config=config, data=place / "conflicts.jsonl", out=out)


def test_it_is_off_unless_asked_for_and_then_no_part_of_a_runs_identity():
    (own,) = [field for field in dataclasses.fields(Config) if field.name == "dual_heads"]
    assert own.default == 0 and own.metadata["later"]
    assert dual_runs.dual_runs(None, Config(), Context(), {}, [], np.zeros((1, 1), bool)) == ([], {})


def test_memory_heads_are_enlarged_and_context_heads_suppressed_for_memory_and_the_other_way_round(measured):
    said = {name: measured.summary[f"dual_run_for_{name}_heads"].split() for name in ("memory", "context")}
    assert said["memory"], said
    up = [head.partition("+")[0] for head in said["memory"] if "+" in head]
    down = [head.partition("-")[0] for head in said["memory"] if "-" in head]
    assert set(up) <= {"1.0", "1.2"} and set(down) <= {"1.1", "1.3", "2.0"}
    assert measured.summary["dual_run_for_memory_gain"]["value"] == 1.0
    assert measured.summary["dual_run_for_memory_clean_change"]["value"] == 0.0


def test_the_effect_of_a_single_head_is_that_of_two_plain_passes(circuit, monkeypatch):
    """Head 1.1 three times: hooks record its output in one pass and add to it in another."""
    model, place, _ = circuit
    rows, d = circuit_rows(place)[:3], model.d_head
    projection = model.hf.transformer.h[1].attn.c_proj
    items, expected, kept = [], [], []

    def add(_m, a):
        x = a[0].clone()
        x[..., d : 2 * d] += 3 * kept[-1][..., d : 2 * d]
        return (x,)

    for n, row in enumerate(rows):
        clean, conflict = (model.encode(row[f"{name}_prompt"]) for name in ("clean", "conflict"))
        ids = [model.encode(row[name], bos=False)[0] for name in ("answer", "distractor")]
        items.append(
            Item(n, row["subject"], [row["answer"]], row["distractor"], clean, conflict, conflict, *ids, {}, {})
        )
        found = []
        for prompt in (conflict, clean):
            hook = projection.register_forward_pre_hook(lambda _m, a: kept.append(a[0].clone()))
            with torch.no_grad():
                plain = model.hf(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            hook.remove()
            hook = projection.register_forward_pre_hook(add)
            with torch.no_grad():
                found.append((model.hf(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) - plain)[ids].tolist())
            hook.remove()
        expected.append(found)
    effects = dual_runs._effects(model, Context(), items)
    here = TRIED.index(3.0)
    for n, (conflict, clean) in enumerate(expected):
        assert effects["conflict"][1, 1, here, n].tolist() == pytest.approx(conflict, abs=1e-4)
        assert effects["clean"][1, 1, here, n] == pytest.approx(clean[0], abs=1e-4)


def test_a_head_must_help_within_every_kind_of_conflict_and_must_not_be_mixed():
    """Twelve subjects, two sources. 0.0 helps in both, 0.1 on average only, 0.2 in both but is mixed, 0.3 helps when it
    is taken off, 1.0 helps most but breaks the clean prompts."""
    items = [
        Item(n, f"s{n}", ["a"], "b", [1], [1], [1], 1, 2, {}, {"source": "law" if n < 6 else "rumour"})
        for n in range(12)
    ]
    law = np.arange(12) < 6
    conflict, clean = np.zeros((2, 4, len(TRIED), 12, 2)), np.zeros((2, 4, len(TRIED), 12))
    up, down = slice(0, 2), slice(2, 4)
    conflict[0, 0, up, :, 0], clean[0, 0, up] = 0.5, 0.1
    conflict[0, 1, up, :, 0], clean[0, 1, up] = np.where(law, 3.0, -0.5), 0.1
    conflict[0, 2, up, :, 0], clean[0, 2, up] = 2.0, 0.1
    conflict[0, 3, down, :, 0], clean[0, 3, down] = 1.0, 0.1
    conflict[1, 0, up, :, 0], clean[1, 0, up] = 4.0, -0.1
    conflict[1, 0, up, :, 1] = 0.7
    mixed = np.zeros((2, 4), bool)
    mixed[0, 2] = True
    effects = {"conflict": conflict, "clean": clean}
    assert head_lists(Config(dual_heads=5), items, effects, mixed, "memory") == (((0, 0),), ((0, 3),))
    assert head_lists(Config(dual_heads=5), items, effects, ~mixed, "memory") == (((0, 2),), ())
    # what follows the context has no clean prompt to answer
    assert head_lists(Config(dual_heads=5), items, effects, mixed, "context") == (((1, 0),), ())
    few = [dataclasses.replace(item, group={}) for item in items]
    assert head_lists(Config(dual_heads=1), few, effects, mixed, "memory")[0] == ((0, 1),)


def test_random_heads_of_the_same_layers_with_the_same_scales_stand_beside_it(measured):
    table = measured.table("pruning")
    mine = table.filter(pl.col("heads") == "dual run", pl.col("role") == "context")
    drawn = table.filter(pl.col("heads") == "dual run, random", pl.col("role") == "context")
    assert mine.height == 1 and 1 <= drawn.height <= 5

    def scales(which):
        """(layer, scale) of every head, in order; and the heads."""
        found = [head.replace("-", "+-").split("+", 1) for head in which.split()]
        return sorted((head.split(".")[0], float(by)) for head, by in found), {head for head, _ in found}

    want, heads = scales(mine["which"].item())
    for which in drawn["which"]:
        found, others = scales(which)
        assert found == want and not others & heads
    over = measured.summary["dual_run_for_memory_gain_over_random"]
    expected = mine["memory_rate"].item() - max(drawn["memory_rate"].mean(), 0.0)
    assert over["value"] == pytest.approx(expected) and over["low"] < over["value"]


def test_its_file_does_the_same_elsewhere(circuit, measured):
    model, _, _ = circuit
    path = measured.folder / "dual_run_memory.json"
    (edit,) = load_edits(path)
    assert isinstance(edit, DualRun)
    rows = measured.table("inputs").filter(pl.col("split") == "test").sort("row")
    answers = measured.table("answers").filter(pl.col("role") == "context").sort("row")
    ids = greedy(model, rows["ids"].to_list(), max_new_tokens=10, edits=(edit,))
    right = [model.decode(one).strip().startswith(answer) for one, answer in zip(ids, answers["answer"])]
    rate = measured.table("pruning").filter(pl.col("heads") == "dual run", pl.col("role") == "context")["memory_rate"]
    assert np.mean(right) == pytest.approx(rate.item())
