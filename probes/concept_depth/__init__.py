"""Concept depth: at which layer does a concept become linearly readable, and does the model use what the probe reads?

Jin et al., Exploring Concept Depth: How Large Language Models Acquire Knowledge (and Concepts) at Different Layers?
(arXiv 2404.07066). A logistic regression per layer reads the class of a text from the state of its last token; the
course of the test accuracy over layers gives the jump point (first step of at least 10 %) and the converging point. All
layers come from one batched pass, and all their probes from one solver that converges to the unique optimum, which the
official code (100 iterations of lbfgs) often does not reach.

Where paper and code differ, both are offered: `split=paper` (80/20, classes in proportion) or `split=code` (60/40,
random_state 42, the classes listed in the official order); `noise=paper` (before the prompt, with a space) or
`noise=code` (glued to the question, which is then framed). `site=mlp_in` is what the code hooks in Llama: the
normalised input of the MLP, found by its role, not by the module's name. The converging point is given as written and
in the two readings that fit the paper's figures. Deviations: sets with groups are split by group (the paper's pairs of
true and false statements leak across a random split); labels are the file's (1 = true, positive, yes), so the code's F1
is `f1_class0` for the sets where it counts true as class 0; `int8` rounds the weights only, per output row, where the
paper's 8 bits are LLM.int8(), which rounds activations too; not offered are the code's alternative classifier (`--clf
RF`, a random forest) and the one-shot exemplar of its StrategyQA prompt; intervals, shuffled-label control,
selectivity, the false-positive rate of the jump rule and the causal check are additions. Intervals resample test rows
(or groups); probes are not refitted. The causal check edits one site of one layer at one token, with the probe of the
first fold: that an answer changes says that the model uses the direction there; that it does not says little, least of
all at `mlp_in`, past which the residual stream carries the same information.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from probes.concept_depth import concept_sets as concept_data
from probes.concept_depth import depth_points as depth
from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.estimate import estimate
from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.registry import DataSpec, option, probe
from workbench.models.sites import Site
from workbench.models.text_positions import word_ids
from workbench.stats.intervals import bootstrap_mean, resample_counts, wilson

BIBTEX = """@inproceedings{jin2025concept,
  title={Exploring Concept Depth: How Large Language Models Acquire Knowledge and Concept at Different Layers?},
  author={Jin, Mingyu and Yu, Qinkai and Huang, Jingyuan and Zeng, Qingcheng and Wang, Zhenting and Hua, Wenyue and Zhao, Haiyan and
          Mei, Kai and Meng, Yanda and Ding, Kaize and Yang, Fan and Du, Mengnan and Zhang, Yongfeng},
  booktitle={Proceedings of the 31st International Conference on Computational Linguistics},
  year={2025},
  note={arXiv:2404.07066}
}"""  # noqa: E501
ENGLISH = Path(__file__).parent / "material"
FEW = 30  # test rows below which a warning says so
OFTEN = 0.05  # false-positive rate of the jump rule that a warning is sure of
SITES = ("mlp_in", "resid_post", "resid_mid", "resid_pre", "attn_out", "mlp_out")


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
    split: str = option(
        "paper",
        "paper: 80/20, classes in proportion; code: 60/40 with random_state 42; kfold: every row is tested once",
        choices=("paper", "code", "kfold"),
    )
    folds: int = option(5, "parts of split=kfold", low=2)
    groups: str = option(
        "auto",
        "keep rows of one group on one side of the split: auto (sets with a group column of at least ten "
        "groups), yes, no",
        choices=("auto", "yes", "no"),
    )
    c: float = option(1.0, "inverse strength of the L2 penalty, as scikit-learn's C", low=1e-8)
    c_path: tuple[float, ...] = option((), "further values of c to report (table `path`)", low=1e-8)
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
        "plain-English sets that ship; none: all of --data",
        file=True,
    )
    pair: tuple[str, ...] = option((), "the two labels to tell apart, class 0 first, where a set has more")
    template: str = option(
        "file", "file: known formats in their official prompt, others as they are; plain; or a text with {text}"
    )
    limit: int = option(0, "rows per class to use, 0 for all", low=0)
    shuffles: int = option(
        10, "probes on shuffled labels per set: control accuracy and false positives of the jump rule", low=0
    )
    causal: str = option(
        "peak",
        "project the probe's direction out and watch the model's answer, where the set has answer words: at "
        "the layer of peak accuracy, all layers, off; site=resid_post takes it out of the residual stream",
        choices=("peak", "all", "off"),
    )
    random_draws: int = option(5, "random directions to project out for comparison", low=1)
    draws: int = option(1000, "bootstrap resamples for the intervals", low=100)
    store_dtype: str = option("float32", "how features are stored", choices=("float32", "float16"))
    max_tokens: int = option(
        0, "tokens in one batch; 0: 768 for each thread of a CPU, whose caches are small, 16384 on a GPU", low=0
    )


def validate(config: Config, data: Path | None) -> None:
    """Read every set and split it once: what cannot work is said before a model is loaded."""
    for concept in read_sets(config, data):
        concept_data.split(
            concept, config.split, folds=config.folds, groups=config.groups, rng=np.random.default_rng(0)
        )


def _material(config: Config, model: str) -> dict[str, Path]:
    """The plain-English sets that ship, where they are used."""
    return {
        name: ENGLISH if name == "english" else ENGLISH / f"{name.removeprefix('english/')}.jsonl"
        for name in config.sets
        if name.split("/")[0] == "english"
    }


@probe(
    "concept-depth",
    title="Concept depth",
    summary="At which layer a concept becomes linearly readable, and whether the model uses what the probe reads.",
    tables={
        "layers": (
            "dataset",
            "condition",
            "layer",
            "accuracy",
            "f1",
            "auc",
            "ci_low",
            "ci_high",
            "control_accuracy",
            "selectivity",
        ),
        "depth": (
            "dataset",
            "condition",
            "jump",
            "converge_literal",
            "converge_stable",
            "converge_after_jump",
            "peak_accuracy",
            "peak_layer",
        ),
        "inputs": ("row", "ids", "dataset", "condition", "label", "split"),
        "causal": (
            "dataset",
            "condition",
            "layer",
            "direction",
            "draw",
            "answer_accuracy",
            "separation",
            "removed_variance",
        ),
        "controls": ("dataset", "condition", "draw", "jump", "peak_accuracy"),
        "path": ("dataset", "condition", "c", "layer", "accuracy"),
        "sets": ("dataset", "difficulty", "n", "class0", "class1", "n_class1", "groups", "split_by_group"),
    },
    bibtex=BIBTEX,
    data=DataSpec(
        required=("text", "label"),
        columns=("group", "answer"),
        what="concept",
        default="workbench:organisms/data/concepts",
        folder=True,
    ),
    material=_material,
    validate=validate,
    figures="probes.concept_depth.figures:figures",
    figures_of_several="probes.concept_depth.figures:compare",
    estimate=estimate,
    example=lambda _model: {"split": "kfold", "noise": True, "causal": "peak", "limit": 60, "shuffles": 3},
    example_models=("organism",),
    layer_curves={"layers": ("accuracy", "selectivity")},
    version=2,
    keys={
        "layers": ("dataset", "condition", "layer"),
        "depth": ("dataset", "condition"),
        "inputs": ("row",),
        "sets": ("dataset",),
        "causal": ("dataset", "condition", "layer", "direction", "draw"),
        "controls": ("dataset", "condition", "draw"),
        "path": ("dataset", "condition", "c", "layer"),
    },
)
def run(model, config: Config, context: Context) -> Result:
    """Probe every layer for every concept set under every condition.

    Layers count from 0; points are relative depths i/d. Raises InputError for texts beyond the context and for NaN
    activations."""
    sets = read_sets(config, context.data)
    conditions = [("clean", None, None)]
    conditions += [("noise", "paper" if config.noise is True else config.noise, None)] if config.noise else []
    conditions += [("int8 weights" if name == "int8" else name, None, name) for name in config.precision]
    splits = {
        c.name: concept_data.split(
            c, config.split, folds=config.folds, groups=config.groups, rng=context.rng(f"split {c.name}")
        )
        for c in sets
    }
    for concept in sets:
        if seen := concept_data.tested_and_fitted_on(concept, splits[concept.name][0]):
            context.warn(
                f"{seen} texts of {concept.name} are tested on though the probe was fitted on the same text: "
                f"it may recognise them; remove the repeated rows."
            )
    found: dict[str, list[pl.DataFrame]] = {}
    inputs = []
    for number, (condition, noise, precision) in enumerate(conditions):
        subject = _once(
            lambda precision=precision: model if precision is None else in_precision(model, precision, context)
        )
        for k, concept in enumerate(sets):
            texts = concept.texts
            if noise:
                texts = concept_data.noisy(concept, noise, rng=context.rng(f"noise {concept.name}"))
            ids = _encode(model, concept, texts, config.token)
            inputs.append(_inputs(concept, condition, ids, splits[concept.name][0], start=sum(map(len, inputs))))
            part = context.part(
                f"{condition} {concept.name}",
                lambda: _study(subject(), concept, condition, ids, splits[concept.name], config, context),  # noqa: B023
            )  # noqa: B023
            for name, table in part.items():
                found.setdefault(name, []).append(table)
            context.progress(number * len(sets) + k + 1, len(conditions) * len(sets), "concept sets")
    # a point that a curve does not have is missing, not a number
    tables = {name: pl.concat(parts).with_columns(pl.selectors.float().fill_nan(None)) for name, parts in found.items()}
    tables["inputs"] = pl.concat(inputs)
    tables["sets"] = pl.DataFrame(
        [_describe(c, splits[c.name][1]) for c in sets], schema_overrides={"difficulty": pl.Int64}
    )
    return Result(tables, {}, _summary(tables))


# what is probed


def read_sets(config: Config, data: Path | None) -> list[ConceptSet]:
    """The concept sets that a config asks for, in the order asked (a folder: by difficulty where it is known, else by
    name)."""
    options = {"pair": config.pair, "template": config.template, "limit": config.limit}
    if not config.sets:
        sets = _with_difficulty(concept_data.load(data, **options), data)
    else:
        sets = []
        for name in config.sets:
            path = Path(name).expanduser()
            if name == "english":
                sets += _with_difficulty(concept_data.load(ENGLISH, **options), ENGLISH)
                continue
            if name.startswith("english/"):
                path = ENGLISH / f"{name.removeprefix('english/')}.jsonl"
            elif not path.is_file() and data is not None and data.is_dir():
                inside = [f for f in sorted(data.iterdir()) if f.is_file() and name in (f.name, f.name.split(".")[0])]
                if not inside:
                    raise InputError(
                        f"There is no concept set '{name}' in {data}; there are "
                        f"{', '.join(sorted(f.name.split('.')[0] for f in data.iterdir() if f.is_file()))}."
                    )
                path = inside[0]
            sets += _with_difficulty([concept_data.load_file(path, **options)], path.parent)
    twice = [c.name for c in sets if sum(c.name == other.name for other in sets) > 1]
    if twice:
        raise InputError(f"Two concept sets are called '{twice[0]}'; rename a file.")
    return sets


def _with_difficulty(sets: list[ConceptSet], where: Path) -> list[ConceptSet]:
    """Sets of a shipped folder (or of a file in it) with their difficulty, the easiest first; others as they are."""
    from probes.concept_depth import english_sets as english_concepts
    from workbench import organisms

    where = Path(where).resolve()
    if where.is_file():
        where = where.parent
    known: dict[str, int] = {}
    world = Path(organisms.__file__).resolve().parent / "data"
    if where == ENGLISH.resolve():
        known = {name: difficulty for name, (difficulty, _, _) in english_concepts.CONCEPTS.items()}
    elif where == world / "concepts":
        known = {
            name: about["difficulty"]
            for name, about in json.loads((world / "organism.json").read_text(encoding="utf-8"))["concepts"].items()
        }
    order = list(known)
    found = [replace(c, difficulty=known.get(c.name)) for c in sets]
    return sorted(found, key=lambda c: (c.difficulty or 0, order.index(c.name) if c.name in known else 0))


def _encode(model, concept: ConceptSet, texts, token: int | str) -> list[list[int]]:
    ids = model.encode_all(texts)
    for row, tokens in enumerate(ids):
        if not tokens or model.too_long(len(tokens)):
            raise InputError(
                f"The set '{concept.name}', row {row + 1}: the text has {len(tokens)} tokens; the model takes "
                f"1 to {model.context_length}."
            )
        if isinstance(token, int) and not -len(tokens) <= token < len(tokens):
            raise InputError(
                f"The set '{concept.name}', row {row + 1}: the text has {len(tokens)} tokens, and "
                f"token={token} is beyond them; choose one that every text has."
            )
    return ids


def in_precision(model, precision: str, context: Context):
    """A copy of the model with its weights in another precision. int8 rounds every weight matrix but the embeddings and
    the unembedding to 8 bits per output row (absmax) and computes in the model's own dtype: the rounding of LLM.int8(),
    without its kernels."""
    import torch

    from workbench.models.loading import wrap
    from workbench.models.model import DTYPES

    if getattr(model.hf.config, "quantization_config", None) is not None:
        raise InputError(
            f"The checkpoint {model.name} is quantised already; its weights cannot be taken to {precision}. "
            f"Use the original checkpoint."
        )
    if context.engine != "hf":
        raise InputError("Other precisions need the weights on this machine; run with --engine hf.")
    hf = copy.deepcopy(model.hf)
    if precision != "int8":
        if torch.finfo(DTYPES[precision]).bits > torch.finfo(model.dtype).bits:
            context.warn(
                f"The model was loaded in {str(model.dtype).removeprefix('torch.')}; {precision} cannot bring "
                f"back what that rounded away."
            )
        hf = hf.to(DTYPES[precision])
    else:
        spared = {id(m.weight) for m in (hf.get_input_embeddings(), hf.get_output_embeddings()) if m is not None}
        for module in hf.modules():
            weight = getattr(module, "weight", None)
            if weight is None or weight.ndim != 2 or id(weight) in spared or isinstance(module, torch.nn.Embedding):
                continue
            by_row = 0 if type(module).__name__ == "Conv1D" else 1  # GPT-2 keeps its matrices transposed
            scale = weight.float().abs().amax(by_row, keepdim=True).clamp(min=1e-12) / 127
            weight.data = (torch.round(weight.float() / scale) * scale).to(weight.dtype)
    return wrap(hf, model.tokenizer, name=f"{model.name} ({precision})")


# one set under one condition


def _study(
    model, concept: ConceptSet, condition: str, ids, split, config: Config, context: Context
) -> dict[str, pl.DataFrame]:
    """Tables of one set: features of all layers, probes, control, points, causal check."""
    import torch

    from probes.concept_depth import linear_probe

    tests, by_group = split
    labels, n_layers = concept.labels, model.n_layers
    features = _features(model, ids, config, context)
    for layer, x in enumerate(features):
        if (
            config.store_dtype == "float16"
            and model.dtype != torch.float16
            and bool(x.isinf().any())
            and not bool(x.isnan().any())
        ):
            raise InputError(
                f"The activations at {config.site}.{layer} for the set '{concept.name}' are too large for "
                f"float16; set store_dtype=float32."
            )
        if not bool(x.isfinite().all()):
            raise InputError(
                f"The activations at {config.site}.{layer} are NaN or infinite for the set '{concept.name}'; "
                f"load the model in float32 or bfloat16."
            )
        if bool((x == x[0]).all()) and config.site != "resid_pre":
            context.warn(
                f"The features of {concept.name} at {config.site}.{layer} are the same for every text; the "
                f"probe can only guess."
            )
    where = {"dataset": concept.name, "condition": condition}
    rows = np.concatenate(tests)
    starts = np.concatenate([[0], np.cumsum([len(t) for t in tests])])
    units = np.array(concept.groups)[rows] if by_group else None
    if by_group and len(set(units)) < 10:
        context.warn(
            f"The set '{concept.name}' is tested on {len(set(units))} groups only: its intervals are wide and "
            f"rough; split=kfold tests every group."
        )
    if len(rows) < FEW:
        context.warn(
            f"The set '{concept.name}' is tested on {len(rows)} rows: one of them is {100 / len(rows):.0f} "
            f"points of accuracy; add rows, or test all of them with split=kfold."
        )
    counts = resample_counts(len(rows), config.draws, context.rng(f"bootstrap {concept.name}"), clusters=units)

    def probe_layers(labels: np.ndarray, c: float = config.c):
        """Scores [L, rows] of held-out rows, the probes of the first fold, and the most iterations and error of any
        fold."""
        scores, kept, worst = np.empty((n_layers, len(rows))), None, [np.zeros(n_layers, dtype=int), np.zeros(n_layers)]
        for k, test in enumerate(tests):
            train = np.delete(np.arange(len(labels)), test)
            fitted = linear_probe.fit(
                [x[train] for x in features],
                labels[train],
                c=c,
                standardize=config.standardize,
                device=model.device,
                check=context.check,
            )
            scores[:, starts[k] : starts[k + 1]] = fitted.scores([x[test] for x in features])
            kept = kept or fitted
            worst = [np.maximum(worst[0], fitted.iterations), np.maximum(worst[1], fitted.error)]
        return scores, kept, worst

    scores, probes, (iterations, error) = probe_layers(labels)
    if (error > 1e-4).any():
        context.warn(
            f"The probes of {concept.name} ({condition}) did not converge in layer {int(error.argmax())} "
            f"(bound on the relative error {error.max():.1e})."
        )
    curve = linear_probe.metrics(scores, labels[rows])
    resampled = linear_probe.resampled_metrics(scores, labels[rows], counts)
    if len(tests) > 1:
        curve["auc"], resampled["auc"] = linear_probe.auc_of_folds(scores, labels[rows], counts, starts)
    low, high = ({k: np.nanquantile(v, q, axis=0) for k, v in resampled.items()} for q in (0.025, 0.975))

    shuffled, shuffle_rng = [], context.rng(f"shuffle {concept.name}")
    for _ in range(config.shuffles):
        other = shuffle_rng.permutation(labels)
        if all(len(set(np.delete(other, t))) == 2 for t in tests):
            shuffled.append(linear_probe.metrics(probe_layers(other)[0], other[rows])["accuracy"])
    control = np.array(shuffled).reshape(-1, n_layers)
    control_mean = control.mean(0) if len(control) else np.full(n_layers, np.nan)
    control_range = np.quantile(control, [0.025, 0.975], axis=0) if len(control) else np.full((2, n_layers), np.nan)
    context.check()
    layers = pl.DataFrame(
        where
        | {
            "layer": np.arange(n_layers),
            "depth": np.arange(n_layers) / n_layers,
            "accuracy": curve["accuracy"],
            "ci_low": low["accuracy"],
            "ci_high": high["accuracy"],
            "f1": curve["f1"],
            "f1_low": low["f1"],
            "f1_high": high["f1"],
            "f1_class0": curve["f1_class0"],
            "auc": curve["auc"],
            "auc_low": low["auc"],
            "auc_high": high["auc"],
            "control_accuracy": control_mean,
            "control_low": control_range[0],
            "control_high": control_range[1],
            "selectivity": curve["accuracy"] - control_mean,
            "iterations": iterations,
            "error": error,
            "n_train": len(labels) - len(tests[0]),
            "n_test": len(rows),
        }
    )
    points = _points(curve["accuracy"], resampled["accuracy"], control, len(rows))
    if condition == "clean" and points["false_positive_low"] > OFTEN:
        fired = round(points["false_positive_rate"] * len(control))
        context.warn(
            f"On shuffled labels of '{concept.name}' the jump rule fires in {fired} of {len(control)} courses "
            f"({len(rows)} test rows): do not read its jump; more test rows make chance jumps rare."
        )
    tables = {
        "layers": layers,
        "depth": pl.DataFrame([where | points], schema=_DEPTH),
        "controls": pl.DataFrame(
            [
                where | {"draw": k, "jump": float(depth.points(a)["jump"]), "peak_accuracy": float(a.max())}
                for k, a in enumerate(control)
            ],
            schema={
                "dataset": pl.String,
                "condition": pl.String,
                "draw": pl.Int64,
                "jump": pl.Float64,
                "peak_accuracy": pl.Float64,
            },
        ),
        "path": _path(
            where, config, lambda c: linear_probe.metrics(probe_layers(labels, c)[0], labels[rows]), n_layers
        ),
    }
    chosen = {"peak": [int(curve["accuracy"].argmax())], "all": list(range(n_layers)), "off": []}[config.causal]
    causal = (
        _causal(model, concept, ids, tests[0], features, probes, chosen, config, context)
        if condition == "clean"
        else []
    )
    tables["causal"] = pl.DataFrame([where | row for row in causal], schema=_CAUSAL)
    return tables


def _features(model, ids, config: Config, context: Context) -> list:
    """Features of every layer, [L][n, d] float32, through the store: one pass, shared with any other run of the same
    texts."""
    from workbench.engine.capture import capture

    sites = layer_sites(model, config.site)
    positions = config.token if isinstance(config.token, str) else [config.token]
    acts = capture(
        model,
        ids,
        sites,
        positions=positions,
        dtype=config.store_dtype,
        edits=context.edits,
        store=context.store,
        context=context,
        engine=context.engine,
        max_tokens=model.tokens_at_once(config.max_tokens),
    )
    return [acts[Site(config.site, layer)].flatten(1).float() for layer in range(model.n_layers)]


def layer_sites(model, kind: str) -> list[Site]:
    """The sites of one capture: every layer, and with resid_post the final norm too, as representation-geometry asks
    for them."""
    return [Site(kind, layer) for layer in range(model.n_layers)] + (
        [Site("final_norm")] if kind == "resid_post" else []
    )


_INTERVALS = ("jump", "converge_literal", "converge_stable", "converge_after_jump", "comprehension")
_DEPTH = {
    "dataset": pl.String,
    "condition": pl.String,
    **{f"{name}{end}": pl.Float64 for name in _INTERVALS for end in ("", "_low", "_high", "_share")},
    "peak_accuracy": pl.Float64,
    "peak_low": pl.Float64,
    "peak_high": pl.Float64,
    "peak_layer": pl.Int64,
    "peak_layer_low": pl.Int64,
    "peak_layer_high": pl.Int64,
    "false_positive_rate": pl.Float64,
    "false_positive_low": pl.Float64,
    "false_positive_high": pl.Float64,
    "n_shuffles": pl.Int64,
    "n_layers": pl.Int64,
    "n_test": pl.Int64,
}
_CAUSAL = {
    "dataset": pl.String,
    "condition": pl.String,
    "layer": pl.Int64,
    "direction": pl.String,
    "draw": pl.Int64,
    "answer_accuracy": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "separation": pl.Float64,
    "separation_low": pl.Float64,
    "separation_high": pl.Float64,
    "changed": pl.Float64,
    "removed_variance": pl.Float64,
    "n": pl.Int64,
}


def _points(curve: np.ndarray, resampled: np.ndarray, control: np.ndarray, n_test: int) -> dict:
    """Jump, converging points, comprehension and peak of a curve [L] with intervals over resampled curves [draws, L],
    and how often the jump rule fires on shuffled labels, control [shuffles, L]."""
    row: dict = {}
    value, draws = depth.points(curve), depth.points(resampled)
    for name in _INTERVALS:
        row[name] = float(value[name])
        row[f"{name}_low"], row[f"{name}_high"], row[f"{name}_share"] = depth.interval(draws[name])
    peak = int(curve.argmax())
    # the maximum of resampled curves is biased upward: the interval is that of the layer where the curve peaks
    row |= {"peak_accuracy": float(curve[peak]), "peak_layer": peak}
    row["peak_low"], row["peak_high"] = map(float, np.quantile(resampled[:, peak], [0.025, 0.975]))
    row["peak_layer_low"], row["peak_layer_high"] = map(
        int, np.quantile(resampled.argmax(1), [0.025, 0.975], method="nearest")
    )
    fired = int((~np.isnan(depth.points(control)["jump"])).sum()) if len(control) else 0
    row["false_positive_rate"] = fired / len(control) if len(control) else float("nan")
    row["false_positive_low"], row["false_positive_high"] = wilson(fired, len(control))
    return row | {"n_shuffles": len(control), "n_layers": len(curve), "n_test": n_test}


def _path(where: dict, config: Config, measure: Callable, n_layers: int) -> pl.DataFrame:
    rows = []
    for c in config.c_path:
        found = measure(c)
        rows += [
            where | {"c": c, "layer": layer, **{k: float(found[k][layer]) for k in ("accuracy", "f1", "auc")}}
            for layer in range(n_layers)
        ]
    schema = {
        "dataset": pl.String,
        "condition": pl.String,
        "c": pl.Float64,
        "layer": pl.Int64,
        "accuracy": pl.Float64,
        "f1": pl.Float64,
        "auc": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema)


# does the model use it?


def _causal(
    model, concept: ConceptSet, ids, test, features, probes, layers, config: Config, context: Context
) -> list[dict]:
    """What projecting a direction out of the probed site does to the model's own answer on held-out rows.

    The answer is the likelier of the two answer words' first tokens; `separation` is how much further the logit
    difference lies towards class 1 for texts of class 1 than for texts of class 0; `changed` is the share of answers
    that differ from the unedited model's; `removed_variance` is the share of the held-out features' variance that lies
    along the direction: how much an edit takes out at all."""
    import torch

    from workbench.engine.capture import logits
    from workbench.engine.edits import ProjectOut

    if concept.answers is None or not layers:
        return []
    if context.engine != "hf":
        context.warn("The causal check needs edits, which only the engine 'hf' runs here; it was left out.")
        return []
    words = [word_ids(model, concept.texts[0], word)[0] for word in concept.answers]
    if words[0] == words[1]:
        context.warn(
            f"The answers of {concept.name} ({' and '.join(concept.answers)}) begin with the same token; the "
            f"causal check was left out."
        )
        return []
    test = np.sort(test)
    label, chosen = concept.labels[test], [ids[i] for i in test]
    generator = context.rng(f"directions {concept.name}")

    def answers(edit=()) -> np.ndarray:
        scores = logits(
            model,
            chosen,
            edits=(*context.edits, *edit),
            max_tokens=model.tokens_at_once(config.max_tokens),
            check=context.check,
        )
        return (scores[:, words[1]] - scores[:, words[0]]).double().numpy()

    def row(layer, direction, draw, difference, removed=0.0) -> dict:
        right = (difference > 0) == (label == 1)
        centred = (
            difference - difference.mean()
        )  # the difference of two means does not see it, but their bootstrap would
        signed = np.where(label == 1, centred / (label == 1).mean(), -centred / (label == 0).mean())
        low, high = bootstrap_mean(np.stack([right, signed], 1), draws=config.draws, rng=context.rng("causal"))
        return {
            "layer": layer,
            "direction": direction,
            "draw": draw,
            "answer_accuracy": float(right.mean()),
            "ci_low": low[0],
            "ci_high": high[0],
            "separation": float(signed.mean()),
            "separation_low": low[1],
            "separation_high": high[1],
            "changed": float(((difference > 0) != (base > 0)).mean()),
            "removed_variance": removed,
            "n": len(label),
        }

    base = answers()
    rows = [row(-1, "none", 0, base)]
    positions = None if config.token == "mean" else (-1 if config.token == "last" else config.token,)
    for layer in layers:
        x = features[layer][test].double().cpu()
        x = x - x.mean(0)
        trials = [("probe", 0, probes.coef[layer])]
        trials += [
            ("random", draw, torch.from_numpy(generator.standard_normal(model.width)))
            for draw in range(config.random_draws)
        ]
        for direction, draw, vector in trials:
            if float(vector.norm()) > 0:
                removed = float((x @ (vector / vector.norm())).square().sum() / x.square().sum().clamp(min=1e-300))
                rows.append(
                    row(
                        layer,
                        direction,
                        draw,
                        answers([ProjectOut(Site(config.site, layer), vector, positions=positions)]),
                        removed,
                    )
                )
    return rows


# what is kept


def _once(make: Callable) -> Callable:
    """`make()` at the first call, its value afterwards."""
    kept: list = []
    return lambda: kept[0] if kept else (kept.append(make()) or kept[0])


def _inputs(concept: ConceptSet, condition: str, ids, tests, *, start: int) -> pl.DataFrame:
    fold = np.full(len(ids), -1)
    for k, test in enumerate(tests):
        fold[test] = k
    return pl.DataFrame(
        {
            "row": np.arange(start, start + len(ids)),
            "ids": [list(map(int, row)) for row in ids],
            "dataset": concept.name,
            "condition": condition,
            "label": concept.labels,
            "split": ["test" if f >= 0 else "train" for f in fold],
            "fold": fold,
            "group": pl.Series(list(concept.groups or [None] * len(ids)), dtype=pl.String),
        }
    )


def _describe(concept: ConceptSet, by_group: bool) -> dict:
    answers = concept.answers or ("", "")
    return {
        "dataset": concept.name,
        "difficulty": concept.difficulty,
        "n": len(concept),
        "class0": concept.classes[0],
        "class1": concept.classes[1],
        "n_class1": int(concept.labels.sum()),
        "groups": len(set(concept.groups)) if concept.groups else 0,
        "split_by_group": by_group,
        "answer0": answers[0],
        "answer1": answers[1],
    }


def _summary(tables: dict[str, pl.DataFrame]) -> dict:
    out: dict = {}
    for row in tables["depth"].iter_rows(named=True):
        name = row["dataset"] if row["condition"] == "clean" else f"{row['dataset']} ({row['condition']})"
        n = row["n_test"]
        out[f"{name}: peak accuracy"] = {
            "value": row["peak_accuracy"],
            "low": row["peak_low"],
            "high": row["peak_high"],
            "n": n,
        }
        out[f"{name}: peak layer"] = row["peak_layer"]
        for point in ("jump", "converge_stable"):
            out[f"{name}: {point.replace('_', ' ')}"] = {
                "value": row[point],
                "low": row[f"{point}_low"],
                "high": row[f"{point}_high"],
                "n": n,
            }
    rates = tables["depth"].filter(
        condition="clean"
    )  # the other conditions shuffle the labels in the same way: no further trials
    if rates["n_shuffles"].sum():
        fired = int(round((rates["false_positive_rate"].fill_null(0) * rates["n_shuffles"]).sum()))
        low, high = wilson(fired, int(rates["n_shuffles"].sum()))
        out["jump rule on shuffled labels"] = {
            "value": fired / int(rates["n_shuffles"].sum()),
            "low": low,
            "high": high,
            "n": int(rates["n_shuffles"].sum()),
        }
    return out
