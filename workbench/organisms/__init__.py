"""Organisms: small models whose truth is known, shipped with the project, and the data that goes with them.

`organism` is a trained base model on a generated world (workbench/organism_training/world.py), `organism-chat` its
aligned sibling, `organism@step-N` the checkpoints of its training run; `circuit-*` are written weight by weight
(workbench/organisms/circuits).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest

_HERE = Path(__file__).parent
WEIGHTS = _HERE / "weights"
DATA = _HERE / "data"


def steps() -> list[int]:
    """Training steps of the shipped checkpoints, in order; the last one is `organism` itself."""
    folders = [p.name.rpartition("step-")[2] for p in WEIGHTS.glob("organism@step-*") if (p / "config.json").exists()]
    last = _final_step()
    return sorted({int(s) for s in folders if s.isdigit()} | ({last} if last is not None else set()))


def _final_step() -> int | None:
    path = WEIGHTS / "organism" / "recipe.json"
    return json.loads(path.read_text())["step"] if path.exists() else None


def names() -> dict[str, str]:
    """Every organism that is present, with one line about it."""
    found: dict[str, str] = {}
    if (WEIGHTS / "organism" / "config.json").exists():
        found["organism"] = "base model trained on the generated world (6 layers, 8 query heads, 4 key/value heads)"
    if (WEIGHTS / "organism-chat" / "config.json").exists():
        found["organism-chat"] = "aligned sibling: the organism fine-tuned to answer politely, with a chat template"
    for step in steps():
        found[f"organism@step-{step}"] = f"checkpoint of the organism's training run after {step} steps"
    if util.find_spec("workbench.organisms.circuits"):
        from workbench.organisms import circuits

        found.update(circuits.names())
    return found


def folder(name: str) -> Path:
    """The Hugging Face folder of an organism. Raises InputError, with the nearest name, for an unknown one."""
    known = names()
    if name in known:
        if name == f"organism@step-{_final_step()}":
            return WEIGHTS / "organism"
        if name.startswith("organism"):
            return WEIGHTS / name
        from workbench.core import paths
        from workbench.organisms import circuits

        return circuits.folder(name, paths.cache_root() / "organisms")
    raise InputError(f"There is no organism '{name}'{nearest(name, known)}; there are {', '.join(known)}.")


def name_of(model: str) -> str | None:
    """The organism that a model is, by its name or by the folder that it lies in; None for any other model."""
    known = names()
    if model in known:
        return model
    try:
        path = Path(model).expanduser()
        there = path.is_dir() and path.name in known and folder(path.name).resolve() == path.resolve()
    except (OSError, RuntimeError, ValueError):  # a text that is no path
        return None
    return path.name if there else None


def truth(name: str) -> dict[str, Any]:
    """What is known of a hand-built model (its truth.json); empty for the trained ones."""
    path = folder(name) / "truth.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def autoencoder(model: str) -> Path | None:
    """The folder of the sparse autoencoder that ships with a model, by its name or folder; None where none does."""
    place = WEIGHTS / "sae" / ("organism" if model.startswith("organism") else Path(model).name)
    return place if (place / "cfg.json").is_file() else None


def datasets() -> list[str]:
    """Names that `data` accepts: files below the data folder without their ending."""
    return sorted(
        p.relative_to(DATA).with_suffix("").as_posix()
        for p in DATA.rglob("*")
        if p.suffix in (".jsonl", ".txt", ".json")
    )


def world(inside: str) -> Callable[[str], str | None]:
    """What a probe's data are `for_model`: that file or folder below the data folder, as "package:path", for an
    organism or a circuit, which know no other world; None for any other model."""
    return lambda model: f"workbench:organisms/data/{inside}" if name_of(model) is not None else None


def data(name: str) -> Path:
    """The path of a data file of the organism, by name with or without ending: `needles`, `concepts/topic`,
    `pool.jsonl`."""
    for suffix in ("", ".jsonl", ".txt", ".json"):
        path = DATA / (name + suffix)
        if path.is_file() and DATA.resolve() in path.resolve().parents:
            return path
    known = datasets()
    raise InputError(f"The organism has no data file '{name}'{nearest(name, known)}; it has {', '.join(known)}.")
