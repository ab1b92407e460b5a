"""The mean over random directions varies with the texts and with the draws, and its interval with both."""

import numpy as np
import pytest

from probes.representation_geometry.ablation import _estimates


def test_the_interval_over_draws_holds_the_mean_of_all_draws_where_one_over_texts_does_not():
    rng, times, held, texts_alone = np.random.default_rng(0), 200, 0, 0
    for _ in range(times):
        values = rng.standard_normal((20, 1)) * 0.5 + rng.standard_normal(40) + 0.3 * rng.standard_normal((20, 40))
        _, _, _, low, high = _estimates(values[0], values, "loss")
        held += low <= 0 <= high
        own = values[0]
        half = 2.02 * own.std(ddof=1) / np.sqrt(40)
        texts_alone += abs(own.mean()) <= half
    assert 0.92 <= held / times <= 0.99 and texts_alone / times < 0.7


def test_below_five_texts_there_is_no_interval_and_a_perfect_score_has_a_width():
    value, *ends = _estimates(np.arange(4.0), np.arange(4.0)[None], "loss")
    assert value == 1.5 and np.isnan(ends).all()
    value, low, high, *_ = _estimates(np.ones(12), np.ones((1, 12)), "accuracy")
    assert (value, high) == (1.0, pytest.approx(1.0)) and 0.6 < low < 0.9
