"""What a run can be told, the paper to cite, and the files that ship."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.core.column_names import column_map, columns_option
from workbench.core.prompt_options import (
    check_prompt_options,
    system_option,
    template_args_option,
    template_option,
    thinking_option,
)
from workbench.core.registry import option

BIBTEX = """@inproceedings{biran2024hopping,
  title={Hopping Too Late: Exploring the Limitations of Large Language Models on Multi-Hop Queries},
  author={Biran, Eden and Gottesman, Daniela and Yang, Sohee and Geva, Mor and Globerson, Amir},
  booktitle={Proceedings of the 2024 Conference on Empirical Methods in Natural Language Processing},
  pages={14113--14130},
  year={2024},
  note={arXiv:2406.12775}
}
@inproceedings{ghandeharioun2024patchscopes,
  title={Patchscopes: A Unifying Framework for Inspecting Hidden Representations of Language Models},
  author={Ghandeharioun, Asma and Caciularu, Avi and Pearce, Adam and Dixon, Lucas and Geva, Mor},
  booktitle={International Conference on Machine Learning},
  year={2024},
  note={arXiv:2401.06102}
}"""
COLUMNS = (
    "e1",
    "e2",
    "e3",
    "prompt",
    "hop1",
    "hop2",
    "phrase",
    "r1_template",
    "r2_template",
    "e2_aliases",
    "e3_aliases",
    "entity_shortcut",
    "relation_shortcut",
)
POSITIONS = ("t1", "t2")
SPLITS = ("correct", "incorrect")
CUT_TO = ("t1", "r1", "r2")  # tokens that attention can be cut from
WORD = "x"  # the word of a describing prompt in whose place a state is put


@dataclass(frozen=True)
class Config:
    limit: int = option(0, "use at most this many questions, drawn at random; 0: all", low=0)
    items: int = option(
        100, "most questions of each set (composition answered, and not) whose states are looked into; 0: all", low=0
    )
    keep: str = option(
        "known",
        "known: the sets hold questions whose two hops the model answers and that no shortcut answers (paper); "
        "all: every question",
        choices=("known", "all"),
    )
    match: str = option(
        "contains",
        "how an answer is found in what the model says, in any case: contains (paper: an alias anywhere), or words "
        "(an alias as whole words)",
        choices=("contains", "words"),
    )
    max_new_tokens: int = option(10, "tokens in which an answer or a description must come", low=1, high=100_000)
    describe: str = option(
        "greedy",
        "how states are described by another prompt: greedy (the likeliest text), sampled (as the paper), off",
        choices=("greedy", "sampled", "off"),
    )
    describe_prompt: str = option(
        "default",
        "text that ends with the word x, in whose place a state is put; default: descriptions in English, or of the "
        "world of an organism",
    )
    describe_layers: str | tuple[int, ...] = option(
        "all",
        "blocks after which a state is put into the describing prompt: all, same (the block it comes from) or numbers",
        choices=("all", "same"),
        low=0,
        high=10_000,
    )
    samples: int = option(3, "texts that are drawn of each state with describe=sampled", low=1, high=1000)
    decoding: str = option("temperature=1", "how they are drawn: temperature=, top_p=, top_k=, min_p=")
    project: bool = option(
        True, "read what attention and MLPs add at the last token off with the final norm and the unembedding"
    )
    knockout: str = option(
        "last",
        "what can no longer attend to the tokens of knockout_to, layer by layer: last (the last token), all (every "
        "token, in decoding too), t1 (the end of the first hop), r1 (the word of the first relation), off",
        choices=("last", "all", "t1", "r1", "off"),
    )
    knockout_to: tuple[str, ...] = option(
        ("t1",),
        "tokens that can no longer be attended to, each by itself: t1 (the end of the first hop), r1, r2 (the last "
        "word of the first and of the second relation)",
        choices=CUT_TO,
    )
    knockout_width: int = option(
        0, "layers before and after a layer in which attention is cut as well", low=0, high=10_000
    )
    positions: tuple[str, ...] = option(
        POSITIONS,
        "where back-patching puts a later state: t1, the end of the first hop, t2, the last token; none: off",
        choices=POSITIONS,
    )
    controls: int = option(
        1, "random donors of each question that back-patching is repeated with; 0: none", low=0, high=100
    )
    dev_share: float = option(
        0.5,
        "share of the bridges on which the best pair of layers is chosen; it is measured on the rest",
        low=0.1,
        high=0.9,
    )
    shuffles: int = option(
        20, "other questions whose bridge or answer is looked for in the place of a question's own", low=1, high=1000
    )
    columns: tuple[str, ...] = columns_option("e1:subject,e2:bridge", later=False)
    template: str = template_option("raw", later=False)
    system: str = system_option(later=False)
    thinking: str = thinking_option("off", later=False)
    template_args: tuple[str, ...] = template_args_option(later=False)

    def __post_init__(self) -> None:
        from workbench.core.errors import InputError
        from workbench.engine.rule import Rule

        column_map(self.columns, COLUMNS)
        check_prompt_options(self)
        if len(set(self.positions)) < len(self.positions):
            raise ValueError("'positions' names one twice")
        if self.knockout != "off" and not self.knockout_to:
            raise ValueError("'knockout_to' is empty; use knockout=off to cut nothing")
        if len(set(self.knockout_to)) < len(self.knockout_to):
            raise ValueError("'knockout_to' names one twice")
        if self.describe_layers == ():
            raise ValueError("'describe_layers' is empty; use describe=off for no descriptions")
        words = self.describe_prompt.split()
        if self.describe_prompt != "default" and (len(words) < 2 or words[-1] != WORD):
            raise ValueError(f"'describe_prompt' must end with the word {WORD} after other words")
        try:
            rule = Rule.parse(self.decoding)
        except InputError as error:
            raise ValueError(f"'decoding': {error}") from None
        if self.describe == "sampled" and rule.temperature == 0:
            raise ValueError("'decoding' draws nothing at temperature 0; use describe=greedy")
