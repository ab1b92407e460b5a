"""Which sets a config asks for: files of a folder by name, files by path, and those that ship."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from probes.concept_depth.concept_sets import ConceptSet, load, load_file
from probes.concept_depth.config import COLUMNS, ENGLISH, Config, frame_of
from probes.concept_depth.set_splits import split
from workbench import organisms
from workbench.core.column_names import column_map
from workbench.core.errors import InputError
from workbench.core.paths import user_path


def validate(config: Config, data: Path | None) -> None:
    """Read every set and split it once: what cannot work is said before a model is loaded."""
    for concept in read_sets(config, data):
        split(concept, config.split, folds=config.folds, groups=config.groups, rng=np.random.default_rng(0))


def read_sets(config: Config, data: Path | None) -> list[ConceptSet]:
    """The concept sets that a config asks for, in the order asked (a folder: by difficulty where it is known, else by
    name)."""
    options = {
        "pair": config.pair,
        "template": frame_of(config.template),
        "limit": config.limit,
        "target": config.target,
    }
    columns = column_map(config.columns, COLUMNS)  # of the user's files; those that ship have their own
    sets: list[ConceptSet] = [] if config.sets else _with_difficulty(load(data, columns=columns, **options), data)
    for name in config.sets:
        if name == "english":
            sets += _with_difficulty(load(ENGLISH, **options), ENGLISH)
        else:
            path = _file(name, data)
            own = {} if name.startswith("english/") else columns
            sets += _with_difficulty([load_file(path, columns=own, **options)], path.parent)
    twice = [c.name for c in sets if sum(c.name == other.name for other in sets) > 1]
    if twice:
        raise InputError(f"Two concept sets are called '{twice[0]}'; rename a file.")
    return sets


def material(config: Config, model: str) -> dict[str, Path]:
    """The plain-English sets that ship, where they are used."""
    return {
        name: ENGLISH if name == "english" else _english(name)
        for name in config.sets
        if name.split("/")[0] == "english"
    }


def _file(name: str, data: Path | None) -> Path:
    """The file that is meant: one that ships, a path, or one of the data folder by its name."""
    path = user_path(name)
    if name.startswith("english/"):
        return _english(name)
    if path.is_file() or data is None or not data.is_dir():
        return path
    files = [f for f in sorted(data.iterdir()) if f.is_file()]
    inside = [f for f in files if name in (f.name, f.name.split(".")[0])]
    if not inside:
        known = ", ".join(sorted(f.name.split(".")[0] for f in files))
        raise InputError(f"There is no concept set '{name}' in {data}; there are {known}.")
    return inside[0]


def _english(name: str) -> Path:
    return ENGLISH / f"{name.removeprefix('english/')}.jsonl"


def _with_difficulty(sets: list[ConceptSet], where: Path) -> list[ConceptSet]:
    """Sets of a shipped folder (or of a file in it) with their difficulty, the easiest first; others as they are."""
    from probes.concept_depth.english_sets import CONCEPTS, FACTS  # here: the module is also run, as a command

    where = Path(where).resolve()
    if where.is_file():
        where = where.parent
    known: dict[str, int] = {}
    world = organisms.DATA.resolve()
    if where == ENGLISH.resolve():
        known = {name: difficulty for name, (difficulty, _, _) in CONCEPTS.items()} | {"facts": FACTS}
    elif where == world / "concepts":
        concepts = json.loads((world / "organism.json").read_text(encoding="utf-8"))["concepts"]
        known = {name: about["difficulty"] for name, about in concepts.items()}
    order = list(known)
    found = [replace(c, difficulty=known.get(c.name)) for c in sets]
    return sorted(found, key=lambda c: (c.difficulty or 0, order.index(c.name) if c.name in known else 0))
