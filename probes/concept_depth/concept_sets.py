"""Labelled text sets for concept probes: one file or a folder of them, in the formats that the literature uses.

Besides a table with the columns `text, label[, group][, answer]` these load as they are: statements (`statement,
label`, geometry of truth and the cities of Jin et al.), SST lines (`0 some text`), coin flips and StrategyQA
(`examples` of a JSON file). Labels stay those of the file, with 1 for true, positive and yes; the official code of Jin
et al. counts true and yes as class 0, so its F1 of these sets is the F1 of class 0 here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from probes.concept_depth.config import NO_TEMPLATE, is_template
from workbench.core.cells import as_label
from workbench.core.errors import InputError
from workbench.core.json_text import parse_json
from workbench.core.paths import user_path
from workbench.core.tables import FORMATS, existing, read_table, read_text

# What the official prompts put around a text. Deviation: StrategyQA's one-shot exemplar is left out; give `template` to
# use another. The answers are those that these ask for.
_OFFICIAL_TEMPLATES = {
    "cities": "Judge the statement is True or False. {text}",
    "coin_flip": "{text} According to the flipping process above, determine if a coin remains heads up after it is "
    "either flipped or left unflipped by individuals. The answer (Yes or No) is?",
    "strategyqa": "{text} Let us think step by step...",
    "sst": "{text} The sentence above is a movie review and reflects the writer's overall intention for this review. "
    "According to the sentence, judge whether the emotion is Positive or Negative.",
}
REPEATED = 0.01  # share of rows that repeat a text above which equal texts are kept in one part
# the label that the official code lists first
_LISTED_FIRST = {"cities": "1", "coin_flip": "1", "strategyqa": "1", "sst": "0"}
_ANSWERS = {
    "cities": ("False", "True"),
    "coin_flip": ("No", "Yes"),
    "strategyqa": ("No", "Yes"),
    "sst": ("Negative", "Positive"),
}


@dataclass(frozen=True, eq=False)
class ConceptSet:
    """Texts of two classes. labels [n]: 0 or 1; classes: how the file calls them (0, 1); groups [n]: what a split
    should keep together (None where there is none); answers: the words that a model would say for class 0 and 1, where
    the texts ask for them; listed_first: the class that the official code lists first, on which its split depends;
    template: what is around each text, with {text}; difficulty: of the sets that ship, from 1."""

    name: str
    texts: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, str]
    groups: tuple[str, ...] | None = None
    answers: tuple[str, str] | None = None
    listed_first: int = 0
    template: str = "{text}"
    difficulty: int | None = None

    def bare(self, row: int) -> str:
        """The text of a row without its template."""
        before, _, after = self.template.partition("{text}")
        return self.texts[row][len(before) : len(self.texts[row]) - len(after)]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> ConceptSet:
        """Some of the texts, with their labels and groups."""
        groups = None if self.groups is None else tuple(self.groups[i] for i in rows)
        return replace(self, texts=tuple(self.texts[i] for i in rows), labels=self.labels[list(rows)], groups=groups)


def load(path: str | Path, *, pair: Sequence[str] = (), template: str = "file", limit: int = 0) -> list[ConceptSet]:
    """The sets of a file, or of every data file of a folder (in order of their names).

    `pair`: the two labels to tell apart where there are more, class 0 first. `template`: "file" frames the known
    formats as the official code does and leaves other texts alone, "plain" frames none, anything else must hold {text}.
    `limit`: first rows of each class, 0 = all. Raises InputError naming the file (and row) for files that hold no two
    classes."""
    path = user_path(path)
    if not path.is_dir():
        return [load_file(path, pair=pair, template=template, limit=limit)]
    files = sorted(
        f
        for f in path.iterdir()
        if f.is_file() and not f.name.startswith(".") and (f.suffix.lower() in FORMATS or f.suffix == ".train")
    )
    if not files:
        raise InputError(f"The folder {path} holds no concept set ({', '.join(FORMATS)}).")
    return [load_file(f, pair=pair, template=template, limit=limit) for f in files]


def load_file(path: str | Path, *, pair: Sequence[str] = (), template: str = "file", limit: int = 0) -> ConceptSet:
    """The set of one file; its name is the file's."""
    if not is_template(template):
        raise InputError(NO_TEMPLATE)
    path = existing(path, what="concept")
    frame, kind = _read(path)
    text, raw = frame["text"].to_list(), frame["label"].to_list()
    classes = _classes(raw, [as_label(name) for name in pair], path)
    kept = [i for i, label in enumerate(raw) if label in classes]
    if limit:
        seen: Counter = Counter()
        first = []
        for i in kept:
            if seen[raw[i]] < limit:
                seen[raw[i]] += 1
                first.append(i)
        kept = first
    labels = np.array([classes.index(raw[i]) for i in kept])
    pattern = {"file": _OFFICIAL_TEMPLATES.get(kind, "{text}"), "plain": "{text}"}.get(template, template)
    before, _, after = pattern.partition("{text}")
    texts = tuple(f"{before}{text[i]}{after}" for i in kept)
    groups = tuple(frame["group"][i] for i in kept) if "group" in frame.columns else None
    if groups is not None and any(g is None for g in groups):
        raise InputError(f"{path}, row {kept[groups.index(None)] + 1}: the field 'group' is empty.")
    if groups is None and len(set(texts)) < (1 - REPEATED) * len(texts):
        groups = texts  # the same text in both parts would be recognised, not judged
    # a model has an answer only where it was asked
    answers = _ANSWERS[kind] if pattern == _OFFICIAL_TEMPLATES.get(kind) and set(classes) == {"0", "1"} else None
    if answers is not None and classes == ("1", "0"):
        answers = answers[::-1]
    if "answer" in frame.columns:
        answers = _answers([frame["answer"][i] for i in kept], labels)
    first = classes.index(_LISTED_FIRST[kind]) if _LISTED_FIRST.get(kind) in classes else 0
    return ConceptSet(path.stem.split(".")[0], texts, labels, classes, groups, answers, first, pattern)


