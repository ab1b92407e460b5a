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

BIBTEX = """@inproceedings{wu2025retrieval,
  title={Retrieval Head Mechanistically Explains Long-Context Factuality},
  author={Wu, Wenhao and Wang, Yizhong and Xiao, Guangxuan and Peng, Hao and Fu, Yao},
  booktitle={International Conference on Learning Representations},
  year={2025},
  note={arXiv:2404.15574}
}
@inproceedings{zhang2025query,
  title={Query-Focused Retrieval Heads Improve Long-Context Reasoning and Re-ranking},
  author={Zhang, Wuwei and Yin, Fangcong and Yen, Howard and Chen, Danqi and Ye, Xi},
  booktitle={Conference on Empirical Methods in Natural Language Processing},
  year={2025},
  note={arXiv:2506.09944}
}"""
COLUMNS = ("needle", "question", "answer")
SLOTS = ("context", "question")
ESSAYS = Path(__file__).parents[1] / "essays.txt"
NEEDLES = Path(__file__).parent / "material" / "needles.jsonl"
SHIPPED = 12  # of the needles that ship with a model, how many are used unless told otherwise


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
        "prompt lengths in tokens; auto: 20 from 1,000 (or a fifth of the longest) to 50,000 or the model's context",
        choices=("auto",),
        low=8,
        high=10_000_000,
    )
    depths: tuple[float, ...] = option(
        (0, 11, 22, 33, 44, 56, 67, 78, 89, 100), "needle depths in percent of the haystack", low=0, high=100
    )
    max_new_tokens: int = option(50, "longest answer in tokens", low=1, high=100_000)
    threshold: float = option(0.1, "score from which a head counts as a retrieval head", low=0, high=1)
    score: str = option(
        "set",
        "set: share of the answer's tokens copied (Eq. 1); count: copying steps over the answer's length "
        "(official code); attention: attention from the question to the passage that answers it, minus that of a null "
        "question, nothing generated (QRHead)",
        choices=("set", "count", "attention"),
    )
    copying: str = option(
        "none",
        "with score=attention, the copying score that is computed beside it, to compare the heads and to mask them: "
        "set or count; none: nothing is generated",
        choices=("none", "set", "count"),
        later=True,
    )
    attention_from: str = option(
        "question",
        "with score=attention, the tokens whose attention is read: those of the question (paper), or the whole tail "
        "after the context (official code)",
        choices=("question", "tail"),
        later=True,
    )
    passages: str = option(
        "",
        "with score=attention, a file of questions with their passages (question, passages, gold: the number of the "
        "one that answers, from 0) in place of the needles; empty: the needles",
        file=True,
        later=True,
    )
    keep: str = option(
        "recalled_by_reading",
        "recalled_by_reading: score only trials that the model answers, and not without the needle too; recalled: all "
        "that it answers (official code); all: every trial (Eq. 1)",
        choices=("recalled_by_reading", "recalled", "all"),
    )
    recall_threshold: float = option(0.5, "ROUGE-1 recall above which a trial counts as answered", low=0, high=1)
    template: str = template_option(
        "default",
        slots=SLOTS,
        more="default: the text that a model ships with, else auto; paper: the paper's text, as raw",
        later=False,
    )
    system: str = system_option()
    thinking: str = thinking_option("off")
    template_args: tuple[str, ...] = template_args_option()
    stop: tuple[str, ...] = option(
        ("default",),
        "the answer ends after a token that contains one of these, white space only once it has a word; default: a "
        "line break, or the model's own",
    )
    mask_k: tuple[int, ...] = option(
        (2, 5, 10, 15, 20, 30, 50, 100),
        "how many top heads to mask; numbers beyond half of the model's heads are left out, those beyond the "
        "heads with a score become these; 0: no masking test",
        low=0,
        high=1_000_000,
    )
    ablation: str = option(
        "uniform",
        "what masking does to a head: uniform attention (official code), zero output, mean output",
        choices=("uniform", "zero", "mean"),
    )
    mask_phase: str = option(
        "decode",
        "decode: mask from the last prompt token on (official code); all: mask the prompt too",
        choices=("decode", "all"),
    )
    random_draws: int = option(
        20, "random sets of heads of the same layers to mask for comparison, as many as there are", low=1, high=10_000
    )
    mask_on: str = option(
        "held_out",
        "held_out: choose the heads on half of the answered needles, mask them on the other half, and the other way "
        "round; same: mask where they were chosen",
        choices=("held_out", "same"),
    )
    mask_trials: int = option(60, "how many answered trials the masking test uses, evenly over the grid", low=1)
    tasks: str = option(
        "",
        "a file of questions (question, answer or answers, context and group where there are) that are answered under "
        "the masks of mask_k, with the heads that the needles choose; empty: none",
        file=True,
        later=True,
    )
    task_metric: str = option(
        "f1",
        "how the answers of the tasks are judged: exact match or F1 of words (both as in SQuAD), or whether the last "
        "number is right",
        choices=("exact", "f1", "last_number"),
        later=True,
    )
    chain_of_thought: bool = option(
        False, "ask the tasks to reason before they answer; the answer is what is said last", later=True
    )
    task_tokens: int = option(200, "longest response to a task in tokens", low=1, high=100_000, later=True)
    resample: str = option(
        "needles",
        "what is independent, for intervals: needles (trials of one needle belong together) or trials",
        choices=("needles", "trials"),
    )
    draws: int = option(
        1000,
        "bootstrap resamples, for the intervals that have no formula (counts, correlations)",
        low=100,
        high=100_000,
    )
    max_tokens: int = option(65536, "tokens in one batch of prompts", low=1)

    def __post_init__(self) -> None:
        column_map(self.columns, COLUMNS)
        for name, example in (("lengths", "1000,2000"), ("depths", "0,50,100")):
            if not getattr(self, name):
                raise ValueError(f"'{name}' is empty; give at least one number, as in --set {name}={example}.")
        if self.score != "attention":
            for name, default in (("copying", "none"), ("attention_from", "question"), ("passages", "")):
                if getattr(self, name) != default:
                    raise ValueError(f"'{name}' is read with score=attention only; set that too, or leave it out.")
        if self.passages and self.copying != "none":
            raise ValueError("'copying' needs needles, and 'passages' takes their place; leave out one of the two.")
        for name, default in (("task_metric", "f1"), ("chain_of_thought", False), ("task_tokens", 200)):
            if not self.tasks and getattr(self, name) != default:
                raise ValueError(f"'{name}' is of the tasks, and there are none; give tasks, or leave it out.")
        if self.tasks and not self.masks:
            raise ValueError(
                "'tasks' are answered under a masking, and this config has none; give mask_k (and, with "
                "score=attention, copying), or leave out tasks."
            )
        check_prompt_options(self, slots=SLOTS, known=("default", "paper"))
        if "{question}" in self.template.partition("{context}")[0]:
            raise ValueError("'template' has {question} before {context}; the question comes after the context.")

    @property
    def generates(self) -> bool:
        """Whether the run answers questions: it does but for score=attention alone."""
        return self.score != "attention" or self.copying != "none"

    @property
    def masks(self) -> bool:
        """Whether the run has a masking test."""
        return self.generates and any(self.mask_k)

    @property
    def copied(self) -> str:
        """The copying score that is computed, "set" or "count"."""
        return self.score if self.score != "attention" else self.copying
