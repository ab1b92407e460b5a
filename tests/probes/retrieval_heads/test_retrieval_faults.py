"""The retrieval probe when things go wrong: killed, out of memory, one needle left, tokenizers that lack things, bad
input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from probes.retrieval_heads import Config, detection, masking
from probes.retrieval_heads.head_scores import cluster_names, head_table, warn_of_few
from probes.retrieval_heads.needle_grid import read_grid
from tests.support.retrieval_children import CONFIG
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.batching import halving
from workbench.models.loading import load, wrap
from workbench.models.model import Model
from workbench.models.needle_prompts import Words, read_needle, recall
from workbench.organisms.needles import own_needles
from workbench.runs.checks import CHECKS, check_probe
from workbench.runs.execution import execute, prepare
from workbench.runs.folder import open_run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def organism():
    return load("organism")


def equal_runs(a, b):
    assert a.tables == b.tables and a.summary == b.summary and a.info["counters"] == b.info["counters"]
    for name in a.tables:
        assert a.table(name).equals(b.table(name)), name
    for name in a.arrays:
        np.testing.assert_array_equal(a.array(name), b.array(name))


def test_the_probe_passes_every_check_on_a_trained_model(organism):
    assert check_probe("retrieval-heads", organism, config=CONFIG) == list(CHECKS)


def test_killed_at_twenty_random_moments_it_resumes_to_the_same_tables_and_recomputes_nothing_finished(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "retrieval_children.py"), str(tmp_path), "20"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    undisturbed, groups = open_run(tmp_path / "undisturbed"), len(found["undisturbed"])
    assert sorted(found["undisturbed"]) == ["_mask_group"] * 2 + ["_measure_part"] * 3, (
        "the run is to have several parts of both kinds"
    )
    assert undisturbed.table("masking").height == 3
    assert sum(run["kills"] for run in found["runs"].values()) == 20
    resumed = 0
    for name, run in found["runs"].items():
        equal_runs(open_run(tmp_path / name), undisturbed)
        assert groups <= len(run["computed"]) <= groups + run["kills"], "more than the open group was computed again"
        resumed += run["kills"] > 0
        left = [
            p.name
            for p in (tmp_path / name).rglob("*")
            if p.is_file() and p.suffix not in (".json", ".jsonl", ".parquet", ".safetensors") and p.name != ".lock"
        ]
        assert not left and not list((tmp_path / name).glob("parts/*"))
    assert resumed


@pytest.mark.parametrize("kept", ["first", "all detection", "all but one"])
def test_a_run_resumed_anywhere_rounds_as_an_undisturbed_one(organism, tmp_path, monkeypatch, kept):
    """Span masses depend on how the shared haystack was computed: it may not depend on what was left to do."""
    whole = execute("retrieval-heads", organism, config=CONFIG, out=tmp_path / "whole")
    module, name, calls = {
        "first": (detection, "_measure_part", 1),
        "all detection": (masking, "_mask_group", 0),
        "all but one": (masking, "_mask_group", 1),
    }[kept]
    usual, made = getattr(module, name), []

    def fails(*args, **more):
        made.append(1)
        if len(made) > calls:
            raise KeyboardInterrupt
        return usual(*args, **more)

    with monkeypatch.context() as patch, pytest.raises(BaseException, match="Cancelled"):
        patch.setattr(module, name, fails)
        execute("retrieval-heads", organism, config=CONFIG, out=tmp_path / "resumed")
    assert list((tmp_path / "resumed" / "parts").iterdir()), "a part is to be there to resume from"
    equal_runs(execute("retrieval-heads", organism, config=CONFIG, out=tmp_path / "resumed"), whole)


@pytest.mark.parametrize("most", [1, 2])
def test_a_batch_that_does_not_fit_into_memory_is_halved(organism, tmp_path, monkeypatch, most):
    whole = execute("retrieval-heads", organism, config=CONFIG, out=tmp_path / "whole")
    usual, refused = Model.forward, []

    def small_memory(model, batch, **more):
        if len(batch.ids) > most:
            refused.append(len(batch.ids))
            raise torch.OutOfMemoryError("injected")
        return usual(model, batch, **more)

    monkeypatch.setattr(Model, "forward", small_memory)
    halved = execute("retrieval-heads", organism, config=CONFIG, out=tmp_path / "halved")
    assert refused
    for table in ("heads", "trials", "inputs", "masking", "masked_trials"):
        one, two = whole.table(table), halved.table(table)
        if table == "heads":
            np.testing.assert_allclose(one["span_mass"].to_numpy(), two["span_mass"].to_numpy(), atol=1e-5)
            one, two = one.drop("span_mass"), two.drop("span_mass")
        assert one.equals(two), table


def test_one_row_that_does_not_fit_is_an_error_and_other_errors_are_not_taken_for_it():
    def never(rows):
        raise torch.OutOfMemoryError("injected")

    with pytest.raises(torch.OutOfMemoryError):
        list(halving([1, 2, 3], never))
    calls = []

    def broken(rows):
        calls.append(rows)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes"):
        list(halving([1, 2], broken))
    assert len(calls) == 1
    assert list(halving([1, 2, 3], lambda rows: never(rows) if len(rows) > 1 else 10 * rows[0])) == [
        ([1], 10),
        ([2], 20),
        ([3], 30),
    ]


# intervals


class Trial:
    def __init__(self, needle):
        self.needle = needle


class Heads:
    n_layers = n_heads = 2

    def kv_group(self, head):
        return head


def table_of(scores, names, **config):
    return head_table(Heads(), scores, np.zeros_like(scores), scores, names, Config(**config))


def test_trials_of_fewer_than_five_needles_have_no_interval_and_a_warning_says_so():
    """Twenty trials of one needle are no twenty independent things."""
    for needles, said in ((1, "Only 1 needle counts (20 trials)"), (4, "Only 4 needles count (20 trials)")):
        trials, context = [Trial(k % needles) for k in range(20)], Context(seed=0)
        names = cluster_names(trials, np.ones(20, bool), Config())
        warn_of_few(names, Config(), context)
        assert len(set(names)) == needles and said in context.warnings[0]
        table = table_of(np.random.default_rng(0).random((20, 2, 2)), names)
        assert table["ci_low"].is_nan().all() and table["ci_high"].is_nan().all() and table["p_adjusted"].is_nan().all()
        assert not table["told_apart"].any() and table["n_needles"].unique().to_list() == [needles]


def test_the_interval_of_a_score_is_that_of_its_needles():
    """Wilson's at the effective number of trials; of what is all 0 or 1, at the number of needles."""
    names, rng = np.repeat(np.arange(12), 5), np.random.default_rng(0)
    scores = np.clip(rng.random((12, 1, 1, 4)) + 0.1 * rng.normal(size=(12, 5, 1, 4)), 0.01, 0.99).reshape(60, 2, 2)
    scores[:, 1, 1] = 1.0
    context = Context()
    warn_of_few(names, Config(), context)
    table = table_of(scores, names)
    assert not context.warnings
    by_needle = scores.reshape(12, 5, 4).mean(1)
    for head in range(3):  # about t times the standard error of twelve needles
        width = table["ci_high"][head] - table["ci_low"][head]
        assert width == pytest.approx(2 * 2.2 * by_needle[:, head].std(ddof=1) / np.sqrt(12), rel=0.15)
    assert table["ci_high"][3] == 1 and table["ci_low"][3] == pytest.approx(1 / (1 + 2.201**2 / 12), abs=1e-3)
    trials = table_of(scores, np.arange(60))
    assert trials["ci_high"][0] - trials["ci_low"][0] < 0.6 * (table["ci_high"][0] - table["ci_low"][0])


