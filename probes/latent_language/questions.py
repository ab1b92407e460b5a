"""The prompts: which concepts are measured and which give examples, and the question of every task for every measured
one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probes.latent_language.config import Config
from probes.latent_language.word_lists import WordList
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.models.prompt_style import WrittenPrompt, style_of, write_prompt
from workbench.models.text_side import TextSide

LABELS = {
    "english": "English",
    "french": "Français",
    "german": "Deutsch",
    "spanish": "Español",
    "chinese": "中文",
    "japanese": "日本語",
    "italian": "Italiano",
    "portuguese": "Português",
    "russian": "Русский",
    "korean": "한국어",
    "dutch": "Nederlands",
}
FEWEST_FITTED = 2  # concepts that give examples


@dataclass(frozen=True)
class LanguageTask:
    """What is asked: a task from a language (the same in repetition and cloze) into a language."""

    name: str
    source: str
    target: str

    @property
    def key(self) -> str:
        return f"{self.name} {self.source} {self.target}"


@dataclass(frozen=True)
class WordQuestion:
    """One prompt. `concept`: its number; `other`: the concept whose words are its null (of
    one that is not measured, nothing is asked of it); `space`: what stands between
    the prompt and the word."""

    task: LanguageTask
    concept: int
    other: int
    written: WrittenPrompt
    space: str


@dataclass(frozen=True)
class ConceptSplit:
    """Numbers of the concepts that give examples, translators and directions, and of those that are measured."""

    fit: tuple[int, ...]
    measured: tuple[int, ...]


def split_of(words: WordList, config: Config, context: Context) -> ConceptSplit:
    """Groups of concepts, shared out at random: `fit_share` of them, two concepts at least, are not measured."""
    groups = list(dict.fromkeys(words.groups))
    order = [groups[i] for i in context.rng("split").permutation(len(groups))]
    wanted = max(FEWEST_FITTED, round(config.fit_share * len(words.concepts)))
    fitted: list[int] = []
    for group in order:
        if len(fitted) >= wanted:
            break
        fitted += [i for i, own in enumerate(words.groups) if own == group]
    measured = tuple(i for i in range(len(words.concepts)) if i not in set(fitted))
    if len(measured) < 2:
        raise InputError(
            f"Of {len(words.concepts)} concepts in {len(groups)} groups {len(measured)} are left to measure beside "
            f"those of the examples; give more concepts, or a smaller fit_share."
        )
    return ConceptSplit(tuple(sorted(fitted)), measured)


def tasks_of(words: WordList, config: Config) -> list[LanguageTask]:
    """The tasks of a run, in their order. Raises InputError for a pair of languages that the words do not have, and
    where no task is left."""
    pairs = _pairs(words.languages, config)
    targets = list(dict.fromkeys(target for _, target in pairs))
    out = []
    for name in dict.fromkeys(config.tasks):
        if name == "translation":
            out += [LanguageTask(name, *pair) for pair in pairs]
        elif name == "repetition":
            out += [LanguageTask(name, target, target) for target in targets]
        else:
            out += [LanguageTask(name, target, target) for target in targets if any(words.clues[target])]
    if not out:
        raise InputError(
            f"No task is left: the words have no clues in {' or '.join(targets)} (a column cloze_{targets[0]}); ask "
            f"for translation or repetition."
        )
    return out


def _pairs(languages: Sequence[str], config: Config) -> list[tuple[str, str]]:
    if not config.pairs:
        if len(languages) == 2:
            return [(languages[0], languages[1])]
        return list(dict.fromkeys([(languages[1], languages[2]), (languages[1], languages[-1])]))
    found = []
    for pair in config.pairs:
        source, _, target = pair.partition(":")
        for name in (source, target):
            if name not in languages:
                raise InputError(
                    f"The pair {pair} names '{name}'{nearest(name, languages)}, and the languages that can be read "
                    f"here are {', '.join(languages)}."
                )
        found.append((source, target))
    return found


def label(language: str, config: Config) -> str:
    """What a language is called in prompts."""
    named = dict(entry.partition(":")[::2] for entry in config.labels)
    return named.get(language) or LABELS.get(language) or language[:1].upper() + language[1:]


def questions_of(
    model: TextSide,
    words: WordList,
    task: LanguageTask,
    among: Sequence[int],
    split: ConceptSplit,
    config: Config,
    context: Context,
) -> list[WordQuestion]:
    """The question of a task for each of the concepts `among`, whose examples are drawn from those that are not
    measured and share no word with it (the answer would stand in the prompt), and the unrelated concept beside it.
    Concepts without the words that a task needs are left out.

    The same concept has the same examples in every translation and repetition."""
    fit = [i for i in split.fit if _has(words, task, i)]
    out = []
    for concept in among:
        context.check()
        if not _has(words, task, concept):
            continue
        rng = context.rng(f"examples of {words.concepts[concept]}{' cloze' if task.name == 'cloze' else ''}")
        pool = [i for i in fit if i != concept and not _share_words(words, concept, i)]
        shots = [pool[i] for i in rng.permutation(len(pool))[: config.shots]]
        others = [i for i in among if i != concept and i not in shots and unrelated(words, concept, i)]
        if not others and concept not in split.fit:
            continue
        drawn = context.rng(f"unrelated to {words.concepts[concept]}").integers(max(1, len(others)))
        other = others[int(drawn)] if others else concept
        written, space = _written(model, words, task, concept, shots, config)
        out.append(WordQuestion(task, concept, other, written, space))
    return out


def examples_for(words: WordList, task: LanguageTask, split: ConceptSplit) -> int:
    """How many concepts can give an example in the prompts of a task."""
    return sum(_has(words, task, i) for i in split.fit)


def unrelated(words: WordList, a: int, b: int) -> bool:
    """Whether two concepts share no word in any language and are not of one group."""
    return words.groups[a] != words.groups[b] and not _share_words(words, a, b)


def _share_words(words: WordList, a: int, b: int) -> bool:
    return any({*own[a]} & {*own[b]} for own in words.words.values())


def _has(words: WordList, task: LanguageTask, concept: int) -> bool:
    if task.name == "cloze":
        return bool(words.words[task.target][concept] and words.clues[task.target][concept])
    return bool(words.words[task.source][concept] and words.words[task.target][concept])


def _written(
    model: TextSide, words: WordList, task: LanguageTask, concept: int, shots: Sequence[int], config: Config
) -> tuple[WrittenPrompt, str]:
    """The prompt up to where the word begins, and the space in front of the word."""
    lines = [_line(words, task, i, config) for i in (*shots, concept)]
    whole = "\n".join([*("".join(parts) for parts in lines[:-1]), lines[-1][0]])
    bare = whole.rstrip(" ")
    space = whole[len(bare) :]
    text = bare.removesuffix('"').rstrip(" ")  # in a chat, an open quotation mark, with its space, begins the answer
    opening = bare[len(text) :]
    style = style_of(config)
    written = write_prompt(model, {"prompt": text}, style=style, prefix=opening)
    return written, space if opening or written.way == "raw" else ""


def _line(words: WordList, task: LanguageTask, concept: int, config: Config) -> tuple[str, str, str]:
    """A line of the prompt: what stands before the word, the word, what stands after it."""
    word = words.words[task.target][concept][0]
    if task.name == "cloze":
        form, fields = config.cloze_form, {"clue": words.clues[task.target][concept]}
    else:
        form = config.pair_form
        fields = {
            "source": label(task.source, config),
            "target": label(task.target, config),
            "word": words.words[task.source][concept][0],
        }
    before, _, after = form.partition("{answer}")
    for name, value in fields.items():
        head, slot, tail = before.partition(f"{{{name}}}")
        before = head + value + tail if slot else before
    return before, word, after
