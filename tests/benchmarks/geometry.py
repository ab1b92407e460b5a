"""Representation geometry against the official procedure: one sequence per forward, every feature kept, a full SVD of the matrix."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.benchmarks.timing import interleaved, row
from workbench import spectra
from workbench.capture import stream
from workbench.models import wrap
from workbench.sites import Site

NAME = "representation geometry"
# layers, width, heads, key/value heads, MLP width, vocabulary, sequences, longest in tokens; "small" has the organism's shape
SCALES = {"small": (6, 128, 8, 4, 320, 1500, 2000, 32), "8b": (32, 4096, 32, 8, 14336, 128256, 3000, 128)}


def measure(device: str = "cpu", scale: str = "small", rounds: int = 3) -> list[dict]:
    """Sequences per second from tokens to RankMe of the last layer, and the spectrum alone."""
    rounds = rounds if scale == "small" else 1
    layers, width, heads, groups, mlp, vocabulary, n, longest = SCALES[scale]
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups, intermediate_size=mlp,
                         vocab_size=vocabulary, max_position_embeddings=512)  # fmt: skip
    with torch.device(device):
        hf = LlamaForCausalLM(config).to(torch.bfloat16 if device.startswith("cuda") else torch.float32)
    model = wrap(hf, name=f"random llama {scale}")
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, vocabulary, rng.integers(11, longest + 1)).tolist() for _ in range(n)]
    site = Site("final_norm")

    def official() -> float:
        features = []
        with torch.no_grad():
            for row_ids in ids:
                states = model.hf(torch.tensor([row_ids], device=device), output_hidden_states=True).hidden_states[-1]
                features.append(states[0, -1].double().cpu().numpy())
        x = np.stack(features)
        x -= x.mean(0)
        values = np.linalg.svd(x, full_matrices=False)[1] ** 2
        p = values / values.sum()
        return float(np.exp(-np.sum(p * np.log(p + 1e-300))))

    def ours() -> float:
        moments = None
        for _, acts, _ in stream(model, ids, [site], positions="last", max_tokens=16384 if device.startswith("cuda") else 1024):
            moments = moments or spectra.Moments.like(acts[site])
            moments.add(acts[site])
        return spectra.from_moments(moments).rankme

    a, b = official(), ours()
    limit = 1e-3 if model.dtype == torch.float32 else 1e-2  # bfloat16 rounds differently with the batch
    if abs(a / b - 1) > limit:
        raise AssertionError(f"RankMe is {b} and {a} by the reference: no speed is reported")
    seconds = interleaved({"reference": official, "ours": ours}, rounds=rounds, device=device)
    return [
        row("representation geometry: RankMe of the last layer", "sequences/s", seconds, n, f"RankMe within {abs(a / b - 1):.0e}",
            reference="one sequence per forward, NumPy SVD of all features", sequences=n, rankme=b),
        spectrum_alone(device, scale, rounds),
    ]  # fmt: skip


def spectrum_alone(device: str, scale: str, rounds: int) -> dict:
    """The spectrum alone, features given: streamed float64 covariance against the full SVD."""
    width, n = {"small": (512, 8000), "8b": (4096, 8000)}[scale]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, width, generator=generator) * torch.arange(1, width + 1) ** -0.5 + 3
    on_device = x.to(device)

    def official() -> float:
        centred = x.double().numpy()
        centred = centred - centred.mean(0)
        return float(spectra.rankme(np.linalg.svd(centred, compute_uv=False) ** 2))

    def ours() -> float:
        moments = spectra.Moments.like(on_device[:256])
        for start in range(0, n, 256):
            moments.add(on_device[start : start + 256])
        return float(spectra.rankme(torch.linalg.eigvalsh(moments.covariance()).clamp(min=0).cpu().numpy()))

    a, b = official(), ours()
    if abs(a / b - 1) > 1e-6:
        raise AssertionError(f"RankMe is {b} and {a} by the SVD: no speed is reported")
    seconds = interleaved({"reference": official, "ours": ours}, rounds=rounds, device=device)
    return row("representation geometry: spectrum alone", "spectra/s", seconds, 1, f"RankMe within {abs(a / b - 1):.0e}", reference="NumPy SVD, all features held",
               width=width, samples=n)  # fmt: skip
