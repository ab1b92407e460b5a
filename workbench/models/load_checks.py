"""What a loaded model is taken for, tried out: which identities hold when its activations are read as probes read them.

Everything is read through `recording`, the function of every capture, so that the check and the captures cannot
disagree about what a site is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from workbench.core.errors import InputError
from workbench.models.architecture import Anatomy, closeness, output_weight
from workbench.models.attention import hooks_of, install, observe, observe_mixes, unexplained
from workbench.models.attention_edits import edit
from workbench.models.batching import Batch, pad
from workbench.models.call_tape import hidden_argument
from workbench.models.float32 import EXACT, plain_unembedding
from workbench.models.model import Model
from workbench.models.recording import converted, recording, select_positions
from workbench.models.running_pass import before
from workbench.models.sites import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def install_attention(hf: PreTrainedModel, anatomy: Anatomy, ids: torch.Tensor, own: torch.Tensor) -> bool:
    """Our attention function in place of the model's, where it lets us and still gives its logits `own`; also counts
    the key/value heads that it really has."""
    implementation = hf.config._attn_implementation
    attentions = [block.attention for block in anatomy.blocks]
    through = install(hf, attentions, ids)
    if through and _changed(hf, ids, own):
        anatomy.facts.attention_edits[None] = (
            "its own attention computes more than scores, mask and softmax, for example sinks"
        )
        through = False
        hf.set_attn_implementation("eager")
    if through:
        anatomy.n_kv_heads = hooks_of(attentions[0]).groups
        return True
    if _changed(hf, ids, own):  # eager attention is another one: the rows that it returns are not the model's
        hf.set_attn_implementation(implementation or "eager")
        anatomy.facts.attention_rows[None] = "its eager attention, whose rows can be read, gives other logits"
    # Falcon, where configs of old and new differ
    anatomy.n_kv_heads = int(getattr(attentions[0], "num_kv_heads", anatomy.n_kv_heads))
    return False


def _changed(hf: PreTrainedModel, ids: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether the attention that is installed gives other logits than the model's own did."""
    with torch.no_grad():
        found = hf(input_ids=ids, use_cache=False).logits
    tolerance = 1e-3 if found.dtype in EXACT else 0.15  # two kernels, in few bits, through every layer
    return not (found.float() - own.float()).abs().max() <= tolerance * (1e-6 + own.float().abs().max())


def find_facts(model: Model, ids: torch.Tensor, own: torch.Tensor) -> None:
    """Fill in the facts that `examine` left open, by reading `ids` [1, T] as probes do; `own`: the model's logits.

    Raises InputError where the logits are not the model's, whatever they are read from."""
    batch = pad(ids.tolist(), pad_id=0, device=ids.device)
    _check_final_norm(model, batch, own)
    _check_stream(model, batch)
    _check_heads_apart(model, batch)
    _check_heads_add_up(model, batch)
    _check_attention(model, batch)
    if model.low_precision and not plain_unembedding(model.unembed):
        logger.warning(
            "The unembedding of %s is a %s that computes in %s: differences of scores are rounded to that.",
            model.name,
            type(model.unembed).__name__,
            str(model.dtype).removeprefix("torch."),
        )
    logits = _read(model, batch, [Site("logits")])[Site("logits")]
    if _apart(model, logits, own):
        raise InputError(
            f"The architecture {model.architecture} does not fit: its logits change with how they are read."
        )


def _read(model: Model, batch: Batch, wanted: Sequence[Site]) -> dict[Site, torch.Tensor]:
    """Activations [T, …] of every token, as a capture reads them; without the sites that the model does not have."""
    there = [site for site in wanted if _carried(model, site)]
    if not there:
        return {}
    with torch.no_grad(), recording(model, there, batch, select_positions(batch, "all"), converted(None)) as seen:
        model.forward(batch)
    return {site: seen[site] for site in there}


def _carried(model: Model, site: Site) -> bool:
    try:
        model.module(site)
    except InputError:
        return False
    return True


