"""What a run of data selection may be asked for, and what is refused before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from probes.data_selection.samples import LABELS, TOKENS, labels_of, target_files
from probes.data_selection.training_files import AS_THEY_CAME, FORMS, check_form
from probes.data_selection.written_samples import PLAIN
from workbench.core.cells import label_column
from workbench.core.column_names import column_map, columns_option
from workbench.core.errors import InputError
from workbench.core.long_rows import long_option
from workbench.core.paths import user_path
from workbench.core.prompt_options import (
    CHAT,
    WAYS,
    check_prompt_options,
    system_option,
    template_args_option,
    thinking_option,
)
from workbench.core.registry import option
from workbench.core.sample_tables import SAMPLE_COLUMNS, read_samples, turns_before
from workbench.core.sinks import sinks_option
from workbench.core.tables import existing, open_table

BIBTEX = """@inproceedings{ma2025mona,
  title={Task-Specific Data Selection for Instruction Tuning via Monosemantic Neuronal Activations},
  author={Ma, Da and Shang, Gonghu and Chen, Zhi and Qin, Libo and Luo, Yijie and Xu, Hongshen and Pan, Lei and Fan, Shuai and Chen, Lu and Yu, Kai},
  booktitle={Advances in Neural Information Processing Systems},
  year={2025},
  note={arXiv:2503.15573}
}"""  # noqa: E501
METHODS = ("bm25", "neurons", "hidden", "random")
NO_DIVERSITY, COPIES, COVERAGE = DIVERSITIES = ("none", "near_duplicates", "features")
ALL_WEIGHTS, LORA = WEIGHTS = ("all", "lora")


@dataclass(frozen=True)
class Config:
    target: tuple[str, ...] = option(
        ("default",),
        "files with examples of the task, one target each, named like the file; default: those that ship for the "
        "model, also by name (English: code, cooking; the organism's: sea, music)",
        file=True,
    )
    sae: str = option(
        "default",
        "the sparse autoencoder: a folder, owner/repository:folder, or release:id; default: the one that "
        "ships with the model, and without one the first of neurons and hidden selects; none: only baselines",
        file=True,
    )
    site: str = option(
        "auto", "where to read: a site such as resid_post.30; auto: the autoencoder's own, else the penultimate layer"
    )
    ratio: float = option(0.05, "share of the pool to select", low=0, high=1)
    k: int | None = option(None, "number of samples to select, in place of the ratio", low=1)
    aggregate: str = option(
        "mean",
        "tokens of a sample to one vector: mean (paper), sum (prefers the target's length), last",
        choices=("mean", "sum", "last"),
    )
    similarity: str = option(
        "jaccard", "how samples are compared with the target", choices=("jaccard", "cosine", "euclidean", "containment")
    )
    prototype: str = option(
        "mean",
        "mean of the examples (paper), max over the examples, or max over the means of the target's subtask column",
        choices=("mean", "max", "subtask"),
    )
    tokens: str = option(
        "all", "which tokens count: all (paper), those of the prompt, or those of the response", choices=TOKENS
    )
    specials: bool = option(False, "count BOS and other special tokens too")
    sinks: str = sinks_option("everything that is measured", as_before=lambda config: config.sinks == "keep")
    template: str = option(
        PLAIN,
        "how prompt and response become one text: a text with {prompt} and {response} (raw: the one that is the "
        "default), chat: the model's chat template, which gets talks turn by turn; auto: chat where the model has one",
    )
    system: str = system_option()
    thinking: str = thinking_option()
    template_args: tuple[str, ...] = template_args_option()
    baselines: tuple[str, ...] = option(
        METHODS,
        "other rankings to compare with: bm25, neurons (TopK of the MLP gate), hidden (cosine of the residual "
        "stream), random",
        choices=METHODS,
    )
    ratios: tuple[float, ...] = option(
        (0.01, 0.05, 0.1), "shares of the pool at which precision, overlap and lengths are reported", low=0, high=1
    )
    resamples: int = option(
        50,
        "resamples of a target's examples, for selected_share; 0: none",
        low=0,
        high=10_000,
    )
    neurons_k: int | None = option(
        None,
        "neurons kept per token by the baseline `neurons`; none: the autoencoder's k, else 32",
        low=1,
        high=10_000_000,
    )
    label: str = option(
        "auto", f"column of the pool that says what a sample is of (for precision); auto: {', '.join(LABELS)}; none"
    )
    exclude_duplicates: bool = option(
        False, "never select a pool row for a target that has the same tokens among its examples"
    )
    features: int = option(12, "features per target to explain", low=0, high=100_000)
    passages: int = option(3, "top passages per explained feature", low=0, high=10_000)
    explain: int = option(10, "selected samples per target whose shared features are listed", low=0, high=100_000)
    map_rows: int = option(
        0, "samples to lay out on a map (UMAP of their similarities to each other); 0 for no map", low=0, high=20_000
    )
    export: str = option(
        AS_THEY_CAME,
        "form of the files to train on, train-TARGET.jsonl: as_they_came (the rows of the pool's file), messages "
        "(chats), alpaca (instruction, input, output), none",
        choices=FORMS,
        later=True,
    )
    export_scores: bool = option(False, "also write target, rank, row and score into the files to train on", later=True)
    diversity: str = option(
        NO_DIVERSITY,
        "rows that do not all say the same: none (by score alone), near_duplicates (by score, one of those that say "
        "almost the same), features (greedily the row that adds most features to those of the rows before)",
        choices=DIVERSITIES,
        later=True,
    )
    diversity_among: int = option(
        3, "with diversity, the rows that it chooses among: so many times those selected, by score", low=1, later=True
    )
    diversity_threshold: float = option(
        0.0,
        "with diversity=features, number in a row's vector above which it has a feature",
        low=0,
        high=1e6,
        later=True,
    )
    feature_effects: int = option(
        0,
        "features per target, the first of those explained, that are switched off while texts are read, beside random "
        "ones as active; 0: none",
        low=0,
        high=100_000,
        later=True,
    )
    effect_controls: int = option(20, "random features beside each that is switched off", low=2, high=1000, later=True)
    effect_rows: int = option(
        64, "random rows of the pool read without each feature, besides the examples", low=5, high=1_000_000, later=True
    )
    finetune: bool = option(
        False,
        "fine-tune a copy of the model on the selected rows, on as many random ones and on the whole pool, for the "
        "same number of tokens, and compare the loss of held-out examples of the target",
        later=True,
    )
    finetune_weights: str = option(
        ALL_WEIGHTS,
        "what of the copy is trained: all weights, or a lora beside them (needs peft)",
        choices=WEIGHTS,
        later=True,
    )
    finetune_held_out: float = option(
        0.5, "with finetune, share of each target's examples that builds no prototype", low=0.05, high=0.95, later=True
    )
    finetune_seeds: int = option(5, "fine-tunings of every condition", low=3, high=1000, later=True)
    finetune_epochs: int = option(
        2,
        "tokens of a fine-tuning: as in so many passes over the selected number of rows",
        low=1,
        high=10_000,
        later=True,
    )
    finetune_batch: int = option(8, "rows (of the pool's mean length) in one step", low=1, high=1_000_000, later=True)
    finetune_rate: float = option(
        1e-4, "learning rate at the beginning, down to 0 in a cosine", low=0, high=1, later=True
    )
    columns: tuple[str, ...] = columns_option("prompt:question,response:solution")
    long: str = long_option("cut", cut=True)
    chunk: int = option(1024, "pool samples in one resumable part", low=1)
    max_tokens: int = option(
        0, "tokens in one batch; 0: 768 for each thread of a CPU, whose caches are small, 16384 on a GPU", low=0
    )

    def __post_init__(self) -> None:
        column_map(self.columns, SAMPLE_COLUMNS)
        if self.template.startswith(CHAT):
            raise ValueError(
                f"template={self.template} would write one turn, and a sample is at least two; use template=chat"
            )
        if self.template not in WAYS and not 0 <= self.template.find("{prompt}") < self.template.find("{response}"):
            raise ValueError(
                f"the template '{self.template}' needs {{prompt}} and then {{response}}, or is one of {', '.join(WAYS)}"
            )
        check_prompt_options(self, slots=("prompt", "response"))
        if self.sae == "none" and not self.baselines:
            raise ValueError("sae=none leaves the baselines, and there are none")
        if self.diversity == COVERAGE and self.sae == "none":
            raise ValueError(f"diversity={COVERAGE} needs an autoencoder, and sae=none leaves none")
        if self.feature_effects and self.sae == "none":
            raise ValueError("feature_effects switches features of an autoencoder off, and sae=none leaves none")
        if self.feature_effects > self.features:
            raise ValueError(
                f"feature_effects={self.feature_effects} is more than the {self.features} features that are explained"
            )
        if self.finetune_rate == 0:
            raise ValueError("a finetune_rate of 0 trains nothing; give one above 0, such as 1e-4")
        if min(self.ratio, *self.ratios, 1) == 0:
            raise ValueError("a ratio of 0 selects nothing; give one above 0, or a number of samples (k)")


def read_pool(config: Config, data: Path | None, tell: Callable[[str], None] | None = None) -> pl.DataFrame:
    """The rows of the pool, with the columns that the config names."""
    names = column_map(config.columns, SAMPLE_COLUMNS)
    return read_samples(data, what="pool", tokens=config.tokens, columns=names, tell=tell)


def read_target(config: Config, name: str, path: Path, tell: Callable[[str], None] | None = None) -> pl.DataFrame:
    """The rows of a target. The columns that the config names are the pool's: a target that has none of them is read
    as it is."""
    what, names = f"target {name}", column_map(config.columns, SAMPLE_COLUMNS)
    if names and not set(names.values()) & set(open_table(existing(path, what=what), what=what).frame.columns):
        names = {}
    return read_samples(path, what=what, tokens=config.tokens, columns=names, tell=tell)


def _check_talks(config: Config, samples: pl.DataFrame, where: str) -> None:
    """Raise InputError for texts of which a chat is asked, and for a system message beside that of a talk."""
    if not {"prompt", "response"} <= set(samples.columns):
        if config.template == "chat":
            raise InputError(
                f"{where} has texts, not prompts with responses, so they are no chats; use template=raw, or a file "
                f"with 'prompt' and 'response'."
            )
        return
    if not config.system or "messages" not in samples.columns:
        return
    for row, sample in enumerate(samples.iter_rows(named=True), 1):
        if turns_before(sample)[0][0] in ("system", "developer"):
            raise InputError(f"{where}, row {row}: the talk begins with a system message of its own; leave out system.")


def _check_finetuning(config: Config, targets: Mapping[str, pl.DataFrame]) -> None:
    """Raise InputError for a fine-tuning without peft that needs it, and for targets of which none can be held out."""
    if not config.finetune:
        return
    if config.finetune_weights == LORA and find_spec("peft") is None:
        raise InputError(
            "peft is not installed here, which finetune_weights=lora needs; install the extra "
            "(pip install 'interpretability-workbench[adapter]'), or use finetune_weights=all."
        )
    if few := [name for name, table in targets.items() if table.height < 2]:
        raise InputError(
            f"The target '{few[0]}' has one example, and finetune=true holds some out; give at least two, better ten."
        )


def validate(config: Config, data: Path | None, model: str | None = None) -> None:
    """Read pool and targets, find the autoencoder: what cannot work is said before a model is loaded."""
    pool = read_pool(config, data)
    _check_talks(config, pool, str(data))
    targets = {}
    for name, path in target_files(config.target, model).items():
        targets[name] = read_target(config, name, path)
        _check_talks(config, targets[name], str(path))
        if config.prototype == "subtask":
            if "subtask" not in targets[name].columns or targets[name]["subtask"].dtype.is_nested():
                raise InputError(f"{path} has no column 'subtask' of words or numbers, which prototype=subtask needs.")
            label_column(targets[name]["subtask"], str(path))
    wanted = config.k or max(1, round(config.ratio * pool.height))
    if wanted > pool.height:
        raise InputError(f"{data} has {pool.height} rows, fewer than the {wanted} to select (k).")
    if config.label not in ("auto", "none") and config.label not in pool.columns:
        raise InputError(f"{data} has no column '{config.label}' (label); it has {', '.join(pool.columns)}.")
    labels_of(pool, targets, config.label)
    check_form(config.export, pool, data)
    _check_finetuning(config, targets)
    site = None
    if config.site != "auto":
        from workbench.models.sites import Site

        site = Site.parse(config.site)
    if config.sae not in ("default", "none") and (":" not in config.sae or user_path(config.sae).is_dir()):
        from workbench.sae.load import find, recorded_site

        files = find(config.sae)
        there = recorded_site(files)
        if files is not None and there is None and site is None:
            raise InputError(
                f"The sparse autoencoder '{config.sae}' does not say which site it was trained on; give the site, for "
                f"example site=resid_post.3."
            )
        if site is not None and there is not None and there != site:
            raise InputError(
                f"The sparse autoencoder '{config.sae}' was trained on {there}, not on {site}; its features "
                f"mean nothing there."
            )
