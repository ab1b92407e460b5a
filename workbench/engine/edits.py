"""Edits of a forward pass: switch heads off, patch a site, project a direction out, cut attention. Context managers
that compose.

An edit is a frozen description (it is hashed into cache keys and written into run folders); `apply(model, edits)` hangs
the hooks and removes them in `finally`. Positions are token positions, counted from 0 at each sequence's first token,
negative from its end; None means every position. An edit that is only wanted while decoding is applied around the
decoding steps only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

from workbench.core.errors import InputError
from workbench.models.architecture import hidden_argument
from workbench.models.attention import knock_out, uniform
from workbench.models.model import Model
from workbench.models.sites import Site

ABLATIONS = ("zero", "mean", "uniform")


@dataclass(frozen=True, eq=False)
class HeadAblation:
    """Switch heads off: "zero" removes the head's output, "mean" replaces it by `mean` [n_layers, H, d_head] (a mean
    over a reference set), "uniform" makes it attend evenly to everything it may see (what the retrieval-head code calls
    masking)."""

    heads: tuple[tuple[int, int], ...]
    how: str = "zero"
    mean: torch.Tensor | None = None
    positions: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Patch:
    """Put `value` at a site: [d] (the same everywhere), [k, d], or [n, k, d] with one block per prompt; d is H ×
    d_head, as two dimensions, for head_out.L."""

    site: Site
    value: torch.Tensor
    positions: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class ProjectOut:
    """Remove the component along `direction` [d] at a site; with `keep` the component along it is all that stays.
    `direction` may hold several rows [m, d]: their span is used."""

    site: Site
    direction: torch.Tensor
    keep: bool = False
    positions: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class KnockOut:
    """In `layers`, queries at `queries` ("last", "all" or positions) cannot attend to `sources` (positions, one tuple
    per prompt); all heads, or the `heads` given."""

    layers: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]
    queries: str | tuple[int, ...] = "last"
    heads: tuple[int, ...] | None = None


Edit = HeadAblation | Patch | ProjectOut | KnockOut


@contextlib.contextmanager
def apply(model: Model, edits: Sequence[Edit]) -> Iterator[None]:
    """While open, every forward pass of `model` is edited, in the order given; the model is as before afterwards, come
    what may."""
    with contextlib.ExitStack() as stack:
        for edit in edits:
            match edit:
                case HeadAblation():
                    _ablate(model, edit, stack)
                case Patch():
                    _at_site(model, edit.site, lambda x, e=edit: _patched(model, x, e), stack)
                case ProjectOut():
                    _at_site(
                        model, edit.site, lambda x, e=edit, b=_basis(edit.direction): _projected(model, x, e, b), stack
                    )
                case KnockOut():
                    for layer in edit.layers:
                        stack.enter_context(
                            knock_out(model, layer, queries=edit.queries, sources=edit.sources, heads=edit.heads)
                        )
                case _:
                    raise InputError(f"{type(edit).__name__} is not an edit.")
        yield


def for_prompts(edits: Sequence[Edit], indices: Sequence[int]) -> tuple[Edit, ...]:
    """The same edits for the prompts `indices` only: what one batch of a longer list needs of edits that differ by
    prompt."""
    out = []
    for edit in edits:
        if isinstance(edit, Patch) and edit.value.ndim == 2 + (
            1 if edit.site.head is not None or edit.site.kind != "head_out" else 2
        ):
            edit = replace(edit, value=edit.value[list(indices)])
        elif isinstance(edit, KnockOut):
            edit = replace(edit, sources=tuple(edit.sources[i] for i in indices))
        out.append(edit)
    return tuple(out)


def describe(edits: Sequence[Edit]) -> list[dict]:
    """Edits as plain data, tensors by their SHA-256: what a cache key and a run folder record."""
    out = []
    for edit in edits:
        row = {"edit": type(edit).__name__}
        for entry in fields(edit):
            value = getattr(edit, entry.name)
            if isinstance(value, torch.Tensor):
                data = value.detach().cpu().contiguous()
                value = (
                    f"{tuple(data.shape)} {data.dtype} "
                    f"{hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest()}"
                )
            row[entry.name] = str(value) if isinstance(value, Site) else value
        out.append(row)
    return out


def _check_heads(model: Model, heads: Sequence[tuple[int, int]]) -> None:
    for layer, head in heads:
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise InputError(
                f"Head {layer}.{head} does not exist: {model.name} has layers 0–{model.n_layers - 1} and "
                f"heads 0–{model.n_heads - 1}."
            )


def _ablate(model: Model, edit: HeadAblation, stack: contextlib.ExitStack) -> None:
    _check_heads(model, edit.heads)
    if edit.how not in ABLATIONS:
        raise InputError(f"'{edit.how}' is not an ablation; choose {', '.join(ABLATIONS)}.")
    if edit.how == "mean" and edit.mean is None:
        raise InputError("Mean ablation needs the mean head outputs (layers × heads × head width) of a reference set.")
    by_layer = defaultdict(list)
    for layer, head in edit.heads:
        by_layer[layer].append(head)
    for layer, heads in by_layer.items():
        if edit.how == "uniform":
            if edit.positions is not None:
                raise InputError("Uniform attention is applied at every position; give no positions.")
            stack.enter_context(uniform(model, layer, heads))
            continue

        def change(x: torch.Tensor, heads=heads, layer=layer) -> torch.Tensor:
            # x [B, T, H, d_head]; broadcasting one value per head over the chosen positions
            value = (
                torch.zeros((), device=x.device, dtype=x.dtype)
                if edit.how == "zero"
                else edit.mean[layer, heads].to(x.device, x.dtype)
            )
            chosen = torch.zeros(x.shape[2], dtype=torch.bool, device=x.device)
            chosen[heads] = True
            new = x.new_zeros(x.shape[2:])
            new[heads] = value
            where = _where(model, edit.positions, x)
            return torch.where((where[:, :, None] & chosen)[..., None], new, x)

        _at_site(model, Site("head_out", layer), change, stack)


def _where(model: Model, positions: tuple[int, ...] | None, x: torch.Tensor) -> torch.Tensor:
    """Mask [B, T] of the columns at `positions`; everywhere for None. Positions before or after this pass are not in
    it."""
    if positions is None:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return model.frame.at(_absolute(model, positions)).to(x.device)


def _absolute(model: Model, positions: Sequence[int]) -> torch.Tensor:
    """Token positions [B, R], negative ones counted from each sequence's last token."""
    frame = model.frame
    wanted = torch.tensor(positions, device=frame.position_ids.device).expand(len(frame.position_ids), -1)
    last = frame.position_ids.gather(1, frame.last_columns()[:, None])
    return torch.where(wanted < 0, last + 1 + wanted, wanted)


