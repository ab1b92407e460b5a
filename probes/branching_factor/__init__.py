"""Branching factor: how many next steps a model really considers while it generates (Yang & Holtzman, arXiv
2506.17871).

For every prompt, M continuations are sampled from the truncated distribution (nucleus 0.9, temperature 1). BF is exp of
its mean entropy per step: exp per prompt first, mean over prompts after. Statistics come from all scores of every step,
computed on the device; the official code sees the 50 likeliest tokens only (`estimator=compat` reports what it would).

Deviations from the official code, all of them named in the tables: exact entropies instead of top-50; the entropy
estimator at every length instead of a switch to the likelihood after 50 tokens; all samples instead of the survivors;
the nucleus edge has a margin of 1e-6; a sample's EOS token is one of its steps (as there). `bf` is corrected for the
bias that exp of a mean over few samples has (probes.branching_factor.estimators); `bias=plain` and the columns
bf_entropy, bf_nll and bf_compat are the paper's and the code's own, uncorrected.

Studies (`study=`): pair, complexity, nudging, resampling, decoding, verbalised, hyperfitted, random_prefix, feedback,
sentences; each is one function that probes.branching_factor.studies names.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from probes.branching_factor.before_loading import check_engine, prompts_of
from probes.branching_factor.branching_samples import frame
from probes.branching_factor.condition_tables import comparison_row, condition_tables
from probes.branching_factor.conditions import Lab
from probes.branching_factor.config import BIBTEX, Config, validate
from probes.branching_factor.estimate import conditions_of, estimate
from probes.branching_factor.forking import forking_tables
from probes.branching_factor.studies import STUDY
from probes.branching_factor.summary import summary_of
from workbench import organisms
from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.long_rows import counted_rows
from workbench.core.registry import DataSpec, probe
from workbench.core.tables import read_table
from workbench.models.loading import load
from workbench.models.model import Model
from workbench.models.model_outline import Facts

ENGLISH = Path(__file__).parent / "material" / "english.jsonl"
KINDS = 5  # of the English prompts: story, fact, opinion, instruction, random letters
CHAT = 64  # tokens that a chat template is taken to put around a prompt
FEW = 4  # tokens that a short run must have room to write


def example(model: Facts) -> dict[str, object]:
    """Few samples of few prompts: of the English ones, whose kinds take turns, two of each, and as many more as it
    takes for so many to fit into a short context. Raises InputError where none fits."""
    values: dict[str, object] = {"samples": 8, "max_new_tokens": 24}
    if model.is_organism:
        return values | {"max_prompts": 4}
    prompts = read_table(ENGLISH, required=("prompt",), what="prompts")["prompt"].to_list()
    lengths = [length + CHAT * model.chat for length in model.lengths(prompts)]
    fit = [n for n, length in enumerate(lengths) if model.fits(length + FEW)]
    if not fit:
        raise InputError(
            f"The context of {model.name} ({model.context} tokens) holds none of the prompts that ship and {FEW} "
            f"tokens more (the shortest has {min(lengths)}); give shorter ones with --data."
        )
    last = fit[: 2 * KINDS][-1] + 1
    skip = {} if all(map(model.fits, lengths[:last])) else {"long": "skip"}
    return values | {"max_prompts": max(last, 2 * KINDS)} | skip


@probe(
    "branching-factor",
    title="Branching factor",
    version=2,
    summary="How many next steps the model really considers while it generates, along the output and against a second "
    "model.",
    tables={
        "prompts": (
            "condition",
            "row",
            "prompt",
            "bf",
            "bf_entropy",
            "bf_nll",
            "ci_low",
            "ci_high",
            "samples",
            "mean_length",
        ),
        "positions": (
            "condition",
            "position",
            "bf_prefix",
            "bf_window",
            "bf_cohort",
            "prompts",
            "entropy",
            "alive",
        ),
        "samples": ("condition", "row", "prompt", "sample", "text", "length", "nll", "entropy", "generated_ids"),
        "inputs": ("row", "condition", "prompt", "ids"),
        "conditions": ("condition", "bf", "ci_low", "ci_high"),
        "enough": ("condition", "samples", "bf", "sd", "ci_low", "ci_high"),
        "tree": ("prompt", "node", "parent", "depth", "text", "count", "probability", "bf"),
        "segments": (
            "condition",
            "row",
            "prompt",
            "segment",
            "bf",
            "ci_low",
            "ci_high",
            "samples",
            "mean_length",
        ),
    },
    bibtex=BIBTEX,
    data=DataSpec(
        required=("prompt",),
        columns=("answer", "messages"),
        what="prompts",
        default="probes.branching_factor:material/english.jsonl",
        for_model=organisms.world("prompts.jsonl"),
    ),
    validate=validate,
    before_loading="probes.branching_factor.before_loading:check",
    figures="probes.branching_factor.figures:figures",
    figures_of_several="probes.branching_factor.figures:compare",
    comparable="probes.branching_factor.two_runs:comparable",
    estimate=estimate,
    example=example,
    example_models=("organism",),
    needs=("tokenizer",),
    keys={
        "prompts": ("condition", "row", "prompt"),
        "positions": ("condition", "position"),
        "samples": ("condition", "row", "prompt", "sample"),
        "inputs": ("row", "condition", "prompt"),
        "conditions": ("condition",),
        "enough": ("condition", "samples"),
        "segments": ("condition", "row", "prompt", "segment"),
        "segment_means": ("condition", "segment"),
        "complexity": ("condition",),
        "nudging": ("condition",),
        "signature": ("condition",),
        "resampling": ("position",),
        "verbalised": ("prompt",),
        "random_prefix": ("offset", "inserted"),
        "feedback": ("feedback",),
        "sentence_importance": ("prompt", "sample", "sentence"),
        "sentence_means": ("sentence",),
        "forking": ("condition",),
        "forking_tokens": ("condition", "token", "id"),
    },
    imports={"branching-factor curves, a table of position and bf": "probes.branching_factor.published:read"},
)
def run(model: Model, config: Config, context: Context) -> Result:
    """Sample every condition of the study, measure the branching factor of each, and compare pairs of them.

    Raises InputError for prompts, templates and edits that do not fit the model and the sampler."""
    check_engine(config, context)
    prompts = prompts_of(config, context)
    other = load(config.compare, dtype=model.dtype, device=model.device) if config.compare else None
    if other is not None:
        other.day = model.day  # both are asked on the same day, where their templates print it
    lab = Lab(model, config, context, prompts, other, expected=prompts.height * conditions_of(config))
    stage = context.stages(stage_weights(model, config, lab))
    try:
        with stage("samples"):
            found, pairs, tables = STUDY[config.study](lab)
    finally:
        lab.close()

    with stage("tables"):
        tables |= condition_tables(found, config, context)
    tables |= forking_tables(found, config.forking) if config.forking else {}
    tables = {name: t.with_columns(pl.selectors.by_dtype(pl.Null).cast(pl.Float64)) for name, t in tables.items()}
    if pairs:
        by_name = {measured.condition.name: measured for measured in found}
        rows = [comparison_row(by_name[a], by_name[b], config) for a, b in pairs]
        tables["comparisons"] = frame({key: [row[key] for row in rows] for key in rows[0]})
    _warn_of_tokenizers(tables["conditions"], context)
    return Result(tables=tables, summary=summary_of(tables, config) | counted_rows(context))


def stage_weights(model: Model, config: Config, lab: Lab) -> dict[str, float]:
    """What sampling and its tables take beside each other: about the seconds on one CPU core, of a step of the model
    whatever the batch, of every token, and of every prompt in the tables."""
    tokens = lab.expected * config.samples * config.max_new_tokens
    steps = config.max_new_tokens * max(1, lab.parts)
    return {
        "samples": steps * model.n_layers * 0.002 + tokens * 24 * model.n_layers * model.width**2 / 1e10,
        "tables": 0.2 + 0.02 * lab.expected,
    }


def _warn_of_tokenizers(conditions: pl.DataFrame, context: Context) -> None:
    if conditions["tokenizer"].n_unique() > 1:
        names = " and ".join(Path(name).name for name in conditions["model"].unique(maintain_order=True))
        context.warn(
            f"{names} cut text into different tokens, so their branching factors, which are per token, cannot be "
            f"compared; compare nats per byte."
        )
