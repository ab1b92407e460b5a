"""The texts of a map of activations, as they were or are fed, with what is known of each: from a table, or from what a
run kept of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from workbench.core.errors import InputError
from workbench.core.sample_tables import SHOWN
from workbench.core.wording import cut
from workbench.explorer.head_sets import probe_of
from workbench.models.model import Model
from workbench.models.recording import Positions
from workbench.models.sinks import positions_for
from workbench.runs.folder import Run

INPUTS = "inputs"  # the table in which a run keeps the token ids that it fed
PARTS = ("dataset", "condition", "role", "target")  # columns of it that say to which part of the run a text belongs
PLACES = ("position", "span_end")  # columns of it that say where the run looked
TOKENS = ("last", "mean")
MOST = 20_000  # texts on a map
OF_THE_MAP = ("x", "y", "site", "method", "cluster", "probe score", "probe prediction")  # its own columns
_DRAWN_ALREADY = ("x", "y", "seed", "method", "step")
_WIDEST = 12  # values of a key that become columns of their own


@dataclass(frozen=True, eq=False)
class MapTexts:
    """Texts as token ids, and a table with one row for each: `row`, `text` (its first SHOWN characters), and columns
    that say something of it. `places`: by name, a position in each text that may be read in place of TOKENS. `left_out`
    texts were not drawn."""

    name: str
    ids: list[list[int]]
    about: pl.DataFrame
    places: dict[str, np.ndarray]
    left_out: int = 0
    cut: int = 0  # texts that are longer than the model's context, of which the beginning is read
    token: str = "last"  # that the source itself was read at
    note: str = ""  # what else a reader of the map must know

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> tuple[str, ...]:
        """What can be read of each text."""
        return (*TOKENS, *self.places)

    def positions(self, token: str) -> Positions:
        """Where activations are read: the last token, the mean over all that are no sinks, or a place of the run's.
        Raises InputError for another word."""
        if token in self.places:
            return [[int(place)] for place in self.places[token]]
        if token not in TOKENS:
            raise InputError(f"A map is of the tokens {', '.join(self.tokens)}, not '{token}'.")
        return positions_for(token, watched=token == "mean")

    def take(self, rows: Sequence[int] | np.ndarray) -> MapTexts:
        """Some of the texts."""
        rows = [int(row) for row in rows]
        places = {name: found[rows] for name, found in self.places.items()}
        left_out = self.left_out + len(self.ids) - len(rows)
        return replace(
            self, ids=[self.ids[row] for row in rows], about=self.about[rows], places=places, left_out=left_out
        )


def drawn_from(texts: MapTexts, most: int, *, seed: int = 0) -> MapTexts:
    """All of the texts, or `most` of them drawn at random, in their order."""
    if not 2 <= most <= MOST:
        raise InputError(f"A map has 2 to {MOST:,} texts, not {most:,}.")
    if len(texts) <= most:
        return texts
    return texts.take(np.sort(np.random.default_rng(seed).permutation(len(texts))[:most]))


def colourable(frame: pl.DataFrame) -> list[str]:
    """The columns of a table that can colour points: numbers, words, true and false, with more than one value."""
    plain = [
        name
        for name, kind in frame.schema.items()
        if name not in ("row", "text", "x", "y", "site", "method")
        and (kind.is_numeric() or kind in (pl.String, pl.Boolean))
    ]
    return [name for name in plain if frame[name].n_unique() > 1]


def texts_of_table(model: Model, frame: pl.DataFrame, *, name: str, column: str = "text") -> MapTexts:
    """The rows of a table with a column of texts, each cut to the model's context. Raises InputError for fewer than two
    texts, and for one that is no text."""
    if column not in frame.columns:
        raise InputError(f"{name} has no column '{column}'; it has {', '.join(frame.columns)}.")
    words = frame[column].cast(pl.String).to_list()
    for row, text in enumerate(words, 1):
        if not text or not text.strip():
            raise InputError(f"{name}, row {row}: the field '{column}' is empty.")
    ids = [list(found) for found in model.encode_all(words)]
    about = frame.drop("row", strict=False).with_columns(pl.Series("text", [cut(text, SHOWN) for text in words]))
    about = about.with_row_index("row").cast({"row": pl.Int64})
    return _fitting(model, MapTexts(name, ids, _ordered(about), {}))


def texts_of_run(
    model: Model, run: Run, *, part: str = "", read: Callable[[Run, str], pl.DataFrame] = Run.table
) -> MapTexts:
    """What a run read, with the columns of its tables that have one value for each text. `part`: one of `parts_of`.

    Raises InputError for a run that kept no token ids, and for one of other weights than the model's: its texts may be
    other tokens there."""
    if not has_inputs(run):
        raise InputError(f"The run {run.id} kept no token ids of what it read (no table '{INPUTS}'), so it has no map.")
    known = run.of("model", "fingerprint")
    if known is not None and known != model.fingerprint:
        raise InputError(
            f"The run {run.id} was made on other weights than {model.name} has now (a revision, an adapter, or files "
            f"that have changed since); run it again, or map its texts from a file."
        )
    inputs = inputs_of(run, part, read=read)
    inputs = inputs.filter(pl.col("ids").list.len() > 0)
    ids = [list(map(int, found)) for found in inputs["ids"]]
    about = inputs.select(name for name, kind in inputs.schema.items() if not kind.is_nested())
    for frame in _of_rows(run, inputs["row"], read):
        new = [name for name in frame.columns if name not in about.columns]
        about = about.join(frame.select("row", *new), on="row", how="left", maintain_order="left")
    about = about.with_columns(pl.Series("text", [text_of(model, found) for found in ids], dtype=pl.String))
    places = {}
    for name in PLACES:
        if name in inputs.columns and inputs[name].dtype.is_integer() and not inputs[name].null_count():
            found = inputs[name].to_numpy() - (name == "span_end")  # the last token of the span
            if all(0 <= place < len(row) for place, row in zip(found, ids)):
                places[name.replace("_", " ")] = found
    config = run.of("config", default={})
    token = next((str(config[key]) for key in ("token", "aggregate") if str(config.get(key)) in TOKENS), "last")
    edits = " The run read a model with edits; this is the model without them." if run.of("edits") else ""
    return _fitting(model, MapTexts(f"run {run.id}", ids, _ordered(about), places, token=token, note=edits))


def inputs_of(run: Run, part: str, *, read: Callable[[Run, str], pl.DataFrame] = Run.table) -> pl.DataFrame:
    """What a run fed, or one part of it, with the row of each text. Raises InputError where that is not known."""
    inputs = read(run, INPUTS)
    if not isinstance(inputs.schema.get("ids"), pl.List):
        raise InputError(f"The table '{INPUTS}' of the run {run.id} has no token ids (ids), so the run has no map.")
    if "row" not in inputs.columns:
        inputs = inputs.with_row_index("row")
    inputs = inputs.cast({"row": pl.Int64})
    return _part(inputs, part, run) if part else inputs


def has_inputs(run: Run) -> bool:
    """Whether a run kept the token ids that it fed."""
    return INPUTS in run.tables


def parts_of(run: Run, *, read: Callable[[Run, str], pl.DataFrame] = Run.table) -> list[str]:
    """The parts that a run's texts belong to, in its order, as they are written on a screen; none where it has one."""
    inputs = read(run, INPUTS)
    found = _named_parts(inputs).unique(maintain_order=True).to_list()
    return found if len(found) > 1 else []


