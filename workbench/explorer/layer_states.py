"""The states that a map is of: one of every text at every site, read from the activation store one site at a time; the
first pass runs the model, later ones read the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from workbench.core.errors import InputError, RunFailed
from workbench.core.json_text import parse_json
from workbench.engine.capture import shards
from workbench.engine.passes import Pass
from workbench.engine.stored_capture import IDS, LENGTHS, ROWS, Request
from workbench.explorer.map_texts import MapTexts, text_of
from workbench.explorer.opened_model import Opened
from workbench.models.model import Model
from workbench.models.sinks import parted
from workbench.models.sites import Site
from workbench.store.activation_store import Store
from workbench.store.shards import DamagedShard

STREAM, FINAL = "resid_post", Site("final_norm")
FLAT = ("last", "mean")  # positions whose captures hold one state of each text


@dataclass(frozen=True, eq=False)
class LayerStates:
    """`sites`, in the order of a slider, and `read(site)`: the states [n, d] float32 of all texts there."""

    sites: tuple[Site, ...]
    n: int
    read: Callable[[Site], np.ndarray]


def site_name(site: Site) -> str:
    """``layer 3``, ``final norm``; another site by its address."""
    if site.kind == STREAM:
        return f"layer {site.layer}"
    return "final norm" if site == FINAL else str(site)


def states_of(
    opened: Opened, texts: MapTexts, token: str, *, kind: str = STREAM, store: Store | None = None
) -> LayerStates:
    """The residual stream after every layer and after the final norm, at one token of every text; another `kind` of
    site at every layer. Captured into the store, where what a probe captured of the same texts is found as well."""
    model = opened.model
    sites = tuple(Site(kind, layer) for layer in range(model.n_layers)) + ((FINAL,) if kind == STREAM else ())
    positions, kept = texts.positions(token), Store() if store is None else store
    request = Request(model, texts.ids, list(sites), positions)
    key, order = request.key(), np.concatenate([np.array(rows) for rows in request.blocks()])

    def read(site: Site) -> np.ndarray:
        if (found := _stored(kept, key, site)) is None:
            run = Pass(max_tokens=model.tokens_at_once())
            with opened.lock:
                for _ in shards(model, texts.ids, sites, positions=positions, store=kept, run=run):
                    pass
            if (found := _stored(kept, key, site)) is None:
                raise RunFailed(f"The capture {key[:12]} was removed from {kept.root} while it was read; try again.")
        states = parted(found, positions)[0].numpy()
        out = np.empty_like(states)
        out[order] = states
        return out

    return LayerStates(sites, len(texts), read)


def _stored(store: Store, key: str, site: Site) -> torch.Tensor | None:
    """A site of a capture, in the order in which it lies on disk; None where the store does not have it whole."""
    entry = store.get(key)
    if entry is None:
        return None
    with entry:
        try:
            return entry.tensor(str(site))
        except DamagedShard:  # it was dropped, and is captured again
            return None


# ---- captures that are on disk already


def captures(store: Store | None = None) -> pl.DataFrame:
    """The stored captures that hold one state of each text: key, model, sites, positions, prompts, created; the ones
    used last come first."""
    rows = []
    for key, complete, created, meta in (
        (Store() if store is None else store).ls().select("key", "complete", "created", "meta").iter_rows()
    ):
        about = parse_json(meta, f"the store entry {key}") if meta else None
        if not complete or not isinstance(about, dict) or _kind(about) is None:
            continue
        sites = [str(site) for site in about.get("sites") or []]
        rows.append((key, str(about.get("model")), sites, str(about["positions"]), int(about["prompts"]), created))
    schema = {"key": pl.String, "model": pl.String, "sites": pl.List(pl.String), "positions": pl.String}
    return pl.DataFrame(rows, schema=schema | {"prompts": pl.Int64, "created": pl.String}, orient="row")


def _kind(about: dict) -> str | None:
    """What the positions of a capture are, where they are one of each text; else None."""
    positions = str(about.get("positions"))
    return positions if positions in FLAT or positions == "beside_sinks:mean" else None


def stored_states(key: str, *, store: Store | None = None) -> LayerStates:
    """The states of a stored capture: its residual stream where it has that, else its other sites. Raises InputError
    for a key that the store does not have, and for a capture of many tokens of each text."""
    kept = Store() if store is None else store
    entry = kept.get(key)
    if entry is None:
        raise InputError(f"The store has no complete capture '{key[:64]}'; `workbench cache ls` lists those it has.")
    with entry:
        kind = _kind(entry.meta) if isinstance(entry.meta, dict) else None
        if kind is None:
            raise InputError(f"The stored capture {key} does not hold one state of each text, so it has no map.")
        n = int(entry.meta["prompts"])
    sites = [Site.parse(site) for site in entry.meta["sites"]]
    stream = [site for site in sites if site.kind == STREAM or site == FINAL]

    def read(site: Site) -> np.ndarray:
        if (found := _stored(kept, key, site)) is None:
            raise InputError(f"The stored capture {key} was removed, or is damaged; choose another.")
        return parted(found, kind)[0].float().numpy()

    return LayerStates(tuple(stream or sites), n, read)


def stored_texts(key: str, model: Model | None = None, *, store: Store | None = None) -> MapTexts:
    """The texts of a stored capture, in the order of its states, as `model` reads them. Captures of earlier versions
    kept no tokens: their texts are empty, as they are without a model, or with one of another tokenizer."""
    entry = (Store() if store is None else store).get(key)
    if entry is None:
        raise InputError(f"The store has no complete capture '{key[:64]}'; `workbench cache ls` lists those it has.")
    with entry:
        n, ids, rows = int(entry.meta["prompts"]), [], []
        for shard in range(entry.n_shards):
            if (found := _tokens_of(entry, shard)) is None:
                ids, rows = [[] for _ in range(n)], list(range(n))
                break
            rows += found[0]
            ids += found[1]
    same = model is not None and entry.meta.get("tokenizer") == model.tokenizer_fingerprint
    words = [text_of(model, row) if same and row else "" for row in ids]
    about = pl.DataFrame({"row": rows, "text": words}, schema={"row": pl.Int64, "text": pl.String})
    return MapTexts(f"stored capture {key[:12]}", ids, about, {})


def _tokens_of(entry, shard: int) -> tuple[list[int], list[list[int]]] | None:
    try:
        found = entry.read(shard, [ROWS, LENGTHS, IDS])
    except InputError:  # from before captures kept them
        return None
    ends = np.cumsum(found[LENGTHS].numpy())
    flat: Sequence[np.ndarray] = np.split(found[IDS].numpy(), ends[:-1])
    return found[ROWS].tolist(), [row.tolist() for row in flat]
