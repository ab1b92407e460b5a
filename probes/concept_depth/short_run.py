"""The settings of a short run on a model, from what is known of it before it is loaded."""

from __future__ import annotations

import numpy as np

from probes.concept_depth.chosen_sets import read_sets
from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.config import ENGLISH, Config
from workbench.core.errors import InputError
from workbench.models.model_outline import Facts

FEWEST = 20  # rows of either class that a set must keep
PREFIX = "aaa "  # as long as the noise is


def example(model: Facts) -> dict[str, object]:
    """A part of every set. Where the context is short: of those sets only that keep enough of their texts. Raises
    InputError where none does."""
    values: dict[str, object] = {"split": "kfold", "noise": True, "causal": "peak", "limit": 60, "shuffles": 20}
    if model.is_organism or model.context is None:
        return values
    sets = read_sets(Config(limit=60), ENGLISH)
    lengths = {concept.name: model.lengths([PREFIX + text for text in concept.texts]) for concept in sets}
    longest = max(max(found) for found in lengths.values())
    if model.fits(longest):
        return values
    kept = tuple(concept.name for concept in sets if _keeps_enough(concept, lengths[concept.name], model))
    if not kept:
        raise InputError(
            f"The context of {model.name} ({model.context} tokens) is too short for the texts that ship (up to "
            f"{longest} tokens), so that none of their sets keeps {FEWEST} of both classes; give shorter ones with "
            f"--data."
        )
    chosen = {} if len(kept) == len(sets) else {"sets": kept}
    return values | chosen | {"long": "skip"}


def _keeps_enough(concept: ConceptSet, lengths: list[int], model: Facts) -> bool:
    kept = concept.labels[[model.fits(length) for length in lengths]]
    return min(np.count_nonzero(kept == label) for label in (0, 1)) >= FEWEST
