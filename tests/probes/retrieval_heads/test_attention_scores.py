"""Heads by the attention of a question to its passage, against plain Hugging Face with whole attention maps in float64;
their intervals and nulls against simulations with a known truth."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.retrieval_heads import figures
from probes.retrieval_heads.attention_scores import AttentionScores, measure_attention
from probes.retrieval_heads.config import Config
from probes.retrieval_heads.haystack import Haystack
from probes.retrieval_heads.head_scores import difference_interval, told_apart
from probes.retrieval_heads.overlap import overlap_table
from probes.retrieval_heads.passage_files import read_passages
from probes.retrieval_heads.passages import ASKED, PassageTask, QuestionTail
from tests.probes.retrieval_heads.test_haystack import TAILS, TEXT, grid
from tests.support.architectures import NAMES, build
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.loading import load, wrap
from workbench.models.model_outline import facts
from workbench.runs.cost import plan
from workbench.runs.execution import execute
from workbench.stats.clusters import clusters_of

NEEDLES = [
    {"needle": "The big red ball was by the tree.", "question": "Where was the ball?", "answer": "by the tree"},
    {"needle": "Lily likes to eat cake and jam.", "question": "What does Lily like to eat?", "answer": "cake and jam"},
    {"needle": "Tom has a blue car.", "question": "What does Tom have?", "answer": "a blue car"},
    {"needle": "Ben sat on a bench in the park.", "question": "Where did Ben sit?", "answer": "on a bench"},
    {"needle": "Anna saw nine birds on the sea.", "question": "What did Anna see?", "answer": "nine birds"},
]
HAYSTACK = "Once upon a time there was a little dog. He liked to run and play. The sun was hot. A cat sat on the mat. "
PASSAGES = [
    {"question": row["question"], "passages": [other["needle"] for other in NEEDLES[k - 2 :] + NEEDLES[: k - 2]]}
    for k, row in enumerate(NEEDLES)
]
for k, row in enumerate(PASSAGES):
    row["gold"] = row["passages"].index(NEEDLES[k]["needle"])


@pytest.fixture
def material(tmp_path):
    (tmp_path / "needles.jsonl").write_text("".join(json.dumps(n) + "\n" for n in NEEDLES))
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps(n) + "\n" for n in PASSAGES))
    (tmp_path / "haystack.txt").write_text(HAYSTACK * 8)
    return tmp_path


def on_needles(tiny_llama, material, **more):
    config = {"score": "attention", "haystack": str(material / "haystack.txt"), "lengths": (100, 160)}
    config |= {"depths": (0, 60, 100), "max_new_tokens": 6} | more
    return execute("retrieval-heads", str(tiny_llama), data=material / "needles.jsonl", config=config)


def slow_masses(hf, run, rows):
    """Attention on the passage [rows, 3, layers, H]: every prompt alone, all maps, a loop over heads and tokens."""
    inputs = {row["row"]: row["ids"] for row in run.table("inputs").iter_rows(named=True)}
    found = np.zeros((rows, 3, hf.config.num_hidden_layers, hf.config.num_attention_heads))
    for row in run.table("attention_inputs").iter_rows(named=True):
        ids = inputs[row["row"]][: row["context_tokens"]] + row["tail_ids"]
        with torch.no_grad():
            maps = hf(torch.tensor([ids]), output_attentions=True).attentions
        for layer, weights in enumerate(maps):
            for head in range(weights.shape[1]):
                each = [
                    float(weights[0, head, query, row["passage_start"] : row["passage_end"]].sum())
                    for query in range(row["question_start"], row["question_end"])
                ]
                found[row["row"], ASKED.index(row["asked"]), layer, head] = sum(each) / len(each)
    return found


@pytest.mark.parametrize("source", ["needles", "passages", "tail"])
def test_scores_are_those_of_whole_attention_maps_in_float64(tiny_llama, material, source):
    more = {"passages": str(material / "passages.jsonl")} if source == "passages" else {}
    run = on_needles(tiny_llama, material, attention_from="tail" if source == "tail" else "question", **more)
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64, attn_implementation="eager").eval()
    n = run.table("trials").height
    mass = slow_masses(hf, run, n)
    scores, heads = run.array("trial_scores"), run.table("heads").sort("layer", "head")
    np.testing.assert_allclose(scores, mass[:, 0] - mass[:, 2], atol=2e-5)
    np.testing.assert_allclose(heads["score"], (mass[:, 0] - mass[:, 2]).mean(0).ravel(), atol=1e-5)
    np.testing.assert_allclose(heads["score_chance"], (mass[:, 1] - mass[:, 2]).mean(0).ravel(), atol=1e-5)
    np.testing.assert_allclose(heads["above_control"], (mass[:, 0] - mass[:, 1]).mean(0).ravel(), atol=1e-5)
    np.testing.assert_allclose(heads["null_mass"], mass[:, 2].mean(0).ravel(), atol=1e-5)
    np.testing.assert_allclose(heads["span_mass"], mass[:, 0].mean(0).ravel(), atol=1e-5)
    assert np.abs(heads["score"]).max() > 0.004, "the test would prove nothing if no head told questions apart"
    assert n == (5 if source == "passages" else 30) and heads["n_needles"].unique().to_list() == [5]
    by_needle = (mass[:, 0] - mass[:, 1]).reshape(n, -1)  # Student's t over the means of five passages, by hand
    means = np.stack([by_needle[run.table("trials")["needle"].to_numpy() == k].mean(0) for k in range(5)])
    half = 2.7764451 * means.std(0, ddof=1) / 5**0.5
    np.testing.assert_allclose(heads["above_control_low"], means.mean(0) - half, atol=1e-5)
    np.testing.assert_allclose(heads["above_control_high"], means.mean(0) + half, atol=1e-5)


@pytest.mark.parametrize("source", ["needles", "passages"])
def test_the_passage_is_the_gold_one_and_the_questions_are_its_own_another_ones_and_none(tiny_llama, material, source):
    more = {"passages": str(material / "passages.jsonl")} if source == "passages" else {}
    run, model = on_needles(tiny_llama, material, **more), load(str(tiny_llama))
    needle_of, ids_of = run.table("trials")["needle"].to_list(), run.table("inputs")["ids"].to_list()
    asked = run.table("attention_inputs")
    assert asked.height == 3 * len(needle_of)
    for row in asked.iter_rows(named=True):
        ids, needle = ids_of[row["row"]][: row["context_tokens"]] + row["tail_ids"], needle_of[row["row"]]
        question = model.decode(ids[row["question_start"] : row["question_end"]]).strip()
        wanted = {"own": NEEDLES[needle], "other": NEEDLES[(needle + 1) % 5], "null": {"question": "N/A"}}
        assert question == wanted[row["asked"]]["question"]
        assert model.decode(ids[row["passage_start"] : row["passage_end"]]).strip() == NEEDLES[needle]["needle"]
        assert model.decode(ids).endswith(f"Question: {question}\nAnswer:")
        if row["asked"] == "own":
            assert ids == ids_of[row["row"]]


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_reads_the_same_attention_as_on_each_prompt_alone(name):
    """Windows that slide, attention outside the interface, shared beginnings: against whole maps of the plain model."""
    model, hf = wrap(build(name), name=name), build(name)
    tasks = []
    for trial in grid(lengths=(12, 20), at=(0, 3)):
        own, other, null = TAILS[trial.needle], TAILS[(trial.needle + 1) % 3], [7, 45]
        tails = tuple(QuestionTail(tuple(ids), 0, len(ids) - 1) for ids in (own, other, null))
        tasks.append(PassageTask(trial, (trial.shared, trial.body - (trial.length > 12)), trial.needle, tails))
    haystack = Haystack(model, TEXT[:21])
    found = measure_attention(model, Config(score="attention"), Context(), tasks, haystack)
    hf.set_attn_implementation("eager")
    for task, mass in zip(tasks, found.mass):
        for kind, tail in enumerate(task.tails):
            context = list(task.trial.ids[: task.trial.body])
            with torch.no_grad():
                maps = hf(torch.tensor([context + list(tail.ids)]), output_attentions=True).attentions
            queries = slice(len(context) + tail.start, len(context) + tail.end)
            expected = [w[0, :, queries, slice(*task.gold)].sum(-1).mean(-1).numpy() for w in maps]
            np.testing.assert_allclose(mass[kind], expected, atol=2e-5)


def test_nothing_is_generated_and_less_is_fed_than_estimated_with_copying(tiny_llama, material):
    run = on_needles(tiny_llama, material)
    assert run.table("trials")["response"].null_count() == 30 and run.table("closed_book").is_empty()
    assert run.table("masking").is_empty() and "masked_trials" not in run.tables and "overlap" not in run.tables
    assert run.summary["trials_scored"] == 30 and "recalled" not in run.summary
    about, source = facts(str(tiny_llama)), material / "needles.jsonl"
    config = {"score": "attention", "lengths": (100, 160), "depths": (0, 60, 100)}
    alone = plan("retrieval-heads", Config(**config), source, about.name)
    both = plan("retrieval-heads", Config(**config, copying="set"), source, about.name)
    assert run.info["counters"]["prompts"] == alone.prompts == 90
    assert run.info["counters"]["tokens"] < alone.tokens < both.tokens


def test_beside_copying_the_scores_are_those_of_each_alone_and_masking_takes_the_heads_of_attention():
    config = {"lengths": (64, 128), "depths": (0, 50, 100), "max_new_tokens": 10, "mask_k": (1, 2), "ablation": "zero"}
    both = execute("retrieval-heads", "circuit-copy", config=config | {"score": "attention", "copying": "set"})
    alone = execute("retrieval-heads", "circuit-copy", config=config | {"score": "attention"})
    copying = execute("retrieval-heads", "circuit-copy", config=config)
    shared = [name for name in alone.table("heads").columns if name in both.table("heads").columns]
    assert both.table("heads").select(shared).equals(alone.table("heads").select(shared))
    assert both.table("heads")["copying_score"].to_list() == copying.table("heads")["score"].to_list()
    np.testing.assert_array_equal(both.array("trial_scores"), alone.array("trial_scores"))
    # the circuit's 1.2 looks one place before what it would have to copy: it attends best and copies nothing
    best = both.table("heads").sort("score", descending=True)
    assert (best["layer"][0], best["head"][0]) == (1, 2) and best["copying_score"][0] == 0
    masked = {(r["k"], r["heads"]): r for r in both.table("masking").iter_rows(named=True) if r["heads"] == "top"}
    assert masked[1, "top"]["masked"] == "1.2" and masked[1, "top"]["recall"] == 1.0
    assert masked[2, "top"]["masked"] == "1.2 1.0" and masked[2, "top"]["recall"] == 0.0
    overlap = both.table("overlap").row(0, named=True)
    assert (overlap["k"], overlap["overlap"], overlap["by_chance"], overlap["n"]) == (2, 0.5, 0.25, 6)
    assert both.summary["overlap_with_copying_2"]["value"] == 0.5 and both.summary["overlap_by_chance_2"] == 0.25
    assert both.summary["heads_above_control"].startswith("1.2 1.000, 1.0 0.9")
    fig, heads = figures.figures(both)["attention"], both.table("heads")
    for axis, column in (("x", "score_chance"), ("x2", "copying_score")):
        drawn = [point for t in fig.data if (t.xaxis or "x") == axis for point in zip(t.x, t.y)]
        assert sorted(drawn) == sorted(zip(heads[column], heads["score"]))
    assert "2 best heads have 50% in common" in fig.layout.meta["note"]
    assert "attention" not in figures.figures(copying) and "attention score" in str(figures.head_map(alone).layout)


def test_small_batches_and_large_ones_give_the_same_scores(tiny_llama, material):
    run = on_needles(tiny_llama, material, max_tokens=300)
    whole = on_needles(tiny_llama, material)
    np.testing.assert_allclose(run.array("trial_scores"), whole.array("trial_scores"), atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question": "Who?", "passages": ["a"]}], "no column 'gold'"),
        ([{"question": "Who?", "passages": ["only one"], "gold": 0}], "row 1: the field 'passages' must be a list of"),
        (
            [PASSAGES[0], {"question": "Who?", "passages": ["a", "b"], "gold": 2}],
            "row 2: the field 'gold' is 2.*0 to 1",
        ),
        ([PASSAGES[0], PASSAGES[0]], "at least two different gold passages"),
        ([{"question": "Who?", "passages": "x", "gold": 0}], "row 1: the field 'passages' must be a list"),
    ],
)
def test_a_file_of_passages_that_cannot_be_asked_is_refused_before_a_model_is_loaded(tmp_path, rows, words):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=words):
        execute(
            "retrieval-heads", "no-such-model", config={"score": "attention", "passages": str(tmp_path / "p.jsonl")}
        )


def test_passages_are_read_from_csv_as_well(tmp_path):
    frame = pl.DataFrame(
        {"question": ["Who ran?", "Who sat?"], "passages": ['["A ran.", "B sat."]'] * 2, "gold": [0, 1]}
    )
    frame.write_csv(tmp_path / "p.csv")
    first, second = read_passages(tmp_path / "p.csv")
    assert first.passages == ("A ran.", "B sat.") and (first.gold, second.gold) == (0, 1)


def test_options_that_would_not_be_read_are_refused(tmp_path):
    for values, words in (
        ({"copying": "set"}, "'copying' is read with score=attention only"),
        ({"attention_from": "tail"}, "'attention_from' is read"),
        ({"passages": "x.jsonl"}, "'passages' is read"),
        ({"score": "attention", "passages": "x.jsonl", "copying": "set"}, "'copying' needs needles"),
    ):
        with pytest.raises(ValueError, match=words):
            Config(**values)


def test_one_needle_cannot_be_asked_what_another_answers(tiny_llama, material):
    (material / "needles.jsonl").write_text(json.dumps(NEEDLES[0]) + "\n")
    with pytest.raises(InputError, match="score=attention needs at least two different needles"):
        on_needles(tiny_llama, material)


def simulated(rng, *, effect, groups=12, rows=5, heads=48):
    """Attention [rows, 3, 1, heads] on passages that draw it by themselves, whatever is asked: of another passage's
    question as much as of its own, but for `effect`."""
    passage = rng.normal(0, 0.1, (groups, 1, 1, heads))
    asked = rng.normal(0, 0.08, (groups, 1, 3, heads))
    each = 0.4 + passage + asked + rng.normal(0, 0.05, (groups, rows, 3, heads))
    each[:, :, 0] += effect
    return AttentionScores(np.clip(each, 0, 1).reshape(groups * rows, 3, 1, heads)), np.repeat(np.arange(groups), rows)


def told(rng, effect):
    found, names = simulated(rng, effect=effect)
    flat = [each.reshape(len(names), -1) for each in (found.gold, found.control)]
    p = told_apart(*flat, clusters_of(names), Config(score="attention", threshold=0.0))
    return (p < 0.05), difference_interval(flat[0] - flat[1], clusters_of(names))


def test_heads_that_the_question_does_not_move_are_seldom_told_from_their_control_and_others_are_found():
    """A null where each passage draws attention by itself: at most one family in twenty has a head told apart."""
    rng, none = np.random.default_rng(0), np.zeros(48)
    assert np.mean([told(rng, none)[0].any() for _ in range(300)]) <= 0.07
    some = np.where(np.arange(48) < 6, 0.25, 0.0)
    marks = np.array([told(rng, some)[0] for _ in range(60)])
    assert marks[:, :6].mean() > 0.95
    wrong = [row[6:].sum() / max(row.sum(), 1) for row in marks]
    assert np.mean(wrong) < 0.07


def test_the_interval_above_the_control_holds_the_truth():
    rng, effect = np.random.default_rng(1), np.full(48, 0.1)
    held = []
    for _ in range(200):
        low, high = told(rng, effect)[1]
        held.append((low <= 0.1) & (high >= 0.1))
    assert 0.93 <= np.mean(held) <= 0.97


def test_clusters_that_agree_exactly_leave_an_interval_with_a_width():
    values, clusters = np.tile([0.97, 1.0, 0.0], (12, 1)), clusters_of(np.arange(12) // 2)
    low, high = difference_interval(values, clusters)
    assert (high - low > 0.3).all() and (low >= -1).all() and (high <= 1).all()
    assert np.isnan(difference_interval(values[:8], clusters_of(np.arange(8) // 2))).all()


def test_lists_that_have_nothing_to_do_with_each_other_overlap_as_by_chance():
    """Independent scores: the mean overlap is k/heads, and p is below 0.05 in one of twenty cases at most."""
    rng, names, found = np.random.default_rng(2), np.repeat(np.arange(6), 4), []
    for _ in range(300):
        first, second = (rng.normal(1, 1, (1, 4, 16)) + 0.1 * rng.normal(size=(24, 4, 16)) for _ in range(2))
        table = overlap_table(first, second[:20], names, names[:20], rng=rng).filter(pl.col("k") == 10)
        found.append(table.row(0, named=True))
    assert np.mean([row["overlap"] for row in found]) == pytest.approx(10 / 64, abs=0.012)
    assert {row["by_chance"] for row in found} == {10 / 64} and {row["n"] for row in found} == {5}
    assert np.mean([row["by_chance_in_layers"] for row in found]) == pytest.approx(10 / 64, abs=0.01)
    assert np.mean([row["p"] < 0.05 for row in found]) <= 0.06


def test_heads_of_equal_scores_are_not_in_both_lists_for_their_number():
    """Nearly all heads score the same: the rest of the lists is drawn, and drawn anew for each."""
    names, scores = np.arange(6), np.ones((6, 2, 50))
    overlaps = [
        overlap_table(scores, scores, names, names, rng=np.random.default_rng(k))["overlap"][1] for k in range(60)
    ]
    assert np.mean(overlaps) == pytest.approx(0.1, abs=0.04)


def test_the_same_scores_overlap_wholly_at_every_size_up_to_half_of_the_heads():
    rng = np.random.default_rng(3)
    scores, names = rng.random((12, 2, 20)), np.repeat(np.arange(4), 3)
    table = overlap_table(scores, scores, names, names, rng=rng)
    assert table["overlap"].to_list() == [1.0] * table.height and table["k"].to_list() == [5, 10, 16, 20]
