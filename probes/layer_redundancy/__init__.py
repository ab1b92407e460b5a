"""Layer redundancy: which attention layers, MLPs and blocks hardly turn the residual stream, and what is lost without
them?

He, Sun, Shen, Li, Uncovering the Redundancy in Transformers via a Unified Study of Layer Dropping (arXiv 2406.15786,
What Matters in Transformers?). A module takes the stream x in and leaves y = x + f(Norm(x)); its similarity is the mean
cosine of x and y over the tokens of calibration texts, its importance 1 − similarity. The n modules of highest
similarity are dropped at once, norms with them: attention layers, MLPs, blocks, or attention layers and MLPs sorted
together ("joint").

All similarities come from one pass, in which the stream is kept only until the module that it is compared with has run.
Additions: similarities without first tokens and without sinks, over texts, and on other texts; the similarity that
updates of this length would have in a random direction (`null`); how much a module rescales the stream, which a cosine
cannot see; losses on other texts, beside random modules, the first and the last ones, with intervals; speed as counted
multiply-adds (timed in speed.json). What is dropped is left as files for `--edit` and `export-pruned`.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from probes.layer_redundancy.config import ADDS_UP, BIBTEX, Config, validate
from probes.layer_redundancy.estimate import estimate
from workbench import organisms
from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.long_rows import counted_rows
from workbench.core.registry import DataSpec, probe
from workbench.models.model_outline import Facts


def example(model: Facts) -> dict[str, object]:
    """Few texts and few random sets, every kind of module."""
    values: dict[str, object] = {"limit": 32, "random_draws": 5, "max_length": 64, "timing_rounds": 2}
    return values if model.why_not((ADDS_UP,)) is None else values | {"components": ("block",)}


@probe(
    "layer-redundancy",
    title="Layer redundancy",
    summary="Which attention layers, MLPs and blocks hardly turn the residual stream, and what is lost without them.",
    tables={
        "layers": (
            *("component", "layer", "similarity", "importance", "without_first", "ci_low", "ci_high"),
            *("without_sinks", "text_mean", "null", "norm_change", "scale", "rescales"),
            *("held_out", "held_out_low", "held_out_high", "deciding", "rank", "texts", "tokens"),
        ),
        "dropping": (
            *("component", "n", "order", "loss", "ci_low", "ci_high", "accuracy", "accuracy_low", "accuracy_high"),
            *("choice_accuracy", "choice_low", "choice_high", "speed"),
            *("minus_random", "minus_random_low", "minus_random_high", "random_as_good"),
            *("modules", "draws", "texts", "tokens", "questions"),
        ),
        "draws": ("component", "n", "draw", "modules", "loss", "accuracy", "choice_accuracy", "speed"),
        "inputs": ("row", "split", "ids"),
    },
    bibtex=BIBTEX,
    data=DataSpec(
        required=("text",),
        what="text",
        default="probes.layer_redundancy:material/texts.jsonl",
        for_model=organisms.world("texts.jsonl"),
    ),
    validate=validate,
    before_loading="probes.layer_redundancy.before_loading:check",
    figures="probes.layer_redundancy.figures:figures",
    estimate=estimate,
    example=example,
    example_models=("organism",),
    needs=("tokenizer", "blocks_run_once"),
    leaves={"dropped_*.json": "modules to drop", "speed.json": "speed as it was timed"},
    layer_curves={"layers": ("similarity", "norm_change")},
    keys={
        "layers": ("component", "layer"),
        "dropping": ("component", "n", "order"),
        "draws": ("component", "n", "draw"),
        "inputs": ("row",),
    },
)
def run(model, config: Config, context: Context) -> Result:
    """Measure similarities on one half of the texts, drop modules by them, and measure losses on the other half.

    Layers count from 0. Raises InputError for texts too few or too short, numbers that leave no module, and modules
    that do more than add to the residual stream."""
    from probes.layer_redundancy.before_loading import check_engine
    from probes.layer_redundancy.drop_losses import draw_table, dropping_table, measure_losses
    from probes.layer_redundancy.drop_orders import check_sizes, parts_of, plans
    from probes.layer_redundancy.halves import input_table, read_halves
    from probes.layer_redundancy.module_files import save_plans
    from probes.layer_redundancy.similarities import deciding, layer_table
    from probes.layer_redundancy.speed_file import time_plans
    from probes.layer_redundancy.stream_pairs import measure, pair_of, pass_of
    from probes.layer_redundancy.summary import summary_of
    from workbench.engine.evaluation import encode_choices
    from workbench.models.multiply_adds import multiply_adds

    check_engine(context)
    check_sizes(config, model.n_layers, context.warn)
    halves = read_halves(model, config, context)
    questions = encode_choices(model, config.choices) if config.choices else []
    pairs = [pair_of(model, kind, layer) for kind in parts_of(config) for layer in range(model.n_layers)]
    stage = context.stages(_weights(model, config, halves))

    def sums_of(split: str) -> np.ndarray:
        def compute() -> dict[str, np.ndarray]:
            run = pass_of(model, config.max_tokens, context)
            return {"sums": measure(model, halves[split], pairs, run=run, context=context, label=split)}

        return context.part(f"similarities of the half for {split}", compute)["sums"]

    with stage("similarities"):
        sums = sums_of("similarity")
    with stage("similarities on other texts"):
        others = sums_of("loss")
    layers = layer_table(pairs, sums, others, config)
    scores = {(pair.component, pair.layer): float(x) for pair, x in zip(pairs, deciding(sums, config))}
    if any(np.isnan(list(scores.values()))):
        raise InputError(f"{context.data}: no token is left to measure with tokens={config.tokens}; use tokens=all.")
    with stage("orders"):
        planned = plans(model, scores, halves["similarity"], config, context)
    with stage("losses"):
        found = measure_losses(model, planned, halves["loss"], questions, config.max_tokens, context)
    length = min(config.speed_length, model.context_length or config.speed_length)
    counted = multiply_adds(model, length)
    dropping = dropping_table(planned, found, halves["loss"], counted)
    tables: dict[str, pl.DataFrame] = {
        "layers": layers,
        "dropping": dropping,
        "draws": draw_table(planned, found, counted),
        "inputs": input_table(halves),
    }
    save_plans(model, planned, dropping, context)
    with stage("timed passes"):
        time_plans(model, planned, length, counted, config, context)
    return Result(tables, {}, summary_of(layers, dropping) | counted_rows(context))


def _weights(model, config: Config, halves) -> dict[str, float]:
    """What the stages take beside each other, in tokens that are read; losses have scores over the vocabulary, too."""
    from probes.layer_redundancy.drop_orders import modules_of, sizes

    deciding, judging = (sum(map(len, halves[name].ids)) for name in ("similarity", "loss"))
    sets, again, timed = 1, 0, 1
    for component in config.components:
        wanted = sizes(config, len(modules_of(model, component)))
        sets += len(wanted) * (3 + config.random_draws + len(config.also))
        timed += len(wanted)
        again += max(wanted, default=0) * ("iterative" in config.also)
        again += len(wanted) * ("consecutive" in config.also and component == "block")
    length = min(config.speed_length, model.context_length or config.speed_length)
    return {
        "similarities": 1.5 * deciding,
        "similarities on other texts": 1.5 * judging,
        "orders": 1.5 * again * deciding,
        "losses": 1.2 * sets * judging,
        "timed passes": 1.0 * (config.timing_rounds + 1) * timed * length if config.timing_rounds else 0.0,
    }
