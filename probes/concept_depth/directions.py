"""The directions that the probes read, as a file: `directions.safetensors` in the run's folder, to steer with, to
project out or to compare elsewhere.

For every set and condition three float64 tensors, `SET/CONDITION/direction` [L, d], `…/bias` [L] and `…/scale` [L] (of
k > 2 classes one for each: [L, k, d], [L, k], [L, k]), in the units of the site that was read, whatever was
standardised: row L is the layer L. A state x lies on the side of class 1 where x @ direction + bias is above 0, that
many units from the boundary; times scale it is the probe's score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.config import Config
from probes.concept_depth.held_out import Probes
from workbench.core.files import jsonable, write_bytes
from workbench.models.model import Model

NAME = "directions.safetensors"
SCORE = "scale * (x @ direction + bias); above 0 is class 1"
OF_NUMBERS = "scale * (x @ direction + bias) is the number that is read"
OF_SEVERAL = "scale * (x @ direction.T + bias), one for each class; the highest is the class that is read"


def coefficients(probes: Probes) -> np.ndarray:
    """w and then b of every layer, [L, d + 1] float64, or [L, k, d + 1] of k classes."""
    return np.concatenate([probes.coef.numpy(), probes.intercept.numpy()[..., None]], axis=-1)


def unit_directions(learned: np.ndarray) -> dict[str, np.ndarray]:
    """``direction`` [L, d] of length 1, ``bias`` [L] and ``scale`` [L] of coefficients [L, d + 1] (and so for each of k
    classes, [L, k, d + 1]). A probe that has found nothing (all weights 0) has no direction: it is 0, and its scale 1.
    """
    weights, intercept = learned[..., :-1], learned[..., -1]
    length = np.linalg.norm(weights, axis=-1)
    scale = np.where(length > 0, length, 1.0)
    return {"direction": weights / scale[..., None], "bias": intercept / scale, "scale": scale}


def save_directions(
    out: Path,
    learned: Mapping[tuple[str, str], np.ndarray],
    sets: Sequence[ConceptSet],
    config: Config,
    model: Model,
) -> None:
    """Write the file: ``learned``, (set, condition) -> coefficients of the probes of the first fold. Its metadata has
    one JSON text, ``about``: what was read (site, token), how (c, standardize, split), of which model and classes."""
    from safetensors.numpy import save

    tensors = {
        f"{name}/{condition}/{part}": np.ascontiguousarray(values)
        for (name, condition), found in learned.items()
        for part, values in unit_directions(found).items()
    }
    about = {
        "score": SCORE,
        "site": config.site,
        "layers": list(range(model.n_layers)),
        "token": config.token,
        "classifier": config.classifier,
        "c": config.c if config.classifier == "logistic" else None,
        "standardize": config.standardize,
        "split": config.split,
        "fitted_on": "the rows outside of the first test part",
        "classes": {concept.name: list(concept.classes) for concept in sets},
        "conditions": list(dict.fromkeys(condition for _, condition in learned)),
        "model": {"name": str(model.name), "fingerprint": model.fingerprint},
    }
    if config.target == "number":
        about |= {"score": OF_NUMBERS, "classifier": "ridge", "c": None}
    if any(len(concept.classes) > 2 for concept in sets):
        about["score_of_several"] = OF_SEVERAL
    write_bytes(out / NAME, save(tensors, metadata={"about": json.dumps(jsonable(about), ensure_ascii=False)}))
