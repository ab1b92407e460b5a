"""Modules that are dropped from a pass: attention, MLP or whole blocks, as an edit and as a file for `--edit`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.core.files import read_plain, write_json
from workbench.core.json_text import parse_json_object
from workbench.core.wording import one_line
from workbench.engine.edit_sites import Prompts
from workbench.models.model import Model
from workbench.models.skipping import COMPONENTS, check_droppable, skipping

Module = tuple[str, int]  # (one of COMPONENTS, layer)


@dataclass(frozen=True, eq=False)
class DropModules:
    """Leave attention, MLPs or whole blocks out, norms with them: `modules` holds ("attention", 3), ("mlp", 0),
    ("block", 7). They add exactly nothing to the residual stream at any position, and are not computed unless something
    inside is looked at or a key/value cache is filled (`workbench.models.skipping`)."""

    modules: tuple[Module, ...]

    def check(self, model: Model, prompts: Prompts | None = None) -> None:
        """Raise InputError for no module, one that the model does not have, and one that cannot be dropped."""
        check_modules(model, self.modules)

    def for_prompts(self, indices: Sequence[int]) -> DropModules:
        """Itself: it is the same for every prompt."""
        return self

    def hang(self, model: Model, stack: contextlib.ExitStack) -> None:
        """Hang it on the passes of this thread until `stack` is closed."""
        for component, layer in dict.fromkeys(self.modules):
            stack.enter_context(skipping(model, component, layer))


def check_modules(model: Model, modules: Sequence[Module]) -> None:
    """Raise InputError for no module, one that the model does not have, and one that cannot be dropped."""
    if not modules:
        raise InputError("No module is named: there is nothing to drop.")
    for component, layer in modules:
        if component not in COMPONENTS:
            raise InputError(f"'{component}' cannot be dropped; choose {', '.join(COMPONENTS)}.")
        if not 0 <= layer < model.n_layers:
            raise InputError(f"{component} {layer} does not exist: {model.name} has layers 0–{model.n_layers - 1}.")
        check_droppable(model, component, layer)


def named(modules: Sequence[Module]) -> list[str]:
    """Modules as a table and a message say them: "attention.3"."""
    return [f"{component}.{layer}" for component, layer in modules]


@dataclass(frozen=True)
class ModuleSet:
    """A saved set of modules to drop: a note, and the model that they were found on (name, fingerprint, layers; empty
    in files that do not say)."""

    modules: tuple[Module, ...]
    note: str = ""
    model: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def edit(self) -> DropModules:
        """What it does to a model."""
        return DropModules(self.modules)

    def mismatch_warning(self, model: Model) -> str | None:
        """A sentence when the set was found on other weights than `model`'s; None where it was not, or does not say.

        Raises InputError for a module that `model` does not have or that cannot be dropped."""
        check_modules(model, self.modules)
        if self.model.get("fingerprint") in (None, model.fingerprint):
            return None
        return (
            f"The modules to drop were found on {self.model.get('name', 'another model')}, not on these weights of "
            f"{model.name}: they may do something else here."
        )


def save_modules(path: Path, modules: Sequence[Module], *, note: str = "", model: Model | None = None) -> None:
    """Write modules to drop as JSON, for `--edit` and `export-pruned`; `model`: the one that they belong to."""
    if not modules:
        raise InputError("A file of modules to drop names at least one module.")
    about: dict[str, Any] = {}
    if model is not None:
        about = {"name": str(model.name), "fingerprint": model.fingerprint, "layers": model.n_layers}
    write_json(Path(path), {"drop": [list(module) for module in modules], "note": note, "model": about})


def read_modules(path: Path) -> ModuleSet:
    """The modules in a file. Raises InputError when it is none of these, or names no module."""
    try:
        data = read_plain(Path(path))
    except OSError as error:
        raise InputError(f"The edit file '{path}' cannot be read: {error.strerror or error}.") from error
    return parse_modules(data, path)


def is_modules(data: bytes) -> bool:
    """Whether the bytes of an edit file mean modules to drop, not heads."""
    try:
        return "drop" in parse_json_object(data, what="it")
    except (InputError, ValueError):
        return False


def parse_modules(data: bytes, path: Path) -> ModuleSet:
    """The modules in the bytes of a file. Raises InputError when it is none of these, or names no module."""
    try:
        found = parse_json_object(data, what="it")
        modules = tuple((component, layer) for component, layer in found["drop"])
        wrong = next((m for m in modules if m[0] not in COMPONENTS or type(m[1]) is not int or m[1] < 0), None)
        if wrong is not None:
            raise ValueError(f"a module is one of {', '.join(COMPONENTS)} and a layer from 0, not {list(wrong)}")
        note, about = found.get("note", ""), found.get("model") or {}
        if not isinstance(note, str):
            raise ValueError("'note' is text")
        about = {name: about[name] for name in ("name", "fingerprint", "layers") if name in about}
    except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The edit file '{path}' is not a list of modules to drop ({{'drop': [['attention', 3], …]}}): "
            f"{one_line(error)}."
        ) from error
    if not modules:
        raise InputError(f"The edit file '{path}' names no module: there is nothing to drop.")
    return ModuleSet(tuple(dict.fromkeys(modules)), note, about)
