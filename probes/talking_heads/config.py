"""What a person can set."""

from __future__ import annotations

import re
from dataclasses import dataclass

from workbench.core.column_names import column_map, columns_option
from workbench.core.long_rows import long_option
from workbench.core.prompt_options import (
    check_prompt_options,
    system_option,
    template_args_option,
    template_option,
    thinking_option,
)
from workbench.core.registry import option

REPEATED = "repeated"  # the task that is made of the tokenizer's words, for any model
COLUMNS = ("prompt", "target")
MORE_COLUMNS = ("task", "others", "answer", "wrong", "group", "size")
HEAD = re.compile(r"(\d+)\.(\d+)")
BIBTEX = """
@inproceedings{merullo2024talking,
  title = {Talking Heads: Understanding Inter-Layer Communication in Transformer Language Models},
  author = {Merullo, Jack and Eickhoff, Carsten and Pavlick, Ellie},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2024},
  eprint = {2406.09519},
  archivePrefix = {arXiv}
}
@article{elhage2021mathematical,
  title = {A Mathematical Framework for Transformer Circuits},
  author = {Elhage, Nelson and Nanda, Neel and Olsson, Catherine and others},
  journal = {Transformer Circuits Thread},
  year = {2021},
  url = {https://transformer-circuits.pub/2021/framework/index.html}
}
"""


@dataclass(frozen=True)
class Config:
    norms: str = option(
        "folded",
        "folded: gains of norms go into the weights beside them, and the mean of the stream is taken off where the "
        "model's norms do that; raw: the weights as they are",
        choices=("folded", "raw"),
    )
    offsets: tuple[int, ...] = option(
        (0,),
        "tokens between query and key over which Q- and K-scores are averaged, in models with rotary positions; 0: the "
        "weights before rotation",
        low=0,
        high=100_000,
    )
    keep: int = option(200, "rows of the table of channels, the strongest of all", low=1, high=1_000_000)
    outlier: float = option(
        6.0, "least z, against random directions and against the other components, of a channel", low=0, high=1000
    )
    null_draws: int = option(2000, "random directions of the null", low=100, high=1_000_000)
    tasks: tuple[str, ...] = option(
        ("all",),
        "tasks on which channels are ablated: names in the column task of the data file, repeated for words said "
        "twice, all, or none",
    )
    receivers: tuple[str, ...] = option(
        ("auto",),
        "receiving heads as layer.head; auto: those whose attention does the task best on the half of the prompts that "
        "chooses",
    )
    receivers_each: int = option(2, "receiving heads of a task, where they are chosen", low=1, high=1000)
    ablate: int = option(
        3, "strongest channels into the queries and keys of a receiver that are ablated", low=1, high=1000
    )
    random_draws: int = option(
        20, "other components of the same sending head that are removed for comparison, as many as there are", low=1
    )
    sweep: str = option("list", "the task on which the strongest channels are scaled; none: no sweep")
    scales: tuple[float, ...] = option(
        (-2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0), "factors of the coordinates in the sweep", low=-1000, high=1000
    )
    together: int = option(3, "channels of a receiver that are scaled together in the sweep", low=1, high=1000)
    sequences: int = option(40, "sequences of words said twice", low=2, high=100_000)
    limit: int = option(0, "prompts of each task at most; 0: all", low=0, high=1_000_000)
    template: str = template_option("raw", later=False)
    system: str = system_option(later=False)
    thinking: str = thinking_option("off", later=False)
    template_args: tuple[str, ...] = template_args_option(later=False)
    columns: tuple[str, ...] = columns_option("prompt:text,target:word")
    max_tokens: int = option(8192, "tokens in one batch of prompts", low=1)
    long: str = long_option(cut=False)

    def __post_init__(self) -> None:
        for name, example in (("offsets", "0"), ("tasks", "all"), ("receivers", "auto"), ("scales", "0,1,2")):
            if not getattr(self, name):
                raise ValueError(f"'{name}' is empty; give at least one, as in --set {name}={example}.")
        for head in self.receivers:
            if self.receivers != ("auto",) and not HEAD.fullmatch(head):
                raise ValueError(f"'receivers' takes heads as layer.head or auto, not '{head}'.")
        for word in ("all", "none"):
            if word in self.tasks and len(self.tasks) > 1:
                raise ValueError(f"'tasks' has {word} and others; give {word} alone, or the names.")
        if self.receivers != ("auto",) and any(int(HEAD.fullmatch(head)[1]) == 0 for head in self.receivers):  # pyright: ignore[reportOptionalSubscript]
            raise ValueError("'receivers' has a head of layer 0, which no head comes before.")
        column_map(self.columns, (*COLUMNS, *MORE_COLUMNS))
        check_prompt_options(self)

    @property
    def chosen_receivers(self) -> list[tuple[int, int]] | None:
        """The receivers that are given; None where they are chosen."""
        if self.receivers == ("auto",):
            return None
        pairs = [head.split(".") for head in self.receivers]
        return [(int(layer), int(head)) for layer, head in pairs]
