"""The causal check: is the language of the answer in one direction of the stream?

For a translation from S into A, and another language B: the direction at a layer is the mean state at the last token of
the prompts S → B less that of the prompts S → A, over concepts that are not measured (with the same examples in both);
for a cloze in A, that of the prompts of a cloze in B less that of those in A. It is added at that token and layer to
the measured prompts. What counts is the log-odds of B's words for the
concept against A's words for it at the end, and how often they are above 0. Beside it, random directions of the same
length at the same place, and the words of an unrelated concept in B: a direction of the language alone raises these by
no more than what it raises of B as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch

from probes.latent_language.candidates import LanguageCandidates, WantedTokens
from probes.latent_language.config import Config
from probes.latent_language.questions import ConceptSplit, LanguageTask, WordQuestion, questions_of
from probes.latent_language.word_lists import WordList
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.capture import capture
from workbench.engine.last_token_edits import last_token_scores
from workbench.engine.passes import Pass
from workbench.engine.steering import Steer
from workbench.models.model import Model
from workbench.models.sites import Site
from workbench.models.text_side import TextSide
from workbench.stats.clusters import (
    Clusters,
    cluster_mean,
    cluster_share,
    clusters_of,
    crossed_interval,
    crossed_p_above,
    false_discovery,
)

FEWEST_FITTED = 2  # prompts of either kind for a direction
STEERING = {
    **{name: pl.String for name in ("task", "source", "target", "towards")},
    "layer": pl.Int64,
    "direction": pl.String,
    "draw": pl.Int64,
    **dict.fromkeys(("log_odds", "log_odds_low", "log_odds_high", "base_log_odds"), pl.Float64),
    **dict.fromkeys(("switched", "switched_low", "switched_high", "base_switched"), pl.Float64),
    **dict.fromkeys(("probability", "base_probability", "null_probability", "base_null_probability"), pl.Float64),
    **dict.fromkeys(("of_random", "excess", "excess_low", "excess_high", "p", "p_adjusted"), pl.Float64),
    **dict.fromkeys(("norm", "relative_norm"), pl.Float64),
    "n": pl.Int64,
    "rows": pl.Int64,
}


@dataclass(frozen=True, eq=False)
class SteeredPrompts:
    """The prompts to steer: `ids` of what is asked, the tokens that stand for each language, and the clusters."""

    ids: list[list[int]]
    target: list[tuple[int, ...]]
    towards: list[tuple[int, ...]]
    null: list[tuple[int, ...]]
    clusters: Clusters


def steer_layers(config: Config, n_layers: int) -> list[int]:
    """The layers at which directions are added. Raises InputError for one that the model does not have."""
    if config.steer_layers == "none":
        return []
    if config.steer_layers == "auto":
        return sorted({round(x) for x in np.linspace(0, n_layers - 1, min(5, n_layers)).tolist()})
    layers = sorted({int(layer) for layer in config.steer_layers})
    if layers and layers[-1] >= n_layers:
        raise InputError(f"steer_layers names layer {layers[-1]}, and the model has {n_layers} layers, from 0 on.")
    return layers


def steered_to(task: LanguageTask, words: WordList, config: Config) -> str | None:
    """The language that answers of a task are steered to; None for a repetition, and where there is none but the
    target."""
    if task.name == "repetition":
        return None
    if config.steer_to != "auto":
        if config.steer_to not in words.languages:
            raise InputError(
                f"steer_to is '{config.steer_to}', and the languages that can be read here are "
                f"{', '.join(words.languages)}."
            )
        return config.steer_to if config.steer_to != task.target else None
    return next((g for g in words.languages if g != task.target), None)


@dataclass(frozen=True, eq=False)
class DirectionPrompts:
    """What a direction is fitted on: the same concepts' prompts `into` the language that is steered to and `out_of` the
    target."""

    towards: str
    into: list[WordQuestion]
    out_of: list[WordQuestion]


def pairs_for(
    model: TextSide, words: WordList, task: LanguageTask, split: ConceptSplit, config: Config, context: Context
) -> DirectionPrompts | None:
    """The prompts that the directions of a task are fitted on; None where it is not steered."""
    towards = steered_to(task, words, config)
    if towards is None or not steer_layers(config, model.n_layers):
        return None
    kinds = [_into(task, language) for language in (towards, task.target)]
    found = [questions_of(model, words, kind, split.fit, split, config, context) for kind in kinds]
    common = {q.concept for q in found[0]} & {q.concept for q in found[1]}
    return DirectionPrompts(towards, *([q for q in some if q.concept in common] for some in found))


def check_steering(
    model: Model,
    words: WordList,
    task: LanguageTask,
    pairs: DirectionPrompts,
    asked: Sequence[tuple[WordQuestion, LanguageCandidates]],
    config: Config,
    context: Context,
) -> pl.DataFrame:
    """Rows of the table `steering` for one task: the language's direction and each random one, at every layer.

    The direction's rows have the excess over random directions, with an interval over concepts and directions, and its
    p: of the direction being one more random one, or of there being no excess, whichever is larger; adjusted over the
    layers (Benjamini and Hochberg). Empty where a language has nothing to look for, with a warning."""
    towards, layers = pairs.towards, steer_layers(config, model.n_layers)
    subject = _subject(words, task, towards, asked[: config.steer_rows])
    fitted = (pairs.into, pairs.out_of)
    if subject is None or len(pairs.into) < FEWEST_FITTED:
        context.warn(
            f"Answers of {task.key} were not steered to {towards}: "
            f"{'no measured word tells the two languages apart' if subject is None else 'too few words to fit on'}."
        )
        return pl.DataFrame(schema=STEERING)
    directions = _directions(model, fitted, layers, config, context)
    rows: list[dict] = []
    rng = context.rng(f"random directions {task.key}")
    for done, layer in enumerate(layers, 1):
        direction, size = directions[layer]
        drawn = torch.from_numpy(rng.standard_normal((config.random_draws, model.width))).float()
        drawn *= direction.norm() / drawn.norm(dim=1, keepdim=True)
        vectors = [("language", direction), *(("random", own) for own in drawn)]
        base, *changed = _answers(model, subject, layer, [vector for _, vector in vectors], config, context)
        where = {"task": task.name, "source": task.source, "target": task.target, "towards": towards, "layer": layer}
        effects = []
        for draw, ((kind, _), found) in enumerate(zip(vectors, changed)):
            effects.append(found["odds"] - base["odds"])
            number = {"direction": kind, "draw": max(0, draw - 1)}
            norm = {"norm": float(direction.norm()), "relative_norm": float(direction.norm()) / size}
            rows.append(where | number | _row(found, base, subject.clusters) | norm)
        rows[-len(effects)] |= _beside(effects[0], np.stack(effects[1:]), subject.clusters)
        context.progress(done, len(layers), "steered layers")
    return _adjusted(pl.DataFrame([{name: row.get(name) for name in STEERING} for row in rows], schema=STEERING))


def _into(task: LanguageTask, language: str) -> LanguageTask:
    """The same task into another language."""
    return replace(task, target=language, source=language if task.name == "cloze" else task.source)


def _subject(
    words: WordList, task: LanguageTask, towards: str, asked: Sequence[tuple[WordQuestion, LanguageCandidates]]
) -> SteeredPrompts | None:
    kept = []
    for question, each in asked:
        both = [_telling(each.own[g]) for g in (task.target, towards)]
        if all(both) and not {*both[0]} & {*both[1]}:
            kept.append((question, both, _telling(each.null[towards])))
    if not kept:
        return None
    return SteeredPrompts(
        [list(q.written.ids) for q, *_ in kept],
        [both[0] for _, both, _ in kept],
        [both[1] for _, both, _ in kept],
        [null for *_, null in kept],
        clusters_of(np.array([words.groups[q.concept] for q, *_ in kept])),
    )


def _telling(wanted: WantedTokens) -> tuple[int, ...]:
    """The tokens that stand for a language: those that may begin its word, else the first of its tokens (of a word
    without a token of whole characters)."""
    return wanted.ids or tuple(dict.fromkeys(tokens[0] for tokens in wanted.words))


def _directions(
    model: Model, fitted: Sequence[Sequence[WordQuestion]], layers: Sequence[int], config: Config, context: Context
) -> dict[int, tuple[torch.Tensor, float]]:
    """By layer the difference of the mean states [width] of two kinds of prompts, and the mean length of a state."""
    sites = [Site("resid_post", layer) for layer in layers]
    run = Pass(edits=tuple(context.edits), max_tokens=config.max_tokens, check=context.check)
    states = []
    for some in fitted:
        ids = [list(q.written.ids) for q in some]
        context.count(prompts=len(ids), tokens=sum(map(len, ids)), forwards=len(ids))
        states.append(capture(model, ids, sites, engine=context.engine, run=run))
    out = {}
    for site, layer in zip(sites, layers):
        to, of = (found[site].double() for found in states)
        out[layer] = (to.mean(0) - of.mean(0)).float(), float(torch.cat([to, of]).norm(dim=1).mean())
    return out


def _answers(
    model: Model, subject: SteeredPrompts, layer: int, vectors: Sequence[torch.Tensor], config: Config, context: Context
) -> list[dict]:
    """Of every prompt the log-odds of the language that is steered to, and the probability of its words and of the
    unrelated concept's: unedited, then with each vector added at the last token of a layer."""
    sets = [(), *((Steer(Site("resid_post", layer), vector, config.strength, (-1,)),) for vector in vectors)]
    wanted = [[*a, *b, *c] for a, b, c in zip(subject.target, subject.towards, subject.null)]
    run = Pass(edits=tuple(context.edits), max_tokens=config.max_tokens, check=context.check)
    found = last_token_scores(model, subject.ids, wanted, sets, run=run)
    context.count(prompts=len(wanted), tokens=sum(map(len, subject.ids)), forwards=len(wanted) * len(sets))
    return [_judged(scores, subject) for scores in found]


