"""Activation patching by layer, position and component, and paths between heads, as a run reports them."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.knowledge_conflict import Config
from probes.knowledge_conflict.figures import figures
from tests.support.conflict_files import PROBE, QUICK, circuit_rows, conflict_circuit
from workbench.core.errors import InputError
from workbench.runs import execution as runs


@pytest.fixture(scope="module")
def circuit(_circuits):
    return conflict_circuit(_circuits)


@pytest.fixture(scope="module")
def measured(circuit, tmp_path_factory):
    """In logits, on seven items of the find split, and on validation items for the paths."""
    model, place, _ = circuit
    config = {
        **QUICK,
        "flow_items": 0,
        "metric": "logit",
        "variant": "total",
        "prune_k": (1,),
        "select": "rank",
        "patch_items": 7,
        "path_heads": 6,
        "validation_share": 0.3,
    }
    out = tmp_path_factory.mktemp("exposed") / "run"
    return runs.execute(PROBE, model, config=config, data=place / "conflicts.jsonl", out=out)


def test_both_are_off_unless_asked_for_and_then_no_part_of_a_runs_identity():
    own = {field.name: field for field in dataclasses.fields(Config)}
    assert own["patch_items"].default == own["path_heads"].default == 0
    assert all(own[name].metadata["later"] for name in ("patch_items", "path_heads", "path_items"))


@pytest.mark.parametrize("component", ["residual", "attention"])
def test_a_patched_position_is_that_of_plain_transformers(circuit, measured, component):
    """Every layer at the attribute of the context and at the last token, by hooks on the eager model."""
    _, place, _ = circuit
    hf = AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager").eval()
    rows, lost = circuit_rows(place), {}
    find = measured.table("inputs").filter(pl.col("split") == "find").head(7)
    for layer in range(hf.config.n_layer):
        block = hf.transformer.h[layer]
        module = block if component == "residual" else block.attn
        for item in find.iter_rows(named=True):
            words = rows[item["row"]]["conflict_prompt"].split()
            places = {"attribute_context": words.index(rows[item["row"]]["distractor"]), "last": len(words) - 1}
            kept = []
            hook = module.register_forward_hook(
                lambda _m, _a, out, kept=kept: kept.append(out[0] if isinstance(out, tuple) else out)
            )
            with torch.no_grad():
                hf(torch.tensor([item["corrupt_ids"]]))
            hook.remove()
            with torch.no_grad():
                before = hf(torch.tensor([item["ids"]])).logits[0, -1]
            for name, at in places.items():

                def put(_m, _a, out, at=at, kept=kept):
                    x = (out[0] if isinstance(out, tuple) else out).clone()
                    x[0, at] = kept[0].reshape(x.shape)[0, at]
                    return (x, *out[1:]) if isinstance(out, tuple) else x

                hook = module.register_forward_hook(put)
                with torch.no_grad():
                    after = hf(torch.tensor([item["ids"]])).logits[0, -1]
                hook.remove()
                ids = [item["memory_id"], item["context_id"]]
                lost.setdefault((layer, name), []).append((before - after)[ids].tolist())
    table = measured.table("patching").filter(pl.col("component") == component)
    assert table["rows"].unique().to_list() == [7] and table["n"].unique().to_list() == [7]
    for (layer, name), values in lost.items():
        row = table.filter(pl.col("layer") == layer, pl.col("position") == name).row(0, named=True)
        memory, context = np.mean(values, 0)
        assert row["memory_importance"] == pytest.approx(memory, abs=1e-4), (layer, name)
        assert row["context_importance"] == pytest.approx(context, abs=1e-4), (layer, name)
        assert row["score"] == pytest.approx(memory - context, abs=1e-4)


def test_the_circuit_reads_the_attribute_in_layer_1_and_carries_it_at_the_last_token_from_there(measured):
    table = measured.table("patching").filter(pl.col("component") == "residual")
    context = {
        (layer, at): value for layer, at, value in table.select("layer", "position", "context_importance").rows()
    }
    assert context[0, "attribute_context"] == pytest.approx(4.75, abs=1e-4)  # heads of layer 1 read it there
    assert context[1, "attribute_context"] == pytest.approx(0, abs=1e-4)  # and nobody after them
    assert context[0, "last"] == pytest.approx(0, abs=1e-4) and context[1, "last"] == pytest.approx(4.75, abs=1e-4)
    mlp = measured.table("patching").filter(pl.col("component") == "mlp")
    assert mlp["score"].abs().max() == pytest.approx(0, abs=1e-5)  # it has none


def test_the_carrier_of_the_circuit_is_the_path_into_the_values_of_its_reader(measured):
    """1.1 puts half of the city on the carrier and 1.3 three quarters; 2.0 reads it at its own position."""
    table = measured.table("paths").filter(pl.col("receiver_layer") == 2, pl.col("receiver_head") == 0)
    found = {
        (f"{a}.{b}", side): value
        for a, b, side, value in table.select("sender_layer", "sender_head", "through", "context_importance").rows()
    }
    assert found["1.1", "v"] == pytest.approx(0.5, abs=1e-4) and found["1.3", "v"] == pytest.approx(0.75, abs=1e-4)
    assert all(abs(value) < 1e-4 for (head, side), value in found.items() if side != "v" or head not in ("1.1", "1.3"))
    assert set(table["sender"]) == {"top", "random"}
    assert not set(table.filter(pl.col("sender") == "random").select("sender_layer", "sender_head").rows()) & {
        (1, 1),
        (1, 3),
    }
    validation = measured.table("inputs").filter(pl.col("split") == "validation")
    assert set(table["rows"]) == {min(16, validation.height)}


def test_what_is_told_from_0_is_adjusted_for_all_that_was_looked_at_and_has_a_least_size(measured):
    from workbench.stats.clusters import false_discovery

    for name in ("patching", "paths"):
        table = measured.table(name)
        expected = false_discovery(table["p"].to_numpy())
        np.testing.assert_allclose(table["p_adjusted"].to_numpy(), expected)
        assert (table["p_adjusted"] >= table["p"] - 1e-12).all()
        small = table.filter(pl.col("score").abs() < 0.05)  # rounding is the same for every item: its p means nothing
        assert small.height and not small["shown"].any() and table["shown"].any()


def test_of_effects_that_are_noise_hardly_any_is_shown_and_planted_ones_are():
    """300 tables of 60 cells of 12 subjects, 2 items each; three cells hold an effect."""
    from probes.knowledge_conflict.items import Item
    from probes.knowledge_conflict.patched_positions import POSITIONS, _table

    rng = np.random.default_rng(0)
    items = [Item(n, f"s{n // 2}", ["a"], "b", [1], [1], [1], 1, 2, {}, {}) for n in range(24)]
    planted = (pl.col("component") == "residual") & (pl.col("position") == POSITIONS[1]) & (pl.col("layer") < 3)
    true, wrong = 0, []
    for _ in range(300):
        each = rng.normal(0, 1, (12, 3, len(POSITIONS), 5, 2)).repeat(2, 0) + rng.normal(0, 1, (24, 3, 4, 5, 2))
        each[:, 0, 1, :3, 1] += 5
        found = _table(Config(), each.astype(np.float32), items, ("residual", "attention", "mlp"))
        hits, false = (found.filter(part)["shown"].sum() for part in (planted, ~planted))
        true += hits
        wrong.append(false / max(1, hits + false))
    assert true > 0.95 * 900
    assert 0 < np.mean(wrong) < 0.07  # 0.05 at most in expectation; 300 tables give it to 0.007


def test_below_five_subjects_there_is_no_interval_and_no_p(circuit, tmp_path):
    model, place, _ = circuit
    config = {**QUICK, "flow_items": 0, "prune_k": (1,), "select": "rank", "patch_items": 3, "path_heads": 4}
    run = runs.execute(
        PROBE, model, config=config | {"path_items": 2}, data=place / "conflicts.jsonl", out=tmp_path / "run"
    )
    for name in ("patching", "paths"):
        table = run.table(name)
        assert (
            table.height and table.select("ci_low", "ci_high", "p_adjusted").null_count().row(0) == (table.height,) * 3
        )


def test_each_has_a_figure(measured):
    found = figures(measured)
    assert {"patching", "paths"} <= set(found)
    assert [panel["title"] for panel in found["patching"].layout.meta["panels"]] == [
        "residual stream",
        "attention output",
        "MLP output",
    ]


def test_an_architecture_that_has_no_paths_between_heads_is_refused_before_anything_is_computed(circuit):
    class Without:
        def why_not(self, needs):
            return "Attention does not go through the interface." if "attention_edits" in needs else None

    from probes.knowledge_conflict import validate

    _, place, _ = circuit
    with pytest.raises(InputError, match="path_heads cannot be measured: attention does not"):
        validate(Config(path_heads=2), place / "conflicts.jsonl", Without())
    validate(Config(), place / "conflicts.jsonl", Without())