def _read(path: Path) -> tuple[pl.DataFrame, str]:
    """Columns text, label and perhaps group, answer; which of the official sets it is ("" for others)."""
    if path.suffix.lower() == ".json":
        found = _examples(path)
        if found is not None:
            return found
    if path.suffix.lower() in (".train", ".txt"):
        lines = [line.rstrip("\r") for line in read_text(path, what="concept").split("\n")]
        rows = [
            (number, re.fullmatch(r"(\S+)\s+(.*\S)\s*", line)) for number, line in enumerate(lines, 1) if line.strip()
        ]
        bad = next((number for number, match in rows if match is None or not re.fullmatch(r"-?\d+", match[1])), None)
        if bad is not None:
            raise InputError(f"{path}, line {bad}: a line must be a label and a text, as in '1 a stirring film'.")
        table = pl.DataFrame({"text": [m[2] for _, m in rows], "label": [as_label(m[1]) for _, m in rows]})
        return table, "sst"
    columns = _columns(path)
    if "text" not in columns and "statement" in columns:
        table = read_table(
            path,
            required=("text", "label"),
            labels=("label", "group", "city", "n1", "n2"),
            columns={"text": "statement"},
            what="concept",
        )
        if "group" not in table.columns:
            table = table.with_columns(_pairs(table)) if _pairs(table) is not None else table
        return table, "cities" if path.stem == "cities" else ""
    return read_table(
        path, required=("text", "label"), optional=("answer",), labels=("label", "group"), what="concept"
    ), ""


def _pairs(table: pl.DataFrame) -> pl.Series | None:
    """Statements come in true/false pairs about one thing (a city, two numbers, a Spanish word); a random split would
    put one of a pair on each side, and what the probe learns of it there is the opposite."""
    if "city" in table.columns:
        return table["city"].alias("group")
    if {"n1", "n2"} <= set(table.columns):
        return table.select(
            pl.concat_str(pl.min_horizontal("n1", "n2"), pl.max_horizontal("n1", "n2"), separator="-").alias("group")
        )["group"]
    word = table["text"].str.extract(r"^The Spanish word '([^']+)' means ", 1)
    return word.alias("group") if word.null_count() == 0 else None


def _columns(path: Path) -> list[str]:
    return read_table(path, what="concept").columns


def _examples(path: Path) -> tuple[pl.DataFrame, str] | None:
    """Coin flips and StrategyQA: a JSON object with `examples`; None where the file is none."""
    whole = parse_json(read_text(path, what="concept"), str(path))
    if not isinstance(whole, dict) or not isinstance(whole.get("examples"), list):
        return None
    texts, labels = [], []
    first = next(iter(whole["examples"]), None)
    kind = "strategyqa" if isinstance(first, dict) and "target_scores" in first else "coin_flip"
    for number, row in enumerate(whole["examples"], 1):
        try:
            if kind == "strategyqa":
                labels.append({0: "0", 1: "1"}[row["target_scores"]["Yes"]])
                # the answer is cut off, the evidence stays: not closed-book
                evidence = re.sub(r"^(Yes|No)\.", "", row["target"]).strip()
                texts.append(f"{_filled(row, 'input')} {evidence}")
            else:
                labels.append({"yes": "1", "no": "0"}[row["answer"].strip().lower()])
                texts.append(_filled(row, "question"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path}, example {number}: the field {error} is missing or wrong for a {kind} file."
            ) from None
    if not texts:
        raise InputError(f"{path} has no examples.")
    return pl.DataFrame({"text": texts, "label": labels}), kind


def _filled(row: dict, field: str) -> str:
    if not row[field].strip():
        raise KeyError(field)
    return row[field]


def _classes(labels: list[str], pair: Sequence[str], path: Path) -> tuple[str, str]:
    """The two labels, class 0 first: as `pair` says, else in order (numbers by value)."""
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
    if len(counts) > 2:
        some = ", ".join(f"'{k}'" for k, _ in counts.most_common(6))
        raise InputError(
            f"{path}: {len(counts)} different labels ({some}{', …' if len(counts) > 6 else ''}); choose two "
            f"with pair=a,b."
        )
    words = ("negative", "false", "no", "0", "-1")

    def order(label: str):
        try:
            return (0, float(label), label)
        except ValueError:
            return (0, 0 if label.lower() in words else 1, label)

    first, second = sorted(counts, key=order)
    return (first, second)


