"""Interleaved timing: variants take turns, so that a machine that slows down slows them all down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from workbench.models import devices


def interleaved(
    variants: dict[str, Callable[[], object]], *, rounds: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of `rounds` runs of every variant, in turn, the order reversed every round, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name in list(variants) if turn % 2 else list(reversed(variants)):
            devices.synchronise(device)
            start = time.perf_counter()
            variants[name]()
            devices.synchronise(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def gemm_rate(size: int = 1024) -> float:
    """Float32 operations per second of a large matrix product on the CPU, with the threads that torch has now: the best
    of twenty."""
    a, best = torch.randn(size, size), float("inf")
    for _ in range(20):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def row(
    name: str, unit: str, seconds: dict[str, list[float]], work: float, agreement: str, *, reference: str, **details
) -> dict:
    """One line of the table: rates (work / median seconds) of "reference" and "ours" and the median of the paired
    ratios."""
    rate = {key: work / statistics.median(taken) for key, taken in seconds.items()}
    ratios = sorted(a / b for a, b in zip(seconds["reference"], seconds["ours"]))
    return {
        "name": name,
        "unit": unit,
        "reference": rate["reference"],
        "ours": rate["ours"],
        "ratio": statistics.median(ratios),
        "agreement": agreement,
        "details": {
            "against": reference,
            "rounds": len(ratios),
            "ratio_low": ratios[0],
            "ratio_high": ratios[-1],
            "seconds": seconds,
        }
        | details,
    }
