"""Cross-entropy with bigram distributions, and its gradient, against dicts that fill a dense table token by token."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import torch

from probes.bigram_subnetwork.bigrams import count
from probes.bigram_subnetwork.target_loss import cross_entropies, target_of
from tests.benchmarks.timing import interleaved, row
from workbench.models.host_copies import Resident

# words, tokens that are counted, tokens of a batch
SCALES = {"small": (50_304, 400_000, 1024), "8b": (128_256, 4_000_000, 4096), "tiny": (500, 3000, 64)}


def measure(device: str = "cpu", scale: str = "small", rounds: int = 5) -> dict:
    """Tokens per second whose loss and gradient by the scores are known, scores given."""
    words, counted, tokens = SCALES[scale]
    rng = np.random.default_rng(0)
    text = np.minimum(rng.zipf(1.2, counted), words) - 1
    batch = text[rng.integers(0, counted, tokens)]
    scores = torch.randn(tokens, words, generator=torch.Generator().manual_seed(0)).to(device)
    bigrams, after = count([text.tolist()], words), defaultdict(Counter)
    for one, two in zip(text[:-1].tolist(), text[1:].tolist()):
        after[one][two] += 1
    probabilities = {c: {w: n / sum(seen.values()) for w, n in seen.items()} for c, seen in after.items()}
    single = np.bincount(text, minlength=words) / counted
    unigram = Resident(torch.from_numpy(bigrams.unigram))

    def backward(losses: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return losses.detach(), torch.autograd.grad(losses.mean(), x)[0]

    def reference() -> tuple[torch.Tensor, torch.Tensor]:
        dense = np.zeros((tokens, words), np.float32)
        for place, context in enumerate(batch.tolist()):
            if context in probabilities:
                for word, p in probabilities[context].items():
                    dense[place, word] = p
            else:
                dense[place] = single
        x = scores.detach().requires_grad_()
        return backward(torch.nn.functional.cross_entropy(x, torch.from_numpy(dense).to(device), reduction="none"), x)

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        x = scores.detach().requires_grad_()
        return backward(cross_entropies(x, target_of(bigrams, batch.tolist(), x.device), unigram), x)

    apart = [float((one - two).abs().max()) for one, two in zip(ours(), reference())]
    if apart[0] > 1e-4 or apart[1] > 1e-7:
        raise AssertionError(f"Losses are {apart[0]} and gradients {apart[1]} apart: no speed is reported")
    seconds = interleaved({"reference": reference, "ours": ours}, rounds=rounds, device=device)
    return row(
        "bigram: loss and gradient over a vocabulary of 50K",
        "tokens/s",
        seconds,
        tokens,
        f"losses within {apart[0]:.0e} nats, gradients within {apart[1]:.0e}",
        reference="dict of each context written into a dense table, cross-entropy of that",
        words=words,
        pairs=len(bigrams.token),
        tokens=tokens,
    )
