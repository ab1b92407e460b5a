"""What a run will hold in memory at its fullest, before it starts: its largest batch on the device it would run on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.core.errors import InputError
from workbench.core.wording import one_line
from workbench.engine.passes import DECODE, ROWS, SAMPLE
from workbench.models.load_options import AUTOMATIC, check_device
from workbench.models.memory import STEP, MemoryNeed, footprint, tokens_that_fit, usual_tokens
from workbench.models.precision import dtype_for, free_bytes, weight_bytes, what_fits
from workbench.models.size import BYTES, size_of
from workbench.runs.cost import Plan


@dataclass(frozen=True)
class MemoryPlan:
    """``need`` of a batch of ``rows`` texts of ``tokens`` tokens, of which ``free`` bytes are there on ``device``;
    ``instead``: what would fit, in words, where that does not."""

    need: MemoryNeed
    rows: int
    tokens: int
    dtype: str
    device: str
    free: int
    instead: str = ""

    @property
    def fits(self) -> bool:
        return self.need.total <= self.free


def plan_memory(folder: Path, now: Plan, *, dtype: str, device: str | None) -> MemoryPlan:
    """The memory of a run whose plan is `now`, on a model whose weights are not read; of a plan that does not say how
    long its texts are, and of a model whose code needs numbers to run, the weights alone.

    Raises InputError for an architecture that cannot be made from its config."""
    place = str(check_device(device))
    dtype = dtype_for(folder, device) if dtype == AUTOMATIC else dtype
    free, weights = free_bytes(device), _weights(folder, dtype)
    trained = now.trained * size_of(folder).total if now.trained else 0
    alone = MemoryPlan(MemoryNeed(weights, training=trained), 0, 0, dtype, place, free)
    if not now.longest:
        return alone
    try:
        of = footprint(folder, dtype if dtype in BYTES else size_of(folder).dtype)
        rows = _rows(of, now, place, max(0, free - weights - trained))
        need = replace(_need(of, now, rows, weights), training=trained)
    except InputError:
        raise
    except Exception as error:  # modelling code raises whatever it likes
        logging.getLogger(__name__).debug("no footprint of %s: %s", folder, one_line(error))
        return alone
    found = MemoryPlan(need, rows, now.longest, dtype, place, free)
    if found.fits:
        return found
    fewer = []
    if weights + trained < free:
        alone_fits = _need(of, now, 1, weights).total + trained <= free
        fewer = ["smaller batches (they are halved where memory runs out)" if alone_fits else "shorter texts"]
    room = max(0, free - (need.total - weights))
    return replace(found, instead=what_fits(folder, dtype=dtype, device=device, free=room, more=fewer))


def _weights(folder: Path, dtype: str) -> int:
    """Bytes of the weights: of the files where they are here, else of what the config makes."""
    return weight_bytes(folder, dtype) or size_of(folder).weight_bytes(dtype)


def _rows(of, now: Plan, place: str, free: int) -> int:
    """Rows of the largest batch, as the engine will put it together."""
    decoded = SAMPLE if now.samples > 1 else DECODE
    most = now.at_once or (decoded if now.generated else usual_tokens(place))
    if not now.at_once and not place.startswith("cpu"):
        asked = {"longest": now.longest, "usual": most, "captured": now.captured}
        most = tokens_that_fit(of, free, caches=bool(now.generated), **asked)
    return max(1, min(now.prompts * now.samples, now.rows or ROWS, most // now.longest))


def _need(of, now: Plan, rows: int, weights: int) -> MemoryNeed:
    """What so many rows of the greatest length take."""
    read = now.longest - now.generated
    return MemoryNeed(
        weights,
        cache=of.cache(rows, now.longest) if now.generated else 0,
        activations=of.activations(-(-rows // now.samples), max(1, read), padded=bool(now.generated)),
        scores=of.positions(rows, copies=STEP if now.generated else 1),
        captured=4 * rows * now.captured,
    )
