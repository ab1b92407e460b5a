"""What is fuzzed: command lines, and damage to every kind of file that is read, each with what must hold afterwards.

A case returns complaints in words; none means that all is well.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.command_lines import SECONDS, Outcome, Place, TooLong, command_line, complaint, tried
from tests.fuzz.damaged_files import damage, restore
from workbench.core.errors import WorkbenchError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402

ROWS = [("the big dog", 1), ("a red ball", 0), ("Lily went home", 1), ("Tom sat down", 0)]


@dataclass(frozen=True)
class Ground:
    """Sound things of every kind below one folder, and copies of them to go back to."""

    place: Place
    folder: Path
    cache: Path


@contextmanager
def ground(folder: Path, model: Path) -> Iterator[Ground]:
    """Make them; WORKBENCH_CACHE points into the folder meanwhile. ``model``: a small model to copy."""
    cache = folder / "cached [1]"
    before = os.environ.get("WORKBENCH_CACHE")
    os.environ["WORKBENCH_CACHE"] = str(cache)
    try:
        shutil.copytree(model, folder / "model [x]")
        files = _data_files(folder / "data [v2]")
        runs = _runs(folder / "model [x]", files[0])
        place = Place(files=files, runs=runs, model=str(folder / "model [x]"), folder=folder / "out")
        place.folder.mkdir()
        _store_entry()
        _jobs(files[0])
        shutil.copytree(cache, folder / "sound cache")
        shutil.copytree(folder / "data [v2]", folder / "sound data")
        yield Ground(place=place, folder=folder, cache=cache)
    finally:
        os.environ.pop("WORKBENCH_CACHE")
        if before is not None:
            os.environ["WORKBENCH_CACHE"] = before


def _data_files(folder: Path) -> tuple[Path, ...]:
    import polars as pl

    from workbench.core.parquet import write_parquet

    folder.mkdir()
    frame = pl.DataFrame(ROWS, schema=["text", "label"], orient="row")
    frame.write_csv(folder / "rows [1].csv")
    frame.write_csv(folder / "rows *.tsv", separator="\t")
    frame.write_ndjson(folder / "rows ?.jsonl")
    write_parquet(folder / "rows [v2].parquet", frame)
    (folder / "rows ü.json").write_text(json.dumps(frame.to_dicts()), encoding="utf-8")
    (folder / "rows.txt").write_text("\n".join(text for text, _ in ROWS), encoding="utf-8")
    (folder / "config.toml").write_text('most = 3\nunit = "bits"\n')
    (folder / "mask.json").write_text(json.dumps({"heads": [[0, 1], [1, 2]], "ablation": "zero", "note": "some"}))
    return tuple(sorted(folder.iterdir(), key=lambda path: path.name != "rows [1].csv"))


def _runs(model: Path, data: Path) -> tuple[str, ...]:
    from workbench.runs import execution

    done = [
        execution.execute("parts", tiny_probes.fake_model(), config={"parts": 3}),
        execution.execute("next-token-entropy", str(model), data=data),
    ]
    return tuple(run.id for run in done)


def _store_entry() -> None:
    import torch

    from workbench.store.activation_store import Store, fingerprint

    with Store().writer(fingerprint({"a": 1}), {"what": "numbers"}, n_shards=2, expected_bytes=100) as writer:
        for index in writer.missing:
            writer.write(index, {"x": torch.arange(6.0).reshape(2, 3) + index})


def _jobs(data: Path) -> None:
    from workbench.runs import job_files, queue

    for seed in (0, 1):
        job = queue.submit("next-token-entropy", "organism", data=data, seed=seed, start=False)
        job_files.write_progress(job.id, 1, 2, "texts", 3.0)
        ended = {"started": "2026-01-01", "finished": "2026-01-02", "run": "x", "folder": "y"}
        job_files.write_state(job.id, status="complete", **ended)


# ---- the cases


def odd_command_line(dice: random.Random, at: Ground) -> list[str]:
    outcome = tried(command_line(dice, at.place))
    found = complaint(outcome)
    return [] if found is None else [f"{_words(outcome)}: {found}"]


def damaged_run(dice: random.Random, at: Ground) -> list[str]:
    """Whatever happens to a file of a run: nothing else is shown as its numbers, `verify` says so, the rest is listed,
    and --fresh or the same command leads back."""
    run = dice.choice(at.place.runs)
    folder = at.cache / "runs" / run
    looks = [["show", run], ["show", run, "--json"], ["show", run, "--table", "rows" if "parts" in run else "texts"]]
    before = [tried(words).out for words in looks]
    path = dice.choice(sorted(item for item in folder.rglob("*") if item.is_file() and item.name[0] != "."))
    was = path.read_bytes()
    done = f"{path.relative_to(folder)} of a run: {damage(path, dice)}"
    try:
        ends = [tried(words) for words in [*looks, ["runs"], ["runs", "--json"]]]
        checked = tried(["verify", run])
        found = _complaints([*ends, checked])
        for end, text in zip(ends, before):
            if end.code == 0 and end.out != text:
                found.append(f"{_words(end)} shows something else, and ends with 0")
        if checked.code == 0 and path.name not in ("notes.json",) and _differs(path, was):
            found.append("`verify` finds nothing")
        others = [other for other in at.place.runs if other != run]
        if not all(other in ends[3].out for other in others):
            found.append("`runs` does not list the run that is sound")
        return [f"{done}: {text}" for text in found]
    finally:
        restore(at.folder / "sound cache" / "runs" / run, folder)


def _differs(path: Path, was: bytes) -> bool:
    """Whether something else is in the file now; white space between the fields of a JSON document is nothing."""
    if not path.is_file():
        return True
    now = path.read_bytes()
    if path.name != "run.json":
        return now != was
    try:
        return json.loads(now) != json.loads(was)
    except (ValueError, RecursionError):
        return True


def damaged_entry(dice: random.Random, at: Ground) -> list[str]:
    """A store whose files are damaged gives the numbers that were stored or none, and says so."""
    import torch

    from workbench.store.activation_store import Store, fingerprint
    from workbench.store.shards import DamagedShard

    root = at.cache / "store"
    path = dice.choice(sorted(item for item in root.rglob("*") if item.is_file() and item.suffix != ".lock"))
    was = path.read_bytes()
    done = f"{path.relative_to(root)} of the store: {damage(path, dice)}"
    try:
        ends = [tried(words) for words in (["cache", "ls"], ["cache", "ls", "--json"], ["cache", "verify"])]
        found = _complaints(ends)
        counts = path.name not in ("index.parquet", "used") and path.exists() and path.is_file()
        if counts and path.read_bytes() != was and ends[2].code == 0 and not _same_json(path, was):
            found.append("`cache verify` finds nothing")
        try:
            entry = Store().get(fingerprint({"a": 1}))
            if entry is not None and not torch.equal(entry.tensor("x"), _stored()):
                found.append("the store gives other numbers")
        except DamagedShard:
            pass
        found += _complaints([tried(["cache", "gc"])])
        return [f"{done}: {text}" for text in found]
    finally:
        restore(at.folder / "sound cache" / "store", root)


def _stored():
    import torch

    return torch.cat([torch.arange(6.0).reshape(2, 3) + index for index in range(2)])


def _same_json(path: Path, was: bytes) -> bool:
    try:
        return path.suffix == ".json" and json.loads(path.read_bytes()) == json.loads(was)
    except (ValueError, RecursionError):
        return False


def damaged_job(dice: random.Random, at: Ground) -> list[str]:
    """A job whose files are damaged takes neither the other jobs nor the list down."""
    from workbench.runs import queue

    jobs = queue.root()
    path = dice.choice(sorted(jobs.glob("*/*.json")))
    done = f"{path.name} of a job: {damage(path, dice)}"
    try:
        listed = queue.listing()
        found = [] if any(job.id != path.parent.name for job in listed) else ["the other job is not listed"]
        for job in listed:
            if not all(isinstance(value, str) for value in (job.id, job.probe, job.model, job.label, job.status)):
                found.append(f"the listed job {job} holds what is no text")
        queue.next_of("cpu")
    except Exception as error:
        found = [f"{type(error).__name__}: {error}"[:300]]
    finally:
        restore(at.folder / "sound cache" / "jobs", jobs)
    return [f"{done}: {text}" for text in found]


def damaged_data(dice: random.Random, at: Ground) -> list[str]:
    """A damaged data file, config or mask is read or refused in one sentence."""
    path = dice.choice(at.place.files)
    option = {"config.toml": "--config", "mask.json": "--edit"}.get(path.name, "--data")
    done = f"{path.name}: {damage(path, dice)}"
    sound = [] if option == "--data" else ["--data", str(at.folder / "sound data" / "rows.txt")]
    words = ["run", "next-token-entropy", "--model", at.place.model, option, str(path), *sound]
    if option == "--data" and dice.random() < 0.8:  # what a probe does not read of it, and no model
        words[3] = "./nowhere"
    try:
        return [f"{done}: {text}" for text in _complaints([tried(words)])]
    finally:
        restore(at.folder / "sound data", at.folder / "data [v2]")


def damaged_model(dice: random.Random, at: Ground) -> list[str]:
    """Damaged files of a model are refused in one sentence, or make another model of it."""
    from workbench.models.loading import load

    folder = at.folder / "damaged model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(at.place.model, folder)
    path = dice.choice(sorted(item for item in folder.iterdir() if item.is_file()))
    done = f"{path.name} of a model: {damage(path, dice)}"
    try:
        model = load(str(folder))
    except WorkbenchError as error:
        return [f"{done}: {text}" for text in _sentence(str(error))]
    except Exception as error:
        return [f"{done}: {type(error).__name__}: {error}"[:400]]
    if path.name in ("config.json", "model.safetensors") and model.fingerprint == load(at.place.model).fingerprint:
        return [f"{done}: it has the fingerprint of the sound model"]
    return []


def damaged_memory(dice: random.Random, at: Ground) -> list[str]:
    """What is remembered of fingerprints may be lost, never wrong."""
    from workbench.models.files import fingerprint_folder

    memory = at.cache / "fingerprints.json"
    right = fingerprint_folder(Path(at.place.model))
    if not memory.is_file():  # files that changed just now are not remembered
        memory.write_text("{}")
    done = f"fingerprints.json: {damage(memory, dice)}"
    try:
        now = fingerprint_folder(Path(at.place.model))
        return [] if now == right else [f"{done}: another fingerprint"]
    except Exception as error:
        return [f"{done}: {type(error).__name__}: {error}"[:300]]
    finally:
        shutil.rmtree(memory) if memory.is_dir() else memory.unlink(missing_ok=True)


DAMAGES: dict[Callable[[random.Random, Ground], list[str]], int] = {
    damaged_run: 8,
    damaged_entry: 4,
    damaged_job: 4,
    damaged_data: 6,
    damaged_model: 3,
    damaged_memory: 1,
}


def fuzz(at: Ground, *, command_lines: int, damages: int, seed: int) -> list[str]:
    """So many cases of each; the complaints, each with the seed that repeats it."""
    found = []
    for number in range(command_lines + damages):
        dice = random.Random(f"{seed}/{number}")
        case = odd_command_line if number < command_lines else dice.choices(list(DAMAGES), list(DAMAGES.values()))[0]
        found += [f"[{seed}/{number}] {text}" for text in _in_time(case, dice, at)]
    return found


def _in_time(case: Callable[[random.Random, Ground], list[str]], dice: random.Random, at: Ground) -> list[str]:
    """The complaints of one case; that it waits for ever is one."""

    def give_up(number, frame):
        raise TooLong

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 2)  # again, where the first was taken for an error of the command
    try:
        return case(dice, at)
    except TooLong:
        return [f"{case.__name__}: still waiting after {SECONDS} s"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _complaints(outcomes: list[Outcome]) -> list[str]:
    return [f"{_words(outcome)}: {text}" for outcome in outcomes if (text := complaint(outcome)) is not None]


def _sentence(text: str) -> list[str]:
    made = Outcome(("load",), 2, "", "workbench: " + " ".join(text.split()), 0.0)
    found = complaint(made)
    return [] if found is None else [f"{found} in {text[:300]!r}"]


def _words(outcome: Outcome) -> str:
    return " ".join(word if len(word) < 80 else f"{word[:60]}…({len(word)})" for word in outcome.argv)
