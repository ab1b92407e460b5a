"""The fast attention kernels of PyTorch, and the masks that they are called with.

What leaves them: soft-capped scores (Gemma 2, and whatever gives its attention function a `softcap`) and layers whose
attention is edited are computed from explicit weights; architectures outside the attention interface of transformers
(Falcon, GPT-J) and those with sinks (GPT-OSS) or biases of their own use their own code. Left padding, sliding windows
and chunks stay on a fast kernel, but with a mask: on CUDA that is the memory-efficient one, not flash attention, which
is for passes where no column is hidden but by the order of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from workbench.models.devices import is_cpu
from workbench.models.running_pass import in_progress, positions


def sdpa(module, query, key, value, attention_mask, *, scaling, dropout, **kwargs):
    """SDPA as transformers calls it, but with a mask no copy of grouped keys for every head: a CPU's kernel reads them
    as they are; those of other devices do not under a mask, and get the queries of a group as more queries of one head
    (while its mask is smaller than the copies; a single query transformers packs itself)."""
    (B, H, Q, D), KV = query.shape, key.shape[1]
    plain = kwargs.get("position_bias") is None and kwargs.get("cache") is None
    cpu = is_cpu(query.device)
    packed = 1 < Q <= KV * D and attention_mask is not None and attention_mask.shape[1] == 1
    if KV == H or attention_mask is None or not plain or not (cpu or packed):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if not cpu:
        query = query.reshape(B, KV, H // KV * Q, D)
        attention_mask = _for_groups(attention_mask, H // KV)
    mixed = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=cpu
    )
    return mixed.reshape(B, H, Q, -1).transpose(1, 2).contiguous(), None


def _for_groups(mask: torch.Tensor, groups: int) -> torch.Tensor:
    """A mask [B, 1, Q, S] for the queries of the heads of a group one after the other, [B, 1, groups × Q, S]; made once
    for the layers of a pass."""

    def widened() -> torch.Tensor:
        B, _, Q, S = mask.shape
        wide = _aligned((B, 1, groups, Q), S, mask.dtype, mask.device)
        wide[..., :S] = mask[:, :, None]
        return wide.flatten(2, 3)[..., :S]

    return positions().once((id(mask), groups), widened) if in_progress() else widened()


def _aligned(shape: Sequence[int], size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers [*shape, size or a few more], 0: rows start at multiples of 8, or the memory-efficient kernel of CUDA
    copies a mask in every layer."""
    return torch.zeros(*shape, -(-size // 8) * 8, dtype=dtype, device=device)


def attention_mask(*, dtype: torch.dtype = torch.float32, **given) -> torch.Tensor | None:
    """The mask of SDPA [B, 1, Q, S] as numbers, which its kernels would make of it in every layer; None where a causal
    kernel needs none, which the pass in progress knows without asking the device."""
    keys = given["kv_length"]
    if given.get("attention_mask") is not None and (padded := _padded(given)) is not None:
        given |= {"attention_mask": given["attention_mask"] if padded else None}
        given |= {"allow_is_causal_skip": given.get("allow_is_causal_skip", True) and not padded}
    mask = sdpa_mask(dtype=dtype, **given)
    if mask is None:
        return None
    numbers = _aligned(mask.shape[:-1], keys, dtype, mask.device)[..., :keys]
    return numbers.masked_fill_(~mask, float("-inf"))  # the smallest float16 would still look visible


def _padded(given: dict) -> bool | None:
    """Whether keys that are to be seen are padding, as the pass in progress knows; None where it does not. Padding to
    the right of a causal model is never seen (on a CPU the mask that says so stays, with the numbers it gives)."""
    first, keys, padding = given["kv_offset"], given["kv_length"], given["attention_mask"]
    whole = positions().whole if in_progress() else None
    if whole is None or whole.real.shape != padding.shape or first + keys > whole.real.shape[1]:
        return None
    if whole.side == "right" and not is_cpu(padding.device):
        return False
    return not bool(whole.real[:, first : first + keys].all())
