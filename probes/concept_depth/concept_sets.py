"""Labelled text sets for concept probes: one file or a folder of them, in the formats that the literature uses.

Besides a table with the columns `text, label[, group][, answer]` these load as they are: statements (`statement,
label`, geometry of truth) and the sets of Jin et al. (`probes/concept_depth/published_sets.py`), in their official
prompt. Labels stay those of the file, with 1 for true, positive and yes; the official code counts true and yes as class
0, so its F1 of these sets is the F1 of class 0 here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from probes.concept_depth.config import NO_TEMPLATE, is_frame
from probes.concept_depth.published_sets import CODE, PublishedSet
from probes.concept_depth.row_groups import groups_of
from probes.concept_depth.set_files import read_set
from workbench.core.cells import as_label
from workbench.core.errors import InputError
from workbench.core.packed_files import bare_name
from workbench.core.paths import user_path
from workbench.core.tables import FORMATS, existing

MOST_CLASSES = 20  # labels beyond it are names or numbers, of which there are too few rows each


@dataclass(frozen=True, eq=False)
class ConceptSet:
    """Texts of two classes, or of more. labels [n]: 0 or 1, or up to k − 1 (of a set of numbers these themselves,
    float64, and no classes); classes: how the file calls them, in that order; groups [n]: what a split should keep
    together (None where there is nothing); grouped_by: what made the groups (`group`, another column of the file,
    `near-identical`); answers: the words that a model would say for class 0 and 1, where the texts ask for them (of two
    classes only); listed_first: the class that the official code lists first, on which its split depends; template:
    what is around each text, with {text}; published: which of the published sets it is; difficulty: of the sets that
    ship, from 1."""

    name: str
    texts: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    answers: tuple[str, str] | None = None
    listed_first: int = 0
    template: str = "{text}"
    difficulty: int | None = None
    grouped_by: str = "group"
    published: str = ""

    def bare(self, row: int) -> str:
        """The text of a row without its template."""
        before, _, after = self.template.partition("{text}")
        return self.texts[row][len(before) : len(self.texts[row]) - len(after)]

    @property
    def strata(self) -> np.ndarray:
        """What a split keeps in proportion, [n]: the classes; of numbers fifths of the rows by their rank."""
        if self.classes:
            return self.labels
        return np.searchsorted(np.quantile(self.labels, [0.2, 0.4, 0.6, 0.8]), self.labels, side="right")

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> ConceptSet:
        """Some of the texts, with their labels and groups."""
        groups = None if self.groups is None else tuple(self.groups[i] for i in rows)
        return replace(self, texts=tuple(self.texts[i] for i in rows), labels=self.labels[list(rows)], groups=groups)


def load(
    path: str | Path,
    *,
    pair: Sequence[str] = (),
    template: str = "file",
    limit: int = 0,
    columns: Mapping[str, str] | None = None,
    target: str = "class",
) -> list[ConceptSet]:
    """The sets of a file, or of every data file of a folder (in order of their names).

    `pair`: the two labels to tell apart where there are more, class 0 first; without it all are, up to `MOST_CLASSES`.
    `template`: "file" frames the published sets in their official prompt and leaves other texts alone, "code" frames
    them as the official code runs them, "plain" frames none, anything else must hold {text}. `limit`: first rows of
    each class, 0 = all. `columns`: what text, label, group and answer are called in the file. `target`: "class", or
    "number" for labels that are numbers. Raises InputError naming the file (and row) for files that hold no two
    classes, or too many."""
    path, options = (
        user_path(path),
        {"pair": pair, "template": template, "limit": limit, "columns": columns, "target": target},
    )
    if not path.is_dir():
        return [load_file(path, **options)]
    files = sorted(
        f
        for f in path.iterdir()
        if f.is_file() and not f.name.startswith(".") and Path(bare_name(f)).suffix.lower() in (*FORMATS, ".train")
    )
    if not files:
        raise InputError(f"The folder {path} holds no concept set ({', '.join(FORMATS)}).")
    return [load_file(f, **options) for f in files]


def load_file(
    path: str | Path,
    *,
    pair: Sequence[str] = (),
    template: str = "file",
    limit: int = 0,
    columns: Mapping[str, str] | None = None,
    target: str = "class",
) -> ConceptSet:
    """The set of one file; its name is the file's."""
    if not is_frame(template):
        raise InputError(NO_TEMPLATE)
    path = existing(path, what="concept")
    frame, published = read_set(path, columns or {})
    raw = frame["label"].to_list()
    if target == "number":
        frame = frame[: limit or None]
        return _of_numbers(path, frame, *_frame(template, published, path)[:1])
    pair = [as_label(name) for name in pair] or (published.pair if published is not None else ())
    classes = _classes(raw, pair, path)
    kept = [i for i, label in enumerate(raw) if label in classes]
    if limit:
        seen: Counter = Counter()
        first = []
        for i in kept:
            if seen[raw[i]] < limit:
                seen[raw[i]] += 1
                first.append(i)
        kept = first
    frame = frame[kept]
    labels = np.array([classes.index(label) for label in frame["label"]])
    pattern, asked = _frame(template, published, path)
    before, _, after = pattern.partition("{text}")
    bare = frame["text"].to_list()
    groups, grouped_by = _groups(frame)
    answers = None
    if len(classes) == 2:
        answers = (asked[classes[0]], asked[classes[1]]) if set(classes) <= asked.keys() else None
        if "answer" in frame.columns:
            answers = _answers(frame["answer"].to_list(), labels)
    listed = published.listed_first if published is not None else ""
    return ConceptSet(
        path.stem.split(".")[0],
        tuple(f"{before}{text}{after}" for text in bare),
        labels,
        classes,
        groups,
        answers,
        classes.index(listed) if listed in classes else 0,
        pattern,
        grouped_by=grouped_by,
        published=published.name if published is not None else "",
    )


