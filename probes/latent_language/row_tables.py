"""The tables with a row for every prompt: what was fed, and the log-probability of every language's word by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.latent_language.config import READOUTS, Config
from probes.latent_language.measuring import NULL, OWN, Found
from probes.latent_language.prepared import AskedTask, PreparedWords
from probes.latent_language.questions import WordQuestion

WORDS = {
    "row": pl.Int64,
    "language": pl.String,
    "lens": pl.String,
    "layer": pl.Int64,
    "tokens": pl.List(pl.Int64),
    "null_tokens": pl.List(pl.Int64),
    **dict.fromkeys(
        ("log_probability", "log_p_first", "log_p_set", "null_log_probability", "null_log_p_first", "null_log_p_set"),
        pl.Float64,
    ),
}
INPUTS = {
    "row": pl.Int64,
    "ids": pl.List(pl.Int64),
    **{name: pl.String for name in ("task", "source", "target", "concept", "group", "unrelated", "split", "text")},
}


def input_table(ready: PreparedWords, fitted: Sequence[WordQuestion]) -> pl.DataFrame:
    """One row for each measured prompt, in the order of the tasks, then one for each that directions are fitted on."""
    asked = [("measured", question) for each in ready.asked for question in each.questions]
    rows = []
    for split, question in [*asked, *(("fit", question) for question in fitted)]:
        task = question.task
        rows.append(
            {
                "row": len(rows),
                "ids": list(question.written.ids),
                "task": task.name,
                "source": task.source,
                "target": task.target,
                "concept": ready.words.concepts[question.concept],
                "group": ready.words.groups[question.concept],
                "unrelated": ready.words.concepts[question.other] if split == "measured" else None,
                "split": split,
                "text": question.written.text,
            }
        )
    return pl.DataFrame(rows, schema=INPUTS)


def word_table(ready: PreparedWords, found: Sequence[Found], config: Config) -> pl.DataFrame:
    """A row for each prompt, language, lens and layer: log-probabilities in nats, null where there is nothing to look
    for. `tokens`: of the word, or of its alternatives one after the other, each ended by −1."""
    parts, start = [], 0
    for asked, values in zip(ready.asked, found):
        parts.append(_of_task(asked, values, ready.words.languages, config, start))
        start += len(asked.questions)
    return pl.concat(parts).with_columns(pl.selectors.float().fill_nan(None))


def _of_task(asked: AskedTask, values: Found, languages: Sequence[str], config: Config, start: int) -> pl.DataFrame:
    log_p = values["log_p"].astype(np.float64)  # [n, 2, readouts, G, lenses, layers]
    n, _, _, count, lenses, depth = log_p.shape
    row, g, lens, layer = (axis.ravel() for axis in np.indices((n, count, lenses, depth)))
    columns: dict = {
        "row": row + start,
        "language": np.array(languages, dtype=object)[g],
        "lens": np.array(config.lenses, dtype=object)[lens],
        "layer": layer,
    }
    pairs = [(i, name) for i in range(n) for name in languages]
    repeat = np.repeat(np.arange(len(pairs)), lenses * depth)
    for column, side in (("tokens", "own"), ("null_tokens", "null")):
        lists = [_flat(getattr(asked.candidates[i], side)[name].words) for i, name in pairs]
        columns[column] = pl.Series(column, lists, dtype=pl.List(pl.Int64)).gather(repeat)
    names = {"word": "log_probability", "first": "log_p_first", "set": "log_p_set"}
    for which, before in ((OWN, ""), (NULL, "null_")):
        for k, readout in enumerate(READOUTS):
            columns[before + names[readout]] = log_p[:, which, k].ravel()
    return pl.DataFrame({name: pl.Series(name, columns[name], dtype=kind) for name, kind in WORDS.items()})


def _flat(words: Sequence[Sequence[int]]) -> list[int]:
    if len(words) == 1:
        return list(words[0])
    return [token for word in words for token in (*word, -1)]
