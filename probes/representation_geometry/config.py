"""What a run of representation geometry may be asked for, and what is refused before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from probes.representation_geometry.trajectory import read_task
from workbench.core.cells import label_column
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
from workbench.core.sinks import sinks_option
from workbench.core.tables import read_table
from workbench.engine.evaluation import read_choices

BIBTEX = """@inproceedings{li2025tracing,
  title={Tracing the Representation Geometry of Language Models from Pretraining to Post-training},
  author={Li, Melody Zixuan and Agrawal, Kumar Krishna and Ghosh, Arna and Teru, Komal Kumar and Santoro, Adam and Lajoie, Guillaume and
          Richards, Blake A.},
  booktitle={Advances in Neural Information Processing Systems},
  year={2025},
  note={arXiv:2509.23024}
}
@inproceedings{garrido2023rankme,
  title={RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their Rank},
  author={Garrido, Quentin and Balestriero, Randall and Najman, Laurent and LeCun, Yann},
  booktitle={International Conference on Machine Learning},
  year={2023}
}"""  # noqa: E501


@dataclass(frozen=True)
class Config:
    layers: str = option("last", "last: the last layer, as in the paper; all: every layer", choices=("last", "all"))
    final: str = option(
        "norm",
        "the last layer's states: norm (after the final norm, as in the paper) or residual (before it)",
        choices=("norm", "residual"),
    )
    token: int | str = option(
        "last",
        "the sample of a sequence: its last token, the mean over its tokens, after_first: the mean over all but the "
        "first, a position (negative from the end), or, where a template stands around it, text: the last token of the "
        "text itself",
        choices=("last", "mean", "after_first", "text"),
    )
    sinks: str = sinks_option(
        "the mean (token=mean) and of curvature; a position that is one is read and warned of",
        as_before=lambda config: config.sinks == "keep" or (config.token == "last" and "curvature" not in config.also),
    )
    checkpoints: tuple[str, ...] = option(
        (),
        "checkpoints to follow: folders, a folder of step* or checkpoint-* folders, organism or hub names "
        "(name@revision); name@* for all of an organism; none: the model alone",
        file=True,
    )
    fit_range: tuple[int, int] = option((12, 100), "first and last rank of the power-law fit", low=1, high=10_000_000)
    fit_weights: str = option(
        "rank", "rank: weights 1/rank, as in the official code; none: ordinary least squares", choices=("rank", "none")
    )
    max_length: int = option(512, "longest sequence in tokens; longer texts are cut", low=2)
    min_length: int = option(1, "texts with fewer tokens are left out", low=1)
    long: str = long_option("cut", cut=True)
    columns: tuple[str, ...] = columns_option("text:content")
    template: str = template_option("raw")
    system: str = system_option()
    thinking: str = thinking_option()
    template_args: tuple[str, ...] = template_args_option()
    limit: int = option(15000, "sequences to use", low=2)
    draws: int = option(200, "bootstrap draws (over texts) for the intervals; 0: none", low=0, high=100_000)
    curve: bool = option(
        True,
        "finite-sample curve: the same numbers at n/8, n/4 and n/2 sequences, and RankMe and alpha at infinitely many",
    )
    ablate: tuple[int, ...] = option(
        (10, 50), "how many top eigen-directions to remove or keep; none: no ablation", low=1, high=1_000_000
    )
    random_draws: int = option(
        20, "sets of random directions that the eigen-directions are compared with", low=1, high=10_000
    )
    loss_rows: int = option(
        64, "sequences for the next-token loss, the ablations and the memorisation curve; 0: none", low=0
    )
    choices: str = option(
        "",
        "multiple-choice file (prompt, choices, answer: the right one's number from 0) to score under the ablations",
        file=True,
    )
    ngram: str = option(
        "", "text to fit an n-gram model on: correlation of its token probabilities with the model's", file=True
    )
    ngram_order: int = option(5, "longest n-gram", low=1, high=1000)
    task: str = option(
        "", "table with a column `step` and numbers per checkpoint, to correlate the geometry with", file=True
    )
    map: tuple[str, ...] = option(
        ("pca",), "maps of the last layer's features in two dimensions", choices=("pca", "umap")
    )
    map_rows: int = option(2000, "sequences on a map", low=3, high=100_000)
    colour: str = option("", "column of the data file that colours the maps")
    bos: str = option(
        "auto",
        "BOS in front of a bare text: auto (where the tokenizer puts one) or leave_out",
        choices=("auto", "leave_out"),
        later=True,
    )
    also: tuple[str, ...] = option(
        (),
        "what else is measured of the texts' states: dimension (intrinsic, from distances between neighbours), "
        "similarity (CKA between layers and between checkpoints), cosine (mean over pairs of texts), curvature (angles "
        "between steps from token to token; two more passes)",
        choices=("dimension", "similarity", "cosine", "curvature"),
        later=True,
    )
    also_rows: int = option(
        1000, "sequences for `also`, whose states are held; chosen at random", low=10, high=10_000, later=True
    )
    neighbours: int = option(
        20, "nearest neighbours for the intrinsic dimension, beside the two of two-NN", low=3, high=1000, later=True
    )
    max_tokens: int = option(
        0, "tokens in one batch; 0: 768 for each thread of a CPU, whose caches are small, 16384 on a GPU", low=0
    )

    def __post_init__(self) -> None:
        column_map(self.columns, ("text",))
        check_prompt_options(self)
        if not self.fit_range[0] < self.fit_range[1]:
            raise ValueError(f"fit_range must grow, not {self.fit_range[0]},{self.fit_range[1]}.")
        if self.min_length > self.max_length:
            raise ValueError(
                f"no text can have at least min_length={self.min_length} tokens when it is cut at "
                f"max_length={self.max_length}."
            )
        if self.bos == "leave_out" and self.template != "raw":
            raise ValueError(
                "bos=leave_out is of bare texts; a template says itself what stands in front: template=raw."
            )
        if "similarity" in self.also and self.layers == "last" and not self.checkpoints:
            raise ValueError("also=similarity compares layers or checkpoints; set layers=all or name checkpoints.")
        if "dimension" in self.also and min(self.limit, self.also_rows) < self.fewest_for_dimension:
            raise ValueError(
                f"neighbours={self.neighbours} needs {self.fewest_for_dimension} texts (half of them are looked at "
                f"alone), and limit and also_rows leave {min(self.limit, self.also_rows)}; ask for fewer neighbours or "
                f"more texts."
            )

    @property
    def fewest_for_dimension(self) -> int:
        """Texts that an intrinsic dimension needs: its neighbours in half of them."""
        return 2 * (self.neighbours + 1)


def read_texts(config: Config, data: Path | None, tell: Callable[[str], None] | None = None) -> pl.DataFrame:
    """The rows of a text file, with the column that the config names."""
    names = column_map(config.columns, ("text",))
    return read_table(data, required=("text",), columns=names, what="text", tell=tell)


def validate(config: Config, data: Path | None) -> None:
    """Read the files that the config names: what cannot work is said before a model is loaded."""
    frame = read_texts(config, data)
    if config.colour and config.colour not in frame.columns:
        raise InputError(
            f"{data} has no column '{config.colour}' to colour the maps by; it has {', '.join(frame.columns)}."
        )
    if config.colour:
        label_column(frame[config.colour], str(data))
    if "dimension" in config.also and frame.height < config.fewest_for_dimension:
        raise InputError(
            f"{data} has {frame.height} texts, and neighbours={config.neighbours} needs {config.fewest_for_dimension} "
            f"(half of them are looked at alone); ask for fewer neighbours or give more texts."
        )
    if config.choices:
        read_choices(config.choices)
    if config.ngram:
        read_table(config.ngram, required=("text",), what="n-gram text")
    if config.task:
        read_task(config.task)