def test_counts_of_steps_beyond_one_have_an_interval_too():
    scores = np.random.default_rng(1).uniform(0.8, 1.6, (40, 2, 2))
    table = table_of(scores, np.repeat(np.arange(8), 5), score="count")
    assert ((table["ci_low"] < table["score"]) & (table["score"] < table["ci_high"])).all()


def test_a_head_that_looks_at_random_places_of_the_answer_is_above_the_threshold_and_not_told_from_chance():
    """An answer of five different tokens: whoever looks into it anywhere copies one step in five."""
    from probes.retrieval_heads.head_scores import score, score_by_chance

    rng = np.random.default_rng(0)
    trial = type("T", (), {"ids": tuple(range(10, 20)), "span": (2, 7)})()
    scores, chance = np.zeros((200, 2, 2)), np.zeros((200, 2, 2))
    for i in range(200):
        attended = np.zeros((5, 2, 2), int)  # 0.0 looks at position 0
        attended[:, 0, 1] = rng.integers(2, 7, 5)  # at random places of the answer
        attended[:, 1, 0] = np.arange(2, 7)  # copies
        attended[:, 1, 1] = [2, 3, 4, 0, 0]  # copies the first three
        steps = np.arange(12, 17), attended
        scores[i], chance[i] = (how(trial, steps, "set") for how in (score, score_by_chance))
    np.testing.assert_allclose(chance.mean(0), [[0, 0.2], [0.2, 0.12]], atol=1e-12)
    table = head_table(Heads(), scores, chance, scores, np.repeat(np.arange(20), 10), Config())
    assert table["is_retrieval"].to_list() == [False, True, True, True]
    assert table["told_apart"].to_list() == [False, False, True, True]
    assert table["score"][1] == pytest.approx(0.2, abs=0.03)


