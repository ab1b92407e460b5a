"""What a run can be told, the paper to cite, and from where a warning is due."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.core.column_names import column_map
from workbench.core.long_rows import long_option
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

NO_TEMPLATE = "The template must be 'file', 'code', 'plain', or a text that holds {text}."


def is_template(text: str) -> bool:
    """Whether the prompts made with it differ by their texts."""
    return text in ("file", "code", "plain") or "{text}" in text


@dataclass(frozen=True)
class Config:
    site: str = option(
        "mlp_in",
        "what the probe reads in each layer: mlp_in (normalised MLP input, the official code), resid_post, ...",
        choices=SITES,
    )
    token: int | str = option(
        "last", "which token: last, mean over all, or a position (negative from the end)", choices=("last", "mean")
    )
    sinks: str = sinks_option(
        "the mean (token=mean), at each layer its own; a position that is one is read and warned of",
        as_before=lambda config: config.sinks == "keep" or config.token == "last",
    )
    split: str = option(
        "paper",
        "paper: 80/20, classes in proportion; code: 60/40 with random_state 42; kfold: every row is tested once",
        choices=("paper", "code", "kfold"),
    )
    folds: int = option(5, "parts of split=kfold", low=2, high=1000)
    groups: str = option(
        "auto",
        "keep rows of one group on one side of the split: auto (at least ten groups, of a column or of near-identical "
        "rows), yes, no",
        choices=("auto", "yes", "no"),
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
    template: str = option(
        "file",
        "file: published sets in their official prompt, others as they are; code: in the prompt that the official code "
        "runs; plain; or a text with {text}",
    )
    columns: tuple[str, ...] = option(
        (),
        "what text, label, group and answer are called in the file, as name:name in the file, e.g. "
        "text:claim,label:verdict; a dot names a part of a nested one",
        later=True,
    )
    limit: int = option(0, "rows per class to use, 0 for all", low=0)
    long: str = long_option(cut=True)
    shuffles: int = option(
        10,
        "probes on shuffled labels per set: control accuracy and false positives of the jump rule",
        low=0,
        high=10_000,
    )
    causal: str = option(
        "peak",
        "project the probe's direction out and watch the model's answer, where the set has answer words: at "
        "the layer of peak accuracy, all layers, off; site=resid_post takes it out of the residual stream",
        choices=("peak", "all", "off"),
    )
    random_draws: int = option(5, "random directions to project out for comparison", low=1, high=10_000)
    draws: int = option(1000, "bootstrap resamples for the intervals", low=100, high=100_000)
    store_dtype: str = option("float32", "how features are stored", choices=("float32", "float16"))
    max_tokens: int = option(
        0, "tokens in one batch; 0: 768 for each thread of a CPU, whose caches are small, 16384 on a GPU", low=0
    )

    def __post_init__(self) -> None:
        if not is_template(self.template):
            raise ValueError(NO_TEMPLATE)
        column_map(self.columns, COLUMNS)
        if self.pair and (len(self.pair) != 2 or self.pair[0] == self.pair[1]):
            raise ValueError(f"pair needs two different labels, not {', '.join(self.pair)}.")
