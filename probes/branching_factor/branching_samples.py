"""Sampled continuations of a set of prompts: what they were sampled from, what came out, and the tables that record
them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from probes.branching_factor.prefix_tree import build
from workbench.engine.generate import FINISH
from workbench.engine.sampling import FIELDS, Rule
from workbench.models.model import Model
from workbench.models.thinking import ThinkingSpan, thinking_splitter


@dataclass(eq=False)
class Condition:
    """What is sampled from: a model, a rule, and one token sequence per prompt."""

    name: str
    model: Model
    texts: list[str]
    ids: list[list[int]]
    rule: Rule
    prompt: list[int]  # number of each prompt in the data file
    cluster: list[int]  # the same, but prompts with the same words have one number: what is independent
    answers: list[str] | None = None
    given: list[list[int]] = field(default_factory=list)  # part of the output that was not sampled but given
    stream: str = "samples"  # conditions of one stream share their random numbers, prompt by prompt
    template: str = "raw"  # how the prompts are written: raw, or in the model's chat template
    thinks: bool = False  # whether every prompt ends inside a block of thinking


@dataclass(eq=False)
class Continuations:
    """A condition with its samples: ids [P, M, N], lengths and finish [P, M], steps [P, M, N, F]
    (workbench.engine.scoring.FIELDS); texts P × M."""

    condition: Condition
    ids: np.ndarray
    lengths: np.ndarray
    finish: np.ndarray
    steps: np.ndarray
    texts: list[list[str]]

    def statistic(self, name: str) -> np.ndarray:
        return self.steps[..., FIELDS.index(name)].astype(np.float64)

    def thinking(self) -> list[list[ThinkingSpan]]:
        """Which tokens of each sample [P][M] are thinking, what was given of it included in neither part."""
        split = thinking_splitter(self.condition.model, inside=self.condition.thinks)
        out = []
        for p, given in enumerate(self.condition.given or [[]] * len(self.lengths)):
            whole = [split([*given, *self.tokens(p, m)]) for m in range(self.lengths.shape[1])]
            out.append([ThinkingSpan(max(0, span.end - len(given)), span.state) for span in whole])
        return out

    def tokens(self, p: int, m: int) -> list[int]:
        return self.ids[p, m, : self.lengths[p, m]].tolist()


def shorten(text: str, level: int, unit: str, *, words: int = 10) -> str:
    """The first `level` sentences, groups of `words` words, or few-shot blocks (the last block, the question, always
    stays) of a prompt."""
    if level < 0:
        return text
    if unit == "words":
        return " ".join(text.split()[: words * level])
    if unit == "blocks":
        *shots, question = [block for block in re.split(r"\n\s*\n", text) if block.strip()]
        return "\n\n".join([*shots[:level], question])
    return "".join(re.findall(r"[^.!?]*[.!?]+[\"')\]]*\s*|[^.!?]+$", text)[:level]).rstrip()


def correct(found: Continuations) -> np.ndarray:
    """Whether each output [P, M], what was given of it included, contains the answer as words (alternatives separated
    by |); NaN for prompts without an answer."""
    c, out = found.condition, np.full(found.lengths.shape, np.nan)
    for p, answer in enumerate(c.answers):
        if not (answer or "").strip():
            continue
        words = re.compile("|".join(rf"(?<!\w){re.escape(a.strip())}(?!\w)" for a in answer.split("|")), re.IGNORECASE)
        for m, text in enumerate(found.texts[p]):
            whole = c.model.decode(c.given[p] + found.tokens(p, m)) if c.given else text
            out[p, m] = words.search(whole) is not None
    return out


def sample_table(found: Continuations, first_row: int) -> pl.DataFrame:
    """One row per sample; nll and entropy are means per token, in nats, under the distribution that was sampled
    from."""
    P, M = found.lengths.shape
    at = [(p, m) for p in range(P) for m in range(M)]
    with np.errstate(invalid="ignore"):
        mean = {
            name: np.nansum(found.statistic(name), -1) / found.lengths
            for name in ("entropy", "logprob", "entropy_full", "logprob_full")
        }
    steps = {name: found.statistic(name).astype(np.float32) for name in ("entropy", "logprob")}
    thinking = [span for of_prompt in found.thinking() for span in of_prompt]
    columns = {
        "condition": [found.condition.name] * len(at),
        "row": [first_row + p for p, _ in at],
        "prompt": [found.condition.prompt[p] for p, _ in at],
        "sample": [m for _, m in at],
        "text": [found.texts[p][m] for p, m in at],
        "length": found.lengths.ravel(),
        "nll": -mean["logprob"].ravel(),
        "entropy": mean["entropy"].ravel(),
        "nll_full": -mean["logprob_full"].ravel(),
        "entropy_full": mean["entropy_full"].ravel(),
        "finish": [FINISH[i] for i in found.finish.ravel()],
        "thinking": [span.state for span in thinking],
        "thinking_tokens": [span.end for span in thinking],
        "generated_ids": pl.Series([found.tokens(p, m) for p, m in at], dtype=pl.List(pl.Int64)),
        "step_entropy": pl.Series(
            [steps["entropy"][p, m, : found.lengths[p, m]].tolist() for p, m in at], dtype=pl.List(pl.Float32)
        ),
        "step_nll": pl.Series(
            [(0.0 - steps["logprob"][p, m, : found.lengths[p, m]]).tolist() for p, m in at], dtype=pl.List(pl.Float32)
        ),
    }
    return frame(columns)


def tree_table(found: Continuations, first_row: int) -> pl.DataFrame:
    """The prefix tree of every prompt's samples, as `probes.branching_factor.prefix_tree.build` gives it."""
    model, entropy, out = found.condition.model, found.statistic("entropy"), []
    for p in range(len(found.lengths)):
        rows = [found.tokens(p, m) for m in range(found.lengths.shape[1])]
        entropies = [entropy[p, m, : len(row)] for m, row in enumerate(rows)]
        tree = build(rows, entropies, text=lambda ids: "".join(model.token_strings(ids)))
        where = {"condition": found.condition.name, "row": first_row + p, "prompt": found.condition.prompt[p]}
        out.append(
            tree.select(
                *(pl.lit(v, dtype=pl.String if k == "condition" else pl.Int64).alias(k) for k, v in where.items()),
                pl.all(),
            )
        )
    return pl.concat(out)


def frame(columns: dict) -> pl.DataFrame:
    """A table in which what is not defined is null, never NaN."""
    out = pl.DataFrame(
        {
            name: values if isinstance(values, pl.Series) else pl.Series(values, strict=False)
            for name, values in columns.items()
        }
    )
    return out.with_columns(pl.selectors.float().fill_nan(None))
