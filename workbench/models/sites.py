"""The address of an activation: one type for hooks, cache keys, tables and URLs.

`Site.parse("head_out.3.1")` and `str(site)` are inverse to each other. TransformerLens names are accepted as aliases.
Layers and heads count from 0; a head is always a *query* head. No torch here: the command line reads sites too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest

# kind -> what it holds, one row per token; `width` is the model's, `H` its number of query heads
KINDS = {
    "resid_pre": "residual stream entering the block (width)",
    "resid_mid": "residual stream between attention and MLP (width); absent in parallel blocks",
    "resid_post": "residual stream leaving the block (width)",
    "attn_out": "what attention adds to the residual stream, post-norm included (width)",
    "mlp_in": "what the MLP reads: the normalised residual stream (width)",
    "mlp_out": "what the MLP adds to the residual stream, post-norm included (width)",
    "mlp_hidden": "the MLP's neurons after the nonlinearity and the gate (hidden width); absent with experts",
    "head_out": "each head's mix of values before the output projection, 'z' (H × head width)",
    "final_norm": "residual stream after the last norm (width)",
    "logits": "next-token scores (vocabulary)",
}
WITHOUT_LAYER = ("final_norm", "logits")

_TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_post": "mlp_hidden",
    "hook_mlp_in": "mlp_in",
    "ln2.hook_normalized": "mlp_in",
    "attn.hook_z": "head_out",
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "attn.hook_out": "attn_out",
    "mlp.hook_out": "mlp_out",
    "mlp.hook_in": "mlp_in",
    "attn.o.hook_in": "head_out",
}
_TRANSFORMER_LENS_TOP = {
    "ln_final.hook_normalized": "final_norm",
    "ln_final.hook_out": "final_norm",
    "unembed.hook_out": "logits",
}


@dataclass(frozen=True, order=True)
class Site:
    """Address of an activation: a kind of `KINDS`, a layer where the kind has one, a query head for `head_out`."""

    kind: str
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                f"'{self.kind}' is not a kind of site{nearest(self.kind, KINDS)}; the kinds are {', '.join(KINDS)}."
            )
        if (self.layer is None) != (self.kind in WITHOUT_LAYER):
            need = "takes no layer" if self.kind in WITHOUT_LAYER else f"needs a layer, for example {self.kind}.0"
            raise InputError(f"The site '{self.kind}' {need}.")
        if self.head is not None and self.kind != "head_out":
            raise InputError(f"Only head_out has heads: '{self.kind}.{self.layer}.{self.head}' is not a site.")
        if (self.layer or 0) < 0 or (self.head or 0) < 0:
            raise InputError(f"Layers and heads count from 0: '{self}' is not a site.")

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.kind, self.layer, self.head) if part is not None)

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """The site that `text` names, in our form or as a TransformerLens hook name.

        Raises InputError, with the nearest kind, when there is none."""
        if isinstance(text, Site):
            return text
        text = text.strip()
        if text in _TRANSFORMER_LENS_TOP:
            return cls(_TRANSFORMER_LENS_TOP[text])
        if lens := re.fullmatch(r"blocks\.(\d+)\.(.+)", text):
            if lens[2] not in _TRANSFORMER_LENS:
                raise InputError(f"The TransformerLens name '{text}' has no site here; known: {', '.join(KINDS)}.")
            return cls(_TRANSFORMER_LENS[lens[2]], int(lens[1]))
        parts = text.split(".")
        if len(parts) > 3 or not all(re.fullmatch(r"\d+", part) for part in parts[1:]):
            raise InputError(f"'{text}' is not a site; a site looks like resid_post.3, head_out.3.1 or final_norm.")
        return cls(parts[0], *(int(part) for part in parts[1:]))


def sites(kind: str, layers: Iterable[int]) -> list[Site]:
    """One site of `kind` for every layer given."""
    return [Site(kind, layer) for layer in layers]
