"""A model that the Explorer looks at, and a prompt as it is fed to it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import torch

from workbench.core.errors import InputError
from workbench.engine.passes import check_ids
from workbench.models.files import check_folder, resolve
from workbench.models.load_options import AUTOMATIC
from workbench.models.loading import load
from workbench.models.model import Model
from workbench.models.precision import precision_for

Head = tuple[int, int]
FEW_TOKENS, MOST_TOKENS = 512, 4096  # of a prompt, in any model and in one that has room for more
MOST_KEPT = 1 << 28  # bytes of the streams and head outputs of one prompt, from which on it is too long
MOST_WEIGHTS = 1 << 29  # bytes of attention weights of one layer at once
ENDS = "(ends)"  # the token after which nothing comes


@dataclass(eq=False)
class Opened:
    """A model that several tabs may use: hooks belong to the model, so passes take turns."""

    model: Model
    lock: threading.RLock = field(default_factory=threading.RLock)
    mean: torch.Tensor | None = None  # head outputs over the reference texts, once they were needed
    mlp_mean: torch.Tensor | None = None  # and what MLPs add
    words: list[int] | None = None  # likely ones, once they were needed
    precision: str = ""  # why the weights are not in float32, where nobody asked for that
    autoencoders: dict[str, Any] = field(default_factory=dict)  # by their keys, a few


def open_model(name: str, *, dtype: str = AUTOMATIC, device: str | None = None) -> Opened:
    """Load a model for looking at it: in float32 on a CPU, or as it is stored on an accelerator and where float32 would
    crowd the memory (`precision_for`), or in the `dtype` that is named. Raises InputError as `load` does."""
    if dtype != AUTOMATIC:
        return Opened(load(name, dtype=dtype, device=device))
    folder = resolve(name)
    check_folder(folder, name)
    chosen, why = precision_for(folder, device)
    return Opened(load(name, dtype=chosen, device=device), precision=why)


def encode(opened: Opened, text: str, *, bos: bool = True) -> tuple[int, ...]:
    """Token ids exactly as they are fed. Raises InputError for an empty prompt and one that is too long to look at."""
    ids = tuple(opened.model.encode(text, bos=bos))
    if not text or not ids:
        raise InputError("The prompt is empty: type some text.")
    most = most_tokens(opened)
    if len(ids) > most:
        raise InputError(
            f"The prompt has {len(ids):,} tokens; the Explorer looks at up to {most:,} in this model. Shorten it, or "
            f"run a probe on it."
        )
    check_ids(opened.model, [ids])
    return ids


def most_tokens(opened: Opened) -> int:
    """How long a prompt may be: as long as the model's context, as far as what is kept of one stays within bounds
    (layers × tokens × width numbers of the stream, as many of head outputs)."""
    model = opened.model
    each = 4 * ((model.n_layers + 1) * model.width + model.n_layers * model.n_heads * model.d_head)
    room = max(FEW_TOKENS, min(MOST_TOKENS, MOST_KEPT // each))
    return min(room, model.context_length or room)


def check_whole_patterns(opened: Opened, count: int) -> None:
    """Raises InputError where the attention of all heads of a layer, from every token to every token, is too much to
    hold."""
    heads = opened.model.n_heads
    if 4 * heads * count**2 > MOST_WEIGHTS:
        most = int((MOST_WEIGHTS / (4 * heads)) ** 0.5)
        raise InputError(
            f"Whole attention patterns of {count:,} tokens in {heads} heads are too large to hold; shorten the prompt "
            f"to {most:,} tokens for this, all else is shown."
        )


def unknown(opened: Opened, ids: Sequence[int]) -> int:
    """How many of the tokens stand for text that the tokenizer does not know."""
    tokenizer = opened.model.tokenizer
    other = {
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    }  # some tokenizers use one token for all of these
    unk = tokenizer.unk_token_id
    return 0 if unk is None or unk in other else sum(i == unk for i in ids)


def tokens(opened: Opened, ids: Sequence[int]) -> pl.DataFrame:
    """One row per token: position, id, text (as it reads), special."""
    special = opened.model.special_ids
    return pl.DataFrame(
        {
            "position": list(range(len(ids))),  # a range would be made on the thread pool of polars, which takes longer
            "id": list(ids),
            "text": opened.model.token_strings(ids),
            "special": [i in special for i in ids],
        }
    )


def next_strings(opened: Opened, ids: Sequence[int]) -> list[str]:
    """Tokens that may come next as they read; one that ends the text is ``(ends)``, a further one with its name."""
    model = opened.model
    first, ends = model.eos_id, set(model.eos_ids)
    return [
        ENDS if i == first else f"({ENDS.strip('()')}: {text})" if i in ends else text
        for i, text in zip(ids, model.token_strings(ids))
    ]
