"""The modules that similarity chose as files, for `--edit` and `export-pruned`: each says what dropping them did."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from probes.layer_redundancy.drop_orders import DropPlan
from workbench.core.context import Context
from workbench.core.files import atomic
from workbench.engine.dropping import save_modules
from workbench.models.model import Model

PATTERN = "dropped_*.json"


def save_plans(model: Model, plans: Sequence[DropPlan], dropping: pl.DataFrame, context: Context) -> None:
    """Write `dropped_{component}_{n}.json` into the run's folder for every set that similarity chose."""
    if context.out is None:
        return
    for path in context.out.glob(PATTERN):  # of an earlier run in this folder
        path.unlink()
    for plan in plans:
        if plan.order == "similarity":
            with atomic(context.out / f"dropped_{plan.component}_{plan.n}.json") as temporary:
                save_modules(temporary, plan.modules, note=_note(plan, dropping), model=model)


def _note(plan: DropPlan, dropping: pl.DataFrame) -> str:
    """What dropping these modules was seen to do, in words."""
    row = dropping.filter(component=plan.component, n=plan.n, order=plan.order).row(0, named=True)
    whole = dropping.row(0, named=True)["loss"]
    low, high = row["minus_random_low"], row["minus_random_high"]
    interval = "no interval" if low is None else f"[{low:+.3f}, {high:+.3f}]"
    what = "attention layers and MLPs" if plan.component == "joint" else f"{plan.component} modules"
    return (
        f"the {plan.n} {what} of highest similarity by layer-redundancy: loss {row['loss']:.3f} without them, "
        f"{whole:.3f} of the whole model; minus that of random ones {row['minus_random']:+.3f} {interval}, "
        f"n = {row['texts']} texts"
    )
