"""Which sentences decide the answer: a model whose tables say so, every number again from the samples of the run, and
the null and interval on answers whose distribution is known."""

import json
import math
import re
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch

from probes.branching_factor import figures as drawn
from probes.branching_factor.answer_shift import answer_shift, divergence
from probes.branching_factor.bf_intervals import paired_mean
from probes.branching_factor.final_answers import final_answer
from probes.branching_factor.sentence_importance import shared_words
from workbench.core.errors import InputError
from workbench.core.registry import get
from workbench.models.loading import load
from workbench.organisms.circuits import gpt2

WORDS = [*gpt2.SPECIALS, "start", "Go.", "Stop.", "Um.", "Er.", "Hm.", "Eh.", "Yes.", "No."]
NEXT = {
    "start": {"Go.": 0.5, "Stop.": 0.5},
    "Go.": {"Um.": 0.5, "Er.": 0.5},
    "Stop.": {"Hm.": 0.5, "Eh.": 0.5},
    "Um.": {"Yes.": 0.9, "No.": 0.1},
    "Er.": {"Yes.": 0.9, "No.": 0.1},
    "Hm.": {"Yes.": 0.1, "No.": 0.9},
    "Eh.": {"Yes.": 0.1, "No.": 0.9},
}
KL = 0.8 * math.log(9)  # of 0.1 and 0.9 from 0.9 and 0.1


@pytest.fixture(scope="module")
def decider(tmp_path_factory):
    """A chain of three sentences: the first decides whether the last is Yes or No, the second nothing."""
    place = tmp_path_factory.mktemp("decider")
    f, n = gpt2.layout(state=len(WORDS))
    n += -n % 4
    model = gpt2.blank(WORDS, features=n, layers=2, heads=4, context=64)
    tokens, positions = torch.zeros(len(WORDS), n), torch.zeros(64, n)
    tokens[:, : len(WORDS)] = torch.eye(len(WORDS))
    gpt2.write_embeddings(model, tokens=tokens, positions=positions)
    logits = torch.full((len(WORDS), len(WORDS)), -1000.0)
    for row, word in enumerate(WORDS):
        for other, p in NEXT.get(
            word, {gpt2.SPECIALS[gpt2.EOS] if isinstance(gpt2.EOS, int) else gpt2.EOS: 1.0}
        ).items():
            logits[row, WORDS.index(other)] = math.log(p)
    gpt2.write_unembedding(model, torch.cat([logits.T, torch.zeros(len(WORDS), n - len(WORDS))], dim=1))
    gpt2.save(place, model, WORDS, {})
    return str(place)


