"""What a run would take, said before it starts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from workbench.cli.show import print_json, say
from workbench.core.errors import InputError
from workbench.core.wording import duration, human_bytes, two_digits
from workbench.runs import cost
from workbench.runs.folder import list_runs

if TYPE_CHECKING:
    from workbench.runs.memory_plan import MemoryPlan
    from workbench.runs.preparation import Prepared


def print_estimate(ready: Prepared, model: str, *, dtype: str, device: str | None, json: bool) -> None:
    """Prompts, tokens, arithmetic and bytes of a run, and its seconds where one like it was timed on this machine.

    Raises InputError for a model whose config.json is not on this machine, and for a probe that plans nothing."""
    from workbench.models.size import size_of
    from workbench.runs.memory_plan import plan_memory

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
    memory = plan_memory(about.folder, now, dtype=dtype, device=device)
    last, same = cost.last_like(list_runs(), ready.probe.name, model, device or "cpu")
    guess = cost.estimate(now, then=None if last is None else cost.plan_of(last), run=last, same_machine=same)
    found = {
        "probe": ready.probe.name,
        "model": model,
        "prompts": now.prompts,
        "tokens": guess.tokens,
        "flops": 2 * (size.active * guess.tokens + now.scored),
        "parameters": size.total,
        "weight_bytes": memory.need.weights,
        "stored_bytes": guess.stored,
        "seconds": guess.seconds,
        "memory": {
            **asdict(memory.need),
            "total": memory.need.total,
            "free": memory.free,
            "fits": memory.fits,
            **{name: getattr(memory, name) for name in ("rows", "tokens", "dtype", "device", "instead")},
        },
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
    say(f"  weights: {size.total / 1e9:.2f} billion parameters, {human_bytes(memory.need.weights)} in {memory.dtype}")
    say(f"  kept: {human_bytes(guess.stored)} of activations" if guess.stored else "  kept: no activations")
    for line in in_words(memory):
        say(f"  {line}")
    pace = "no run of this probe on this model and device was timed here yet"
    say(f"  time: {pace if guess.seconds is None else duration(guess.seconds) + ', at the pace of the last run here'}")


PARTS = {
    "weights": "weights",
    "cache": "keys and values",
    "activations": "activations of a pass",
    "scores": "next-token scores, in float32",
    "captured": "captured activations",
    "training": "training beside the weights",
}


def in_words(memory: MemoryPlan) -> list[str]:
    """What a run would hold at its fullest, a line for each part, and the sum against what is free."""
    need = asdict(memory.need)
    of = f"batches of {memory.rows} × {memory.tokens:,} tokens" if memory.rows else "the weights alone"
    lines = [f"memory on {memory.device}, in {of}:"]
    lines += [f"  {words}: {human_bytes(need[part])}" for part, words in PARTS.items() if need[part]]
    verdict = "" if memory.fits else f", which is too little: {memory.instead or 'use a smaller model'}"
    return [*lines, f"  together {human_bytes(memory.need.total)} of {human_bytes(memory.free)} that are free{verdict}"]
