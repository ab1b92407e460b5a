"""Data selection (MONA): rank a pool of training samples by the sparse features they share with a few examples of a
task.

Ma et al., Task-Specific Data Selection for Instruction Tuning via Monosemantic Neuronal Activations (arXiv 2503.15573).
Each sample is the mean, over its tokens, of its sparse-autoencoder features at one site; a target is the mean of its
examples; the score is the generalised Jaccard similarity of the two; the samples that score highest are selected (5 %
by default).

The forward pass stops at the site, what all samples begin with (a chat template's system prompt) is read and encoded
once, tokens are encoded in batches, and only the entries that are not zero are compared: activations and features never
pile up, and what grows with the pool is its text, 5 bytes a token, and a few numbers a row. A stopped run goes on with
the next part of the pool. Scores have intervals over resampled examples of the target; those of precision are over
selected rows. Deviations: BOS and other special tokens are not counted unless `specials` (the paper does not say; their
norm dominates the sums); identical token sequences are computed once and score the same; equal scores keep the order of
the file. Not in the paper: `prototype` max or subtask, `tokens` prompt or response, containment. BM25 scores are
averaged over the examples of a target, as the features are.

Does it select better? Not where we could measure it. On the organism's pool (nine topics that share words) and on 601
rows of GSM8K, Dolly and three BBH tasks, which the organism cannot read, features select far better than chance, but
not better than raw neurons, the hidden state or BM25 (tests/studies/selection.json: every method and similarity, 5 %
selected, with intervals). Labels that follow from words favour BM25; a model that reads the text may differ. A run
names the baselines that its features do not beat (`not_better_than` in the summary). With aggregate=sum the selected
rows have about the target's length, with mean they are longer, as in Table 7.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from probes.data_selection.rankings import bm25, compare, ranked, resample_counts, selected_share, undecided, verdict
from probes.data_selection.samples import (
    LABELS,
    TOKENS,
    Samples,
    labels_of,
    target_files,
    tokenize,
)
from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.files import write_bytes
from workbench.core.registry import DataSpec, option, probe
from workbench.core.sample_tables import read_samples, texts
from workbench.organisms.material import shipped_sae

if TYPE_CHECKING:
    from probes.data_selection.sample_vectors import Reader

BIBTEX = """@inproceedings{ma2025mona,
  title={Task-Specific Data Selection for Instruction Tuning via Monosemantic Neuronal Activations},
  author={Ma, Da and Shang, Gonghu and Chen, Zhi and Qin, Libo and Luo, Yijie and Xu, Hongshen and Pan, Lei and Fan, Shuai and Chen, Lu and Yu, Kai},
  booktitle={Advances in Neural Information Processing Systems},
  year={2025},
  note={arXiv:2503.15573}
}"""  # noqa: E501
METHODS = ("bm25", "neurons", "hidden", "random")
RANDOM_DRAWS = 5  # of the baseline `random`, whose numbers are their means
LOW_VARIANCE = 0.5  # explained variance below which the features are not to be trusted
DRAWS_KEPT = 20_000_000  # numbers up to which the scores of every resample are kept, for `selected_share`


@dataclass(frozen=True)
class Config:
    target: tuple[str, ...] = option(
        ("default",),
        "files with examples of the task, one target each, named like the file; default: those of the "
        "organism, also by name (sea, music)",
        file=True,
    )
    sae: str = option(
        "default",
        "the sparse autoencoder: a folder, owner/repository:folder, or release:id; default: the one that "
        "ships with the model; none: only baselines",
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
    template: str = option(
        "{prompt} {response}", "how prompt and response become one text; chat: the tokenizer's chat template"
    )
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
        50, "resamples of a target's examples, for score_low, score_high and selected_share; 0: none", low=0
    )
    neurons_k: int | None = option(
        None, "neurons kept per token by the baseline `neurons`; none: the autoencoder's k, else 32", low=1
    )
    label: str = option(
        "auto", f"column of the pool that says what a sample is of (for precision); auto: {', '.join(LABELS)}; none"
    )
    exclude_duplicates: bool = option(
        False, "never select a pool row for a target that has the same tokens among its examples"
    )
    features: int = option(12, "features per target to explain", low=0)
    passages: int = option(3, "top passages per explained feature", low=0)
    explain: int = option(10, "selected samples per target whose shared features are listed", low=0)
    map_rows: int = option(
        0, "samples to lay out on a map (UMAP of their similarities to each other); 0 for no map", low=0
    )
    chunk: int = option(1024, "pool samples in one resumable part", low=1)
    max_tokens: int = option(
        0, "tokens in one batch; 0: 768 for each thread of a CPU, whose caches are small, 16384 on a GPU", low=0
    )

    def __post_init__(self) -> None:
        if self.template != "chat" and not 0 <= self.template.find("{prompt}") < self.template.find("{response}"):
            raise ValueError(f"the template '{self.template}' needs {{prompt}} and then {{response}}, or is chat")
        if self.sae == "none" and not self.baselines:
            raise ValueError("sae=none leaves the baselines, and there are none")
        if min(self.ratio, *self.ratios, 1) == 0:
            raise ValueError("a ratio of 0 selects nothing; give one above 0, or a number of samples (k)")


def validate(config: Config, data: Path | None) -> None:
    """Read pool and targets, find the autoencoder: what cannot work is said before a model is loaded."""
    pool = read_samples(data, what="pool", tokens=config.tokens)
    targets = {}
    for name, path in target_files(config.target).items():
        targets[name] = read_samples(path, what=f"target {name}", tokens=config.tokens)
        if config.prototype == "subtask" and (
            "subtask" not in targets[name].columns or targets[name]["subtask"].dtype.is_nested()
        ):
            raise InputError(f"{path} has no column 'subtask' of words or numbers, which prototype=subtask needs.")
    wanted = config.k or max(1, round(config.ratio * pool.height))
    if wanted > pool.height:
        raise InputError(f"{data} has {pool.height} rows, fewer than the {wanted} to select (k).")
    if config.label not in ("auto", "none") and config.label not in pool.columns:
        raise InputError(f"{data} has no column '{config.label}' (label); it has {', '.join(pool.columns)}.")
    labels_of(pool, targets, config.label)
    site = None
    if config.site != "auto":
        from workbench.models.sites import Site

        site = Site.parse(config.site)
    if config.sae not in ("default", "none") and (":" not in config.sae or Path(config.sae).expanduser().is_dir()):
        from workbench.sae.load import find, recorded_site

        there = recorded_site(find(config.sae))
        if site is not None and there is not None and there != site:
            raise InputError(
                f"The sparse autoencoder '{config.sae}' was trained on {there}, not on {site}; its features "
                f"mean nothing there."
            )


def _material(config: Config, model: str) -> dict[str, Path]:
    """The autoencoder and the targets that ship, where they are used."""
    shipped = shipped_sae(model) if config.sae == "default" else None
    own = [Path(entry).expanduser() for entry in config.target]
    return ({"sae": shipped} if shipped else {}) | {
        f"target {name}": path for name, path in target_files(config.target).items() if path not in own
    }


@probe(
    "data-selection",
    title="Data selection",
    summary="Which samples of a pool look like a task inside the model, in sparse-autoencoder features, and why each "
    "was chosen.",
    tables={
        "scores": ("row", "target", "score", "rank", "selected"),
        "features": ("target", "feature", "weight", "density"),
        "quality": ("site", "l0", "explained_variance", "dead_fraction"),
        "inputs": ("row", "ids", "role", "mask"),
        "selected": ("target", "rank", "row", "score"),
        "selections": ("target", "method", "rank", "row", "score"),
        "precision": ("target", "method", "ratio", "k", "precision", "ci_low", "ci_high", "base_rate"),
        "overlap": ("target", "ratio", "method_a", "method_b", "overlap", "expected"),
        "lengths": ("target", "method", "ratio", "mean", "median", "target_mean", "pool_mean"),
        "passages": ("feature", "place", "row", "start", "peak", "tokens", "activations", "activation"),
        "effects": ("feature", "promotes", "promoted_by", "suppresses", "suppressed_by"),
        "shared": ("target", "row", "feature", "in_sample", "in_target", "both"),
        "map": ("row", "x", "y"),
    },
    bibtex=BIBTEX,
    data=DataSpec(
        what="pool", default="workbench:organisms/data/pool.jsonl", columns=("text", "prompt", "response", "topic")
    ),
    material=_material,
    validate=validate,
    figures="probes.data_selection.figures:figures",
    version=3,
    keys={"scores": ("row", "target"), "features": ("target", "feature"), "precision": ("target", "method", "ratio")},
    demo={"target": ("sea", "music", "facts"), "features": 8},
)
def run(model, config: Config, context: Context) -> Result:
    """Score every pool sample against every target; select, compare with the baselines, explain.

    Raises InputError for an autoencoder that does not fit the model and for targets without any active feature."""
    if context.engine != "hf":
        raise InputError(
            "data-selection encodes tokens while they are computed, which only the engine 'hf' allows; run it "
            "with --engine hf."
        )
    reader = _reader(model, config, context)
    frame = read_samples(context.data, what="pool", tokens=config.tokens)
    targets = {
        name: read_samples(path, what=f"target {name}", tokens=config.tokens)
        for name, path in target_files(config.target).items()
    }
    labels, said = labels_of(frame, targets, config.label)
    if said:
        context.warn(said)
    pool = _tokenized(model, frame, "pool", config, context)
    examples = {name: _tokenized(model, table, f"target {name}", config, context) for name, table in targets.items()}
    usable = {name: np.flatnonzero(samples.counted > 0) for name, samples in examples.items()}
    targets = {name: table[usable[name]] for name, table in targets.items()}
    examples = {name: samples.take(usable[name]) for name, samples in examples.items()}
    context.count(prompts=len(pool) + sum(map(len, examples.values())))

    prototypes, resampled, group = _prototypes(reader, examples, targets, config, context)
    wanted, features = _top_features(prototypes.get("sae"), group, list(targets), config)
    scores, spread, facts = _score_pool(
        reader, pool, prototypes, resampled, group, len(targets), wanted, config, context
    )
    if "bm25" in config.baselines:
        scores["bm25"] = bm25(
            texts(frame, config.tokens), {name: texts(table, config.tokens) for name, table in targets.items()}
        )
    chance = [
        np.stack([context.rng(f"random {name} {i}").random(frame.height) for name in targets], axis=1)
        for i in range(RANDOM_DRAWS)
    ]
    if "random" in config.baselines:
        scores["random"] = chance[0]
    taken = [set(example.keys) for example in examples.values()]
    duplicate = np.array([[key in keys for keys in taken] for key in pool.keys])
    if duplicate.any():
        fate = (
            "excluded from the target's selection"
            if config.exclude_duplicates
            else "left in; exclude_duplicates=true takes them out"
        )
        many = int(duplicate.any(1).sum())
        context.warn(f"{many} pool row{'s are' if many > 1 else ' is'} also among the examples of a target ({fate}).")
    allowed = [
        np.flatnonzero((pool.counted > 0) & ~(duplicate[:, t] & config.exclude_duplicates)) for t in range(len(targets))
    ]
    size = config.k or max(1, round(config.ratio * len(pool)))
    for t, name in enumerate(targets):
        if size > len(allowed[t]):
            without = (
                f"the {int(duplicate[:, t].sum())} duplicates of the target {name} and "
                if config.exclude_duplicates
                else ""
            )
            raise InputError(
                f"Without {without}rows that do not count, {len(allowed[t])} pool rows are left, fewer than "
                f"the {size} to select."
            )
    main = reader.main
    orders = {
        m: [
            [ranked(draw[:, t], allowed[t]) for t in range(len(targets))]
            for draw in (chance if m == "random" else [found])
        ]
        for m, found in scores.items()
    }

    for method, found in scores.items():
        for t, name in enumerate(targets):
            if method != "random" and (tied := undecided(found[:, t], orders[method][0][t], size)) > max(2, size / 2):
                context.warn(
                    f"{tied} pool rows have the same {method} score for the target {name}, and only some of "
                    f"them are selected: the order of the file decides which."
                )
    tables = _score_tables(
        frame, pool, list(targets), scores[main], spread, orders[main][0], allowed, size, duplicate, labels
    )
    sizes = {size / len(pool) if config.k else config.ratio: size} | {
        r: max(1, round(r * len(pool))) for r in config.ratios if config.k or r != config.ratio
    }
    lengths = {"lengths": pool.counted, "target_lengths": [e.counted.mean() for e in examples.values()]}
    tables |= compare(list(targets), scores, orders, dict(sorted(sizes.items())), labels=labels, **lengths)
    tables |= {
        "inputs": _inputs(pool, examples),
        "features": _density(features, wanted, facts),
        "quality": _quality(reader, model, facts, context),
    }
    tables |= _explain(
        reader,
        model,
        pool,
        prototypes.get("sae"),
        group,
        list(targets),
        [o[: config.explain] for o in orders[main][0]],
        wanted,
        facts,
        config,
        context,
    )
    tables["map"] = _map(reader, pool, config, context)
    if context.out is not None:
        _export(context.out, tables["selected"], list(targets))
    return Result(tables, {}, _summary(tables, main, size, pool, duplicate, reader, context))


def _tokenized(model, table: pl.DataFrame, what: str, config: Config, context: Context) -> Samples:
    found = tokenize(
        model,
        table,
        what=what,
        tokens=config.tokens,
        specials=config.specials,
        template=config.template,
        check=context.check,
    )
    if found.cut:
        context.warn(
            f"{found.cut} of {len(found)} rows of the {what} are longer than the model's context of "
            f"{model.context_length} tokens and were cut there."
        )
    if lost := int((found.counted == 0).sum()):
        where = "they are not scored and never selected" if what == "pool" else "they are left out"
        context.warn(
            f"{lost} of {len(found)} rows of the {what} have no token that counts (tokens={config.tokens}, "
            f"within the context); {where}."
        )
    return found


# from tokens to prototypes


def _reader(model, config: Config, context: Context) -> Reader:
    """The autoencoder and the sites that the config asks for, as they fit the model."""
    from probes.data_selection.sample_vectors import Reader
    from workbench.models.sites import Site
    from workbench.sae import load as sae

    source = config.sae
    if source == "default":
        shipped = shipped_sae(model.name)
        if shipped is None:
            raise InputError(
                f"No sparse autoencoder ships with {model.name}; train one with `workbench train-sae`, give "
                f"sae=FOLDER, or sae=none for the baselines."
            )
        source = str(shipped)
    loaded = None
    if source != "none":
        loaded = sae.load(source, device=model.device, site=None if config.site == "auto" else config.site)
        for message in sae.check_fits(loaded, model):
            context.warn(message)
        context.sae = loaded.describe() | {"path": config.sae if config.sae != "default" else f"{model.name} (shipped)"}
    site = (
        loaded.site
        if loaded
        else Site("resid_post", max(0, model.n_layers - 2))
        if config.site == "auto"
        else Site.parse(config.site)
    )
    model.module(site)
    layer = site.layer if site.layer is not None else model.n_layers - 1
    neurons = sae.gate_neurons(model, layer) if "neurons" in config.baselines else None
    kept = config.neurons_k or (loaded.k if loaded and loaded.k else 32)
    return Reader(
        model,
        loaded,
        site,
        neurons,
        kept,
        config.baselines,
        config.aggregate,
        model.tokens_at_once(config.max_tokens),
        context.edits,
    )


def _prototypes(
    reader: Reader, examples: dict[str, Samples], tables: dict[str, pl.DataFrame], config: Config, context: Context
):
    """({method: [P, width] float64}, what resampling needs, target of each prototype [P]): the mean of a target's
    examples, or one per example or subtask. For `max`, how often an example is drawn: one array [B, P of the target]
    per target; otherwise, and for the main method only, the prototypes of resampled examples: one tensor [B, P of the
    target, width] in float32 per target (None: one example)."""
    import torch

    found: dict[str, list] = {}
    group: list[int] = []
    resampled: list[Any] = []
    for t, (name, samples) in enumerate(examples.items()):
        if config.prototype == "subtask":
            names = tables[name]["subtask"].cast(pl.String).fill_null("").to_list()
            kinds = sorted(set(names))
            member = np.array([kinds.index(s) for s in names])
        else:
            member = np.arange(len(samples)) if config.prototype == "max" else np.zeros(len(samples), np.int64)
        p = int(member.max()) + 1
        drawn = resample_counts(
            len(samples),
            np.zeros_like(member) if config.prototype == "max" else member,
            config.resamples,
            context.rng(f"resamples {name}"),
        )
        boot = None
        sums: dict[str, Any] = {}
        for indices, vectors, *_ in reader.read(samples.lists(range(len(samples))), samples.masks, context):
            where = torch.as_tensor(member[indices], device=reader.model.device)
            for method, rows in vectors.items():
                if method == "hidden":
                    total = sums.setdefault(
                        method, torch.zeros(p, rows.shape[1], dtype=torch.float64, device=rows.device)
                    )
                    total.index_add_(0, where, rows)
                else:
                    total = sums.setdefault(
                        method, torch.zeros(p, rows.width, dtype=torch.float64, device=rows.value.device)
                    )
                    total.view(-1).index_add_(0, where[rows.row] * rows.width + rows.feature, rows.value)
                if method != reader.main or drawn is None or config.prototype == "max":
                    continue
                boot = total.new_zeros(len(drawn), *total.shape, dtype=torch.float32) if boot is None else boot
                weight = torch.as_tensor(drawn[:, indices], device=total.device, dtype=torch.float32)
                for b in range(len(drawn)):
                    if method == "hidden":
                        boot[b].index_add_(0, where, rows.float() * weight[b, :, None])
                    else:
                        boot[b].view(-1).index_add_(
                            0, where[rows.row] * rows.width + rows.feature, rows.value.float() * weight[b, rows.row]
                        )
        count = torch.as_tensor(np.bincount(member, minlength=p), device=reader.model.device)
        for method, total in sums.items():
            if method == "sae" and not bool((total > 0).any()):
                raise InputError(
                    f"No feature of the sparse autoencoder is active on any example of the target '{name}'."
                )
            found.setdefault(method, []).append(total / count[:, None])
        resampled.append(drawn if config.prototype == "max" else None if boot is None else boot / count[:, None])
        group += [t] * p
    return {method: torch.cat(parts) for method, parts in found.items()}, resampled, np.array(group)


def _top_features(prototypes, group: np.ndarray, names: list[str], config: Config) -> tuple[list[int], list[dict]]:
    """The features to explain (without repeats), and the rows of the table `features` without their densities."""
    rows = []
    for t, name in enumerate(names if prototypes is not None else []):
        weight = prototypes[np.flatnonzero(group == t)].mean(0)
        best = weight.topk(min(config.features, len(weight)))
        rows += [
            {"target": name, "feature": int(f), "weight": float(w), "share": float(w / weight.sum())}
            for f, w in zip(best.indices, best.values)
            if w > 0
        ]
    return sorted({row["feature"] for row in rows}), rows


# one pass over the pool


def _score_pool(
    reader: Reader,
    pool: Samples,
    prototypes,
    resampled,
    group,
    n_targets: int,
    wanted: list[int],
    config: Config,
    context: Context,
):
    """({method: scores [N, targets]}, {low, high, draws} of the main method, facts about the features): equal samples
    are computed once, in resumable parts whose facts are added up as they come. Rows in which nothing counts score
    NaN."""
    first: dict[bytes, int] = {}
    for key, counted in zip(pool.keys, pool.counted):
        if counted:
            first.setdefault(key, len(first))
    place = np.array([first.get(key, len(first)) for key in pool.keys])
    rows = np.unique(place, return_index=True)[1][: len(first)]  # the place after the last is of rows that do not count
    times = np.bincount(place, minlength=len(first) + 1)
    keep = len(rows) * n_targets * config.resamples <= DRAWS_KEPT
    if not keep and any(r is not None for r in resampled):
        context.warn(
            f"There is no selected_share: {len(rows):,} samples × {n_targets} targets × {config.resamples} "
            f"resamples are too many to keep; lower resamples for it."
        )
    found: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    for number, start in enumerate(range(0, len(rows), config.chunk)):
        mine = rows[start : start + config.chunk]
        part = context.part(
            f"pool {number}",
            lambda mine=mine, start=start: _score_part(
                reader,
                pool,
                mine,
                times[start : start + len(mine)],
                prototypes,
                resampled,
                group,
                n_targets,
                wanted,
                keep,
                config,
                context,
            ),
        )
        for key, value in part.items():
            if key.startswith("row "):
                whole = found.setdefault(key[4:], np.full((len(rows) + 1, *value.shape[1:]), np.nan, value.dtype))
                whole[start : start + len(mine)] = value
            elif not key.startswith("top "):
                _add(facts, key, value)
        if "top value" in part:
            _keep_highest(facts, part, config.passages)
        context.progress(min(start + config.chunk, len(rows)), len(rows), "samples")
    found = {key: value[place] for key, value in found.items()}
    return (
        {m: found[m] for m in prototypes},
        {key: found[key] for key in ("low", "high", "draws") if key in found},
        facts,
    )


def _score_part(
    reader: Reader,
    pool: Samples,
    rows,
    times,
    prototypes,
    resampled,
    group,
    n_targets: int,
    wanted,
    keep: bool,
    config: Config,
    context: Context,
) -> dict[str, np.ndarray]:
    """Scores of some pool samples, and sums over their tokens, each sample as many `times` as it is in the pool: how
    often features fire, how well the activations are rebuilt, where the wanted features fire most."""
    import torch

    from workbench.sae.features import column_of
    from workbench.sae.sparse_rows import dense_cosine, similarity

    out = {f"row {m}": np.empty((len(rows), n_targets)) for m in prototypes}
    if reader.main in prototypes and any(r is not None for r in resampled):
        out |= {"row low": np.full((len(rows), n_targets), np.nan), "row high": np.full((len(rows), n_targets), np.nan)}
        out |= {"row draws": np.full((len(rows), n_targets, config.resamples), np.nan, np.float32)} if keep else {}
    facts: dict[str, Any] = {}
    peak = np.zeros((len(wanted), len(rows)), np.float32)
    column = column_of(wanted, reader.sae.d_sae).to(reader.model.device) if reader.sae is not None else None
    for indices, vectors, x, tokens, owner in reader.read(pool.lists(rows), [pool.masks[i] for i in rows], context):
        for method, vector in vectors.items():
            found = (
                dense_cosine(vector, prototypes[method])
                if method == "hidden"
                else similarity(vector, prototypes[method], config.similarity)
            )
            found = found.cpu().numpy()
            out[f"row {method}"][indices] = np.stack([found[:, group == t].max(1) for t in range(n_targets)], axis=1)
            if method == reader.main and "row low" in out:
                for t, again in enumerate(resampled):
                    if again is None:
                        continue
                    if config.prototype == "max":
                        drawn = np.stack([found[:, group == t][:, some > 0].max(1) for some in again], axis=1)
                    else:
                        flat = again.flatten(0, 1)
                        near = (
                            dense_cosine(vector, flat)
                            if method == "hidden"
                            else similarity(vector, flat, config.similarity, dtype=flat.dtype)
                        )
                        drawn = near.view(len(indices), *again.shape[:2]).amax(2).cpu().numpy()
                    out["row low"][indices, t], out["row high"][indices, t] = np.quantile(drawn, [0.025, 0.975], axis=1)
                    if keep:
                        out["row draws"][indices, t] = drawn
        if tokens is None:
            continue
        # what all begin with comes without rows, and is in all of them
        own = torch.as_tensor(times[indices] if indices else [times.sum()], dtype=torch.float64, device=x.device)
        weight = own[owner]
        of_entry = weight[tokens.row]
        _add(facts, "fired", torch.bincount(tokens.feature, weights=of_entry, minlength=tokens.width))
        _add(
            facts,
            "tokens",
            torch.tensor(
                [float(weight.sum()), float(of_entry.sum()), float(own.sum()) if indices else 0.0], dtype=torch.float64
            ),
        )
        if wanted:
            mine = column[tokens.feature] >= 0
            n = max(1, len(indices))
            flat = column[tokens.feature[mine]] * n + owner[tokens.row[mine]]
            best = (
                torch.zeros(len(wanted) * n, device=x.device)
                .scatter_reduce(0, flat, tokens.value[mine], "amax")
                .view(-1, n)
                .cpu()
                .numpy()
            )
            where = indices or slice(None)
            peak[:, where] = np.maximum(peak[:, where], best)
        if wanted and indices:
            sums = vectors["sae"]
            mine = column[sums.feature] >= 0
            _add(
                facts,
                "pool weight",
                torch.zeros(len(wanted), dtype=torch.float64, device=x.device).index_add_(
                    0, column[sums.feature[mine]], sums.value[mine] * own[sums.row[mine]]
                ),
            )
        error = (x.float() - reader.sae.decode(tokens, x).reshape(x.shape)).double().flatten(1)
        flat = x.double().flatten(1)
        _add(facts, "sum", weight @ flat)
        _add(facts, "squares", torch.stack([weight @ (flat * flat).sum(1), weight @ (error * error).sum(1)]))
    out |= {key: value.cpu().numpy() for key, value in facts.items()}
    if wanted and config.passages:
        best = _highest(peak, config.passages)
        out |= {"top value": np.take_along_axis(peak, best, 1), "top row": np.asarray(rows)[best]}
    return out


def _keep_highest(facts: dict[str, Any], part: dict[str, np.ndarray], n: int) -> None:
    """Add the strongest rows of one more part; of equal ones the earlier."""
    value, row = (
        np.concatenate([facts[key], part[key]], axis=1) if key in facts else part[key]
        for key in ("top value", "top row")
    )
    best = _highest(value, n)
    facts |= {"top value": np.take_along_axis(value, best, 1), "top row": np.take_along_axis(row, best, 1)}


def _highest(values: np.ndarray, n: int) -> np.ndarray:
    """Columns of the n largest of each row, to three digits: texts that begin alike have the same peak but for
    rounding, and the first counts."""
    mantissa, exponent = np.frexp(values)
    return np.argsort(-np.ldexp(np.round(mantissa, 3), exponent), axis=1, kind="stable")[:, :n]


def _add(facts: dict[str, Any], key: str, value) -> None:
    facts[key] = facts[key] + value if key in facts else value


# tables


def _score_tables(
    frame, pool: Samples, names, scores, spread, order, allowed, size: int, duplicate, labels
) -> dict[str, pl.DataFrame]:
    """`scores` of every row and target, and `selected`: the rows of the file that were chosen, with their scores."""
    found, chosen = [], []
    for t, name in enumerate(names):
        rank = np.zeros(len(scores), np.int64)
        rank[order[t]] = np.arange(1, len(order[t]) + 1)
        columns = {
            "row": np.arange(len(scores)),
            "target": name,
            "score": scores[:, t],
            "rank": rank,
            "length": pool.counted,
            "duplicate": duplicate[:, t],
        }
        nothing = np.full(len(scores), np.nan)
        columns |= {f"score_{end}": spread[end][:, t] if end in spread else nothing for end in ("low", "high")}
        columns["selected_share"] = (
            selected_share(spread["draws"][:, t], allowed[t], size) if "draws" in spread else nothing
        )
        table = pl.DataFrame(columns).with_columns(
            pl.col("score", "score_low", "score_high", "selected_share").fill_nan(None)
        )
        if labels is not None:
            table = table.with_columns(label=pl.Series(labels[0]), relevant=pl.Series(labels[0] == labels[1][t]))
        found.append(
            table.with_columns(
                rank=pl.when(pl.col("rank") > 0).then("rank"), selected=(pl.col("rank") > 0) & (pl.col("rank") <= size)
            )
        )
        best = order[t][:size]
        columns = {"target": name, "rank": np.arange(1, len(best) + 1), "row": best, "score": scores[best, t]}
        names_of = dict.fromkeys(frame.columns)
        for c in frame.columns:  # also of a pool that is itself a selection
            free = c
            while free in columns or free in names_of.values() or (free != c and free in frame.columns):
                free = f"pool_{free}"
            names_of[c] = free
        original = frame[best].rename(names_of)
        chosen.append(pl.concat([pl.DataFrame(columns), original], how="horizontal"))
    return {"scores": pl.concat(found), "selected": pl.concat(chosen)}


def _density(rows: list[dict], wanted: list[int], facts: dict[str, np.ndarray]) -> pl.DataFrame:
    """`features` with the share of pool tokens on which each fires, and its mean weight in the pool."""
    schema = {
        "target": pl.String,
        "feature": pl.Int64,
        "weight": pl.Float64,
        "share": pl.Float64,
        "density": pl.Float64,
        "pool_weight": pl.Float64,
    }
    place = {feature: i for i, feature in enumerate(wanted)}
    extra = [
        {
            "density": facts["fired"][r["feature"]] / facts["tokens"][0],
            "pool_weight": facts["pool weight"][place[r["feature"]]] / facts["tokens"][2],
        }
        for r in rows
    ]
    return pl.DataFrame([a | b for a, b in zip(rows, extra)], schema=schema)


def _quality(reader: Reader, model, facts: dict[str, np.ndarray], context: Context) -> pl.DataFrame:
    """Mean active features per token, explained variance, features that never fire: over every token of the pool that
    counts.

    `loss_recovered_training` is of the autoencoder's training report, and only where it was trained on these
    weights."""
    schema = {
        "site": pl.String,
        "l0": pl.Float64,
        "explained_variance": pl.Float64,
        "dead_fraction": pl.Float64,
        "tokens": pl.Int64,
        "d_sae": pl.Int64,
        "k": pl.Int64,
        "loss_recovered_training": pl.Float64,
    }
    if reader.sae is None:
        return pl.DataFrame(schema=schema)
    (total, error), (tokens, entries, _) = facts["squares"], facts["tokens"]
    spread = total - (facts["sum"] ** 2).sum() / tokens
    explained = 1 - error / spread if spread > 1e-9 * total else None  # one token, again and again, has no variance
    if explained is not None and not explained >= LOW_VARIANCE:
        worse = ", less than the mean of the activations does" if explained < 0 else ""
        context.warn(
            f"The sparse autoencoder explains {explained:.2g} of the variance of these activations{worse}: "
            f"its features do not describe this model on this pool, "
            "and the selection cannot be trusted."
        )
    known = (
        reader.sae.report.get("loss_recovered")
        if reader.sae.trained_on.get("model_fingerprint") == model.fingerprint
        else None
    )
    dead = float((facts["fired"] == 0).mean())
    return pl.DataFrame(
        [(str(reader.site), entries / tokens, explained, dead, int(tokens), reader.sae.d_sae, reader.sae.k, known)],
        schema=schema,
        orient="row",
    )


def _inputs(pool: Samples, examples: dict[str, Samples]) -> pl.DataFrame:
    parts = []
    for role, name, samples in [
        ("pool", None, pool),
        *(("target", name, samples) for name, samples in examples.items()),
    ]:
        ids, mask = (
            pl.Series("ids", samples.ids).cast(pl.List(pl.Int32)),
            pl.Series("mask", samples.masks).cast(pl.List(pl.Boolean)),
        )
        parts.append(
            pl.DataFrame([ids, mask]).select(
                pl.lit(role).alias("role"), pl.lit(name, pl.String).alias("target"), "ids", "mask"
            )
        )
    return pl.concat(parts).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))


def _explain(
    reader: Reader,
    model,
    pool: Samples,
    prototypes,
    group,
    names,
    best,
    wanted,
    facts,
    config: Config,
    context: Context,
) -> dict[str, pl.DataFrame]:
    """Top passages and logit effects of the wanted features; what the best samples of each target share with it."""
    passages = {
        "feature": pl.Int64,
        "place": pl.Int64,
        "row": pl.Int64,
        "start": pl.Int64,
        "peak": pl.Int64,
        "tokens": pl.List(pl.String),
        "activations": pl.List(pl.Float64),
        "activation": pl.Float64,
    }
    shared = {
        "target": pl.String,
        "row": pl.Int64,
        "feature": pl.Int64,
        "in_sample": pl.Float64,
        "in_target": pl.Float64,
        "both": pl.Float64,
    }
    effects = {
        "feature": pl.Int64,
        "promotes": pl.List(pl.String),
        "promoted_by": pl.List(pl.Float64),
        "suppresses": pl.List(pl.String),
        "suppressed_by": pl.List(pl.Float64),
    }
    if reader.sae is None:
        return {
            "passages": pl.DataFrame(schema=passages),
            "effects": pl.DataFrame(schema=effects),
            "shared": pl.DataFrame(schema=shared),
        }
    from workbench.sae import features as explain

    def compute() -> dict[str, pl.DataFrame]:
        found: list[dict] = []
        if wanted and config.passages:
            rows = sorted({int(r) for r, v in zip(facts["top row"].ravel(), facts["top value"].ravel()) if v > 0})
            seen = {}
            if rows:  # a feature of the targets need not occur in the pool
                activations = explain.token_activations(
                    model, reader.sae, pool.lists(rows), wanted, edits=context.edits, check=context.check
                )
                seen = dict(zip(rows, activations))
            for f, feature in enumerate(wanted):
                for place, (row, value) in enumerate(zip(facts["top row"][f], facts["top value"][f])):
                    if value > 0:
                        piece = explain.passage(model, pool.ids[row].tolist(), seen[row][:, f], counted=pool.masks[row])
                        found.append({"feature": feature, "place": place + 1, "row": int(row)} | piece)
        rows = sorted({int(r) for some in best for r in some})
        common: dict[tuple[int, int], list] = {}
        for indices, vectors, *_ in (
            reader.read(pool.lists(rows), [pool.masks[r] for r in rows], context) if rows else ()
        ):
            for i, index in enumerate(indices):
                for t in range(len(names)):
                    if rows[index] in best[t]:
                        common[t, rows[index]] = explain.shared(
                            *vectors["sae"].take(i), prototypes[np.flatnonzero(group == t)].mean(0)
                        )
        lines = [(names[t], int(row), *entry) for t in range(len(names)) for row in best[t] for entry in common[t, row]]
        return {
            "passages": pl.DataFrame(found, schema=passages),
            "shared": pl.DataFrame(lines, schema=shared, orient="row"),
        }

    return context.part("explanations", compute) | {"effects": explain.logit_effect(model, reader.sae, wanted)}


def _map(reader: Reader, pool: Samples, config: Config, context: Context) -> pl.DataFrame:
    """Some samples of the pool, drawn at random, in two dimensions."""
    rows = np.sort(context.rng("map").permutation(np.flatnonzero(pool.counted > 0))[: config.map_rows])
    if reader.sae is None or len(rows) < 4:
        return pl.DataFrame(schema={"row": pl.Int64, "x": pl.Float64, "y": pl.Float64})
    from probes.data_selection.pool_map import layout
    from workbench.sae.sparse_rows import stack

    def compute() -> dict[str, pl.DataFrame]:
        parts = [
            (indices, vectors["sae"])
            for indices, vectors, *_ in reader.read(pool.lists(rows), [pool.masks[r] for r in rows], context)
            if indices
        ]
        place = layout(stack([part for _, part in parts]), seed=context.torch_seed("map") % 2**31, check=context.check)
        order = rows[np.concatenate([indices for indices, _ in parts])]
        return {"map": pl.DataFrame({"row": order, "x": place[:, 0], "y": place[:, 1]}).sort("row")}

    return context.part("map", compute)["map"]


def _export(out: Path, selected: pl.DataFrame, names: list[str]) -> None:
    """The chosen rows of each target as JSONL beside the tables (which hold them as Parquet)."""
    used: set[str] = set()
    for name in names:
        rows = selected.filter(pl.col("target") == name).iter_rows(named=True)
        safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
        while safe.lower() in used:  # "a b" and "a-b"
            safe += "-2"
        used.add(safe.lower())
        write_bytes(
            out / f"selected-{safe}.jsonl",
            "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode(),
        )


def _summary(
    tables, main: str, size: int, pool: Samples, duplicate, reader: Reader, context: Context
) -> dict[str, Any]:
    out: dict[str, Any] = {
        "pool": len(pool),
        "selected": size,
        "method": main,
        "duplicates_of_targets": int(duplicate.any(1).sum()),
    }
    if reader.sae is not None:
        row = tables["quality"].row(0, named=True)
        out |= {name: row[name] for name in ("l0", "explained_variance", "dead_fraction")}
    lengths = tables["lengths"].filter((pl.col("method") == main) & (pl.col("k") == size))
    if lengths.height:
        out |= {
            "mean_length_selected": lengths["mean"].mean(),
            "mean_length_target": lengths["target_mean"].mean(),
            "mean_length_pool": lengths["pool_mean"].mean(),
        }
    at = tables["precision"].filter(pl.col("k") == size).unique(("target", "method"), keep="first", maintain_order=True)
    if not at.height:
        return out
    out |= verdict(at, main, context.rng)
    ahead = [
        m
        for m in at["method"].unique(maintain_order=True)
        if m not in (main, "random") and not out[f"{main}_minus_{m}"]["low"] > 0
    ]
    if main == "sae" and ahead:
        out["not_better_than"] = ", ".join(ahead)
    return out