def _judged(found: Sequence[np.ndarray], subject: SteeredPrompts) -> dict:
    odds, probability, null = [], [], []
    for scores, target, towards, other in zip(found, subject.target, subject.towards, subject.null):
        cut = [len(target), len(target) + len(towards)]
        a, b, c = np.split(scores.astype(np.float64), cut)
        odds.append(np.logaddexp.reduce(b) - np.logaddexp.reduce(a))
        probability.append(np.exp(b).sum())
        null.append(np.exp(c).sum() if other else np.nan)
    return {"odds": np.array(odds), "probability": np.array(probability), "null": np.array(null)}


def _row(found: dict, base: dict, clusters: Clusters) -> dict:
    odds = cluster_mean(found["odds"] - base["odds"], clusters.index)
    switched = cluster_share(found["odds"] > 0, clusters.index)
    known = ~np.isnan(base["null"])
    return {
        "log_odds": odds.value,
        "log_odds_low": _number(odds.low),
        "log_odds_high": _number(odds.high),
        "base_log_odds": float(base["odds"].mean()),
        "switched": switched.value,
        "switched_low": _number(switched.low),
        "switched_high": _number(switched.high),
        "base_switched": float((base["odds"] > 0).mean()),
        "probability": float(found["probability"].mean()),
        "base_probability": float(base["probability"].mean()),
        "null_probability": float(found["null"][known].mean()) if known.any() else None,
        "base_null_probability": float(base["null"][known].mean()) if known.any() else None,
        "n": clusters.n,
        "rows": clusters.rows,
    }


