"""What a run will take, before it starts: prompts, tokens and stored bytes from its config and data, seconds from the
last run.

A plan is the probe's own (`estimate`) and counts what the config asks for, without the model: token counts are of a
sample of the texts, answers are taken to be as long as they may be. Where a run of the probe is there, its own plan is
held against what it really took, and scales the new one. Nothing here imports torch or fetches anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core import config as configs
from workbench.core import registry
from workbench.core.errors import WorkbenchError
from workbench.models.model_outline import Facts, facts
from workbench.runs.folder import Run

__all__ = ["CONTEXT", "CostEstimate", "Facts", "Plan", "estimate", "facts", "last_like", "plan", "plan_of"]

CONTEXT = 2048  # tokens, where a model does not say how long a text may be


@dataclass(frozen=True)
class Plan:
    """``prompts`` and ``tokens`` that are fed or generated; ``stored``: bytes of activations that are kept in the
    store; ``scored``: multiply-adds of scores over the vocabulary that come on top of the passes, and ``without``: the
    setting that leaves them out.

    Of the largest batch: ``longest`` tokens of a row, with the ``generated`` ones that follow it; ``at_once`` tokens
    and ``rows`` at most (0: what suits the device), of which ``samples`` share the reading of one prompt; ``captured``
    numbers that are kept of a row while it runs. ``trained``: bytes that are kept for each weight of the model where
    something is trained on it (moments of an optimiser, gradients)."""

    prompts: int
    tokens: int
    stored: int = 0
    scored: int = 0
    without: str = ""
    longest: int = 0
    generated: int = 0
    at_once: int = 0
    rows: int = 0
    samples: int = 1
    captured: int = 0
    trained: int = 0


@dataclass(frozen=True)
class CostEstimate:
    """``tokens``, ``stored`` (bytes) and, where a run like it was timed on this model and device, ``seconds``."""

    tokens: int
    stored: int
    seconds: float | None


def plan(probe: str, config: Any, data: Path | None, model: str) -> Plan | None:
    """What a run will feed and keep, as its probe says; None for a probe that does not, and for a model that is not
    here yet."""
    said, about = registry.get(probe).estimate, facts(model)
    return None if said is None or about is None else said(config, data, about)


def estimate(
    now: Plan, *, then: Plan | None = None, run: Run | None = None, same_machine: bool = False
) -> CostEstimate:
    """``run``: a complete run of the probe, ``then`` its own plan. Its tokens scale the plan; its seconds count where
    it was made on this model and device."""
    if run is None or then is None or not then.tokens:
        return CostEstimate(now.tokens, now.stored, None)
    share = now.tokens / then.tokens
    real = (run.info.get("counters") or {}).get("tokens") or then.tokens
    seconds = (run.info.get("seconds") or {}).get("compute") if same_machine else None
    return CostEstimate(round(share * real), now.stored, None if seconds is None else share * seconds)


def plan_of(run: Run) -> Plan | None:
    """What a run that is there was planned to take; None where its data or its probe are gone."""
    from workbench.runs.preparation import prepare

    about, model = run.info.get("data") or {}, run.of("model", "name") or ""
    try:
        probe = registry.get(run.probe)
        config = configs.build(probe.config, run.info.get("config"), literal=True)
        ready = prepare(probe, config, model=model)
        default = probe.data.default_path(model) if probe.data is not None else None
        return plan(run.probe, config, Path(about["path"]) if about.get("path") else default or ready.data, model)
    except (WorkbenchError, OSError):
        return None


def last_like(runs: Sequence[Run], probe: str, model: str, device: str) -> tuple[Run | None, bool]:
    """The newest complete run of a probe that was computed (not imported), best one on this model and device, and
    whether it is."""
    done = [run for run in runs if run.probe == probe and run.status == "complete" and not run.of("imported")]
    done.sort(key=lambda run: str(run.info.get("started")), reverse=True)
    here = [run for run in done if run.of("model", "name") == model and run.of("model", "device") == device]
    return (here or done or [None])[0], bool(here)
