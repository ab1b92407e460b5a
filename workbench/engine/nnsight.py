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

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from workbench.core.errors import InputError
from workbench.engine.dropping import DropModules
from workbench.engine.edits import apply, on_final_norm
from workbench.engine.passes import ROWS, Pass, check_prompts, with_pass
from workbench.models.batching import Batch, pad
from workbench.models.call_tape import first_tensor
from workbench.models.model import Model
from workbench.models.recording import (
    Positions,
    converted,
    parse_sites,
    positions_of,
    read_out_site,
    select_positions,
    site_module,
    site_values,
)
from workbench.models.running_pass import Call, positions_after, running
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


@with_pass
def stream(
    model: Model,
    ids: Sequence[Sequence[int]],
    sites: Sequence[Site | str],
    *,
    positions: Positions = "last",
    side: str = "right",
    dtype: torch.dtype | None = None,
    run: Pass,
) -> Iterator[tuple[list[int], dict[Site, torch.Tensor], Batch]]:
    """As `workbench.engine.hf.stream`, through nnsight traces; the whole forward pass runs."""
    from nnsight import NNsight, save

    wanted = parse_sites(model, sites)
    check_prompts(model, ids, run)
    if any(isinstance(edit, DropModules) for edit in run.edits):
        raise InputError("Modules are dropped by the engine 'hf' only, as nnsight runs what it watches; use engine=hf.")
    keep = converted(dtype, copy=True)
    paths = {module: name for name, module in model.hf.named_modules()}
    edited = on_final_norm(run.edits)
    stops = _in_order(model, wanted, edited)
    traced = NNsight(model.hf)
    envoys = [(_envoy(traced, paths[module]), id(module), where) for module, where, _ in stops]
    found: list[tuple[dict[Site, torch.Tensor], Batch]] = []  # of the batch at hand

    def step(indices: list[int]) -> None:
        found.clear()
        batch = pad([ids[i] for i in indices], pad_id=model.pad_id, side=side, device=model.device)
        select = select_positions(batch, positions_of(positions, indices))
        arguments: dict[str, Any] = model.arguments(batch)
        raw: dict[tuple[int, str], torch.Tensor] = {}
        with torch.no_grad(), running(positions_after(batch)), apply(model, run.for_prompts(indices).edits):
            with traced.trace(**arguments):
                for envoy, name, where in envoys:
                    # a copy: some blocks (Falcon) add to their MLP's output in place afterwards
                    raw[name, where] = save(first_tensor(envoy.input if where == "input" else envoy.output).clone())
        result: dict[Site, torch.Tensor] = {}
        for site in wanted:
            module, where, _ = site_module(model, site, edited=edited)
            x = raw[id(module), where].detach()
            x = x.unflatten(0, tuple(batch.ids.shape)) if x.ndim == 2 else x
            result[site] = keep(site_values(model, site, x, select, edited=edited))
        found.append((result, batch))

    lengths = [len(row) for row in ids]
    for indices in run.batches(lengths, step, rows=model.rows_at_once(lengths, run.max_rows or ROWS)):
        yield indices, *found[0]


def _in_order(model: Model, wanted: Sequence[Site], edited: bool) -> list[tuple[nn.Module, str, Call | None]]:
    """The modules to read, each side of each once, in the order in which a forward pass reaches them. Raises InputError
    for one that runs more than once: nnsight would give its first call."""
    read = [read_out_site(model, edited=edited) if site.kind == "logits" else site for site in wanted]
    order = sorted(read, key=lambda s: (s.layer if s.layer is not None else model.n_layers, ORDER.index(s.kind)))
    found = list(dict.fromkeys(site_module(model, site, edited=edited) for site in order))
    for module, _, call in found:
        if call is not None and call.number > 0:
            raise InputError(
                f"nnsight reads the first call of a module, and the {type(module).__name__} of {model.architecture} "
                f"runs {call.of} times in a pass; use --engine hf."
            )
    return found


def _envoy(root, path: str) -> nn.Module:
    """nnsight's stand-in for the module at `path` ("model.layers.3.mlp")."""
    found = root
    for part in path.split(".") if path else ():  # the model itself has no path
        found = found[int(part)] if part.isdigit() else getattr(found, part, None)
        if found is None:
            raise InputError(f"nnsight does not see the module {path}; use --engine hf.")
    return found
