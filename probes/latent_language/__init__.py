"""Latent languages: in which language are the words that the layers of a model would say, on the way to its answer?

Zhong et al., Beyond English-Centric LLMs (arXiv 2408.10811), after Wendler et al., Do Llamas Work in English? (arXiv
2402.10588). The stream after each layer, at the last token of a prompt whose answer is a word in one language, is read
off through final norm and unembedding; the probability of the concept's word in every language is followed over the
layers.

Three read-outs, side by side. `set` (Wendler et al.): the mass of all tokens that may begin the word. `word` (Zhong et
al.): the product of the probabilities of all its tokens, each after those before it, all read at the same layer; the
words of one language that a cell gives count together. `first`: its first factor, since later ones are near 1 once the
word has begun. What several languages have in common is taken from all of them.

Deviations: the papers' texts and word lists were not at hand, so prompts and 100 words in six languages were written
for this project; examples come from concepts that are not measured, a new draw for each concept; the null (words of an
unrelated concept), the bootstrap over concepts of leads and crossings, translators as an option, and the causal check
(a language's direction against random ones) are additions.
"""

from __future__ import annotations

from functools import partial

import polars as pl

from probes.latent_language.config import BIBTEX, Config
from probes.latent_language.estimate import estimate, example
from probes.latent_language.word_lists import own_words, read_words
from workbench.core.context import Context, Result
from workbench.core.registry import DataSpec, probe


def validate(config: Config, data) -> None:
    """Raise InputError for a word list or settings that cannot be used with any model."""
    from probes.latent_language.questions import tasks_of

    words = read_words(config, data)
    tasks_of(words, config)


TASK = ("task", "source", "target")


@probe(
    "latent-language",
    title="Latent languages",
    summary="Which language's words the layers of a model would say, on the way to its answer.",
    tables={
        "layers": (
            *TASK,
            "lens",
            "readout",
            "layer",
            "language",
            "probability",
            "ci_low",
            "ci_high",
            "entropy",
            "mean_log_p",
            "null_probability",
            "excess",
            "p_adjusted",
            "above_null",
            "leads",
            "lead_share",
            "n",
        ),
        "courses": (
            *TASK,
            "lens",
            "readout",
            "language",
            "area",
            "area_low",
            "area_high",
            "area_null",
            "layers_led",
            "peak_layer",
            "crossing",
            "crossing_low",
            "crossing_high",
            "crossing_relative",
            "crossing_share",
        ),
        "words": ("row", "language", "lens", "layer", "tokens", "log_probability", "log_p_first", "log_p_set"),
        "steering": (
            "task",
            "source",
            "target",
            "towards",
            "layer",
            "direction",
            "draw",
            "log_odds",
            "switched",
            "probability",
            "null_probability",
            "excess",
            "p_adjusted",
        ),
        "tokens": (
            "language",
            "concepts",
            "with_word",
            "with_tokens_of_its_own",
            "same_in_another_language",
            "unwritable",
            "mean_tokens",
            "single_token",
        ),
        "groups": ("language", "ids"),
        "inputs": ("row", "ids", *TASK, "concept", "unrelated", "split"),
    },
    bibtex=BIBTEX,
    data=DataSpec(
        required=("concept",),
        what="words",
        default="probes.latent_language:material/words.jsonl",
        for_model=own_words,
    ),
    validate=validate,
    before_loading="probes.latent_language.before_loading:check",
    figures="probes.latent_language.figures:figures",
    estimate=estimate,
    example=example,
    example_models=("organism", "circuit-bilingual"),
    needs=("tokenizer", "final_norm_ends_stream", "logits_unembedded"),
    version=2,
    layer_curves={"layers": ("probability", "entropy")},
    token_groups={"groups": ("language", "ids")},
    keys={
        "layers": (*TASK, "lens", "readout", "language", "layer"),
        "courses": (*TASK, "lens", "readout", "language"),
        "words": ("row", "language", "lens", "layer"),
        "steering": (*TASK, "towards", "layer", "direction", "draw"),
        "tokens": ("language",),
        "groups": ("language",),
        "inputs": ("row",),
        "translators": ("layer",),
    },
)
def run(model, config: Config, context: Context) -> Result:
    """Follow every language over the layers in every task, then steer the answers.

    Probabilities are of the whole vocabulary, in float32. Raises InputError for a model whose scores are not read off
    its stream, and for words that its tokenizer cannot write."""
    from probes.latent_language.fitted_lenses import lenses_of
    from probes.latent_language.layer_tables import layer_tables
    from probes.latent_language.measuring import measure
    from probes.latent_language.prepared import group_table, prepare, token_table, warn_of_words
    from probes.latent_language.row_tables import input_table, word_table
    from probes.latent_language.steering_check import STEERING, check_steering, pairs_for, steer_layers
    from probes.latent_language.summary import summary_of
    from workbench.engine.layer_scores import NEEDS

    model.require(*NEEDS, for_what="latent-language")
    ready = prepare(model, config, context)
    warn_of_words(ready, context)
    languages = ready.words.languages
    turned = []
    for asked in ready.asked:
        pairs = pairs_for(model, ready.words, asked.task, ready.split, config, context)
        if pairs is not None:
            turned.append((asked, pairs))
    sizes = [len(asked.questions) for asked in ready.asked]
    steered = min(config.steer_rows, max(sizes)) * len(steer_layers(config, model.n_layers)) * (1 + config.random_draws)
    stage = context.stages(
        {
            "translators": sum(sizes) if "tuned" in config.lenses else 0,
            "languages": 2 * sum(sizes),
            "steering": steered * len(turned),
        }
    )
    with stage("translators"):
        lenses, translators = lenses_of(model, ready, config, context)
    found, tables = [], []
    with stage("languages"):
        for asked in context.each(ready.asked, sizes, title=lambda _, item: item.task.key):
            values = measure(model, asked.questions, asked.candidates, languages, lenses, config, context)
            found.append(values)
            tables.append(layer_tables(asked.task, values, ready.clusters(asked), languages, config, context))
    steering = [pl.DataFrame(schema=STEERING)]
    with stage("steering"):
        for asked, pairs in context.each(turned):
            measured = list(zip(asked.questions, asked.candidates))
            compute = partial(check_steering, model, ready.words, asked.task, pairs, measured, config, context)
            part = context.part(f"steering {asked.task.key}", lambda compute=compute: {"steering": compute()})
            steering.append(part["steering"])
    layers, courses = (pl.concat(frames) for frames in zip(*tables))
    out = {
        "layers": layers,
        "courses": courses,
        "words": word_table(ready, found, config),
        "steering": pl.concat(steering),
        "tokens": token_table(ready),
        "groups": group_table(ready),
        "inputs": input_table(ready, [q for _, pairs in turned for q in (*pairs.into, *pairs.out_of)]),
    }
    if translators is not None:
        out["translators"] = translators
    return Result(out, {}, summary_of(layers, courses, out["steering"], languages[0], config))
