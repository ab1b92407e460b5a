"""The studies: each gives its measured conditions, the pairs to compare (a over b), and tables of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from probes.branching_factor.begun_outputs import begun, outputs_longer_than
from probes.branching_factor.bf_intervals import paired_mean
from probes.branching_factor.branching_samples import correct, frame, shorten
from probes.branching_factor.conditions import Lab, MeasuredCondition, Studied, bf_of
from probes.branching_factor.feedback import feedback
from probes.branching_factor.impact import impact_table
from probes.branching_factor.overtraining import hyperfitted
from probes.branching_factor.per_byte import nats_per_byte, pieces_of
from probes.branching_factor.prefix_tree import common_openings
from probes.branching_factor.random_prefix import random_prefix
from probes.branching_factor.sentence_importance import sentence_importance
from probes.branching_factor.verbalised import PROMPT as VERBALISED
from probes.branching_factor.verbalised import diversity
from workbench.core.errors import InputError
from workbench.engine.sampling import Rule
from workbench.stats.clusters import cluster_share


def one_model(lab: Lab) -> Studied:
    """The model on the prompts as they are."""
    return [lab.measure(lab.condition(lab.label(lab.model)))], [], {}


def pair(lab: Lab) -> Studied:
    """The model (base) and a second one (aligned) on the same prompts: BF ratio."""
    models = (lab.model, lab.other)
    found = [lab.measure(lab.condition(lab.label(m), m)) for m in models]
    return found, [(lab.label(lab.model), lab.label(lab.other))], {}


def complexity(lab: Lab) -> Studied:
    """How BF falls with the amount of prompt that is given; with a second model, the impact of both factors (max − min
    of means)."""
    config, found, level_of, texts = lab.config, [], [], {}
    for level in config.levels:
        texts[level] = [shorten(text, level, config.unit, words=config.words_per_level) for text in lab.table["prompt"]]
        twin = next((k for k in list(texts)[:-1] if texts[k] == texts[level]), None)
        if twin is not None:
            lab.context.warn(
                f"Levels {twin} and {level} give the same prompts: none has so many {config.unit}; longer "
                f"prompts tell them apart."
            )
    for m in lab.models:
        for level in config.levels:
            found.append(lab.measure(lab.condition(f"{lab.label(m)}, C={level}", m, texts=texts[level])))
            level_of.append((lab.label(m), level))
    names = [f.condition.name for f in found]
    values = np.array([bf_of(f, config) for f in found])
    means = [float(np.nanmean(value)) if np.isfinite(value).any() else None for value in values]
    table = pl.DataFrame(
        [
            {"condition": name, "model": model, "level": level, "bf": mean}
            for name, (model, level), mean in zip(names, level_of, means)
        ]
    )
    width = len(config.levels)
    pairs = [(names[i], names[i // width * width + width - 1]) for i in range(len(names)) if i % width < width - 1]
    factors = {"complexity": [level for _, level in level_of]}
    measure = "bf"
    if len(lab.models) > 1:
        factors["model"] = [model for model, _ in level_of]
        if len({pieces_of(m) for m in lab.models}) > 1:
            measure, values = "nats_per_byte", np.array([nats_per_byte(f) for f in found])
    impact = impact_table(values, factors, lab.clusters, lab.context.rng("impact"))
    return found, pairs, {"complexity": table, "impact": impact.with_columns(measure=pl.lit(measure))}


def nudging(lab: Lab) -> Studied:
    """Give the base model the aligned model's most common opening: BF of what follows, against the base model's own
    openings."""
    base, aligned = lab.label(lab.model), lab.label(lab.other)
    found = [lab.measure(lab.condition(base)), lab.measure(lab.condition(aligned, lab.other))]
    P = len(found[1].lengths)
    prefix, openings = _opening(lab, found[1])
    same = lab.model.tokenizer_fingerprint == lab.other.tokenizer_fingerprint
    nudge = prefix if same else lab.model.encode(lab.other.decode(prefix), bos=False)
    own = [[t for t in found[0].tokens(p, 0) if t not in lab.model.eos_ids][: len(nudge)] for p in range(P)]
    nudged, control, both = f"{base} + opening", f"{base} + own opening", f"{aligned} + opening"
    for name, m, given in (
        (nudged, lab.model, [nudge] * P),
        (control, lab.model, own),
        (both, lab.other, [prefix] * P),
    ):
        condition = lab.condition(name, m, given=given, stream="after the opening")
        condition.ids = [ids + more for ids, more in zip(condition.ids, given)]
        found.append(lab.measure(condition))
    steps = [
        (base, "nothing", base),
        (base, "opening", nudged),
        (base, "own opening", control),
        (aligned, "nothing", aligned),
        (aligned, "opening", both),
    ]
    table = pl.DataFrame(steps, schema=["model", "given", "condition"], orient="row")
    pairs = [(base, nudged), (control, nudged), (base, aligned), (nudged, both)]
    return found, pairs, {"openings": openings, "nudging": table}


def _opening(lab: Lab, aligned: MeasuredCondition) -> tuple[list[int], pl.DataFrame]:
    """The opening of the aligned model that the config picks, and the table of the commonest. Raises InputError where
    there is none."""
    config, name, ends = lab.config, aligned.condition.name, set(lab.other.eos_ids)
    P, M = aligned.lengths.shape
    rows = [aligned.tokens(p, m) for p in range(P) for m in range(M)]
    common = common_openings(rows, least=config.nudge_count, longest=config.nudge_tokens)
    openings = [(ids, count) for ids, count in common if not ends & set(ids)]
    if not openings:
        raise InputError(
            f"No opening is shared by {config.nudge_count} of the {P * M} samples of {name}; lower "
            f"nudge_count or sample more."
        )
    pick = config.nudge_pick
    if pick >= len(openings):
        raise InputError(
            f"nudge_pick is {pick}, and {name} has {len(openings)} common openings; choose 0 to "
            f"{len(openings) - 1}, or lower nudge_count."
        )
    table = pl.DataFrame(
        [
            {
                "opening": lab.other.decode(ids),
                "ids": list(ids),
                "tokens": len(ids),
                "count": count,
                "share": count / (P * M),
                "chosen": i == pick,
            }
            for i, (ids, count) in enumerate(openings[:100])
        ]
    )
    return list(openings[pick][0]), table


def resampling(lab: Lab) -> Studied:
    """Keep the first t tokens of an output and sample the rest again: does the task still come out right?

    Outputs that end before t cannot be cut there, so each cut has a baseline of its own: the same outputs cut at 0."""
    first = lab.measure(lab.condition(lab.label(lab.model)))
    own = correct(first)
    found, rows, baseline = [first], [], {}
    for t in sorted({0, *lab.config.cuts}):
        chosen = outputs_longer_than(first, t, lab.config.originals)
        if not chosen:
            lab.context.warn(f"No output is longer than {t} tokens, so none was cut there.")
            continue
        given, prompts = [first.tokens(p, m)[:t] for p, m in chosen], [p for p, _ in chosen]
        found.append(lab.measure(begun(lab, f"cut at {t}", first, chosen, given, stream=f"cut at {t}")))
        right = correct(found[-1]).mean(1)
        baseline = baseline or dict(zip(chosen, right))
        before = np.array([baseline[pair] for pair in chosen])
        names = [first.condition.cluster[p] for p in prompts]
        accuracy, drop = cluster_share(right, np.array(names)), paired_mean(before - right, names)
        rows.append(
            {
                "position": t,
                "accuracy": accuracy.value,
                "ci_low": accuracy.low,
                "ci_high": accuracy.high,
                "baseline": float(before.mean()),
                "drop": drop.value,
                "drop_low": drop.low,
                "drop_high": drop.high,
                "original_accuracy": float(np.mean([own[pair] for pair in chosen])),
                "bf": float(np.nanmean(bf_of(found[-1], lab.config))),
                "prompts": accuracy.n,
                "outputs": len(chosen),
                "samples": lab.config.samples,
            }
        )
    return found, [], {"resampling": frame({key: [row[key] for row in rows] for key in rows[0]})}


def decoding(lab: Lab) -> Studied:
    """Decoding settings against the first of them."""
    found = [lab.measure(lab.condition(name, rule=Rule.parse(name))) for name in lab.config.settings]
    return found, [(name, lab.config.settings[0]) for name in lab.config.settings[1:]], {}


def verbalised(lab: Lab) -> Studied:
    """Ask for several responses with their probabilities: a way to get diversity back out of an aligned model."""
    texts = [VERBALISED.format(k=lab.config.responses, prompt=text) for text in lab.table["prompt"]]
    found = [lab.measure(lab.condition("direct")), lab.measure(lab.condition("verbalised", texts=texts))]
    table = diversity(found[0].texts, found[1].texts, lab.config.responses)
    table = table.with_columns(prompt=pl.Series(lab.numbers, dtype=pl.Int64))
    if table["parse_rate"].max() == 0:
        lab.context.warn(
            f"No output of {lab.model.name} holds a response in the format that was asked for, so its "
            f"diversity is not known."
        )
    return found, [("verbalised", "direct")], {"verbalised": table}


STUDY: dict[str, Callable[[Lab], Studied]] = {
    "none": one_model,
    "pair": pair,
    "complexity": complexity,
    "nudging": nudging,
    "resampling": resampling,
    "decoding": decoding,
    "verbalised": verbalised,
    "hyperfitted": hyperfitted,
    "random_prefix": random_prefix,
    "feedback": feedback,
    "sentences": sentence_importance,
}
