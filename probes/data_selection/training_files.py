"""The selected rows as files to train on: as they came, as chats or in Alpaca's fields, in the order of their rank."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from workbench.core.errors import InputError
from workbench.core.files import read_plain, write_bytes
from workbench.core.json_text import parse_json
from workbench.core.tables import read_table

AS_THEY_CAME, MESSAGES, ALPACA, NONE = FORMS = ("as_they_came", "messages", "alpaca", "none")
SCORES = ("target", "rank", "row", "score")  # columns of `selected` that say why a row is there
_ALPACA = ("instruction", "input", "output")


def check_form(form: str, pool: pl.DataFrame, data: Path | str | None) -> None:
    """Raise InputError for a pool whose rows cannot be written in that form."""
    if form in (MESSAGES, ALPACA) and not {"prompt", "response"} <= set(pool.columns):
        raise InputError(
            f"{data} has texts, not prompts with responses, so its rows cannot be written as {form}; use "
            f"export={AS_THEY_CAME}, or a pool with 'prompt' and 'response'."
        )


def write_training_files(
    out: Path,
    selected: pl.DataFrame,
    pool: pl.DataFrame,
    data: Path,
    names: Mapping[str, str],
    *,
    form: str,
    scores: bool,
) -> None:
    """Write ``train-NAME.jsonl`` for each target (``names``: target -> name of its files), the best row first.
    ``scores``: with target, rank, row and score of each, called ``selection_rank`` and so on."""
    for path in out.glob("train-*.jsonl"):  # of an earlier run in this folder
        path.unlink()
    if form == NONE:
        return
    own = own_rows(data, pool)
    for target, name in names.items():
        lines = []
        for found in selected.filter(pl.col("target") == target).select(SCORES).iter_rows(named=True):
            number = found["row"]
            row = written(form, own[number], pool.row(number, named=True))
            lines.append(_with_scores(row, found) if scores else row)
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        write_bytes(out / f"train-{name}.jsonl", text.encode())


def written(form: str, own: Mapping[str, Any], sample: Mapping[str, Any]) -> dict[str, Any]:
    """One row in a form: ``own``, as the file has it; ``sample``, with the prompt and the response that were scored. A
    row that is a chat, or Alpaca's, already stays what it is."""
    if form == AS_THEY_CAME:
        return dict(own)
    if form == ALPACA:
        if isinstance(own.get("instruction"), str) and isinstance(own.get("output"), str):
            return {name: own.get(name) or "" for name in _ALPACA}
        return {"instruction": sample["prompt"], "input": "", "output": sample["response"]}
    return {"messages": _chat(own, sample)}


def _chat(own: Mapping[str, Any], sample: Mapping[str, Any]) -> list[Any]:
    """A row as messages: its own, with the system message of another column in front; of any other talk, or a pair with
    such a column, the turns that were read."""
    talk = sample.get("messages")
    turns = talk if isinstance(talk, list) else []
    messages = own.get("messages")
    if isinstance(messages, list):
        first = messages[0].get("role") if messages and isinstance(messages[0], dict) else None
        added = [turn for turn in turns[:1] if turn["role"] == "system" and first not in ("system", "developer")]
        return [*added, *messages]
    if turns:
        return turns
    system = own.get("system")
    turns = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    return [
        *turns,
        {"role": "user", "content": sample["prompt"]},
        {"role": "assistant", "content": sample["response"]},
    ]


def own_rows(data: Path, pool: pl.DataFrame) -> Sequence[Mapping[str, Any]]:
    """The rows of the pool's file with the columns and values that they have there: JSON as it is (a table would give
    every row the fields of all, and mixed values as text), other files as they are read."""
    rows = _json_rows(data)
    if rows is None or len(rows) != pool.height:
        table = read_table(data, what="pool")
        rows = (table if table.height == pool.height else pool).to_dicts()
    return rows


def _json_rows(data: Path) -> list[dict[str, Any]] | None:
    suffix = data.suffix.lower()
    if suffix not in (".json", ".jsonl", ".ndjson"):
        return None
    text = read_plain(data).decode("utf-8-sig")
    if suffix == ".json":
        found = parse_json(text, str(data))
    else:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        found = [parse_json(line, str(data), line=number) for number, line in lines]
    return found if isinstance(found, list) and all(isinstance(row, dict) for row in found) else None


def _with_scores(row: dict[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The row, and why it is there; a name that the row has already gets a further underscore."""
    out = dict(row)
    for column in SCORES:
        name = f"selection_{column}"
        while name in row:
            name += "_"
        out[name] = found[column]
    return out
