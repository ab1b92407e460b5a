"""The studies: each gives its measured conditions, the pairs to compare (a over b), and tables of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl

from probes.branching_factor.branching_samples import Condition, correct, shorten
from probes.branching_factor.conditions import DRAWS, Lab, MeasuredCondition, bf_of
from probes.branching_factor.estimators import interval, over_prompts
from probes.branching_factor.prefix_tree import common_openings
from probes.branching_factor.verbalised import PROMPT as VERBALISED
from probes.branching_factor.verbalised import diversity
from workbench.core.errors import InputError
from workbench.engine.generate import greedy
from workbench.engine.passes import Pass
from workbench.engine.sampling import FIELDS, Rule
from workbench.engine.scoring import score
from workbench.models.model import Model
from workbench.stats.intervals import cluster_bootstrap_mean, multinomial_counts

Studied = tuple[list[MeasuredCondition], list[tuple[str, str]], dict[str, pl.DataFrame]]


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
    values = [bf_of(f, config) for f in found]
    table = pl.DataFrame(
        [
            {"condition": name, "model": model, "level": level, "bf": float(np.nanmean(value))}
            for name, (model, level), value in zip(names, level_of, values)
        ]
    )
    width = len(config.levels)
    pairs = [(names[i], names[i // width * width + width - 1]) for i in range(len(names)) if i % width < width - 1]
    return found, pairs, {"complexity": table, "impact": _impact(lab, found, level_of, values)}


def _impact(
    lab: Lab, found: list[MeasuredCondition], level_of: list[tuple[str, int]], values: list[np.ndarray]
) -> pl.DataFrame:
    """max − min of the mean BF over the levels and, with two models, over the models, and each one's share of their
    sum; `level_of`: (model, level) of each condition, `values`: BF of its prompts."""
    times = multinomial_counts(lab.table.height, DRAWS, lab.context.rng("impact"))
    means = np.array([np.nanmean(value) for value in values])
    drawn = np.array([over_prompts(value, f.draws, times) for value, f in zip(values, found)])  # [conditions, D]
    factors = {"complexity": 1} | ({"model": 0} if len(lab.models) > 1 else {})

    def spread(axis: int, of: np.ndarray) -> np.ndarray:
        kinds = {k[axis] for k in level_of}
        return np.ptp([np.mean([x for x, k in zip(of, level_of) if k[axis] == kind], axis=0) for kind in kinds], axis=0)

    impact, impacts = ({name: spread(axis, of) for name, axis in factors.items()} for of in (means, drawn))
    total, rows = sum(impact.values()) or 1.0, []
    for name in factors:
        low, high = interval(impacts[name])
        share = interval(impacts[name] / sum(impacts.values())) if len(factors) > 1 else (1.0, 1.0)
        numbers = {"impact": float(impact[name]), "impact_low": low, "impact_high": high}
        shares = {"share": float(impact[name] / total), "share_low": share[0], "share_high": share[1]}
        rows.append({"factor": name} | numbers | shares)
    return pl.DataFrame(rows)


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
    found, rows, baseline, rng = [first], [], {}, lab.context.rng("resampling")
    for t in sorted({0, *lab.config.cuts}):
        chosen = [
            (p, m)
            for p in range(len(first.lengths))
            for m in range(min(lab.config.originals, lab.config.samples))
            if first.lengths[p, m] > t
        ]
        if not chosen:
            lab.context.warn(f"No output is longer than {t} tokens, so none was cut there.")
            continue
        condition = lab.condition(f"cut at {t}", stream=f"cut at {t}")
        given, prompts = [first.tokens(p, m)[:t] for p, m in chosen], [p for p, _ in chosen]
        condition = replace(
            condition,
            texts=[condition.texts[p] for p in prompts],
            ids=[condition.ids[p] + more for p, more in zip(prompts, given)],
            prompt=prompts,
            answers=[condition.answers[p] for p in prompts],
            given=given,
        )
        found.append(lab.measure(condition))
        right = correct(found[-1]).mean(1)
        baseline = baseline or dict(zip(chosen, right))
        before = np.array([baseline[pair] for pair in chosen])
        ends, drops = (cluster_bootstrap_mean(values, np.array(prompts), rng=rng) for values in (right, before - right))
        rows.append(
            {
                "position": t,
                "accuracy": float(right.mean()),
                "ci_low": ends[0],
                "ci_high": ends[1],
                "baseline": float(before.mean()),
                "drop": float((before - right).mean()),
                "drop_low": drops[0],
                "drop_high": drops[1],
                "original_accuracy": float(np.mean([own[pair] for pair in chosen])),
                "bf": float(np.nanmean(bf_of(found[-1], lab.config))),
                "outputs": len(chosen),
                "samples": lab.config.samples,
            }
        )
    return found, [], {"resampling": pl.DataFrame(rows)}


def decoding(lab: Lab) -> Studied:
    """Decoding settings against the first of them."""
    found = [lab.measure(lab.condition(name, rule=Rule.parse(name))) for name in lab.config.settings]
    return found, [(name, lab.config.settings[0]) for name in lab.config.settings[1:]], {}


def verbalised(lab: Lab) -> Studied:
    """Ask for several responses with their probabilities: a way to get diversity back out of an aligned model."""
    texts = [VERBALISED.format(k=lab.config.responses, prompt=text) for text in lab.table["prompt"]]
    found = [lab.measure(lab.condition("direct")), lab.measure(lab.condition("verbalised", texts=texts))]
    table = diversity(found[0].texts, found[1].texts, lab.config.responses)
    if table["parse_rate"].max() == 0:
        lab.context.warn(
            f"No output of {lab.model.name} holds a response in the format that was asked for, so its "
            f"diversity is not known."
        )
    return found, [("verbalised", "direct")], {"verbalised": table}


def hyperfitted(lab: Lab) -> Studied:
    """The signature of over-training: almost no entropy on its own text, yet given text surprises it far more than it
    expects."""
    found, rows = [], []
    for model in lab.models:
        name = lab.label(model)
        found.append(lab.measure(lab.condition(name, model)))
        condition = found[-1].condition
        part = lab.context.part(f"signature/{name}", lambda m=model, c=condition: _read_given(lab, m, c))
        rows.append(_signature(found[-1], part, lab.context.rng(f"signature/{name}")))
    names = [f.condition.name for f in found]
    return found, [tuple(names)] if len(names) > 1 else [], {"signature": pl.DataFrame(rows)}


def _read_given(lab: Lab, model: Model, condition: Condition) -> dict[str, np.ndarray]:
    """The statistics of the prompts read as text (`given` [tokens, F], `text` which prompt), and the share of different
    tokens in greedy outputs (`types`)."""
    run = Pass(check=lab.context.check)
    texts = [model.encode(text) for text in lab.table["prompt"]]
    texts = [ids for ids in texts if len(ids) > 1]
    if not texts:
        raise InputError("study=hyperfitted scores the prompts as text; none of them has two tokens.")
    steps = score(model, [ids[:1] for ids in texts], [ids[1:] for ids in texts], run=run)
    best = greedy(model, condition.ids, max_new_tokens=lab.config.max_new_tokens, run=run, max_rows=lab.config.max_rows)
    return {
        "given": np.concatenate([s.numpy() for s in steps]),
        "text": np.repeat(np.arange(len(texts)), [len(ids) - 1 for ids in texts]),
        "types": np.array([len(set(ids)) / len(ids) for ids in best]),
    }


def _signature(found: MeasuredCondition, part: dict[str, np.ndarray], rng: np.random.Generator) -> dict:
    """A row of `signature`; intervals are over prompts and texts."""
    entropy, logprob, top1 = (
        part["given"][:, FIELDS.index(key)].astype(np.float64) for key in ("entropy_full", "logprob_full", "top1")
    )
    alive = found.ids >= 0
    prompt, own_entropy = np.nonzero(alive)[0], found.statistic("entropy_full")[alive]
    own_top1 = found.statistic("top1")[alive]
    surprise = -logprob - entropy
    ends = {
        "entropy_own": cluster_bootstrap_mean(own_entropy, prompt, rng=rng),
        "entropy_given": cluster_bootstrap_mean(entropy, part["text"], rng=rng),
        "nll_given": cluster_bootstrap_mean(-logprob, part["text"], rng=rng),
        "surprise": cluster_bootstrap_mean(surprise, part["text"], rng=rng),
    }
    return {
        "condition": found.condition.name,
        "entropy_own": float(own_entropy.mean()),
        "top1_own": float(own_top1.mean()),
        "sure_own": float((own_top1 > 0.9).mean()),
        "entropy_given": float(entropy.mean()),
        "nll_given": float(-logprob.mean()),
        "surprise": float(surprise.mean()),
        "sure_given": float((top1 > 0.9).mean()),
        "type_token_ratio": float(part["types"].mean()),
        "tokens_given": len(part["given"]),
    } | {f"{key}_{side}": value[i] for key, value in ends.items() for i, side in enumerate(("low", "high"))}


STUDY: dict[str, Callable[[Lab], Studied]] = {
    "none": one_model,
    "pair": pair,
    "complexity": complexity,
    "nudging": nudging,
    "resampling": resampling,
    "decoding": decoding,
    "verbalised": verbalised,
    "hyperfitted": hyperfitted,
}
