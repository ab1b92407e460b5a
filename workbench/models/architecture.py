"""Where the sites are in a Hugging Face model: only this package knows what a module is called.

TransformerLens architecture adapters name the modules of about 140 architectures. What an adapter does not say (is a
norm applied before or after its sublayer, does the MLP read the same stream as attention) is read off one small forward
pass, and the same pass checks the identities that every probe relies on. A model that breaks one is refused with the
reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from workbench.core.errors import InputError
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
    notes: list[str] = field(default_factory=list)

    def module(self, site: Site) -> tuple[nn.Module, str]:
        """The module to hook for `site`, and whether the site is its "input" or its "output".

        Raises InputError for a layer or head that the model does not have and for sites that its blocks do not have."""
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


def first_tensor(value) -> torch.Tensor:
    """The hidden states in a module's arguments or result, which may be a tuple."""
    return value if isinstance(value, torch.Tensor) else value[0]


def hidden_argument(args: tuple, kwargs: dict) -> torch.Tensor:
    """The hidden states that a module was called with, by position or by name."""
    if args and isinstance(args[0], torch.Tensor):
        return args[0]
    for name in ("hidden_states", "input", "x", "hidden_state"):
        if name in kwargs:
            return kwargs[name]
    raise InputError(
        "A block of this architecture takes its hidden states under an unknown name; it cannot be observed."
    )


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
    )


@contextlib.contextmanager
def _tape(modules: dict[str, nn.Module]) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """While open, records (input, output) hidden states of the named modules, in the order in which they finish."""
    tape: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def record(key: str):
        def hook(_module, args, kwargs, output):
            tape[key] = (hidden_argument(args, kwargs).detach().clone(), first_tensor(output).detach().clone())

        return hook

    handles = [m.register_forward_hook(record(k), with_kwargs=True) for k, m in modules.items()]
    try:
        yield tape
    finally:
        for handle in handles:
            handle.remove()


def examine(hf: PreTrainedModel, anatomy: Anatomy, ids: torch.Tensor) -> None:
    """Run `ids` [1, T] once; read off where each norm sits, set the writers and readers of every block, check
    additivity.

    The identity checked is resid_post = resid_pre + attn_out + mlp_out (and resid_mid = resid_pre + attn_out in
    sequential blocks), and that the output projection is a linear map of the concatenated heads. Raises InputError when
    one fails."""
    modules = {"unembed": anatomy.unembed, "final_norm": anatomy.final_norm}
    for layer, block in enumerate(anatomy.blocks):
        named = {
            "block": block.block,
            "attention": block.attention,
            "o": block.o_proj,
            "mlp_in": block.mlp_in,
            "mlp_out": block.mlp_out,
        }
        modules |= {f"{layer}.{key}": module for key, module in (named | block.norms).items()}
    with torch.no_grad(), _tape(modules) as tape:
        hf(input_ids=ids, use_cache=False)

    dtype = next(hf.parameters()).dtype
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 4e-2)

    def close(a: torch.Tensor, b: torch.Tensor, *terms: torch.Tensor) -> bool:
        """Equal up to the rounding of what was added up: `terms`, which may be far larger than their sum."""
        if a.numel() != b.numel():
            return False
        scale = max(float(t.abs().max()) for t in (b, *terms))
        return bool((a.reshape(-1).double() - b.reshape(-1).double()).abs().max() <= tolerance * (1e-6 + scale))

    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        """One tensor handed on. Exact: beside a massive residual, what a sublayer adds is below any relative
        tolerance."""
        return a.numel() == b.numel() and torch.equal(a.reshape(-1), b.reshape(-1))

    name = type(hf).__name__
    if not torch.isfinite(tape["unembed"][1]).all():
        raise InputError(
            f"The model {name} gives NaN or infinite logits on a plain prompt; its weights are damaged, or "
            f"its dtype cannot hold them."
        )
    for layer, block in enumerate(anatomy.blocks):

        def seen(key: str, layer: int = layer) -> tuple[torch.Tensor, torch.Tensor]:
            if f"{layer}.{key}" not in tape:
                raise InputError(
                    f"The architecture {name} does not fit: the {key} module of layer {layer} is never called."
                )
            return tape[f"{layer}.{key}"]

        before, after = seen("block")
        attention, mlp = seen("attention")[1], seen("mlp_out")[1]
        block.attention_writer, block.mlp_writer, block.mid_reader = block.attention, block.mlp_out, None
        # The module whose output joins the stream is the attention itself, its output projection (OPT, Falcon) or a
        # norm after it.
        for key, norm in block.norms.items():
            if f"{layer}.{key}" not in tape:
                continue
            came_in, went_out = tape[f"{layer}.{key}"]
            if same(came_in, attention) and not same(came_in, before):
                block.attention_writer, attention = norm, went_out
            elif same(came_in, mlp) and not same(came_in, before):
                block.mlp_writer, mlp = norm, went_out
        anatomy.post_norms |= block.attention_writer is not block.attention or block.mlp_writer is not block.mlp_out
        total = before.double() + attention.double().reshape(before.shape) + mlp.double().reshape(before.shape)
        if not close(total, after, before, attention, mlp):
            raise InputError(
                f"The architecture {name} does not fit: in layer {layer} the residual stream is not the sum "
                f"of its input, "
                "attention and MLP (a multiplier, a gate, or a sublayer that adds the stream itself), so head "
                "outputs would not add up to it."
            )
        middle = before.double() + attention.double().reshape(before.shape)
        silent = not attention.any()  # then the stream before attention is the stream after it, too
        for key in ("ln2", "mlp_in"):
            module = block.norms.get("ln2") if key == "ln2" else block.mlp_in
            if module is None or f"{layer}.{key}" not in tape:
                continue
            read = tape[f"{layer}.{key}"][0]
            if close(read, middle, before) and (silent or not same(read, before)):
                block.mid_reader = module
                break
        anatomy.parallel_blocks |= block.mid_reader is None

        heads, projected = seen("o")
        if heads.shape[-1] != anatomy.n_heads * anatomy.d_head:
            raise InputError(
                f"The architecture {name} does not fit: the output projection of layer {layer} reads "
                f"{heads.shape[-1]} numbers, "
                f"not {anatomy.n_heads} heads × {anatomy.d_head}."
            )
        weight = output_weight(block.o_proj, anatomy.n_heads).double()
        sum_of_heads = torch.einsum(
            "...hd,hdw->...w", heads.double().unflatten(-1, (anatomy.n_heads, anatomy.d_head)), weight
        )
        bias = getattr(block.o_proj, "bias", None)
        if bias is not None:
            sum_of_heads = sum_of_heads + bias.double()
        if not close(sum_of_heads, projected):
            raise InputError(
                f"The architecture {name} does not fit: in layer {layer} the heads do not add up to the "
                f"attention output."
            )


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