def _beside(effect: np.ndarray, random: np.ndarray, clusters: Clusters) -> dict:
    """The effect [n] of the direction beside those of random ones [draws, n]."""
    low, high = crossed_interval(effect - random, clusters)
    means = random.mean(1)
    one_more = _p_of_one_more(float(effect.mean()), means)
    return {
        "of_random": float(means.mean()),
        "excess": float((effect - random).mean()),
        "excess_low": _number(low),
        "excess_high": _number(high),
        "p": _number(max(one_more, crossed_p_above(effect - random, clusters))),
    }


def _p_of_one_more(value: float, drawn: np.ndarray) -> float:
    """One-sided p of `value` being one more draw from where `drawn` [draws] come from (Student's t of a prediction)."""
    from scipy import stats

    spread = float(drawn.std(ddof=1) * np.sqrt(1 + 1 / len(drawn)))
    if spread == 0:
        return 0.0 if value > drawn[0] else 1.0
    return float(stats.t.sf((value - drawn.mean()) / spread, len(drawn) - 1))


def _adjusted(frame: pl.DataFrame) -> pl.DataFrame:
    p = frame["p"].fill_null(np.nan).to_numpy()
    return frame.with_columns(pl.Series("p_adjusted", false_discovery(p)).fill_nan(None))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def check_possible(words: WordList, tasks: Sequence[LanguageTask], config: Config, layers: int, engine: str) -> None:
    """Raise InputError for layers and languages that cannot be steered, and for an engine that cannot."""
    asked = steer_layers(config, layers)
    turned = [task for task in tasks if steered_to(task, words, config) is not None]
    if asked and turned and engine != "hf":
        raise InputError(
            "Answers are steered with the weights on this machine; run with --engine hf, or leave the check out with "
            "steer_layers=none."
        )
