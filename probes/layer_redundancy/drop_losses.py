"""What the model loses without modules: loss and accuracy of the next token, and the share of right choices, on texts
that did not decide what is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.layer_redundancy.drop_orders import NONE, DropPlan
from probes.layer_redundancy.halves import HalfTexts
from probes.layer_redundancy.stream_pairs import pass_of
from workbench.core.context import Context
from workbench.engine.dropping import DropModules, Module, named
from workbench.engine.evaluation import PLAIN, Question, next_tokens, right_choices
from workbench.models.model import Model
from workbench.models.multiply_adds import MultiplyAdds
from workbench.stats.clusters import Clusters, clusters_of, crossed_interval, mean_interval, share_interval
from workbench.stats.crossed_shares import crossed_share_interval

FLOATS = (
    *("loss", "ci_low", "ci_high", "accuracy", "accuracy_low", "accuracy_high"),
    *("choice_accuracy", "choice_low", "choice_high", "speed"),
    *("minus_random", "minus_random_low", "minus_random_high", "random_as_good"),
)
DRAWS = {
    "component": pl.String,
    "n": pl.Int64,
    "draw": pl.Int64,
    "modules": pl.List(pl.String),
    "loss": pl.Float64,
    "accuracy": pl.Float64,
    "choice_accuracy": pl.Float64,
    "speed": pl.Float64,
}


@dataclass(frozen=True, eq=False)
class LossesWithout:
    """Under one set of dropped modules: loss and accuracy of the next token of every text, means over its tokens [2,
    texts]; whether the choices are right [questions]."""

    texts: np.ndarray
    choices: np.ndarray


def measure_losses(
    model: Model,
    plans: Sequence[DropPlan],
    texts: HalfTexts,
    questions: Sequence[Question],
    max_tokens: int,
    context: Context,
) -> dict[tuple[Module, ...], LossesWithout]:
    """What every different set of modules gives; each is a part that a run which is stopped does not measure again."""
    sets = list(dict.fromkeys(key_of(plan.modules) for plan in plans))
    found = {}
    for number, modules in enumerate(sets):

        def compute(modules: tuple[Module, ...] = modules) -> dict[str, np.ndarray]:
            edits = [DropModules(modules)] if modules else []
            run = pass_of(model, max_tokens, context, *edits)
            losses = next_tokens(model, texts.ids, run=run)
            means = np.stack([texts.of_own(row, each).mean(1) for row, each in enumerate(losses)], axis=1)
            context.count(prompts=texts.n, tokens=sum(map(len, texts.ids)))
            right = right_choices(model, questions, [PLAIN], run=run)[0] if questions else np.empty(0)
            return {"texts": means, "choices": np.asarray(right, np.float64)}

        part = context.part(f"without {','.join(named(modules)) or 'nothing'}", compute)
        found[modules] = LossesWithout(part["texts"], part["choices"])
        context.progress(number + 1, len(sets), "sets of dropped modules")
    return found


def key_of(modules: Sequence[Module]) -> tuple[Module, ...]:
    """A set of modules, whatever the order in which it was chosen."""
    return tuple(sorted(modules))


def dropping_table(
    plans: Sequence[DropPlan], found: dict[tuple[Module, ...], LossesWithout], texts: HalfTexts, counted: MultiplyAdds
) -> pl.DataFrame:
    """The table `dropping`: a row for each component, number and order; random sets together in one."""
    clusters = clusters_of(np.arange(texts.n))
    scored = sum(texts.of_own(row, np.empty(len(ids) - 1)).size for row, ids in enumerate(texts.ids))
    groups: dict[tuple[str, int, str], list[DropPlan]] = {}
    for plan in plans:
        groups.setdefault((plan.component, plan.n, plan.order), []).append(plan)
    rows = []
    for (component, n, order), some in groups.items():
        measured = [found[key_of(plan.modules)] for plan in some]
        row = {"component": component, "n": n, "order": order} | dict.fromkeys(FLOATS)
        row |= _estimates(measured, clusters, drawn=order == "random")
        row["speed"] = float(np.mean([speed_of(plan.modules, counted) for plan in some]))
        against = groups.get((component, n, "random"), [])
        if against and order != "random":
            row |= _beside_random(measured[0], [found[key_of(plan.modules)] for plan in against], clusters)
        row["modules"] = named(some[0].modules) if order != "random" else None
        row |= {"draws": len(some), "texts": texts.n, "tokens": scored, "questions": len(measured[0].choices)}
        rows.append(row)
    whole = {"n": pl.Int64} | dict.fromkeys(("draws", "texts", "tokens", "questions"), pl.Int64)
    schema = whole | dict.fromkeys(FLOATS, pl.Float64) | {"modules": pl.List(pl.String)}
    return pl.DataFrame(rows, schema_overrides=schema).with_columns(pl.selectors.float().fill_nan(None))


def draw_table(
    plans: Sequence[DropPlan], found: dict[tuple[Module, ...], LossesWithout], counted: MultiplyAdds
) -> pl.DataFrame:
    """The table `draws`: every random set."""
    rows = []
    for plan in plans:
        if plan.order != "random":
            continue
        own = found[key_of(plan.modules)]
        loss, accuracy = own.texts.mean(1).tolist()
        choice = float(own.choices.mean()) if len(own.choices) else None
        speed = speed_of(plan.modules, counted)
        rows.append((plan.component, plan.n, plan.draw, named(plan.modules), loss, accuracy, choice, speed))
    return pl.DataFrame(rows, schema=DRAWS, orient="row")


def speed_of(modules: Sequence[Module], counted: MultiplyAdds) -> float:
    """Multiply-adds of the whole model over those without the modules."""
    return counted.whole / (counted.whole - sum(counted.of(*module) for module in modules))


def _estimates(measured: Sequence[LossesWithout], clusters: Clusters, *, drawn: bool) -> dict[str, float | None]:
    """Means with intervals over texts and questions; of random sets over both them and the sets."""
    losses = np.stack([each.texts[0] for each in measured])
    hits = np.stack([each.texts[1] for each in measured])
    right = np.stack([each.choices for each in measured])
    out = {}
    ends = crossed_interval(losses, clusters) if drawn else mean_interval(losses[0], clusters)
    out |= dict(zip(("loss", "ci_low", "ci_high"), (losses.mean(), *ends)))
    ends = crossed_share_interval(hits, clusters) if drawn else share_interval(hits[0], clusters)
    out |= dict(zip(("accuracy", "accuracy_low", "accuracy_high"), (hits.mean(), *ends)))
    if right.shape[1]:
        each = clusters_of(np.arange(right.shape[1]))
        ends = crossed_share_interval(right, each) if drawn else share_interval(right[0], each)
        out |= dict(zip(("choice_accuracy", "choice_low", "choice_high"), (right.mean(), *ends)))
    return {name: float(value) for name, value in out.items()}


def _beside_random(own: LossesWithout, others: Sequence[LossesWithout], clusters: Clusters) -> dict[str, float]:
    """Loss without the modules less that without random ones, text by text; and the share of random sets whose loss is
    no higher: the mean difference is known ever better with more texts, whichever set it is of."""
    difference = own.texts[0] - np.stack([other.texts[0] for other in others])
    ends = crossed_interval(difference, clusters)
    found = dict(zip(("minus_random", "minus_random_low", "minus_random_high"), map(float, (difference.mean(), *ends))))
    return found | {"random_as_good": float((difference.mean(1) >= 0).mean())}


def whole_loss(frame: pl.DataFrame) -> float:
    """The loss of the whole model, of the table `dropping`."""
    return float(frame.filter(pl.col("order") == NONE)["loss"][0])
