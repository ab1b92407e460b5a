"""Edits of a forward pass: switch heads off or scale them, patch a site, project a direction out, cut attention.

An edit is a frozen description (it is hashed into cache keys and written into run folders) that knows three things of
itself: whether it fits a model and its prompts (`check`), what of it belongs to some of the prompts (`for_prompts`),
and where it hangs (`hang`). `apply(model, edits)` hangs edits on the passes of this thread and takes them off again,
come what may. Positions are token positions, counted from 0 at each sequence's first token, negative from its end; None
means every position. While a model goes on from its key/value cache, positions that were read before are left alone. An
edit that is only wanted while decoding is applied around the decoding steps only.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch

from workbench.core.errors import InputError
from workbench.engine.edit_sites import Prompts, at_site, check_positions, columns_at, positions_by_prompt
from workbench.models.attention import knock_out, uniform
from workbench.models.model import Model
from workbench.models.running_pass import positions
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

    def check(self, model: Model, prompts: Prompts | None = None) -> None:
        """Raise InputError for heads, a kind of ablation, a mean or positions that do not fit the model or prompts."""
        model.check_heads(self.heads)
        if self.how not in ABLATIONS:
            raise InputError(f"'{self.how}' is not an ablation; choose {', '.join(ABLATIONS)}.")
        shape = (model.n_layers, model.n_heads, model.d_head)
        if self.how == "mean" and (self.mean is None or tuple(self.mean.shape) != shape):
            raise InputError(
                "Mean ablation needs the mean head outputs (layers × heads × head width) of a reference set, "
                f"{' × '.join(map(str, shape))} for {model.name}."
            )
        if self.how == "uniform" and self.positions is not None:
            raise InputError("Uniform attention is applied at every position; give no positions.")
        layers = sorted({layer for layer, _ in self.heads})
        if self.how == "uniform":
            model.require("attention_edits", "attention_rows", for_what="uniform attention", layers=layers)
        else:
            model.require("heads_apart", for_what=f"{self.how} ablation of heads", layers=layers)
        check_positions(self.positions, prompts)

    def for_prompts(self, indices: Sequence[int]) -> HeadAblation:
        """Itself: it is the same for every prompt."""
        return self

    def hang(self, model: Model, stack: contextlib.ExitStack) -> None:
        """Hang it on the passes of this thread until `stack` is closed."""
        by_layer = defaultdict(list)
        for layer, head in self.heads:
            by_layer[layer].append(head)
        for layer, heads in by_layer.items():
            if self.how == "uniform":
                stack.enter_context(uniform(model, layer, heads))
            else:
                at_site(model, Site("head_out", layer), lambda x, a=layer, h=heads: self._ablated(x, a, h), stack)

    def _ablated(self, x: torch.Tensor, layer: int, heads: list[int]) -> torch.Tensor:
        """x [B, T, H, d_head] with one value per head at the chosen positions."""
        chosen = torch.zeros(x.shape[2], dtype=torch.bool, device=x.device)
        chosen[heads] = True
        new = x.new_zeros(x.shape[2:])
        if self.mean is not None and self.how == "mean":
            new[heads] = self.mean[layer, heads].to(x.device, x.dtype)
        here = columns_at(self.positions, x)
        return torch.where((here[:, :, None] & chosen)[..., None], new, x)


@dataclass(frozen=True, eq=False)
class HeadScale:
    """Multiply the outputs of heads by `scale`: one number for all of them, or one each. 0 is zero ablation, 1 changes
    nothing, −1 turns a head around."""

    heads: tuple[tuple[int, int], ...]
    scale: float | tuple[float, ...] = 0.0
    positions: tuple[int, ...] | None = None

    def check(self, model: Model, prompts: Prompts | None = None) -> None:
        """Raise InputError for heads, scales or positions that do not fit the model or prompts."""
        model.check_heads(self.heads)
        if len(set(self.heads)) < len(self.heads):
            raise InputError("A head to scale is named twice; name each once, with one scale.")
        if not isinstance(self.scale, int | float) and len(self.scale) != len(self.heads):
            raise InputError(f"There are {len(self.scale)} scales for {len(self.heads)} heads; give one each, or one.")
        wrong = next((scale for _, scale in self._pairs() if not math.isfinite(scale)), None)
        if wrong is not None:
            raise InputError(f"A head cannot be scaled by {wrong}; give a finite number.")
        layers = sorted({layer for layer, _ in self.heads})
        model.require("heads_apart", for_what="scaling of heads", layers=layers)
        check_positions(self.positions, prompts)

    def for_prompts(self, indices: Sequence[int]) -> HeadScale:
        """Itself: it is the same for every prompt."""
        return self

    def hang(self, model: Model, stack: contextlib.ExitStack) -> None:
        """Hang it on the passes of this thread until `stack` is closed."""
        scales = torch.ones(model.n_layers, model.n_heads)
        for (layer, head), scale in self._pairs():
            scales[layer, head] = scale
        for layer in sorted({layer for layer, _ in self.heads}):
            at_site(model, Site("head_out", layer), lambda x, s=scales[layer]: self._scaled(x, s), stack)

    def _pairs(self) -> list[tuple[tuple[int, int], float]]:
        scales = (self.scale,) * len(self.heads) if isinstance(self.scale, int | float) else self.scale
        return [(head, float(scale)) for head, scale in zip(self.heads, scales)]

    def _scaled(self, x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """x [B, T, H, d_head] with each head times its scale [H] at the chosen positions."""
        scales = scales.to(x.device, x.dtype)
        chosen = columns_at(self.positions, x)[:, :, None] & (scales != 1)
        # what is scaled by 0 is 0, whatever it was, as in zero ablation
        new = torch.where((scales == 0)[:, None], torch.zeros_like(x), x * scales[:, None])
        return torch.where(chosen[..., None], new, x)


@dataclass(frozen=True, eq=False)
class Patch:
    """Put `value` at a site: [d] (the same everywhere), [k, d] for k positions, or [n, k, d] with one block per prompt;
    d is H × d_head, as two dimensions, for head_out.L. Without positions, k is the number of tokens of every prompt."""

    site: Site
    value: torch.Tensor
    positions: tuple[int, ...] | None = None

    @property
    def per_prompt(self) -> bool:
        """Whether `value` has a block for every prompt."""
        return self.value.ndim == 2 + self._width_dims

    @property
    def _width_dims(self) -> int:
        return 2 if self.site.kind == "head_out" and self.site.head is None else 1

    def check(self, model: Model, prompts: Prompts | None = None) -> None:
        """Raise InputError for a site, a shape or positions that do not fit the model or prompts."""
        if self.site.kind == "logits":
            raise InputError("Logits are a result; patch final_norm or an earlier site instead.")
        model.module(self.site)
        shape, dims = tuple(self.value.shape), self._width_dims
        given = f"The value to patch at {self.site} has the shape {' × '.join(map(str, shape))}"
        if not dims <= len(shape) <= dims + 2:
            raise InputError(f"{given}; give [d], [k, d] or [n, k, d].")
        width = (model.n_heads, model.d_head) if dims == 2 else (model.site_size(self.site),)
        if shape[-dims:] != width:
            raise InputError(f"{given}, but the last dimension of this site is {' × '.join(map(str, width))}.")
        if self.per_prompt and prompts is not None and shape[0] != len(prompts):
            raise InputError(f"{given}, blocks for {shape[0]} prompts, but there are {len(prompts)}.")
        if len(shape) > dims:
            k = shape[-dims - 1]
            if self.positions is not None and k != len(self.positions):
                raise InputError(f"{given}, but {len(self.positions)} positions are patched.")
            tokens = next((r.stop for r in prompts or () if self.positions is None and r.stop != k), None)
            if tokens is not None:
                raise InputError(f"{given}, one row for each of {k} tokens, but a prompt has {tokens}; name positions.")
        check_positions(self.positions, prompts)

    def for_prompts(self, indices: Sequence[int]) -> Patch:
        """The same patch for the prompts `indices` alone."""
        return replace(self, value=self.value[list(indices)]) if self.per_prompt else self

    def hang(self, model: Model, stack: contextlib.ExitStack) -> None:
        """Hang it on the passes of this thread until `stack` is closed."""
        at_site(model, self.site, self._patched, stack)

    def _patched(self, x: torch.Tensor) -> torch.Tensor:
        value = self.value.to(x.device, x.dtype)
        if self.positions is None:
            return value.expand_as(x).clone()  # some blocks go on to add in place
        columns, there = positions().columns_here(torch.tensor(self.positions))  # [B, R]
        new = value.expand(*columns.shape, *x.shape[2:])
        row, place = there.nonzero(as_tuple=True)
        column, row, place = (at.to(x.device) for at in (columns[row, place], row, place))
        x = x.clone()
        x[row, column] = new[row, place]
        return x


@dataclass(frozen=True, eq=False)
class ProjectOut:
    """Remove the component along `direction` [d] at a site; with `keep` the component along it is all that stays.
    `direction` may hold several rows [m, d]: their span is used. `positions`: the same of every prompt, or as many
    tuples as there are prompts."""

    site: Site
    direction: torch.Tensor
    keep: bool = False
    positions: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None

    def check(self, model: Model, prompts: Prompts | None = None) -> None:
        """Raise InputError for a site, a direction or positions that do not fit the model or prompts."""
        if self.site.kind == "logits":
            raise InputError("Logits are a result; edit final_norm or an earlier site instead.")
        model.module(self.site)
        if self.site.kind == "head_out" and self.site.head is None:
            raise InputError(f"A direction is projected out of one head: {self.site}.0, {self.site}.1, …")
        if self.direction.shape[-1] != model.site_size(self.site):
            raise InputError(
                f"The direction to project out of {self.site} has {self.direction.shape[-1]} numbers, and the site "
                f"{model.site_size(self.site)}."
            )
        _ = self._basis  # refuses one that is zero or not finite
        check_positions(self.positions, prompts)

    def for_prompts(self, indices: Sequence[int]) -> ProjectOut:
        """The same for the prompts `indices` alone."""
        own = positions_by_prompt(self.positions)
        return self if own is None else replace(self, positions=tuple(own[i] for i in indices))

    def hang(self, model: Model, stack: contextlib.ExitStack) -> None:
        """Hang it on the passes of this thread until `stack` is closed."""
        at_site(model, self.site, self._projected, stack)

    @cached_property
    def _basis(self) -> torch.Tensor:
        """Orthonormal rows [m, d] spanning the direction(s)."""
        rows = torch.atleast_2d(self.direction).double()
        if not torch.isfinite(rows).all() or float(rows.norm()) == 0:
            raise InputError("The direction to project out is zero or not finite.")
        _, values, right = torch.linalg.svd(rows, full_matrices=False)
        return right[values > values[0] * 1e-10]

    def _projected(self, x: torch.Tensor) -> torch.Tensor:
        b = self._basis.to(x.device, torch.float32)
        along = ((x.float() @ b.T) @ b).to(x.dtype)
        changed = along if self.keep else x - along
        return torch.where(columns_at(self.positions, x)[..., None], changed, x)


@dataclass(frozen=True, eq=False)
class KnockOut:
    """In `layers`, queries at `queries` ("last", "all" or positions) cannot attend to `sources` (positions, -1 = none;
    one tuple per prompt, or a single one for all); all heads, or the `heads` given."""

    layers: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]
    queries: str | tuple[int, ...] = "last"
    heads: tuple[int, ...] | None = None

    def check(self, model: Model, prompts: Prompts | None = None) -> None:
        """Raise InputError for layers, heads or positions that do not fit the model or prompts."""
        model.check_heads((layer, head) for layer in self.layers for head in self.heads or (0,))
        model.require("attention_edits", "attention_rows", for_what="knock-out of attention", layers=self.layers)
        if prompts is not None:
            if len(self.sources) not in (1, len(prompts)):
                raise InputError(
                    f"The knock-out has sources for {len(self.sources)} prompts, but there are {len(prompts)}; give "
                    f"one tuple of positions per prompt, or a single one for all."
                )
            for row, valid in enumerate(prompts):
                sources = self.sources[row % len(self.sources)]
                wrong = next((p for p in sources if not -1 <= p < valid.stop), None)
                if wrong is not None:
                    raise InputError(
                        f"Position {wrong} to knock out is not among the {-valid.start} tokens of prompt {row + 1}."
                    )
        if isinstance(self.queries, str):
            if self.queries not in ("last", "all"):
                raise InputError(f"'{self.queries}' is no choice of queries; use last, all or token positions.")
        else:
            check_positions(self.queries, prompts)

    def for_prompts(self, indices: Sequence[int]) -> KnockOut:
        """The same knock-out for the prompts `indices` alone."""
        if len(self.sources) == 1:
            return self
        return replace(self, sources=tuple(self.sources[i] for i in indices))

    def hang(self, model: Model, stack: contextlib.ExitStack) -> None:
        """Hang it on the passes of this thread until `stack` is closed."""
        for layer in self.layers:
            stack.enter_context(knock_out(model, layer, queries=self.queries, sources=self.sources, heads=self.heads))


@runtime_checkable
class Edit(Protocol):
    """What an edit knows of itself; those of this module, and any frozen dataclass with the same methods."""

    def check(self, model: Model, prompts: Prompts | None = None) -> None: ...

    def for_prompts(self, indices: Sequence[int]) -> Edit: ...

    def hang(self, model: Model, stack: contextlib.ExitStack) -> None: ...


@contextlib.contextmanager
def apply(model: Model, edits: Sequence[Edit]) -> Iterator[None]:
    """While open, every forward pass of `model` in this thread is edited, in the order given; the model is as before
    afterwards, come what may."""
    with contextlib.ExitStack() as stack:
        check_edits(model, edits)
        for edit in edits:
            edit.hang(model, stack)
        yield


def check_edits(model: Model, edits: Sequence[Edit], prompts: Prompts | None = None) -> None:
    """Raise InputError for an edit that does not fit the model, or these prompts."""
    for edit in edits:
        if not isinstance(edit, Edit):
            raise InputError(f"{type(edit).__name__} is not an edit.")
        edit.check(model, prompts)


def on_final_norm(edits: Sequence[Edit]) -> bool:
    """Whether an edit acts on the result of the final norm."""
    return any(getattr(edit, "site", None) == Site("final_norm") for edit in edits)


def for_prompts(edits: Sequence[Edit], indices: Sequence[int]) -> tuple[Edit, ...]:
    """What of the edits belongs to the prompts `indices`: those that differ by prompt are picked, the others stay."""
    return tuple(edit.for_prompts(indices) for edit in edits)


def describe(edits: Sequence[Edit]) -> list[dict]:
    """Edits as plain data, tensors by their SHA-256: what a cache key and a run folder record."""
    out = []
    for edit in edits:
        row: dict[str, Any] = {"edit": type(edit).__name__}
        for entry in fields(edit):  # pyright: ignore[reportArgumentType] - an edit is a dataclass
            value = getattr(edit, entry.name)
            if isinstance(value, torch.Tensor):
                data = value.detach().cpu().contiguous()
                digest = hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest()
                value = f"{tuple(data.shape)} {data.dtype} {digest}"
            row[entry.name] = str(value) if isinstance(value, Site) else value
        out.append(row)
    return out
