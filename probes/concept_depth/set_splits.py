"""How the rows of a set are divided into those that a probe is fitted on and those that it is tested on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.row_groups import grouped_rows, repeated_share
from workbench.core.errors import InputError

REPEATED = 0.01  # share of rows that repeat another above which the groups that were found are kept together
FEWEST = 10  # groups

Split = tuple[list[np.ndarray], bool]  # test rows of every fold; whether groups were kept together


def split(concept: ConceptSet, how: str, *, folds: int = 5, groups: str = "auto", rng: np.random.Generator) -> Split:
    """Test rows of each fold (one fold unless how="kfold"), and whether groups were kept together.

    "paper": 20 % test, classes in proportion. "code": 40 % test as scikit-learn's train_test_split(test_size=0.4,
    random_state=42) draws them from the classes one after the other, in the order of the official code
    (`listed_first`). "kfold": every row is tested once. `groups`: "yes" keeps groups together, "no" does not, "auto"
    does where there are at least ten (but not for how="code"); those that no `group` column gave must bind more than
    `REPEATED` of the rows. Groups are dealt out so that the classes of every part are in proportion. Raises InputError
    where a part would lack a class."""
    n, labels = len(concept), concept.strata
    by_group = concept.groups is not None and (
        groups == "yes" or (groups == "auto" and how != "code" and _worth_it(concept))
    )
    if groups == "yes" and concept.groups is None:
        raise InputError(f"The set '{concept.name}' has no 'group' column to split by, and no near-identical rows.")
    parts = folds if how == "kfold" else 1
    units = np.unique(concept.groups, return_inverse=True)[1] if by_group else np.arange(n)
    k = len(concept.classes) or int(labels.max()) + 1
    least = int(min(np.bincount(labels, minlength=k)))
    if not concept.classes and min(n, units.max() + 1) < 2 * folds:
        raise InputError(
            f"The set '{concept.name}' has {units.max() + 1} {'groups' if by_group else 'rows'} with a number: too few "
            f"for {folds} folds of two; set fewer folds, or add rows."
        )
    if concept.classes and how == "kfold" and (least < folds or units.max() + 1 < folds):
        which = "smaller" if k == 2 else "smallest"
        grouped = f" and {units.max() + 1} groups" if by_group else ""
        raise InputError(
            f"The set '{concept.name}' has {least} rows in its {which} class{grouped}: too few for {folds} folds; set "
            f"fewer folds, or split=paper, or add rows."
        )
    for _ in range(100):  # a draw by groups may miss a class; draw again
        if how == "code" and not by_group:
            classes = sorted(range(k), key=lambda j: j != concept.listed_first)
            order = np.concatenate([np.flatnonzero(labels == j) for j in classes])
            tests = [np.sort(order[np.random.RandomState(42).permutation(n)[: int(np.ceil(0.4 * n))]])]
        elif by_group:
            tests = _by_group(labels, units, parts, 0.4 if how == "code" else 0.2, rng)
        else:
            tests = _stratified(labels, parts, rng)
        if not concept.classes:
            return tests, by_group
        train = [np.delete(labels, t) for t in tests]
        if all(len(set(labels[t])) == k and len(set(rest)) == k for t, rest in zip(tests, train)):
            return tests, by_group
    every = "both" if k == 2 else f"all {k}"
    raise InputError(
        f"The set '{concept.name}' ({n} rows{', split by group' if by_group else ''}) cannot be split so that "
        f"both parts have {every} classes; add rows{', or set groups=no' if by_group else ''}."
    )


def _worth_it(concept: ConceptSet) -> bool:
    groups = concept.groups or ()
    return len(set(groups)) >= FEWEST and (concept.grouped_by == "group" or repeated_share(groups) > REPEATED)


def near_identical_apart(concept: ConceptSet, by_group: bool) -> int:
    """How many rows a split by rows may part from those that are about the same or say almost the same; 0 where they
    are few."""
    if by_group or concept.groups is None or concept.grouped_by == "group":
        return 0
    return grouped_rows(concept.groups) if repeated_share(concept.groups) > REPEATED else 0


def tested_and_fitted_on(concept: ConceptSet, tests: Sequence[np.ndarray]) -> int:
    """How many rows are tested on while an equal text is among those of the same fold that are fitted on."""
    texts = np.array(concept.texts, dtype=object)
    return sum(int(np.isin(texts[test], np.delete(texts, test)).sum()) for test in tests)


def parts_in_proportion(
    labels: np.ndarray, units: np.ndarray | None, parts: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Rows [n] dealt out to `parts` with the classes in proportion, whole `units` [n] together; one part where there
    are too few."""
    if units is None:
        return [part for part in _stratified(labels, parts, rng) if len(part)]
    names = np.unique(units, return_inverse=True)[1]
    return _by_group(labels, names, min(parts, int(names.max()) + 1), 0.5, rng)


def _stratified(labels: np.ndarray, folds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Test rows per fold, classes in proportion; a single fold takes 20 %."""
    share = np.empty(len(labels), dtype=int)
    parts = folds if folds > 1 else 5
    for k in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == k))
        share[rows] = (np.arange(len(rows)) + rng.integers(parts)) % parts
    return [np.flatnonzero(share == k) for k in range(folds)]


def _by_group(
    labels: np.ndarray, units: np.ndarray, folds: int, test_share: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Test rows per fold, whole groups each, the classes of every fold in proportion as far as the groups allow: a fold
    with more of one class than the rest makes a probe of nothing do worse than chance. A single part is as many of
    five folds (of as many as there are groups, where these are fewer) as `test_share` asks for."""
    from sklearn.model_selection import StratifiedGroupKFold  # here: it takes long to import

    parts = folds if folds > 1 else min(5, int(units.max()) + 1)
    if parts < 2:
        return [np.arange(len(labels))]  # one group: refused, for nothing is left to fit on
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class in fewer groups than folds: looked at by the caller
        try:
            made = StratifiedGroupKFold(parts, shuffle=True, random_state=int(rng.integers(2**31)))
            tests = [test for _, test in made.split(np.empty(len(labels)), labels, units)]
        except ValueError:  # fewer rows of either class than folds
            return [np.arange(len(labels))]
    if folds > 1:
        return tests
    order = rng.permutation(parts)[: max(1, round(test_share * parts))]
    return [np.sort(np.concatenate([tests[k] for k in order]))]
