"""What a run does before it computes anything, with or without the weights: languages, tasks, prompts, tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from probes.latent_language.candidates import LanguageCandidates, candidates_of, readable_languages
from probes.latent_language.config import Config
from probes.latent_language.questions import (
    ConceptSplit,
    LanguageTask,
    WordQuestion,
    examples_for,
    questions_of,
    split_of,
    tasks_of,
)
from probes.latent_language.steering_check import check_possible
from probes.latent_language.tokens_of_words import WordVocabulary
from probes.latent_language.word_lists import WordList, read_words
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.prompt_style import check_style, style_of
from workbench.models.text_side import TextSide


@dataclass(frozen=True, eq=False)
class AskedTask:
    """One task with its questions and what is looked for after each."""

    task: LanguageTask
    questions: list[WordQuestion]
    candidates: list[LanguageCandidates]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence that is fed."""
        words = [
            len(q.written.ids) + max((len(t) for w in (*c.own.values(), *c.null.values()) for t in w.words), default=1)
            for q, c in zip(self.questions, self.candidates)
        ]
        return max(words) - 1


@dataclass(frozen=True, eq=False)
class PreparedWords:
    """`words` of the languages that can be read, the `split` of the concepts, and each task; `left_out`: a sentence for
    every language that cannot be read, and for whatever else is not as asked."""

    words: WordList
    split: ConceptSplit
    asked: list[AskedTask]
    vocabulary: WordVocabulary
    left_out: list[str]

    def clusters(self, asked: AskedTask) -> np.ndarray:
        """[prompts]: what is independent, by name."""
        return np.array([self.words.groups[q.concept] for q in asked.questions])


def prepare(model: TextSide, config: Config, context: Context) -> PreparedWords:
    """Prompts and tokens of a run. Raises InputError for what cannot be asked of this model: no tokenizer, fewer than
    two languages that it can write, no word to look for, prompts beyond the context."""
    check_style(model, style_of(config))
    whole = read_words(config, context.data, context)
    vocabulary = WordVocabulary(model)
    languages, said = readable_languages(vocabulary, whole, config)
    words = whole.of(languages)
    split = split_of(words, config, context)
    tasks = tasks_of(words, config)
    check_possible(words, tasks, config, model.n_layers, context.engine)
    out = []
    for task in tasks:
        questions = questions_of(model, words, task, split.measured, split, config, context)
        if not questions:
            said.append(f"{task.key} is left out: no measured concept has the words that it needs.")
            continue
        found = []
        for question in questions:
            context.check()
            found.append(candidates_of(vocabulary, words, question))
        asked = AskedTask(task, questions, found)
        shots = min(config.shots, examples_for(words, task, split))
        if shots < config.shots:
            said.append(
                f"Prompts of {task.key} have {shots} of {config.shots} examples: no more of the other concepts "
                f"have the words that it needs; give more concepts, a larger fit_share, or fewer shots."
            )
        if model.too_long(asked.longest):
            raise InputError(
                f"A prompt of {task.key} has {asked.longest} tokens with its answer, more than the context of "
                f"{model.name} ({model.context_length}); ask with fewer shots."
            )
        if not any(each.own[task.target].words for each in found):
            raise InputError(
                f"No word of {task.target} can be looked for: each is the same in another language or cannot be "
                f"written by the tokenizer of {model.name}; leave out a language."
            )
        out.append(asked)
    if not out:
        raise InputError("No task is left: no measured concept has words in the languages that are asked for.")
    return PreparedWords(words, split, out, vocabulary, said)


def warn_of_words(ready: PreparedWords, context: Context) -> None:
    """Say which languages are left out, and which words are."""
    for sentence in ready.left_out:
        context.warn(sentence)
    for asked in ready.asked[:1]:
        for name, what in (
            ("unwritable", "cannot be written by the tokenizer"),
            ("same", "are words of another language too"),
            ("apart", "are cut apart from the prompt, whose last token would be another one with them"),
        ):
            counts = Counter(g for each in asked.candidates for g in getattr(each, name))
            if counts:
                shown = ", ".join(f"{n} of {g}" for g, n in sorted(counts.items()))
                context.warn(f"Words that {what}: {shown} (of {len(asked.candidates)} concepts).")


def token_table(ready: PreparedWords) -> pl.DataFrame:
    """What the tokenizer makes of each language's words, in the first task: how many concepts have a word that can be
    looked for, how many tokens it has, how many concepts have a token that begins it and no other language's word."""
    asked = ready.asked[0]
    n = len(asked.candidates)
    rows = []
    for g in ready.words.languages:
        words = [each.own[g].words for each in asked.candidates]
        lengths = [len(tokens) for own in words for tokens in own]
        rows.append(
            {
                "language": g,
                "concepts": n,
                "with_word": sum(bool(own) for own in words),
                "with_tokens_of_its_own": sum(bool(each.own[g].ids) for each in asked.candidates),
                "same_in_another_language": sum(g in each.same for each in asked.candidates),
                "unwritable": sum(g in each.unwritable for each in asked.candidates),
                "mean_tokens": float(np.mean(lengths)) if lengths else None,
                "single_token": sum(any(len(t) == 1 for t in own) for own in words),
            }
        )
    return pl.DataFrame(rows, schema_overrides={"mean_tokens": pl.Float64})


def group_table(ready: PreparedWords) -> pl.DataFrame:
    """The tokens that begin words of one language and of no other, over all concepts, also those that are not measured:
    language, ids."""
    spoken = {g: [word for own in cells for word in own] for g, cells in ready.words.words.items()}
    of = {g: {i for word in own for i in ready.vocabulary.beginnings(word)} for g, own in spoken.items()}
    times = Counter(i for ids in of.values() for i in ids)
    rows = [{"language": g, "ids": sorted(i for i in ids if times[i] == 1)} for g, ids in of.items()]
    return pl.DataFrame(rows, schema={"language": pl.String, "ids": pl.List(pl.Int64)})
