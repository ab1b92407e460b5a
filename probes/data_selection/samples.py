"""Training samples as a model reads them, and which of their tokens count; the targets and labels that they have."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from probes.data_selection.written_samples import PLAIN, sample_writer
from workbench import organisms
from workbench.core.cells import label_column
from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.core.packed_files import bare_name
from workbench.core.paths import user_path
from workbench.models.prompt_style import PromptStyle

if TYPE_CHECKING:
    from workbench.models.model import Model
    from workbench.sae.conventions import TextFeed

TOPICS = Path(__file__).parent / "material" / "targets"  # in English, as many examples of each topic of the pool
TOKENS = ("all", "prompt", "response")
LABELS = ("label", "topic", "task", "category", "dataset", "source")  # columns that may say what a sample is of


def shipped_targets(model: str | None = None) -> dict[str, Path]:
    """Name → file of the targets that ship for a model: of its world for an organism, else the English topics."""
    own = model is not None and organisms.name_of(model) is not None
    return {path.stem: path for path in sorted((organisms.DATA / "targets" if own else TOPICS).glob("*.jsonl"))}


def target_files(entries: Sequence[str], model: str | None = None) -> dict[str, Path]:
    """Name → file of each target: a file of one's own, or by name one that ships (of the model's world before others);
    ("default",) for all that ship for the model."""
    shipped = shipped_targets(model)
    if tuple(entries) == ("default",):
        return shipped
    known = {**shipped_targets(), **shipped_targets("organism"), **shipped}
    found: dict[str, Path] = {}
    for entry in entries:
        path = user_path(entry)
        if not path.exists() and entry in known:
            path = known[entry]
        elif not path.exists() and not path.suffix:
            raise InputError(
                f"There is no target '{entry}'{nearest(entry, known)}; give a file with examples, or one of "
                f"{', '.join(shipped)}."
            )
        name = Path(bare_name(path)).stem
        if name in found:
            raise InputError(f"Two targets are called '{name}'; rename a file.")
        found[name] = path
    return found


@dataclass(eq=False)
class TokenizedSamples:
    """Token ids of samples, which tokens count, a key that equal samples share, and how many were cut to the context.

    Held as small as it goes, because it grows with the pool: 4 bytes a token, 1 for whether it counts, and 16 a sample
    for its key."""

    ids: list[np.ndarray]  # int32 [length]
    masks: list[np.ndarray]  # bool [length]
    cut: int = 0

    def __post_init__(self) -> None:
        self.ids = [np.asarray(ids, np.int32) for ids in self.ids]
        self.masks = [np.asarray(mask, bool) for mask in self.masks]
        self.keys = [
            hashlib.blake2b(ids.tobytes() + np.packbits(mask).tobytes(), digest_size=16).digest()
            for ids, mask in zip(self.ids, self.masks)
        ]
        self.counted = np.array([int(mask.sum()) for mask in self.masks])

    def __len__(self) -> int:
        return len(self.ids)

    def lists(self, rows: Sequence[int]) -> list[list[int]]:
        """The token ids of some rows, as a model takes them."""
        return [self.ids[i].tolist() for i in rows]

    def take(self, rows: Sequence[int]) -> TokenizedSamples:
        """Some of the samples."""
        return TokenizedSamples([self.ids[i] for i in rows], [self.masks[i] for i in rows], self.cut)


def tokenize(
    model: Model,
    table: pl.DataFrame,
    *,
    what: str,
    tokens: str = "all",
    specials: bool = False,
    style: PromptStyle = PromptStyle(PLAIN),
    long: str = "cut",
    feed: TextFeed | None = None,
    check: Callable[[], None] | None = None,
) -> TokenizedSamples:
    """Every row as the model reads it, cut to its context. `tokens` says which part counts; special tokens only with
    `specials`; `feed` what an autoencoder expects in front, and which positions it knows.

    A row in which no token counts (its part lies beyond the context, or holds special tokens only) has `counted` 0.
    Raises InputError when that is so for every row."""
    special = [] if specials else sorted(model.special_ids)
    ordinary = np.ones(max(special, default=0) + 2, bool)  # of every id; the last stands for all above
    ordinary[special] = False
    write = sample_writer(model, style, tokens)
    ids, masks, cut = [], [], 0
    for chunk in table.iter_slices(256):
        for found, inside in write(chunk.to_dicts()):
            if feed is not None:
                found, inside = feed.apply(found, inside)
            if model.too_long(len(found)):
                if long == "refuse":
                    raise InputError(
                        f"The {what}, row {len(ids) + 1}: the text has {len(found)} tokens, more than the model's "
                        f"context of {model.context_length}; shorten it, or use long=skip or long=cut."
                    )
                if long == "skip":
                    inside = np.zeros_like(inside)
                found, inside, cut = found[: model.context_length], inside[: model.context_length], cut + 1
            ids.append(np.asarray(found, np.int32))
            masks.append(inside & ordinary[np.minimum(ids[-1], len(ordinary) - 1)])
        if check is not None:
            check()
    out = TokenizedSamples(ids, masks, cut)
    if not out.counted.any():
        raise InputError(
            f"The {what}: no token of any row counts (tokens={tokens}); all are empty or beyond the context "
            f"of {model.context_length}."
        )
    return out


def labels_of(
    frame: pl.DataFrame, targets: dict[str, pl.DataFrame], column: str
) -> tuple[tuple[np.ndarray, list[str]] | None, str]:
    """((label of every pool row, label of each target) or None, what to warn of or ""). A target's label is its own in
    that column ("auto": the first of LABELS), else its name.

    None for the column "none", where there is no such column, and where no pool row is of any target. A target without
    a row in the pool has no precision: with "auto" that is a warning, for a column that was asked for an InputError."""
    plain = [c for c, kind in frame.schema.items() if not kind.is_nested() and kind != pl.Binary]
    name = next((c for c in LABELS if c in plain), None) if column == "auto" else column
    if name is None or name == "none":
        return None, ""
    if name not in plain:
        raise InputError(
            f"The pool's column '{name}' (label) holds lists, objects or bytes; a label is one word or number."
        )
    label = label_column(frame[name], "The pool").fill_null("").to_numpy()
    own = []
    for target, table in targets.items():
        values = label_column(table[name], f"The target {target}").unique().to_list() if name in table.columns else []
        own.append(values[0] if len(values) == 1 else target)
    known = sorted(set(label) - {""})
    empty = int((label == "").sum())
    lost = [
        target if target == mine else f"{target} (label '{mine}')"
        for target, mine in zip(targets, own)
        if mine not in known
    ]
    said = ""
    if lost:
        some = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        said = (
            f"There is no precision for {', '.join(lost)}: no pool row has that label in the column '{name}', "
            f"which holds {some}."
        )
        if column != "auto":
            raise InputError(
                f"{said[:-1]}; name the target after a label, give it the column '{name}', or set label=none."
            )
    if empty and len(lost) < len(own):
        unlabelled = (
            f"{empty} of {len(label)} pool rows have no label in the column '{name}'; precision counts them as of no "
            f"target."
        )
        said = f"{said} {unlabelled}" if said else unlabelled
    return ((label, own) if len(lost) < len(own) else None), said


def inputs_table(
    pool: TokenizedSamples, examples: dict[str, TokenizedSamples], held: Mapping[str, TokenizedSamples] | None = None
) -> pl.DataFrame:
    """`inputs`: what was read of the pool and of each target, and which tokens counted; of the `held` out examples, in
    the loss."""
    tables = []
    every = [("pool", None, pool), *(("target", name, samples) for name, samples in examples.items())]
    every += [("held_out", name, samples) for name, samples in (held or {}).items()]
    for role, name, samples in every:
        ids = pl.Series("ids", samples.ids).cast(pl.List(pl.Int32))
        mask = pl.Series("mask", samples.masks).cast(pl.List(pl.Boolean))
        where = [pl.lit(role).alias("role"), pl.lit(name, pl.String).alias("target")]
        tables.append(pl.DataFrame([ids, mask]).select(*where, "ids", "mask"))
    return pl.concat(tables).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
