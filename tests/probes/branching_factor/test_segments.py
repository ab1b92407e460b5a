"""Thinking and answer of a sample are measured apart, each from its own steps."""

import math

import numpy as np
import pytest

from tests.support.chat_templates import R1, with_template
from workbench.core.errors import InputError
from workbench.models import thinking
from workbench.models.thinking import ThinkingTags


def test_thinking_and_answer_have_the_branching_factor_of_their_own_steps(run, stories, monkeypatch):
    """Recomputed from the samples, token by token; the closing tag is something that the random model says."""
    monkeypatch.setattr(thinking, "TAGS", (ThinkingTags("<think>", "a"),))
    model = with_template(stories, R1)
    found = run(model, bias="plain")
    samples, segments = found.table("samples"), found.table("segments")
    assert {"finished"} <= set(samples["thinking"]) <= {"finished", "unfinished"}
    sums = {}
    for r in samples.iter_rows(named=True):
        pieces, end = model.token_strings(r["generated_ids"]), len(r["generated_ids"])
        end = next((k for k in range(1, end + 1) if "a" in "".join(pieces[:k])), end)
        assert r["thinking_tokens"] == end and (r["thinking"] == "finished") == ("a" in "".join(pieces))
        sums.setdefault((r["prompt"], "thinking"), []).append(r["step_entropy"][:end])
        sums.setdefault((r["prompt"], "answer"), []).append(r["step_entropy"][end:])
    assert segments.height == len(sums) == 6
    for r in segments.iter_rows(named=True):
        parts = [part for part in sums[r["prompt"], r["segment"]] if part]
        steps = np.concatenate(parts)
        assert r["bf"] == pytest.approx(math.exp(steps.mean()), rel=1e-5)
        assert r["samples"] == len(parts) and r["mean_length"] == pytest.approx(len(steps) / len(parts))
        assert (r["ci_low"] is None) == (r["samples"] < 5)  # over samples, none below five
        assert r["ci_low"] is None or r["ci_low"] < r["bf"] < r["ci_high"]
    means = found.table("segment_means")
    assert means["segment"].to_list() == ["thinking", "answer"]
    for r in means.iter_rows(named=True):
        assert r["bf"] == pytest.approx(segments.filter(segment=r["segment"])["bf"].drop_nulls().mean())
        assert found.summary[f"bf of {r['segment']}"] == {
            "value": r["bf"],
            "low": r["ci_low"],
            "high": r["ci_high"],
            "n": r["prompts"],
        }
        assert r["ci_low"] is None and r["prompts"] == 3  # over prompts, none below five


def test_samples_that_end_inside_their_thinking_are_counted_and_warned_of(run, stories):
    found = run(with_template(stories, R1), max_new_tokens=4)
    assert found.summary["samples_ended_in_thinking"] == 18
    assert any("18 of 18 samples ended inside" in w and "thinking=off" in w for w in found.info["warnings"])
    answers = found.table("segments").filter(segment="answer")
    assert answers["samples"].to_list() == [0, 0, 0] and answers["bf"].null_count() == 3


def test_without_thinking_there_are_no_segments_and_the_block_is_filled(run, stories):
    off = run(with_template(stories, R1), thinking="off", template="chat:Say: {prompt}", max_new_tokens=4)
    assert off.table("segments").height == 0 and set(off.table("samples")["thinking"]) == {"none"}
    text = stories.tokenizer.decode(off.table("inputs")["ids"][0])
    assert "Say: Once upon a time" in text and text.endswith("<think>\n\n</think>\n\n")


def test_thinking_and_arguments_without_a_chat_template_are_refused(run, stories):
    for keys in ({"thinking": "on"}, {"template_args": ("a:1",)}):
        with pytest.raises(InputError, match="no chat template"):
            run(stories, **keys)
