"""Whether the loss of a search was stable, by the rule of the official code."""

from __future__ import annotations

import numpy as np

BEFORE = 10  # steps whose mean a loss is held against
MORE, TIMES = 0.25, 1.25  # a spike is above that mean by so many nats, or is so many times as large
BACK = 100  # steps before the end by which that mean has to be reached again; a tenth of a search below 1,000 steps


def is_stable(losses: np.ndarray) -> bool:
    """False where a loss [steps] stood out from the mean of the ten before it, and that mean was not reached again well
    before the end."""
    last = len(losses) - min(BACK, len(losses) // 10)
    for step in range(1, len(losses)):
        mean = float(np.mean(losses[max(0, step - BEFORE) : step]))
        if losses[step] > mean + MORE or losses[step] > TIMES * mean:
            later = losses[step:last]
            if not len(later) or later.min() > mean:
                return False
    return bool(np.isfinite(losses).all())
