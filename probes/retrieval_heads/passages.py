"""Passages that are asked about (score=attention): each in its context, followed by its own question, by the question
of another passage, and by a question without content."""

from __future__ import annotations

from dataclasses import dataclass

from probes.retrieval_heads.config import Config
from probes.retrieval_heads.needle_grid import NeedleGrid, prompt_parts
from probes.retrieval_heads.passage_files import PassageRow, others_of, read_passages
from workbench.core.errors import InputError
from workbench.core.wording import cut
from workbench.models.needle_prompts import Trial, encode_after

NULL_QUERY = "N/A"  # of the paper: a question that asks for nothing
ASKED = ("own", "other", "null")


@dataclass(frozen=True)
class QuestionTail:
    """The tokens after the context, question in its template; `start`, `end`: those among them that are read."""

    ids: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class PassageTask:
    """A passage in its context. `trial`: the prompt with its own question; `gold`: the passage's tokens in it, end
    excluded; `group`: rows of one group have the same passage; `tails`: what follows the context, in the order of
    `ASKED`."""

    trial: Trial
    gold: tuple[int, int]
    group: int
    tails: tuple[QuestionTail, QuestionTail, QuestionTail]


def needle_tasks(model, config: Config, grid: NeedleGrid) -> list[PassageTask]:
    """Every needle at every place of the grid: the passage is the whole needle."""
    others = others_of(
        [n.ids for n in grid.needles], [n.question for n in grid.needles], "score=attention", what="needles"
    )
    tails = [_tail(model, config, grid.after, n.question) for n in grid.needles]
    null = _tail(model, config, grid.after, NULL_QUERY)
    tasks = []
    for trial in grid.trials:
        gold = (trial.shared, trial.shared + len(grid.needles[trial.needle].ids))
        own = (tails[trial.needle], tails[others[trial.needle]], null)
        tasks.append(PassageTask(trial, gold, trial.needle, own))
    return _that_fit(model, tasks)


def passage_tasks(model, config: Config) -> list[PassageTask]:
    """One prompt per row of the file `passages`: its passages, numbered, then the question."""
    rows = read_passages(config.passages)
    golds = [row.passages[row.gold].strip() for row in rows]
    others = others_of(golds, [row.question for row in rows], config.passages, what="gold passages")
    before, after, _ = prompt_parts(model, config)
    tails = [_tail(model, config, after, row.question) for row in rows]
    null, group_of = _tail(model, config, after, NULL_QUERY), {text: k for k, text in reversed(list(enumerate(golds)))}
    tasks = []
    for k, row in enumerate(rows):
        ids, gold = _context(model, before, row)
        whole = (*ids, *tails[k].ids)
        trial = Trial(k, len(whole), 100 * gold[0] / len(ids), whole, 0, len(ids), gold, guess=())
        tasks.append(PassageTask(trial, gold, group_of[golds[k]], (tails[k], tails[others[k]], null)))
    return _that_fit(model, tasks)


def _tail(model, config: Config, after: str, question: str) -> QuestionTail:
    """The question in its template, and which of its tokens are read: those of the question, or all of them."""
    at = after.index("{question}")
    ids, spans = encode_after(model, after.replace("{question}", question.strip()), leading="")
    inside = [i for i, (a, b) in enumerate(spans) if a < at + len(question.strip()) and b > at]
    if config.attention_from == "tail":
        inside = list(range(len(ids)))
    if not inside:
        raise InputError(f"The tokenizer cannot say which tokens are the question '{cut(question, 60)}'.")
    return QuestionTail(tuple(ids), inside[0], inside[-1] + 1)


def _context(model, before: str, row: PassageRow) -> tuple[list[int], tuple[int, int]]:
    """The tokens up to the question, BOS included, and the place of the gold passage among them."""
    texts = [f"[{number}] {text}\n\n" for number, text in enumerate(row.passages, 1)]
    start = len(before) + sum(map(len, texts[: row.gold])) + len(f"[{row.gold + 1}] ")
    end = start + len(row.passages[row.gold])
    ids, spans = model.encode_with_offsets(before + "".join(texts), bos=True)
    inside = [i for i, (a, b) in enumerate(spans) if a < end and b > start]
    return ids, (inside[0], inside[-1] + 1)


def _that_fit(model, tasks: list[PassageTask]) -> list[PassageTask]:
    """The same tasks. Raises InputError for a prompt beyond the model's context."""
    longest = max(task.trial.body + max(len(tail.ids) for tail in task.tails) for task in tasks)
    if model.too_long(longest):
        raise InputError(
            f"A prompt of {longest} tokens goes beyond the context of {model.context_length}; ask for shorter "
            f"lengths, or give fewer passages."
        )
    return tasks
