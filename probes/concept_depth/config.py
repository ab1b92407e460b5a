"""What a run can be told, the paper to cite, and from where a warning is due."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.core.column_names import column_map
from workbench.core.long_rows import long_option
from workbench.core.prompt_options import (
    CHAT,
    WAYS,
    check_prompt_options,
    system_option,
    template_args_option,
    thinking_option,
)
from workbench.core.registry import option
from workbench.core.sinks import sinks_option

BIBTEX = """@inproceedings{jin2025concept,
  title={Exploring Concept Depth: How Large Language Models Acquire Knowledge and Concept at Different Layers?},
  author={Jin, Mingyu and Yu, Qinkai and Huang, Jingyuan and Zeng, Qingcheng and Wang, Zhenting and Hua, Wenyue and Zhao, Haiyan and
          Mei, Kai and Meng, Yanda and Ding, Kaize and Yang, Fan and Du, Mengnan and Zhang, Yongfeng},
  booktitle={Proceedings of the 31st International Conference on Computational Linguistics},
  year={2025},
  note={arXiv:2404.07066}
}"""  # noqa: E501
ENGLISH = Path(__file__).parent / "material"  # plain-English sets that ship
FEW = 30  # test rows below which a warning says so
FEW_GROUPS = 10  # the same of groups
OFTEN = 0.05  # false-positive rate of the jump rule that a warning is sure of
COLUMNS = ("text", "label", "group", "answer")
SITES = ("mlp_in", "resid_post", "resid_mid", "resid_pre", "attn_out", "mlp_out")

FRAMES = ("file", "code", "plain")
NO_TEMPLATE = (
    "The template must be 'file', 'code', 'plain', 'raw', 'chat', 'auto', a text that holds {text} once, or chat: and "
    "one of these, as in chat:plain."
)


def is_frame(text: str) -> bool:
    """Whether the prompts made with it differ by their texts."""
    return text in FRAMES or text.count("{text}") == 1


def frame_of(template: str) -> str:
    """What frames the texts: `template` without what it says of a chat."""
    return "file" if template in WAYS else template.removeprefix(CHAT)


def way_asked(template: str) -> str:
    """How framed texts are written: raw, chat, or auto."""
    if template in WAYS:
        return template
    return "chat" if template.startswith(CHAT) else "raw"


@dataclass(frozen=True)
class Config:
    site: str = option(
        "mlp_in",
        "what the probe reads in each layer: mlp_in (normalised MLP input, the official code), resid_post, ...",
        choices=SITES,
    )
    token: int | str = option(
        "last",
        "which token: last of what is fed, text (the last of the framed text, which is another one in a chat), mean "
        "over those of the framed text, or a position (negative from the end)",
        choices=("last", "mean", "text"),
    )
    sinks: str = sinks_option(
        "the mean (token=mean), at each layer its own; a position that is one is read and warned of",
        as_before=lambda config: config.sinks == "keep" or config.token in ("last", "text"),
    )
    split: str = option(
        "kfold",
        "kfold: 80/20 as often as there are folds, every row tested once; paper: 80/20 once, classes in proportion; "
        "code: 60/40 with random_state 42",
        choices=("paper", "code", "kfold"),
    )
    folds: int = option(5, "parts of split=kfold", low=2, high=1000)
    groups: str = option(
        "auto",
        "keep rows of one group on one side of the split: auto (at least ten groups, of a column or of near-identical "
        "rows), yes, no",
        choices=("auto", "yes", "no"),
    )
    classifier: str = option(
        "logistic",
        "logistic: regression with an L2 penalty, as in the paper; mean_difference: the direction from the mean of one "
        "class to the other's",
        choices=("logistic", "mean_difference"),
    )
    c: float = option(1.0, "inverse strength of the L2 penalty, as scikit-learn's C", low=1e-8, high=1e8)
    c_path: tuple[float, ...] = option((), "further values of c to report (table `path`)", low=1e-8, high=1e8)
    standardize: bool = option(False, "divide features by their standard deviation on the training rows")
    noise: bool | str = option(
        False,
        "also with a random prefix: paper (true; 'aaa ' or 'bbb ' before the prompt), code (glued to the text "
        "in its prompt)",
        choices=("paper", "code"),
    )
    precision: tuple[str, ...] = option(
        (),
        "also with weights in these precisions (int8: weights only)",
        choices=("float32", "bfloat16", "float16", "int8"),
    )
    sets: tuple[str, ...] = option(
        (),
        "which sets: names of files in the --data folder, paths of files, or english (english/NAME), "
        "plain-English sets that ship; none: all of --data, or those that ship for the model",
        file=True,
    )
    pair: tuple[str, ...] = option((), "the two labels to tell apart, class 0 first, where a set has more")
    target: str = option(
        "class",
        "what the labels of a file are: class, or number (a ridge regression in place of a classifier; tables "
        "`numbers` and `number_depth`)",
        choices=("class", "number"),
        later=True,
    )
    template: str = option(
        "file",
        "file: published sets in their official prompt, others as they are; code: in the prompt that the official code "
        "runs; plain; or a text with {text}: these are frames. raw: as file; chat: the same as the user's turn, in the "
        "chat template (chat:plain, chat:code or chat: and a text for another frame); auto: chat where the model has "
        "one, else raw",
    )
    system: str = system_option()
    thinking: str = thinking_option("off")
    template_args: tuple[str, ...] = template_args_option()
    columns: tuple[str, ...] = option(
        (),
        "what text, label, group and answer are called in the file, as name:name in the file, e.g. "
        "text:claim,label:verdict; a dot names a part of a nested one",
        later=True,
    )
    limit: int = option(0, "rows per class to use, 0 for all", low=0)
    long: str = long_option(cut=True)
    transfer: bool = option(
        False, "also fit on all of every set and test on every other one (table `transfer`); needs two sets"
    )
    shuffles: int = option(
        20,
        "probes on shuffled labels per set: which layers are above chance, and which points are found (19 at least)",
        low=0,
        high=10_000,
    )
    control_tasks: int = option(
        20, "control tasks per set, which give every word type a random label: selectivity", low=0, high=10_000
    )
    causal: str = option(
        "peak",
        "project the probe's direction out and watch the model's answer, where the set has answer words: at "
        "the layer of peak accuracy, all layers, off; site=resid_post takes it out of the residual stream",
        choices=("peak", "all", "off"),
    )
    steer: tuple[float, ...] = option(
        (),
        "in the causal check also add the probe's direction, and take it away, so many standard deviations of the "
        "projection (table `steering`), e.g. 1,2,4",
        low=1e-3,
        high=1000.0,
        later=True,
    )
    random_draws: int = option(20, "random directions to project out (and to add) for comparison", low=1, high=10_000)
    draws: int = option(1000, "bootstrap resamples for the intervals", low=100, high=100_000)
    store_dtype: str = option("float32", "how features are stored", choices=("float32", "float16"))
    max_tokens: int = option(
        0, "tokens in one batch; 0: 768 for each thread of a CPU, whose caches are small, 16384 on a GPU", low=0
    )

    def __post_init__(self) -> None:
        if not is_frame(frame_of(self.template)):
            raise ValueError(NO_TEMPLATE)
        check_prompt_options(self, known=(self.template,), raw=way_asked(self.template) == "raw")
        column_map(self.columns, COLUMNS)
        if self.steer and self.causal == "off":
            raise ValueError("Steering is a part of the causal check; set causal=peak or all, or leave steer out.")
        if len(set(self.steer)) < len(self.steer):
            raise ValueError("A strength to steer with stands twice; name each once.")
        if self.target == "number" and (
            self.pair or self.c_path or self.c != 1.0 or self.transfer or self.classifier != "logistic"
        ):
            raise ValueError(
                "pair, classifier, c, c_path and transfer are of classes; leave them out with target=number."
            )
        if self.classifier != "logistic" and (self.c_path or self.c != 1.0):
            raise ValueError("c and c_path are of the logistic regression; a difference of means has no penalty.")
        if self.pair and (len(self.pair) != 2 or self.pair[0] == self.pair[1]):
            raise ValueError(f"pair needs two different labels, not {', '.join(self.pair)}.")
