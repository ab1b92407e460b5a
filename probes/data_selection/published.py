"""Lists of an autoencoder's features as others publish them: JSON of sae-lens or Neuronpedia, one object a feature with
its number and how often it fires, what it stands for, or both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import polars as pl

from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.core.numbers_in_tables import number_of, whole_number_of
from workbench.core.wording import cut
from workbench.runs.imported import ImportedResult, PublishedFile

# what a field may be called in a file whose fields nobody has named
NAMES = {
    "feature": ("index", "feature", "feature_index", "featureIndex", "feature_id", "featureId", "feature_idx"),
    "density": ("frac_nonzero", "fracNonzero", "density", "feature_density", "activation_frequency", "firing_rate"),
    "explanation": ("description", "explanation", "explanations", "label", "interpretation"),
    "source": ("layer", "source", "sourceId", "layer_id", "hook_name", "sae_id", "saeId"),
    "model": ("modelId", "model_id", "model_name", "model"),
}
LISTS = ("features", "explanations", "results", "data")  # under which an object may hold the list
FEATURES = {
    "target": pl.String,
    "feature": pl.Int64,
    "weight": pl.Float64,
    "density": pl.Float64,
    **dict.fromkeys(("lift", "lift_low", "lift_high", "contribution"), pl.Float64),
    "distinctive": pl.Boolean,
    "explanation": pl.String,
    "source": pl.String,
    "link": pl.String,
}
_NEURONPEDIA = re.compile(r"\d+-[a-z0-9][a-z0-9_.-]*")  # what it calls an autoencoder: layer-name


def read(file: PublishedFile) -> ImportedResult | None:
    """``features`` of such a list, in which what a target makes of them (weight, lift, contribution) is null; None for
    a file that is none.

    A feature that is listed several times (with an explanation of each explainer) is one row, its explanations in one
    text. Raises InputError that names the row for a number that is none, densities outside 0 to 1 or at odds, and a
    list of several autoencoders or models."""
    rows = _rows(file)
    if rows is None or not file.names_only(tuple(NAMES)):
        if file.expected:
            raise InputError(
                f"{file.path} is no list of features; it must be a JSON list (or JSON Lines) of objects with the "
                f"number of a feature and its density or explanation."
            )
        return None
    there = list(dict.fromkeys(name for row in rows for name in row))
    place = {field: _fields(field, there, file) for field in NAMES}
    says_something = place["density"] or place["explanation"]
    if not place["feature"] or not says_something:
        if file.expected or file.columns:
            missing = "feature" if not place["feature"] else "density or explanation"
            first = missing.partition(" ")[0]
            raise InputError(
                f"{file.path} has no field that is known to hold the {missing} (its fields are "
                f"{cut(', '.join(there), 200)}); name it with --columns {first}:FIELD."
            )
        return None
    features = _features(rows, place, file)
    source, model = (_one(rows, place[field], field, file) for field in ("source", "model"))
    link = f"https://www.neuronpedia.org/{quote(model)}/{quote(source)}/" if _known_there(model, source) else None
    table = pl.DataFrame(
        [
            {"feature": number, "density": density, "explanation": text, "source": source}
            | {"link": f"{link}{number}" if link else None}
            for number, (density, text) in sorted(features.items())
        ],
        schema_overrides=FEATURES,
    )
    missing = [pl.lit(None, dtype=FEATURES[name]).alias(name) for name in FEATURES if name not in table.columns]
    table = table.with_columns(missing).select(list(FEATURES))
    layer = re.match(r"\d+", source or "")
    return ImportedResult(
        tables={"features": table},
        summary=_summary(table),
        model={"name": model} if model else {},
        config={"layer": int(layer[0])} if layer else {},
    )


def _rows(file: PublishedFile) -> list[Mapping[str, Any]] | None:
    """The objects of the list; None where the file holds none. Raises InputError for a list with something else in
    it."""
    found = file.json
    if isinstance(found, dict):
        inside = [found[name] for name in LISTS if isinstance(found.get(name), list)]
        found = inside[0] if len(inside) == 1 else None
    if not isinstance(found, list) or not found or not isinstance(found[0], dict):
        return None
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise InputError(f"{file.path}, row {number}: a JSON object is needed, not {cut(repr(row), 40)}.")
    return found


def _fields(field: str, there: Sequence[str], file: PublishedFile) -> tuple[str, ...]:
    """The fields of the objects that may hold it, the one that the person named alone."""
    named = file.columns.get(field)
    if named is None:
        return tuple(name for name in NAMES[field] if name in there)
    if named not in there:
        raise InputError(f"{file.path} has no field '{named}'{nearest(named, there)}; it has {', '.join(there)}.")
    return (named,)


def _features(
    rows: Sequence[Mapping[str, Any]], place: Mapping[str, tuple[str, ...]], file: PublishedFile
) -> dict[int, tuple[float | None, str | None]]:
    """Number of a feature -> (density, explanation)."""
    found: dict[int, tuple[float | None, str | None]] = {}
    for n, row in enumerate(rows, 1):
        where = f"{file.path}, row {n}"
        named = {whole_number_of(row[name], where=where, field=name) for name in place["feature"] if name in row}
        if len(named) != 1:
            what = "says two numbers of the feature" if named else f"has no field '{place['feature'][0]}'"
            raise InputError(f"{where}: the object {what}; each needs one.")
        number = named.pop()
        told = [number_of(row.get(name), where=where, field=name, low=0, high=1) for name in place["density"]]
        densities = {value for value in (*told, found.get(number, (None, None))[0]) if value is not None}
        if len(densities) > 1:
            raise InputError(
                f"{where}: the feature {number} has the densities {' and '.join(f'{d:g}' for d in sorted(densities))}; "
                f"say which to read with --columns density:FIELD, or keep one row."
            )
        before = found.get(number, (None, None))[1]
        texts = [before] if before else []
        texts += [text for name in place["explanation"] for text in _texts(row.get(name), where=where, field=name)]
        found[number] = (densities.pop() if densities else None, " | ".join(dict.fromkeys(texts)) or None)
    return found


def _texts(value: Any, *, where: str, field: str) -> list[str]:
    """The explanations in a field: a text, or a list of texts or of objects with a description."""
    if isinstance(value, list):
        return [text for item in value for text in _texts(item, where=where, field=field)]
    if isinstance(value, dict):
        inner = next((value[name] for name in ("description", "explanation", "text") if name in value), None)
        return _texts(inner, where=where, field=field)
    if value is None:
        return []
    if not isinstance(value, str):
        raise InputError(f"{where}: the field '{field}' is {cut(repr(value), 40)}, and an explanation is text.")
    text = " ".join(value.split())
    return [text] if text else []


def _one(rows: Sequence[Mapping[str, Any]], names: Sequence[str], field: str, file: PublishedFile) -> str | None:
    """What all rows say of the autoencoder (or the model). Raises InputError where they say different things: numbers
    of features mean nothing across autoencoders."""
    first: str | None = None
    for n, row in enumerate(rows, 1):
        said = next((row[name] for name in names if row.get(name) is not None), None)
        if said is None:
            continue
        if isinstance(said, bool) or not isinstance(said, (str, int)):
            raise InputError(f"{file.path}, row {n}: the {field} is {cut(repr(said), 40)}, and a name is needed.")
        if first is not None and str(said) != first:
            what = "autoencoders" if field == "source" else "models"
            raise InputError(
                f"{file.path}, row {n}: the {field} is '{cut(said, 60)}' and was '{cut(first, 60)}' before; a run is "
                f"of one, so write the features of the {what} into a file each."
            )
        first = str(said)
    return first


def _known_there(model: str | None, source: str | None) -> bool:
    """Whether Neuronpedia has a page of each feature: the list calls model and autoencoder as it does."""
    return bool(model and source and "/" not in model and _NEURONPEDIA.fullmatch(source))


def _summary(table: pl.DataFrame) -> dict:
    densities = table["density"].drop_nulls()
    return {
        "features": table.height,
        "explained": table.height - table["explanation"].null_count(),
        **({"median_density": densities.median(), "dead": int((densities == 0).sum())} if len(densities) else {}),
    }
