"""Multiply-adds of a pass over one text, counted module by module from the shapes of the weights: no pass is run, and a
number does not depend on the machine."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from workbench.models.architecture import weight_of
from workbench.models.model import Model
from workbench.models.size import share_of_experts


@dataclass(frozen=True)
class MultiplyAdds:
    """Of one text: by layer in `attention`, `mlp` and `block` (which may hold more than these two), and in the `whole`
    pass, the unembedding of every token included."""

    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    block: tuple[float, ...]
    whole: float

    def of(self, component: str, layer: int) -> float:
        """What one module takes; `component` is attention, mlp or block."""
        return {"attention": self.attention, "mlp": self.mlp, "block": self.block}[component][layer]


def multiply_adds(model: Model, tokens: int) -> MultiplyAdds:
    """Multiply-adds of a text of so many tokens: of every weight matrix once for each token (of experts those that are
    chosen), and of attention the products of queries with the keys that they see and of weights with their values.
    Norms, activations and rotations are left out."""
    share = share_of_experts(model.hf.config)

    def of_weights(*modules: nn.Module) -> float:
        found = {
            id(weight): weight.numel() * (share if ".experts." in f".{name}" else 1)
            for module in modules
            for name, weight in module.named_parameters()
            if weight.ndim >= 2
        }
        return float(sum(found.values())) * tokens

    attention, mlp, block = [], [], []
    for layer, place in enumerate(model.anatomy.blocks):
        scores = 2.0 * model.n_heads * model.d_head * _seen_keys(model, layer, tokens)
        attention.append(of_weights(place.attention) + scores)
        mlp.append(of_weights(place.mlp_in, place.mlp_out))
        block.append(of_weights(place.block) + scores)
    unembedding = float(weight_of(model.unembed).numel()) * tokens
    return MultiplyAdds(tuple(attention), tuple(mlp), tuple(block), sum(block) + unembedding)


def _seen_keys(model: Model, layer: int, tokens: int) -> int:
    """Pairs of a query and a key that it sees, in a text of so many tokens."""
    config = model.hf.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    sliding = "sliding" in kinds[layer] if kinds else model.sliding
    width = min(tokens, int(window)) if sliding and window else tokens
    return width * (width + 1) // 2 + (tokens - width) * width
