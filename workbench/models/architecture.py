"""Where the sites are in a Hugging Face model: only this package knows what a module is called.

TransformerLens architecture adapters name the modules of about 140 architectures. What an adapter does not say (is a
norm applied before or after its sublayer, does the MLP read the same stream as attention, how often does a module run)
is read off one small forward pass. What the pass shows not to hold becomes a fact of the model, with the reason, and is
refused where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from workbench.core.errors import InputError
from workbench.models.call_tape import Seen, counted, tape
from workbench.models.facts import ModelFacts
from workbench.models.running_pass import Call
from workbench.models.sites import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Block:
    """The modules of one layer, as raw Hugging Face modules; None where the architecture has no such module."""

    block: nn.Module
    attention: nn.Module
    o_proj: nn.Module
    mlp_in: nn.Module  # its input is what the MLP reads
    mlp_out: nn.Module  # its output is the MLP's result, before any post-norm
    mlp_hidden: nn.Module | None  # its input is the neurons
    norms: dict[str, nn.Module]
    # set by `examine`; as in a block without post-norms until then
    attention_writer: nn.Module = field(init=False)  # its output is what attention adds to the stream
    mlp_writer: nn.Module = field(init=False)  # its output is what the MLP adds to the stream
    mid_reader: nn.Module | None = field(init=False, default=None)  # its input is the stream between attention and MLP

    def __post_init__(self) -> None:
        self.attention_writer, self.mlp_writer = self.attention, self.mlp_out


@dataclass
class Anatomy:
    """The map from sites to modules, and the facts about an architecture that change how it must be treated."""

    blocks: list[Block]
    final_norm: nn.Module
    unembed: nn.Module
    n_heads: int
    n_kv_heads: int
    d_head: int
    width: int
    parallel_blocks: bool = False
    post_norms: bool = False
    experts: bool = False
    softcap: float | None = None  # on the final logits
    attn_softcap: float | None = None
    name: str = "model"
    facts: ModelFacts = field(default_factory=ModelFacts)
    # set by `examine`: how often a module runs in a pass, in one that fills a key/value cache, and in one after that
    calls: dict[nn.Module, tuple[int, ...]] = field(default_factory=dict)
    # set by `examine`: how many things a module gives in a tuple whose first is the hidden states; 0: these alone
    returns: dict[nn.Module, int] = field(default_factory=dict)
    final_call: Call | None = None  # of the final norm, the one that feeds the unembedding; None: there is one only

    def module(self, site: Site) -> tuple[nn.Module, str]:
        """The module to hook for `site`, and whether the site is its "input" or its "output".

        Raises InputError for a layer or head that the model does not have, for sites that its blocks do not have, and
        for those that its modules do not carry: whose module runs more than once in a pass, or holds something else."""
        if site.layer is not None and site.layer < len(self.blocks):
            self.require(*_NEEDED.get(site.kind, ()), for_what=str(site), layers=[site.layer])
        module, side = self._carrier(site)
        if site.kind == "final_norm":
            self.require("final_norm_known", for_what=str(site))
        elif site.layer is not None and (often := self.not_once(module)):
            raise InputError(
                f"The architecture {self.name} does not fit {site}: the {type(module).__name__} that carries it "
                f"{often}."
            )
        return module, side

    def call(self, site: Site) -> Call | None:
        """Which of the calls of its module is the site, where there are several."""
        return self.final_call if site.kind == "final_norm" else None

    def require(self, *facts: str, for_what: str, layers: Iterable[int] | None = None) -> None:
        """Raise InputError, in one sentence with the reason, where one of the facts does not hold (in these layers)."""
        for fact in facts:
            if reason := self.facts.why_not(fact, layers):
                raise InputError(f"The architecture {self.name} does not fit {for_what}: {reason}.")

    def not_once(self, module: nn.Module) -> str | None:
        """How often a module runs in a pass, in words; None for once."""
        counts = self.calls.get(module, (1,))
        if set(counts) == {1}:
            return None
        if len(set(counts)) > 1:
            plain, text, token = counts
            return (
                f"runs {plain} times in a plain pass, {text} times with a key/value cache and {token} times in a "
                f"decoding step"
            )
        return f"runs {counts[0]} times in a pass" if counts[0] else "is never called"

    def _carrier(self, site: Site) -> tuple[nn.Module, str]:
        if site.layer is None:
            return self.final_norm if site.kind == "final_norm" else self.unembed, "output"
        if site.layer >= len(self.blocks):
            raise InputError(f"The site {site} is beyond the model: its layers are 0 to {len(self.blocks) - 1}.")
        block = self.blocks[site.layer]
        if site.head is not None and site.head >= self.n_heads:
            raise InputError(f"The site {site} is beyond the model: its heads are 0 to {self.n_heads - 1}.")
        match site.kind:
            case "resid_pre":
                return block.block, "input"
            case "resid_post":
                return block.block, "output"
            case "attn_out":
                return block.attention_writer, "output"
            case "mlp_out":
                return block.mlp_writer, "output"
            case "mlp_in":
                return block.mlp_in, "input"
            case "head_out":
                return block.o_proj, "input"
            case "resid_mid" if block.mid_reader is not None:
                return block.mid_reader, "input"
            case "mlp_hidden" if block.mlp_hidden is not None:
                return block.mlp_hidden, "input"
        why = (
            "attention and MLP read the same stream" if site.kind == "resid_mid" else "its MLP is a mixture of experts"
        )
        raise InputError(f"The site {site} does not exist in this model: {why}.")


# what must hold in a layer for a site to be what `KINDS` says
_NEEDED = {
    "attn_out": ("stream_adds_up",),
    "mlp_out": ("stream_adds_up",),
    "resid_mid": ("stream_adds_up",),
    "head_out": ("heads_apart",),
    "mlp_hidden": ("neurons_whole",),
}


def find_anatomy(hf: PreTrainedModel) -> Anatomy:
    """The map of a loaded Hugging Face causal LM (through the TransformerLens adapter of its class).

    Raises InputError when TransformerLens has no adapter for the class or the adapter does not fit the model."""
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf

    name = type(hf).__name__
    try:
        config = build_bridge_config_from_hf(hf.config, name, name, next(hf.parameters()).dtype)
        adapter = ArchitectureAdapterFactory.select_architecture_adapter(config)
    except Exception as error:  # the adapters raise whatever their own code trips over
        reason = str(error).split("\n")[0][:160]
        raise InputError(f"The architecture {name} has no map from sites to modules ({reason}).") from error

    def component(path: str) -> nn.Module | None:
        try:
            found = adapter.get_component(hf, path)
        except (ValueError, AttributeError, IndexError, KeyError, TypeError):
            return None
        return found if isinstance(found, nn.Module) else None

    blocks: list[Block] = []
    for layer in range(config.n_layers):
        at = f"blocks.{layer}"
        block, mlp = component(at), component(f"{at}.mlp")
        down = component(f"{at}.mlp.out")
        inner = component(f"{at}.mlp.in") or mlp
        whole = mlp is not None and mlp is not block  # OPT has no MLP module, only its two linear maps
        norms = {key: found for key in ("ln1", "ln2", "ln1_post", "ln2_post") if (found := component(f"{at}.{key}"))}
        needed = {
            "block": block,
            "attention": component(f"{at}.attn"),
            "o_proj": component(f"{at}.attn.o"),
            "mlp_in": mlp if whole else inner,
            "mlp_out": mlp if whole else down,
        }
        there = {key: module for key, module in needed.items() if module is not None}
        if missing := [key for key in needed if key not in there]:
            raise InputError(
                f"The architecture {name} cannot be mapped: layer {layer} has no {' or '.join(missing)} module."
            )
        blocks.append(Block(**there, mlp_hidden=down, norms=norms))
    text = hf.config.get_text_config() if hasattr(hf.config, "get_text_config") else hf.config
    heads = int(config.n_heads)
    d_head = int(weight_of(blocks[0].o_proj).numel() // int(config.d_model) // heads)
    final_norm, unembed = component("ln_final"), hf.get_output_embeddings() or component("unembed")
    if final_norm is None or unembed is None:
        raise InputError(f"The architecture {name} cannot be mapped: it has no final norm or no unembedding.")
    return Anatomy(
        blocks=blocks,
        final_norm=final_norm,
        unembed=unembed,
        n_heads=heads,
        n_kv_heads=int(config.n_key_value_heads or heads),
        d_head=d_head,
        width=int(config.d_model),
        experts=all(b.mlp_hidden is None for b in blocks),
        softcap=getattr(text, "final_logit_softcapping", None),
        attn_softcap=getattr(text, "attn_logit_softcapping", None),
        name=name,
    )


def examine(hf: PreTrainedModel, anatomy: Anatomy, ids: torch.Tensor) -> None:
    """Run `ids` [1, T]; count the calls of every module that carries a site, read off where each norm sits, and set the
    writers and readers of every block.

    Where resid_post = resid_pre + attn_out + mlp_out does not hold, or the output projection does not read heads, that
    becomes a fact of the anatomy. Raises InputError for logits that are NaN or infinite."""
    modules = {"unembed": anatomy.unembed, "final_norm": anatomy.final_norm}
    for layer, block in enumerate(anatomy.blocks):
        modules |= {f"{layer}.{key}": module for key, module in (_parts(block) | block.norms).items()}
    with torch.no_grad(), tape(modules) as calls:
        found = hf(input_ids=ids, use_cache=False).logits
    if not torch.isfinite(found).all():
        raise InputError(
            f"The model {type(hf).__name__} gives NaN or infinite logits on a plain prompt; its weights are damaged, "
            f"or its dtype cannot hold them."
        )
    anatomy.returns = {modules[key]: seen[0].items for key, seen in calls.items() if seen}
    _count(hf, anatomy, modules, calls, ids)
    _find_final_call(anatomy, calls)
    close = closeness(next(hf.parameters()).dtype)
    for layer, block in enumerate(anatomy.blocks):
        mine = {key.split(".")[1]: seen for key, seen in calls.items() if key.startswith(f"{layer}.")}
        for key in ("block", "attention", "o_proj"):
            if often := anatomy.not_once(_parts(block)[key]):
                anatomy.facts.blocks_run_once[layer] = f"the {key} module of layer {layer} {often}"
        whole = mine["block"][0] if len(mine["block"]) == 1 else None
        if whole is None:
            anatomy.facts.stream_adds_up[layer] = f"the block of layer {layer} {anatomy.not_once(block.block)}"
            continue
        inside = {key: [seen for seen in some if seen.within(whole) or seen is whole] for key, some in mine.items()}
        _read_block(anatomy, layer, whole, inside, close)


def _parts(block: Block) -> dict[str, nn.Module]:
    return {
        "block": block.block,
        "attention": block.attention,
        "o_proj": block.o_proj,
        "mlp_in": block.mlp_in,
        "mlp_out": block.mlp_out,
    } | ({} if block.mlp_hidden is None else {"mlp_hidden": block.mlp_hidden})


def _count(
    hf: PreTrainedModel,
    anatomy: Anatomy,
    modules: dict[str, nn.Module],
    calls: dict[str, list[Seen]],
    ids: torch.Tensor,
) -> None:
    """Note how often every module runs in a pass, in one that fills a key/value cache, and in one that goes on from
    it."""
    plain, cached, step = ({key: len(seen) for key, seen in calls.items()},) * 3
    if ids.shape[1] > 1:
        from transformers import DynamicCache

        cache = DynamicCache(config=hf.config)
        try:
            with torch.no_grad():
                with counted(modules) as cached:
                    hf(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
                with counted(modules) as step:
                    hf(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        except Exception:  # models without a cache of this kind: what would go on from one fails there, with its error
            cached = step = plain
    anatomy.calls = {modules[key]: (plain[key], cached[key], step[key]) for key in modules}


def _find_final_call(anatomy: Anatomy, calls: dict[str, list[Seen]]) -> None:
    """Which call of the final norm feeds the unembedding, where the module runs more than once."""
    counts, norms = anatomy.calls[anatomy.final_norm], calls["final_norm"]
    if set(counts) == {1}:
        return
    feeding = [
        number
        for number, norm in enumerate(norms)
        if any(norm.end < out.start and _same(norm.went_out, out.came_in) for out in calls["unembed"])
    ]
    often = f"the final norm {anatomy.not_once(anatomy.final_norm)}"
    if not feeding:
        anatomy.facts.final_norm_known[None] = f"{often}, and no result is what the unembedding reads"
    elif len(set(counts)) > 1:
        anatomy.facts.final_norm_known[None] = often
    else:
        anatomy.final_call = Call(feeding[-1], counts[0])


def _read_block(anatomy: Anatomy, layer: int, whole: Seen, inside: dict[str, list[Seen]], close: Close) -> None:
    """Set the writers and the reader of one block from the calls made inside it."""
    block, facts = anatomy.blocks[layer], anatomy.facts
    block.attention_writer, block.mlp_writer, block.mid_reader = block.attention, block.mlp_out, None
    before, after = whole.came_in, whole.went_out
    for key in ("attention", "mlp_out", "o_proj"):
        if len(inside[key]) != 1:
            times = f"runs {len(inside[key])} times in the block" if inside[key] else "is never called"
            facts.stream_adds_up[layer] = f"the {key} module of layer {layer} {times}"
            return
    attention, mlp = inside["attention"][0].went_out, inside["mlp_out"][0].went_out
    # The module whose output joins the stream is the attention itself, its output projection (OPT, Falcon) or a
    # norm after it.
    for key, norm in block.norms.items():
        for seen in inside[key]:
            if _same(seen.came_in, attention) and not _same(seen.came_in, before):
                block.attention_writer, attention = norm, seen.went_out
            elif _same(seen.came_in, mlp) and not _same(seen.came_in, before):
                block.mlp_writer, mlp = norm, seen.went_out
    anatomy.post_norms |= block.attention_writer is not block.attention or block.mlp_writer is not block.mlp_out
    fits = before.numel() == after.numel() == attention.numel() == mlp.numel()
    if not fits or not close(_sum(before, attention, mlp), after, before, attention, mlp):
        facts.stream_adds_up[layer] = (
            f"in layer {layer} the residual stream is not the sum of its input, attention and MLP (a multiplier, a "
            f"gate, or a sublayer that adds the stream itself), so head outputs would not add up to it"
        )
        return
    middle = _sum(before, attention)
    silent = not attention.any()  # then the stream before attention is the stream after it, too
    for key in ("ln2", "mlp_in"):
        module = block.norms.get("ln2") if key == "ln2" else block.mlp_in
        for seen in inside.get(key, ()) if module is not None else ():
            fits = close(seen.came_in, middle, before) and (silent or not _same(seen.came_in, before))
            if fits and block.mid_reader is None:
                block.mid_reader = module
    anatomy.parallel_blocks |= block.mid_reader is None


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """One tensor handed on. Exact: beside a massive residual, what a sublayer adds is below any relative tolerance."""
    return a.numel() == b.numel() and torch.equal(a.reshape(-1), b.reshape(-1).to(a.device))


def _sum(first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    total = first.double()
    for other in others:
        total = total + other.double().reshape(first.shape).to(first.device)
    return total


Close = Callable[..., bool]


def closeness(dtype: torch.dtype) -> Close:
    """close(a, b, *terms): whether they are equal up to the rounding, in this dtype, of what was added up: `terms`,
    which may be far larger than their sum."""
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 4e-2)

    def close(a: torch.Tensor, b: torch.Tensor, *terms: torch.Tensor) -> bool:
        if a.numel() != b.numel():
            return False
        scale = max(float(t.abs().max()) for t in (b, *terms))
        distance = (a.reshape(-1).double() - b.reshape(-1).double().to(a.device)).abs().max()
        return bool(distance <= tolerance * (1e-6 + scale))

    return close


def weight_of(module: nn.Module) -> torch.Tensor:
    """The weight of a linear map or an embedding."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def output_weight(o_proj: nn.Module, n_heads: int) -> torch.Tensor:
    """The output projection by head, [H, d_head, width]: head h adds head_out[h] @ W_O[h] to the attention output."""
    weight = weight_of(o_proj).detach()
    if not type(o_proj).__name__ == "Conv1D":  # GPT-2 stores [in, out], nn.Linear [out, in]
        weight = weight.T
    return weight.unflatten(0, (n_heads, -1))


def weight_of_head(o_proj: nn.Module, head: int, d_head: int) -> tuple[slice, ...]:
    """The index of one head's numbers in the weight of an output projection, as it is stored."""
    own = slice(head * d_head, (head + 1) * d_head)
    return (own,) if type(o_proj).__name__ == "Conv1D" else (slice(None), own)
