"""Nats per byte: what models with different tokenizers can be compared by, since their steps are not the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from probes.branching_factor.branching_samples import Continuations
from workbench.models.model import Model


def pieces_of(model: Model) -> str:
    """A short hash of the pieces into which a tokenizer cuts plain text: its vocabulary and the rules that apply it,
    without special and added tokens and without a chat template (with which a base model and its chat model may
    differ, and take the same steps)."""
    tokenizer = model.tokenizer
    apart = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    vocabulary = sorted(set(tokenizer.get_vocab()) - apart)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: dict = json.loads(backend.to_str()) if backend is not None else {}
    kept = {key: value for key, value in rules.get("model", {}).items() if key not in ("vocab", "unk_token")}
    about = [vocabulary, kept, rules.get("normalizer"), rules.get("pre_tokenizer")]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:12]


def bytes_of(model: Model, ids: Sequence[int], text: str) -> int:
    """Bytes of a ``text`` that ``ids`` were decoded to. A space before its first word counts whatever the tokenizer:
    some leave it out when they decode."""
    special = set(model.tokenizer.all_special_ids)
    head = next((i for i in ids if i not in special), None)
    lost = head is not None and not text.startswith(" ") and model.token_strings([head])[0].startswith(" ")
    return len(text.encode()) + lost


def byte_counts(found: Continuations) -> np.ndarray:
    """Bytes of text of every sample [P, M]."""
    P, M = found.lengths.shape
    model, texts = found.condition.model, found.texts
    return np.array([[bytes_of(model, found.tokens(p, m), texts[p][m]) for m in range(M)] for p in range(P)])


def nats_per_byte(found: Continuations) -> np.ndarray:
    """Summed step entropy over the bytes of the texts of every prompt [P]; NaN where no text was written."""
    with np.errstate(divide="ignore", invalid="ignore"):
        size = byte_counts(found).sum(1)
        return np.where(size > 0, np.nansum(found.statistic("entropy"), (1, 2)) / size, np.nan)
