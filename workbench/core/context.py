"""What a probe is given besides the model and its config: randomness, progress, cancellation, resumable parts,
counters."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.core.errors import Cancelled, InputError, WorkbenchError
from workbench.core.files import read_plain, write_bytes
from workbench.core.parquet import parquet_bytes, parse_parquet
from workbench.core.private import make_folder
from workbench.core.progress import SCALE, OverallProgress, shares

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from workbench.store.activation_store import Store

Item = TypeVar("Item")
_COUNTERS = ("prompts", "tokens", "forwards", "cache_hits")
_ROUND = "rounds done"  # of a state on disk


@dataclass
class Result:
    """What a probe gives back. ``tables``: name -> polars DataFrame, with at least the columns the probe declares.
    ``arrays``: name -> numpy array (numbers). ``summary``: the few numbers a person would quote, each a plain value or
    ``{"value", "low", "high", "n"}``."""

    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass
class Context:
    """Given to every probe. Without ``out`` nothing is written: parts are computed and forgotten."""

    store: Store | None = None
    seed: int = 0
    data: Path | None = None
    edits: tuple = ()
    engine: str = "hf"
    out: Path | None = None
    on_progress: Callable[[int, int, str], None] | None = None
    cancelled: Callable[[], bool] | None = None
    sae: dict[str, Any] | None = None  # {path, width, k}: recorded in run.json where one is used
    rows_used: int | None = (
        None  # rows of the data file that were used; set by the probe where not all were, recorded in run.json
    )
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTERS, 0))
    warnings: list[str] = field(default_factory=list)
    readings: list[str] = field(default_factory=list)  # of data files in a published format: what was read as what
    parts_loaded: int = 0
    parts_computed: int = 0
    course: OverallProgress = field(default_factory=OverallProgress)  # how far the whole is
    seconds_saved: float = 0.0  # what the parts that were loaded had taken to compute

    def rng(self, name: str) -> np.random.Generator:
        """A generator of its own for each ``name``: drawing from one never shifts another."""
        import numpy as np

        words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype=np.uint32)
        return np.random.default_rng([self.seed, *words.tolist()])

    def torch_seed(self, name: str) -> int:
        """A seed below 2**63 for ``torch.Generator().manual_seed``, of its own for each ``name``."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}\0{name}".encode()).digest()[:8], "big") >> 1

    def check(self) -> None:
        """Raise Cancelled if the run was asked to stop. Call it in every loop that does not call ``progress``."""
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("Cancelled; the same command resumes the run.")

    def progress(self, done: int, total: int, label: str = "") -> None:
        """Tell how far the present stage is, and stop here if the run was asked to.

        ``on_progress`` is told how far the whole is, in parts of SCALE, and in words which stage it is and how far that
        is; before anything is done and where there is no total, only what is said."""
        share = self.course.told(int(done), int(total))
        if self.on_progress is not None:
            words = ", ".join(filter(None, [self.course.title, label]))
            words += f": {int(done):,} of {int(total):,}" if words and total > 1 else ""
            if total > 0 or share > 0:
                self.on_progress(round(share * SCALE), SCALE, words)
            else:
                self.on_progress(int(done), 0, words)
        self.check()

    def stages(self, weights: Mapping[str, float]) -> Callable[[str], AbstractContextManager[None]]:
        """The stages of what comes now, in their order, and what each is likely to take beside the others (in any
        unit; 0 for one that is left out): ``stage = context.stages({"reading": 1, "fits": 4})``, then ``with
        stage("reading"): ...``. A name is what a person is shown."""
        depth, places = len(self.course.open), dict(zip(weights, shares(list(weights.values()))))
        return lambda name: self._stage(depth, places[name], name)

    def each(
        self,
        items: Iterable[Item],
        weights: Sequence[float] | None = None,
        *,
        title: Callable[[int, Item], str] | None = None,
    ) -> Iterator[Item]:
        """The items, each as a stage of what comes now; ``weights`` as in :meth:`stages`, default: all alike.
        ``title(number from 1, item)``: what a person is shown."""
        items = list(items)
        depth, places = len(self.course.open), shares([1.0] * len(items) if weights is None else list(weights))
        for number, (item, place) in enumerate(zip(items, places, strict=True), 1):
            with self._stage(depth, place, title(number, item) if title is not None else ""):
                yield item

    def stretch(self, start: float, end: float, title: str = "") -> AbstractContextManager[None]:
        """A stage of what comes now whose place is known as a share of it."""
        return self._stage(len(self.course.open), (min(1.0, start), min(1.0, end)), title)

    @contextmanager
    def _stage(self, depth: int, place: tuple[float, float], title: str) -> Iterator[None]:
        with self.course.within(depth, *place, title):
            if title:
                self.progress(0, 0)
            yield

    def warn(self, message: str) -> None:
        """Record a warning in run.json, once."""
        message = " ".join(message.split())
        if message not in self.warnings:
            self.warnings.append(message)

    def read_as(self, message: str) -> None:
        """Record in run.json, once, which columns of a data file were read as which."""
        if message not in self.readings:
            self.readings.append(message)

    def count(self, *, prompts: int = 0, tokens: int = 0, forwards: int = 0, cache_hits: int = 0) -> None:
        """Add to the counters of run.json."""
        for name, more in zip(_COUNTERS, (prompts, tokens, forwards, cache_hits)):
            self.counters[name] += int(more)

    def part(self, name: str, compute: Callable[[], Mapping[str, np.ndarray | pl.DataFrame]]) -> dict[str, Any]:
        """``compute()``, kept on disk until the run is complete: a run that is stopped and started again loads it.

        Values are numpy arrays of numbers or polars DataFrames, and come back equal (dtype and shape included). The
        file is complete or absent and carries a checksum; a damaged one is named in a warning and computed again.
        Counters and warnings that ``compute`` adds are kept with it.
        """
        self.check()
        path = None if self.out is None else self.out / "parts" / _file_name(name)
        if path is not None and path.is_file():
            loaded = _read_part(path)
            if loaded is not None:
                values, facts = loaded
                self._take_over(facts)
                return values
            self.warn(f"The part '{name}' was damaged on disk ({path.name}) and was computed again.")
        counters, warned, start = dict(self.counters), len(self.warnings), time.perf_counter()
        values = dict(compute())
        facts = self._facts(time.perf_counter() - start, counters, warned, list(values))
        self.parts_computed += 1
        if path is None:
            return values
        make_folder(path.parent)
        write_bytes(path, _pack(values, facts))
        return values

    def rounds(
        self,
        name: str,
        count: int,
        begin: Callable[[], Mapping[str, np.ndarray]],
        advance: Callable[[int, dict[str, np.ndarray]], Mapping[str, np.ndarray]],
    ) -> dict[str, np.ndarray]:
        """The state of something that goes on round by round (a training loop) after ``count`` rounds: ``begin()``,
        then ``advance(round, state)`` for each round from 0. A state with a true ``finished`` ends it early.

        Only the last state is on disk, in place of the one before it, so what a kill loses is the round that was open.
        States are numpy arrays of numbers, as in :meth:`part`; counters and warnings of the rounds are kept with them.
        """
        self.check()
        path = None if self.out is None else self.out / "parts" / _file_name(f"{name}, the last round")
        counters, warned, spent = dict(self.counters), len(self.warnings), 0.0
        done, state = 0, None
        if path is not None and path.is_file():
            if (loaded := _read_part(path)) is None:
                self.warn(f"The state of '{name}' was damaged on disk ({path.name}), and it was begun again.")
            else:
                state, facts = loaded
                done, spent = int(state.pop(_ROUND)), facts["seconds"]
                self._take_over(facts)
        if state is None:
            state = dict(begin())
        while done < count and not bool(state.get("finished", False)):
            start = time.perf_counter()
            state, done = dict(advance(done, state)), done + 1
            spent += time.perf_counter() - start
            self.parts_computed += 1
            if path is not None:
                import numpy as np

                make_folder(path.parent)
                kept = state | {_ROUND: np.array(done)}
                write_bytes(path, _pack(kept, self._facts(spent, counters, warned, list(kept))))
        return state

    def _take_over(self, facts: Mapping[str, Any]) -> None:
        """Counters, warnings and seconds of a part that was loaded."""
        for counter, more in facts["counters"].items():
            self.counters[counter] = self.counters.get(counter, 0) + int(more)
        for message in facts["warnings"]:
            self.warn(message)
        self.seconds_saved += facts["seconds"]
        self.parts_loaded += 1

    def _facts(self, seconds: float, counters: Mapping[str, int], warned: int, order: list[str]) -> dict[str, Any]:
        """What is kept beside the values of a part, since ``counters`` and the first ``warned`` warnings."""
        return {
            "seconds": seconds,
            "counters": {key: value - counters.get(key, 0) for key, value in self.counters.items()},
            "warnings": self.warnings[warned:],
            "order": order,
        }