def file_of(folder, prompts, answer="yes"):
    path = folder / "decider.jsonl"
    rows = [{"prompt": " ".join(["start"] * (1 + i)), "answer": answer} for i in range(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("answers", ["right", "final"])
def test_the_sentence_that_decides_is_found_and_the_one_that_decides_nothing_is_not(run, decider, tmp_path, answers):
    data = file_of(tmp_path, 8)
    options = {"study": "sentences", "answers": answers, "template": "raw", "top_p": 1.0}
    found = run(decider, data=data, samples=120, max_new_tokens=6, **options)
    table = found.table("sentence_importance")
    assert table.select("prompt", "sentence").rows() == [(p, i) for p in range(8) for i in range(2)]
    first, second = (table.filter(sentence=i) for i in range(2))
    assert first["anchor"].all() and not second["anchor"].any()
    assert first["replaced"].mean() == pytest.approx(60, abs=8) and first["samples"].unique().to_list() == [120]
    assert first["excess"].mean() == pytest.approx(KL, rel=0.15) and abs(second["excess"].mean()) < 0.02
    # all samples from before the first sentence: half of them say the same again
    half = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert first["importance_resampled"].mean() == pytest.approx(half, rel=0.2)
    sign = np.where(first["text"] == "Go.", 1, -1)
    np.testing.assert_allclose(first["accuracy_change"], 0.8 * sign, atol=0.2)
    assert np.abs(second["accuracy_change"].to_numpy()).max() < 0.25
    means = found.table("sentence_means")
    assert means["sentence"].to_list() == [None, 0, 1] and means["anchors"].to_list() == [8, 8, 0]
    assert means["excess_low"][1] < means["excess"][1] < means["excess_high"][1] and means["p"][1] < 1e-4
    assert means["excess_low"][2] < 0 < means["excess_high"][2]
    said = found.summary["importance of a sentence, less that of answers dealt out anew"]
    assert said["n"] == 8 and said["rows"] == 16 and said["low"] < said["value"] == means["excess"][0] < said["high"]
    assert found.summary["sentences that decide the answer"] == "8 of 16 tested"
    assert "sentence_importance" in drawn.figures(found)


def slow_divergence(without, kept):
    """KL(without ‖ with), answer by answer, half a count added to each."""
    answers, total = sorted({*without, *kept}), 0.0
    p, q = Counter(without), Counter(kept)
    for answer in answers:
        a = (p[answer] + 0.5) / (len(without) + 0.5 * len(answers))
        b = (q[answer] + 0.5) / (len(kept) + 0.5 * len(answers))
        total += a * math.log(a / b)
    return total


def slow_sentences(text):
    """Sentences of plain stories: what ends in a mark before white space or the end."""
    return [part.strip() for part in re.findall(r"[^.!?]*[.!?]+[\"')]*(?=\s|$)|[^.!?]+$", text) if part.strip()]


def test_every_importance_is_that_of_the_samples_of_the_run(run, tmp_path):
    stories, data = load("organism"), tmp_path / "stories.jsonl"
    asked = ["Tell me a story about the sea.", "Write a few lines about the park.", "Once upon a time", "One day"]
    data.write_text("".join(json.dumps({"prompt": text, "answer": "quickly|slowly"}) + "\n" for text in asked))
    options = {"study": "sentences", "samples": 8, "max_new_tokens": 40, "max_sentences": 2}
    found = run(stories, data=data, **options)
    base = found.table("conditions")["condition"][0]
    samples, table = found.table("samples"), found.table("sentence_importance")
    original = {
        (r["prompt"], r["sample"]): r["generated_ids"] for r in samples.filter(condition=base).iter_rows(named=True)
    }
    front = dict(found.table("inputs").filter(condition=base).select("prompt", "ids").iter_rows())
    fed = {r["row"]: (r["condition"], r["ids"]) for r in found.table("inputs").iter_rows(named=True)}
    rollouts = {}
    for r in samples.filter(pl.col("condition") != base).iter_rows(named=True):
        rollouts.setdefault((r["condition"], r["prompt"], tuple(fed[r["row"]][1])), []).append(r["generated_ids"])
    right = lambda ids: bool(re.search(r"(?<!\w)(quickly|slowly)(?!\w)", stories.decode(ids), re.IGNORECASE))  # noqa: E731
    assert table.height >= 6 and table["importance"].count() >= 4
    for r in table.iter_rows(named=True):
        ids, start = original[r["prompt"], r["sample"]], r["position"]
        nexts = table.filter(prompt=r["prompt"], sample=r["sample"], sentence=r["sentence"] + 1)["position"].to_list()
        later = [
            key[2] for key in rollouts if key[0] == f"before sentence {r['sentence'] + 1}" and key[1] == r["prompt"]
        ]
        given = [list(key[len(front[r["prompt"]]) :]) for key in later]
        given = [own for own in given if own == ids[: len(own)] and (not nexts or len(own) == nexts[0])]
        assert len({tuple(own) for own in given}) == 1
        sides = {}
        for name, kept in (("before", ids[:start]), ("after", given[0])):
            number = r["sentence"] + (name == "after")
            key = (f"before sentence {number}", r["prompt"], (*front[r["prompt"]], *kept))
            sides[name] = [(kept, own[: 40 - len(kept)]) for own in rollouts[key]]
        own = stories.decode(given[0][start:]).strip()
        assert r["text"] == own
        new = []
        for _, said in sides["before"]:
            begins = (slow_sentences(stories.decode(said)) or [""])[0]
            a, b = set(re.findall(r"\w+", own.lower())), set(re.findall(r"\w+", begins.lower()))
            new.append(len(a & b) < 0.5 * len(a | b))
        without = [right(kept + said) for (kept, said), other in zip(sides["before"], new) if other]
        kept = [right(front + said) for front, said in sides["after"]]
        assert r["accuracy_with"] == pytest.approx(np.mean(kept)) and r["replaced"] == len(without)
        if len(without) >= 5:
            assert r["importance"] == pytest.approx(slow_divergence(without, kept))
            assert r["accuracy_without"] == pytest.approx(np.mean(without))
        else:
            assert r["importance"] is None and r["p"] is None and r["anchor"] is None
        assert r["importance_resampled"] == pytest.approx(
            slow_divergence([right(front + said) for front, said in sides["before"]], kept)
        )


def test_the_null_is_that_of_answers_shuffled_one_by_one():
    rng = np.random.default_rng(0)
    replaced, kept = list("aabbbcda"), list("aaaabbcaaaaa")
    found, pool, drawn_ = answer_shift(replaced, kept, rng), np.array(replaced + kept), []
    for _ in range(4000):
        shuffled = rng.permutation(pool).tolist()
        drawn_.append(slow_divergence(shuffled[:8], shuffled[8:]))
    assert found.value == pytest.approx(slow_divergence(replaced, kept))
    assert found.null == pytest.approx(np.mean(drawn_), abs=0.02)
    assert found.p == pytest.approx(np.mean(np.array(drawn_) >= found.value - 1e-12), abs=0.04)
    assert divergence(np.array([3, 1]), np.array([3, 1])) == 0
    assert np.isnan(answer_shift([], kept, rng).value) and answer_shift(["a"] * 5, ["a"] * 5, rng).p == 1.0


def test_where_a_sentence_decides_nothing_its_excess_is_zero_and_p_is_small_no_more_often_than_it_says():
    """Answers of four kinds, 30 without and 60 with the sentence, of one distribution; prompts differ in it. The
    interval of the mean excess over eight prompts holds zero."""
    rng, covered, small, excess = np.random.default_rng(1), 0, 0, []
    for _ in range(200):
        values = []
        for _ in range(8):
            p = rng.dirichlet(np.ones(4))
            shift = answer_shift(rng.choice(4, 30, p=p).tolist(), rng.choice(4, 60, p=p).tolist(), rng)
            values.append(shift.value - shift.null)
            small += shift.p < 0.05
        of = paired_mean(np.array(values), range(8))
        covered += of.low <= 0 <= of.high
        excess += values
    assert small / 1600 < 0.06 and abs(np.mean(excess)) < 3 * np.std(excess) / 40
    assert 0.88 < covered / 200 <= 1.0


def test_with_many_samples_the_excess_is_the_divergence_of_the_distributions():
    rng, p, q = np.random.default_rng(2), np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    truth = float((p * np.log(p / q)).sum())
    found = []
    for _ in range(100):
        shift = answer_shift(rng.choice(3, 2000, p=p).tolist(), rng.choice(3, 2000, p=q).tolist(), rng)
        found.append(shift.value - shift.null)
    assert np.mean(found) == pytest.approx(truth, rel=0.03)


@pytest.mark.parametrize(
    "text, answer",
    [
        ("So x is 3. The result is \\boxed{3\\frac{1}{2}}. Done.", "3\\frac{1}{2}"),
        ("We add. The answer is 42. I am sure of that.", "42"),
        ("Adding up.\n#### 1,024", "1,024"),
        ("Answer: Paris. Or so they say. Answer: Rome!", "rome"),
        ("It rained. The dog  ran home.", "the dog ran home"),
        ("An open \\boxed{7 and no end.", "an open \\boxed{7 and no end"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_a_final_answer_is_boxed_or_announced_or_said_last(text, answer):
    assert final_answer(text) == answer


def test_sentences_share_the_words_that_both_have():
    assert shared_words("The dog ran.", "the DOG ran!") == 1
    assert shared_words("The dog ran.", "The cat ran.") == pytest.approx(2 / 4)
    assert shared_words("The dog.", "") == 0 and shared_words("...", "") == 1


def test_what_the_study_cannot_use_is_refused(run, stories, tmp_path):
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"prompt": "The dog"}\n')
    with pytest.raises(InputError, match="no column 'answer', and answers=right"):
        run("no-such-model", data=bare, study="sentences", answers="right")
    with pytest.raises(InputError, match="similar is 0"):
        run("no-such-model", data=bare, study="sentences", similar=0)
    with pytest.raises(InputError, match="has two sentences"):
        run(stories, data=bare, study="sentences", samples=2, max_new_tokens=2)
    fields = get("branching-factor").config.__dataclass_fields__
    assert all(fields[name].metadata["later"] for name in ("max_sentences", "similar", "answers"))