def _patched(model: Model, x: torch.Tensor, edit: Patch) -> torch.Tensor:
    value = edit.value.to(x.device, x.dtype)
    if edit.positions is None:
        return value.expand_as(x).clone()  # some blocks go on to add in place
    columns = model.frame.columns(torch.tensor(edit.positions, device=model.frame.position_ids.device)).to(
        x.device
    )  # [B, R]
    x = x.clone()
    x[torch.arange(len(x), device=x.device)[:, None], columns] = value.expand(*columns.shape, *x.shape[2:])
    return x


def _basis(direction: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows [m, d] spanning the direction(s)."""
    rows = torch.atleast_2d(direction).double()
    if not torch.isfinite(rows).all() or float(rows.norm()) == 0:
        raise InputError("The direction to project out is zero or not finite.")
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    return right[values > values[0] * 1e-10]


def _projected(model: Model, x: torch.Tensor, edit: ProjectOut, basis: torch.Tensor) -> torch.Tensor:
    b = basis.to(x.device, torch.float32)
    along = ((x.float() @ b.T) @ b).to(x.dtype)
    changed = along if edit.keep else x - along
    return torch.where(_where(model, edit.positions, x)[..., None], changed, x)


def _at_site(model: Model, site: Site, change, stack: contextlib.ExitStack) -> None:
    """Hang `change([B, T, …]) → same shape` on a site; heads of head_out come apart as [B, T, H, d_head]."""
    if site.kind == "logits":
        raise InputError("Logits are a result; edit final_norm or an earlier site instead.")
    if site.kind == "resid_mid":
        _between(model, site.layer, change, stack)
        return
    module, side = model.module(site)

    def through(x: torch.Tensor) -> torch.Tensor:
        shape = x.shape
        if x.ndim == 2:
            x = x.unflatten(0, tuple(model.frame.position_ids.shape))
        if site.kind == "head_out":
            x = x.unflatten(-1, (model.n_heads, model.d_head))
            if site.head is not None:
                new = x.clone()
                new[..., site.head, :] = change(x[..., site.head, :])
                return new.reshape(shape)
        return change(x).reshape(shape)

    if side == "input":

        def before(_module, args, kwargs):
            x = through(hidden_argument(args, kwargs))
            if args and isinstance(args[0], torch.Tensor):
                return (x, *args[1:]), kwargs
            name = next(k for k, v in kwargs.items() if v is hidden_argument(args, kwargs))
            return args, kwargs | {name: x}

        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:

        def after(_module, _args, output):
            if isinstance(output, torch.Tensor):
                return through(output)
            return (through(output[0]), *output[1:])

        handle = module.register_forward_hook(after)
    stack.callback(handle.remove)


def _between(model: Model, layer: int, change, stack: contextlib.ExitStack) -> None:
    """Edit resid_mid. The module that is handed it reads a copy: the stream itself goes on around it. So what attention
    adds is changed until the sum is the one wanted, and both the MLP and the stream get it."""
    model.module(Site("resid_mid", layer))  # refuses blocks that have none
    block = model.parts.blocks[layer]
    entered: list[torch.Tensor] = []

    def enter(_module, args, kwargs):
        entered[:] = [hidden_argument(args, kwargs)]

    def leave(_module, _args, output):
        added = output if isinstance(output, torch.Tensor) else output[0]
        before = entered[0].to(added.device)
        new = (change(before + added.reshape(before.shape)) - before).reshape(added.shape)
        return new if isinstance(output, torch.Tensor) else (new, *output[1:])

    stack.callback(block.block.register_forward_pre_hook(enter, with_kwargs=True).remove)
    stack.callback(block.attention_writer.register_forward_hook(leave).remove)


def mean_head_outputs(model: Model, ids: Sequence[Sequence[int]], *, edits: Sequence[Edit] = ()) -> torch.Tensor:
    """Mean head outputs over every token of `ids` under `edits`, [n_layers, H, d_head] float32: what mean ablation puts
    in place of a head."""
    from workbench.engine.capture import stream

    sites = [Site("head_out", layer) for layer in range(model.n_layers)]
    total, count = torch.zeros(model.n_layers, model.n_heads, model.d_head, dtype=torch.float64), 0
    for _, found, batch in stream(model, ids, sites, positions="all", edits=edits):
        total += torch.stack([found[s].double().sum(0).cpu() for s in sites])
        count += batch.tokens
    if not bool(total.isfinite().all()):
        raise InputError(
            f"The head outputs of {model.name} are NaN or infinite on these texts, so they have no mean; load "
            f"the model in bfloat16 or float32."
        )
    return (total / count).float()


@dataclass(frozen=True)
class HeadMask:
    """A saved set of heads: how they are switched off ("zero", "uniform"), a note, and the model that they were found
    on (`model`: name, fingerprint, layers, heads; empty in files that do not say)."""

    heads: tuple[tuple[int, int], ...]
    how: str = "zero"
    note: str = ""
    model: Mapping[str, str | int] = field(default_factory=dict)

    def doubt(self, model: Model) -> str | None:
        """A sentence when the mask was found on other weights than `model`'s; None where it was not, or does not say.

        Raises InputError for a head that `model` does not have."""
        _check_heads(model, self.heads)
        if self.model.get("fingerprint") in (None, model.fingerprint):
            return None
        return (
            f"The head mask was found on {self.model.get('name', 'another model')}, not on these weights of "
            f"{model.name}: its heads may do something else here."
        )


def save_heads(
    path: Path, heads: Sequence[tuple[int, int]], *, how: str = "zero", note: str = "", model: Model | None = None
) -> None:
    """Write a head mask as JSON, to be applied elsewhere with `--edit`; `model`: the one that the heads belong to, by
    name and weights."""
    if not heads:
        raise InputError("A head mask names at least one head.")
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
    Path(path).write_text(
        json.dumps({"heads": [list(h) for h in heads], "ablation": how, "note": note, "model": about}, indent=1) + "\n"
    )


def read_mask(path: Path) -> HeadMask:
    """The head mask in a file (`pruned_heads.json`). Raises InputError when it is not one, or names no head."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        heads = tuple((layer, head) for layer, head in found["heads"])
        if any(type(number) is not int or number < 0 for pair in heads for number in pair):
            raise ValueError("layers and heads are whole numbers from 0")
        how, note, about = found.get("ablation", "zero"), found.get("note", ""), found.get("model") or {}
        about = {name: about[name] for name in ("name", "fingerprint", "layers", "heads") if name in about}
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The edit file '{path}' is not a head mask ({{'heads': [[layer, head], …], 'ablation': 'zero'}}): {error}."
        ) from error
    if how not in ("zero", "uniform"):
        raise InputError(f"The edit file '{path}' asks for the ablation '{how}'; a saved mask can be zero or uniform.")
    if not heads:
        raise InputError(f"The edit file '{path}' names no head: there is nothing to switch off.")
    return HeadMask(tuple(dict.fromkeys(heads)), how, str(note), about)


def load_edits(path: Path) -> tuple[Edit, ...]:
    """The edits of a head-mask file. Raises InputError when it is not one (`read_mask` also says which model it was
    found on)."""
    mask = read_mask(path)
    return (HeadAblation(mask.heads, mask.how),)