def _apart(model: Model, found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two sets of scores of the model differ by more than rounding."""
    found = found.float().reshape(wanted.shape).to(wanted.device)
    tolerance = 1e-3 if model.dtype in EXACT else 0.15  # `wanted` may be of another attention kernel
    return not (found - wanted.float()).abs().max() <= tolerance * (1e-6 + wanted.float().abs().max())


def _check_final_norm(model: Model, batch: Batch, own: torch.Tensor) -> None:
    """The logits are the unembedding of the final norm (scaled or capped as `logits_from` does), and the final norm
    reads what the last block leaves."""
    final, last = Site("final_norm"), Site("resid_post", model.n_layers - 1)
    seen = _read(model, batch, [final, last])
    with torch.no_grad():
        now = model.forward(batch).logits.float()
    facts = model.facts
    if final not in seen:
        facts.logits_unembedded[None] = facts.final_norm_ends_stream[None] = "its final norm cannot be read"
        return
    tolerance = 1e-4 if model.dtype in EXACT else 4e-2
    with torch.no_grad():
        ours = model.logits_from(seen[final], normed=True)
        if ours.numel() != now.numel() or not (
            (ours.reshape(now.shape).to(now.device) - now).abs().max() <= tolerance * (1e-6 + now.abs().max())
        ):
            facts.logits_unembedded[None] = "its logits are not the unembedding of its final norm"
        if last not in seen:
            facts.final_norm_ends_stream[None] = f"the {last} that it would read cannot be read"
        elif not closeness(model.dtype)(model.normed(seen[last]), seen[final]):
            facts.final_norm_ends_stream[None] = "its final norm does not read what the last block leaves"


def _check_stream(model: Model, batch: Batch) -> None:
    """resid_post = resid_pre + attn_out + mlp_out in every layer, and resid_mid = resid_pre + attn_out where there is
    one."""
    close = closeness(model.dtype)
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post", "resid_mid")
    seen = _read(model, batch, [Site(kind, layer) for layer in range(model.n_layers) for kind in kinds])
    for layer in range(model.n_layers):
        enter, attention, mlp, leave, middle = (seen.get(Site(kind, layer)) for kind in kinds)
        if enter is None or attention is None:
            continue
        half = enter.double() + attention.double().to(enter.device)
        wrong = middle is not None and not close(half, middle, enter)
        if mlp is not None and leave is not None:
            whole = half + mlp.double().to(enter.device)
            wrong |= not close(whole, leave, enter, attention, mlp)
        if wrong:
            model.facts.stream_adds_up[layer] = (
                f"in layer {layer} the residual stream that is captured is not the sum of what attention and MLP add"
            )


def _check_heads_apart(model: Model, batch: Batch) -> None:
    """The output projection reads what the heads mixed: as it is, or so that a head that attends to nothing puts in
    nothing and leaves the other heads as they are."""
    facts, width = model.facts, model.n_heads * model.d_head
    read: dict[int, torch.Tensor] = {}

    def keep(layer: int, args: tuple, kwargs: dict) -> None:
        read[layer] = hidden_argument(args, kwargs).detach().clone()

    handles = [
        before(model.o_proj(layer), lambda _m, args, kwargs, layer=layer: keep(layer, args, kwargs))
        for layer in range(model.n_layers)
    ]
    try:
        with torch.no_grad(), observe_mixes(model) as mixed:
            model.forward(batch)
        for layer in range(model.n_layers):
            if often := model.anatomy.not_once(model.o_proj(layer)):
                facts.heads_apart[layer] = f"the output projection of layer {layer} {often}"
            elif read[layer].shape[-1] != width:
                facts.heads_apart[layer] = (
                    f"the output projection of layer {layer} reads {read[layer].shape[-1]} numbers, not "
                    f"{model.n_heads} heads × {model.d_head}"
                )
            elif layer in mixed and not _same(mixed[layer], read[layer]) and _are_mixed(model, batch, layer, read):
                facts.heads_apart[layer] = (
                    "heads are mixed before the output projection, so no head has an output of its own"
                )
    finally:
        for handle in handles:
            handle.remove()


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.numel() == b.numel() and torch.equal(a.reshape(-1), b.reshape(-1))


def _are_mixed(model: Model, batch: Batch, layer: int, read: dict[int, torch.Tensor]) -> bool:
    """Whether silencing the first head of a layer changes what the output projection reads of the others. `read` is
    filled by every pass."""

    def silence(weights: torch.Tensor, _start: int, _weigh) -> torch.Tensor:
        weights = weights.clone()
        weights[:, 0] = 0
        return weights

    def unchanged(weights: torch.Tensor, _start: int, _weigh) -> torch.Tensor:
        return weights

    heard = []
    for change in (unchanged, silence):
        with torch.no_grad(), edit(model, layer, change):
            model.forward(batch)
        heard.append(read[layer].float().reshape(-1, model.n_heads, model.d_head))
    plain, silent = heard
    others = (plain - silent)[:, 1:].abs()
    return bool(silent[:, 0].any() or (others > 1e-4 * plain.abs().max()).any())


def _check_heads_add_up(model: Model, batch: Batch) -> None:
    """What the output projection makes of the heads is the sum of what it makes of each."""
    close = closeness(model.dtype)
    seen = _read(model, batch, [Site("head_out", layer) for layer in range(model.n_layers)])
    for layer in range(model.n_layers):
        z, block = seen.get(Site("head_out", layer)), model.anatomy.blocks[layer]
        if z is None:
            model.facts.heads_add_up[layer] = model.facts.heads_apart[layer]
            continue
        weight = output_weight(block.o_proj, model.n_heads).double()
        total = torch.einsum("thd,hdw->tw", z.double(), weight)
        bias = getattr(block.o_proj, "bias", None)
        if bias is not None:
            total = total + bias.double()
        with torch.no_grad():
            projected = block.o_proj(z.flatten(-2))
        if not close(total, projected):
            model.facts.heads_add_up[layer] = f"in layer {layer} the heads do not add up to the attention output"


def _check_attention(model: Model, batch: Batch) -> None:
    """In every layer the attention rows sum to 1, give no weight to later tokens, and are those that the attention
    output was mixed with."""
    facts, size = model.facts, batch.ids.shape[1]
    for layer in range(model.n_layers):
        if often := model.anatomy.not_once(model.attention(layer)):
            facts.attention_rows[layer] = f"the attention module of layer {layer} {often}"
    layers = [layer for layer in range(model.n_layers) if layer not in facts.attention_rows]
    if None in facts.attention_rows or not layers:
        return
    later = torch.ones(size, size, device=batch.ids.device).triu(1).bool()

    def worst(_layer: int, weights: torch.Tensor) -> torch.Tensor:
        return torch.maximum(
            (weights.sum(-1) - 1).abs().max(), weights.masked_select(later.to(weights.device)).abs().max()
        )

    try:
        with torch.no_grad(), observe(model, worst, rows="all", layers=layers) as seen:
            model.forward(batch)
        far = unexplained(model, batch, layers)
    except InputError as error:
        facts.attention_rows[None] = str(error).removesuffix(".")
        return
    tolerance = 1e-4 if model.dtype in EXACT else 4e-2
    for layer in layers:
        if layer not in seen or not float(seen[layer]) < 2e-2:
            facts.attention_rows[layer] = f"the attention rows of layer {layer} do not sum to 1 over the past"
        elif not far.get(layer, 0.0) <= tolerance:
            facts.attention_rows[layer] = (
                f"the attention rows of layer {layer} are not those that its output is mixed with"
            )
