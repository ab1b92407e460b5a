"""The passages of reference texts in which a feature is most active."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from workbench.core.errors import InputError
from workbench.core.tables import read_table
from workbench.engine.passes import Pass
from workbench.explorer import reference_texts
from workbench.explorer.autoencoders import Autoencoder
from workbench.explorer.opened_model import FEW_TOKENS, Opened
from workbench.models.model import Model
from workbench.sae.conventions import feed_of
from workbench.sae.feature_edits import check_feature
from workbench.sae.features import token_activations

TOKENS = 20_000  # that are read at most
SCHEMA = {
    "row": pl.Int64,
    "activation": pl.Float64,
    "start": pl.Int64,
    "peak": pl.Int64,
    "tokens": pl.List(pl.String),
    "activations": pl.List(pl.Float64),
    "text": pl.String,
    "opens_at": pl.Int64,
}


def texts_of(opened: Opened, source: str = "") -> list[str]:
    """The texts of a file (its column `text`, or its lines), of the model's own where no file is named."""
    if not source:
        return reference_texts.texts(opened)
    return read_table(source, required=("text",), what="texts")["text"].to_list()


def top_passages(
    opened: Opened,
    autoencoder: Autoencoder,
    feature: int,
    texts: Sequence[str],
    *,
    most: int = 8,
    window: int = 24,
    tokens: int = TOKENS,
    check: Callable[[], None] | None = None,
) -> pl.DataFrame:
    """The `most` texts in which a feature is most active, by its strongest token, one passage of `window` tokens each:
    row (from 0), activation, start, peak (positions in the text as it is fed), tokens, activations (those that do not
    count are 0), text (from its beginning to the end of the passage), opens_at (the place of the peak where that text
    is the prompt; null where it would be cut into other tokens).

    Texts are read from the first on up to `tokens` tokens, each cut to a prompt's length, as the autoencoder was fed
    (BOS does not count). Empty where it is active nowhere. Raises InputError for a feature that does not exist and
    where there is no text."""
    model, sae = opened.model, autoencoder.sae
    check_feature(sae, feature)
    feed, size = feed_of(sae, model), min(FEW_TOKENS, model.context_length or FEW_TOKENS)
    rows, counted, left = [], [], tokens
    for text in texts:
        ids = model.encode(text)
        ids, own = feed.apply(ids, [token not in model.special_ids for token in ids])
        ids, own = ids[: min(size, left)], list(own)[: min(size, left)]
        if ids:
            rows.append(ids)
            counted.append(own)
        left -= len(ids)
        if left <= 0:
            break
    if not rows:
        raise InputError("There is no text to look for passages in.")
    with opened.lock:
        found = token_activations(model, sae, rows, [feature], run=Pass(check=check))
    best = [
        _passage(model, ids, activation[:, 0], row=i, window=window)
        for i, (ids, activation) in enumerate(zip(rows, (a * np.array(c)[:, None] for a, c in zip(found, counted))))
        if activation.max() > 0
    ]
    best.sort(key=lambda one: (-one["activation"], one["row"]))
    return pl.DataFrame(best[:most], schema_overrides=SCHEMA, schema=None if best else SCHEMA).select(list(SCHEMA))


def _passage(model: Model, ids: Sequence[int], activation: np.ndarray, *, row: int, window: int) -> dict:
    """The part of a text with its strongest token in the middle."""
    peak = int(activation.argmax())
    start = max(0, min(peak - window // 2, len(ids) - window))
    stop = min(len(ids), start + window)
    text = model.decode([token for token in ids[:stop] if token not in model.special_ids])
    return {
        "row": row,
        "activation": float(activation[peak]),
        "start": start,
        "peak": peak,
        "tokens": model.token_strings(ids[start:stop]),
        "activations": activation[start:stop].astype(float).tolist(),
        "text": text,
        "opens_at": peak if model.encode(text) == list(ids[:stop]) else None,
    }
