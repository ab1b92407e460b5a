"""What a run of the branching factor may be asked for, and what is refused before a model is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from probes.branching_factor.estimators import BIAS, ESTIMATORS, POOLS
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
from workbench.core.questions import alternatives
from workbench.core.registry import option
from workbench.core.tables import read_table
from workbench.engine.sampling import Rule

BIBTEX = """@article{yang2026branching,
  title = {{LLM} Probability Concentration: How Alignment Shrinks the Generative Horizon},
  author = {Yang, Chenghao and Li, Sida and Holtzman, Ari},
  journal = {Transactions on Machine Learning Research},
  year = {2026},
  note = {arXiv:2506.17871}
}"""
COLUMNS = ("prompt", "answer", "messages")
MOST_TOKENS = 10**10  # of all samples; each keeps about 24 bytes
STUDIES = ("none", "pair", "complexity", "nudging", "resampling", "decoding", "verbalised", "hyperfitted")
STUDIES += ("random_prefix", "feedback", "sentences")
BARE = {  # studies that work on the bare text of a prompt, which a talk of several turns has not
    "complexity": "shortens the text of a prompt",
    "verbalised": "writes a request around the text of a prompt",
    "hyperfitted": "reads the text of a prompt without a template",
}
COMPARING = ("pair", "nudging", "complexity", "hyperfitted")  # studies that take a second model


@dataclass(frozen=True)
class Config:
    samples: int = option(50, "continuations per prompt (M)", low=1, high=100_000)
    max_new_tokens: int = option(256, "longest continuation, in tokens", low=1, high=1_000_000)
    temperature: float = option(1.0, "of the sampling distribution; 0 takes the likeliest token", low=0, high=1000)
    top_p: float = option(0.9, "nucleus: smallest set of tokens with this probability; 1 keeps all", low=0, high=1)
    top_k: int = option(0, "keep the k likeliest tokens; 0 keeps all", low=0, high=10_000_000)
    min_p: float = option(0.0, "keep tokens at least this likely relative to the likeliest; 0 keeps all", low=0, high=1)
    estimator: str = option(
        "entropy",
        "what `bf` is: entropy, nll (likelihood), or compat (the official code's mixture)",
        choices=ESTIMATORS,
    )
    bias: str = option(
        "jackknife",
        "correct bf for the bias of few samples (jackknife; not for compat), or give it as the paper does (plain)",
        choices=BIAS,
    )
    pool: str = option("tokens", "weigh samples by their tokens, or all the same", choices=POOLS)
    study: str = option("none", "what is compared", choices=STUDIES)
    compare: str = option(
        "",
        "second model, for the studies pair and nudging (the aligned sibling) and, if wanted, complexity, hyperfitted",
        file=True,
    )
    template: str = template_option(later=False)
    system: str = system_option(later=False)
    thinking: str = thinking_option()
    template_args: tuple[str, ...] = template_args_option()
    segments: str = option(
        "thinking",
        "what the table segments tells apart: thinking and answer, or the sentences of a response",
        choices=("thinking", "sentence"),
        later=True,
    )
    forking: float = option(
        0.0,
        "share of the steps, those of highest entropy, that fork (0.2 in the paper), for the tables forking and "
        "forking_tokens; 0: no such tables",
        low=0,
        high=1,
        later=True,
    )
    stop: tuple[str, ...] = option((), "texts that end a sample")
    columns: tuple[str, ...] = columns_option("prompt:instruction")
    max_prompts: int = option(0, "use only the first prompts; 0 uses all", low=0)
    long: str = long_option(cut=False)
    window: int = option(5, "width of the windows of bf_window, in tokens", low=1, high=1_000_000)
    cohort: int = option(
        0,
        "tokens that a sample must last to be in the cohort of bf_cohort; 0: where the cohort holds most",
        low=0,
        high=1_000_000,
        later=True,
    )
    late: int = option(5, "tokens left out at the start of each sample for bf_late", low=1, high=1_000_000)
    max_rows: int = option(256, "samples decoded together; fewer need less memory", low=1, high=1_000_000)
    sampler: str = option(
        "hf",
        "hf, or vllm (an extra): samples from vLLM, exact statistics from one pass over them",
        choices=("hf", "vllm"),
    )
    gpu_memory_utilization: float = option(
        0.9, "sampler=vllm: share of a GPU's memory that vLLM may take", low=0.05, high=1, later=True
    )
    tensor_parallel_size: int = option(
        1, "sampler=vllm: over how many GPUs vLLM spreads the model", low=1, high=64, later=True
    )
    levels: tuple[int, ...] = option(
        (0, 1, 2, 3, 4, 5),
        "study complexity: how much of the prompt text is kept; -1 keeps all",
        low=-1,
        high=1_000_000,
    )
    unit: str = option(
        "sentences",
        "study complexity: what a level counts (words: see words_per_level; blocks: few-shot examples before the last)",
        choices=("sentences", "words", "blocks"),
    )
    words_per_level: int = option(
        10,
        "study complexity, unit=words: words to a level (the official code takes 15 for random strings)",
        low=1,
        high=1_000_000,
    )
    nudge_count: int = option(50, "study nudging: an opening is common if at least so many samples share it", low=1)
    nudge_tokens: int = option(5, "study nudging: longest opening", low=1, high=10_000)
    nudge_pick: int = option(
        0,
        "study nudging: which opening, longest first, then most frequent, from 0 (the official code hand-picks 1 or 2)",
        low=0,
    )
    cuts: tuple[int, ...] = option(
        (0, 5, 10, 20, 40),
        "study resampling: positions from which outputs are sampled again; 0, the baseline, is always among them",
        low=0,
        high=1_000_000,
    )
    originals: int = option(
        1,
        "studies resampling, random_prefix, feedback, sentences: how many samples of each prompt are cut or replied to",
        low=1,
        high=100_000,
    )
    offsets: tuple[int, ...] = option(
        (0, 30, 60),
        "study random_prefix: after how many tokens of an output others are inserted",
        low=0,
        high=1_000_000,
        later=True,
    )
    inserted: int = option(30, "study random_prefix: how many tokens are inserted", low=1, high=1_000_000, later=True)
    agree: str = option(
        "Your answer was checked, and it holds as it is.",
        "study feedback: what the control says",
        later=True,
    )
    disagree: str = option(
        "Your answer was checked, and part of it does not hold.",
        "study feedback: what adversarial feedback says; noise has as many characters",
        later=True,
    )
    settings: tuple[str, ...] = option(
        (
            "temperature=1 top_p=0.9",
            "temperature=1 top_p=1",
            "temperature=0.6 top_p=0.9",
            "temperature=1 top_p=1 min_p=0.1",
            "temperature=0",
        ),
        "study decoding: settings to compare with the first, each as 'temperature=… top_p=… top_k=… min_p=…'",
    )
    responses: int = option(5, "study verbalised: how many responses one answer is asked for", low=2, high=10_000)
    max_sentences: int = option(
        8, "study sentences: of how many sentences of an output, its first ones", low=1, high=1_000, later=True
    )
    similar: float = option(
        0.5,
        "study sentences: a new sentence says the same again where it shares so large a part of the words",
        low=0,
        high=1,
        later=True,
    )
    answers: str = option(
        "auto",
        "study sentences: an answer is whether the output is right, or its final answer in words (auto: right where "
        "the data have answers)",
        choices=("auto", "right", "final"),
        later=True,
    )

    def __post_init__(self) -> None:
        column_map(self.columns, COLUMNS)
        if self.top_p == 0:
            raise ValueError("top_p is 0; it must be above 0 (a tiny value keeps one token)")
        if self.estimator == "compat" and self.samples < 4:
            raise ValueError("estimator=compat stops where 3 samples or fewer are alive, so samples must be at least 4")
        if self.study in ("pair", "nudging") and not self.compare:
            raise ValueError(f"study={self.study} needs a second model: compare=NAME")
        if self.compare and self.study not in COMPARING:
            raise ValueError(
                f"study={self.study} has no use for a second model (compare); {', '.join(COMPARING)} take one"
            )
        check_prompt_options(self)
        if any(not text for text in self.stop):
            raise ValueError("a text of stop is empty; it would end every sample at once")
        if self.study == "complexity" and (not self.levels or len(set(self.levels)) < len(self.levels)):
            raise ValueError("levels must name at least one level of the prompt, each once")
        if self.study == "resampling" and not any(self.cuts):
            raise ValueError("cuts must name at least one position above 0; 0 is the baseline and always there")
        self._check_controls()
        rules = [Rule.parse(setting) for setting in self.settings] if self.study == "decoding" else []
        if self.study == "decoding" and (len(rules) < 2 or len(set(rules)) < len(rules)):
            raise ValueError(
                "settings must name at least two different decoding rules, each once (the first is what the "
                "others are compared with)"
            )

    def _check_controls(self) -> None:
        if self.study == "random_prefix" and not self.offsets:
            raise ValueError("offsets must name at least one position at which tokens are inserted")
        if self.study == "random_prefix" and min(self.offsets) + self.inserted >= self.max_new_tokens:
            raise ValueError(
                f"no output of max_new_tokens={self.max_new_tokens} goes on after offset {min(self.offsets)} and "
                f"inserted={self.inserted} tokens; lower these or raise max_new_tokens"
            )
        if self.study == "sentences" and self.similar == 0:
            raise ValueError("similar is 0, so that every new sentence says the same again; it must be above 0")
        if self.study == "feedback" and not (self.agree.strip() and self.disagree.strip()):
            raise ValueError("agree and disagree are what the feedback says; neither can be empty")
        if self.study == "feedback" and self.template.startswith("chat:"):
            raise ValueError(
                "template=chat:… writes one turn, and study=feedback replies to an answer; use template=chat or raw"
            )


def read_prompts(
    config: Config,
    data: Path | None,
    *,
    required: Sequence[str] = ("prompt",),
    tell: Callable[[str], None] | None = None,
) -> pl.DataFrame:
    """The rows of a prompt file, with the columns that the config names; of several answers (a list, SQuAD's and
    TriviaQA's objects) the alternatives with | between, of GSM8K's worked ones what stands behind the last ####.
    `messages` is there where the file has talks, and holds those of several turns; `prompt` are their words."""
    names = column_map(config.columns, COLUMNS)
    table = read_table(data, required=required, also=("answer", "messages"), columns=names, what="prompts", tell=tell)
    if "answer" not in table.columns:
        return table
    found = ["|".join(own) for own in alternatives(table["answer"], str(data))]
    worked = [text.rpartition("\n#### ")[2].strip() for text in found]
    return table.with_columns(pl.Series("answer", [text or None for text in worked], dtype=pl.String))


def talk_of(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The turns (role, text) of a row of `read_prompts`; none for a row that is a prompt."""
    return [(turn["role"], turn["content"]) for turn in row.get("messages") or ()]


def _check_talks(config: Config, table: pl.DataFrame, data: Path | None) -> None:
    """Raise InputError, with the row, for talks that the study or the template has no use for."""
    for number, row in enumerate(table.iter_rows(named=True), 1):
        turns, where = talk_of(row), f"{data}, row {number}"
        if not turns:
            continue
        if config.study in BARE:
            raise InputError(
                f"{where}: study={config.study} {BARE[config.study]}, and this is a talk of {len(turns)} messages; "
                "give rows with a prompt."
            )
        if config.template not in ("auto", "chat"):
            raise InputError(
                f"{where}: a talk of {len(turns)} messages needs the model's chat template, and template="
                f"{config.template} is none; use template=chat, or rows with a prompt."
            )
        if config.system and turns[0][0] == "system":
            raise InputError(f"{where}: the talk begins with a system message of its own; leave out system.")


def validate(config: Config, data: Path | None) -> None:
    """Everything that can be refused before a model is loaded."""
    table = read_prompts(config, data)
    _check_talks(config, table.head(config.max_prompts) if config.max_prompts else table, data)
    prompts = min(table.height, config.max_prompts or table.height)
    tokens = prompts * config.samples * config.max_new_tokens
    if tokens > MOST_TOKENS:
        raise InputError(
            f"{prompts} prompts with samples={config.samples} of max_new_tokens={config.max_new_tokens} are "
            f"{tokens:.1g} tokens, whose statistics no machine holds; ask for fewer (at most {MOST_TOKENS:.0e})."
        )
    if config.study == "resampling":
        if "answer" not in table.columns:
            raise InputError(
                f"{data} has no column 'answer', and study=resampling checks answers; give --data with the "
                f"columns prompt and answer."
            )
        read_prompts(config, data, required=("prompt", "answer"))
    if config.study == "sentences" and config.answers == "right" and "answer" not in table.columns:
        raise InputError(
            f"{data} has no column 'answer', and answers=right checks answers; give --data with the columns prompt and "
            f"answer, or use answers=final."
        )
    if config.sampler == "vllm" and importlib.util.find_spec("vllm") is None:
        raise InputError(
            "vLLM is not installed here; install the extra (pip install 'interpretability-workbench[vllm]') "
            "or use sampler=hf."
        )
