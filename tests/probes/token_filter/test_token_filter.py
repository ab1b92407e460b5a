"""Runs of the token filter: on a copy circuit, whose answers are known of any set of tokens, and on the organism, whose
tables are computed again from what was fed."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from probes.token_filter import Config
from probes.token_filter.answer_rates import rate_table
from probes.token_filter.answers import Ask, answer_parts
from probes.token_filter.estimate import random_sets
from probes.token_filter.trials import read_trials
from tests.support import tiny_llama as tiny
from tests.support.architectures import build
from tests.support.plain_token_scores import by_hand, plain_of, window_mean
from workbench import organisms
from workbench.core import config as configs
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.generate import greedy
from workbench.explorer.layer_curves import curves
from workbench.models.loading import load, wrap
from workbench.organisms import circuits
from workbench.runs.checks import check_probe
from workbench.runs.execution import execute, prepare
from workbench.runs.folder import open_run
from workbench.stats.clusters import clusters_of
from workbench.stats.crossed_shares import share_difference_interval, steady_share_interval

SHORT = {
    "lengths": (96, 160),
    "depths": (0, 60, 100),
    "needles": 6,
    "max_new_tokens": 8,
    "k": (40,),
    "random_draws": 3,
    "answer_trials": 12,
    "force_keep": ("question",),
    "draws": 100,
    "kept_sets": 36,
}
TINY = {
    "lengths": (96,),
    "depths": (0, 100),
    "needles": 2,
    "max_new_tokens": 3,
    "k": (32,),
    "random_draws": 1,
    "answer_trials": 2,
    "draws": 100,
}


@pytest.fixture(scope="module")
def organism():
    return load("organism")


@pytest.fixture(scope="module")
def run(organism, tmp_path_factory):
    return execute("token-filter", organism, config=SHORT, out=tmp_path_factory.mktemp("filter") / "run")


@pytest.fixture(scope="module")
def circuit(_circuits, tmp_path_factory):
    """(the copy circuit, a run on it)."""
    model = load(str(circuits.folder("circuit-copy", _circuits)))
    model.name = "circuit-copy"
    return model


@pytest.fixture(scope="module")
def copied(circuit, _circuits, tmp_path_factory):
    place = _circuits / "circuit-copy"
    data = {"needles": str(place / "needles.jsonl"), "haystack": str(place / "haystack.txt")}
    config = SHORT | data | {"template": "{context} {question}", "k": (24,), "lengths": (96,)}
    return execute("token-filter", circuit, config=config, out=tmp_path_factory.mktemp("copied") / "run")


# truth


def test_the_layer_of_the_copy_head_is_the_filter_and_heads_have_the_scores_that_are_known(circuit, copied, _circuits):
    from probes.token_filter.selection import select

    truth = json.loads((_circuits / "circuit-copy" / "truth.json").read_text())
    assert copied.table("choice")["layer"].to_list() == [1, 1]
    layers = copied.table("layers")
    assert layers["retrieval_score"].to_list() == [0.0, 1.0] and layers["finds"].to_list() == [False, True]
    config = configs.build(Config, copied.info["config"], literal=True)
    context = Context(data=_circuits / "circuit-copy" / "needles.jsonl")
    found = read_trials(circuit, config, context)
    copying = select(circuit, config, context, found).copying.mean(0)
    for name, score in truth["scores"].items():
        layer, head = map(int, name.split("."))
        assert copying[layer, head] == pytest.approx(score)


def test_the_copy_circuit_answers_from_a_set_iff_needle_and_question_are_in_it(circuit, copied, _circuits):
    """All tokens of both: right at any place; one of them cut: not all of it."""
    inputs = copied.table("inputs")
    rng = np.random.default_rng(0)
    for row in inputs.head(6).iter_rows(named=True):
        ids, n = row["ids"], len(row["ids"])
        needle, question = range(row["needle_start"], row["needle_end"]), range(row["question_start"], n)
        answer = ids[row["span_start"] : row["span_end"]]
        rest = [p for p in range(n) if p not in needle and p not in question]
        more = set(rng.choice(rest, 10, replace=False).tolist())

        def says(kept, ids=ids, answer=answer):
            said = greedy(circuit, [[ids[p] for p in sorted(kept)]], max_new_tokens=len(answer))[0]
            return said[: len(answer)] == answer

        whole = {*more, *needle, *question}
        assert says(whole)
        assert not says(whole - {*question}) and not says(whole - {row["span_start"] + 2})
        assert not says({*more, *question})


def test_without_the_needles_tokens_the_filters_answers_are_gone(copied):
    rates = {row["arm"]: row for row in copied.table("rates").iter_rows(named=True)}
    assert rates["all"]["recall"] == 1.0 and rates["closed"]["recall"] == 0.0
    assert rates["filter"]["recall"] > 0.6 and rates["filter_without_needle"]["recall"] == 0.0
    assert rates["filter_minus_filter_without_needle"]["ci_low"] > 0
    assert rates["filter_minus_random"]["ci_low"] > 0 and rates["random"]["recall"] < 0.3


# what was fed, computed again


def test_the_selected_positions_and_the_recall_of_the_layers_are_those_of_plain_hugging_face(run, organism):
    """Of every third trial in float64, by loops; the table of all of them by hand from the kept sets."""
    from transformers import AutoModelForCausalLM

    plain = plain_of(AutoModelForCausalLM.from_pretrained(organisms.folder("organism"), dtype=torch.float32))
    inputs, selection = run.table("inputs"), run.table("selection")
    assert selection["row"].n_unique() == inputs.height == 36
    shares = np.zeros((36, 6))
    for row in inputs.iter_rows(named=True):
        needle = set(range(row["needle_start"], row["needle_end"]))
        sets = {layer: own for layer, own in selection.filter(row=row["row"]).select("layer", "positions").iter_rows()}
        shares[row["row"]] = [len(needle & set(sets[layer])) / len(needle) for layer in range(6)]
        if row["row"] % 12 == 0:
            question = list(range(row["question_start"], len(row["ids"])))
            for layer, scores in enumerate(by_hand(plain, row["ids"])):
                mean = window_mean(scores, 5)
                mean[question] = np.inf
                order = sorted(range(len(mean)), key=lambda s: (-mean[s], s))
                assert sets[layer] == sorted(order[:40])
    layers = run.table("layers").sort("layer")
    assert np.allclose(layers["needle_recall"], shares.mean(0), atol=1e-12)
    clusters = clusters_of(run.table("trials")["needle"].to_numpy())
    low, high = steady_share_interval(shares, clusters)
    assert (
        np.allclose(layers["ci_low"], low) and np.allclose(layers["ci_high"], high) and layers["n"].unique().item() == 6
    )
    at = run.table("places").group_by("layer").agg(pl.col("needle_recall").mean()).sort("layer")
    assert np.allclose(at["needle_recall"], shares.mean(0))


def test_the_filter_layer_is_the_best_one_of_the_other_half_of_the_needles(run):
    trials, inputs = run.table("trials"), run.table("inputs")
    recall = np.zeros((36, 6))
    for row, layer, positions in run.table("selection").select("row", "layer", "positions").iter_rows():
        start, end = inputs.row(row, named=True)["needle_start"], inputs.row(row, named=True)["needle_end"]
        recall[row, layer] = sum(start <= p < end for p in positions) / (end - start)
    half = trials["needle"].to_numpy() % 2
    for fold, layer, choosing, testing in (
        run.table("choice").select("fold", "layer", "recall_choosing", "recall_testing").iter_rows()
    ):
        means = recall[half != fold].mean(0)
        assert layer == int(np.argmax(means)) and choosing == pytest.approx(means.max())
        assert testing == pytest.approx(recall[half == fold, layer].mean())
        tested = (
            run.table("answers")
            .filter(arm="filter")
            .filter(pl.col("trial").is_in(np.flatnonzero(half == fold).tolist()))
        )
        assert tested["layer"].unique().to_list() == [layer]


def test_every_arm_has_as_many_tokens_and_is_the_prompt_at_its_positions(run):
    inputs, answers = run.table("inputs"), run.table("answers")
    counts = answers.group_by("arm").len().rows()
    assert dict(counts) == {
        "all": 12,
        "closed": 12,
        "filter": 12,
        "filter_without_needle": 12,
        "recent": 12,
        "random": 36,
    }
    sets = run.table("selection")
    for row in answers.iter_rows(named=True):
        fed = inputs.row(row["trial"], named=True)
        needle = range(fed["needle_start"], fed["needle_end"])
        if row["arm"] == "closed":
            assert row["positions"] is None and fed["ids"][needle[0] : needle[-1] + 1] not in [
                row["ids"][i : i + len(needle)] for i in range(len(row["ids"]))
            ]
            continue
        positions = row["positions"]
        assert row["ids"] == [fed["ids"][p] for p in positions] and positions == sorted(set(positions))
        assert row["needle_kept"] == pytest.approx(sum(p in set(positions) for p in needle) / len(needle))
        if row["arm"] == "all":
            continue
        assert len(positions) == 40 and set(range(fed["question_start"], len(fed["ids"]))) <= set(positions)
        if row["arm"] == "filter":
            assert positions == sets.filter(row=row["trial"], layer=row["layer"])["positions"][0].to_list()
        if row["arm"] == "filter_without_needle":
            assert row["needle_kept"] == 0
        if row["arm"] == "recent":
            assert positions == list(range(len(fed["ids"]) - 40, len(fed["ids"])))
    drawn = [tuple(p) for p in answers.filter(arm="random")["positions"].to_list()]
    assert len(set(drawn)) == len(drawn)


def test_answers_are_what_plain_hugging_face_generates_from_the_kept_tokens_alone(run):
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(
        organisms.folder("organism"), dtype=torch.float32, attn_implementation="eager"
    )
    some = run.table("answers").filter(pl.col("draw") == 0).filter(pl.col("trial") == 0)
    assert some.height == 6
    for row in some.iter_rows(named=True):
        said = hf.generate(
            torch.tensor([row["ids"]]),
            max_new_tokens=8,
            do_sample=False,
            attention_mask=torch.ones(1, len(row["ids"])).long(),
        )[0]
        said = said[len(row["ids"]) :].tolist()
        assert row["generated_ids"] and said[: len(row["generated_ids"])] == row["generated_ids"]


def test_the_rates_are_means_over_trials_with_intervals_over_needles_and_draws(run):
    rates = {row["arm"]: row for row in run.table("rates").iter_rows(named=True)}
    answers, needles = run.table("answers"), run.table("trials")["needle"].to_numpy()
    by_arm = {}
    for arm in ("filter", "all", "random"):
        own = answers.filter(arm=arm).sort("draw", "trial")
        by_arm[arm] = own["recall"].to_numpy().reshape(-1, 12)
        assert rates[arm]["recall"] == pytest.approx(own["recall"].mean()) and rates[arm]["n"] == 6
    trials = answers.filter(arm="filter")["trial"].sort().to_numpy()
    low, high = share_difference_interval(by_arm["filter"][0], by_arm["random"], clusters_of(needles[trials]))
    row = rates["filter_minus_random"]
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high)) and rates["random"]["draws"] == 3
    assert row["recall"] == pytest.approx(by_arm["filter"].mean() - by_arm["random"].mean())


def test_an_arm_that_some_trials_do_not_have_is_left_out_of_the_rates():
    """A question that is longer than what is kept has no random set with it: the others' recalls must not be taken for
    those of all trials, however the numbers of draws and trials divide."""
    arms = {"all": (None, 1), "filter": (10, 1), "random": (10, 4), "random_with_question": (10, 4)}
    rows = [
        {"trial": trial, "arm": arm, "draw": draw, "k": k, "recall": float(trial == 0)}
        for trial in range(4)
        for arm, (k, draws) in arms.items()
        for draw in range(draws)
        if arm != "random_with_question" or trial < 2
    ]
    rates = rate_table(pl.DataFrame(rows), np.arange(4), [10])
    assert rates["arm"].to_list() == ["filter", "all", "random", "filter_minus_all", "filter_minus_random"]


def test_the_agreement_is_spearmans_rho_over_layers(run):
    layers = run.table("layers").sort("layer")
    rho = stats.spearmanr(layers["needle_recall"], layers["retrieval_score"]).statistic
    row = run.table("agreement").row(0, named=True)
    assert row["correlation"] == pytest.approx(rho) and row["layers"] == 6 and row["n"] == 6
    assert row["ci_low"] <= rho <= row["ci_high"] and row["source"] == "answer"


def test_the_explorer_shows_the_recall_of_the_layers_as_a_curve(run):
    found = {curve.column: curve for curve in curves([run])}
    assert set(found) == {"needle_recall", "answer_kept", "recall_by_chance", "retrieval_score"}
    value, ends = found["needle_recall"].at(2)
    row = run.table("layers").row(2, named=True)
    assert value == row["needle_recall"] and ends == (row["ci_low"], row["ci_high"])


# settings


def test_with_softmax_the_layer_of_the_organisms_copying_head_is_chosen_and_keeps_more(run, organism):
    """Plain products add up heads of different scale."""
    softmax = execute("token-filter", organism, config=SHORT | {"score": "softmax", "random_draws": 1})
    best = run.table("layers").sort("retrieval_score")["layer"][-1]
    assert softmax.table("choice")["layer"].to_list() == [best, best] != run.table("choice")["layer"].to_list()
    assert softmax.table("choice")["recall_testing"].min() > run.table("choice")["recall_testing"].max()


def test_with_nothing_forced_random_sets_with_the_question_stand_beside(organism):
    done = execute("token-filter", organism, config=TINY | {"random_draws": 2, "filter_layer": 3})
    found = done.table("answers")
    kept = found.filter(arm="filter")["question_kept"].mean()
    assert any(f"The filter keeps {kept:.0%} of the tokens that ask" in said for said in done.info["warnings"])
    asked = found.filter(arm="random_with_question")
    assert asked.height == 4 and (asked["question_kept"] == 1).all()
    assert (found.filter(arm="random")["question_kept"] < 1).any()


def test_a_layer_that_is_asked_for_is_the_filter_and_below_five_needles_there_is_no_interval(organism):
    found = execute("token-filter", organism, config=TINY | {"filter_layer": 3, "k": (16, 32)})
    assert found.table("choice").select("k", "layer").rows() == [(16, 3), (32, 3)]
    assert found.table("answers").filter(arm="filter")["layer"].unique().to_list() == [3]
    layers = found.table("layers")
    assert layers.height == 12 and layers["ci_low"].null_count() == layers["p_adjusted"].null_count() == 12
    assert not layers["finds"].any() and found.table("rates")["ci_low"].null_count() == found.table("rates").height
    assert found.table("agreement")["ci_low"].null_count() == 2


def test_forcing_tokens_that_are_not_there_is_said():
    model = wrap(build("gpt2", vocab_size=512, n_positions=512), tiny.tokenizer(), name="gpt2")
    model = dataclasses.replace(model, prepends_bos=False)
    found = execute(
        "token-filter", model, config=TINY | {"lengths": (200,), "force_keep": ("bos",), "answer_trials": 0}
    )
    assert any("force_keep=bos keeps nothing" in said for said in found.info["warnings"])
    assert found.table("trials")["forced"].to_list() == [0] * 4


def test_answers_are_saved_in_parts_of_few_tokens():
    wanted = [Ask(0, "all", 0, None, None, (1,) * size, None) for size in (50, 60, 10, 300, 5, 5)]
    assert [[len(ask.ids) for ask in part] for part in answer_parts(wanted, 100)] == [[50], [60, 10], [300], [5, 5]]
    assert [len(part) for part in answer_parts([wanted[-1]] * 600, 10**6)] == [256, 256, 88]


def test_a_needle_that_is_there_twice_is_one_cluster_on_one_side_of_the_choice(organism, tmp_path):
    rows = [json.loads(line) for line in organisms.data("needles.jsonl").read_text().splitlines()[:3]]
    data = tmp_path / "needles.jsonl"
    data.write_text("".join(json.dumps(rows[i]) + "\n" for i in (0, 1, 0, 2, 1, 2)))
    run = execute("token-filter", organism, data=data, config=TINY | {"needles": "default"})
    assert "3 of the 6 needles" in " ".join(run.info["warnings"])
    assert run.table("layers")["n"].unique().to_list() == [3] and run.table("layers")["ci_low"].null_count() > 0
    choice = run.table("choice")
    assert (choice["needles_choosing"] + choice["needles_testing"]).unique().to_list() == [3]


def test_the_estimate_counts_the_random_sets_that_are_answered(run):
    answers = run.table("answers")
    one = answers.filter((pl.col("trial") == answers["trial"][0]) & pl.col("arm").str.starts_with("random"))
    assert random_sets(Config(**SHORT)) == one.height == 3 and random_sets(Config(random_draws=3)) == 6


def test_one_needle_chooses_no_layer_and_says_so(organism):
    found = execute("token-filter", organism, config=TINY | {"needles": 1})
    assert found.table("choice").is_empty() and found.table("rates").is_empty()
    assert any("There is one needle, so no layer can be chosen" in said for said in found.info["warnings"])


def test_prompts_that_a_filter_would_keep_whole_are_left_out_and_said(organism):
    found = execute("token-filter", organism, config=TINY | {"k": (32, 90, 500)})
    assert found.table("layers").filter(k=500)["needle_recall"].to_list() == [1.0] * 6
    assert found.table("trials")["prompt_tokens"].max() > 90  # of which some are the needle's
    assert found.table("rates")["k"].unique().to_list() == [32]
    for k in (90, 500):
        assert any(f"fewer than k={k} tokens beside the needle" in said for said in found.info["warnings"])
    sizes = found.table("answers").drop_nulls("k").select(pl.col("positions").list.len(), "k")
    assert (sizes["positions"] == sizes["k"]).all()


def test_the_heads_of_another_run_can_be_compared(organism, tmp_path):
    heads = {"lengths": (96,), "depths": (50,), "needles": 2, "mask_k": (0,), "max_new_tokens": 4, "draws": 100}
    other = execute("retrieval-heads", organism, config=heads, out=tmp_path / "heads")
    found = execute("token-filter", organism, config=TINY | {"retrieval": str(tmp_path / "heads"), "answer_trials": 0})
    expected = other.table("heads").group_by("layer").agg(pl.col("score").max()).sort("layer")["score"]
    assert found.table("layers").sort("layer")["retrieval_score"].to_list() == pytest.approx(expected.to_list())
    assert found.table("agreement")["source"].to_list() == ["run"] and found.table("answers").is_empty()
    without = execute("token-filter", organism, config=TINY | {"retrieval": "none", "answer_trials": 0})
    assert without.table("agreement").is_empty() and without.table("layers")["retrieval_score"].null_count() == 6
    assert without.table("layers")["needle_recall"].to_list() == found.table("layers")["needle_recall"].to_list()


def windowed(name: str, **changes):
    hf = build(name, vocab_size=512, max_position_embeddings=512, sliding_window=40, **changes)
    return wrap(hf, tiny.tokenizer(), name=name)


def test_a_layer_with_a_window_is_scored_on_what_it_sees_and_never_chosen():
    model = windowed("gemma2")
    config = TINY | {"lengths": (200,), "retrieval": "none"}
    found = execute("token-filter", model, config=config)
    layers = found.table("layers").sort("layer")
    sees = layers["sees_all"].to_list()
    assert any(sees) and not all(sees)
    assert all(seen == 40 for seen, whole in zip(layers["sees"], sees) if not whole)
    whole = [layer for layer, sees_all in enumerate(sees) if sees_all]
    assert set(found.table("choice")["layer"]) <= set(whole)
    assert any("attend over a window and do not see all" in said for said in found.info["warnings"])
    blind = sees.index(False)
    with pytest.raises(InputError, match=f"filter_layer={blind} attends over a window and sees 40 tokens"):
        execute("token-filter", model, config=config | {"filter_layer": blind})
    with pytest.raises(InputError, match="No layer sees all tokens of prompts of up to"):
        execute("token-filter", windowed("mistral"), config=config)


def test_half_precision_gives_the_tables_of_a_run(organism):
    model = load("organism", dtype="bfloat16")
    half = execute("token-filter", model, config=TINY | {"answer_trials": 0}).table("layers")
    whole = execute("token-filter", organism, config=TINY | {"answer_trials": 0}).table("layers")
    assert np.abs(half["needle_recall"].to_numpy() - whole["needle_recall"].to_numpy()).max() < 0.15


def test_it_keeps_to_the_contract_of_probes(organism):
    passed = check_probe("token-filter", organism, config=TINY)
    assert "batching" in passed and "cancel" in passed and "threads" in passed


# what is refused


@pytest.mark.parametrize(
    "config,words",
    [
        ({"kernel": 4}, "'kernel' is 4"),
        ({"k": ()}, "'k' is empty"),
        ({"force_keep": ("none", "bos")}, "none beside other places"),
        ({"force_keep": ("system",)}, "force_keep"),
        ({"retrieval": ""}, "'retrieval' is empty"),
        ({"template": "{question} {context}"}, "comes after the context"),
        ({"score": "mean"}, "score"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_before_a_model_is_loaded(config, words):
    with pytest.raises(InputError, match=words):
        prepare("token-filter", config, model="organism")


def test_what_does_not_go_with_the_model_is_refused_in_one_sentence(organism, tmp_path):
    for config, words in (
        ({"filter_layer": 6}, "filter_layer=6 does not exist"),
        ({"k": (4,), "force_keep": ("question",)}, "keeps 1[0-9] tokens of a prompt, more than k=4"),
        ({"lengths": (4000,)}, "go beyond the context of"),
        ({"lengths": (12,)}, "cannot hold needle and question"),
        ({"retrieval": str(tmp_path / "nowhere")}, "is no folder of a run"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            execute("token-filter", organism, config=TINY | config)
        assert str(caught.value).count(". ") == 0


def test_a_needle_without_its_answer_is_named_by_row(tmp_path):
    path = tmp_path / "needles.csv"
    path.write_text("needle,question,answer\nThe key is red.,Which key?,red\nThe door is blue.,Which door?,green\n")
    with pytest.raises(InputError, match="needles.csv: Needle row 2: the answer 'green' does not occur"):
        prepare("token-filter", {}, path, model="gpt2")


def test_another_engine_is_refused(organism):
    with pytest.raises(InputError, match="only the engine 'hf' gives"):
        execute("token-filter", organism, config=TINY, engine="nnsight")


def test_a_run_that_was_stopped_goes_on_where_it_was(organism, tmp_path):
    calls = {"n": 0}

    def stop():
        calls["n"] += 1
        return calls["n"] == 12

    from workbench.core.errors import Cancelled

    with pytest.raises(Cancelled):
        execute("token-filter", organism, config=TINY, out=tmp_path / "run", cancel=stop)
    again = execute("token-filter", organism, config=TINY, out=tmp_path / "run")
    fresh = execute("token-filter", organism, config=TINY, out=tmp_path / "fresh")
    for name in fresh.tables:
        assert again.table(name).equals(fresh.table(name), null_equal=True)
    assert again.info["counters"]["prompts"] == fresh.info["counters"]["prompts"]
    assert open_run(tmp_path / "run").status == "complete"
