"""The second engine: the same sites captured through nnsight instead of our own hooks.

For people who work with nnsight, and as an independent check of the first engine (the parity test holds the two
together). The model is traced with the modules that `Model.module` names, read in the order in which the forward pass
reaches them.

It traces the model that is loaded on this machine. Models hosted elsewhere (NDIF, `remote=True`) are not reached:
nnsight sends a remote trace only for a model that it opened itself by its hub id, without weights, whereas a run here
is identified by the hash of its weights and begins by checking, with forward passes, that sites, heads and attention
rows are what they are taken for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from workbench.core.errors import InputError
from workbench.engine.capture import Positions, _selector, check_ids
from workbench.engine.edits import Edit, apply, for_prompts
from workbench.models.architecture import first_tensor
from workbench.models.batching import Batch, Frame, in_batches, pad
from workbench.models.model import Model
from workbench.models.sites import Site

# The order of a block's sites in a forward pass; nnsight must be asked in this order.
ORDER = (
    "resid_pre",
    "head_out",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_hidden",
    "mlp_out",
    "resid_post",
    "final_norm",
    "logits",
)


def stream_nnsight(
    model: Model,
    ids: Sequence[Sequence[int]],
    sites: Sequence[Site | str],
    *,
    positions: Positions = "last",
    edits: Sequence[Edit] = (),
    side: str = "right",
    dtype: torch.dtype | None = None,
    max_tokens: int = 8192,
    max_rows: int = 256,
    check: Callable[[], None] | None = None,
) -> Iterator[tuple[list[int], dict[Site, torch.Tensor], Batch]]:
    """As `workbench.engine.capture.stream`, through nnsight traces; the whole forward pass runs."""
    from nnsight import NNsight

    wanted = [Site.parse(site) for site in sites]
    for site in wanted:
        model.module(site)
    check_ids(model, ids)
    in_order = sorted(wanted, key=lambda s: (s.layer if s.layer is not None else model.n_layers, ORDER.index(s.kind)))
    paths = {module: name for name, module in model.hf.named_modules()}
    traced = NNsight(model.hf)
    result: dict[Site, torch.Tensor] = {}
    batch: Batch | None = None

    def step(indices: list[int]) -> None:
        nonlocal batch
        result.clear()
        batch = pad([ids[i] for i in indices], pad_id=model.pad_id, side=side, device=model.device)
        select = _selector(model, batch, positions, indices)
        arguments = {"input_ids": batch.ids, "use_cache": False}
        if "position_ids" in model._accepts:
            arguments["position_ids"] = batch.position_ids
        if side == "left" or not model._mask_free:
            arguments["attention_mask"] = batch.mask.long()
        frame = Frame(batch.position_ids, batch.mask, torch.where(batch.mask, batch.position_ids, -1))
        raw: dict[tuple[int, str], torch.Tensor] = {}
        stops = []
        for site in in_order:
            module, where = model.module(site if site.kind != "logits" else Site("final_norm"))
            if (id(module), where) not in [(id(m), w) for m, w in stops]:
                stops.append((module, where))
        envoys = [(_envoy(traced, paths[module]), id(module), where) for module, where in stops]
        with torch.no_grad(), model.framed(frame), apply(model, for_prompts(edits, indices)):
            with traced.trace(**arguments):
                for envoy, name, where in envoys:
                    # a copy: some blocks (Falcon) add to their MLP's output in place afterwards
                    raw[name, where] = first_tensor(envoy.input if where == "input" else envoy.output).clone().save()
        for site in wanted:
            module, where = model.module(site if site.kind != "logits" else Site("final_norm"))
            x = raw[id(module), where]
            if x.ndim == 2:
                x = x.unflatten(0, tuple(batch.ids.shape))
            if site.kind == "head_out":
                x = x.unflatten(-1, (model.n_heads, model.d_head))
                x = x if site.head is None else x[..., site.head, :]
            picked = select(x.detach())
            picked = model.logits_from(picked, normed=True) if site.kind == "logits" else picked
            result[site] = picked.clone() if dtype is None else picked.to(dtype)

    rows = model.rows_at_once([len(row) for row in ids], max_rows)
    for indices in in_batches(ids, step, max_tokens=max_tokens, max_rows=rows, check=check):
        yield indices, dict(result), batch


def _envoy(root, path: str) -> nn.Module:
    """nnsight's stand-in for the module at `path` ("model.layers.3.mlp")."""
    found = root
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part, None)
        if found is None:
            raise InputError(f"nnsight does not see the module {path}; use --engine hf.")
    return found
