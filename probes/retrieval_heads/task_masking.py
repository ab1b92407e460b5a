"""A task under the masks that needles chose: the questions of a file are answered without a mask, with the best heads
masked, and with random heads masked (the paper's Figures 8 to 10)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from probes.retrieval_heads.config import Config
from probes.retrieval_heads.masked_recall import RECALL, estimate_of, matrix
from probes.retrieval_heads.masking import Masking, Plans, each_masking, haystack_mean
from probes.retrieval_heads.needle_grid import NeedleGrid, stop_words
from probes.retrieval_heads.task_answers import TaskQuestion, answer_in, judge_answer, read_tasks
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.edits import apply
from workbench.engine.kv_cache import prefill
from workbench.models.answer_ends import answer_text, stop_rule
from workbench.models.batching import batches, halving
from workbench.models.model import Model
from workbench.models.prompt_style import PromptStyle, style_of, write_prompt
from workbench.models.text_side import TextSide
from workbench.models.thinking import thinking_splitter
from workbench.stats.clusters import clusters_of
from workbench.stats.crossed_shares import share_difference_interval

REASON = ' Think step by step, then write "The answer is" and the answer.'
BEGUN = " Let's think step by step."
ROWS = {
    "question": pl.Int64,
    "k": pl.Int64,
    "heads": pl.String,
    "draw": pl.Int64,
    "score": pl.Float64,
    "answer": pl.String,
    "response": pl.String,
    "generated_ids": pl.List(pl.Int64),
    "masked": pl.String,
}
SCORES = {"score" if name == "recall" else name: kind for name, kind in RECALL.items()}


def task_tables(
    model: Model, config: Config, context: Context, grid: NeedleGrid, plans: Plans
) -> tuple[dict[str, pl.DataFrame], dict]:
    """The tables `task_masking`, `task_scores` and `task_inputs`, and the summary. The heads are those that all needles
    choose; no question chose any of them. Raises InputError for a prompt beyond the model's context."""
    questions = read_tasks(config.tasks, config.task_metric)
    prompts, thinks = task_prompts(model, config, questions)
    inputs = pl.DataFrame(
        {
            "question": range(len(questions)),
            "group": [q.group for q in questions],
            "answers": [list(q.answers) for q in questions],
            "ids": prompts,
        }
    )
    plan = task_plan(plans)
    if not plan:
        context.warn("The needles chose no heads to mask, so the tasks were not asked.")
    rows = _answered(model, config, context, grid, questions, prompts, plan, thinks=thinks)
    scores = task_scores(rows, np.array([q.group for q in questions]), plans.sampled)
    if not scores.is_empty() and scores["score"][0] < 0.1:
        context.warn(
            f"Without a mask the model reaches {scores['score'][0]:.2f} on the tasks: it has little to lose, and a "
            f"mask that takes nothing says nothing."
        )
    return {"task_masking": rows, "task_scores": scores, "task_inputs": inputs}, summary_of_tasks(scores)


def task_plan(plans: Plans) -> list[Masking]:
    """None, then for every k the heads that all needles choose, and the random sets that the needles were tested
    with."""
    if not plans.folds:
        return []
    random = [item for item in plans.folds[0] if item.kind == "random"]
    plan = [Masking(0, "top", 0, ())]
    for k, heads in plans.top.items():
        plan += [Masking(k, "top", 0, heads), *(item for item in random if item.k == k)]
    return plan


def task_scores(rows: pl.DataFrame, groups: np.ndarray, sampled: Collection[int]) -> pl.DataFrame:
    """Mean score per k, the columns of SCORES: `none` (k = 0), `top`, `random` (the mean over draws), what each of the
    two takes (`drop_top`, `drop_random`: none minus it, over the same questions) and `top_minus_random`. `sampled`: the
    k whose random sets are a sample, and part of their intervals; `groups` [questions]: their clusters."""
    if rows.is_empty():
        return pl.DataFrame(schema=SCORES)
    scored = rows.rename({"score": "recall", "question": "trial"})
    clusters, found = clusters_of(groups), []

    def difference(k: int, name: str, first: np.ndarray, second: np.ndarray, draws: int) -> None:
        value, ends = float(first.mean() - second.mean()), share_difference_interval(first, second, clusters)
        found.append((k, name, value, *ends, clusters.n, clusters.rows, draws))

    none = matrix(scored, 0, "top")[0]
    found.append((0, "none", *estimate_of(none, clusters), 1))
    for k in sorted({int(k) for k in scored["k"].to_list() if k > 0}):
        top, random = matrix(scored, k, "top")[0], matrix(scored, k, "random")
        found.append((k, "top", *estimate_of(top, clusters), 1))
        difference(k, "drop_top", none, top, 1)
        if len(random):
            control = random if k in sampled else random.mean(0)
            found.append((k, "random", *estimate_of(control, clusters), len(random)))
            difference(k, "drop_random", none, control, len(random))
            difference(k, "top_minus_random", top, control, len(random))
    return pl.DataFrame(found, schema=SCORES, orient="row", strict=False)