def _groups(frame: pl.DataFrame) -> tuple[tuple[str, ...] | None, str]:
    """What a split should keep together, and what made it so."""
    if "group" in frame.columns:
        return tuple(frame["group"]), "group"
    return groups_of(frame["text"].to_list(), frame.drop("text", "label", "answer", strict=False))


def _of_numbers(path: Path, frame: pl.DataFrame, pattern: str) -> ConceptSet:
    """The set of a file whose labels are numbers. Raises InputError for one that is none, and where all are equal."""
    numbers = np.empty(frame.height)
    for row, label in enumerate(frame["label"].to_list()):
        try:
            numbers[row] = float(label)
        except ValueError:
            numbers[row] = np.nan
        if not np.isfinite(numbers[row]):
            raise InputError(
                f"{path}, row {row + 1}: the label '{label}' is not a number; with target=number every label must be "
                f"one."
            )
    if len(set(numbers.tolist())) < 2:
        raise InputError(f"{path}: every row has the number {numbers[0]:g}; there is nothing to tell apart.")
    before, _, after = pattern.partition("{text}")
    groups, grouped_by = _groups(frame)
    texts = tuple(f"{before}{text}{after}" for text in frame["text"].to_list())
    return ConceptSet(path.stem.split(".")[0], texts, numbers, (), groups, template=pattern, grouped_by=grouped_by)


def _frame(template: str, published: PublishedSet | None, path: Path) -> tuple[str, Mapping[str, str]]:
    """What stands around each text, and the word for each label that it asks for: a model has an answer only where it
    was asked."""
    if template == "code" and published is None:
        raise InputError(
            f"{path}: template=code is what the official code feeds of its own sets, and this is none of them; use "
            f"template=file or plain."
        )
    if template in ("file", "code") and published is not None:
        instruction = CODE if template == "code" else published.instruction
        return published.template(instruction), published.answers_to(instruction)
    return ("{text}" if template in ("file", "plain") else template), {}


def _classes(labels: list[str], pair: Sequence[str], path: Path) -> tuple[str, ...]:
    """The labels, class 0 first: the two that `pair` names, else all in order (numbers by value)."""
    counts = Counter(labels)
    if pair:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise InputError(f"pair needs two different labels, not {', '.join(pair)}.")
        for label in pair:
            if label not in counts:
                raise InputError(f"{path}: no row has the label '{label}'; the labels are {', '.join(sorted(counts))}.")
        return (pair[0], pair[1])
    if len(counts) == 1:
        raise InputError(f"{path}: every row has the label '{labels[0]}'; a concept needs two classes.")
    if len(counts) > MOST_CLASSES:
        some = ", ".join(f"'{k}'" for k, _ in counts.most_common(6))
        raise InputError(
            f"{path}: {len(counts)} different labels ({some}, …), where {MOST_CLASSES} classes are the most; choose "
            f"two with pair=a,b."
        )
    words = ("negative", "false", "no", "neg", "incorrect", "wrong", "n", "f")

    def order(label: str):
        try:
            return (0, float(label), label)
        except ValueError:
            return (0, 0 if label.lower() in words else 1, label)

    return tuple(sorted(counts, key=order))


def _answers(words: list[str | None], labels: np.ndarray) -> tuple[str, str] | None:
    """The one word of each class; None where a class has several."""
    found = [{w for w, label in zip(words, labels) if label == k and w} for k in (0, 1)]
    return (found[0].pop(), found[1].pop()) if all(len(f) == 1 for f in found) else None


def noisy(concept: ConceptSet, how: str, *, rng: np.random.Generator) -> list[str]:
    """Each text behind "aaa" or "bbb", drawn with probability ½ whatever the label. "paper": before the whole prompt,
    with a space, as in its example; "code": glued to the bare text, which is framed afterwards, as in the official
    code."""
    prefix = np.where(rng.random(len(concept)) < 0.5, "aaa", "bbb")
    if how == "paper":
        return [f"{p} {t}" for p, t in zip(prefix, concept.texts)]
    before, _, after = concept.template.partition("{text}")
    return [f"{before}{p}{concept.bare(row)}{after}" for row, p in enumerate(prefix)]
