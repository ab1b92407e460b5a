"""What a run keeps of its sets: every text as it was fed, and what each set is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.row_groups import grouped_rows

NULLABLE = {"difficulty": pl.Int64, "lowest": pl.Float64, "highest": pl.Float64}  # of the table `sets`


def inputs_table(
    concept: ConceptSet, condition: str, ids: Sequence[Sequence[int]], tests: Sequence[np.ndarray], *, start: int
) -> pl.DataFrame:
    """One row per text as it was fed, ids [n][tokens], with its label and the part of the split that tests it; rows are
    numbered from `start`."""
    fold = np.full(len(ids), -1)
    for k, test in enumerate(tests):
        fold[test] = k
    return pl.DataFrame(
        {
            "row": np.arange(start, start + len(ids)),
            "ids": [list(map(int, row)) for row in ids],
            "dataset": concept.name,
            "condition": condition,
            "label": concept.labels,
            "split": ["test" if f >= 0 else "train" for f in fold],
            "fold": fold,
            "group": pl.Series(list(concept.groups or [None] * len(ids)), dtype=pl.String),
        }
    )


def set_row(concept: ConceptSet, by_group: bool) -> dict:
    """The row of a set in the table `sets`."""
    answers = concept.answers or ("", "")
    classes = concept.classes or ("", "")
    return {
        "dataset": concept.name,
        "difficulty": concept.difficulty,
        "n": len(concept),
        "class0": classes[0],
        "class1": classes[1],
        "n_class1": int((concept.labels == 1).sum()) if concept.classes else 0,
        "n_classes": len(concept.classes),
        "classes": ", ".join(concept.classes),
        "lowest": None if concept.classes else float(concept.labels.min()),
        "highest": None if concept.classes else float(concept.labels.max()),
        "groups": len(set(concept.groups)) if concept.groups else 0,
        "split_by_group": by_group,
        "grouped_by": concept.grouped_by if concept.groups else "",
        "grouped_rows": grouped_rows(concept.groups),
        "published": concept.published,
        "template": concept.template,
        "answer0": answers[0],
        "answer1": answers[1],
    }
