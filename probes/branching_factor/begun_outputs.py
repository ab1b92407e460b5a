"""Outputs that are given in part and go on from there: what the studies that cut, change or answer outputs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from probes.branching_factor.branching_samples import Condition
from probes.branching_factor.conditions import Lab, MeasuredCondition

Output = tuple[int, int]  # the number of a prompt and of one of its samples


def outputs_longer_than(first: MeasuredCondition, tokens: int, originals: int) -> list[Output]:
    """The first ``originals`` samples of every prompt, those that go on after so many tokens."""
    P, M = first.lengths.shape
    return [(p, m) for p in range(P) for m in range(min(originals, M)) if first.lengths[p, m] > tokens]


def begun(
    lab: Lab,
    name: str,
    first: MeasuredCondition,
    outputs: Sequence[Output],
    given: Sequence[Sequence[int]],
    *,
    stream: str,
) -> Condition:
    """The condition ``name``, one row for each of ``outputs``: its prompt as it was written, and then the ids that are
    ``given`` [rows] as what the model has said so far. Conditions of one ``stream`` share their random numbers."""
    condition, prompts = lab.condition(name, first.condition.model, stream=stream), [p for p, _ in outputs]
    taken = lambda values: [values[p] for p in prompts]  # noqa: E731
    return replace(
        condition,
        texts=taken(condition.texts),
        ids=[condition.ids[p] + list(more) for p, more in zip(prompts, given)],
        prompt=taken(condition.prompt),
        cluster=taken(condition.cluster),
        answers=None if condition.answers is None else taken(condition.answers),
        given=[list(more) for more in given],
    )
