"""The sites that the names in published autoencoders mean. No torch here: what does not fit is said before loading."""

from __future__ import annotations

import re

from workbench.core.errors import InputError
from workbench.models.sites import Site


def site_of(hook: str) -> Site | None:
    """The site of a hook name: TransformerLens (`blocks.5.hook_resid_post`), sparsify or Hugging Face (`layers.5`,
    `layers.5.mlp`)."""
    try:
        return Site.parse(hook)
    except InputError:
        pass
    if found := re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks)[._](\d+)(?:\.(\w+))?", hook):
        kind = {
            None: "resid_post",
            "mlp": "mlp_out",
            "self_attn": "attn_out",
            "attn": "attn_out",
            "attention": "attn_out",
        }.get(found[2])
        return Site(kind, int(found[1])) if kind else None
    return Site("resid_pre", 0) if hook.rpartition(".")[2] in ("embed_tokens", "hook_embed") else None