def _file_name(name: str) -> str:
    """A readable file name that no two part names share."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip("-.")
    return f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:10]}.safetensors"


def _pack(values: Mapping[str, Any], facts: Mapping[str, Any]) -> bytes:
    """One safetensors blob: arrays as they are, tables as the bytes of a Parquet file."""
    import json

    import numpy as np
    import polars as pl
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {}
    for name, value in values.items():
        if isinstance(value, pl.DataFrame):
            tensors[f"table:{name}"] = np.frombuffer(parquet_bytes(value), dtype=np.uint8)
        else:
            array = np.asarray(value)
            if array.dtype.kind not in "biufc":
                raise WorkbenchError(
                    f"A part can hold numbers and tables; '{name}' is {type(value).__name__} of {array.dtype}."
                )
            # safetensors writes the buffer as it lies, so it has to be contiguous
            tensors[f"array:{name}"] = np.ascontiguousarray(array).reshape(array.shape)
    meta = {"facts": json.dumps(facts), "checksum": _checksum(tensors)}
    return save(tensors, metadata=meta)


def _read_part(path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The values and facts of a part; None when the file is damaged."""
    import json

    from safetensors import SafetensorError
    from safetensors.numpy import load

    raw = read_plain(path)
    try:
        tensors = load(raw)
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        if header["checksum"] != _checksum(tensors):
            return None
        values: dict[str, Any] = {}
        for key, array in tensors.items():
            kind, _, name = key.partition(":")
            values[name] = parse_parquet(array.tobytes(), what=name) if kind == "table" else array
        facts = json.loads(header["facts"])
        return {name: values[name] for name in facts["order"]}, facts
    except (SafetensorError, ValueError, RecursionError, KeyError, TypeError, OSError, InputError):
        return None


def _checksum(tensors: Mapping[str, np.ndarray]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        array = tensors[name]
        total.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        total.update(array.tobytes())
    return total.hexdigest()
