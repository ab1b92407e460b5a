"""What a run of the knowledge-conflict probe reports and warns of: kinds of conflicts, few items, the choice of k,
gains that are not shown."""

import polars as pl
import pytest
import torch

from probes.knowledge_conflict.figures import figures
from tests.support.conflict_files import PROBE, QUICK, circuit_rows, conflict_circuit, conflict_file
from workbench.runs import execution as runs


@pytest.fixture(scope="module")
def circuit(_circuits):
    return conflict_circuit(_circuits)


@pytest.fixture(scope="module")
def reported(circuit, tmp_path_factory):
    """One run on the circuit's items, of three sources and two relations, some of which name the subject once only;
    with too large k and too many random draws."""
    model, place, _ = circuit
    rows = circuit_rows(place)
    for n, row in enumerate(rows):
        row |= {"source": ("law", "rumour", "law", "diary")[n % 4], "relation": "capital" if n < 16 else "seat"}
        if n % 3 == 0:  # the question does not name the subject
            row["conflict_prompt"] = row["conflict_prompt"].rpartition(" . ")[0] + " ."
            row["corrupt_prompt"] = row["corrupt_prompt"].rpartition(" . ")[0] + " ."
    folder = tmp_path_factory.mktemp("reported")
    config = {
        "prune_k": (1, 3, 5, 7),
        "random_draws": 9,
        "curve_draws": 9,
        "variant": "direct",
        "select": "rank",
        "draws": 200,
        "flow_items": 24,
        "metric": "logit",
        "find_share": 0.5,
    }
    return runs.execute(
        PROBE, model, config=config, data=conflict_file(folder / "c.jsonl", rows), out=folder / "run"
    ), rows


def test_rates_and_importances_are_reported_for_every_kind_of_conflict(reported):
    """Counted again from the tables `answers` and `inputs` and from the arrays."""
    run, rows = reported
    assert set(figures(run)) >= {"groups", "gradient", "flow", "head_map", "pruning"}
    groups, answers, inputs = run.table("groups"), run.table("answers"), run.table("inputs")
    assert set(groups["column"]) == {"source", "relation"}
    for row, source, relation in inputs.select("row", "source", "relation").iter_rows():
        assert (source, relation) == (rows[row]["source"], rows[row]["relation"])
    assert answers.select("row", "source").unique().sort("row")["source"].to_list() == [
        rows[n]["source"] for n in sorted(set(answers["row"]))
    ]
    for entry in groups.filter(pl.col("heads") == "top").iter_rows(named=True):
        part = answers.filter((pl.col("role") == entry["role"]) & (pl.col(entry["column"]) == entry["group"]))
        told = part["before_kind" if entry["k"] == 0 else "after_kind"].to_list()
        assert entry["rows"] == len(told) >= entry["n"] > 0
        for side in ("memory", "context", "other"):
            assert entry[f"{side}_rate"] == pytest.approx(told.count(side) / len(told))
            low, high = entry[f"{side}_low"], entry[f"{side}_high"]
            assert (low is None) == (high is None) == (entry["n"] < 5)
            assert low is None or low <= entry[f"{side}_rate"] <= high
    assert {(r, h) for r, h in groups.select("role", "heads").iter_rows()} == {
        (r, h) for r in ("memory", "context") for h in ("top", "random")
    }
    find, effects = inputs.filter(pl.col("split") == "find"), torch.from_numpy(run.array("effects")).double()
    for column, group, n in run.table("head_groups").select("column", "group", "rows").unique().iter_rows():
        chosen = [i for i, value in enumerate(find[column]) if value == group]
        part = (
            run.table("head_groups")
            .filter((pl.col("column") == column) & (pl.col("group") == group))
            .sort("layer", "head")
        )
        assert n == len(chosen)
        for side, name in enumerate(("memory", "context")):
            torch.testing.assert_close(
                torch.tensor(part[f"{name}_importance"].to_list()).double(),
                effects[chosen].mean(0)[..., side].flatten(),
                atol=1e-6,
                rtol=0,
            )


