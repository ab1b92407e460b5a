"""What is looked for after a prompt: of every language the words of the concept, and those of an unrelated one.

What belongs to several languages tells none of them: a word that two languages share is taken from both, and so is a
token that may begin words of both, or that the words of both begin with after the prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from probes.latent_language.config import Config
from probes.latent_language.questions import WordQuestion
from probes.latent_language.tokens_of_words import WordTokens, WordVocabulary, is_han
from probes.latent_language.word_lists import WordList
from workbench.core.errors import InputError

SHARED, HAN = "shared", "Han"  # what tokens of several languages are reported as


@dataclass(frozen=True)
class WantedTokens:
    """Of one concept in one language: `words`, the token ids of each alternative; `firsts`, the first tokens of these;
    `ids`, the tokens that may begin one. All without what other languages have too."""

    words: tuple[tuple[int, ...], ...]
    firsts: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class LanguageCandidates:
    """After one prompt: by language what is `own` and what is the `null`; tokens of several languages by the name that
    they are reported as; how many words the tokenizer could not write (`unwritable`), were the same in two languages
    (`same`), and were cut apart from the prompt (`apart`), each by language."""

    own: Mapping[str, WantedTokens]
    null: Mapping[str, WantedTokens]
    several: Mapping[str, tuple[int, ...]]
    unwritable: tuple[str, ...]
    same: tuple[str, ...]
    apart: tuple[str, ...]


def candidates_of(vocabulary: WordVocabulary, words: WordList, question: WordQuestion) -> LanguageCandidates:
    """What is looked for after the prompt of a question."""
    own, unwritable, apart = _tokens(vocabulary, words, question, question.concept)
    null, *_ = _tokens(vocabulary, words, question, question.other)
    counts = Counter(tokens for language in own.values() for tokens in {*language})
    begins = {g: _beginnings(vocabulary, words.words[g][question.concept]) for g in words.languages}
    times = Counter(i for ids in begins.values() for i in ids)
    several = {i for i, n in times.items() if n > 1}
    first, first_of_null = _first_tokens(own), _first_tokens(null)
    kept = {
        g: WantedTokens(
            tuple(t for t in own[g] if counts[t] == 1),
            tuple(i for i in dict.fromkeys(t[0] for t in own[g] if counts[t] == 1) if first[i] == 1),
            tuple(i for i in begins[g] if i not in several),
        )
        for g in words.languages
    }
    taken = set(times)
    of_null = {g: _beginnings(vocabulary, words.words[g][question.other]) for g in words.languages}
    again = Counter(i for ids in of_null.values() for i in ids)
    unlike = {
        g: tuple(t for t in null[g] if sum(t in o for o in null.values()) == 1 and t not in counts)
        for g in words.languages
    }
    beside = {
        g: WantedTokens(
            unlike[g],
            tuple(i for i in dict.fromkeys(t[0] for t in unlike[g]) if first_of_null[i] == 1 and i not in first),
            tuple(i for i in of_null[g] if again[i] == 1 and i not in taken),
        )
        for g in words.languages
    }
    text = {i: vocabulary.model.token_strings([i])[0] for i in several}
    named = {
        SHARED: tuple(sorted(i for i in several if not is_han(text[i]))),
        HAN: tuple(sorted(i for i in several if is_han(text[i]))),
    }
    same = tuple(g for g in words.languages if own[g] and not kept[g].words)
    return LanguageCandidates(kept, beside, named, unwritable, same, apart)


def _tokens(
    vocabulary: WordVocabulary, words: WordList, question: WordQuestion, concept: int
) -> tuple[dict[str, tuple[tuple[int, ...], ...]], tuple[str, ...], tuple[str, ...]]:
    """The tokens of a concept's words by language, the languages that have words of which none can be written, and
    those with words that are cut apart from the prompt."""
    out, lost, apart = {}, [], []
    for g in words.languages:
        found: list[WordTokens | None] = [
            vocabulary.after(question.written, question.space, word) for word in words.words[g][concept]
        ]
        there = [each for each in found if each is not None]
        out[g] = tuple(dict.fromkeys(each.tokens for each in there))
        if found and not there:
            lost.append(g)
        if any(each.apart for each in there):
            apart.append(g)
    return out, tuple(lost), tuple(apart)


def _first_tokens(words: Mapping[str, Iterable[tuple[int, ...]]]) -> Counter[int]:
    """First token of a word -> how many languages have a word with it."""
    return Counter(i for own in words.values() for i in {tokens[0] for tokens in own})


def _beginnings(vocabulary: WordVocabulary, words: Iterable[str]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(i for word in words for i in vocabulary.beginnings(word)))


def readable_languages(
    vocabulary: WordVocabulary, words: WordList, config: Config
) -> tuple[tuple[str, ...], list[str]]:
    """The languages of which the tokenizer writes at least half of the words, and a sentence for every other one.

    Raises InputError where fewer than two are left, and where one is left out that the config names."""
    kept, said = [], []
    named = {*config.languages, *(part for pair in config.pairs for part in pair.split(":"))}
    for g in words.languages:
        cells = [cell for cell in words.words[g] if cell]
        written = [cell for cell in cells if any(vocabulary.writes(word) for word in cell)]
        if cells and len(written) * 2 >= len(cells):
            kept.append(g)
            continue
        what = f"{len(written)} of {len(cells)} words" if cells else "no words at all"
        lost = f"{g} is left out: the tokenizer of {vocabulary.model.name} writes {what} of it."
        if g in named:
            raise InputError(
                f"{lost[:-1]}; leave it out of 'languages' and 'pairs', or give a column that it can write."
            )
        said.append(lost)
    if len(kept) < 2:
        raise InputError(
            f"The tokenizer of {vocabulary.model.name} writes the words of {len(kept)} of {len(words.languages)} "
            f"languages, and a comparison needs two; give words in its own vocabulary with --data (a column for each "
            f"language)."
        )
    return tuple(kept), said


def contexts_of(
    questions: Sequence[WordQuestion], candidates: Sequence[LanguageCandidates], *, several: bool
) -> tuple[list[tuple[int, ...]], list[list[int]], list[int]]:
    """All contexts in which a token is looked for, each once, the tokens looked for in each, and the number of the
    context of each prompt itself."""
    wanted: dict[tuple[int, ...], dict[int, None]] = {}
    roots = []
    for question, each in zip(questions, candidates):
        root = tuple(question.written.ids)
        roots.append(root)
        here = wanted.setdefault(root, {})
        for one in (*each.own.values(), *each.null.values()):
            here.update(dict.fromkeys(one.ids))
            for tokens in one.words:
                for k, token in enumerate(tokens):
                    wanted.setdefault(root + tokens[:k], {})[token] = None
        if several:
            here.update(dict.fromkeys(i for ids in each.several.values() for i in ids))
    contexts = list(wanted)
    number = {context: k for k, context in enumerate(contexts)}
    return contexts, [list(wanted[context]) for context in contexts], [number[root] for root in roots]
