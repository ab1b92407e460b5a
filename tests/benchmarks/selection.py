"""Data selection against a plain loop: a full forward pass per sample, `SAE.encode` of all tokens, dense NumPy similarity.

Both get the same token ids. The loop is what the method's description says to do; ours is what the probe does for a whole pool."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.timing import interleaved, row
from workbench.context import Context
from workbench.samples import Samples

NAME = "data selection"
# samples, d_sae, k, samples in the reference loop (its rate does not depend on how many)
SCALES = {"small": (2000, 4096, 32, 2000), "8b": (512, 131072, 192, 64)}
RATIO = 0.05


def measure(device: str = "cpu", scale: str = "small", rounds: int = 3) -> dict:
    """Samples per second on the same token ids and autoencoder. Gate: identical selected rows for every target."""
    from sae_lens import SAE

    from probes.data_selection import Config, Reader, _prototypes, _score_pool

    n, d_sae, k, in_loop = SCALES[scale]
    model, hf, layer = models(scale, device)
    pool, targets = material(model, n, scale)
    with tempfile.TemporaryDirectory() as folder:
        autoencoder(Path(folder), model, layer, d_sae, k)
        inner = SAE.load_from_disk(folder, device=device, dtype="float32")
        config = Config(sae=folder, baselines=(), features=0, passages=0, explain=0, max_tokens=8192 if device == "cpu" else 65536)
        context = Context(seed=0)
        reader = Reader.of(model, config, context)
        found: dict[str, np.ndarray] = {}

        def ours():
            prototypes, group = _prototypes(reader, targets, {}, config, context)
            found["ours"] = _score_pool(reader, pool, prototypes, group, len(targets), [], config, context)[0]["sae"]

        def reference():
            found["reference"] = loop(hf, inner, pool.ids[:in_loop], [t.ids for t in targets.values()], device)

        ours()
        reference()
        size = max(1, round(RATIO * in_loop))
        same = [set(np.argsort(-a, kind="stable")[:size]) == set(np.argsort(-b, kind="stable")[:size]) for a, b in zip(found["ours"][:in_loop].T, found["reference"].T)]
        worst = float(np.abs(found["ours"][:in_loop] - found["reference"]).max())
        if scale == "small" and not all(same):
            raise AssertionError(f"the selected rows differ (scores by up to {worst:.2g}): no speed is reported")
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        # the loop's time is scaled to the whole pool; both are linear in the samples
        seconds = interleaved({"reference": reference, "ours": ours}, rounds=rounds, device=device)
    seconds["reference"] = [s * n / in_loop for s in seconds["reference"]]
    details = {"samples": n, "tokens": int(pool.counted.sum()), "d_sae": d_sae, "k": k, "layer": f"{layer} of {model.n_layers}", "targets": len(targets), "in_loop": in_loop, "largest_difference": worst}
    if device.startswith("cuda"):
        details["peak_memory_GiB"] = torch.cuda.max_memory_allocated() / 2**30
    agreement = "identical selected rows" if all(same) else f"scores within {worst:.2g} ({str(model.dtype).removeprefix('torch.')})"
    return row(NAME, "samples/s", seconds, n, agreement, reference="plain loop (full forward, SAE.encode, dense NumPy)", **details)


def loop(hf, sae, pool, targets, device: str) -> np.ndarray:
    """Scores [samples, targets], one sample at a time."""

    def embed(ids):
        with torch.no_grad():
            states = hf(torch.tensor([ids], device=device), output_hidden_states=True).hidden_states
            layer = int(sae.cfg.metadata.hook_name.split(".")[1])
            return sae.encode(states[layer + 1][0, 1:].float()).mean(0).cpu().numpy()

    prototypes = [np.mean([embed(ids) for ids in target], axis=0) for target in targets]
    scores = np.empty((len(pool), len(prototypes)))
    for i, ids in enumerate(pool):
        z = embed(ids)
        scores[i] = [np.minimum(z, p).sum() / np.maximum(z, p).sum() for p in prototypes]
    return scores


def models(scale: str, device: str):
    """(our model, the same weights in plain Hugging Face, layer of the autoencoder)."""
    from transformers import AutoModelForCausalLM

    from workbench.models import load, load_tokenizer
    from workbench.organisms import folder

    if scale == "small":
        place = folder("organism")
        model = load("organism", device=device)
        return model, AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval().to(device), model.n_layers // 2 - 1
    from tests.benchmarks.capture import random_llama

    model, _ = random_llama(scale, device)
    model.tokenizer, model.prepends_bos = load_tokenizer(folder("organism")), True
    return model, model.hf, model.n_layers - 2


def material(model, n: int, scale: str) -> tuple[Samples, dict[str, Samples]]:
    """A pool of n samples and three targets: samples of the organism's world, or random tokens of an instruction set's lengths."""
    from workbench.organisms import data

    if scale == "8b":
        rng = np.random.default_rng(0)
        lengths = np.clip(rng.lognormal(5.6, 0.7, n).astype(int), 32, 2048)

        def some(lengths):
            ids = [[1, *rng.integers(10, 1000, length).tolist()] for length in lengths]
            return Samples(ids, [np.array([False] + [True] * (len(i) - 1)) for i in ids])

        return some(lengths), {name: some(lengths[:8]) for name in ("a", "b", "c")}

    def read(name):
        return [json.loads(line) for line in data(name).read_text().splitlines()]

    def samples(texts):
        ids = [model.encode(text) for text in texts]
        return Samples(ids, [np.array([False] + [True] * (len(i) - 1)) for i in ids])

    texts = [f"{r['prompt']} {r['response']}" for r in read("pool")] + [r["text"] for r in read("texts")]
    texts = list(dict.fromkeys(texts))[:n]
    return samples(texts), {name: samples([f"{r['prompt']} {r['response']}" for r in read(f"targets/{name}")]) for name in ("sea", "music", "facts")}


def autoencoder(folder: Path, model, layer: int, d_sae: int, k: int) -> None:
    """A TopK autoencoder with random weights: the work is that of a trained one."""
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    torch.manual_seed(0)
    TopKSAE(TopKSAEConfig(d_in=model.width, d_sae=d_sae, k=k, metadata=SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post"))).save_model(folder)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
