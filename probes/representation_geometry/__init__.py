"""Representation geometry: how many dimensions do the representations use, in which layer and at which point of
training?

Li et al., Tracing the Representation Geometry of Language Models from Pretraining to Post-training (arXiv 2509.23024).
The last token's state of every sequence is a sample; the eigenvalues of the samples' covariance give RankMe (exp of
their entropy) and alpha (the exponent of their power law). Over checkpoints, RankMe falls (warm-up), rises
(entropy-seeking) and falls again (compression-seeking).

Where definitions differ, both are given. `rankme`: covariance eigenvalues, centred (this paper). `rankme_singular`:
singular values of the uncentred features with 1e-7 added (Garrido et al., arXiv 2210.02885). `rankme_code`: as the
official code computes the first, that is from the 2048 largest eigenvalues with 1e-7 added. alpha is the official
weighted fit over ranks 12 to 100. The last layer is read after the final norm (`final=norm`, what `hidden_states[-1]`
is in Hugging Face), the others are block outputs. Deviations: the full spectrum in float64, never a truncated one; the
last token is found whatever the padding; intervals, the finite-sample curve, the values at infinitely many texts, and
the null (`rankme_null`, `alpha_null`: white Gaussian features of the same number and width) are additions. The paper
does not say where eigen-directions are removed: here from the final norm's states h, as h - VᵀVh or VᵀVh, before the
unembedding. Features are streamed; memory grows with width² per layer, not with the number of samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from probes.representation_geometry import n_grams
from probes.representation_geometry.ablation import loss_tables
from probes.representation_geometry.config import BIBTEX, Config, validate
from probes.representation_geometry.estimate import estimate
from probes.representation_geometry.features import FINAL, Checkpoint
from probes.representation_geometry.layer_spectra import layer_tables, measure, null_of
from probes.representation_geometry.maps import map_table
from probes.representation_geometry.measured_texts import measured_texts
from probes.representation_geometry.shape_tables import ESTIMATES, STATES, shape_tables, similarity_table
from probes.representation_geometry.summary import summary_of
from probes.representation_geometry.trajectory import check_task_steps, correlation_table, phase_table
from workbench import organisms
from workbench.core.context import Context, Result
from workbench.core.long_rows import counted_rows
from workbench.core.registry import DataSpec, probe
from workbench.core.sample_tables import with_texts
from workbench.core.sinks import counted_sinks
from workbench.engine.evaluation import Question, encode_choices
from workbench.models import checkpoints
from workbench.models.model_outline import Facts

SPECTRUM, NUMBERS, LOSSES, MAPS = 2.0, 1.0, 1.1, 1.0  # what a layer, a layer, a variant and a map take, about
WEIGHTS = "weights"  # of a checkpoint's part: the fingerprint of what it was measured on; in no table of the run


def example(model: Facts) -> dict[str, object]:
    """All layers of a few texts; of the organism at every checkpoint of its training. A model that is too narrow for
    the paper's fit is fitted over the ranks that it has."""
    values: dict[str, object] = {"layers": "all", "limit": 300, "ablate": (4, 16)}
    if model.name == "organism":
        values["checkpoints"] = ("organism@*",)
    last = Config().fit_range[1]
    if 0 < model.width <= last and not model.is_organism:
        values["fit_range"] = (max(1, model.width // 8), max(2, 3 * model.width // 4))
    return values


@probe(
    "representation-geometry",
    title="Representation geometry",
    version=2,
    summary="How many dimensions representations use (RankMe, alpha-ReQ), over layers and over training.",
    tables={
        "layers": (
            "checkpoint",
            "step",
            "layer",
            "rankme",
            "rankme_singular",
            "alpha",
            "alpha_r2",
            "n",
            "d",
            "ci_low",
            "ci_high",
            "rankme_inf",
            "alpha_inf",
            "rankme_null",
            "alpha_null",
        ),
        "spectrum": ("checkpoint", "layer", "rank", "eigenvalue"),
        "phases": ("number", "phase", "start_step", "end_step"),
        "checkpoints": ("checkpoint", "step", "loss", "loss_low", "loss_high", "memorisation"),
        "curve": ("checkpoint", "layer", "n", "rankme"),
        "ablation": ("checkpoint", "step", "k", "directions", "draw", "loss", "accuracy"),
        "correlation": ("measure", "against", "method", "value", "low", "high", "n"),
        "map": ("checkpoint", "layer", "method", "row", "x", "y", "text"),
        "dimension": ("checkpoint", "step", "layer", *ESTIMATES, "k", "n", "duplicates"),
        "cosine": ("checkpoint", "step", "layer", "cosine", "cosine_null", "centred", "centred_null", "n"),
        "curvature": ("checkpoint", "step", "layer", "curvature", "shuffled_states", "shuffled_tokens", "n", "angles"),
        "similarity": ("checkpoint_a", "checkpoint_b", "layer_a", "layer_b", "value", "low", "high", "null", "n"),
        "inputs": ("row", "ids"),
    },
    bibtex=BIBTEX,
    data=DataSpec(
        required=("text",),
        what="text",
        default="probes.representation_geometry:material/passages.jsonl",
        for_model=organisms.world("texts.jsonl"),
    ),
    validate=validate,
    before_loading="probes.representation_geometry.before_loading:check",
    figures="probes.representation_geometry.figures:figures",
    estimate=estimate,
    example=example,
    example_models=("organism",),
    needs=("tokenizer",),
    layer_curves={"layers": ("rankme", "alpha")},
    keys={
        "layers": ("checkpoint", "layer"),
        "spectrum": ("checkpoint", "layer", "rank"),
        "checkpoints": ("checkpoint",),
        "phases": ("number",),
        "curve": ("checkpoint", "layer", "n"),
        "ablation": ("checkpoint", "k", "directions", "draw"),
        "correlation": ("measure", "against", "method"),
        "map": ("checkpoint", "layer", "method", "row"),
        "dimension": ("checkpoint", "layer"),
        "cosine": ("checkpoint", "layer"),
        "curvature": ("checkpoint", "layer"),
        "similarity": ("checkpoint_a", "checkpoint_b", "layer_a", "layer_b"),
        "inputs": ("row",),
    },
)
def run(model, config: Config, context: Context) -> Result:
    """Spectra of every checkpoint and layer, with what depends on them.

    Layers count from 0. Raises InputError for texts that are all too short, checkpoints that differ in tokenizer or
    shape, and NaN."""
    texts = measured_texts(model, config, context)
    ids = texts.ids
    counted = None
    if config.ngram and config.loss_rows:
        asked, words = ids[: config.loss_rows], texts.words[: config.loss_rows]
        counted = n_grams.in_text(model, config.ngram, asked, words, order=config.ngram_order)
    questions = encode_choices(model, config.choices) if config.choices else []
    found_at = checkpoints.find(model, config.checkpoints)
    if config.task:
        check_task_steps(config.task, [step for _, step, _ in found_at], context)
    null = null_of(model, len(ids), config, context)
    found: dict[str, list[pl.DataFrame]] = {}
    weights: list[tuple[str, str]] = []
    last_layers: list[tuple[tuple[str, int | None, int], torch.Tensor]] = []
    numbered = list(enumerate(found_at))
    maps_too = [1.0] * (len(numbered) - 1) + [1.0 + MAPS * len(config.map)]  # of the last checkpoint
    for number, (name, step, load) in context.each(
        numbered, maps_too, title=lambda number, item: f"checkpoint {number} of {len(numbered)}, {item[1][0]}"
    ):
        maps = config.map if number == len(found_at) - 1 else ()

        def compute(name=name, step=step, load=load, maps=maps) -> dict[str, pl.DataFrame | np.ndarray]:
            checkpoint = Checkpoint(name, step, load(), texts, config, context)
            known = pl.DataFrame({"fingerprint": [checkpoint.model.fingerprint]})
            if twin := checkpoints.same_weights([*weights, (name, checkpoint.model.fingerprint)]):
                context.warn(twin)
            return _study(checkpoint, null, counted, questions, maps) | {WEIGHTS: known}

        part = context.part(f"checkpoint {name}", compute)
        if (known := part.pop(WEIGHTS, None)) is not None:
            weights.append((name, known["fingerprint"][0]))
        if (states := part.pop(STATES, None)) is not None:
            last_layers.append(((name, step, model.n_layers - 1), torch.from_numpy(states)))
        for table, rows in part.items():
            found.setdefault(table, []).append(rows)
    tables = {name: pl.concat(each).with_columns(pl.selectors.float().fill_nan(None)) for name, each in found.items()}
    tables["map"] = with_texts(tables["map"], texts.rows, texts.words or [])
    tables["similarity"] = pl.concat([tables["similarity"], similarity_table(last_layers, config, context)])
    tables["phases"] = phase_table(tables["layers"], context)
    tables["correlation"] = correlation_table(tables, config.task, context)
    tables["inputs"] = pl.DataFrame({"row": texts.rows, "ids": ids}, schema={"row": pl.Int64, "ids": pl.List(pl.Int64)})
    return Result(tables, {}, summary_of(tables, counted) | counted_rows(context) | counted_sinks(context))


def _study(
    checkpoint: Checkpoint,
    null: dict[str, float],
    counted: n_grams.Counted | None,
    questions: Sequence[Question],
    maps: Sequence[str],
) -> dict[str, pl.DataFrame | np.ndarray]:
    """Tables of one checkpoint: spectra of its layers, loss, ablations, memorisation, maps."""
    config, context = checkpoint.config, checkpoint.context
    layers = len(checkpoint.layers())
    stage = context.stages(
        {
            "spectra": SPECTRUM * layers,
            "numbers of layers": NUMBERS * layers,
            "losses": LOSSES * (1 + 4 * len(config.ablate)) if config.loss_rows else 0,
            "maps": MAPS * len(maps) * 10,
            "shapes": 2.0 * layers * len(config.also),
        }
    )
    with stage("spectra"):
        found = measure(checkpoint)
    last_layer = checkpoint.layers()[checkpoint.model.n_layers - 1]
    with stage("numbers of layers"):
        tables: dict[str, pl.DataFrame | np.ndarray] = {**layer_tables(checkpoint, found, null)}
    with stage("losses"):
        tables |= loss_tables(checkpoint, found[FINAL].whole, counted, questions)
    with stage("maps"):
        tables["map"] = map_table(checkpoint, found[last_layer].whole, maps)
    with stage("shapes"):
        return tables | shape_tables(checkpoint)
