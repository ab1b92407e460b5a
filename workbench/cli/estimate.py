"""What a run would take, said before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.cli.show import print_json, say
from workbench.core.errors import InputError
from workbench.core.wording import duration, human_bytes, two_digits
from workbench.runs import cost
from workbench.runs.folder import list_runs

if TYPE_CHECKING:
    from workbench.runs.preparation import Prepared


def print_estimate(ready: Prepared, model: str, *, dtype: str, device: str | None, json: bool) -> None:
    """Prompts, tokens, arithmetic and bytes of a run, and its seconds where one like it was timed on this machine.

    Raises InputError for a model whose config.json is not on this machine, and for a probe that plans nothing."""
    from workbench.models.size import size_of

    about = cost.facts(model)
    if about is None or about.folder is None:
        raise InputError(
            f"The model '{model}' is not on this machine, and an estimate needs its config.json and tokenizer; fetch "
            f"it first, or leave out --estimate."
        )
    now = cost.plan(ready.probe.name, ready.config, ready.data, model)
    if now is None:
        raise InputError(f"{ready.probe.name} cannot say what this run would take; leave out --estimate.")
    size = size_of(about.folder)
    last, same = cost.last_like(list_runs(), ready.probe.name, model, device or "cpu")
    guess = cost.estimate(now, then=None if last is None else cost.plan_of(last), run=last, same_machine=same)
    found = {
        "probe": ready.probe.name,
        "model": model,
        "prompts": now.prompts,
        "tokens": guess.tokens,
        "flops": 2 * (size.active * guess.tokens + now.scored),
        "parameters": size.total,
        "weight_bytes": size.weight_bytes(dtype),
        "stored_bytes": guess.stored,
        "seconds": guess.seconds,
    }
    if json:
        return print_json(found)
    say(
        f"{ready.probe.name} on {model} would feed {two_digits(now.prompts)} prompts, {two_digits(guess.tokens)} tokens"
    )
    say(f"  arithmetic: {found['flops']:.1e} floating-point operations (attention aside)")
    if now.without:
        part = 2 * now.scored / found["flops"]
        say(f"    of these {part:.0%} are scores over the vocabulary, which {now.without} leaves out")
    say(f"  weights: {size.total / 1e9:.2f} billion parameters, {human_bytes(found['weight_bytes'])} in {dtype}")
    say(f"  kept: {human_bytes(guess.stored)} of activations" if guess.stored else "  kept: no activations")
    pace = "no run of this probe on this model and device was timed here yet"
    say(f"  time: {pace if guess.seconds is None else duration(guess.seconds) + ', at the pace of the last run here'}")
