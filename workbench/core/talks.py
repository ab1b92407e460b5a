"""Talks as they are published: `messages` of {role, content}, ShareGPT's `conversations` of {from, value}, turns that
are texts by user and assistant in turn (LIMA, UltraChat) or pairs of {input, output} (Capybara), and the `instances` of
Self-Instruct; read into columns that probes ask for.

A talk becomes a column `messages` of {role, content}, with the roles system, user, assistant and tool. `response` is
what the assistant says last, `prompt` all that stands before it, turn by turn with an empty line between: the same
words without the marks of a chat template, which only `messages` can be given to. Where an answer is to be written,
`messages` ends before it (`open_talks`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.cells import text_column
from workbench.core.errors import InputError
from workbench.core.json_text import parse_json
from workbench.core.wording import cut

if TYPE_CHECKING:
    import polars as pl

TALKS = ("messages", "conversations", "conversation")
TEXTS = "data"  # what UltraChat calls its turns: a talk where it holds lists of texts
SYSTEMS = ("system_prompt", "system", "system_message")  # columns that hold what stands before the first turn
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}

Turns = list[tuple[str, str]]  # (role, what is said)


def talk_column(frame: pl.DataFrame, there: Mapping[str, str]) -> str | None:
    """The column that holds talks, if one does. ``there``: name as published files write it -> name in this one."""
    import polars as pl

    if TEXTS in there and frame[there[TEXTS]].dtype == pl.List(pl.String):
        return next((there[name] for name in TALKS if name in there), there[TEXTS])
    return next((there[name] for name in TALKS if name in there), None)


def system_column(frame: pl.DataFrame, there: Mapping[str, str]) -> str | None:
    """The column of texts that stand before the first turn, if there is one."""
    import polars as pl

    return next((there[name] for name in SYSTEMS if name in there and frame[there[name]].dtype == pl.String), None)


def from_talk(
    frame: pl.DataFrame, column: str, path: Path, wanted: Collection[str], system: str | None = None
) -> tuple[pl.DataFrame, str]:
    """The table with `messages` and, as far as they are wanted, `prompt` and `response` (or `text`, all that is said);
    and what was done. ``system``: a column with what stands before the first turn, where the talk has none of its own.

    Where no response is wanted, the prompt is the one turn of the user: InputError for a talk of several, as for one
    without any turn of the assistant where a response is wanted."""
    import polars as pl

    talks = turns_of(frame[column], path)
    if system is not None:
        talks = [_after(own, turns) for own, turns in zip(frame[system].to_list(), talks)]
    if "text" in wanted and "text" not in frame.columns:
        made = [_together(turns) for turns in talks]
        return frame.with_columns(pl.Series("text", made, dtype=pl.String)), f"{column}: text from all turns"
    frame = frame.with_columns(messages_column(talks))
    systems = sum(turns[0][0] == "system" for turns in talks)
    if "response" in wanted:
        pairs = [_pair(turns, f"{path}, row {row}") for row, turns in enumerate(talks, 1)]
        several = sum(sum(role == "assistant" for role, _ in turns) > 1 for turns in talks)
        said = f"{column}: response from the assistant's last turn, prompt from what stands before it"
        said += f" (in {several} rows several turns)" if several else ""
        said += f" ({systems} with a system message)" if systems else ""
        prompts, responses = zip(*pairs)
        made = [pl.Series("prompt", prompts, dtype=pl.String), pl.Series("response", responses, dtype=pl.String)]
        return frame.with_columns([column for column in made if column.name in wanted]), said
    prompts = [_question(turns, f"{path}, row {row}") for row, turns in enumerate(talks, 1)]
    said = f"{column}: prompt from the user's turn"
    said += f" ({systems} system messages are left out)" if systems else ""
    return frame.with_columns(pl.Series("prompt", prompts, dtype=pl.String)), said


def open_talks(
    frame: pl.DataFrame, prompt: str | None, column: str, path: Path, system: str | None = None
) -> tuple[pl.DataFrame, str]:
    """The table with `prompt` and `messages` as an answer is to be written to them, and what was done.

    A row whose column `prompt` is filled keeps that, and its `messages` is null. Any other is a talk: `messages` is
    what stands before the answer that it may end with, and `prompt` the same words, turn by turn with an empty line
    between. One turn of the user's is a prompt like any other, so its `messages` is null too. InputError, with the row,
    for a talk without a turn of the user, and for one that ends with a message that no answer follows. ``system``: as
    in `from_talk`."""
    import polars as pl

    given = [None] * frame.height if prompt is None else text_column(frame[prompt], str(path)).to_list()
    rows = [row for row, text in enumerate(given) if text is None or not text.strip()]
    before = [None] * frame.height if system is None else frame[system].to_list()
    talks = {row: _after(before[row], turns) for row, turns in zip(rows, turns_of(frame[column], path, rows=rows))}
    found = {row: _unanswered(turns, f"{path}, row {row + 1}") for row, turns in talks.items()}
    prompts = ["\n\n".join(said for _, said in found[row]) if row in found else text for row, text in enumerate(given)]
    turns = [found[row] if row in found and len(found[row]) > 1 else None for row in range(frame.height)]
    answered = sum(len(found[row]) < len(talks[row]) for row in rows)
    several = sum(one is not None for one in turns)
    said = f"{column}: prompt from the talk" if rows else f"{column}: left out, every row has a prompt"
    said += f" ({several} rows of several turns)" if several else ""
    said += f" (in {answered} rows without the answer that ends it)" if answered else ""
    return frame.with_columns(pl.Series("prompt", prompts, dtype=pl.String), messages_column(turns)), said


def from_instances(
    frame: pl.DataFrame, instruction: str, column: str, path: Path, wanted: Collection[str]
) -> tuple[pl.DataFrame, str]:
    """Self-Instruct: a row for every instance of a task, its prompt the task with the input of the instance."""
    import polars as pl

    tasks, rows, prompts, responses = text_column(frame[instruction], str(path)), [], [], []
    for row, (task, cell) in enumerate(zip(tasks, frame[column].to_list()), 1):
        where = f"{path}, row {row}"
        instances = _list_of_objects(cell, column, where)
        for instance in instances:
            parts = [task, instance.get("input")]
            if not all(part is None or isinstance(part, str) for part in (*parts, instance.get("output"))):
                raise InputError(f"{where}: input and output of the field '{column}' must be text.")
            if instance.get("output") is None:
                raise InputError(f"{where}: an instance of the field '{column}' has no output.")
            rows.append(row - 1)
            prompts.append("\n\n".join(part.strip() for part in parts if part is not None and part.strip()))
            responses.append(instance.get("output"))
    if "text" in wanted:
        made = [pl.Series("text", [f"{prompt}\n\n{said}" for prompt, said in zip(prompts, responses)])]
    else:
        made = [pl.Series("prompt", prompts, dtype=pl.String)]
    if "response" in wanted:
        made.append(pl.Series("response", responses, dtype=pl.String))
    said = f"Self-Instruct: prompt from {instruction} and the input of {column}, response from its output"
    said += f" ({len(rows)} instances of {frame.height} tasks)" if len(rows) != frame.height else ""
    return frame[rows].with_columns(made), said


def turns_of(column: pl.Series, path: Path, *, rows: Sequence[int] | None = None) -> list[Turns]:
    """The turns of every row (or of `rows`, from 0) of a column of talks. InputError, with the row, for what is none:
    no list, an unknown role, a turn whose content is no text."""
    cells = column.to_list()
    chosen = range(len(cells)) if rows is None else rows
    return [_turns(cells[row], f"{path}, row {row + 1}", column.name) for row in chosen]


def messages_column(talks: Sequence[Turns | None]) -> pl.Series:
    """A column `messages` of lists of {role, content}, null where there is no talk."""
    import polars as pl

    kind = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
    rows = [turns and [{"role": role, "content": said} for role, said in turns] for turns in talks]
    return pl.Series("messages", rows, dtype=kind)


def _after(system: str | None, turns: Turns) -> Turns:
    return [("system", system), *turns] if system and system.strip() and turns[0][0] != "system" else turns


def _together(turns: Turns) -> str:
    """What is said, turn by turn with an empty line between; turns without a word are left out."""
    return "\n\n".join(said.strip() for _, said in turns if said.strip())


def _turns(cell: Any, where: str, field: str) -> Turns:
    if isinstance(cell, list) and cell and all(isinstance(turn, str) for turn in cell):
        return [(("user", "assistant")[number % 2], said) for number, said in enumerate(cell)]
    found = []
    for number, turn in enumerate(_list_of_objects(cell, field, where), 1):
        if isinstance(turn.get("input"), str) and isinstance(turn.get("output"), str):
            found += [("user", turn["input"]), ("assistant", turn["output"])]
            continue
        role = next((turn[key] for key in ("role", "from", "speaker") if turn.get(key) is not None), None)
        said = _text(next((turn[key] for key in ("content", "value", "text") if turn.get(key) is not None), None))
        name = role.strip().lower().replace("-", "_") if isinstance(role, str) else ""
        if name not in ROLES:
            raise InputError(
                f"{where}: turn {number} of the field '{field}' is by '{cut(role, 40)}'; a turn is by one of "
                f"{', '.join(dict.fromkeys(ROLES.values()))} (or human, gpt and other names of these)."
            )
        if not (said or "").strip() and (turn.get("tool_calls") or turn.get("function_call")):
            raise InputError(
                f"{where}: turn {number} of the field '{field}' calls a tool and says nothing; write the call as its "
                f"text, or leave such rows out."
            )
        if said is None:
            raise InputError(f"{where}: turn {number} of the field '{field}' has no text (a picture is none).")
        if said.strip() or ROLES[name] != "system":  # an empty system message is none
            found.append((ROLES[name], said))
    if not found:
        raise InputError(f"{where}: no turn of the field '{field}' says anything; leave it out.")
    return found


def _text(content: Any) -> str | None:
    """What is said in a turn: a text, or a list of parts that are texts."""
    if isinstance(content, list) and content:
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
            for part in content
        ]
        said = [part for part in parts if isinstance(part, str)]
        return "".join(said) if len(said) == len(parts) else None
    return content if isinstance(content, str) else None


def _list_of_objects(cell: Any, field: str, where: str) -> list[Mapping[str, Any]]:
    if isinstance(cell, str):
        try:
            cell = parse_json(cell, where)
        except InputError:
            cell = None
    if not isinstance(cell, list) or not cell or not all(isinstance(item, dict) for item in cell):
        raise InputError(f"{where}: the field '{field}' must be a list of objects with at least one of them.")
    return cell


def _pair(turns: Turns, where: str) -> tuple[str, str]:
    """What stands before the assistant's last turn, and that turn."""
    last = max((number for number, (role, _) in enumerate(turns) if role == "assistant"), default=None)
    if last is None:
        raise InputError(f"{where}: the talk has no turn of the assistant, which the response is; leave it out.")
    if not any(role == "user" for role, _ in turns[:last]):
        raise InputError(f"{where}: no turn of the user stands before the assistant's last; leave it out.")
    return _together(turns[:last]), turns[last][1]


def _unanswered(turns: Turns, where: str) -> Turns:
    """What stands before the answer that a talk may end with."""
    before = turns[:-1] if turns[-1][0] == "assistant" else turns
    if not any(role == "user" and said.strip() for role, said in before):
        raise InputError(f"{where}: the talk has no turn of the user that an answer could follow; leave it out.")
    if before[-1][0] not in ("user", "tool"):
        raise InputError(
            f"{where}: a message of the {before[-1][0]} stands where the user asks for an answer; end the talk with "
            f"the user's turn, or with one answer to it."
        )
    return before


def _question(turns: Turns, where: str) -> str:
    asked = [said for role, said in turns if role == "user"]
    if len(asked) != 1:
        raise InputError(
            f"{where}: the talk has {len(asked)} turns of the user, where a prompt is one; keep the rows with one, or "
            f"give the column that is meant with columns=prompt:NAME."
        )
    return asked[0]
