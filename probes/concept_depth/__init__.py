"""Concept depth: at which layer does a concept become linearly readable, and does the model use what the probe reads?

Jin et al., Exploring Concept Depth: How Large Language Models Acquire Knowledge (and Concepts) at Different Layers?
(arXiv 2404.07066). A logistic regression per layer reads the class of a text from the state of its last token; the
course of the test accuracy over layers gives the jump point (first step of at least 10 %) and the converging point. All
layers come from one batched pass, and all their probes from one solver that converges to the unique optimum, which the
official code (100 iterations of lbfgs) often does not reach.

Where paper and code differ, both are offered: `split=paper` (80/20, classes in proportion) or `split=code` (60/40,
random_state 42, the classes listed in the official order); `noise=paper` (before the prompt, with a space) or
`noise=code` (glued to the question, which is then framed). `site=mlp_in` is what the code hooks in Llama: the
normalised input of the MLP, found by its role, not by the module's name. The converging point is given as written and
in the two readings that fit the paper's figures. `template=file` asks what the paper says of each set, `template=code`
what the released `main.py` asks of all of them. Deviations: sets with groups, or with near-identical rows, are split by
group (the paper's pairs of true and false statements leak across a random split); labels are the file's (1 = true,
positive, yes), so the code's F1 is `f1_class0` for the sets where it counts true as class 0; `int8` rounds the weights
only, per output row, where the paper's 8 bits are LLM.int8(), which rounds activations too; not offered is the code's
alternative classifier (`--clf RF`, a random forest); intervals, shuffled-label control, selectivity, the false-positive
rate of the jump rule and the causal check are additions. Intervals resample test rows (or groups); probes are not
refitted. The causal check edits one site of one layer at one token, with the probe of the first fold: that an answer
changes says that the model uses the direction there; that it does not says little, least of all at `mlp_in`, past which
the residual stream carries the same information.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import polars as pl

from probes.concept_depth.chosen_sets import material, validate
from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.config import BIBTEX, Config
from probes.concept_depth.estimate import estimate
from probes.concept_depth.fed_sets import conditions_of, sets_of, write
from probes.concept_depth.set_tables import NULLABLE, inputs_table, set_row
from probes.concept_depth.short_run import example
from probes.concept_depth.summary import left_out, summary_of
from probes.concept_depth.written_texts import WrittenTexts
from workbench import organisms
from workbench.core.context import Context, Result
from workbench.core.long_rows import counted_rows
from workbench.core.registry import DataSpec, probe
from workbench.core.sinks import counted_sinks


@probe(
    "concept-depth",
    title="Concept depth",
    summary="At which layer a concept becomes linearly readable, and whether the model uses what the probe reads.",
    tables={
        "layers": (
            "dataset",
            "condition",
            "layer",
            "accuracy",
            "f1",
            "auc",
            "ci_low",
            "ci_high",
            "balanced_accuracy",
            "majority_rate",
            "control_accuracy",
            "above_shuffled",
            "p_adjusted",
            "above_chance",
            "selectivity",
        ),
        "depth": (
            "dataset",
            "condition",
            "jump",
            "converge_literal",
            "converge_stable",
            "converge_after_jump",
            "peak_accuracy",
            "peak_layer",
        ),
        "classes": ("dataset", "condition", "layer", "class", "label", "recall", "ci_low", "ci_high", "control_recall"),
        "numbers": (
            "dataset",
            "condition",
            "layer",
            "r2",
            "r2_low",
            "r2_high",
            "spearman",
            "control_r2",
            "p_adjusted",
            "above_chance",
        ),
        "number_depth": ("dataset", "condition", "onset", "half_way", "nine_tenths", "peak_r2", "peak_layer"),
        "inputs": ("row", "ids", "dataset", "condition", "label", "split"),
        "causal": (
            "dataset",
            "condition",
            "layer",
            "direction",
            "draw",
            "answer_accuracy",
            "separation",
            "removed_variance",
        ),
        "steering": (
            "dataset",
            "condition",
            "layer",
            "strength",
            "direction",
            "draw",
            "log_odds",
            "probability",
            "excess",
            "p_adjusted",
        ),
        "controls": ("dataset", "condition", "draw", "jump", "peak_accuracy"),
        "path": ("dataset", "condition", "c", "layer", "accuracy"),
        "transfer": ("train", "test", "layer", "picked", "accuracy", "auc", "control_auc", "above_chance"),
        "sets": ("dataset", "difficulty", "n", "class0", "class1", "n_class1", "n_classes", "groups", "split_by_group"),
    },
    bibtex=BIBTEX,
    data=DataSpec(
        required=("text", "label"),
        columns=("group", "answer"),
        what="concept",
        default="probes.concept_depth:material",
        for_model=organisms.world("concepts"),
        folder=True,
    ),
    material=material,
    validate=validate,
    before_loading="probes.concept_depth.before_loading:check",
    figures="probes.concept_depth.figures:figures",
    figures_of_several="probes.concept_depth.figures:compare",
    estimate=estimate,
    example=example,
    example_models=("organism",),
    needs=("tokenizer",),
    layer_curves={"layers": ("accuracy", "selectivity")},
    leaves={"directions.safetensors": "the directions that the probes read, a set and a layer each"},
    version=4,
    keys={
        "layers": ("dataset", "condition", "layer"),
        "depth": ("dataset", "condition"),
        "classes": ("dataset", "condition", "layer", "class"),
        "numbers": ("dataset", "condition", "layer"),
        "number_depth": ("dataset", "condition"),
        "inputs": ("row",),
        "sets": ("dataset",),
        "causal": ("dataset", "condition", "layer", "direction", "draw"),
        "steering": ("dataset", "condition", "layer", "strength", "direction", "draw"),
        "controls": ("dataset", "condition", "draw"),
        "path": ("dataset", "condition", "c", "layer"),
        "transfer": ("train", "test", "layer"),
    },
)
def run(model, config: Config, context: Context) -> Result:
    """Probe every layer for every concept set under every condition.

    Layers count from 0; points are relative depths i/d. Raises InputError for texts beyond the context and for NaN
    activations."""
    from probes.concept_depth.directions import save_directions
    from probes.concept_depth.number_study import number_study
    from probes.concept_depth.study import study

    sets, splits = sets_of(model, config, context)
    pairs = [concept for concept in sets if len(concept.classes) == 2]
    conditions = conditions_of(config)
    found: dict[str, list[pl.DataFrame]] = {}
    inputs: list[pl.DataFrame] = []
    learned: dict[tuple[str, str], np.ndarray] = {}
    whole: dict[str, np.ndarray] = {}
    texts_of: dict[str, WrittenTexts] = {}
    subjects = {name: cache(partial(_subject, model, precision, context)) for name, _, precision in conditions}
    work = [(condition, noise, concept) for condition, noise, _ in conditions for concept in sets]
    sizes = [_size(concept) for *_, concept in work]
    stage = context.stages({"concept sets": sum(sizes), "transfer": _pairs(config, sets)})
    with stage("concept sets"):
        for condition, noise, concept in context.each(
            work,
            sizes,
            title=lambda number, item: f"{number} of {len(work)} ({item[2].name})",
        ):
            written = write(model, concept, noise, config, context)
            inputs.append(
                inputs_table(concept, condition, written.ids, splits[concept.name][0], start=sum(map(len, inputs)))
            )
            measure = study if concept.classes else number_study
            asked = (subjects[condition], concept, condition, written, splits[concept.name], config, context)
            for name, part in context.part(f"{condition} {concept.name}", partial(measure, *asked)).items():
                if name == "coefficients":
                    learned[concept.name, condition] = part
                elif name == "fitted_on_all":
                    if part.size:
                        whole[concept.name], texts_of[concept.name] = part, written
                else:
                    found.setdefault(name, []).append(part)
    # a point that a curve does not have is missing, not a number
    tables = {name: pl.concat(same).with_columns(pl.selectors.float().fill_nan(None)) for name, same in found.items()}
    tables["inputs"] = pl.concat(inputs)
    with stage("transfer"):
        tables["transfer"] = _transfer(model, pairs, whole, texts_of, tables["depth"], config, context)
    described = [set_row(concept, splits[concept.name][1]) for concept in sets]
    tables["sets"] = pl.DataFrame(described, schema_overrides=NULLABLE)
    if context.out is not None:
        save_directions(context.out, learned, sets, config, model)
    return Result(
        tables, {}, summary_of(tables, left_out(sets, config)) | counted_rows(context) | counted_sinks(context)
    )


def _size(concept: ConceptSet) -> float:
    """What measuring a set takes beside others: a share for each set, and one for each text."""
    return 50.0 + len(concept)


def _pairs(config: Config, sets: Sequence[ConceptSet]) -> float:
    """What transfer takes beside the sets: every set once more, without its shuffles."""
    return 0.05 * sum(map(_size, sets)) if config.transfer else 0.0


def _transfer(
    model,
    sets: Sequence[ConceptSet],
    whole: dict[str, np.ndarray],
    texts_of: dict[str, WrittenTexts],
    depth: pl.DataFrame,
    config: Config,
    context: Context,
) -> pl.DataFrame:
    """Probes of every set on every other one, in the clean condition; empty where that is not asked for."""
    from probes.concept_depth.layer_features import layer_features
    from probes.concept_depth.transfer import TRANSFER, transfer_table

    if not config.transfer:
        return pl.DataFrame(schema=TRANSFER)

    def work() -> pl.DataFrame:
        def features_of(concept: ConceptSet):
            context.check()
            return layer_features(model, concept, texts_of[concept.name], config, context, again=True)

        best = dict(depth.filter(condition="clean").select("dataset", "peak_layer").iter_rows())
        return transfer_table(
            sets, whole, best, features_of, draws=config.draws, rng=lambda pair: context.rng(f"transfer to {pair}")
        )

    found = context.part("transfer", lambda: {"transfer": work()})["transfer"]
    return found.with_columns(pl.selectors.float().fill_nan(None))


def _subject(model, precision: str | None, context: Context):
    from probes.concept_depth.precision import in_precision

    return model if precision is None else in_precision(model, precision, context)
