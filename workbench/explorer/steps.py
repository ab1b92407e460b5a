"""Generation as steps: what a model computed when it chose each token of a continuation.

A causal model computes the same whether it reads its own text at once or token by token, so one pass over prompt and
continuation, under the same switches, gives every step. Step t is what stands at the last token before written token
t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import polars as pl
import torch

from workbench.core.errors import InputError
from workbench.core.wording import cut
from workbench.engine.edits import apply
from workbench.engine.hf import stream
from workbench.engine.patching import READ_OFF
from workbench.explorer.lens_maps import lens_map
from workbench.explorer.opened_model import Head, Opened
from workbench.explorer.readings import Reading
from workbench.explorer.switches import Switches, edits_of
from workbench.explorer.targets import Target
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks
from workbench.models import attention
from workbench.models.batching import pad
from workbench.models.sites import Site

AT_ONCE = 1 << 25  # numbers of (steps × vocabulary) held at once
NAMED = 48  # steps whose tokens are written under a figure


@dataclass(frozen=True, eq=False)
class WrittenSteps:
    """`ids` of the prompt, `written` after it; `table` as `read_steps` says; `states` [layers + 1, steps, width] of the
    residual stream (row 0: embeddings) at the tokens that each step read last, float32."""

    ids: tuple[int, ...]
    written: tuple[int, ...]
    switches: Switches
    table: pl.DataFrame
    states: torch.Tensor

    @property
    def read(self) -> list[int]:
        """The whole text as it was fed: the last token is never fed back."""
        return [*self.ids, *self.written[:-1]]


@torch.no_grad()
def read_steps(
    opened: Opened,
    ids: Sequence[int],
    written: Sequence[int],
    target: Target,
    switches: Switches = Switches(),
    *,
    k: int = 8,
) -> WrittenSteps:
    """The steps of a continuation. Table, a row for each: step, position (of the written token in the whole text), id
    and text (null for a model without a tokenizer) of the written token, its probability and rank (0: the likeliest),
    entropy in nats of the next-token distribution, target (log p in nats, or the difference of logits) and target_rank,
    and the k likeliest tokens (top, top_probability).

    Distributions are the model's own, whatever temperature drew the tokens. Raises InputError for nothing written."""
    if not written:
        raise InputError("Nothing is written yet: a continuation has one step at least.")
    model = opened.model
    whole = [*ids, *written[:-1]]
    where = list(range(len(ids) - 1, len(whole)))
    read_off = model.lacks(*READ_OFF) is None
    sites = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(model.n_layers))]
    logits = [] if read_off else [Site("logits")]
    with opened.lock:
        edits = edits_of(opened, switches, ids)  # a patch is of the prompt
        passes = stream(model, [whole], [*sites, *logits], positions=[where], edits=edits, dtype=torch.float32)
        _, found, _ = next(iter(passes))
        states = torch.stack([found[site][0] for site in sites])
        scores = [found[site][0] for site in logits]
        step = max(1, AT_ONCE // model.vocab_size)
        parts = []
        for start in range(0, len(written), step):
            some = slice(start, start + step)
            mine = model.logits_from(states[-1, some]) if read_off else scores[0][some]
            parts.append(_columns(mine, written[some], target, k))
    merged = {name: [v for part in parts for v in part[name].tolist()] for name in parts[0]}
    texts = [None] * len(written) if model.tokenizer is None else model.token_strings(written)
    frame = pl.DataFrame({"step": list(range(len(written))), "position": [p + 1 for p in where], "id": list(written)})
    frame = frame.with_columns(pl.Series("text", texts, pl.String), *(pl.Series(n, v) for n, v in merged.items()))
    return WrittenSteps(tuple(ids), tuple(written), switches, frame, states)


def _columns(scores: torch.Tensor, written: Sequence[int], target: Target, k: int) -> dict[str, torch.Tensor]:
    """The columns of some steps from their scores [n, V]."""
    log_p = scores.float().log_softmax(-1)
    p = log_p.exp()
    chosen = torch.tensor(list(written), device=log_p.device)[:, None]
    own, aimed = log_p.gather(1, chosen), log_p[:, target.token, None]
    top = p.topk(min(k, p.shape[-1]))
    return {
        "probability": own[:, 0].exp().double(),
        "rank": (log_p > own).sum(-1),
        "entropy": -torch.where(p > 0, p * log_p, 0).sum(-1).double(),
        "target": target.value(scores).double(),
        "target_rank": (log_p > aimed).sum(-1),
        "top": top.indices,
        "top_probability": top.values.double(),
    }


@torch.no_grad()
def attention_of(opened: Opened, steps: WrittenSteps, head: Head) -> np.ndarray:
    """What a head attends to at every step: [steps, T] float32 over the whole text, 0 beyond what a step had read."""
    model, (layer, number) = opened.model, head
    model.check_heads([head])
    rows = list(range(len(steps.ids) - 1, len(steps.read)))
    with opened.lock, apply(model, edits_of(opened, steps.switches, steps.ids)):
        with attention.observe(model, lambda _, w: w[0, number].cpu(), rows=rows, layers=[layer]) as seen:
            model.forward(pad([steps.read], pad_id=model.pad_id, device=model.device), last_logits=1)
    return seen[layer].numpy()


def lens_of(opened: Opened, steps: WrittenSteps, step: int, *, k: int = 5) -> pl.DataFrame:
    """The lens column of a step: what each layer would have said there, as `lens_map` says it, with the written token
    as its target. Raises InputError for a step that there is not."""
    if not 0 <= step < len(steps.written):
        raise InputError(f"There is no step {step}: the steps of this continuation are 0 to {len(steps.written) - 1}.")
    here = steps.states[:, step : step + 1]
    reading = Reading((steps.read[len(steps.ids) - 1 + step],), here, None, torch.empty(0))
    return lens_map(opened, reading, target=Target(steps.written[step]), k=k)


def steps_figure(table: pl.DataFrame, *, said: str, title: str = "") -> go.Figure:
    """Probability of each written token, entropy of what it was drawn from, and the target, step by step."""
    n = table.height
    texts = [traces.safe(f"{i}" if text is None else text, 24) for i, text in zip(table["id"], table["text"])]
    names = [cut(f"{i}" if text is None else text, 10) for i, text in zip(table["id"], table["text"])]
    fig = sheet(
        ["probability of the written token", "entropy, nats", cut(said, 48)],
        title=title,
        x="written token",
        x_ticks=ticks(range(n), names, keep=n <= NAMED),
        share_y=False,
        columns=1,
        aspect=0.2,
        note=f"{n} written tokens, each from the model's own distribution (temperature 1) at that step; {said} at the "
        f"same steps",
    )
    styles = theme.Style(theme.BLUE), theme.Style(theme.OCHRE), theme.Style(theme.BLUE)
    for i, (column, style) in enumerate(zip(("probability", "entropy", "target"), styles)):
        values = table[column].to_list()
        if column == "target":
            traces.add_curve(fig, i, range(n), values, name=said, style=style, legend=False, markers=True)
        else:
            traces.add_bars(fig, i, range(n), values, name=column, style=style, labels=texts, legend=False)
    return dressed(fig)