def _answers(words: list[str | None], labels: np.ndarray) -> tuple[str, str] | None:
    """The one word of each class; None where a class has several."""
    found = [{w for w, label in zip(words, labels) if label == k and w} for k in (0, 1)]
    return (found[0].pop(), found[1].pop()) if all(len(f) == 1 for f in found) else None


# ---- splits


def split(
    concept: ConceptSet, how: str, *, folds: int = 5, groups: str = "auto", rng: np.random.Generator
) -> tuple[list[np.ndarray], bool]:
    """Test rows of each fold (one fold unless how="kfold"), and whether groups were kept together.

    "paper": 20 % test, classes in proportion. "code": 40 % test as scikit-learn's train_test_split(test_size=0.4,
    random_state=42) draws them from the classes one after the other, in the order of the official code
    (`listed_first`). "kfold": every row is tested once. `groups`: "auto" keeps the groups of a `group` column together
    when there are at least ten, "yes" always, "no" never. Raises InputError where a part would lack a class."""
    n, labels = len(concept), concept.labels
    by_group = concept.groups is not None and (
        groups == "yes" or (groups == "auto" and len(set(concept.groups)) >= 10 and how != "code")
    )
    if groups == "yes" and concept.groups is None:
        raise InputError(f"The set '{concept.name}' has no 'group' column to split by.")
    parts = folds if how == "kfold" else 1
    units = np.unique(concept.groups, return_inverse=True)[1] if by_group else np.arange(n)
    least = int(min(np.bincount(labels, minlength=2)))
    if how == "kfold" and (least < folds or units.max() + 1 < folds):
        grouped = f" and {units.max() + 1} groups" if by_group else ""
        raise InputError(
            f"The set '{concept.name}' has {least} rows in its smaller class{grouped}: too few for {folds} folds."
        )
    for _ in range(100):  # a draw by groups may miss a class; draw again
        if how == "code" and not by_group:
            order = np.concatenate(
                [np.flatnonzero(labels == concept.listed_first), np.flatnonzero(labels != concept.listed_first)]
            )
            tests = [np.sort(order[np.random.RandomState(42).permutation(n)[: int(np.ceil(0.4 * n))]])]
        elif by_group:
            tests = _by_group(units, n, parts, 0.4 if how == "code" else 0.2, rng)
        else:
            tests = _stratified(labels, parts, rng)
        train = [np.delete(labels, t) for t in tests]
        if all(len(set(labels[t])) == 2 and len(set(rest)) == 2 for t, rest in zip(tests, train)):
            return tests, by_group
    raise InputError(
        f"The set '{concept.name}' ({n} rows{', split by group' if by_group else ''}) cannot be split so that "
        f"both parts have both classes; add rows{', or set groups=no' if by_group else ''}."
    )


def tested_and_fitted_on(concept: ConceptSet, tests: Sequence[np.ndarray]) -> int:
    """How many rows are tested on while an equal text is among those of the same fold that are fitted on."""
    texts = np.array(concept.texts, dtype=object)
    return sum(int(np.isin(texts[test], np.delete(texts, test)).sum()) for test in tests)


def _stratified(labels: np.ndarray, folds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Test rows per fold, classes in proportion; a single fold takes 20 %."""
    share = np.empty(len(labels), dtype=int)
    parts = folds if folds > 1 else 5
    for k in (0, 1):
        rows = rng.permutation(np.flatnonzero(labels == k))
        share[rows] = (np.arange(len(rows)) + rng.integers(parts)) % parts
    return [np.flatnonzero(share == k) for k in range(folds)]


def _by_group(units: np.ndarray, n: int, folds: int, test_share: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Test rows per fold, whole groups each, sizes as even as the groups allow."""
    order = rng.permutation(units.max() + 1)
    sizes = np.bincount(units)[order]
    if folds == 1:
        before = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        return [np.flatnonzero(np.isin(units, order[before < test_share * n - 0.5]))]
    load = np.zeros(folds)
    fold_of = np.empty(len(order), dtype=int)
    for group, size in zip(order, sizes):
        fold_of[group] = load.argmin()
        load[load.argmin()] += size
    return [np.flatnonzero(fold_of[units] == k) for k in range(folds)]


def noisy(concept: ConceptSet, how: str, *, rng: np.random.Generator) -> list[str]:
    """Each text behind "aaa" or "bbb", drawn with probability ½ whatever the label. "paper": before the whole prompt,
    with a space, as in its example; "code": glued to the bare text, which is framed afterwards, as in the official
    code."""
    prefix = np.where(rng.random(len(concept)) < 0.5, "aaa", "bbb")
    if how == "paper":
        return [f"{p} {t}" for p, t in zip(prefix, concept.texts)]
    before, _, after = concept.template.partition("{text}")
    return [f"{before}{p}{concept.bare(row)}{after}" for row, p in enumerate(prefix)]