def _named_parts(inputs: pl.DataFrame) -> pl.Series:
    columns = [name for name in PARTS if name in inputs.columns and inputs[name].n_unique() > 1]
    if not columns:
        return pl.Series("part", [""] * inputs.height)
    words = pl.concat_str([pl.col(name).cast(pl.String) for name in columns], separator=" · ", ignore_nulls=True)
    return inputs.select(words.alias("part"))["part"]


def _part(inputs: pl.DataFrame, part: str, run: Run) -> pl.DataFrame:
    named = _named_parts(inputs)
    found = inputs.filter(named == part)
    if not found.height:
        raise InputError(
            f"The run {run.id} has no part '{part}'; it has {', '.join(named.unique(maintain_order=True))}."
        )
    return found


def _of_rows(run: Run, rows: pl.Series, read: Callable[[Run, str], pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """What other tables of the run say of each text, one row per text. A table that names a row and one thing more (a
    target) gives a column for each value of that."""
    probe = probe_of(run)
    for table, keys in {} if probe is None else probe.keys.items():
        if table == INPUTS or "row" not in keys or table not in run.tables:
            continue
        frame = read(run, table)
        if "row" not in frame.columns or not frame["row"].is_in(rows.implode()).any():
            continue
        values = [
            name
            for name, kind in frame.schema.items()
            if name not in (*keys, *_DRAWN_ALREADY)
            and not kind.is_nested()
            and not name.endswith(("_low", "_high"))
            and name != "text"
        ]
        more = [key for key in keys if key != "row"]
        same = [name for name in values if frame.group_by("row").agg(pl.col(name).n_unique())[name].max() == 1]
        if more and keys != ("row", *more):  # the row is not what the table is of: only words are surely the text's own
            same = [name for name in same if frame[name].dtype == pl.String]
        if same:
            yield frame.select("row", *same).unique("row", maintain_order=True).cast({"row": pl.Int64})
        others = [name for name in values if name not in same]
        if keys == ("row", *more) and len(more) == 1 and others and frame[more[0]].n_unique() <= _WIDEST:
            yield _wide(frame, more[0], others)


def _wide(frame: pl.DataFrame, key: str, values: Sequence[str]) -> pl.DataFrame:
    """One row per text, a column for each value and each value of the key: ``score · sea``."""
    out = frame.select("row").unique(maintain_order=True)
    for one in frame[key].unique(maintain_order=True).to_list():
        own = frame.filter(pl.col(key) == one).select("row", *(pl.col(v).alias(f"{v} · {one}") for v in values))
        out = out.join(own, on="row", how="left", maintain_order="left")
    return out.cast({"row": pl.Int64})


def text_of(model: Model, ids: Sequence[int], *, most: int | None = SHOWN) -> str:
    """What token ids say, without special tokens; the ids themselves where the model has no tokenizer."""
    some = list(ids) if most is None else list(ids)[: most + 8]  # a token is rarely less than a character
    if model.tokenizer is None:
        return " ".join(map(str, some))
    text = model.decode(some)
    return text if most is None else cut(text, most)


def _ordered(about: pl.DataFrame) -> pl.DataFrame:
    """Row and text first; columns that are called as those of a map are said to be given."""
    about = about.select("row", "text", pl.exclude("row", "text"))
    return about.rename({name: f"{name} (given)" for name in about.columns if name in OF_THE_MAP})


def _fitting(model: Model, texts: MapTexts) -> MapTexts:
    """The texts, cut to the model's context."""
    if len(texts) < 2:
        raise InputError(f"{texts.name} has {len(texts)} texts with a token; a map needs two.")
    long = sum(model.too_long(len(row)) for row in texts.ids)
    if not long:
        return texts
    limit = model.context_length
    places = {name: found for name, found in texts.places.items() if limit is None or int(np.max(found)) < limit}
    return replace(texts, ids=[row[:limit] for row in texts.ids], cut=long, places=places)
