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

from probes.concept_depth.chosen_sets import material, read_sets, validate
from probes.concept_depth.concept_sets import ConceptSet, noisy
from probes.concept_depth.config import BIBTEX, Config
from probes.concept_depth.estimate import estimate
from probes.concept_depth.row_groups import NEAR
from probes.concept_depth.set_splits import Split, near_identical_apart, split, tested_and_fitted_on
from probes.concept_depth.set_tables import NULLABLE, inputs_table, set_row
from probes.concept_depth.short_run import example
from probes.concept_depth.summary import left_out, summary_of
from probes.concept_depth.written_texts import WrittenTexts, style_in, write_texts
from workbench import organisms
from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.long_rows import counted_rows, fitting
from workbench.core.registry import DataSpec, probe
from workbench.core.sinks import counted_sinks
from workbench.models.prompt_style import check_style


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

    if (style := style_in(config)).template != "raw":
        check_style(model, style)
    sets = [_that_fit(model, concept, config, context) for concept in read_sets(config, context.data)]
    pairs = [concept for concept in sets if len(concept.classes) == 2]
    if config.transfer and len(pairs) < 2:
        raise InputError(
            f"There is one set only, '{sets[0].name}', and transfer=true needs two; set transfer=false."
            if len(sets) == 1
            else f"Transfer is between sets of two classes, and {len(pairs)} of {len(sets)} are; set transfer=false."
        )
    splits = _splits(sets, config, context)
    conditions = _conditions(config)
    found: dict[str, list[pl.DataFrame]] = {}
    inputs: list[pl.DataFrame] = []
    learned: dict[tuple[str, str], np.ndarray] = {}
    whole: dict[str, np.ndarray] = {}
    texts_of: dict[str, WrittenTexts] = {}
    for number, (condition, noise, precision) in enumerate(conditions):
        subject = cache(partial(_subject, model, precision, context))  # made only if a set is not measured yet
        for k, concept in enumerate(sets):
            texts = noisy(concept, noise, rng=context.rng(f"noise {concept.name}")) if noise else concept.texts
            written = _write(model, concept, texts, config)
            inputs.append(
                inputs_table(concept, condition, written.ids, splits[concept.name][0], start=sum(map(len, inputs)))
            )
            measure = study if concept.classes else number_study
            work = partial(measure, subject, concept, condition, written, splits[concept.name], config, context)
            for name, part in context.part(f"{condition} {concept.name}", work).items():
                if name == "coefficients":
                    learned[concept.name, condition] = part
                elif name == "fitted_on_all":
                    if part.size:
                        whole[concept.name], texts_of[concept.name] = part, written
                else:
                    found.setdefault(name, []).append(part)
            context.progress(number * len(sets) + k + 1, len(conditions) * len(sets), "concept sets")
    # a point that a curve does not have is missing, not a number
    tables = {name: pl.concat(same).with_columns(pl.selectors.float().fill_nan(None)) for name, same in found.items()}
    tables["inputs"] = pl.concat(inputs)
    tables["transfer"] = _transfer(model, pairs, whole, texts_of, tables["depth"], config, context)
    described = [set_row(concept, splits[concept.name][1]) for concept in sets]
    tables["sets"] = pl.DataFrame(described, schema_overrides=NULLABLE)
    if context.out is not None:
        save_directions(context.out, learned, sets, config, model)
    return Result(
        tables, {}, summary_of(tables, left_out(sets, config)) | counted_rows(context) | counted_sinks(context)
    )


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


# what is read


def _conditions(config: Config) -> list[tuple[str, str | None, str | None]]:
    """Names of the conditions, each with its noise and its precision: the texts and the model as they are come
    first."""
    noise = "paper" if config.noise is True else config.noise
    found = [("clean", None, None), *([("noise", noise, None)] if noise else [])]
    return found + [("int8 weights" if name == "int8" else name, None, name) for name in config.precision]


def _subject(model, precision: str | None, context: Context):
    from probes.concept_depth.precision import in_precision

    return model if precision is None else in_precision(model, precision, context)


def _splits(sets: Sequence[ConceptSet], config: Config, context: Context) -> dict[str, Split]:
    """The split of every set, by its name."""
    options = {"folds": config.folds, "groups": config.groups}
    splits = {c.name: split(c, config.split, rng=context.rng(f"split {c.name}"), **options) for c in sets}
    for concept in sets:
        if seen := tested_and_fitted_on(concept, splits[concept.name][0]):
            context.warn(
                f"{seen} texts of {concept.name} are tested on though the probe was fitted on the same text: "
                f"it may recognise them; remove the repeated rows."
            )
        if apart := near_identical_apart(concept, splits[concept.name][1]):
            like = "say almost the same" if concept.grouped_by == NEAR else f"have the same {concept.grouped_by}"
            context.warn(
                f"{apart} of the {len(concept)} texts of {concept.name} {like} as another and are split by rows: what "
                f"a probe learns of one misleads it about the other, and accuracies may fall below chance; set "
                f"groups=yes."
            )
    return splits


def _that_fit(model, concept: ConceptSet, config: Config, context: Context) -> ConceptSet:
    """The set without the texts that are too long for the model, or as it is where they are cut. Raises InputError for
    one that is too long and may not be, and for cutting where the question stands behind the text."""
    if model.context_length is None:
        return concept
    noises = ("aaa ", "bbb ") if config.noise else ("",)
    written = [write_texts(model, [f"{noise}{text}" for text in concept.texts], config) for noise in noises]
    lengths = [max(map(len, same)) for same in zip(*(texts.ids for texts in written))]
    if config.long == "cut" and max(lengths) > model.context_length:
        if written[0].prompts is not None:
            raise InputError(
                f"The chat template of {model.name} goes on behind the texts of '{concept.name}', where long=cut would "
                f"cut it off; use long=skip, or template=raw."
            )
        if concept.template.partition("{text}")[2]:
            raise InputError(
                f"The set '{concept.name}' asks its question behind the text, where long=cut would cut it off; use "
                f"long=skip, or template=plain."
            )
    kept = fitting(
        lengths,
        model.context_length,
        long=config.long,
        context=context,
        where=lambda row: f"The set '{concept.name}', row {row + 1}: the text",
        what=f"texts of {concept.name}",
    )
    return concept if len(kept) == len(concept) else concept.take(kept)


def _write(model, concept: ConceptSet, texts: Sequence[str], config: Config) -> WrittenTexts:
    """Every text as it is fed. Raises InputError for a text without tokens, and for one that lacks the token."""
    found, token = write_texts(model, texts, config), config.token
    found = WrittenTexts([tokens[: model.context_length] for tokens in found.ids], found.prompts)
    for row, tokens in enumerate(found.ids):
        if not tokens:
            raise InputError(f"The set '{concept.name}', row {row + 1}: the text has no tokens.")
        if isinstance(token, int) and not -len(tokens) <= token < len(tokens):
            raise InputError(
                f"The set '{concept.name}', row {row + 1}: the text has {len(tokens)} tokens, and "
                f"token={token} is beyond them; choose one that every text has."
            )
    return found
