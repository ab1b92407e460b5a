"""All rows of one card, within a time: a gate first, then rounds in turn, with the shares of what the card can do.

On the virtual accelerator every call is counted as well. `python -m tests.benchmarks --counts` writes these counts to
launches.json and their table into the README."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks.card import ROUNDS, SCALES, Card, Clock
from tests.benchmarks.timing import row
from workbench.models import devices

LAUNCHES = Path(__file__).with_name("launches.json")
README = Path(__file__).parents[2] / "README.md"
SECONDS = 480.0  # of ten minutes: the rest is for building the models and measuring the card


@contextlib.contextmanager
def there(device: str) -> Iterator[None]:
    """The device, where it is the virtual one."""
    if not device.startswith("virtual"):
        yield
        return
    from tests import virtual_accelerator

    with virtual_accelerator.present():
        yield


def measure(device: str, scale: str, *, seconds: float | None = None, names: str = "") -> Iterator[dict]:
    """The rows of a card whose names hold `names`, one after another. Raises AssertionError where a row's two sides
    differ."""
    from tests.benchmarks.card_rows import GROUPS, ROWS

    card, clock = Card(device, SCALES[scale]), Clock(SECONDS if seconds is None else seconds, ROWS)
    for group in GROUPS:
        for case in group(card):
            if names in case.name:
                print(f"  {case.name} …", file=sys.stderr, flush=True)
                yield _measured(card, case, clock.row())
        devices.free_caches()


def _measured(card: Card, case, until: float) -> dict:
    devices.reset_peak_memory()
    agreement = case.agree()
    counts = counted(case) if card.device.startswith("virtual") else {}
    sides: dict[str, Callable[[], object]] = {"reference": case.reference, "ours": case.ours}
    if not counts:  # both ran when they were counted
        for call in sides.values():
            card.seconds(call)
    seconds: dict[str, list[float]] = {name: [] for name in sides}

    def one(number: int) -> float:
        order = list(sides) if number % 2 else list(reversed(sides))
        for name in order:
            seconds[name].append(card.seconds(sides[name]) / (case.part if name == "reference" else 1))
        return sum(taken[-1] for taken in seconds.values())

    rounds = Clock.rounds(until, one)
    best = min(seconds["ours"])
    shares = {}
    if case.operations:
        shares["share_of_matmul_peak"] = case.operations / best / card.matmul_peak
    if case.bytes:
        shares["share_of_bandwidth"] = case.bytes / best / card.bandwidth
    return row(
        case.name,
        case.unit,
        seconds,
        case.work,
        agreement,
        reference=case.against,
        rounds_dropped=ROUNDS - rounds,
        peak_memory_bytes=devices.peak_memory_bytes(),
        **shares,
        **case.details,
        **({"counts": counts} if counts else {}),
    )


def counted(case) -> dict:
    """Launches and waits of one call of each side, per step or per pass; after the gate, which called them before."""
    from tests.support.device_counts import counting

    found: dict = {"per": case.per}
    for name, call in (("reference", case.reference), ("ours", case.ours)):
        share = case.part if name == "reference" else 1
        with counting() as counts:
            call()
        for kind, number in (("launches", counts.launch), ("waits", counts.waits)):
            found[f"{name}_{kind}"] = round(number / share / case.steps, 2)
    return found


def recount() -> dict[str, dict]:
    """Counts of every row, on tiny shapes: they hang on the number of layers and hardly on anything else."""
    with there("virtual"):
        card = Card("virtual", SCALES["tiny"])
        from tests.benchmarks.card_rows import GROUPS

        found = {}
        for case in (case for group in GROUPS for case in group(card)):
            case.agree()
            found[case.name] = counted(case) | {"against": case.against}
        return found


def launches_table(found: dict[str, dict]) -> str:
    """The table that the README publishes, in Markdown."""
    lines = [
        "| what | against | per | launches, reference | launches, ours | waits, reference | waits, ours |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for name in sorted(found):
        r = found[name]
        numbers = [r[f"{side}_{kind}"] for kind in ("launches", "waits") for side in ("reference", "ours")]
        shown = " | ".join(f"{x:,.0f}" if x >= 10 or x == int(x) else f"{x:.2g}" for x in numbers)
        lines.append(f"| {name} | {r['against']} | {r['per']} | {shown} |")
    return "\n".join(lines)


def publish() -> None:
    """Count everything anew; write launches.json, and the table into the README."""
    found = recount()
    LAUNCHES.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    text = README.read_text(encoding="utf-8")
    before, rest = text.split("<!-- launches -->\n")
    _, after = rest.split("<!-- /launches -->")
    README.write_text(
        f"{before}<!-- launches -->\n{launches_table(found)}\n<!-- /launches -->{after}", encoding="utf-8"
    )
