"""The lenses of a run, and the texts that translators are fitted on."""

from __future__ import annotations

from itertools import permutations

import polars as pl
import torch

from probes.latent_language.config import Config
from probes.latent_language.prepared import PreparedWords
from probes.latent_language.questions import LanguageTask, questions_of
from probes.latent_language.translators import TRANSLATORS, Translators, fit_translators
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.tables import read_text
from workbench.engine.layer_scores import Lens, as_it_is
from workbench.models.model import Model
from workbench.models.text_side import TextSide

PIECE = 256  # tokens of a piece of a text


def translator_ids(model: TextSide, ready: PreparedWords, config: Config, context: Context) -> list[list[int]]:
    """The texts that translators are fitted on, as token ids, in the order in which they are taken: the run's tasks
    between any two languages, of the concepts that are not measured, shuffled, or the pieces of a text file."""
    if config.translator_texts != "prompts":
        size = min(PIECE, model.context_length or PIECE)
        ids = model.encode(read_text(config.translator_texts, what="translator text"), bos=False)
        front = [model.bos_id] if model.prepends_bos and model.bos_id is not None else []
        step = size - len(front)
        return [[*front, *ids[start : start + step]] for start in range(0, len(ids), step) if len(ids) - start > 1]
    out = []
    for task in _asked(ready, config):
        out += [
            list(question.written.ids)
            for question in questions_of(model, ready.words, task, ready.split.fit, ready.split, config, context)
        ]
    if not out:
        raise InputError(
            "There are too few concepts that are not measured to fit translators on; give a larger fit_share, or a "
            "text file as translator_texts."
        )
    return [out[i] for i in context.rng("translator texts").permutation(len(out))]


def _asked(ready: PreparedWords, config: Config) -> list[LanguageTask]:
    """The tasks of the run between any two languages that can be read."""
    languages = ready.words.languages
    found = (
        [LanguageTask("translation", *pair) for pair in permutations(languages, 2)]
        if "translation" in config.tasks
        else []
    )
    return found + [
        LanguageTask(name, g, g) for name in ("repetition", "cloze") if name in config.tasks for g in languages
    ]


def lenses_of(
    model: Model, ready: PreparedWords, config: Config, context: Context
) -> tuple[list[Lens], pl.DataFrame | None]:
    """The lenses of a run, in the order of `config.lenses`, and the table `translators` where one was fitted."""
    if "tuned" not in config.lenses:
        return [as_it_is], None
    texts = translator_ids(model, ready, config, context)

    def fit():
        found = fit_translators(
            model, texts, tokens=config.translator_tokens, context=context, max_tokens=config.max_tokens
        )
        context.count(prompts=len(texts), tokens=config.translator_tokens, forwards=model.n_layers - 1)
        return found

    part = context.part("translators", fit)
    fitted = Translators(torch.from_numpy(part["maps"]), torch.from_numpy(part["shifts"]))
    table = part["translators"].cast(TRANSLATORS)
    return [as_it_is if name == "logit" else fitted for name in config.lenses], table
