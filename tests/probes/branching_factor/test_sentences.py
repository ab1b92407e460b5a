"""Sentences of a response are measured apart, each from its own steps, with an interval over prompts."""

import math

import numpy as np
import pytest

from probes.branching_factor.sentences import sentence_ends, sentence_splitter
from tests.probes.branching_factor.test_branching_factor import many_prompts
from tests.support.chat_templates import R1, with_template
from workbench.core.registry import get
from workbench.models import thinking
from workbench.models.thinking import ThinkingTags


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("One. Two! Three?", ["One.", " Two!", " Three?"]),
        ("It costs 3.14 euros. Good", ["It costs 3.14 euros.", " Good"]),
        ('He said "go." Then left... Yes', ['He said "go."', " Then left...", " Yes"]),
        ("one line\nof text\nAnother", ["one line\nof text\n", "Another"]),
        ("End.\n\nNew.Next", ["End.", "\n", "\n", "New.", "Next"]),
        ("吃了。然后", ["吃了。", "然后"]),
        ("no mark", ["no mark"]),
        ("", []),
    ],
)
def test_a_sentence_ends_at_a_mark_before_white_space_a_capital_or_the_end(text, sentences):
    ends = [0, *sentence_ends(text), len(text)]
    assert [text[a:b] for a, b in zip(ends, ends[1:]) if a < b] == sentences


def test_white_space_and_special_tokens_belong_to_the_sentence_before(stories):
    split, eos = sentence_splitter(stories), stories.eos_ids[0]
    ids = [*stories.encode("The dog ran. Tom sat.\n\nShe", bos=False), eos]
    pieces, found = stories.token_strings(ids), split(ids, 0)
    texts = ["".join(p for p, k in zip(pieces[:-1], found) if k == number) for number in range(3)]
    assert [text.strip() for text in texts] == ["The dog ran.", "Tom sat.", "She"] and found[-1] == 2
    assert sorted(found) == found and set(found) == {0, 1, 2}
    assert split(ids[:3], 3) == [0, 0, 0] and split(ids[:4], 2) == [0, 0, 1, 1]


def slow_sentences(pieces, thinking):
    """Character by character: which sentence each piece is of."""
    out, number = [], 0
    for part in (pieces[:thinking], pieces[thinking:]):
        text, ended = "".join(part), set()
        for i, letter in enumerate(text):
            if letter not in ".!?…\n":
                continue
            end = i + 1
            while letter != "\n" and end < len(text) and text[end] in ".!?…":
                end += 1
            while letter != "\n" and end < len(text) and text[end] in "\"'”’»)]*_":
                end += 1
            if end == len(text) or text[end].isspace() or text[end].isupper():
                ended.add(end)
        at, first = 0, True
        for piece in part:
            if piece.strip():
                place = at + len(piece) - len(piece.lstrip())
                if (first and out) or any(end <= place for end in ended):
                    number += 1
                ended, first = {end for end in ended if end > place}, False
            out.append(number)
            at += len(piece)
    return out


@pytest.mark.parametrize("thinks", [False, True])
def test_sentences_have_the_branching_factor_of_their_own_steps(run, stories, monkeypatch, thinks):
    """Recomputed from the samples, token by token."""
    monkeypatch.setattr(thinking, "TAGS", (ThinkingTags("<think>", "a"),))
    model = with_template(stories, R1) if thinks else stories
    found = run(model, bias="plain", segments="sentence", max_new_tokens=60, temperature=0.7)
    sums, special = {}, set(stories.tokenizer.all_special_ids)
    for r in found.table("samples").iter_rows(named=True):
        ids = r["generated_ids"]
        pieces = ["" if i in special else p for i, p in zip(ids, model.token_strings(ids))]
        numbers = slow_sentences(pieces, r["thinking_tokens"])
        for k in set(numbers):
            steps = [x for x, n in zip(r["step_entropy"], numbers) if n == k]
            sums.setdefault((r["prompt"], str(k)), []).append(steps)
    segments, means = found.table("segments"), found.table("segment_means")
    assert segments.height == len(sums) and len({k for _, k in sums}) >= 3 - thinks
    for r in segments.iter_rows(named=True):
        steps = np.concatenate(sums[r["prompt"], r["segment"]])
        assert r["bf"] == pytest.approx(math.exp(steps.mean()), rel=1e-5)
        assert r["samples"] == len(sums[r["prompt"], r["segment"]])
        assert r["mean_length"] == pytest.approx(len(steps) / r["samples"])
        assert (r["ci_low"] is None) == (r["samples"] < 5)
        assert r["ci_low"] is None or r["ci_low"] < r["bf"] < r["ci_high"]
    assert means["segment"].to_list() == [str(k) for k in range(means.height)]
    for r in means.iter_rows(named=True):
        own = segments.filter(segment=r["segment"])["bf"]
        assert r["bf"] == pytest.approx(own.mean()) and r["prompts"] == len(own)
        assert r["ci_low"] is None and r["ci_high"] is None  # of three prompts
    first = means.row(0, named=True)
    assert found.summary["bf of sentence 0"] == {
        "value": first["bf"],
        "low": first["ci_low"],
        "high": first["ci_high"],
        "n": 3,
    }
    # the rest of the run is what it is without
    plain = run(model, bias="plain", max_new_tokens=60, temperature=0.7)
    assert plain.table("prompts").equals(found.table("prompts")) and plain.table("segments").height == 6 * thinks


def test_a_response_of_one_sentence_has_the_interval_of_its_condition(run, tmp_path):
    data = many_prompts("circuit-survivor", 6, tmp_path)
    found = run("circuit-survivor", data=data, segments="sentence", samples=50, max_new_tokens=200)
    means, condition = found.table("segment_means"), found.table("conditions").row(0, named=True)
    assert means.height == 1 and condition["ci_high"] - condition["ci_low"] > 0.05
    assert means["bf"][0] == pytest.approx(condition["bf"])
    for end in ("ci_low", "ci_high"):
        assert means[end][0] == pytest.approx(condition[end], rel=1e-6)


def test_the_key_is_no_part_of_a_run_that_does_not_use_it():
    config = get("branching-factor").config
    assert config.__dataclass_fields__["segments"].metadata["later"] and config().segments == "thinking"
