"""What a run needs of a device's memory, reckoned from the model's config.json before any weight is read.

Keys, values and activations are those of a pass of the model with shapes and no numbers: every tensor that the pass
would make is counted from its making to its end. A fused attention kernel keeps nothing but its output, as SDPA does;
attention that goes through no kernel is counted as it is."""

from __future__ import annotations

import copy
import inspect
import weakref
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import sdpa_mask

from workbench.models.attention import attention_forward
from workbench.models.size import empty_model

SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
FUSED = "workbench_shapes"  # an attention kernel that gives a tensor of the right shape
SHARE = 0.5  # of what is free, that the batches of an accelerator may take
READ_TOKENS, CPU_TOKENS = 16384, 768  # of a batch that is read: on an accelerator, and on a CPU for each thread
MORE = 4  # times as many tokens as usual go into one batch where there is room: beyond, nothing gets faster
STEP = 17  # float32 copies of the scores that the statistics of a decoding step hold at once, at most


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes, each part at its greatest: the weights, keys and values, what a pass makes on its way, next-token scores
    in float32 with their statistics, what is captured, and what training keeps for each weight."""

    weights: int
    cache: int = 0
    activations: int = 0
    scores: int = 0
    captured: int = 0
    training: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class CachedLayer:
    """What a layer keeps of a row: so many bytes of each token, of at most `window` tokens (None: of all), and
    `fixed` bytes however long the row is (the state of a recurrent layer)."""

    per_token: int
    window: int | None = None
    fixed: int = 0

    def row(self, tokens: int, *, windows: bool = True) -> int:
        """Bytes of a row of so many tokens; without `windows` layers that slide keep all of it, too."""
        kept = min(tokens, self.window) if windows and self.window is not None else tokens
        return self.fixed + self.per_token * kept


@dataclass(eq=False)
class Footprint:
    """What rows of tokens take of a device that holds the model `hf`, which itself has shapes and no numbers."""

    hf: Any
    layers: tuple[CachedLayer, ...]
    seen: dict[tuple[int, int], int] = field(default_factory=dict)  # (rows, tokens) -> bytes of passes tried already

    @property
    def scores(self) -> int:
        """How many next-token scores there are."""
        return len(self.hf.get_output_embeddings().weight)

    def cache(self, rows: int, tokens: int, *, windows: bool = True) -> int:
        """Bytes of keys and values of rows of so many tokens (`windows` as in `CachedLayer.row`)."""
        return rows * sum(layer.row(tokens, windows=windows) for layer in self.layers)

    def activations(self, rows: int, tokens: int, *, padded: bool = False) -> int:
        """Bytes that a pass over rows of so many tokens makes at its fullest, without a cache and with the scores of
        the last position alone; `padded`: with a mask of every token against every other for each row."""
        if (rows, tokens) not in self.seen:
            self.seen[rows, tokens] = _peak(self.hf, rows, tokens)
        return self.seen[rows, tokens] + (rows * tokens**2 if padded else 0)

    def positions(self, count: int, *, copies: int = 1) -> int:
        """Bytes of the scores at so many positions: as the model gives them, and `copies` times in float32."""
        weight = self.hf.get_output_embeddings().weight
        return count * len(weight) * (weight.element_size() + 4 * copies)


def footprint_of_loaded(hf: Any, dtype: torch.dtype) -> Footprint:
    """The footprint of a model that is loaded."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return footprint_of(AutoModelForCausalLM.from_config(copy.deepcopy(hf.config), dtype=dtype).eval())


def footprint(folder: Path, dtype: str) -> Footprint:
    """The footprint of the model in a folder in that dtype ("bfloat16").

    Raises InputError for an architecture that cannot be made from its config, and whatever its code raises of a pass
    without numbers."""
    return _footprint(folder, (folder / "config.json").read_bytes(), dtype)


@lru_cache(maxsize=4)
def _footprint(folder: Path, _content: bytes, dtype: str) -> Footprint:
    return footprint_of(empty_model(folder, dtype=getattr(torch, SHORT.get(dtype, dtype))))


def footprint_of(hf: Any) -> Footprint:
    """The same of a model that has shapes and no numbers already."""
    try:
        hf.set_attn_implementation(FUSED)
    except (ValueError, NotImplementedError, KeyError):
        pass  # attention of its own, which is counted as it is
    cache = DynamicCache(config=hf.config.get_text_config())
    with torch.no_grad(), _Counting(hf):
        hf(input_ids=torch.zeros(1, 1, dtype=torch.long, device="meta"), past_key_values=cache, use_cache=True)
    return Footprint(hf, tuple(_cached(layer) for layer in cache.layers))


def usual_tokens(place: str) -> int:
    """Tokens of one batch that is read, on a device of that name: few on a CPU, whose caches are small."""
    return CPU_TOKENS * min(torch.get_num_threads(), 8) if place.startswith("cpu") else READ_TOKENS


def tokens_that_fit(
    of: Footprint, free: int, *, longest: int, usual: int, caches: bool = False, captured: int = 0
) -> int:
    """How many tokens of rows of `longest` tokens go into one batch where so many bytes are free: what SHARE of them
    holds, at least one row and at most MORE times the `usual` ones. `caches`: keys and values are kept, and statistics
    taken of the scores; `captured` numbers are kept of each row."""
    row = 4 * captured + of.activations(1, longest) + of.positions(1, copies=STEP if caches else 1)
    row += of.cache(1, longest) if caches else 0
    return max(longest, min(MORE * usual, int(SHARE * free / max(1, row)) * longest))


def _cached(layer: Any) -> CachedLayer:
    """What a layer of a cache that has read one token of one row keeps of it."""
    states = [state for name in ("keys", "values") if (state := getattr(layer, name, None)) is not None]
    per_token = sum(state.numel() * state.element_size() for state in states)
    held = [value for value in vars(layer).values() if isinstance(value, torch.Tensor) and value.ndim > 1]
    fixed = [value for value in held if not any(value is state for state in states)]
    window = getattr(layer, "sliding_window", None)
    # transformers keeps what the next token may look at: the window without that token
    return CachedLayer(per_token, window and window - 1, sum(value.numel() * value.element_size() for value in fixed))


@torch.no_grad()
def _peak(hf: Any, rows: int, tokens: int) -> int:
    """The most bytes that a pass without a cache holds at once."""
    with _Counting(hf) as counting:
        hf(
            input_ids=torch.zeros(rows, tokens, dtype=torch.long, device="meta"),
            use_cache=False,
            **({"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(hf.forward).parameters else {}),
        )
    return counting.most


class _Counting(TorchDispatchMode):
    """Counts the bytes of every tensor that is made, until nobody holds it any more."""

    def __init__(self, hf: Any):
        super().__init__()
        self.now = self.most = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in (*hf.parameters(), *hf.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True  # whether tokens are all real, or all of one text: there are no numbers to ask
        if func is torch.ops.aten._grouped_mm.default:  # whose shapes without numbers are known for bfloat16 alone
            out: Any = args[0].new_empty(args[0].shape[0], args[1].shape[-1])
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self.known:
            return
        self.known.add(place)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._let_go, place, size)

    def _let_go(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size


def _shapes_only(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **more: Any
) -> tuple[torch.Tensor, None]:
    """[B, H, T, D] queries → [B, T, H, Dv], as a fused kernel that holds nothing else would; soft-capped scores, which
    no kernel knows, are computed as ever."""
    if more.get("softcap") is not None:
        return attention_forward(module, query, key, value, mask, **more)
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


AttentionInterface.register(FUSED, _shapes_only)
AttentionMaskInterface.register(FUSED, sdpa_mask)