def test_a_k_beyond_the_heads_of_a_side_is_reported_once_and_under_the_number_that_is_pruned(reported):
    run, _ = reported
    for table in ("pruning", "validation"):
        found = run.table(table).filter(pl.col("heads") == "top")
        assert (found["k"] == found["n_heads"]).all() and found.select("role", "which").is_duplicated().sum() == 0
    assert any(
        "Only 1 memory heads can be pruned: k = 3, 5, 7 would all prune these, and k = 1 is reported" in w
        for w in run.info["warnings"]
    )


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
    for source, n in (
        ("all", len(find)),
        ("subject_context", named_twice),
        ("attribute_context", len(find)),
        ("subject_question", len(find)),
    ):
        assert set(flow.filter(pl.col("source") == source)["n"]) == {n}, source


def test_a_span_that_no_item_has_gets_no_panel(circuit, tmp_path):
    model, place, _ = circuit
    rows = circuit_rows(place)
    for row in rows:
        for name in ("conflict_prompt", "corrupt_prompt"):
            row[name] = row[name].rpartition(" . ")[0] + " ."
    run = runs.execute(
        PROBE,
        model,
        config={**QUICK, "prune_k": (1,), "random_draws": 1, "keep": "all"},
        data=conflict_file(tmp_path / "c.jsonl", rows),
        out=tmp_path / "run",
    )
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
    run = runs.execute(
        PROBE,
        model,
        config={**QUICK, "prune_k": (1,), "flow_items": 0, "metric": "logit"},
        data=conflict_file(tmp_path / "c.jsonl", rows),
        out=tmp_path / "run",
    )
    heads = run.table("heads")
    assert set(heads["role"]) == {"none"} and heads["ci_low"].null_count() == heads.height and set(heads["n"]) == {1}
    assert run.summary["memory_heads"] == 0 and run.summary["context_pruned_gain"]["value"] == 1.0
    assert any("split 'find' has only 1 subject: no head gets a role" in w for w in run.info["warnings"])
    assert any("split 'validation' has only 3 subjects: k hangs on single answers" in w for w in run.info["warnings"])
    rate = run.summary["context_pruned_memory_rate"]
    assert (rate["value"], rate["high"], rate["n"]) == (1.0, 1.0, 20) and 0.8 < rate["low"] < 0.9  # Wilson


def context_of(tmp_path=None):
    from workbench.core.context import Context

    return Context(out=tmp_path)


def validation_row(k, memory, clean, p=0.5):
    return {
        "k": k,
        "memory_rate": memory,
        "context_rate": 1 - memory,
        "p_memory": p,
        "p_context": 1 - p,
        "clean_accuracy": clean,
    }


@pytest.mark.parametrize(
    "rows, chosen, warned",
    [
        (
            [validation_row(0, 0.5, 1), validation_row(1, 0.3, 1), validation_row(3, 0.4, 1)],
            0,
            "No context heads are pruned",
        ),
        (
            [validation_row(0, 0.5, 1), validation_row(1, 0.9, 0.9), validation_row(3, 0.95, 0.8)],
            0,
            "costs at most 2% of clean accuracy",
        ),
        ([validation_row(0, 0.5, 1), validation_row(1, 0.6, 0.99), validation_row(3, 0.9, 0.9)], 1, None),
        (
            [
                validation_row(0, 0.5, 1),
                validation_row(1, 0.6, 1),
                validation_row(3, 0.6, 1, 0.7),
                validation_row(5, 0.6, 1, 0.7),
            ],
            3,
            None,
        ),
    ],
)
def test_k_may_be_none_at_all_where_pruning_does_not_help_or_costs_too_much(rows, chosen, warned):
    from probes.knowledge_conflict import Config
    from probes.knowledge_conflict.pruning import choose_k

    context = context_of()
    assert choose_k(Config(), context, "context", rows) == chosen
    assert any(warned in w for w in context.warnings) if warned else not context.warnings


