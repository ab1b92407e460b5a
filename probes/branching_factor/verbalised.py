"""Verbalised sampling (Zhang et al., arXiv 2510.01171): a model is asked for several responses with their
probabilities.

What it wrote is read back here, and its diversity is set against that of as many directly sampled answers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl

PROMPT = (
    "Generate {k} responses to the request below. Put each in a <response> tag, with a <text> and a numeric "
    "<probability>: the "
    "probability of that response among all the responses you could give.\n\nRequest: {prompt}"
)
_RESPONSE = re.compile(r"<response>(.*?)(?:</response>|(?=<response>)|\Z)", re.DOTALL | re.IGNORECASE)
_TEXT = re.compile(r"<text>(.*?)</text>", re.DOTALL | re.IGNORECASE)
_PROBABILITY = re.compile(r"<probability>\s*([0-9]*\.?[0-9]+)\s*(%?)\s*</probability>", re.IGNORECASE)


def parse(text: str) -> list[tuple[str, float]]:
    """The responses of one output with their stated probabilities, in the order written. A response without a text, or
    without a probability between 0 and 1 (0 % and 100 %), is not one."""
    found = []
    for block in _RESPONSE.findall(text):
        words, stated = _TEXT.search(block), _PROBABILITY.search(block)
        if words and stated and words[1].strip():
            probability = float(stated[1]) / (100 if stated[2] else 1)
            if 0 <= probability <= 1:
                found.append((words[1].strip(), probability))
    return found


def distinct(texts: Sequence[str], n: int) -> float:
    """How many different texts (case and spacing aside) n of these hold on average, drawn without replacement
    (Hurlbert's rarefaction)."""
    counts = Counter(" ".join(text.lower().split()) for text in texts)
    total = math.comb(len(texts), n)
    return sum(1 - math.comb(len(texts) - c, n) / total for c in counts.values())


def effective(responses: Sequence[tuple[str, float]]) -> float:
    """exp of the entropy of one list's stated probabilities, made to sum to 1, equal texts taken together; NaN where
    all are 0."""
    mass: Counter = Counter()
    for text, probability in responses:
        mass[" ".join(text.lower().split())] += probability
    p = np.array([v for v in mass.values() if v > 0])
    return float(np.exp(-(p / p.sum() * np.log(p / p.sum())).sum())) if len(p) else float("nan")


def diversity(direct: Sequence[Sequence[str]], verbalised: Sequence[Sequence[str]], asked: int) -> pl.DataFrame:
    """One row per prompt from the texts of its direct and its verbalised samples.

    parse_rate: responses read over responses asked for (more than asked count as asked) · n: answers that are compared,
    as many of either kind · distinct_direct, distinct_verbalised: different ones among them, as a share of n ·
    effective_stated: how many responses a list spreads its stated probability over (`effective`), mean over the
    lists."""
    rows = []
    for p, (plain, lists) in enumerate(zip(direct, verbalised)):
        read = [parse(text)[:asked] for text in lists]
        pool, plain = [text for one in read for text, _ in one], [text for text in plain if text.strip()]
        n, known = min(len(pool), len(plain)), [v for v in map(effective, read) if not math.isnan(v)]
        rows.append(
            {
                "prompt": p,
                "parse_rate": len(pool) / (asked * len(lists)),
                "n": n,
                "distinct_direct": distinct(plain, n) / n if n else None,
                "distinct_verbalised": distinct(pool, n) / n if n else None,
                "effective_stated": float(np.mean(known)) if known else None,
            }
        )
    floats = dict.fromkeys(("parse_rate", "distinct_direct", "distinct_verbalised", "effective_stated"), pl.Float64)
    return pl.DataFrame(rows, schema={"prompt": pl.Int64, "n": pl.Int64} | floats)
