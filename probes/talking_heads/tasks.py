"""The prompts on which channels are ablated, with the tokens that a receiver should and should not look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from probes.talking_heads.config import COLUMNS, MORE_COLUMNS, REPEATED, Config
from workbench.core.column_names import column_map
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.long_rows import fitting
from workbench.core.nearest_name import nearest
from workbench.core.tables import read_table
from workbench.models.prompt_style import PromptStyle, style_of, write_prompt
from workbench.models.prompt_templates import chat_ids_with_offsets, raw_ids_with_offsets
from workbench.models.text_positions import find, first_token, tokens_of, word_ids
from workbench.models.text_side import TextSide

PLAIN = "prompts"  # the task of a file that names none
BETWEEN = "|"  # parts the words of a cell


@dataclass(frozen=True)
class Prompt:
    """One prompt as it is fed. From its last token a receiver should look at the tokens `target`, and not at those of
    each of `others`; `answer` should be the next token, and none of `wrong`. `row`: of the data file, -1 for none;
    `group`: what is independent; `size`: how many there are to choose from."""

    task: str
    row: int
    ids: tuple[int, ...]
    target: tuple[int, ...]
    others: tuple[tuple[int, ...], ...]
    answer: int
    wrong: tuple[int, ...]
    group: str
    size: int

    @property
    def told_apart(self) -> bool:
        """Whether the next token says which of the answers it is."""
        return bool(self.wrong) and self.answer not in self.wrong


def read_rows(data: Path | None, config: Config) -> pl.DataFrame | None:
    """The rows of the data file of the tasks that are asked for; None where only words said twice are. Raises
    InputError for a task that the file does not have."""
    if config.tasks == ("none",) or set(config.tasks) == {REPEATED}:
        return None
    if data is None:
        raise InputError("The tasks need a data file with the columns prompt and target; give one with --data.")
    names = column_map(config.columns, (*COLUMNS, *MORE_COLUMNS))
    rows = read_table(data, required=COLUMNS, optional=MORE_COLUMNS, columns=names, what="tasks").with_row_index("row")
    task = pl.col("task").fill_null(PLAIN) if "task" in rows.columns else pl.lit(PLAIN)
    rows = rows.with_columns(task.alias("task"), pl.col("row").min().over("prompt").alias("alike"))
    known = rows["task"].unique(maintain_order=True).to_list()
    if REPEATED in known:
        raise InputError(
            f"The file {Path(data).name} has a task named '{REPEATED}', which is that of words said twice; rename it."
        )
    if config.tasks != ("all",):
        for name in config.tasks:
            if name not in (*known, REPEATED):
                raise InputError(
                    f"The file {Path(data).name} has no task '{name}'{nearest(name, known)}; its tasks are "
                    f"{', '.join(known)}."
                )
        rows = rows.filter(pl.col("task").is_in(list(config.tasks)))
    return rows


def written_prompts(
    model: TextSide, config: Config, rows: pl.DataFrame | None, source: str, context: Context
) -> list[Prompt]:
    """The prompts of the data file, at most `limit` of each task, evenly over its rows; without those that the context
    does not hold where the config skips them.

    Raises InputError, naming file and row, for a prompt whose words are not in it, and for one that the context does
    not hold."""
    if rows is None:
        return []
    style, found = style_of(config), []
    for (_,), own in rows.group_by("task", maintain_order=True):
        if config.limit and own.height > config.limit:
            own = own[[i * own.height // config.limit for i in range(config.limit)]]
        found += [_written(model, style, row, source) for row in own.iter_rows(named=True)]
    kept = fitting(
        [len(prompt.ids) for prompt in found],
        model.context_length,
        long=config.long,
        context=context,
        where=lambda i: f"{source}, row {found[i].row + 1}: the prompt",
        what="prompts",
    )
    return [found[i] for i in kept]


def _written(model: TextSide, style: PromptStyle, row: dict, source: str) -> Prompt:
    where = f"row {row['row'] + 1} of {source}"
    written = write_prompt(model, {"prompt": row["prompt"]}, style=style)
    offsets_of = raw_ids_with_offsets if written.way == "raw" else chat_ids_with_offsets
    _, offsets = offsets_of(model, written.text)
    start, end = written.spans["prompt"]
    text = written.text[start:end]

    def tokens(word: str) -> tuple[int, ...]:
        spans = [(start + a, start + b) for a, b in find(text, word)[:1]]
        place = tokens_of(offsets, spans)
        if not place:
            raise InputError(f"The prompt in {where} does not hold the word '{word.strip()}'; write it out there.")
        return place

    def token(word: str) -> int:
        if written.way == "raw":
            first = first_token(model, written.text, word)
            return word_ids(model, written.text, word)[0] if first is None else first
        return model.encode(word.strip(), bos=False)[0]

    others = _words(row.get("others"))
    answer = (row.get("answer") or row["target"]).strip()
    wrong = _words(row.get("wrong")) or others
    return Prompt(
        row["task"],
        row["row"],
        tuple(written.ids),
        tokens(row["target"]),
        tuple(tokens(word) for word in others),
        token(answer),
        tuple(token(word) for word in wrong),
        (row.get("group") or f"row {row['alike'] + 1}").strip(),
        _size(row.get("size"), len(others) + 1, where),
    )


def _words(cell: str | None) -> list[str]:
    return [word.strip() for word in (cell or "").split(BETWEEN) if word.strip()]


def _size(cell: str | None, otherwise: int, where: str) -> int:
    if cell is None or not str(cell).strip():
        return otherwise
    try:
        return int(str(cell))
    except ValueError:
        raise InputError(f"'size' in {where} is '{cell}'; give a whole number, or leave it empty.") from None


def repeated_prompts(model, config: Config, context: Context) -> list[Prompt]:
    """Words in a random order, said twice, cut at one of the words of the second saying: the token that followed it the
    first time is where an induction head looks. Every sequence is a cluster of its own."""
    from workbench.explorer.repeated_words import said_twice, words

    known = words(model)
    rng = context.rng("repeated")
    sequences = said_twice(model, known, sequences=config.sequences, seed=context.seed)
    found = []
    for number, ids in enumerate(sequences):
        first = 1 if model.prepends_bos and model.bos_id is not None else 0
        period = (len(ids) - first) // 2
        place = int(rng.integers(0, period - 1))  # in the second saying
        end = first + period + place
        target = first + place + 1
        others = [first + i for i in range(period) if i not in (place, place + 1)]
        found.append(
            Prompt(
                REPEATED,
                -1,
                tuple(ids[: end + 1]),
                (target,),
                (),
                ids[target],
                tuple(ids[i] for i in others),
                f"sequence {number + 1}",
                period,
            )
        )
    return found[: config.limit] if config.limit else found


def all_prompts(model, config: Config, context: Context) -> list[Prompt]:
    """The prompts of every task of a run, task by task."""
    rows = read_rows(context.data, config)
    source = "the data" if context.data is None else Path(context.data).name
    found = written_prompts(model, config, rows, source, context)
    if config.tasks == ("all",) or REPEATED in config.tasks:
        found = repeated_prompts(model, config, context) + found
    return found


def halves(prompts: Sequence[Prompt], context: Context) -> list[bool]:
    """Whether each prompt is of the half that chooses: half of the groups of its task, drawn by chance; the other half
    is measured on. A task of one group has none to choose by."""
    chooses: dict[tuple[str, str], bool] = {}
    for task in dict.fromkeys(prompt.task for prompt in prompts):
        groups = list(dict.fromkeys(prompt.group for prompt in prompts if prompt.task == task))
        order = context.rng(f"halves of {task}").permutation(len(groups))
        chooses |= {(task, groups[i]): rank < len(groups) // 2 for rank, i in enumerate(order)}
    return [chooses[prompt.task, prompt.group] for prompt in prompts]


def input_table(prompts: Sequence[Prompt], chooses: Sequence[bool]) -> pl.DataFrame:
    """What was fed, and where is measured."""
    return pl.DataFrame(
        {
            "row": range(len(prompts)),
            "task": [p.task for p in prompts],
            "data_row": [p.row if p.row >= 0 else None for p in prompts],
            "ids": [list(p.ids) for p in prompts],
            "target": [list(p.target) for p in prompts],
            "others": [[list(o) for o in p.others] for p in prompts],
            "answer_id": [p.answer for p in prompts],
            "wrong_ids": [list(p.wrong) for p in prompts],
            "group": [p.group for p in prompts],
            "size": [p.size for p in prompts],
            "split": ["choosing" if c else "measured" for c in chooses],
        },
        schema={
            "row": pl.Int64,
            "task": pl.String,
            "data_row": pl.Int64,
            "ids": pl.List(pl.Int64),
            "target": pl.List(pl.Int64),
            "others": pl.List(pl.List(pl.Int64)),
            "answer_id": pl.Int64,
            "wrong_ids": pl.List(pl.Int64),
            "group": pl.String,
            "size": pl.Int64,
            "split": pl.String,
        },
    )
