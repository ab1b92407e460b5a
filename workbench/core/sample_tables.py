"""Tables of samples that a model is trained or scored on: a column `text`, or `prompt` and `response`, with `messages`
where the file holds talks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.core.published_formats import can_give, fit
from workbench.core.table_files import headless
from workbench.core.tables import asked, existing, open_table
from workbench.core.wording import cut

if TYPE_CHECKING:
    import polars as pl

SAMPLE_COLUMNS = ("text", "prompt", "response", "messages")
_BOTH = ("prompt", "response")
SHOWN = 240  # characters of a text that a table of points keeps


def read_samples(
    path: Path,
    *,
    what: str,
    tokens: str = "all",
    columns: Mapping[str, str] | None = None,
    tell: Callable[[str], None] | None = None,
) -> pl.DataFrame:
    """The rows of a file with `prompt` and `response`, or else `text`; none of them may be empty. Further columns stay.

    Published formats are read into these (:mod:`workbench.core.published_formats`). A column `messages` holds the whole
    talk as {role, content}: of a file of talks, `response` is the assistant's last turn and `prompt` all before it.
    ``columns``, ``tell``: as of :func:`workbench.core.tables.read_table`.

    Raises InputError naming file, row and field, also when `tokens` asks for a part that a text does not have."""
    path = existing(path, what=what)
    opened, chosen = open_table(path, columns=columns, what=what), columns or {}
    there = opened.frame.columns
    if set(_BOTH) <= set(there) or ("text" not in there and can_give(opened.frame, _BOTH)):
        table = asked(opened, path, required=_BOTH, chosen=chosen, tell=tell)
    elif tokens != "all":
        if not can_give(opened.frame, _BOTH):
            raise InputError(
                f"{path} needs the columns 'prompt' and 'response' for tokens={tokens}; it has {', '.join(there)}."
            )
        table = asked(opened, path, required=_BOTH, chosen=chosen, tell=tell)
    elif "text" in there or can_give(opened.frame, ("text",)):
        table = asked(opened, path, required=("text",), chosen=chosen, tell=tell)
    else:
        fit(opened.frame, path, required=_BOTH)  # says why rows of a known format are none
        close = next(filter(None, (nearest(name, there) for name in ("text", *_BOTH))), "")
        raise InputError(
            f"{path} needs a column 'text', or 'prompt' and 'response'{close}; it has {', '.join(there)}"
            f"{headless(there)}."
        )
    return table


def with_texts(points: pl.DataFrame, rows: Sequence[int], words: Sequence[str]) -> pl.DataFrame:
    """A table with a column `row`, and as `text` the first SHOWN characters of each row's text: ``words[i]`` is
    that of ``rows[i]``."""
    import polars as pl

    wanted = set(points["row"].to_list())
    found = [(row, cut(text, SHOWN)) for row, text in zip(rows, words) if row in wanted]
    table = pl.DataFrame(found, schema={"row": points.schema["row"], "text": pl.String}, orient="row")
    return points.join(table, on="row", how="left", maintain_order="left")


def turns_before(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is said before the response of a row of :func:`read_samples`, as (role, text): the turns of its talk up to
    the assistant's last, where that is the response; else the prompt as the user's turn."""
    talk = row.get("messages")
    if isinstance(talk, list) and all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in talk):
        last = max((number for number, turn in enumerate(talk) if turn["role"] == "assistant"), default=0)
        if last and talk[last]["content"] == row["response"]:
            return [(turn["role"], turn["content"]) for turn in talk[:last]]
    return [("user", row["prompt"])]


def texts(table: pl.DataFrame, tokens: str = "all") -> list[str]:
    """What is written in each sample, or in the part of it that counts, without any template: of a talk, "response" is
    all that the assistant says, and "prompt" all else."""
    if not {"prompt", "response"} <= set(table.columns):
        return table["text"].to_list()
    if tokens == "all":
        return [f"{prompt} {response}" for prompt, response in table.select("prompt", "response").iter_rows()]
    if "messages" not in table.columns:
        return table[tokens].to_list()
    found = []
    for row in table.iter_rows(named=True):
        turns = turns_before(row)
        if len(turns) == 1:
            found.append(row[tokens])
            continue
        own = [said for role, said in turns if (role == "assistant") == (tokens == "response")]
        found.append("\n\n".join([*own, row["response"]] if tokens == "response" else own))
    return found
