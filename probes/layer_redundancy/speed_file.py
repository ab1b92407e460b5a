"""How much faster passes are without modules, timed on this machine: beside the tables, which are the same on any."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from probes.layer_redundancy.config import Config
from probes.layer_redundancy.drop_losses import speed_of
from probes.layer_redundancy.drop_orders import NONE, DropPlan
from workbench.core.context import Context
from workbench.core.files import write_json
from workbench.engine.dropping import DropModules, Module, named
from workbench.engine.edits import apply
from workbench.models import devices
from workbench.models.batching import pad
from workbench.models.model import Model
from workbench.models.multiply_adds import MultiplyAdds

FILE = "speed.json"


def time_plans(
    model: Model, plans: Sequence[DropPlan], length: int, counted: MultiplyAdds, config: Config, context: Context
) -> None:
    """Write speed.json into the run's folder: seconds of a pass over one text of `length` tokens, whole and without
    what similarity chose, in turns; medians, and the ratio of each turn's whole pass to its shorter one."""
    if context.out is None or not config.timing_rounds:
        return
    (context.out / FILE).unlink(missing_ok=True)  # of an earlier run in this folder
    chosen = [plan for plan in plans if plan.order == "similarity"]
    ids = [token % model.vocab_size for token in range(1, length + 1)]
    batch = pad([ids], pad_id=model.pad_id, device=model.device)

    def seconds(modules: tuple[Module, ...]) -> float:
        with apply(model, (*context.edits, *([DropModules(modules)] if modules else []))):
            devices.synchronise(model.device)
            start = time.perf_counter()
            model.forward(batch)
            devices.synchronise(model.device)
            return time.perf_counter() - start

    sets = {(NONE, 0): ()} | {(plan.component, plan.n): plan.modules for plan in chosen}
    taken: dict[tuple[str, int], list[float]] = {key: [] for key in sets}
    with torch.no_grad():
        for turn in range(config.timing_rounds + 1):  # the first one warms up
            for key in list(sets) if turn % 2 else list(reversed(sets)):
                context.check()
                found = seconds(sets[key])
                if turn:
                    taken[key].append(found)
            context.progress(turn + 1, config.timing_rounds + 1, "timed passes")
    whole = taken[NONE, 0]
    rows = [
        {
            "component": component,
            "n": n,
            "modules": named(sets[component, n]),
            "seconds": statistics.median(taken[component, n]),
            "speed": statistics.median(a / b for a, b in zip(whole, taken[component, n])),
            "counted": speed_of(sets[component, n], counted),
        }
        for component, n in sets
    ]
    about = {
        "device": devices.name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "tokens": length,
        "rounds": config.timing_rounds,
    }
    write_json(context.out / FILE, about | {"rows": rows})
