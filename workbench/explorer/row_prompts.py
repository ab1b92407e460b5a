"""The prompts that rows of a run's tables stand for: as the model was fed them, where the run kept that, else as text.

Every run keeps what it fed in its table `inputs`. Which row of it belongs to a row of another table a probe declares
(`fed`); elsewhere the key columns say so that both tables have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.core.errors import WorkbenchError
from workbench.explorer.head_sets import probe_of
from workbench.runs.folder import Run

if TYPE_CHECKING:
    from workbench.models.model import Model

INPUTS, WRITTEN = "inputs", "generated_ids"
FED = "as it was fed"
TEXTS = {"prompt", "text", "question", "passage", "context", "sentence", "document", "response", "completion"}


@dataclass(frozen=True)
class RowPrompt:
    """One prompt of a row: what it is, in words, and its token ids as they were fed; or a text, and no ids."""

    label: str
    ids: tuple[int, ...] = ()
    text: str = ""


def offers(run: Run, table: str, frame: pl.DataFrame) -> bool:
    """Whether rows of this table can be opened as prompts."""
    return bool(_ids_of(frame) or _texts_of(frame) or _link(run, table, frame))


def prompts_of(
    run: Run, table: str, row: Mapping[str, Any], frame: pl.DataFrame, *, read: Callable[[Run, str], pl.DataFrame]
) -> list[RowPrompt]:
    """The prompts of one row of a table, those that were fed first. `read(run, name)` gives a table of the run.

    A row whose keys fit several rows of `inputs`, or none, has no fed prompt of these: nothing is guessed."""
    fed = dict(row)
    link = {} if table == INPUTS or _ids_of(frame) else _link(run, table, frame)
    if link:
        try:
            inputs = read(run, INPUTS)
        except WorkbenchError:
            inputs = pl.DataFrame()
        same = [pl.col(theirs) == row[mine] for theirs, mine in link.items() if row.get(mine) is not None]
        found = inputs.filter(*same) if same and set(link) <= set(inputs.columns) else inputs.clear()
        fed = {**(found.row(0, named=True) if found.height == 1 else {}), **row}
    lists = [name for name, value in fed.items() if name.endswith("ids") and name != WRITTEN and value is not None]
    lists.sort(key=lambda name: name != "ids")
    choices = [RowPrompt(_label(name), tuple(map(int, fed[name]))) for name in lists if len(fed[name])]
    if choices and lists[0] == "ids" and fed.get(WRITTEN):
        more = tuple(map(int, fed[WRITTEN]))
        choices.insert(1, RowPrompt(f"{FED}, and what the model wrote", choices[0].ids + more))
    texts = [name for name in _texts_of(frame) if row.get(name)]
    return [*choices, *(RowPrompt(f"the column {name}", text=str(row[name])) for name in texts)]


def text_of(model: Model, prompt: RowPrompt) -> tuple[str, str]:
    """The text to type for a prompt, and what is not the same about it; nothing where its tokens are those that were
    fed."""
    if not prompt.ids:
        return prompt.text, f"This is {prompt.label} of the row; the run may have fed other words around it."
    front = len(model.encode("", bos=True))
    bare = prompt.ids[front:] if prompt.ids[:front] == tuple(model.encode("", bos=True)) else prompt.ids
    text = str(model.tokenizer.decode(list(bare), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    again = tuple(model.encode(text, bos=True))
    if again == prompt.ids:
        return text, ""
    alike = next((i for i, (a, b) in enumerate(zip(again, prompt.ids)) if a != b), min(len(again), len(prompt.ids)))
    return text, (
        f"The run fed {len(prompt.ids)} tokens; typed as text they are {len(again)}, the same up to token {alike}."
    )


def _label(name: str) -> str:
    kind = name.removesuffix("ids").strip("_").replace("_", " ")
    return f"{FED}, {kind}" if kind else FED


def _link(run: Run, table: str, frame: pl.DataFrame) -> dict[str, str]:
    """Column of `inputs` -> column of a table; empty where nothing says which row of it a row belongs to."""
    if INPUTS not in run.tables or table == INPUTS:
        return {}
    probe = probe_of(run)
    if probe is not None and table in probe.fed:
        return dict(probe.fed[table])
    keys = ("row",) if probe is None else probe.keys.get(INPUTS, ("row",))
    return {key: key for key in keys if key in frame.columns} if "row" in frame.columns else {}


def _ids_of(frame: pl.DataFrame) -> list[str]:
    return [name for name, kind in frame.schema.items() if name == "ids" and isinstance(kind, pl.List)]


def _texts_of(frame: pl.DataFrame) -> list[str]:
    """The columns that hold texts, by a word of their names."""
    strings = [name for name, kind in frame.schema.items() if kind == pl.String]
    found = [name for name in strings if TEXTS & set(name.split("_")) and frame[name].str.contains(r"\S").any()]
    return sorted(found, key=lambda name: name not in TEXTS)
