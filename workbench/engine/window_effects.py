"""What switching windows of layers off at the last position does to the next-token scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from workbench.core.errors import InputError
from workbench.engine.edits import check_edits
from workbench.engine.last_token_replay import REPLAYED
from workbench.engine.layer_windows import Window
from workbench.engine.passes import Pass, check_prompts, with_pass
from workbench.engine.patching import READ_OFF, Effects, alike, gather, replayed
from workbench.models.model import Model


@with_pass
def window_effects(model: Model, ids, tokens, windows: Sequence[Window], *, run: Pass) -> Effects:
    """Scores of `tokens` [n, k] after n prompts, and with each of m windows switched off at the last position (their
    `sources` have one tuple per prompt); m in the order given.

    Only the last position is run again, from the window's first layer on. Raises InputError for windows that do not fit
    the model, and for models whose blocks cannot be called on their own."""
    model.require(*REPLAYED, *READ_OFF, for_what="windows of layers that are switched off")
    check_prompts(model, ids, run)
    for window in windows:
        if not 0 <= window.layer < window.layer + window.size <= model.n_layers:
            raise InputError(
                f"A window of {window.size} layers from layer {window.layer} on does not fit {model.name}, which has "
                f"{model.n_layers} layers."
            )
        for edit in window.edits(model):  # the same as edits of a whole pass, which know what a model allows
            check_edits(model, [edit], [range(-len(row), len(row)) for row in ids])
    wanted = torch.as_tensor(tokens, dtype=torch.long)

    def compute(rows: list[int], _first: bool) -> tuple[torch.Tensor, ...]:
        mine = [replace(w, sources=[w.sources[i] for i in rows] if w.sources else ()) for w in windows]
        return replayed(model, [ids[i] for i in rows], mine, wanted[rows], run.for_prompts(rows))

    return gather(len(ids), alike(model, ids, len(windows)), compute, run)
