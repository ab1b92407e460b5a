"""Hopping too late: where a model finds the bridge of a two-hop question, and whether it would answer had it found it
earlier.

Biran et al., Hopping Too Late: Exploring the Limitations of Large Language Models on Multi-Hop Queries (arXiv
2406.12775, EMNLP 2024). A question composes two facts, (e1, r1, e2) and (e2, r2, e3): "the spouse of the singer of
Imagine is". Questions whose hops the model knows and that no shortcut answers are looked into, those that it answers
beside those that it fails. t1 is the last token of the first hop ("Imagine"), t2 the last token.

Four measurements: descriptions of the states at t1 and t2 by another prompt (Patchscopes: which name the bridge, or the
answer), what attention and MLPs add at t2 read off with the unembedding, attention from t2 to t1 cut layer by layer,
and back-patching: the state after a later block put in the place of that after an earlier one, at the same position.
The last two are interventions. Back-patching is an oracle over hundreds of pairs of layers, so it stands beside states
of random other questions with as many pairs, and beside the one pair that was chosen on other bridges.

Deviations: descriptions are the likeliest text by default, and drawn (three texts) where asked for; the describing
prompt is another one of the same form, and can be given; an event of a projection needs one likeliest token, not one of
several equal ones; one-character names have to stand alone; the shortcut over the relations keeps the verb; curves,
shares and first layers have intervals over bridges and a control. See docs/methods/hopping.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from probes.hopping.asking import FedQuestion, ask, describing
from probes.hopping.config import BIBTEX, COLUMNS, Config
from probes.hopping.estimate import cuts, estimate, patched
from probes.hopping.questions import read_questions
from probes.hopping.shipped import QUESTIONS, describe_prompt, material, own_questions
from probes.hopping.short_run import example
from workbench.core.context import Context, Result
from workbench.core.registry import DataSpec, probe

if TYPE_CHECKING:
    from probes.hopping.labels import QuestionSet


def validate(config: Config, data: Path | None) -> None:
    """Raise InputError for questions that cannot be read."""
    read_questions(config, data)


@probe(
    "hopping",
    title="Hopping too late",
    summary="Where a model finds the bridge of a two-hop question, and whether it answers when it finds it earlier.",
    tables={
        "items": ("row", "hop1", "hop2", "two_hop", "shortcut", "split"),
        "layers": ("split", "stage", "layer", "rate", "ci_low", "ci_high", "null", "n", "rows"),
        "stages": ("split", "stage", "reached", "layer", "ci_low", "ci_high", "n"),
        "first_layers": ("row", "split", "stage", "layer"),
        "backpatch": (
            "source_layer",
            "target_layer",
            "position",
            "solved",
            "control",
            "ci_low",
            "ci_high",
            "preserved",
        ),
        "oracle": ("split", "position", "pairs", "solved", "control", "difference", "n"),
        "best_pair": ("position", "source_layer", "target_layer", "dev_solved", "solved", "control", "n"),
        "descriptions": ("row", "position", "source_layer", "target_layer", "named", "text"),
        "inputs": ("row", "ids", "t1", "t2", "generated_ids"),
    },
    bibtex=BIBTEX,
    data=DataSpec(
        required=("e2", "e3"), what="two-hop questions", default=QUESTIONS, for_model=own_questions, columns=COLUMNS
    ),
    material=material,
    validate=validate,
    before_loading="probes.hopping.before_loading:check",
    figures="probes.hopping.figures:figures",
    estimate=estimate,
    example=example,
    example_models=("organism",),
    needs=("tokenizer",),
    layer_curves={"layers": ("rate", "null")},
    keys={
        "items": ("row",),
        "layers": ("split", "stage", "layer"),
        "stages": ("split", "stage"),
        "first_layers": ("row", "split", "stage"),
        "backpatch": ("position", "source_layer", "target_layer"),
        "oracle": ("split", "position"),
        "best_pair": ("position",),
        "descriptions": ("row", "position", "source_layer", "target_layer", "named"),
        "inputs": ("row",),
    },
)
def run(model, config: Config, context: Context) -> Result:
    """Ask every question and its parts, then look into the streams of those that compose and of those that do not.

    Raises InputError for questions that cannot be asked of this model."""
    from probes.hopping.back_patching import back_patch
    from probes.hopping.before_loading import check_engine
    from probes.hopping.descriptions import target_layers
    from probes.hopping.labels import answer, choose, item_table
    from probes.hopping.layer_stages import first_layers, layer_table, stage_table
    from probes.hopping.oracle import best_pair, oracle_table, pair_table
    from probes.hopping.summary import summary_of

    check_engine(context)
    asked = ask(model, config, context)
    prompt = describing(model, describe_prompt(config, model.name)) if config.describe != "off" else None
    target_layers(model, config)
    stage = context.stages(_weights(model, config, asked))
    with stage("answers"):
        answers = answer(model, config, context, asked)
    items = item_table(config, asked, answers)
    chosen = choose(config, context, asked, items)
    _say_of_sets(config, context, items, chosen)
    found, texts = [], []
    with stage("stages"):
        for own in context.each(chosen, [len(own) + 0.1 for own in chosen]):
            events, described = _stages(model, config, context, prompt, own, asked)
            found.append(events)
            texts.append(described)
    with stage("back-patching"):
        solved = [
            back_patch(model, config, context, own.asked, asked)
            for own in context.each(chosen, [len(own) + 0.1 for own in chosen])
        ]
    first = first_layers(chosen, found)
    tables = {
        "items": items,
        "layers": layer_table(chosen, found),
        "stages": stage_table(chosen, found, first),
        "first_layers": first,
        "backpatch": pair_table(config, chosen, solved),
        "oracle": oracle_table(config, chosen, solved),
        "best_pair": best_pair(config, context, chosen, solved),
        "descriptions": pl.concat(texts),
        "inputs": _input_table(asked, answers),
    }
    return Result(tables, {}, summary_of(items, asked, tables["stages"], tables["oracle"], tables["best_pair"]))


def _weights(model, config: Config, asked: Sequence[FedQuestion]) -> dict[str, float]:
    """What the stages take beside each other, in texts that are written."""
    looked = min(len(asked), 2 * config.items or len(asked))
    back = model.n_layers * (model.n_layers - 1) / 2 * len(config.positions) * (1 + config.controls)
    cut = cuts(config, model.n_layers)
    return {
        "answers": 5 * len(asked),
        "stages": looked * (1 + cut + patched(config, model.n_layers) - back),
        "back-patching": looked * back,
    }


def _stages(
    model, config: Config, context: Context, prompt: list[int] | None, own: QuestionSet, asked: Sequence[FedQuestion]
):
    """Stage -> its events, and the texts that describe states, of one set."""
    from probes.hopping import knockouts, projections
    from probes.hopping.descriptions import TABLE, describe
    from probes.hopping.layer_stages import events

    stage = context.stages(
        {
            "descriptions": patched(config, model.n_layers) if prompt is not None else 0,
            "projections": 2.0 if config.project else 0,
            "attention cut": cuts(config, model.n_layers),
        }
    )
    described = projected = cut = None
    if prompt is not None:
        with stage("descriptions"):
            described = describe(model, config, context, prompt, own.asked, asked)
    if config.project:
        with stage("projections"):
            if (reason := projections.why_not(model)) is None:
                projected = projections.project(model, config, context, own.asked, asked)
            else:
                context.warn(f"What attention and MLPs add is not read off: {reason}.")
    if config.knockout != "off":
        with stage("attention cut"):
            if (reason := knockouts.why_not(model)) is None:
                cut = knockouts.knock_out(model, config, context, own)
            else:
                context.warn(f"No attention is cut: {reason}.")
    texts = pl.DataFrame(schema=TABLE) if described is None else described.texts
    return events(described, projected, cut), texts


def _say_of_sets(config: Config, context: Context, items: pl.DataFrame, chosen: Sequence[QuestionSet]) -> None:
    """Warn of sets in which there is nothing, or little, to look into."""
    known = items.filter(pl.col("hop1").fill_null(True) & pl.col("hop2").fill_null(True)).height
    if not any(map(len, chosen)):
        context.warn(
            f"The model knows both hops of {known} of {items.height} questions and answers none of these without a "
            f"shortcut being open, so there is nothing to look into; use keep=all to look into them anyway, or a file "
            f"of what it knows (--data)."
        )
    for own in chosen:
        if 0 < len(own) and own.clusters.n < 5:
            context.warn(
                f"The questions whose composition is {own.split} have {own.clusters.n} bridges: there are no intervals."
            )


def _input_table(asked: Sequence[FedQuestion], answers: pl.DataFrame) -> pl.DataFrame:
    """What was fed, where it was measured, and what the model said."""
    return pl.DataFrame(
        {
            "row": [one.question.row for one in asked],
            "ids": [one.prompt for one in asked],
            "t1": [one.t1 for one in asked],
            "t2": [one.t2 for one in asked],
            "generated_ids": answers["generated_ids"],
        },
        schema_overrides={"t1": pl.Int64},
    )
