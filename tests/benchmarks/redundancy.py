"""Similarities of all modules against the obvious way: every hidden state kept, cosines of all of them afterwards."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from probes.layer_redundancy import stream_pairs
from probes.layer_redundancy.config import Config
from probes.layer_redundancy.halves import HalfTexts
from probes.layer_redundancy.similarities import deciding
from tests.benchmarks.concept_depth import random_llama
from tests.benchmarks.timing import interleaved, row
from workbench.core.context import Context

NAME = "layer redundancy"
KINDS = ("attention", "mlp", "block")
# layers, width, heads, key/value heads, MLP width, vocabulary, texts, longest in tokens; "small" has the organism's
# shape
SCALES = {"small": (6, 128, 8, 4, 320, 1500, 96, 128), "8b": (32, 4096, 32, 8, 14336, 128256, 16, 512)}


def all_kept(model, ids, device: str) -> dict[str, list[float]]:
    """One text at a time; what comes into every module and what leaves it is copied to the host as it is, and compared
    when all texts have been read."""
    kept: dict[tuple[str, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
    seen: dict[tuple[str, int], torch.Tensor] = {}
    handles = []

    def hold(key, x):
        seen[key] = x.detach().cpu().clone()

    for layer, block in enumerate(model.hf.model.layers):
        handles += [
            block.register_forward_pre_hook(lambda _m, args, layer=layer: hold(("in", layer), args[0])),
            block.post_attention_layernorm.register_forward_pre_hook(
                lambda _m, args, layer=layer: hold(("middle", layer), args[0])
            ),
            block.register_forward_hook(lambda _m, _a, output, layer=layer: hold(("out", layer), output)),
        ]
    try:
        with torch.no_grad():
            for text in ids:
                model.hf(torch.tensor([text], device=device), use_cache=False)
                for layer in range(model.n_layers):
                    before, middle, after = (seen[key, layer] for key in ("in", "middle", "out"))
                    for kind, pair in zip(KINDS, ((before, middle), (middle, after), (before, after))):
                        kept.setdefault((kind, layer), []).append(pair)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for (kind, _), pairs in sorted(kept.items()):
        x, y = (torch.cat([pair[side][0] for pair in pairs]).float() for side in (0, 1))
        found[kind].append(float(cosine_similarity(x, y, dim=-1).mean()))
    return found


def measure(device: str = "cpu", scale: str = "small", rounds: int = 5) -> dict:
    """Tokens per second from texts to the similarities of attention, MLPs and blocks of all layers."""
    rounds = rounds if scale == "small" else 1
    *shape, n, longest = SCALES[scale]
    model = random_llama(device, scale, *shape)
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, shape[-1], rng.integers(longest // 4, longest + 1)).tolist() for _ in range(n)]
    texts = HalfTexts(ids, list(range(n)), [(0, len(row)) for row in ids])
    pairs = [stream_pairs.pair_of(model, kind, layer) for kind in KINDS for layer in range(model.n_layers)]

    def ours() -> np.ndarray:
        context = Context()
        run = stream_pairs.pass_of(model, 0, context)
        sums = stream_pairs.measure(model, texts, pairs, run=run, context=context, label="")
        return 1 - deciding(sums, Config())

    def reference() -> np.ndarray:
        found = all_kept(model, ids, device)
        return np.array([value for kind in KINDS for value in found[kind]])

    apart = float(np.abs(ours() - reference()).max())
    limit = 1e-5 if model.dtype == torch.float32 else 2e-3
    if not apart <= limit:
        raise AssertionError(f"similarities differ by {apart}: no speed is reported")
    tokens = sum(map(len, ids))
    seconds = interleaved({"reference": reference, "ours": ours}, rounds=rounds, device=device)
    held = 4 * shape[1] * 6 * shape[0] * tokens / 2**20
    return row(
        "layer redundancy: similarities of all modules",
        "tokens/s",
        seconds,
        tokens,
        f"max difference {apart:.0e}",
        reference="one text per forward, every hidden state kept",
        texts=n,
        tokens=tokens,
        megabytes_kept_by_the_reference=held,
    )