def summary_of_tasks(scores: pl.DataFrame) -> dict:
    """The score without a mask, and for every k what masking the top heads takes beside what random ones take."""
    names = {
        "none": "task_unmasked",
        "drop_top": "task_drop_top_{k}",
        "drop_random": "task_drop_random_{k}",
        "top_minus_random": "task_top_minus_random_{k}",
    }
    return {
        names[row["heads"]].format(k=row["k"]): {
            "value": row["score"],
            "low": row["ci_low"],
            "high": row["ci_high"],
            "n": row["n"],
            "rows": row["rows"],
        }
        for row in scores.iter_rows(named=True)
        if row["heads"] in names
    }


def task_prompts(model: TextSide, config: Config, questions: Sequence[TaskQuestion]) -> tuple[list[list[int]], bool]:
    """The tokens of every question in its prompt, and whether they end inside a block of thinking."""
    style, prompts, thinks = _style(config), [], False
    for row, q in enumerate(questions, 1):
        fields = {"question": q.question + (REASON if config.chain_of_thought else "")}
        before = ""
        if q.context:
            fields, before = {"context": q.context} | fields, "{context}\n\n"
        begun = BEGUN if config.chain_of_thought else ""
        plain, turn = f"{before}Question: {{question}}\nAnswer:{begun}", f"{before}{{question}}"
        written = write_prompt(model, fields, style=style, plain=plain, turn=turn)
        if model.too_long(len(written.ids) + config.task_tokens):
            raise InputError(
                f"{config.tasks}, row {row}: a prompt of {len(written.ids)} tokens and an answer of "
                f"task_tokens={config.task_tokens} go beyond the context of {model.context_length}; shorten one of "
                f"them."
            )
        prompts.append(list(written.ids))
        thinks = written.thinks
    return prompts, thinks


def _style(config: Config) -> PromptStyle:
    """The config's style with the tasks' own text: its template is of needles in a context."""
    own = config.template
    way = {"default": "auto", "paper": "raw"}.get(own, own)
    if way not in ("auto", "raw", "chat"):
        way = "chat" if own.startswith("chat:") else "raw"
    return replace(style_of(config), template=way)


def _answered(
    model: Model,
    config: Config,
    context: Context,
    grid: NeedleGrid,
    questions: Sequence[TaskQuestion],
    prompts: Sequence[Sequence[int]],
    plan: Sequence[Masking],
    *,
    thinks: bool,
) -> pl.DataFrame:
    """Every question under every masking: the columns of ROWS."""
    if not plan:
        return pl.DataFrame(schema=ROWS)
    mean = haystack_mean(model, grid.shared, context) if config.ablation == "mean" else None
    split = thinking_splitter(model, inside=thinks)
    stops = stop_rule(model, () if config.chain_of_thought else stop_words(model, config), split)

    def compute(numbers: list[int]) -> list[tuple]:
        own, rows = [prompts[i] for i in numbers], []
        with apply(model, context.edits):
            read = prefill(model, [ids[:-1] for ids in own], None)
        how = {"max_new_tokens": config.task_tokens, "stops": stops}
        for item, answers in each_masking(model, config, context, own, [()] * len(own), plan, mean, read, **how):
            masked = " ".join(f"{layer}.{head}" for layer, head in item.heads)
            for i, steps in zip(numbers, answers):
                ids = [step.token for step in steps]
                text = answer_text(model, ids, split)
                answer = answer_in(text, chain_of_thought=config.chain_of_thought)
                score = judge_answer(answer, questions[i].answers, config.task_metric)
                rows.append((i, *item[:3], score, answer, text, ids, masked))
        again = config.mask_phase == "all"
        context.count(
            prompts=len(own),
            tokens=(1 + again * len(plan)) * sum(map(len, own)),
            forwards=1 + len(plan) * (1 + again),
        )
        return rows

    tables, done = [], 0
    for number, group in enumerate(_groups(model, config, prompts)):
        context.progress(done, len(prompts), "prompts")
        part = context.part(
            f"tasks-{number}",
            lambda group=group: {
                "rows": pl.DataFrame(
                    [row for _, some in halving(group, compute) for row in some], schema=ROWS, orient="row"
                )
            },
        )
        tables.append(part["rows"])
        done += len(group)
    context.progress(done, len(prompts), "prompts")
    return pl.concat(tables).sort("k", "heads", "draw", "question", descending=[False, True, False, False])


def _groups(model: Model, config: Config, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Questions that are answered together; where attention slides over columns, only prompts of one length."""
    lengths = [len(ids) for ids in prompts]
    if not model.sliding:
        return batches(lengths, max_tokens=config.max_tokens, max_rows=16)
    found = []
    for length in sorted(set(lengths)):
        same = [i for i, own in enumerate(lengths) if own == length]
        some = batches([length] * len(same), max_tokens=config.max_tokens, max_rows=16)
        found += [[same[k] for k in group] for group in some]
    return found
