"""The checkpoints of a training run: found in folders, among the organisms and on the hub, in the order of their
steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.errors import InputError
from workbench.core.paths import user_path
from workbench.models.load_options import check_revision

if TYPE_CHECKING:
    from workbench.core.context import Context
    from workbench.models.model import Model
    from workbench.models.text_side import TextSide
    from workbench.models.unloaded_model import UnloadedModel


def step_of(name: str) -> int | None:
    """Training step in a name such as step-1000, step1000-tokens2B, main@step1000 or checkpoint-1000; None where there
    is none."""
    match = re.search(r"(?:step|checkpoint|ckpt)[-_]?(\d+)", name)
    return int(match[1]) if match else None


def find(model: Model, entries: Sequence[str]) -> list[tuple[str, int | None, Callable[[], Model]]]:
    """(name, step, function that loads it) of every checkpoint, as `places` has them. No entries: the model alone. The
    loading functions raise InputError for a checkpoint of another shape or tokenizer."""
    if not entries:
        name = Path(model.name).name if Path(model.name).is_dir() else model.name
        return [(name, step_of(f"{name}@{model.revision or ''}"), lambda: model)]
    return [(name, step, lambda where=where: load_like(where, model)) for name, step, where in places(model, entries)]


def places(model: Model | UnloadedModel, entries: Sequence[str]) -> list[tuple[str, int | None, str]]:
    """(name, step, what to load) of every checkpoint, by step where all have one, else as given; nothing is loaded.

    What is called alike is numbered, since a name says nothing of the folders above it. An entry is a model folder, a
    folder of step* or checkpoint-* folders, an organism's name, `organism@*` for all of its checkpoints, a hub name
    (`name@revision`), or a revision of `model` itself. Raises InputError for a folder without checkpoints, a revision
    of what has none, and a step that is there twice."""
    if model.adapter is not None:
        raise InputError(
            f"{model.name} has an adapter merged into it, which its checkpoints would be measured without; leave out "
            f"the adapter or the checkpoints."
        )
    names: list[tuple[str, str]] = []  # what to show, what to load
    for entry in entries:
        path = user_path(entry)
        if path.is_dir() and not (path / "config.json").is_file():
            inside = [f for f in path.iterdir() if (f / "config.json").is_file() and step_of(f.name) is not None]
            if not inside:
                raise InputError(
                    f"The folder {path} holds no checkpoint: no step* or checkpoint-* folder with a config.json."
                )
            names += [(f.name, str(f)) for f in inside]
        elif entry.endswith("@*"):
            from workbench import organisms

            known = [name for name in organisms.names() if name.startswith(entry[:-1])]
            if not known:
                raise InputError(f"There are no checkpoints {entry}; give them one by one.")
            names += [(name, name) for name in known]
        else:
            _check_revision(entry, model)
            names.append((path.name if path.is_dir() else entry, entry))
    shown = [name for name, _ in names]
    names = [
        (name if shown.count(name) == 1 else f"{name} ({shown[: n + 1].count(name)})", where)
        for n, (name, where) in enumerate(names)
    ]
    steps = [step_of(name) for name, _ in names]
    if all(step is not None for step in steps):
        twice = [step for step in steps if steps.count(step) > 1]
        if twice:
            raise InputError(f"Two checkpoints are of the same step {twice[0]}; give each step once.")
        names = [pair for _, pair in sorted(zip(steps, names))]
    return [(name, step_of(name), where) for name, where in names]


def check_files(places: Sequence[tuple[str, int | None, str]], model: UnloadedModel, context: Context) -> None:
    """Raise InputError for a checkpoint that is not there, or that its files say is not of the model's run; one of the
    hub that is not here yet is taken on trust."""
    from workbench.models.before_loading import check_presence
    from workbench.models.unloaded_model import open_unloaded

    for _, _, where in places:
        context.check()
        name, revision = _name_of(where, model)
        try:
            check_presence(name, revision=revision)
            other = open_unloaded(name, revision)
        except InputError as error:
            raise InputError(f"The checkpoint {where} cannot be loaded: {error}") from None
        if other is not None:
            check_alike(where, other, model)


def _name_of(where: str, model: Model | UnloadedModel) -> tuple[str, str | None]:
    """Model and revision of what is to be loaded."""
    from workbench import organisms

    return (where, None) if user_path(where).is_dir() or where in organisms.names() else _parts(where, model)


def _check_revision(entry: str, model: Model | UnloadedModel) -> None:
    """Raise InputError for a revision of an organism or a folder: it would be the same weights again."""
    from workbench import organisms

    if Path(entry).expanduser().is_dir() or entry in organisms.names():
        return
    name, revision = _parts(entry, model)
    try:
        check_revision(name, revision)
    except InputError as error:
        there = _beside(name)
        said = f" There are {', '.join(there)}." if there else ""
        raise InputError(f"The checkpoint {entry} cannot be loaded: {error}{said}") from None


def _parts(entry: str, model: Model | UnloadedModel) -> tuple[str, str | None]:
    """Model and revision of an entry that is neither a folder nor an organism."""
    name, at, revision = entry.rpartition("@")
    if at:
        return name, revision
    return (entry, None) if "/" in entry else (model.name, entry)


def _beside(name: str) -> list[str]:
    """Folders of checkpoints in a model's folder and beside it."""
    folder = Path(name).expanduser()
    places = (folder, folder.resolve().parent) if folder.is_dir() else ()
    found = [sub for place in places for sub in place.iterdir() if (sub / "config.json").is_file()]
    return sorted({str(sub) for sub in found if step_of(sub.name) is not None})[:12]


def same_weights(weights: Sequence[tuple[str, str]]) -> str | None:
    """Of (name, fingerprint) of the checkpoints so far: a warning where the last one has the weights of an earlier
    one."""
    *earlier, (name, fingerprint) = weights
    twin = next((other for other, known in earlier if known == fingerprint), None)
    if twin is None:
        return None
    return f"The checkpoints {twin} and {name} have the same weights: one model is measured twice, not two steps."


def load_like(where: str, model: Model) -> Model:
    """Load a checkpoint in the dtype and on the device of `model`, and refuse one that does not belong to the same
    run."""
    from workbench.models.loading import load

    name, revision = _name_of(where, model)
    try:
        other = load(name, revision, dtype=str(model.dtype).removeprefix("torch."), device=str(model.device))
    except InputError as error:
        raise InputError(f"The checkpoint {where} cannot be loaded: {error}") from None
    check_alike(where, other, model)
    return other


def check_alike(where: str, other: TextSide, model: TextSide) -> None:
    """Raise InputError for a checkpoint with another tokenizer or of another shape than the model's."""
    if other.tokenizer_fingerprint != model.tokenizer_fingerprint:
        raise InputError(
            f"The checkpoint {where} has another tokenizer than {model.name}; the same texts would be other tokens."
        )
    if (other.n_layers, other.width) != (model.n_layers, model.width):
        raise InputError(
            f"The checkpoint {where} has {other.n_layers} layers of width {other.width}, {model.name} "
            f"{model.n_layers} of {model.width}."
        )
