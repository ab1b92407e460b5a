"""Rows beyond the context: one function refuses, skips or cuts them, and counts."""

from __future__ import annotations

import pytest

from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.long_rows import counted_rows, fitting


def fit(lengths, limit, how, context):
    return fitting(
        lengths, limit, long=how, context=context, where=lambda row: f"a.csv, row {row + 1}: the text", what="texts"
    )


def test_rows_that_fit_are_all_measured_and_nothing_is_said():
    for how in ("refuse", "skip", "cut"):
        context = Context()
        assert fit([3, 5], 5, how, context) == fit([3, 500], None, how, context) == [0, 1]
        assert not context.warnings and counted_rows(context) == {}


def test_a_row_that_does_not_fit_is_refused_skipped_or_cut_and_counted():
    with pytest.raises(InputError, match=r"a.csv, row 2: the text has 6 tokens, where 5 fit; .* long=skip"):
        fit([3, 6, 5], 5, "refuse", Context())
    for how, kept, key in (("skip", [0, 2], "rows_skipped_too_long"), ("cut", [0, 1, 2], "rows_cut_too_long")):
        context = Context()
        assert fit([3, 6, 5], 5, how, context) == kept
        assert fit([3, 6], 5, how, context)  # a second file
        assert counted_rows(context) == {key: 2} and context.counters[key] == 2
        assert "1 of 3 texts are longer than the 5 tokens that fit" in context.warnings[0]


def test_nothing_left_is_an_error():
    with pytest.raises(InputError, match="None of the 2 texts fits into 5 tokens"):
        fit([6, 7], 5, "skip", Context())
