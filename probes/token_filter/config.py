"""What a run can be told, the paper to cite, and the files that ship."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.core.column_names import column_map, columns_option
from workbench.core.prompt_options import (
    check_prompt_options,
    system_option,
    template_args_option,
    template_option,
    thinking_option,
)
from workbench.core.registry import option

BIBTEX = """@misc{shi2024gemfilter,
  title={Discovering the Gems in Early Layers: Accelerating Long-Context {LLM}s with 1000x Input Token Reduction},
  author={Shi, Zhenmei and Ming, Yifei and Nguyen, Xuan-Phi and Liang, Yingyu and Joty, Shafiq},
  year={2024},
  note={arXiv:2409.17422}
}"""
COLUMNS = ("needle", "question", "answer")
SLOTS = ("context", "question")
ESSAYS = Path(__file__).parents[1] / "essays.txt"
DEFAULT = "probes.retrieval_heads:material/needles.jsonl"  # the needles of any model, as the registry names them
NEEDLES = Path(__file__).parents[1] / "retrieval_heads" / "material" / "needles.jsonl"
SHIPPED = 12  # of the needles that ship with a model, how many are used unless told otherwise
PLACES = ("none", "bos", "head", "question")


@dataclass(frozen=True)
class Config:
    needles: int | str = option(
        "default",
        "needle file (needle, question, answer), 'default' for --data or the first 12 that ship, or how many to use",
        low=1,
        high=1_000_000,
        file=True,
    )
    columns: tuple[str, ...] = columns_option("answer:real_needle")
    haystack: str = option(
        "default", "text file that the needles are hidden in; 'default' ships with the project", file=True
    )
    lengths: str | tuple[int, ...] = option(
        "auto",
        "prompt lengths in tokens; auto: 4 from 8,192 (or a third of the longest) to 50,000 or the model's context",
        choices=("auto",),
        low=8,
        high=10_000_000,
    )
    depths: tuple[float, ...] = option(
        (0, 25, 50, 75, 100), "needle depths in percent of the haystack", low=0, high=100
    )
    k: str | tuple[int, ...] = option(
        "auto",
        "how many tokens are kept, several numbers for several filters; auto: 1024 (paper), or a quarter of the "
        "shortest prompt where that is less",
        choices=("auto",),
        low=1,
        high=10_000_000,
    )
    kernel: int = option(5, "tokens of the window that scores are averaged over, odd; 1: none", low=1, high=1001)
    score: str = option(
        "products",
        "products: plain products of the last query and the keys, summed over heads (official code); softmax: "
        "attention rows summed over heads",
        choices=("products", "softmax"),
    )
    force_keep: tuple[str, ...] = option(
        ("none",),
        "tokens that are kept whatever their scores, in every filter and every random set: none (official code), bos, "
        "head (all that stands before the context), question (all that follows it)",
        choices=PLACES,
    )
    filter_layer: int | str = option(
        "chosen",
        "chosen: the layer with the highest needle recall, on needles that it is not judged by; or a layer, from 0",
        choices=("chosen",),
        low=0,
        high=10_000,
    )
    answer_trials: int = option(
        60, "how many trials are answered from the kept tokens, evenly over the grid; 0: none", low=0, high=1_000_000
    )
    random_draws: int = option(20, "random sets of tokens that stand beside the filter", low=1, high=10_000)
    max_new_tokens: int = option(50, "longest answer in tokens", low=1, high=100_000)
    recall_threshold: float = option(0.5, "ROUGE-1 recall above which a trial counts as answered", low=0, high=1)
    retrieval: str = option(
        "answer",
        "what the recall of the layers is compared with: answer (the share of the given answer that each head would "
        "copy, on the same prompts), the folder of a run with a score of every head, or none",
        file=True,
    )
    kept_sets: int = option(
        60, "of how many trials the selected positions are kept, for every layer, evenly over the grid", low=0
    )
    template: str = template_option(
        "default",
        slots=SLOTS,
        more="default: the text that a model ships with, else auto; paper: the text of the needle test, as raw",
        later=False,
    )
    system: str = system_option(later=False)
    thinking: str = thinking_option("off", later=False)
    template_args: tuple[str, ...] = template_args_option(later=False)
    stop: tuple[str, ...] = option(
        ("default",),
        "the answer ends after a token that contains one of these, white space only once it has a word; default: a "
        "line break, or the model's own",
    )
    draws: int = option(1000, "bootstrap resamples, for the correlation, which has no formula", low=100, high=100_000)
    max_tokens: int = option(65536, "tokens in one batch of prompts", low=1, high=1_000_000_000)

    def __post_init__(self) -> None:
        column_map(self.columns, COLUMNS)
        examples = {"lengths": "1000,2000", "depths": "0,50,100", "k": "512,1024", "force_keep": "none"}
        for name, example in examples.items():
            if not getattr(self, name):
                raise ValueError(f"'{name}' is empty; give at least one value, as in --set {name}={example}.")
        if self.kernel % 2 == 0:
            raise ValueError(f"'kernel' is {self.kernel}; a window needs a middle, so give an odd number.")
        if "none" in self.force_keep and len(set(self.force_keep)) > 1:
            raise ValueError("'force_keep' has none beside other places; leave none out.")
        if not self.retrieval:
            raise ValueError("'retrieval' is empty; give answer, none or the folder of a run.")
        check_prompt_options(self, slots=SLOTS, known=("default", "paper"))
        if "{question}" in self.template.partition("{context}")[0]:
            raise ValueError(
                "'template' has {question} before {context}; the last query asks for what the question named, so it "
                "comes after the context."
            )

    @property
    def forced(self) -> frozenset[str]:
        """The places whose tokens are always kept."""
        return frozenset(self.force_keep) - {"none"}
