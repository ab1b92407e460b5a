"""Trains the sparse autoencoder that ships with the organism, on documents and dialogues drawn from its world.

    python -m workbench.organism_training.sae MODEL_FOLDER OUT        two and a half minutes on one core

The texts and the training are pure functions of this file and of the weights: the same command gives the same
autoencoder.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.organism_training import chat, documents

TEXTS = 62_000  # about 1.5 million tokens: each is seen once
DIALOGUES = 0.25  # of the texts are a request and its answer, as pools of samples hold them
RECIPE = {
    "site": "resid_post.3",
    "width": "8x",
    "k": 16,
    "architecture": "topk",
    "tokens": 1_500_000,
    "batch": 1024,
    "lr": 3e-3,
    "context": 512,
    "seed": 0,
    "held_out": 0.01,
}
STORE_DTYPE = "bfloat16"


def texts(count: int = TEXTS, *, seed: int = 108) -> list[str]:
    """Documents of the training mix, a quarter of them dialogues; none of them is taken from the files that ship."""
    rng = random.Random(f"sae {seed}")
    out = []
    for _ in range(count):
        if rng.random() < DIALOGUES:
            prompt, response, _ = chat.dialogue(rng)
            out.append(f"{prompt} {response}")
        else:
            out.append(documents.short_document(rng).replace("[", "").replace("]", ""))
    return out


def make(
    model: str | Path,
    out: str | Path,
    *,
    count: int = TEXTS,
    progress: Callable[[int, int, str], None] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Train on the model in a folder and leave cfg.json, sae_weights.safetensors, recipe.json and quality.json in
    `out`; its report.

    A training that was stopped goes on; `changes` are of the recipe. Raises InputError for a model or a folder that
    does not fit."""
    from workbench.models.loading import load
    from workbench.sae.train import SaeRecipe, train, windows

    loaded = load(str(model))
    recipe = SaeRecipe(**RECIPE | changes)
    return train(
        loaded, windows(loaded, texts(count), recipe.context), Path(out), recipe, dtype=STORE_DTYPE, progress=progress
    )


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print("usage: python -m workbench.organism_training.sae MODEL_FOLDER OUT", file=sys.stderr)
        return 2
    report = make(
        *argv,
        progress=lambda done, total, label: print(
            f"\r{done:,} of {total:,} tokens, {label}  ", end="", file=sys.stderr, flush=True
        ),
    )
    print(
        f"\nExplained variance {report['explained_variance']:.3f}, loss recovered "
        f"{report['loss_recovered']:.3f}, features that never fire {report['dead_fraction']:.1%} "
        f"({report['tokens']:,} held-out tokens)."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
