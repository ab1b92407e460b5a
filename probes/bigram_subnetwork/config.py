"""What a run of the bigram subnetwork may be asked for, and what is refused before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from workbench.core.column_names import column_map, columns_option
from workbench.core.errors import InputError
from workbench.core.registry import option
from workbench.core.tables import read_table

BIBTEX = """@inproceedings{chang2025bigram,
  title={Bigram Subnetworks: Mapping to Next Tokens in Transformer Language Models},
  author={Chang, Tyler A. and Bergen, Benjamin K.},
  booktitle={Advances in Neural Information Processing Systems},
  year={2025},
  note={arXiv:2504.15471}
}
@inproceedings{savarese2020winning,
  title={Winning the Lottery with Continuous Sparsification},
  author={Savarese, Pedro and Silva, Hugo and Maire, Michael},
  booktitle={Advances in Neural Information Processing Systems},
  year={2020},
  note={arXiv:1912.04427}
}"""

PAPER_STEPS, PAPER_RATE, PAPER_SHARPENING = 15_000, 5e-5, 1.001
FEWEST_TEXTS = 2  # one to search on, one to judge on


@dataclass(frozen=True)
class Config:
    penalty: float = option(
        10.0, "λ: how much the mean of the mask weighs beside the cross-entropy; larger keeps fewer", low=0, high=1e9
    )
    steps: int = option(PAPER_STEPS, "optimiser steps of the search at most", low=1, high=10_000_000)
    batch: int = option(32, "stretches of text in one step", low=1, high=100_000)
    length: int = option(128, "tokens of a stretch of text; longer texts are cut into several", low=2, high=1_000_000)
    rate: float = option(
        0.0, "learning rate of AdamW; 0: 0.75 / steps, which is the paper's 5e-5 at its 15000 steps", low=0, high=1e3
    )
    sharpening: float = option(
        0.0,
        "what β is multiplied by at each step; 0: what takes β as far in `steps` as the paper's 1.001 does in 15000",
        low=0,
        high=1e3,
    )
    attempts: int = option(3, "searches at most, where the loss of one is unstable", low=1, high=100)
    mask: str = option(
        "",
        "weight mask to judge in place of a search: subnetwork.safetensors of a run, or a published .pickle",
        file=True,
    )
    reference: str = option("", "text to count bigrams in; none: the texts that the search reads", file=True)
    held_out: float = option(0.2, "share of the texts that nothing but the evaluation reads", low=0.01, high=0.9)
    limit: int = option(500_000, "texts to use", low=FEWEST_TEXTS)
    eval_texts: int = option(1000, "held-out texts to evaluate on at most", low=1)
    unseen: str = option(
        "drop",
        "tokens that the counts give no probability: drop them, or take the largest finite surprisal (max)",
        choices=("drop", "max"),
    )
    random_draws: int = option(20, "random masks of the same size in every matrix", low=1, high=10_000)
    layer_ablation: bool = option(
        True, "judge the subnetwork without its part in each layer, beside as many of its weights drawn at random"
    )
    layer_draws: int = option(2, "random draws beside each layer", low=1, high=1000)
    draws: int = option(1000, "bootstrap draws (over texts) for the intervals", low=100, high=100_000)
    rotation: bool = option(
        False, "rotations of ridge maps from each layer's states to the input embeddings and to the last states (§5.1)"
    )
    rotation_tokens: int = option(128_000, "tokens that a ridge map is fitted on at most", low=10, high=1_000_000_000)
    columns: tuple[str, ...] = columns_option("text:content")
    max_tokens: int = option(
        0, "tokens in one batch of a pass; 0: what suits the device, and 2048 where gradients are taken", low=0
    )

    def __post_init__(self) -> None:
        column_map(self.columns, ("text",))
        if 0 < self.sharpening < 1:
            raise ValueError(f"sharpening={self.sharpening:g} would make the masks softer; it is at least 1, or 0")

    @property
    def step_size(self) -> float:
        """The learning rate of this run."""
        return self.rate or PAPER_RATE * PAPER_STEPS / self.steps

    @property
    def factor(self) -> float:
        """What β is multiplied by at each step of this run."""
        return self.sharpening or math.exp(PAPER_STEPS * math.log(PAPER_SHARPENING) / self.steps)


def read_texts(config: Config, data: Path | None, tell: Callable[[str], None] | None = None) -> pl.DataFrame:
    """The rows of a text file, with the column that the config names."""
    names = column_map(config.columns, ("text",))
    return read_table(data, required=("text",), columns=names, what="text", tell=tell)


def validate(config: Config, data: Path | None) -> None:
    """Read the files that the config names: what cannot work is said before a model is loaded."""
    frame = read_texts(config, data)
    if frame.height < FEWEST_TEXTS:
        raise InputError(f"{data} has {frame.height} text; one is searched on and another judged on, so give two.")
    if config.reference:
        read_table(config.reference, required=("text",), what="reference text")
    if config.mask:
        check_mask_file(Path(config.mask))


def check_mask_file(path: Path) -> None:
    """Raise InputError for a file that cannot be a weight mask, by its first bytes: torch is not needed."""
    from workbench.core.paths import user_path

    path = user_path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(f"The weight mask '{path}' cannot be read: {error.strerror or error}.") from None
    if start[:1] != b"\x80" and start[8:9] != b"{":
        raise InputError(f"{path} is no weight mask; give the subnetwork.safetensors of a run or a published .pickle.")
