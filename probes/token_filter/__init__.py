"""Token filter: which layer's last query finds the tokens that matter, and does the model still answer from them alone?

Shi et al., Discovering the Gems in Early Layers (GemFilter, arXiv 2409.17422). A needle is put into a haystack and a
question is asked. At one layer r the products of the last query and every key, after their rotation, without 1/√d and
without softmax, are summed over the query heads and averaged over five tokens; the k highest tokens, in the order of
the text, become a prompt of their own, which the whole model reads from scratch. One set serves the whole model. All
layers are scored in one pass: of each only the last query and the keys are needed.

The filter layer is the one that keeps most of the needle, chosen on half of the needles and judged on the other half,
both ways. Answers from the kept tokens stand beside those from all tokens, from as many recent or random ones, and from
the filter's set without the needle's tokens, which is the causal control: what the needle's tokens in the set are for.

Deviations: ties go to the earlier token (the code leaves them to the sort of the device); a layer that attends over a
window is scored on what it sees and never chosen; the second pass has the attention mask of its own tokens, not that of
the original length; the paper fixes r by model (13 of 32 layers of Llama-3.1-8B, 19 of 40 of Mistral-Nemo-12B, 19 of 32
of Phi-3.5-mini: `filter_layer`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.token_filter.before_loading import check_engine, check_layers, validate
from probes.token_filter.config import BIBTEX, COLUMNS, DEFAULT, Config
from probes.token_filter.estimate import estimate, random_sets
from probes.token_filter.short_run import example
from probes.token_filter.trials import FilterTrials, material, read_trials
from workbench.core.context import Context, Result
from workbench.core.registry import DataSpec, probe
from workbench.organisms.needles import own_needles


@probe(
    "token-filter",
    title="Token filter",
    summary="Which layer's last query picks out the tokens that answer a question, and what a model says from them.",
    tables={
        "layers": ("layer", "needle_recall", "answer_kept", "k", "ci_low", "ci_high"),
        "selection": ("row", "layer", "positions", "k"),
        "trials": ("trial", "needle", "length", "depth", "prompt_tokens"),
        "places": ("k", "layer", "length", "depth", "needle_recall"),
        "choice": ("k", "fold", "layer", "recall_choosing", "recall_testing"),
        "answers": ("trial", "arm", "draw", "k", "recall", "response"),
        "rates": ("k", "arm", "recall", "ci_low", "ci_high", "n", "rows"),
        "agreement": ("k", "correlation", "ci_low", "ci_high", "n"),
        "inputs": ("row", "ids", "needle_start", "needle_end"),
    },
    bibtex=BIBTEX,
    data=DataSpec(required=COLUMNS, what="needles", default=DEFAULT, for_model=own_needles, option="needles"),
    material=material,
    validate=validate,
    before_loading="probes.token_filter.before_loading:check",
    figures="probes.token_filter.figures:figures",
    estimate=estimate,
    example=example,
    example_models=("organism",),
    needs=("tokenizer", "attention_rows"),
    layer_curves={"layers": ("needle_recall", "answer_kept", "recall_by_chance", "retrieval_score")},
    keys={
        "layers": ("layer", "k"),
        "selection": ("row", "layer", "k"),
        "trials": ("trial",),
        "places": ("k", "layer", "length", "depth"),
        "choice": ("k", "fold"),
        "answers": ("trial", "arm", "draw", "k"),
        "rates": ("k", "arm"),
        "agreement": ("k",),
        "inputs": ("row",),
    },
    fed={"trials": {"row": "trial"}, "answers": {"row": "trial"}},
)
def run(model, config: Config, context: Context) -> Result:
    """Score the tokens of every prompt at every layer, choose the filter layer on other needles, and answer from the
    kept tokens.

    Raises InputError for needles without their answer, lengths that do not fit the model, and an architecture whose
    queries and keys cannot be read."""
    from probes.token_filter.agreement import agreement_table, layer_scores
    from probes.token_filter.answer_rates import rate_table, warn_of_answers
    from probes.token_filter.answers import answer, asks
    from probes.token_filter.choice import choice_table, choose, spread, usable
    from probes.token_filter.layer_recall import kept_of, layer_table, place_table
    from probes.token_filter.selection import select
    from probes.token_filter.summary import summary_of_agreement, summary_of_answers, summary_of_layers

    check_engine(context)
    check_layers(config, model.n_layers)
    found = read_trials(model, config, context)
    stage = context.stages(_weights(config, found))
    with stage("prompts"):
        selections = select(model, config, context, found)
    whole = usable(found, selections, config, context)
    every = [kept_of(found, selections, k, config, context) for k in found.ks]
    choices = [choose(found, kept, whole, config, context) for kept in every]
    tested = spread(found, config.answer_trials)
    with stage("answers"):
        wanted = asks(found, selections, choices, tested, config, context)
        answers = answer(model, config, context, found, wanted)
    warn_of_answers(answers, context)
    scores = layer_scores(model, selections, config)
    layers = layer_table(found, selections, every)
    retrieval = pl.Series("retrieval_score", None if scores is None else np.tile(scores, len(every)), pl.Float64)
    layers = layers.with_columns(retrieval if scores is not None else pl.lit(None, pl.Float64).alias("retrieval_score"))
    rates = rate_table(answers, found.names, found.ks)
    agreement = agreement_table(found, selections, every, scores, whole, config, context)
    tables = {
        "layers": layers,
        "selection": _selection_table(found, selections, spread(found, config.kept_sets)),
        "trials": _trial_table(found),
        "places": place_table(found, every),
        "choice": choice_table(choices),
        "answers": answers,
        "rates": rates,
        "agreement": agreement,
        "inputs": _input_table(found),
    }
    summary = {"trials": len(found.trials), "kept_tokens": ", ".join(map(str, found.ks))}
    summary |= summary_of_layers(found, layers, every, choices)
    summary |= summary_of_answers(rates) | summary_of_agreement(agreement)
    return Result(tables, {}, summary)


def _weights(config: Config, found: FilterTrials) -> dict[str, float]:
    """What the stages take beside each other, in tokens: prompts are read from where they differ, answers from the
    tokens that are kept, all tokens and random ones."""
    from probes.token_filter.answers import GENERATED

    read = sum(len(t.ids) - t.shared for t in found.trials) + len(found.beginning)
    tested = min(config.answer_trials, len(found.trials))
    mean = sum(len(t.ids) for t in found.trials) / len(found.trials)
    each = len(found.ks) * (3 + random_sets(config))
    new = GENERATED * config.max_new_tokens
    per_answer = sum(found.ks) / len(found.ks) + new
    return {"prompts": read, "answers": tested * (2 * (mean + new) + each * per_answer)}


def _selection_table(found: FilterTrials, selections, rows: Sequence[int]) -> pl.DataFrame:
    """The selected positions of some trials, one row per trial, layer and k."""
    layers = selections.seen.shape[1]
    each = [(i, layer, k) for i in rows for k in found.ks for layer in range(layers)]
    return pl.DataFrame(
        {
            "row": pl.Series([i for i, _, _ in each], dtype=pl.Int64),
            "layer": pl.Series([layer for _, layer, _ in each], dtype=pl.Int64),
            "k": pl.Series([k for *_, k in each], dtype=pl.Int64),
            "positions": pl.Series(
                [selections.kept(i, layer, k).tolist() for i, layer, k in each], dtype=pl.List(pl.Int64)
            ),
        }
    )


def _trial_table(found: FilterTrials) -> pl.DataFrame:
    trials = found.trials
    return pl.DataFrame(
        {
            "trial": range(len(trials)),
            "needle": [t.needle for t in trials],
            "length": [t.length for t in trials],
            "depth": [float(t.depth) for t in trials],
            "prompt_tokens": [len(t.ids) for t in trials],
            "forced": [len(found.always(t)) for t in trials],
            "answer": [found.needles[t.needle].answer for t in trials],
            "question": [found.needles[t.needle].question for t in trials],
        }
    )


def _input_table(found: FilterTrials) -> pl.DataFrame:
    spans = [found.needle_span(t) for t in found.trials]
    return pl.DataFrame(
        {
            "row": range(len(spans)),
            "ids": [list(t.ids) for t in found.trials],
            "needle_start": [start for start, _ in spans],
            "needle_end": [end for _, end in spans],
            "span_start": [t.span[0] for t in found.trials],
            "span_end": [t.span[1] for t in found.trials],
            "question_start": [t.body for t in found.trials],
        }
    )
