"""What the model answers: both hops, their composition and two shortcuts; and which questions are looked into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from probes.hopping.answers import as_text, says
from probes.hopping.asking import FedQuestion
from probes.hopping.config import SPLITS, Config
from workbench.core.context import Context
from workbench.engine.generate import greedy
from workbench.engine.passes import Pass
from workbench.models.model import Model
from workbench.stats.clusters import Clusters, clusters_of

AT_ONCE = 128  # questions of one resumable part
ASKED = ("hop1", "hop2", "two_hop", "entity_shortcut", "relation_shortcut")
LEFT_OUT = "left out"


def run_of(context: Context) -> Pass:
    """A pass with the run's own edits."""
    return Pass(context.edits, check=context.check)


@dataclass(frozen=True, eq=False)
class QuestionSet:
    """The questions of one set that are looked into, in the order of the file. `split`: correct or incorrect, by what
    the model says of the composition; `said` [n]: that, as text."""

    split: str
    asked: tuple[FedQuestion, ...]
    said: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.asked)

    @property
    def clusters(self) -> Clusters:
        """The bridges that the questions belong to."""
        return clusters_of(self.names)

    @property
    def names(self) -> np.ndarray:
        return np.array([one.question.cluster for one in self.asked])


def answer(model: Model, config: Config, context: Context, asked: Sequence[FedQuestion]) -> pl.DataFrame:
    """A row per question: whether each of its prompts is answered (hop1 by the bridge, all others by the answer; null
    where it has none), and what the model says to hop1, hop2 and the composition."""
    frames = []
    for first in range(0, len(asked), AT_ONCE):
        part = asked[first : first + AT_ONCE]
        frames.append(context.part(f"answers {first}", partial(_answers, model, config, context, part))["answers"])
        context.progress(min(first + AT_ONCE, len(asked)), len(asked), "questions")
    return pl.concat(frames)


def _answers(model: Model, config: Config, context: Context, asked: Sequence[FedQuestion]) -> dict[str, pl.DataFrame]:
    prompts = [(i, name, ids) for i, one in enumerate(asked) for name, ids in one.ids.items()]
    found = greedy(model, [ids for _, _, ids in prompts], max_new_tokens=config.max_new_tokens, run=run_of(context))
    fed = sum(len(ids) for _, _, ids in prompts)
    context.count(prompts=len(prompts), tokens=fed + sum(map(len, found)), forwards=1)
    rows: list[dict] = [{"row": one.question.row} | dict.fromkeys(ASKED) for one in asked]
    for (i, name, _), new in zip(prompts, found):
        text, question = as_text(model, new), asked[i].question
        names = question.bridge if name == "hop1" else question.answer
        rows[i][name] = says(text, names, config.match)
        if "shortcut" not in name:
            rows[i][f"{name}_said"] = text
        if name == "two_hop":
            rows[i] |= {"says_bridge": says(text, question.bridge, config.match), "generated_ids": new}
    schema = {"row": pl.Int64, **dict.fromkeys(ASKED, pl.Boolean), "says_bridge": pl.Boolean}
    schema |= {f"{name}_said": pl.String for name in ASKED[:3]} | {"generated_ids": pl.List(pl.Int64)}
    return {"answers": pl.DataFrame(rows, schema=schema)}


def item_table(config: Config, asked: Sequence[FedQuestion], answers: pl.DataFrame) -> pl.DataFrame:
    """`answers` with what each question is about, `shortcut` (either of them), and its `split`: correct or incorrect by
    the composition, or left out (a hop that the model does not know, a shortcut that it takes)."""
    short = pl.any_horizontal(pl.col("entity_shortcut").fill_null(False), pl.col("relation_shortcut").fill_null(False))
    known = pl.col("hop1").fill_null(True) & pl.col("hop2").fill_null(True) & ~pl.col("shortcut")
    inside = known if config.keep == "known" else pl.lit(True)
    split = (
        pl.when(~inside).then(pl.lit(LEFT_OUT)).when("two_hop").then(pl.lit("correct")).otherwise(pl.lit("incorrect"))
    )
    frame = answers.with_columns(shortcut=short).with_columns(split=split)
    frame = frame.with_columns(
        bridge=pl.Series([one.question.bridge[0] for one in asked]),
        answer=pl.Series([one.question.answer[0] for one in asked]),
        prompt=pl.Series([one.question.prompt for one in asked]),
    )
    first = ("row", "hop1", "hop2", "two_hop", "shortcut", "split", "entity_shortcut", "relation_shortcut")
    return frame.select(*first, pl.exclude(*first, "generated_ids"))


def choose(config: Config, context: Context, asked: Sequence[FedQuestion], table: pl.DataFrame) -> list[QuestionSet]:
    """Of each set the questions that are looked into: all, or as many as `items` drawn at random."""
    found = []
    for split in SPLITS:
        rows = np.flatnonzero((table["split"] == split).to_numpy())
        if 0 < config.items < len(rows):
            rows = np.sort(context.rng(f"items {split}").permutation(rows)[: config.items])
        said = table["two_hop_said"].to_list()
        found.append(QuestionSet(split, tuple(asked[i] for i in rows), tuple(said[i] for i in rows)))
    return found


def others(
    context: Context, name: str, asked: Sequence[FedQuestion], one: FedQuestion, count: int, *, placed: bool = False
) -> list[FedQuestion]:
    """`count` questions (with replacement) whose bridge and answer are others than those of `one`, drawn for it alone;
    with `placed` only those whose first hop has a place. Empty where there are none."""
    mine = one.question.names
    able = [other for other in asked if (other.t1 is not None or not placed) and mine.isdisjoint(other.question.names)]
    if not able:
        return []
    drawn = context.rng(f"{name} {one.question.row}").integers(len(able), size=count)
    return [able[i] for i in drawn.tolist()]
