"""Nats per byte do not depend on whether a tokenizer keeps the first space, and runs of several tokenizers are compared
by them."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from probes.branching_factor import figures as drawn
from probes.branching_factor.per_byte import bytes_of
from tests.support.figure_runs import FakeRun, branching


def model(pieces):
    return SimpleNamespace(
        tokenizer=SimpleNamespace(all_special_ids=[0]), token_strings=lambda ids: [pieces[i] for i in ids]
    )


@pytest.mark.parametrize(
    "ids, text, size",
    [([1, 2], "the sea", 8), ([1, 2], " the sea", 8), ([0, 1], "the", 4), ([2], "é", 2), ([], "", 0), ([0], "", 0)],
)
def test_a_space_before_the_first_word_counts_once_whether_or_not_it_was_decoded(ids, text, size):
    assert bytes_of(model({0: "<s>", 1: " the", 2: "é"}), ids, text) == size


def with_bytes(name, tokenizer, rate, words="prompt"):
    """A run whose prompts have so many nats per byte, times what each prompt has in both runs."""
    run = branching(conditions=(name,), name=name)
    frames = dict(run.frames)
    each = rate * np.linspace(1, 2, frames["prompts"].height)
    texts = [f"{words} {p}" for p in frames["prompts"]["prompt"]]
    frames["prompts"] = frames["prompts"].with_columns(nats_per_byte=pl.Series(each), text=pl.Series(texts))
    frames["conditions"] = frames["conditions"].with_columns(
        tokenizer=pl.lit(tokenizer),
        nats_per_byte=pl.lit(each.mean()),
        nats_per_byte_low=pl.lit(each.mean() * 0.9),
        nats_per_byte_high=pl.lit(each.mean() * 1.1),
    )
    return FakeRun(run.probe, frames, run.info)


def test_runs_of_several_tokenizers_are_drawn_per_byte_paired_over_the_prompts_they_share():
    made = drawn.compare([with_bytes("a", "one", 0.2), with_bytes("b", "two", 0.3)])
    assert "cut text into different tokens" in made.layout.meta["note"]
    right = [trace.x[0] for trace in made.data if trace.xaxis == "x2" and trace.mode == "markers"]
    assert right == pytest.approx([1.0, 1.5])
    same = drawn.compare([with_bytes("a", "one", 0.2), with_bytes("b", "one", 0.3)])
    assert same.layout.meta["note"] == "" and "position" in same.layout.xaxis.title.text
    apart = drawn.compare([with_bytes("a", "one", 0.2), with_bytes("b", "two", 0.3, words="other")])
    assert len([trace for trace in apart.data if trace.xaxis == "x2" and len(trace.x)]) == 1  # nothing to pair


def test_runs_of_earlier_versions_are_drawn_and_do_not_say_their_tokenizer():
    old = [branching(conditions=(name,), name=name) for name in ("organism", "gpt2")]
    made = drawn.compare(old)
    assert "do not say whether their models share a tokenizer" in made.layout.meta["note"]
    share = next(trace for trace in drawn.figures(old[0])["positions"].data if trace.yaxis == "y3")
    assert max(share.y) == 1.0  # `alive` was a count there
