"""The data: concepts, and what each is called in every language.

A row is a concept. Its column `concept` names it, every other column is a language whose cell is the concept's word (or
several, as `a|b`), but for `cloze_<language>`, a clue in that language that the word answers, and `group`, concepts of
which belong together. A cell may be empty."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from probes.latent_language.config import Config
from workbench import organisms
from workbench.core.column_names import column_map
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.core.tables import read_table

CLUE = "cloze_"
FEWEST = 4  # concepts: one is measured, another gives its null, two are examples


@dataclass(frozen=True)
class WordList:
    """`concepts` [n] by name, `groups` [n] what is independent; of every language the words [n] (alternatives, none
    where the cell is empty) and the clues [n] (empty where there is none)."""

    concepts: tuple[str, ...]
    groups: tuple[str, ...]
    words: Mapping[str, tuple[tuple[str, ...], ...]]
    clues: Mapping[str, tuple[str, ...]]

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.words)

    def of(self, languages: Sequence[str]) -> WordList:
        """The same with these languages only."""
        return WordList(
            self.concepts,
            self.groups,
            {name: self.words[name] for name in languages},
            {name: self.clues[name] for name in languages},
        )


def own_words(model: str) -> Path | str | None:
    """The word list that ships with a model."""
    name = organisms.name_of(model)
    if name is None:
        return None
    if name.startswith("organism"):
        return "probes.latent_language:material/organism.jsonl"
    words = (organisms.truth(name).get("data") or {}).get("spoken")
    return None if words is None else organisms.folder(name) / words


def read_words(config: Config, data: Path | None, context: Context | None = None) -> WordList:
    """The word list of a file. Raises InputError for a file without two languages, an unknown language, a concept
    named twice, and fewer than four concepts."""
    if data is None:
        raise InputError("latent-language needs a word list: a file with a column 'concept' and one for each language.")
    names = column_map(config.columns, ("concept",))
    frame = read_table(
        data, required=("concept",), columns=names, what="words", tell=None if context is None else context.read_as
    )
    if context is not None and frame.height > config.limit:
        context.rows_used = config.limit
    frame = frame.head(config.limit)
    there = [c for c in frame.columns if c not in ("concept", "group") and not c.startswith(CLUE)]
    for name in config.languages:
        if name not in there:
            raise InputError(f"{data} has no language '{name}'{nearest(name, there)}; it has {', '.join(there)}.")
    languages = list(dict.fromkeys(config.languages)) or there
    if len(languages) < 2:
        raise InputError(
            f"{data} has {len(languages)} columns of words; a comparison needs two languages, each in a column of its "
            f"own beside 'concept'."
        )
    twice = ~frame["concept"].is_first_distinct()
    if twice.any():
        row = int(twice.arg_true()[0])
        raise InputError(f"{data}, row {row + 1}: the concept '{frame['concept'][row]}' stands there twice; keep one.")
    if frame.height < FEWEST:
        raise InputError(f"{data} has {frame.height} concepts; at least {FEWEST} are needed (fifty are better).")
    words = {name: tuple(_alternatives(text) for text in _texts(frame, name, data)) for name in languages}
    clues = {
        name: tuple(_texts(frame, CLUE + name, data)) if CLUE + name in frame.columns else ("",) * frame.height
        for name in languages
    }
    concepts = tuple(frame["concept"].to_list())
    groups = tuple(_texts(frame, "group", data)) if "group" in frame.columns else concepts
    return WordList(concepts, tuple(g or c for g, c in zip(groups, concepts)), words, clues)


def _texts(frame: pl.DataFrame, column: str, data: Path) -> list[str]:
    series = frame[column]
    if series.dtype not in (pl.String, pl.Null):
        raise InputError(
            f"{data}: the column '{column}' must hold text; its cells are words (several as a|b). Where it is no "
            f"language, name those that are, as in --set languages=english,french."
        )
    return [unicodedata.normalize("NFC", text or "").strip() for text in series.to_list()]


def _alternatives(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (part.strip() for part in text.split("|")))))
