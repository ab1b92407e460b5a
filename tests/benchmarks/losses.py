"""Losses over a vocabulary of 128K words with directions removed and kept, against unembedding the projected states of
every variant, one text at a time."""

from __future__ import annotations

import statistics

import torch

from tests.benchmarks.timing import gemm_rate, interleaved, row
from workbench.engine.variant_losses import variant_losses
from workbench.models.unembedding import Unembedding

# words, width, texts, tokens of each, sets of directions, directions of each
SCALES = {"small": (131_072, 512, 4, 16, 3, 8), "8b": (131_072, 4096, 32, 128, 21, 16), "tiny": (2048, 16, 2, 4, 2, 3)}


def measure(device: str = "cpu", scale: str = "small", rounds: int = 5) -> dict:
    """Scored tokens × variants per second, final states given."""
    words, width, texts, tokens, sets, rank = SCALES[scale]
    draw = torch.Generator().manual_seed(0)
    weight = (torch.randn(words, width, generator=draw) * 3 / width**0.5).to(device)
    states = torch.randn(texts * tokens, width, generator=draw).to(device)
    target = torch.randint(0, words, (len(states),), generator=draw)
    there = target.to(device)
    bases = [
        torch.linalg.qr(torch.randn(width, rank, generator=draw))[0].T.contiguous().to(device) for _ in range(sets)
    ]
    variants = [("none", None), *((how, rows) for rows in bases for how in ("remove", "keep"))]
    matrix = Unembedding(weight, None, None, None)

    def losses(x: torch.Tensor, matrix: torch.Tensor, part: slice) -> torch.Tensor:
        """Of every variant, in the dtype of the states."""
        found = []
        for how, rows in variants:
            h = x[part]
            if rows is not None:
                inside = h @ rows.to(h.dtype).T @ rows.to(h.dtype)
                h = inside if how == "keep" else h - inside
            found.append(torch.nn.functional.cross_entropy(h @ matrix.T, there[part], reduction="none"))
        return torch.stack(found)

    def reference() -> torch.Tensor:
        parts = (slice(start, start + tokens) for start in range(0, len(states), tokens))
        return torch.cat([losses(states, weight, part).cpu() for part in parts], 1)

    def ours() -> torch.Tensor:
        return variant_losses(matrix, states, target.tolist(), variants)

    few = slice(0, tokens)
    exact = losses(states.double(), weight.double(), few).cpu()
    apart = float((ours()[:, few] - exact).abs().max())
    if apart > 1e-4 or float((ours() - reference()).abs().max()) > 1e-3:
        raise AssertionError(f"Losses are {apart} nats from those of float64: no speed is reported")
    seconds = interleaved({"reference": reference, "ours": ours}, rounds=rounds, device=device)
    bound = {}
    if device == "cpu":
        # one product of the width for all variants, one of the rank for each set
        operations = 2 * words * len(states) * (width + sets * rank) + 2 * words * width * sets * rank
        bound["arithmetic_allows"] = statistics.median(seconds["reference"]) * gemm_rate() / operations
    return row(
        "losses over a vocabulary of 128K words",
        "losses/s",
        seconds,
        len(states) * len(variants),
        f"within {apart:.0e} nats of float64",
        reference="every variant projected, unembedded and its cross-entropy taken, one text at a time",
        words=words,
        width=width,
        variants=len(variants),
        **bound,
    )
