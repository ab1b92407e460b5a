"""Talking heads: which earlier attention head talks to which later one, from their weights alone, and what happens to
what the later one looks at when the channel is cut?

Merullo, Eickhoff, Pavlick, Talking Heads (arXiv 2406.09519), on the composition score of Elhage et al. (2021). What a
head writes is taken apart into the singular triples s u vᵀ of its W_OV, its components; each is scored against what a
later head's queries, keys and values read, ‖vᵀ B‖ / ‖B‖_F. A component that stands out of random directions and of the
components of all earlier heads is a channel. The strongest channels into heads that do a task (induction on words said
twice, telling two names apart, the item of a list that is left) are then removed from the weights, held at their mean,
and scaled, and other components of the same heads with them for comparison.

Deviations: the paper's body was not at hand, so nulls, ranking and tasks are our specification (docs/methods/
talking-heads.md); the queries and keys of a model with norms inside its attention are read with the gains of these
norms; keys and values that heads share are one reader, that of the group; the prompts are of our own making; heads
that do a task are chosen on half of the prompts and measured on the other half.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from probes.talking_heads.before_loading import check_engine, validate
from probes.talking_heads.config import BIBTEX, COLUMNS, MORE_COLUMNS, Config
from probes.talking_heads.estimate import estimate
from probes.talking_heads.short_run import example
from workbench import organisms
from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.registry import DataSpec, probe

ENGLISH = "probes.talking_heads:material/tasks.jsonl"
OWN = "probes.talking_heads:material/organism.jsonl"


def own_tasks(model: str) -> Path | str | None:
    """The tasks that go with an organism or a circuit; None for any other model."""
    name = organisms.name_of(model)
    if name is None:
        return None
    if name == "circuit-channel":
        return organisms.folder(name) / organisms.truth(name)["data"]["tasks"]
    return OWN


@probe(
    "talking-heads",
    title="Talking heads",
    summary="Which earlier head talks to which later one, by weights alone, and what happens when the channel is cut.",
    tables={
        "channels": (
            "source_layer",
            "source_head",
            "component",
            "target_layer",
            "target_head",
            "kind",
            "score",
            "z",
            "p_adjusted",
        ),
        "heads": ("layer", "head", "in_strength", "out_strength"),
        "components": ("source_layer", "source_head", "component", "target_layer", "target_head", "kind", "score", "z"),
        "ablation": (
            "task",
            "target_layer",
            "target_head",
            "channels",
            "component",
            "ablation",
            "metric",
            "value",
            "ci_low",
            "ci_high",
        ),
        "sweep": ("task", "scale", "size", "split", "metric", "value", "ci_low", "ci_high"),
        "inputs": ("row", "ids", "target", "others", "answer_id", "wrong_ids", "split"),
    },
    bibtex=BIBTEX,
    data=DataSpec(required=COLUMNS, columns=MORE_COLUMNS, what="tasks", default=ENGLISH, for_model=own_tasks),
    validate=validate,
    before_loading="probes.talking_heads.before_loading:check",
    figures="probes.talking_heads.figures:figures",
    estimate=estimate,
    example=example,
    example_models=("organism",),
    leaves={"channels_*.json": "channels that are cut, for --edit"},
    needs=("tokenizer", "attention_rows", "attention_edits", "heads_add_up", "stream_adds_up"),
    version=2,
    head_scores={
        "heads": ("out_strength", "in_strength", "in_q_strength", "in_k_strength", "in_v_strength"),
    },
    head_links={"channels": ("z", "is_channel")},
    keys={
        "channels": ("source_layer", "source_head", "component", "target_layer", "target_head", "kind"),
        "heads": ("layer", "head"),
        "components": ("source_layer", "source_head", "component", "target_layer", "target_head", "kind"),
        "ablation": ("task", "target_layer", "target_head", "channels", "ablation", "metric"),
        "sweep": ("task", "scale", "size", "split", "metric"),
        "inputs": ("row",),
    },
)
def run(model, config: Config, context: Context) -> Result:
    """Score every component of every head against all later readers, then cut the strongest channels into the heads
    that do each task. Heads are query heads.

    Raises InputError for a model of one layer, for receivers that it does not have, and for an architecture whose head
    weights cannot be read."""
    from probes.talking_heads import ablation, scan
    from probes.talking_heads.summary import summary_of_ablation, summary_of_scan
    from probes.talking_heads.sweep import SCHEMA as SWEPT
    from probes.talking_heads.tasks import all_prompts, halves, input_table

    check_engine(context)
    if model.n_layers < 2:
        raise InputError(f"{model.name} has one layer, so no head comes before another.")
    model.check_heads(config.chosen_receivers or ())
    if context.edits:
        context.warn("Edits act on the prompts of the tasks; the scores of channels are of the weights as they are.")
    prompts = all_prompts(model, config, context)
    tasks = {task: [p for p in prompts if p.task == task] for task in dict.fromkeys(p.task for p in prompts)}
    chooses = halves(prompts, context)
    fed = {f"task {task}": float(sum(len(p.ids) for p in own)) for task, own in tasks.items()}
    stage = context.stages({"weights": 0.05 * sum(fed.values()), **fed})
    with stage("weights"):
        weights = scan.read_weights(model, config, context)
        found = context.part("scan", lambda: scan.scan(weights, config, context, model.device))
    channels = found["channels"]
    summary = summary_of_scan(channels, found["tests"], weights, config)
    ablated, swept = [pl.DataFrame(schema=ablation.SCHEMA)], [pl.DataFrame(schema=SWEPT)]
    for task, own in tasks.items():
        mine = [c for c, p in zip(chooses, prompts) if p.task == task]
        with stage(f"task {task}"):
            tables, said = _task(model, weights, channels, own, mine, config, context)
        ablated.append(tables[0])
        swept.append(tables[1])
        summary |= said
    if config.sweep not in ("none", *tasks):
        context.warn(f"There is no task '{config.sweep}' in this run, so no channel was scaled on it (key 'sweep').")
    table = ablation.adjusted(pl.concat(ablated))
    summary |= summary_of_ablation(table)
    tables = {
        "channels": channels,
        "heads": found["heads"],
        "components": found["components"],
        "ablation": table,
        "sweep": pl.concat(swept),
        "inputs": input_table(prompts, chooses),
    }
    return Result(tables, {"pair_scores": found["pair_scores"]}, summary)


def _task(model, weights, channels: pl.DataFrame, own: list, chooses: list[bool], config: Config, context: Context):
    """The tables `ablation` and `sweep` of one task, and what its sweep says."""
    from probes.talking_heads import ablation
    from probes.talking_heads.channel_edits import removed, save_channels
    from probes.talking_heads.measures import measure
    from probes.talking_heads.summary import summary_of_sweep
    from probes.talking_heads.sweep import SCHEMA as SWEPT
    from probes.talking_heads.sweep import sweep
    from workbench.engine.passes import Pass

    task = own[0].task
    empty = (pl.DataFrame(schema=ablation.SCHEMA), pl.DataFrame(schema=SWEPT))
    choosing = [p for p, c in zip(own, chooses) if c]
    measured = [p for p, c in zip(own, chooses) if not c]
    if not choosing:
        context.warn(f"The task '{task}' has one group of prompts, none left to choose heads by, so it was left out.")
        return empty, {}
    run = Pass(edits=context.edits, max_tokens=config.max_tokens, check=context.check)
    first = measure(model, choosing, range(1, model.n_layers), context, run)
    parts = []
    chosen = []
    with context.stretch(0, 0.95):
        for layer, head in context.each(ablation.receivers_of(first, config)):
            sets = ablation.channels_into(channels, (layer, head), config)
            chosen.append(((layer, head), sets))

            def compute(receiver=(layer, head), sets=sets) -> dict:
                table = ablation.ablate(model, weights, measured, choosing, receiver, sets, config, context, run)
                return {"ablation": table}

            parts.append(context.part(f"ablation {task} {layer}.{head}", compute)["ablation"])
    said, table = {}, empty[1]
    receiver, sets = chosen[0]
    strongest = None if not sets else sets[-1] if len(sets[-1].channels) > 1 else sets[0]
    if strongest is not None:
        note = (
            f"talking-heads, task {task}: {strongest.in_words}, read by {receiver[0]}.{receiver[1]}, removed from the "
            f"weights"
        )
        save_channels(model, context, task, removed(weights, strongest.channels), note)
    if task == config.sweep and strongest is not None:

        def scales() -> dict:
            return sweep(model, weights, own, chooses, receiver, strongest, config, context, run)

        with context.stretch(0.95, 1):
            found = context.part(f"sweep {task}", scales)
        table, said = found["sweep"], summary_of_sweep(found["gain"])
    return (pl.concat(parts), table), said