def test_a_run_whose_only_recalled_needle_is_one_of_two_says_so(organism, tmp_path):
    """The second needle is never asked for: its trials are dropped, and the first needle's are what is resampled and
    masked."""
    rows = [json.loads(line) for line in own_needles("organism").read_text().splitlines()[:2]]
    (tmp_path / "n.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in rows[:1]) + json.dumps(rows[1] | {"question": "Who?"}) + "\n"
    )
    run = execute(
        "retrieval-heads",
        organism,
        data=tmp_path / "n.jsonl",
        config=CONFIG
        | {"needles": "default", "depths": (0, 30, 60, 100), "recall_threshold": 0.99, "ablation": "zero"},
    )
    kept = run.table("trials").filter("kept")
    assert kept["needle"].unique().to_list() == [0], "the case needs one needle that is recalled and one that is not"
    assert any("Only 1 needle counts" in w for w in run.info["warnings"])
    assert run.summary["retrieval_heads"]["low"] is None and run.table("masked_recall")["ci_low"].is_nan().all()
    assert any("masked on the trials that had chosen them" in w for w in run.info["warnings"])


# masking


def test_heads_are_masked_on_needles_that_did_not_choose_them():
    trials = [Trial(k) for k in (0, 1, 2, 3) for _ in range(3)]
    answered = np.array([True] * 3 + [False] * 3 + [True] * 6)  # needle 1 is never answered
    for config, wanted in (
        (Config(mask_on="held_out"), [({0, 3}, {2}), ({2}, {0, 3})]),
        (Config(mask_on="same"), [({0, 2, 3}, {0, 2, 3})]),
    ):
        found = [
            tuple({t.needle for t, here in zip(trials, rows) if here} for rows in fold)
            for fold in masking.folds(trials, answered, answered, config, Context())
        ]
        assert found == wanted


