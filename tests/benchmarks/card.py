"""What the rows for one card share: the models of a shape built on the card, what the card can do, and a clock."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.models import devices
from workbench.models.loading import wrap
from workbench.models.model import Model

ROUNDS = 5  # of every row, where there is time


@dataclass(frozen=True)
class Shape:
    """A model and the work that is given to it."""

    layers: int
    width: int
    heads: int
    groups: int
    mlp: int
    vocabulary: int
    dtype: torch.dtype
    prompts: int  # that are read, and their length
    length: int
    rows: int  # that are decoded, the length of their prompt, and the new tokens
    prompt: int
    new: int
    patched: int  # prompts that are patched, their length, and the heads that one pass each is timed on
    patched_length: int
    timed: int
    features: int  # of an autoencoder, how many are active, and tokens encoded
    active: int
    encoded: int
    solved: int  # layers, width and rows of linear probes
    solved_width: int
    solved_rows: int
    gemm: int  # side of the square product that measures the peak


SCALES = {
    "8b": Shape(
        *(32, 4096, 32, 8, 14336, 128256, torch.bfloat16),
        *(8, 2048, 32, 128, 128, 4, 256, 16),
        *(65536, 64, 8192, 32, 4096, 2000, 8192),
    ),
    "tiny": Shape(
        *(3, 32, 4, 2, 48, 96, torch.float32),
        *(4, 24, 4, 8, 16, 2, 12, 4),
        *(64, 4, 48, 3, 16, 60, 64),
    ),
}


@dataclass(eq=False)
class Card:
    """A device, and the models of a shape on it: `plain` is Hugging Face's, `model` ours around the same weights."""

    device: str
    shape: Shape

    @cached_property
    def plain(self) -> LlamaForCausalLM:
        """Random weights, built on the device; scores are spread so that a nucleus holds tens of tokens."""
        s = self.shape
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=s.width,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            num_key_value_heads=s.groups,
            intermediate_size=s.mlp,
            vocab_size=s.vocabulary,
            max_position_embeddings=8192,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            dtype=s.dtype,
        )
        before = torch.get_default_dtype()
        torch.set_default_dtype(s.dtype)
        try:
            with torch.device(self.device):
                hf = LlamaForCausalLM(config).eval().to(self.device)  # the virtual one builds on the host
        finally:
            torch.set_default_dtype(before)
        hf.generation_config.eos_token_id = None  # rows have the same length on both sides
        with torch.no_grad():
            ids = torch.tensor(self.prompts(4, 32), device=self.device)
            hf.lm_head.weight.mul_(4.5 / hf(ids).logits.float().std())
        return hf

    @cached_property
    def model(self) -> Model:
        return wrap(copy.deepcopy(self.plain), name="random llama")

    def prompts(self, n: int, length: int, seed: int = 1) -> list[list[int]]:
        draw = torch.Generator().manual_seed(seed)
        return torch.randint(3, self.shape.vocabulary, (n, length), generator=draw).tolist()

    @property
    def weights(self) -> int:
        """Numbers in the blocks: each is used once for every token that is read."""
        return sum(p.numel() for p in self.plain.model.layers.parameters())

    @property
    def exact(self) -> bool:
        return self.shape.dtype == torch.float32

    def seconds(self, call: Callable[[], object]) -> float:
        """What a call takes until the device has done all of it."""
        devices.synchronise(self.device)
        start = time.perf_counter()
        call()
        devices.synchronise(self.device)
        return time.perf_counter() - start

    @cached_property
    def matmul_peak(self) -> float:
        """Operations per second of a large product in the dtype of the weights, the best of ten."""
        side = self.shape.gemm
        a, b = (torch.randn(side, side, device=self.device).to(self.shape.dtype) for _ in range(2))
        return 2 * side**3 / min(self.seconds(lambda: a @ b) for _ in range(10))

    @cached_property
    def bandwidth(self) -> float:
        """Bytes per second of memory, of a copy that reads and writes, the best of ten."""
        source = torch.zeros(16 * self.shape.gemm**2, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() / min(self.seconds(lambda: target.copy_(source)) for _ in range(10))


class Clock:
    """Shares `seconds` out among rows: a row that has little left runs fewer rounds, and says so; no row is left
    out."""

    def __init__(self, seconds: float, rows: int) -> None:
        self.end, self.rows = time.monotonic() + seconds, rows

    def row(self) -> float:
        """When the next row has to be done."""
        now = time.monotonic()
        share = max(0.0, self.end - now) / max(1, self.rows)
        self.rows -= 1
        return now + share

    @staticmethod
    def rounds(until: float, one: Callable[[int], float]) -> int:
        """Call `one(number) → seconds` up to ROUNDS times, once at least, while another is likely to be done by
        `until`; how many were."""
        done = 0
        while done < ROUNDS:
            taken = one(done)
            done += 1
            if time.monotonic() + taken > until:
                break
        return done
