"""Bigram subnetwork: which weights suffice to predict the next token from the present one alone?

Chang and Bergen, Bigram Subnetworks: Mapping to Next Tokens in Transformer Language Models (arXiv 2504.15471). A mask
over single weights of attention and MLP is searched by continuous sparsification, so that with all other weights at
zero the model gives P(next | present token), counted in texts. Embeddings, unembedding, norms and biases are never
masked. What is found is judged on texts that the search did not read, by Pearson's r between the surprisals of the
subnetwork and of the bigrams, beside the full model, its own complement, random masks of the same size in every matrix,
and token frequency.

Deviations. Whether the masks have settled is asked about a hundred times in a search and not at every step. The
learning rate and the growth of β are scaled to `steps`. A search of fewer than 1,000 steps is called unstable by the
last tenth of it, not by its last 100 steps. The covariance similarities and the overlap with an optimal subnetwork are
not computed. Additions: intervals over texts, token frequency as a baseline, the subnetwork without its part in each
layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from probes.bigram_subnetwork.before_loading import check_engine
from probes.bigram_subnetwork.bigrams import count
from probes.bigram_subnetwork.config import BIBTEX, Config, validate
from probes.bigram_subnetwork.estimate import estimate
from probes.bigram_subnetwork.evaluation import evaluation_tables, judge
from probes.bigram_subnetwork.mask_sets import Masks, random_like
from probes.bigram_subnetwork.mask_tables import parameter_table
from probes.bigram_subnetwork.masked_pass import BigramTask
from probes.bigram_subnetwork.rotation import SCHEMA, rotation_rows
from probes.bigram_subnetwork.search import COLUMNS, Searched, run_of, search
from probes.bigram_subnetwork.stretches import FedTexts, inputs_table, texts_of
from probes.bigram_subnetwork.summary import summary_of
from workbench import organisms
from workbench.core.context import Context, Result
from workbench.core.paths import user_path
from workbench.core.registry import DataSpec, probe
from workbench.engine.weight_masks import WeightMask, fit_masks, read_masks, save_masks
from workbench.models.block_weights import block_weights
from workbench.models.model_outline import Facts

FILE = "subnetwork.safetensors"
FEW = 10  # bigrams counted for each token of the vocabulary, below which a warning says so


def example(model: Facts) -> dict[str, object]:
    """A search of a minute at most, of short stretches."""
    short: dict[str, object] = {"steps": 200, "batch": 8, "length": 64, "attempts": 1, "eval_texts": 40}
    return short | {"random_draws": 5, "layer_draws": 1, "limit": 600}


@probe(
    "bigram-subnetwork",
    title="Bigram subnetwork",
    summary="Which weights suffice to predict the next token from the present one alone.",
    tables={
        "evaluation": ("model", "correlation", "ci_low", "ci_high", "loss", "surprisal", "active", "draws", "n"),
        "parameters": ("module", "layer", "kept", "total", "share", "of_subnetwork"),
        "layers": ("layer", "kept", "total", "share", "of_subnetwork", "drop", "drop_low", "drop_high", "drop_random"),
        "search": ("attempt", *COLUMNS, "settled", "stable"),
        "contrasts": ("measure", "contrast", "value", "ci_low", "ci_high", "n"),
        "draws": ("model", "draw", "correlation", "loss", "surprisal"),
        "rotations": tuple(SCHEMA),
        "tokens": ("token", "row", "bigram", "subnetwork", "full"),
        "inputs": ("stretch", "row", "split", "first", "ids"),
    },
    bibtex=BIBTEX,
    data=DataSpec(
        required=("text",),
        what="text",
        # the passages that ship with the project, where they lie: no other probe is imported
        default="probes:representation_geometry/material/passages.jsonl",
        for_model=organisms.world("texts.jsonl"),
    ),
    validate=validate,
    before_loading="probes.bigram_subnetwork.before_loading:check",
    figures="probes.bigram_subnetwork.figures:figures",
    estimate=estimate,
    example=example,
    example_models=("organism",),
    needs=("tokenizer",),
    leaves={FILE: "weight mask"},
    layer_curves={"layers": ("share", "of_subnetwork", "drop")},
    keys={
        "evaluation": ("model",),
        "parameters": ("layer", "module"),
        "layers": ("layer",),
        "search": ("attempt", "step"),
        "contrasts": ("measure", "contrast"),
        "draws": ("model", "draw"),
        "rotations": ("model", "after_blocks"),
        "tokens": ("token",),
        "inputs": ("stretch",),
    },
)
def run(model, config: Config, context: Context) -> Result:
    """Search (or read) a mask, judge it on held-out texts, say where it is.

    Raises InputError for an engine without gradients, a model whose blocks hold other weights than linear maps, texts
    that are too few, and a mask of another model."""
    check_engine(context)
    weights = block_weights(model, for_what="a bigram subnetwork")
    texts = texts_of(model, config, context)
    bigrams = count(texts.counted, min(texts.vocabulary, model.vocab_size))
    if bigrams.pairs < FEW * bigrams.vocabulary:
        context.warn(
            f"Bigrams were counted in {bigrams.pairs:,} pairs, few for a vocabulary of {bigrams.vocabulary:,}: most "
            f"contexts have a handful of next tokens; give a longer text as reference=."
        )
    task = BigramTask.of(model, bigrams, run_of(config, context))
    stage = context.stages(_weights_of_stages(config, texts, model.n_layers))
    searches: list[Searched] = []
    with stage("search"):
        if config.mask:
            masks = _read(config, model, context)
        else:
            masks = _search(task, weights, texts, config, context, searches)
    if context.out is not None:
        save_masks(context.out / FILE, masks, note="bigram subnetwork: the weights that stay", model=model)
    if not any(bool(mask.any()) for mask in masks.values()):
        context.warn("The mask keeps no weight at all: lower the penalty, or search for more steps.")
    with stage("evaluation"):
        judged = judge(task, weights, masks, texts.held_out, config, context)
    tables = evaluation_tables(judged, masks, weights, model.n_layers, config, context)
    with stage("rotation"):
        tables["rotations"] = _rotations(task, masks, texts, config, context)
    tables["parameters"] = parameter_table(masks, weights)
    tables["search"] = _search_table(searches)
    tables["inputs"] = inputs_table(texts)
    return Result(tables, {}, summary_of(tables))


def _weights_of_stages(config: Config, texts: FedTexts, layers: int) -> dict[str, float]:
    """What each stage takes, in passes over a stretch."""
    variants = 3 + 2 * config.random_draws + (layers * (1 + config.layer_draws) if config.layer_ablation else 0)
    return {
        "search": 0.01 if config.mask else 3.0 * config.steps * min(config.batch, len(texts.search)),
        "evaluation": 1.3 * variants * len(texts.held_out),
        "rotation": 3.0 * min(len(texts.search), config.rotation_tokens / config.length) if config.rotation else 0,
    }


def _read(config: Config, model, context: Context) -> Masks:
    saved = read_masks(user_path(config.mask))
    masks = fit_masks(saved.masks, model, where=f"The weight mask {Path(config.mask).name}")
    if warning := saved.mismatch_warning(model):
        context.warn(warning)
    return masks


def _search(task: BigramTask, weights, texts: FedTexts, config: Config, context: Context, searches: list) -> Masks:
    """The mask of the first search whose loss is stable, of at most `attempts`; else of the last."""
    for attempt in range(config.attempts):
        with context.stretch(attempt / config.attempts, (attempt + 1) / config.attempts):
            searches.append(search(task, weights, texts.search, config, context, attempt))
        if searches[-1].stable:
            break
    if not searches[-1].stable:
        context.warn(
            f"The loss of {'the search' if len(searches) == 1 else f'all {len(searches)} searches'} rose and did not "
            f"come back in time: the subnetwork may be worse than one of a slower search (steps)."
        )
    if not searches[-1].settled:
        context.warn(
            f"The masks had not settled after {config.steps} steps; the subnetwork is what was above 0 then. More "
            f"steps or a larger penalty settle them."
        )
    return searches[-1].masks


def _search_table(searches: list[Searched]) -> pl.DataFrame:
    whole = ("step", "active", "undecided")
    schema = {"attempt": pl.Int64} | {name: pl.Int64 if name in whole else pl.Float64 for name in COLUMNS}
    schema |= {"settled": pl.Boolean, "stable": pl.Boolean}
    parts = [
        pl.DataFrame(
            {"attempt": np.full(len(one.rows), number)}
            | {name: one.rows[:, i] for i, name in enumerate(COLUMNS)}
            | {"settled": [one.settled] * len(one.rows), "stable": [one.stable] * len(one.rows)}
        ).cast(schema)  # pyright: ignore[reportArgumentType]
        for number, one in enumerate(searches)
    ]
    found = pl.concat(parts) if parts else pl.DataFrame(schema=schema)
    return found.with_columns(pl.selectors.float().fill_nan(None))


def _rotations(task: BigramTask, masks: Masks, texts: FedTexts, config: Config, context: Context) -> pl.DataFrame:
    """`rotations` of the full model, of the subnetwork and of a random mask of its size."""
    if not config.rotation:
        return pl.DataFrame(schema=SCHEMA)
    made = {
        "full": lambda: [],
        "subnetwork": lambda: [WeightMask.of(masks)],
        "random": lambda: [WeightMask.of(random_like(masks, context.rng("random 0")))],
    }
    parts = []
    for kind, edits in context.each(list(made.items())):
        parts.append(
            context.part(
                f"rotations of {kind}",
                lambda kind=kind, edits=edits: {
                    "rows": rotation_rows(
                        task.model,
                        texts.search,
                        edits(),
                        kind,
                        tokens=config.rotation_tokens,
                        run=task.run,
                        context=context,
                    )
                },
            )["rows"]
        )
    return pl.concat(parts)
