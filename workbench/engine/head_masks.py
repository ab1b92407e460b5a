"""Saved sets of heads (`pruned_heads.json`): written by a run or by the explorer, applied elsewhere with `--edit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workbench.core.errors import InputError
from workbench.core.files import read_plain, write_json
from workbench.core.json_text import parse_json_object
from workbench.core.wording import one_line
from workbench.engine.component_scale import ComponentScale
from workbench.engine.dual_run import DualRun
from workbench.engine.edits import Edit, HeadAblation
from workbench.models.model import Model

DUAL = "dual run"  # what a file calls heads that are not switched off but added to
COMPONENTS = "components"  # and heads of which components are scaled


@dataclass(frozen=True)
class HeadMask:
    """A saved set of heads: how they are switched off ("zero", "uniform"), "dual run" with one of `scales` for each, or
    "components" (`ComponentScale`) with one of `scales`, `about`, `read` and `put` for each; a note, and the model that
    they were found on (`model`: name, fingerprint, layers, heads; empty in files that do not say)."""

    heads: tuple[tuple[int, int], ...]
    how: str = "zero"
    note: str = ""
    model: Mapping[str, str | int] = field(default_factory=dict)
    scales: tuple[float, ...] = ()
    about: tuple[float, ...] = ()
    read: tuple[tuple[float, ...], ...] = ()
    put: tuple[tuple[float, ...], ...] = ()

    @property
    def edit(self) -> Edit:
        """What it does to a model."""
        if self.how == COMPONENTS:
            import torch

            read, put = (torch.tensor(side, dtype=torch.float32) for side in (self.read, self.put))
            return ComponentScale(self.heads, read, put, self.scales, self.about)
        return DualRun(self.heads, self.scales) if self.how == DUAL else HeadAblation(self.heads, self.how)

    def mismatch_warning(self, model: Model) -> str | None:
        """A sentence when the mask was found on other weights than `model`'s; None where it was not, or does not say.

        Raises InputError for a head that `model` does not have."""
        model.check_heads(self.heads)
        if self.model.get("fingerprint") in (None, model.fingerprint):
            return None
        return (
            f"The head mask was found on {self.model.get('name', 'another model')}, not on these weights of "
            f"{model.name}: its heads may do something else here."
        )


def save_heads(
    path: Path,
    heads: Sequence[tuple[int, int]],
    *,
    how: str = "zero",
    note: str = "",
    model: Model | None = None,
    scales: Sequence[float] = (),
) -> None:
    """Write a head mask as JSON, to be applied elsewhere with `--edit`; `model`: the one that the heads belong to, by
    name and weights; `scales`: of a dual run, one for each head."""
    if not heads:
        raise InputError("A head mask names at least one head.")
    if (how == DUAL) != bool(scales) or (scales and len(scales) != len(heads)):
        raise InputError(
            f"There are {len(scales)} scales for {len(heads)} heads; a dual run has one each, a mask none."
        )
    more = {"scales": [float(scale) for scale in scales]} if scales else {}
    _write(path, heads, how, more, note, model)


def save_components(path: Path, edit: ComponentScale, *, note: str = "", model: Model | None = None) -> None:
    """Write scaled components of heads as JSON, to be applied elsewhere with `--edit`; as `save_heads`. Raises
    InputError for positions, which are of some prompts only."""
    if edit.positions is not None:
        raise InputError("Components that are scaled at some positions only cannot be saved: they belong to prompts.")
    each = {
        name: [float(value)] * len(edit.heads) if isinstance(value, int | float) else list(value)
        for name, value in (("scales", edit.scale), ("about", edit.about))
    }
    sides = {name: getattr(edit, name).float().cpu().tolist() for name in ("read", "put")}
    _write(path, edit.heads, COMPONENTS, each | sides, note, model)


def _write(path: Path, heads: Sequence, how: str, more: dict, note: str, model: Model | None) -> None:
    about = (
        {}
        if model is None
        else {
            "name": str(model.name),
            "fingerprint": model.fingerprint,
            "layers": model.n_layers,
            "heads": model.n_heads,
        }
    )
    write_json(Path(path), {"heads": [list(h) for h in heads], "ablation": how, **more, "note": note, "model": about})


def read_mask(path: Path) -> HeadMask:
    """The head mask in a file (`pruned_heads.json`). Raises InputError when it is not one, or names no head."""
    try:
        data = read_plain(Path(path))
    except OSError as error:
        raise InputError(f"The edit file '{path}' cannot be read: {error.strerror or error}.") from error
    return parse_mask(data, path)


def parse_mask(data: bytes, path: Path) -> HeadMask:
    """The head mask in the bytes of a file. Raises InputError when it is not one, or names no head."""
    try:
        found = parse_json_object(data, what="it")
        heads = tuple((layer, head) for layer, head in found["heads"])
        if any(type(number) is not int or number < 0 for pair in heads for number in pair):
            raise ValueError("layers and heads are whole numbers from 0")
        how, note, about = found.get("ablation", "zero"), found.get("note", ""), found.get("model") or {}
        if not isinstance(note, str) or not isinstance(how, str):
            raise ValueError("'ablation' and 'note' are text")
        about = {name: about[name] for name in ("name", "fingerprint", "layers", "heads") if name in about}
        scales = tuple(float(scale) for scale in found.get("scales", ()))
        if how == DUAL and (len(scales) != len(heads) or len(set(heads)) < len(heads)):
            raise ValueError("a dual run has one of 'scales' for each of its heads, each named once")
        parts = _component_parts(found, scales, len(heads)) if how == COMPONENTS else {}
    except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The edit file '{path}' is not a head mask ({{'heads': [[layer, head], …], 'ablation': 'zero'}}): "
            f"{one_line(error)}."
        ) from error
    if parts and heads:
        return HeadMask(heads, how, note, about, **parts)
    if how not in ("zero", "uniform", DUAL):
        raise InputError(
            f"The edit file '{path}' asks for the ablation '{how}'; a saved mask can be zero, uniform or {DUAL}."
        )
    if not heads:
        raise InputError(f"The edit file '{path}' names no head: there is nothing to switch off.")
    return HeadMask(tuple(dict.fromkeys(heads)), how, str(note), about, scales if how == DUAL else ())


def _component_parts(found: dict, scales: tuple[float, ...], count: int) -> dict:
    """What a file of components has besides its heads. Raises ValueError, KeyError or TypeError where it does not
    fit."""
    about = tuple(float(value) for value in found["about"])
    read, put = (tuple(tuple(float(x) for x in row) for row in found[name]) for name in ("read", "put"))
    if {len(scales), len(about), len(read), len(put)} != {count} or len({len(row) for row in (*read, *put)}) != 1:
        raise ValueError("components have one of 'scales', 'about', 'read' and 'put' for each of the heads")
    return {"scales": scales, "about": about, "read": read, "put": put}


def load_edits(path: Path) -> tuple[Edit, ...]:
    """The edits of a head-mask file. Raises InputError when it is not one (`read_mask` also says which model it was
    found on)."""
    return (read_mask(path).edit,)
