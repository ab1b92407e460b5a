"""Representation geometry against the official procedure: one sequence per forward, every feature kept, a full SVD of
the matrix."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from probes import representation_geometry
from probes.representation_geometry import spectra
from tests.benchmarks.concept_depth import float32_agreement, random_llama, write_texts
from tests.benchmarks.timing import interleaved, row
from workbench.core.context import Context
from workbench.engine.capture import capture
from workbench.models.sites import Site

NAME = "representation geometry"
# layers, width, heads, key/value heads, MLP width, vocabulary, sequences, longest in tokens; "small" has the organism's
# shape
SCALES = {"small": (6, 128, 8, 4, 320, 1500, 2000, 32), "8b": (32, 4096, 32, 8, 14336, 128256, 3000, 128)}


def measure(device: str = "cpu", scale: str = "small", rounds: int = 3) -> list[dict]:
    """Sequences per second from texts to RankMe of the last layer through the probe, and the spectrum alone."""
    rounds = rounds if scale == "small" else 1
    *shape, n, longest = SCALES[scale]
    model = random_llama(device, scale, *shape)
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, shape[-1], rng.integers(11, longest + 1)).tolist() for _ in range(n)]
    config = representation_geometry.Config(draws=0, curve=False, loss_rows=0, ablate=(), map=())
    with tempfile.TemporaryDirectory() as folder:
        data = write_texts(Path(folder) / "texts.jsonl", ids)
        texts = [" ".join(map(str, tokens)) for tokens in ids]

        def official() -> float:
            features = []
            with torch.no_grad():
                for text in texts:
                    states = model.hf(
                        torch.tensor([model.encode(text)], device=device), output_hidden_states=True
                    ).hidden_states[-1]
                    features.append(states[0, -1].double().cpu().numpy())
            return svd_rankme(np.stack(features))

        def ours() -> float:
            return representation_geometry.run(model, config, Context(data=data)).tables["layers"]["rankme"][0]

        # the probe's number is that of an SVD of the very features that it saw; those are the official ones in float32
        seen = capture(model, ids, [Site("final_norm")], max_tokens=model.tokens_at_once())[Site("final_norm")]
        exact, b, a = svd_rankme(seen.double().numpy()), ours(), official()
        if abs(exact / b - 1) > 1e-3:
            raise AssertionError(f"RankMe is {b} and {exact} by an SVD of the same features: no speed is reported")
        if model.dtype == torch.float32 and abs(a / b - 1) > 1e-3:
            raise AssertionError(f"RankMe is {b} and {a} by the reference: no speed is reported")
        apart = float32_agreement(model, ids[:32], Site("final_norm"))
        seconds = interleaved({"reference": official, "ours": ours}, rounds=rounds, device=device)
    return [
        row(
            "representation geometry: RankMe of the last layer",
            "sequences/s",
            seconds,
            n,
            f"RankMe within {abs(exact / b - 1):.0e} on the same features",
            reference="one sequence per forward, NumPy SVD of all features",
            sequences=n,
            rankme=b,
            rankme_of_reference=a,
            features_apart_in_float32=apart,
            megabytes_more_for_8_times_the_samples=memory_growth(),
        ),
        spectrum_alone(device, scale, rounds),
    ]


def svd_rankme(x: np.ndarray) -> float:
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    p = values / values.sum()
    return float(np.exp(-np.sum(p * np.log(p + 1e-300))))


def spectrum_alone(device: str, scale: str, rounds: int) -> dict:
    """The spectrum alone, features given: streamed float64 covariance against the full SVD."""
    width, n = {"small": (512, 8000), "8b": (4096, 8000)}[scale]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, width, generator=generator) * torch.arange(1, width + 1) ** -0.5 + 3
    on_device = x.to(device)

    def official() -> float:
        return svd_rankme(x.double().numpy())

    def ours() -> float:
        moments = spectra.Moments.like(on_device[:256])
        for start in range(0, n, 256):
            moments.add(on_device[start : start + 256])
        return float(spectra.rankme(torch.linalg.eigvalsh(moments.covariance()).clamp(min=0).cpu().numpy()))

    a, b = official(), ours()
    if abs(a / b - 1) > 1e-6:
        raise AssertionError(f"RankMe is {b} and {a} by the SVD: no speed is reported")
    seconds = interleaved({"reference": official, "ours": ours}, rounds=rounds, device=device)
    return row(
        "representation geometry: spectrum alone",
        "spectra/s",
        seconds,
        1,
        f"RankMe within {abs(a / b - 1):.0e}",
        reference="NumPy SVD, all features held",
        width=width,
        samples=n,
    )


# memory

_CHILD = """
import resource, sys, tempfile
from pathlib import Path
import numpy as np
from probes import representation_geometry
from tests.benchmarks.concept_depth import random_llama, write_texts
from workbench.core.context import Context

width, n = 768, 800
model = random_llama("cpu", "of one layer", 1, width, 8, 8, 64, 256)
rng = np.random.default_rng(0)
config = representation_geometry.Config(draws=0, curve=False, loss_rows=0, ablate=(), map=())
with tempfile.TemporaryDirectory() as folder:
    for size in (n, n, 8 * n):  # once to warm up
        data = write_texts(Path(folder) / f"{size}.jsonl", [rng.integers(3, 256, 4).tolist() for _ in range(size)])
        assert representation_geometry.run(model, config, Context(data=data)).tables["layers"]["n"][0] == size
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)
"""


def memory_growth() -> float:
    """Megabytes by which the peak memory of the probe grows from 800 to 6,400 samples of width 768, in a process of its
    own. The features alone are 16 MB more in float32, 33 in float64."""
    root = Path(__file__).resolve().parents[2]
    # what is freed goes back to the system at once, so that the peak is that of what was held
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    out = subprocess.run(
        [sys.executable, "-c", _CHILD], cwd=root, env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    return float(out[2]) - float(out[1])
