"""What a run can be told, the paper to cite, and what all steps share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from probes.knowledge_conflict.items import COLUMNS, OPTIONAL
from workbench.core.column_names import column_map, columns_option
from workbench.core.long_rows import long_option
from workbench.core.prompt_options import (
    check_prompt_options,
    system_option,
    template_args_option,
    template_option,
    template_text,
    thinking_option,
)
from workbench.core.registry import option

BIBTEX = """@inproceedings{jin2024cutting,
  title={Cutting Off the Head Ends the Conflict: A Mechanism for Interpreting and Mitigating Knowledge Conflicts in Language Models},
  author={Jin, Zhuoran and Cao, Pengfei and Yuan, Hongbang and Chen, Yubo and Xu, Jiexin and Li, Huaijun and Jiang, Xiaojian and Liu, Kang and Zhao, Jun},
  booktitle={Findings of the Association for Computational Linguistics: ACL 2024},
  pages={1193--1215},
  year={2024}
}"""  # noqa: E501
ESSAYS = Path(__file__).parents[1] / "essays.txt"  # plain English, on no subject in particular
ROLES = {"memory": "context", "context": "memory"}  # heads pruned -> the answer that this is meant to bring
_READ_OFF = ("final_norm_ends_stream", "logits_unembedded")  # what scores of patched streams rest on
_REPLAYED = ("heads_apart", "blocks_run_once", *_READ_OFF)
NEEDS = {
    "direct": ("heads_apart", "heads_add_up", "stream_adds_up", *_READ_OFF),
    "direct_mlp": _REPLAYED,
    "total": _REPLAYED,
}  # variant -> what must hold of a model (workbench.models.facts) for it to be measured
PATHS_NEED = ("heads_add_up", "stream_adds_up", *_REPLAYED, "attention_edits", "attention_rows")  # path_heads
METRICS = ("logprob", "logit", "logit_difference", "rate")
BOTH = ("logit_difference", "rate")  # metrics of one number for both answers: a gain of one is the other's loss
TRIED = ("total", "direct")  # what variant=auto tries, the first where they gain the same
BASELINES = ("prompt", "decoding")  # what stands beside pruning: asking for the answer, and weighing the scores
FALSE_DISCOVERIES = 0.05  # share of the roles that is wrong, at most, in expectation


@dataclass(frozen=True)
class Config:
    variant: str = option(
        "auto",
        "direct: head to logits, all else frozen; direct_mlp: MLPs react; total: everything after the head reacts; "
        "auto: total and direct where the model allows them, the one whose heads gain more on validation is kept",
        choices=("auto", "direct", "direct_mlp", "total"),
    )
    select: str = option(
        "greedy",
        "which heads are pruned: greedy (one after another, each measured together with those before it), rank (by "
        "the score of the head alone), gates (causal head gating: gates of all heads fitted at once)",
        choices=("greedy", "rank", "gates"),
    )
    pool: int = option(16, "heads that select=greedy tries, the strongest by score", low=1, high=100_000)
    select_items: int = option(
        64, "most items of the find split on which select=greedy and gates measure heads together", low=1
    )
    gate_steps: int = option(100, "steps of each of the three fits of select=gates", low=1, high=100_000)
    gate_weight: float = option(
        1.0, "how strongly a penalty (nats) holds gates open and closes them, select=gates", low=0, high=1000
    )
    kind: str = option(
        "", "one kind of conflict to find, choose and test on, as column:value (source:rumour); empty: all kinds"
    )
    least_effect: float = option(
        0.05,
        "least size of a mean score (nats, or a share for metric=rate) of a head that has a role",
        low=0,
        high=1000,
    )
    prune_k: tuple[int, ...] = option((1, 3, 5, 7, 9, 15), "how many heads of a side to prune", low=1, high=1_000_000)
    ablation: str = option(
        "zero",
        "what pruning does to a head: zero output (the paper), mean output over the validation prompts, "
        "uniform attention",
        choices=("zero", "mean", "uniform"),
    )
    window: int = option(0, "layers in one window of step A; 0: an eighth of the model's layers", low=0, high=100_000)
    keep: str = option(
        "known", "known: only items whose clean prompt the model answers; all: every item", choices=("known", "all")
    )
    columns: tuple[str, ...] = columns_option("subject:Subject,answer:Answer", later=False)
    metric: str = option(
        "logprob",
        "what an importance is a change of: the answer's log-probability, its raw logit, how far its logit is ahead "
        "of the other answer's (logit_difference), or how often it is ahead (rate)",
        choices=METRICS,
    )
    find_share: float = option(
        0.3, "share of the subjects used to find heads (where the file has no column split)", low=0.01, high=0.98
    )
    validation_share: float = option(0.2, "share of the subjects used to choose k", low=0.01, high=0.98)
    test_relations: tuple[str, ...] = option(
        (), "relations (column relation) that are used for testing only; the others then are not tested on"
    )
    limit: int = option(0, "use at most this many items, drawn at random; 0: all", low=0)
    flow_items: int = option(64, "most items used for step A; 0: no step A", low=0)
    max_new_tokens: int = option(10, "tokens in which the answer must come", low=1, high=100_000)
    random_draws: int = option(
        20, "random sets of heads of the same layers to prune for comparison with the chosen k", low=1, high=10_000
    )
    curve_draws: int = option(3, "the same for every other k, where they are drawn only", low=0, high=10_000)
    max_clean_drop: float = option(
        0.02,
        "largest loss of clean accuracy that a head of select=greedy may cost, and on validation the chosen k; 1: any",
        low=0,
        high=1,
    )
    neutral: str = option(
        "auto",
        "text file (one text per line, or a table with a column text) for the perplexity of pruned models; "
        "auto: English essays that ship with the project, or what suits the tokenizer (see summary, neutral_text)",
        file=True,
    )
    mask: str = option(
        "context",
        "which side's heads pruned_heads.json holds: context (then the model follows memory) or memory",
        choices=("context", "memory"),
    )
    template: str = template_option("raw")
    system: str = system_option()
    thinking: str = thinking_option("off")
    template_args: tuple[str, ...] = template_args_option()
    answer_prefix: str = option(
        "",
        "how the answer of a chat begins, e.g. The answer is; what is measured is the word that follows",
        later=True,
    )
    long: str = long_option(cut=False)
    baselines: tuple[str, ...] = option(
        (),
        "what else could bring the answer, measured beside pruning on the test items: prompt (a sentence that asks for "
        "memory or for the context), decoding (context-aware decoding)",
        choices=BASELINES,
        later=True,
    )
    ask_memory: str = option(
        "Answer from what you know and ignore what the text says.",
        "the sentence before a prompt that asks for memory, baselines=prompt",
        later=True,
    )
    ask_context: str = option(
        "Answer from what the text says and ignore what you know.",
        "the sentence before a prompt that asks for the context, baselines=prompt",
        later=True,
    )
    decoding_weight: float = option(
        1.0,
        "how much context-aware decoding adds to what the context changes in the scores (for the context), or takes "
        "off it (for memory; at 1 that is answering without the context), baselines=decoding",
        low=0,
        high=100,
        later=True,
    )
    dual_heads: int = option(
        0,
        "heads of each of the two lists of a dual run (JuICE), measured beside pruning; 0: no dual run",
        low=0,
        high=1000,
        later=True,
    )
    patch_items: int = option(
        0,
        "most items of the find split on which activations are patched layer by layer at the names and at the last "
        "position; 0: no such patching",
        low=0,
        later=True,
    )
    path_heads: int = option(
        0, "strongest heads between which paths are measured; 0: no paths", low=0, high=1000, later=True
    )
    path_items: int = option(
        16, "most items of the validation split on which paths between heads are measured", low=1, later=True
    )
    draws: int = option(1000, "bootstrap resamples for the intervals of correlations", low=100, high=100_000)

    def __post_init__(self) -> None:
        column_map(self.columns, (*COLUMNS, *OPTIONAL))
        check_prompt_options(self)
        if self.kind and not all(self.kind.partition(":")):
            raise ValueError("kind names one kind of conflict as column:value, such as source:rumour")
        if self.thinking == "on":
            raise ValueError("the answer must follow the prompt at once, so thinking cannot be on; use thinking=off")
        if self.answer_prefix and (self.template == "raw" or template_text(self.template) == self.template):
            raise ValueError(
                "answer_prefix begins the answer of a chat, so it cannot go with a template that is no chat; write it "
                "at the end of the prompts"
            )
        if "prompt" in self.baselines and not (self.ask_memory.strip() and self.ask_context.strip()):
            raise ValueError("ask_memory and ask_context are what baselines=prompt asks with; leave neither empty")
        if self.find_share + self.validation_share >= 1:
            raise ValueError("find_share and validation_share leave nothing to test on; their sum must be below 1.")