def test_the_tested_trials_are_of_all_needles_whatever_the_step():
    """Needles alternate in the order of the trials: twelve of them, and every twelfth trial would be of one."""
    needles = np.tile(np.arange(12), 20)
    chosen = masking.spread(np.arange(240), needles, 20)
    assert len(set(chosen)) == 20 and np.bincount(needles[chosen], minlength=12).min() == 1
    assert len(masking.spread(np.arange(240), needles, 999)) == 240
    assert len({chosen[k] // 12 for k in range(20)}) > 10, "of all cells"


def plans_of(scores, *, others=(), shape=(4, 6), **config):
    context, model = Context(seed=0), type("", (), {"n_layers": shape[0], "n_heads": shape[1]})()
    return masking.mask_plans(model, [scores, *others], scores, Config(**config), context), context


def test_random_heads_have_no_score_above_the_threshold_and_no_set_comes_twice():
    scores = np.zeros((4, 6))
    scores[1, :3], scores[2, :2] = [0.9, 0.8, 0.3], [0.7, 0.2]
    other = scores.copy()
    other[1, 5] = 0.5  # above it in the other half only
    plans, context = plans_of(scores, others=[other], mask_k=(2, 3), random_draws=20)
    for fold in plans.folds:
        for item in fold:
            if item.kind == "random":
                layers = [layer for layer, _ in item.heads]
                assert layers == [1, 1] if item.k == 2 else layers == [1, 1, 2]
                assert not any(max(scores[h], other[h]) > 0.1 for h in item.heads)
    assert [item for item in plans.folds[0] if item.kind == "random"] == [
        item for item in plans.folds[1] if item.kind == "random"
    ]
    # layer 1 has two heads left and layer 2 four: one set of two, four of three, and none is a sample
    assert [sum(item.kind == "random" and item.k == k for item in plans.folds[0]) for k in (2, 3)] == [1, 4]
    assert plans.sampled == frozenset() and not context.warnings
    plans, _ = plans_of(scores, mask_k=(2,), random_draws=4, shape=(4, 6), threshold=0.85)
    drawn = [item.heads for item in plans.folds[0] if item.kind == "random"]
    assert len(set(drawn)) == len(drawn) == 4 and plans.sampled == {2}


def test_a_layer_of_retrieval_heads_borrows_its_control_from_its_neighbours():
    scores = np.zeros((4, 6))
    scores[1] = [0.9, 0.8, 0.7, 0.6, 0.5, 0.0]
    plans, context = plans_of(scores, mask_k=(3,), random_draws=3)
    for item in plans.folds[0]:
        if item.kind == "random":
            assert sorted(layer for layer, _ in item.heads) == [0, 0, 1]
    assert "Layer 1 has too few heads that do not retrieve" in context.warnings[0]


def test_recall_under_masking_counts_needles_and_draws():
    """Of five random sets one breaks two thirds of the answers: the draws are a sample, and their interval says so."""
    from probes.retrieval_heads.masked_recall import recall_table

    trials = [(k, kind, d, t, 64, 0.0, r, "") for k, kind, d, t, r in rows_of_recall()]
    masked = pl.DataFrame(trials, schema=masking.TRIALS, orient="row")
    names = np.repeat(np.arange(6), 10)
    sampled, whole = (
        {row["heads"]: row for row in recall_table(masked, names, some).iter_rows(named=True)} for some in ({2}, set())
    )
    assert sampled["random"]["recall"] == pytest.approx(0.87) and sampled["random"]["draws"] == 5
    assert sampled["random"]["ci_low"] < 0.65 and whole["random"]["ci_low"] > 0.7
    for row in sampled.values():
        assert row["n"] == 6 and row["rows"] == 60 and row["ci_low"] < row["ci_high"]
    assert sampled["none"]["ci_high"] == 1 and sampled["none"]["ci_low"] < 0.6
    difference = sampled["top_minus_random"]
    assert (
        difference["recall"] == pytest.approx(-0.87) and difference["ci_low"] >= -1 and -0.6 < difference["ci_high"] < 0
    )


def rows_of_recall():
    for trial in range(60):
        yield 0, "top", 0, trial, 1.0
        yield 2, "top", 0, trial, 0.0
        for draw in range(5):
            yield 2, "random", draw, trial, float(draw > 0 or trial % 20 < 7)


def test_the_summary_pairs_top_with_random_masking_and_gives_the_share_an_interval():
    run = execute(
        "retrieval-heads",
        "circuit-copy",
        config={"lengths": (64, 128), "depths": (0, 50), "max_new_tokens": 10, "mask_k": (1, 2), "ablation": "zero"},
    )
    masked, trials = run.table("masked_trials"), run.table("trials")
    answered = trials.filter(pl.col("recall") > 0.5)["needle"].unique().sort().to_list()
    assert masked.join(trials, on="trial")["needle"].unique().sort().to_list() == answered and len(answered) == 6
    for k in (1, 2):
        by_trial = {
            kind: masked.filter((pl.col("k") == k) & (pl.col("heads") == kind))
            .group_by("trial")
            .agg(pl.col("recall").mean())
            .sort("trial")
            for kind in ("top", "random")
        }
        difference = (by_trial["top"]["recall"] - by_trial["random"]["recall"]).to_numpy()
        found = run.summary[f"recall_top_minus_random_{k}"]
        assert (found["value"], found["n"], found["rows"]) == (pytest.approx(difference.mean()), 6, len(difference))
        assert found["low"] <= found["value"] < found["high"] < 0
    share, heads = run.summary["share_of_heads"], run.table("heads")
    assert share["value"] == heads["is_retrieval"].mean() and (share["n"], share["rows"]) == (6, 24)
    assert share["low"] <= share["value"] <= share["high"]
    assert run.summary["retrieval_heads_told_apart"]["value"] == heads["told_apart"].sum() == 2


def test_halves_are_of_needles():
    """Half of the heads copy one needle each: two halves of the trials agree, two halves of the needles do not."""
    from probes.retrieval_heads.summary import summary_of_heads

    names = np.repeat(np.arange(12), 10)
    scores = np.zeros((120, 3, 4))
    for needle in range(6):
        scores[names == needle, needle // 4, needle % 4] = 1.0
    table = head_table(type("", (Heads,), {"n_layers": 3, "n_heads": 4})(), scores, 0 * scores, scores, names, Config())
    by_needle, by_trial = (
        summary_of_heads(table, scores, these, Config(), Context(seed=0))["split_half_correlation"]
        for these in (names, np.arange(120))
    )
    assert by_needle["value"] < -0.2 and by_trial["value"] > 0.7
    assert (by_needle["n"], by_needle["rows"]) == (12, 120) and by_needle["low"] <= by_needle["high"]
    few = summary_of_heads(table, scores, names // 2, Config(), Context(seed=0))["split_half_correlation"]
    assert few["n"] == 6 and np.isnan(few["low"]), "three needles in a half have no interval"


# recall in any script


@pytest.mark.parametrize(
    "answer, said, expected",
    [
        ("в парке у старого дерева", "Он был в парке у старого дерева.", 1.0),
        ("в парке у старого дерева", "Он был дома.", 0.0),
        ("在公园的老树旁", "球在公园的老树旁。", 1.0),
        ("हिन्दी भाषा", "यह हिन्दी है", 0.5),
        ("café crème", "un cafe\u0301 noir", 0.5),
    ],
)
def test_answers_in_any_script_can_be_recalled(answer, said, expected):
    assert recall(answer, said) == expected


def test_english_recall_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    text = (
        ROOT / "probes" / "essays.txt"
    ).read_text() + " It's snake_case, 3.5% of the U.S. runners' running; cats ran!"
    assert text.isascii() and Words().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)
    official = RougeScorer(["rouge1"], use_stemmer=True)
    for row in map(
        json.loads, (ROOT / "probes" / "retrieval_heads" / "material" / "needles.jsonl").read_text().splitlines()
    ):
        for said in (row["needle"], row["question"], row["answer"][:25], ""):
            assert recall(row["answer"], said) == official.score(row["answer"], said)["rouge1"].recall


# bad input, before a model is loaded


@pytest.mark.parametrize(
    "config, says",
    [
        ({"lengths": ""}, "'lengths' is empty"),
        ({"depths": ""}, "'depths' is empty"),
        ({"needles": "3"}, "has 2 needles, fewer than needles=3; ask for at most 2"),
    ],
)
def test_grids_without_cells_and_needles_that_are_not_there_are_refused(tmp_path, config, says):
    (tmp_path / "n.csv").write_text("needle,question,answer\nA dog sat.,Who?,dog\nA cat sat.,Who?,cat\n")
    with pytest.raises(InputError, match=says):
        prepare("retrieval-heads", config, tmp_path / "n.csv")


@pytest.mark.parametrize("answer, says", [("?!", "no letter or digit"), ("cow", "does not occur in the needle")])
def test_answers_that_cannot_be_measured_are_refused_with_file_and_row(tmp_path, answer, says):
    (tmp_path / "n.csv").write_text(f"needle,question,answer\nA dog sat.,Who?,dog\nWhat?! he said.,What?,{answer}\n")
    with pytest.raises(InputError, match=f"n.csv: Needle row 2: .*{says}"):
        prepare("retrieval-heads", None, tmp_path / "n.csv")


def test_more_needles_than_ship_are_refused_and_more_than_twelve_need_to_be_asked_for(organism):
    with pytest.raises(InputError, match="has 40 needles, fewer than needles=99"):
        execute("retrieval-heads", organism, config=CONFIG | {"needles": 99})
    for wanted, used in (("default", 12), (20, 20)):
        context = Context(data=own_needles("organism"))
        grid = read_grid(organism, Config(needles=wanted, lengths=(96, 96, 128), depths=(0, 50, 50)), context)
        assert len(grid.needles) == used and len(grid.trials) == 4 * used, "a cell that is named twice counts once"
        assert context.warnings == (
            ["40 needles ship with organism and the first 12 were used; needles=40 uses them all."]
            if used == 12
            else []
        )


def test_how_large_the_run_is_is_said_before_it_starts(organism):
    told = []
    execute(
        "retrieval-heads",
        organism,
        config=CONFIG | {"mask_k": (0,)},
        progress=lambda done, total, label: told.append((done, total, label)),
    )
    size = next(t for t in told if "prompt tokens" in t[2])
    assert size[:2] == (0, 1000) and size[2].startswith("needles, 12 trials, 1,")
    assert told.index(size) < next(i for i, t in enumerate(told) if t[0] > 0)


# tokenizers that lack things


def words_model(**special):
    """A random GPT-2 with a tokenizer of whole words, without BOS, end or padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from workbench.models.needle_prompts import PAPER_TEMPLATE

    text = "the dog sat on a red mat near an old tree . Where is it ? in park by ! " + PAPER_TEMPLATE.replace(
        "{", " "
    ).replace("}", " ")
    plain = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(["[UNK]", *pieces(text)]))}, unk_token="[UNK]")
    )
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", **special)
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=96,
            n_embd=16,
            n_layer=2,
            n_head=2,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    return wrap(hf, tokenizer=tokenizer, name="words")


def pieces(text):
    import re

    return re.findall(r"\w+|[^\w\s]+", text)


def test_a_model_without_bos_end_or_padding_token_runs(tmp_path):
    model = words_model()
    assert model.bos_id is None and model.eos_id is None and model.tokenizer.pad_token_id is None
    (tmp_path / "h.txt").write_text("the dog sat on a red mat . " * 12)
    (tmp_path / "n.csv").write_text(
        "needle,question,answer\nit is in the park by an old tree .,Where is it ?,in the park by an old "
        "tree\nit is near a tree .,Where is it ?,near a tree\n"
    )
    run = execute(
        "retrieval-heads",
        model,
        data=tmp_path / "n.csv",
        config={
            "haystack": str(tmp_path / "h.txt"),
            "lengths": (48, 64),
            "depths": (0, 50, 100),
            "max_new_tokens": 4,
            "keep": "all",
            "mask_k": (0,),
        },
    )
    for row, trial in zip(run.table("inputs").iter_rows(named=True), run.table("trials").iter_rows(named=True)):
        assert model.decode(row["ids"][row["span_start"] : row["span_end"]]) == trial["answer"]
        with torch.no_grad():  # greedy decoding without cache, batch or padding
            ids = list(row["ids"])
            for _ in range(4):
                ids.append(int(model.hf(torch.tensor([ids])).logits[0, -1].argmax()))
        assert row["generated_ids"] == ids[len(row["ids"]) :]


def test_a_tokenizer_that_gives_the_answer_no_characters_is_refused():
    class Blind:
        """Every token has an empty span, as after a normaliser that rewrites the text."""

        name = "blind"

        def encode_with_offsets(self, text, *, bos=True):
            return list(range(len(text.split()))), [(0, 0)] * len(text.split())

    with pytest.raises(InputError, match="Needle row 3: the tokenizer cannot say which tokens are the answer 'cat'"):
        read_needle(Blind(), 2, "A cat sat.", "Who sat?", "cat", "Q: {question}")


def test_a_slow_tokenizer_is_refused():
    model = words_model()
    model.tokenizer = type("Slow", (), {"is_fast": False})()
    with pytest.raises(InputError, match="slow one without character offsets"):
        read_needle(model, 0, "the dog sat .", "Where ?", "dog", "{question}")


def test_a_context_that_holds_no_needle_is_said_with_numbers_that_can_be(organism):

    config = Config(max_new_tokens=organism.context_length + 39)
    with pytest.raises(InputError) as caught:
        read_grid(organism, config, Context(data=own_needles("organism")))
    assert "cannot hold a needle with its question" in str(caught.value) and "-" not in str(caught.value)