def test_where_nothing_is_pruned_no_mask_is_written(circuit, tmp_path, monkeypatch):
    from probes.knowledge_conflict import pruning

    choose = pruning.choose_k
    monkeypatch.setattr(
        pruning,
        "choose_k",
        lambda config, context, role, rows: 0 if role == "context" else choose(config, context, role, rows),
    )
    model, place, _ = circuit
    run = runs.execute(
        PROBE,
        model,
        config={**QUICK, "prune_k": (1,), "flow_items": 0},
        data=place / "conflicts.jsonl",
        out=tmp_path / "run",
    )
    assert sorted(p.name for p in run.folder.glob("*.json")) == ["run.json", "summary.json"]
    assert run.summary["context_pruned_k"] == 0 and run.summary["context_pruned_gain"] is None
    assert not run.table("pruning").filter(pl.col("role") == "context")["chosen"].any()


def test_heads_that_are_not_shown_to_help_leave_no_mask(circuit, tmp_path):
    """Every answer of the circuit follows the context already: pruning its memory heads cannot bring more."""
    model, place, _ = circuit
    config = {**QUICK, "flow_items": 0, "mask": "memory"}
    run = runs.execute(PROBE, model, config=config, data=place / "conflicts.jsonl", out=tmp_path / "run")
    assert run.summary["memory_pruned_k"] >= 1 and run.summary["memory_pruned_gain"]["value"] == 0
    assert run.summary["memory_pruned_supported"] is False and run.summary["context_pruned_supported"] is True
    assert [path.name for path in run.folder.glob("pruned*.json")] == ["pruned_heads_context.json"]
    assert any(w.startswith("No set of memory heads is supported") for w in run.info["warnings"])


@pytest.mark.parametrize(
    ("gain", "over", "found"),
    [(0.2, 0.1, True), (0.0, 0.1, False), (0.2, 0.0, False), (None, 0.1, False), (0.2, -0.1, False)],
)
def test_support_needs_a_gain_over_none_and_over_random_heads(gain, over, found):
    from probes.knowledge_conflict.head_masks import supported

    ends = {"memory_pruned_gain": {"low": gain}, "memory_pruned_gain_over_random": {"low": over}}
    assert supported("memory", ends) is found
    assert not supported("memory", dict.fromkeys(ends))  # nothing was pruned


def kinds_of(kinds, right, perplexity=2.0):
    subjects = [str(n) for n in range(len(kinds))]
    return pl.DataFrame(
        {"subject": subjects, "kind": kinds, "clean_right": right, "perplexity": [perplexity] * len(kinds)}
    )


def test_a_gain_that_is_not_shown_and_a_cost_above_two_points_are_warned_of():
    from probes.knowledge_conflict.answer_rates import gain

    before = kinds_of(["context"] * 120, [True] * 120)  # enough for a loss of 5 points to be excluded
    helped = kinds_of(["memory"] * 90 + ["context"] * 30, [True] * 117 + [False] * 3)
    for top, randoms, warnings in (
        (helped, [before], ["costs 2.5% of clean accuracy"]),
        (before, [before], ["more memory answers than pruning none", "more memory answers than pruning random heads"]),
        (helped.with_columns(clean_right=pl.lit(True)), [helped], ["than pruning random heads"]),
        (helped.with_columns(clean_right=pl.lit(True)), [before], []),
    ):
        context = context_of()
        found = gain(context, "context", 3, before, top, randoms * 2)
        assert len(context.warnings) == len(warnings) and all(
            any(part in w for w in context.warnings) for part in warnings
        )
        assert found["context_pruned_gain"]["value"] == pytest.approx((top["kind"] == "memory").mean())
        assert found["context_pruned_gain_over_random"]["value"] == pytest.approx(
            (top["kind"] == "memory").mean() - (randoms[0]["kind"] == "memory").mean()
        )
        assert found["context_pruned_clean_change"]["value"] == pytest.approx(top["clean_right"].mean() - 1)
    said = context_of()
    gain(said, "context", 3, before[:40], helped[:40], [before[:40]] * 2)
    assert said.warnings == [
        "That pruning 3 context heads costs no facts is not shown: clean accuracy changes by +0.0% on 40 subjects, and "
        "a loss of up to 8.8% is not excluded."
    ]
    few = gain(context_of(), "context", 1, before[:3], helped[:3], [before[:3]] * 2)
    assert few["context_pruned_gain"] == {"value": 1.0, "low": None, "high": None, "n": 3, "rows": 3}
