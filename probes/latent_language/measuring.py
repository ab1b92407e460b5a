"""Probabilities of every language at every layer, prompt by prompt.

What is kept of a task, each array over its prompts: `log_p` [prompts, own or null, read-outs, languages, lenses,
layers], NaN where there is nothing to look for, `several` [prompts, names, lenses, layers] (log-probability of the
tokens of several languages), `entropy` and `top` [prompts, lenses, layers]."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from probes.latent_language.candidates import HAN, SHARED, LanguageCandidates, WantedTokens, contexts_of
from probes.latent_language.config import READOUTS, Config
from probes.latent_language.questions import WordQuestion
from workbench.core.context import Context
from workbench.engine.layer_scores import LayerScores, Lens, layer_scores
from workbench.engine.passes import Pass
from workbench.models.model import Model

AT_ONCE = 32  # prompts of one part
NAMES = (SHARED, HAN)
OWN, NULL = 0, 1
Found = dict[str, np.ndarray]


def measure(
    model: Model,
    questions: Sequence[WordQuestion],
    candidates: Sequence[LanguageCandidates],
    languages: Sequence[str],
    lenses: Sequence[Lens],
    config: Config,
    context: Context,
) -> Found:
    """All prompts of one task, in parts that are kept."""
    parts = []
    for start in range(0, len(questions), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        compute = partial(_measured, model, questions[some], candidates[some], languages, lenses, config, context)
        with context.stretch(start / len(questions), (start + AT_ONCE) / len(questions)):
            parts.append(context.part(f"{questions[0].task.key} {start}", compute))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _measured(
    model: Model,
    questions: Sequence[WordQuestion],
    candidates: Sequence[LanguageCandidates],
    languages: Sequence[str],
    lenses: Sequence[Lens],
    config: Config,
    context: Context,
) -> Found:
    several = config.shared == "report"
    contexts, wanted, roots = contexts_of(questions, candidates, several=several)
    run = Pass(edits=tuple(context.edits), max_tokens=config.max_tokens, check=context.check, progress=context.progress)
    found = layer_scores(model, contexts, wanted, lenses=lenses, engine=context.engine, run=run)
    context.count(prompts=len(questions), tokens=sum(map(len, contexts)), forwards=len(contexts))
    scores = _Scores(contexts, wanted, found)
    shape = found[0].entropy.shape  # [lenses, layers]
    log_p = np.full((len(questions), 2, len(READOUTS), len(languages), *shape), np.nan, np.float32)
    extra = np.full((len(questions), len(NAMES), *shape), np.nan, np.float32)
    for i, (question, each) in enumerate(zip(questions, candidates)):
        root = tuple(question.written.ids)
        for which, by_language in ((OWN, each.own), (NULL, each.null)):
            for g, language in enumerate(languages):
                for readout, value in _readouts(scores, root, by_language[language], config.alternatives).items():
                    log_p[i, which, READOUTS.index(readout), g] = value
        for k, name in enumerate(NAMES):
            if several and each.several[name]:
                extra[i, k] = _joined([scores.of(root, token) for token in each.several[name]])
    heads = [found[root] for root in roots]
    return {
        "log_p": log_p,
        "several": extra,
        "entropy": np.stack([each.entropy for each in heads]).astype(np.float32),
        "top": np.stack([each.top for each in heads]),
    }


class _Scores:
    """Log-probabilities [lenses, layers] of a token after a context."""

    def __init__(self, contexts: Sequence[tuple[int, ...]], wanted: Sequence[list[int]], found: Sequence[LayerScores]):
        self._of = {
            context: {token: scores.log_p[..., k].astype(np.float64) for k, token in enumerate(tokens)}
            for context, tokens, scores in zip(contexts, wanted, found)
        }

    def of(self, context: tuple[int, ...], token: int) -> np.ndarray:
        return self._of[context][token]


def _readouts(
    scores: _Scores, root: tuple[int, ...], wanted: WantedTokens, alternatives: str
) -> Mapping[str, np.ndarray]:
    """The log-probability of each read-out that there is something to look for in."""
    out = {}
    join: Callable[[Sequence[np.ndarray]], np.ndarray] = _joined if alternatives == "sum" else _likeliest
    if wanted.words:
        out["word"] = join(
            [sum(scores.of(root + word[:k], token) for k, token in enumerate(word)) for word in wanted.words]
        )
    if wanted.firsts:
        out["first"] = join([scores.of(root, token) for token in wanted.firsts])
    if wanted.ids:
        out["set"] = _joined([scores.of(root, token) for token in wanted.ids])
    return out


def _joined(log_p: Sequence[np.ndarray]) -> np.ndarray:
    """Of events that exclude each other."""
    return np.logaddexp.reduce(np.stack(log_p), axis=0)


def _likeliest(log_p: Sequence[np.ndarray]) -> np.ndarray:
    return np.max(np.stack(log_p), axis=0)
