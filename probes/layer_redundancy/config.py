"""What a run of layer redundancy may be asked for, and what is refused before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from workbench.core.column_names import column_map, columns_option
from workbench.core.errors import InputError
from workbench.core.long_rows import long_option
from workbench.core.prompt_options import (
    check_prompt_options,
    system_option,
    template_args_option,
    template_option,
    thinking_option,
)
from workbench.core.registry import option
from workbench.core.tables import read_table
from workbench.engine.evaluation import read_choices

if TYPE_CHECKING:
    from workbench.models.model_outline import Facts

BIBTEX = """@article{he2026uncovering,
  title={Uncovering the Redundancy in Transformers via a Unified Study of Layer Dropping},
  author={He, Shwai and Sun, Guoheng and Shen, Zheyu and Li, Ang},
  journal={Transactions on Machine Learning Research},
  year={2026},
  note={arXiv:2406.15786, first published as What Matters in Transformers? Not All Attention is Needed}
}"""
COMPONENTS = ("attention", "mlp", "block", "joint")
ADDS_UP = "stream_adds_up"  # what must hold of a model whose sub-layers are measured


@dataclass(frozen=True)
class Config:
    components: tuple[str, ...] = option(
        COMPONENTS,
        "what is dropped: attention, mlp, block, or joint (attention layers and MLPs, sorted together)",
        choices=COMPONENTS,
    )
    drop_n: tuple[int, ...] = option(
        (),
        "how many modules to drop; none: an eighth, a quarter and a half of those that there are",
        low=1,
        high=100_000,
    )
    random_draws: int = option(20, "sets of random modules that the chosen ones are compared with", low=1, high=10_000)
    also: tuple[str, ...] = option(
        (),
        "further orders: iterative (similarities are measured anew after each module that is dropped) and consecutive "
        "(the stretch of blocks whose ends are most alike)",
        choices=("iterative", "consecutive"),
    )
    tokens: str = option(
        "all",
        "tokens whose similarity decides what is dropped: all (as the official code has it), without_first (not the "
        "first of a text) or without_sinks (none that carries a massive activation)",
        choices=("all", "without_first", "without_sinks"),
    )
    pooling: str = option(
        "tokens",
        "what decides: the mean over the tokens of all texts together (as the official code has it), or over texts of "
        "their means",
        choices=("tokens", "texts"),
    )
    limit: int = option(256, "texts to use: one half for similarities, the other for losses", low=2, high=1_000_000)
    loss_rows: int = option(64, "texts of the second half whose losses are measured, at most", low=1, high=1_000_000)
    max_length: int = option(2048, "longest text in tokens; longer ones are cut", low=2, high=10_000_000)
    min_length: int = option(2, "texts with fewer tokens are left out", low=2, high=10_000_000)
    choices: str = option(
        "",
        "multiple-choice file (prompt, choices, answer: the right one's number from 0) that is answered with modules "
        "dropped, too",
        file=True,
    )
    speed_length: int = option(512, "tokens of the text for which speed is counted and timed", low=1, high=10_000_000)
    timing_rounds: int = option(
        5, "passes of every set of dropped modules that are timed, into speed.json; 0: none", low=0, high=10_000
    )
    long: str = long_option("cut", cut=True)
    columns: tuple[str, ...] = columns_option("text:content")
    template: str = template_option("raw", later=False)
    system: str = system_option(later=False)
    thinking: str = thinking_option(later=False)
    template_args: tuple[str, ...] = template_args_option(later=False)
    max_tokens: int = option(
        0,
        "tokens in one batch; 0: 768 for each thread of a CPU, whose caches are small, and what has room on a GPU",
        low=0,
        high=10_000_000,
    )

    def __post_init__(self) -> None:
        column_map(self.columns, ("text",))
        check_prompt_options(self)
        if not self.components:
            raise ValueError(f"components names nothing to drop; choose from {', '.join(COMPONENTS)}.")
        if self.min_length > self.max_length:
            raise ValueError(
                f"no text can have at least min_length={self.min_length} tokens when it is cut at "
                f"max_length={self.max_length}."
            )
        if "consecutive" in self.also and "block" not in self.components:
            raise ValueError("also=consecutive drops blocks; add block to components.")

    @property
    def parts(self) -> tuple[str, ...]:
        """The sub-layers of blocks that are asked for."""
        return tuple(kind for kind in ("attention", "mlp") if {kind, "joint"} & set(self.components))


def read_texts(config: Config, data: Path | None, tell: Callable[[str], None] | None = None) -> pl.DataFrame:
    """The rows of a text file, with the column that the config names."""
    names = column_map(config.columns, ("text",))
    return read_table(data, required=("text",), columns=names, what="text", tell=tell)  # pyright: ignore[reportArgumentType]


def validate(config: Config, data: Path | None, facts: Facts | None = None) -> None:
    """Read the files that the config names, and ask what the architecture allows: what cannot work is said before a
    model is loaded."""
    reason = facts.why_not((ADDS_UP,)) if facts is not None and config.parts else None
    if reason is not None:
        raise InputError(
            f"layer-redundancy cannot measure {' and '.join(config.parts)} of this model: {reason.rstrip('.')}; "
            f"components=block measures blocks alone."
        )
    frame = read_texts(config, data)
    if frame.height < 2:
        raise InputError(
            f"{data} has one text; similarities and losses are measured on different ones, so give at least 2, and 10 "
            f"for intervals."
        )
    if config.choices:
        read_choices(config.choices)
