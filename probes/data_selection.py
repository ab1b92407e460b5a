"""Data selection (MONA): rank a pool of training samples by the sparse features they share with a few examples of a task.

Ma et al., Task-Specific Data Selection for Instruction Tuning via Monosemantic Neuronal Activations (arXiv 2503.15573).
Each sample is the mean, over its tokens, of its sparse-autoencoder features at one site; a target is the mean of its examples; the
score is the generalised Jaccard similarity of the two; the samples that score highest are selected (5 % by default).

The forward pass stops at the site, tokens are encoded in batches, and only the entries that are not zero are compared, so memory
does not grow with the pool (texts, token ids and one score per target aside); a stopped run goes on with the next part of the pool.
Deviations: BOS and other special tokens are not counted unless `specials` (the paper does not say; their norm dominates the sums);
identical token sequences are computed once and score the same; equal scores keep the order of the file. Not in the paper: `prototype`
max or subtask, `tokens` prompt or response, containment. BM25 scores are averaged over the examples of a target, as the features are.

Measured, 5 % selected: on the organism's pool (nine targets) features, neurons, hidden state and BM25 all select as many rows of the topic
as there are (mean precision .969 of .969; random .084): the topics differ in their words, so that pool cannot tell the methods apart. On 600
rows of GSM8K, Dolly and three BBH tasks, which the organism cannot read, BM25 is best (1.00) and features (.75), neurons (.76) and hidden
state (.77) do not differ beyond their intervals: nothing here shows that sparse features select better.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from workbench.context import Context, Result
from workbench.errors import InputError
from workbench.files import write_bytes
from workbench.rankings import bm25, compare, ranked
from workbench.registry import DataSpec, option, probe
from workbench.samples import LABELS, TOKENS, Samples, labels_of, read_samples, texts, tokenize
from workbench.statistics import bootstrap_mean, paired_difference

BIBTEX = """@inproceedings{ma2025mona,
  title={Task-Specific Data Selection for Instruction Tuning via Monosemantic Neuronal Activations},
  author={Ma, Da and Shang, Gonghu and Chen, Zhi and Qin, Libo and Luo, Yijie and Xu, Hongshen and Pan, Lei and Fan, Shuai and Chen, Lu and Yu, Kai},
  booktitle={Advances in Neural Information Processing Systems},
  year={2025},
  note={arXiv:2503.15573}
}"""
METHODS = ("bm25", "neurons", "hidden", "random")
QUALITY_TOKENS = 2048  # tokens of each part of the pool that are also decoded, for the explained variance


@dataclass(frozen=True)
class Config:
    target: tuple[str, ...] = option(("default",), "files with examples of the task, one target each, named like the file; default: those of the organism, also by name (sea, music)", file=True)
    sae: str = option("default", "the sparse autoencoder: a folder, owner/repository:folder, or release:id; default: the one that ships with the model; none: only baselines", file=True)
    site: str = option("auto", "where to read: a site such as resid_post.30; auto: the autoencoder's own, else the penultimate layer")
    ratio: float = option(0.05, "share of the pool to select", low=0, high=1)
    k: int | None = option(None, "number of samples to select, in place of the ratio", low=1)
    aggregate: str = option("mean", "tokens of a sample to one vector: mean (paper), sum (prefers the target's length), last", choices=("mean", "sum", "last"))
    similarity: str = option("jaccard", "how samples are compared with the target", choices=("jaccard", "cosine", "euclidean", "containment"))
    prototype: str = option("mean", "mean of the examples (paper), max over the examples, or max over the means of the target's subtask column", choices=("mean", "max", "subtask"))
    tokens: str = option("all", "which tokens count: all (paper), those of the prompt, or those of the response", choices=TOKENS)
    specials: bool = option(False, "count BOS and other special tokens too")
    template: str = option("{prompt} {response}", "how prompt and response become one text; chat: the tokenizer's chat template")
    baselines: tuple[str, ...] = option(METHODS, "other rankings to compare with: bm25, neurons (TopK of the MLP gate), hidden (cosine of the residual stream), random", choices=METHODS)
    ratios: tuple[float, ...] = option((0.01, 0.05, 0.1), "shares of the pool at which precision, overlap and lengths are reported", low=0, high=1)
    neurons_k: int | None = option(None, "neurons kept per token by the baseline `neurons`; none: the autoencoder's k, else 32", low=1)
    label: str = option("auto", f"column of the pool that says what a sample is of (for precision); auto: {', '.join(LABELS)}; none")
    exclude_duplicates: bool = option(False, "never select a pool row whose tokens are those of a target example")
    features: int = option(12, "features per target to explain", low=0)
    passages: int = option(3, "top passages per explained feature", low=0)
    explain: int = option(10, "selected samples per target whose shared features are listed", low=0)
    map_rows: int = option(0, "samples to lay out on a map (UMAP of their similarities to each other); 0 for no map", low=0)
    chunk: int = option(1024, "pool samples in one resumable part", low=1)
    max_tokens: int = option(4096, "tokens in one batch", low=1)

    def __post_init__(self) -> None:
        if self.template != "chat" and not 0 <= self.template.find("{prompt}") < self.template.find("{response}"):
            raise ValueError(f"the template '{self.template}' needs {{prompt}} and then {{response}}, or is chat")
        if self.sae == "none" and not self.baselines:
            raise ValueError("sae=none leaves the baselines, and there are none")


def validate(config: Config, data: Path | None) -> None:
    """Read pool and targets, find the autoencoder: what cannot work is said before a model is loaded."""
    pool = read_samples(data, what="pool", tokens=config.tokens)
    for name, path in target_files(config).items():
        target = read_samples(path, what=f"target {name}", tokens=config.tokens)
        if config.prototype == "subtask" and "subtask" not in target.columns:
            raise InputError(f"{path} has no column 'subtask', which prototype=subtask needs.")
    wanted = config.k or max(1, round(config.ratio * pool.height))
    if wanted > pool.height:
        raise InputError(f"{data} has {pool.height} rows, fewer than the {wanted} to select (k).")
    if config.label not in ("auto", "none") and config.label not in pool.columns:
        raise InputError(f"{data} has no column '{config.label}' (label); it has {', '.join(pool.columns)}.")
    if config.sae not in ("default", "none") and ":" not in config.sae:
        from workbench.sae import find

        find(config.sae)


@probe(
    "data-selection",
    title="Data selection",
    summary="Which samples of a pool look like a task inside the model, in sparse-autoencoder features, and why each was chosen.",
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
    data=DataSpec(what="pool", default="workbench:organisms/data/pool.jsonl", columns=("text", "prompt", "response", "topic")),
    validate=validate,
    figures="workbench.figures.data_selection:figures",
    keys={"scores": ("row", "target"), "features": ("target", "feature"), "precision": ("target", "method", "ratio")},
    demo={"target": ("sea", "music", "facts"), "features": 8},
)
def run(model, config: Config, context: Context) -> Result:
    """Score every pool sample against every target; select, compare with the baselines, explain.

    Raises InputError for an autoencoder that does not fit the model and for targets without any active feature."""
    if context.engine != "hf":
        raise InputError("data-selection encodes tokens while they are computed, which only the engine 'hf' allows; run it with --engine hf.")
    frame = read_samples(context.data, what="pool", tokens=config.tokens)
    targets = {name: read_samples(path, what=f"target {name}", tokens=config.tokens) for name, path in target_files(config).items()}
    pool = _tokenized(model, frame, "pool", config, context)
    examples = {name: _tokenized(model, table, f"target {name}", config, context) for name, table in targets.items()}
    reader = Reader.of(model, config, context)
    context.count(prompts=len(pool.ids) + sum(len(e.ids) for e in examples.values()))

    prototypes, group = _prototypes(reader, examples, targets, config, context)
    wanted, features = _top_features(prototypes.get("sae"), group, list(targets), config)
    scores, facts = _score_pool(reader, pool, prototypes, group, len(targets), wanted, config, context)
    if "bm25" in config.baselines:
        scores["bm25"] = bm25(texts(frame), {name: texts(table) for name, table in targets.items()})
    if "random" in config.baselines:
        scores["random"] = np.stack([context.rng(f"random {name}").random(frame.height) for name in targets], axis=1)

    taken = {key for example in examples.values() for key in example.keys}
    duplicate = np.array([key in taken for key in pool.keys])
    if duplicate.any():
        fate = "excluded" if config.exclude_duplicates else "left in; exclude_duplicates=true takes them out"
        context.warn(f"{int(duplicate.sum())} pool rows are also target examples ({fate}).")
    allowed = np.flatnonzero(~(duplicate & config.exclude_duplicates))
    size = config.k or max(1, round(config.ratio * len(pool.ids)))
    if size > len(allowed):
        raise InputError(f"Without the {int(duplicate.sum())} duplicates of targets, {len(allowed)} pool rows are left, fewer than the {size} to select.")
    main = "sae" if reader.sae is not None else config.baselines[0]
    order = {method: [ranked(found[:, t], allowed) for t in range(len(targets))] for method, found in scores.items()}

    labels = labels_of(frame, targets, config.label)
    tables = _score_tables(frame, pool, list(targets), scores[main], order[main], size, duplicate, labels)
    sizes = {size / len(allowed) if config.k else config.ratio: size} | {r: max(1, round(r * len(allowed))) for r in config.ratios if config.k or r != config.ratio}
    lengths = {"lengths": pool.counted, "target_lengths": [e.counted.mean() for e in examples.values()]}
    tables |= compare(list(targets), scores, order, dict(sorted(sizes.items())), labels=labels, **lengths)
    tables |= {"inputs": _inputs(pool, examples), "features": _density(features, facts), "quality": _quality(reader, facts)}
    tables |= _explain(reader, model, pool, prototypes.get("sae"), group, list(targets), [o[: config.explain] for o in order[main]], wanted, facts, config, context)
    tables["map"] = _map(reader, pool, config, context)
    if context.out is not None:
        _export(context.out, tables["selected"], list(targets))
    return Result(tables, {}, _summary(tables, main, size, pool, duplicate, reader, config, context))


# reading


def target_files(config: Config) -> dict[str, Path]:
    """Name → file of each target."""
    from importlib.resources import files

    shipped = {p.stem: p for p in sorted(Path(str(files("workbench").joinpath("organisms/data/targets"))).glob("*.jsonl"))}
    if config.target == ("default",):
        return shipped
    found: dict[str, Path] = {}
    for entry in config.target:
        path = Path(entry).expanduser()
        path = shipped[entry] if not path.exists() and entry in shipped else path
        if path.stem in found:
            raise InputError(f"Two targets are called '{path.stem}'; rename a file.")
        found[path.stem] = path
    return found


def _tokenized(model, table: pl.DataFrame, what: str, config: Config, context: Context) -> Samples:
    found = tokenize(model, table, what=what, tokens=config.tokens, specials=config.specials, template=config.template, check=context.check)
    if found.cut:
        context.warn(f"{found.cut} of {len(found.ids)} rows of the {what} are longer than the model's context of {model.context_length} tokens and were cut there.")
    return found


# from tokens to one vector per sample


@dataclass(eq=False)
class Reader:
    """What is computed on every sample: sparse features, sparse neurons, the plain hidden state, as far as they are wanted."""

    model: Any
    sae: Any  # workbench.sae.Sae or None
    site: Any
    neurons: Any  # (site, function, what) or None
    neurons_k: int
    config: Config
    edits: tuple

    @staticmethod
    def of(model, config: Config, context: Context) -> Reader:
        from workbench import organisms, sae
        from workbench.sites import Site

        source = config.sae
        if source == "default":
            shipped = organisms.WEIGHTS / "sae" / ("organism" if model.name.startswith("organism") else Path(model.name).name)
            if not (shipped / "cfg.json").is_file():
                raise InputError(f"No sparse autoencoder ships with {model.name}; train one with `workbench train-sae`, give sae=FOLDER, or sae=none for the baselines.")
            source = str(shipped)
        loaded = None
        if source != "none":
            loaded = sae.load(source, device=model.device, site=None if config.site == "auto" else config.site)
            for message in sae.check_fits(loaded, model):
                context.warn(message)
            context.sae = loaded.describe() | {"path": config.sae if config.sae != "default" else f"{model.name} (shipped)"}
        site = loaded.site if loaded else Site("resid_post", max(0, model.n_layers - 2)) if config.site == "auto" else Site.parse(config.site)
        model.module(site)
        layer = site.layer if site.layer is not None else model.n_layers - 1
        neurons = sae.gate_neurons(model, layer) if "neurons" in config.baselines else None
        return Reader(model, loaded, site, neurons, config.neurons_k or (loaded.k if loaded and loaded.k else 32), config, context.edits)

    def read(self, ids: Sequence[Sequence[int]], masks: Sequence[np.ndarray], context: Context) -> Iterator[tuple[list[int], dict[str, Any], Any, Any, Any]]:
        """Yield (row indices, {method: one vector per sample}, activations of the counted tokens, their sparse rows, their owners)."""
        import torch

        from workbench.capture import stream
        from workbench.sae import neuron_rows
        from workbench.similarity import sum_tokens

        sites = list(dict.fromkeys([self.site] + ([self.neurons[0]] if self.neurons else [])))
        for indices, found, batch in stream(self.model, ids, sites, positions="all", edits=self.edits, max_tokens=self.config.max_tokens, check=context.check):
            x = found[self.site]
            counted = torch.from_numpy(np.concatenate([masks[i] for i in indices])).to(x.device)
            owner = torch.repeat_interleave(torch.arange(len(indices)), batch.lengths.cpu()).to(x.device)
            if self.config.aggregate == "last":
                last = torch.zeros(len(indices), dtype=torch.int64, device=x.device).scatter_reduce(0, owner[counted], counted.nonzero()[:, 0], "amax")
                counted = torch.zeros_like(counted).index_fill_(0, last, True)
            x, owner = x[counted], owner[counted]
            n = len(indices)
            per = torch.bincount(owner, minlength=n) if self.config.aggregate != "sum" else torch.ones(n, device=x.device)
            out: dict[str, Any] = {}
            tokens = None
            if self.sae is not None:
                tokens = self.sae.encode(x)
                out["sae"] = sum_tokens(tokens, owner, n).divided(per)
            if self.neurons:
                values = self.neurons[1](found[self.neurons[0]][counted])
                out["neurons"] = sum_tokens(neuron_rows(values, self.neurons_k), owner, n).divided(per)
            if "hidden" in self.config.baselines:
                flat = x.flatten(1).double()
                out["hidden"] = torch.zeros(n, flat.shape[1], dtype=torch.float64, device=x.device).index_add_(0, owner, flat) / per[:, None]
            context.count(tokens=batch.tokens, forwards=1)
            yield indices, out, x, tokens, owner


def _prototypes(reader: Reader, examples: dict[str, Samples], tables: dict[str, pl.DataFrame], config: Config, context: Context):
    """({method: [P, width] float64}, target of each prototype [P]): the mean of a target's examples, or one per example or subtask."""
    import torch

    found: dict[str, list] = {}
    group: list[int] = []
    for t, (name, samples) in enumerate(examples.items()):
        if config.prototype == "subtask":
            names = tables[name]["subtask"].cast(pl.String).fill_null("").to_list()
            kinds = sorted(set(names))
            member = torch.tensor([kinds.index(s) for s in names])
        else:
            member = torch.arange(len(samples.ids)) if config.prototype == "max" else torch.zeros(len(samples.ids), dtype=torch.int64)
        p = int(member.max()) + 1
        sums: dict[str, Any] = {}
        for indices, vectors, *_ in reader.read(samples.ids, samples.masks, context):
            for method, rows in vectors.items():
                where = member[indices].to(reader.model.device)
                if method == "hidden":
                    total = sums.setdefault(method, torch.zeros(p, rows.shape[1], dtype=torch.float64, device=rows.device))
                    total.index_add_(0, where, rows)
                else:
                    total = sums.setdefault(method, torch.zeros(p, rows.width, dtype=torch.float64, device=rows.value.device))
                    total.view(-1).index_add_(0, where[rows.row] * rows.width + rows.feature, rows.value)
        count = torch.bincount(member, minlength=p).to(reader.model.device)
        for method, total in sums.items():
            if method == "sae" and not bool((total > 0).any()):
                raise InputError(f"No feature of the sparse autoencoder is active on any example of the target '{name}'.")
            found.setdefault(method, []).append(total / count[:, None])
        group += [t] * p
    return {method: torch.cat(parts) for method, parts in found.items()}, np.array(group)


def _top_features(prototypes, group: np.ndarray, names: list[str], config: Config) -> tuple[list[int], list[dict]]:
    """The features to explain (without repeats), and the rows of the table `features` without their densities."""
    rows = []
    for t, name in enumerate(names if prototypes is not None else []):
        weight = prototypes[np.flatnonzero(group == t)].mean(0)
        best = weight.topk(min(config.features, len(weight)))
        rows += [{"target": name, "feature": int(f), "weight": float(w), "share": float(w / weight.sum())} for f, w in zip(best.indices, best.values) if w > 0]
    return sorted({row["feature"] for row in rows}), rows


# one pass over the pool


def _score_pool(reader: Reader, pool: Samples, prototypes, group, n_targets: int, wanted: list[int], config: Config, context: Context):
    """({method: scores [N, targets]}, facts about the features): equal samples are computed once, in resumable parts."""
    first: dict[bytes, int] = {}
    place = np.array([first.setdefault(key, len(first)) for key in pool.keys])
    rows = np.unique(place, return_index=True)[1]
    parts = []
    for number, start in enumerate(range(0, len(rows), config.chunk)):
        mine = rows[start : start + config.chunk]
        parts.append(context.part(f"pool {number}", lambda mine=mine: _score_part(reader, pool, mine, prototypes, group, n_targets, wanted, config, context)))
        context.progress(min(start + config.chunk, len(rows)), len(rows), "samples")
    scores = {m: np.concatenate([part[f"score {m}"] for part in parts])[place] for m in prototypes}
    facts = {key: sum(part[key] for part in parts) for key in parts[0] if key not in ("top value", "top row") and not key.startswith("score")}
    if "top value" in parts[0]:
        value, row = (np.concatenate([part[key] for part in parts], axis=1) for key in ("top value", "top row"))
        best = _highest(value, config.passages)
        facts |= {"top value": np.take_along_axis(value, best, 1), "top row": np.take_along_axis(row, best, 1)}
    return scores, facts


def _score_part(reader: Reader, pool: Samples, rows, prototypes, group, n_targets: int, wanted, config: Config, context: Context) -> dict[str, np.ndarray]:
    """Scores of some pool samples, and sums over their tokens: how often features fire, how well the activations are rebuilt, where
    the wanted features fire most."""
    import torch

    from workbench.features import column_of
    from workbench.similarity import dense_cosine, similarity

    scores = {f"score {m}": np.empty((len(rows), n_targets)) for m in prototypes}
    facts: dict[str, Any] = {}
    peak = np.zeros((len(wanted), len(rows)), np.float32)
    column = column_of(wanted, reader.sae.d_sae).to(reader.model.device) if reader.sae is not None else None
    decoded = 0
    for indices, vectors, x, tokens, owner in reader.read([pool.ids[i] for i in rows], [pool.masks[i] for i in rows], context):
        for method, vector in vectors.items():
            found = dense_cosine(vector, prototypes[method]) if method == "hidden" else similarity(vector, prototypes[method], config.similarity)
            found = found.cpu().numpy()
            scores[f"score {method}"][indices] = np.stack([found[:, group == t].max(1) for t in range(n_targets)], axis=1)
        if tokens is None:
            continue
        _add(facts, "fired", torch.bincount(tokens.feature, minlength=tokens.width))
        _add(facts, "tokens", torch.tensor([tokens.n, len(tokens.value)]))
        _add(facts, "pool weight", torch.zeros(tokens.width, dtype=torch.float64, device=x.device).index_add_(0, vectors["sae"].feature, vectors["sae"].value))
        _add(facts, "samples", torch.tensor(len(indices)))
        if wanted:
            mine = column[tokens.feature] >= 0
            flat = column[tokens.feature[mine]] * len(indices) + owner[tokens.row[mine]]
            best = torch.zeros(len(wanted) * len(indices), device=x.device).scatter_reduce(0, flat, tokens.value[mine], "amax")
            peak[:, indices] = best.view(len(wanted), -1).cpu().numpy()
        if decoded < QUALITY_TOKENS:
            some = x[: QUALITY_TOKENS - decoded].float()
            part = tokens.row < len(some)
            rebuilt = reader.sae.decode(type(tokens)(tokens.row[part], tokens.feature[part], tokens.value[part], len(some), tokens.width))
            some, error = some.flatten(1).double(), (some - rebuilt.reshape(some.shape)).flatten(1).double()
            decoded += len(some)
            _add(facts, "sum", some.sum(0))
            _add(facts, "squares", torch.stack([(some * some).sum(), (error * error).sum(), torch.tensor(float(len(some)), device=x.device, dtype=torch.float64)]))
    out = scores | {key: value.cpu().numpy() for key, value in facts.items()}
    if wanted and config.passages:
        best = _highest(peak, config.passages)
        out |= {"top value": np.take_along_axis(peak, best, 1), "top row": np.asarray(rows)[best]}
    return out


def _highest(values: np.ndarray, n: int) -> np.ndarray:
    """Columns of the n largest of each row, to three digits: texts that begin alike have the same peak but for rounding, and the first counts."""
    mantissa, exponent = np.frexp(values)
    return np.argsort(-np.ldexp(np.round(mantissa, 3), exponent), axis=1, kind="stable")[:, :n]


def _add(facts: dict[str, Any], key: str, value) -> None:
    facts[key] = facts[key] + value if key in facts else value


# tables


def _score_tables(frame, pool: Samples, names, scores, order, size: int, duplicate, labels) -> dict[str, pl.DataFrame]:
    """`scores` of every row and target, and `selected`: the rows of the file that were chosen, with their scores."""
    found, chosen = [], []
    for t, name in enumerate(names):
        rank = np.zeros(len(scores), np.int64)
        rank[order[t]] = np.arange(1, len(order[t]) + 1)
        table = pl.DataFrame({"row": np.arange(len(scores)), "target": name, "score": scores[:, t], "rank": rank, "length": pool.counted, "duplicate": duplicate})
        if labels is not None:
            table = table.with_columns(label=pl.Series(labels[0]), relevant=pl.Series(labels[0] == labels[1][t]))
        found.append(table.with_columns(rank=pl.when(pl.col("rank") > 0).then("rank"), selected=(pl.col("rank") > 0) & (pl.col("rank") <= size)))
        best = order[t][:size]
        columns = {"target": name, "rank": np.arange(1, len(best) + 1), "row": best, "score": scores[best, t]}
        original = frame[best].rename({c: f"pool_{c}" for c in frame.columns if c in columns})
        chosen.append(pl.concat([pl.DataFrame(columns), original], how="horizontal"))
    return {"scores": pl.concat(found), "selected": pl.concat(chosen)}


def _density(rows: list[dict], facts: dict[str, np.ndarray]) -> pl.DataFrame:
    """`features` with the share of pool tokens on which each fires, and its mean weight in the pool."""
    schema = {"target": pl.String, "feature": pl.Int64, "weight": pl.Float64, "share": pl.Float64, "density": pl.Float64, "pool_weight": pl.Float64}
    extra = [{"density": facts["fired"][r["feature"]] / facts["tokens"][0], "pool_weight": facts["pool weight"][r["feature"]] / facts["samples"]} for r in rows]
    return pl.DataFrame([a | b for a, b in zip(rows, extra)], schema=schema)


def _quality(reader: Reader, facts: dict[str, np.ndarray]) -> pl.DataFrame:
    """Mean active features per token, explained variance (on the tokens that were decoded), features that never fire on the pool."""
    schema = {"site": pl.String, "l0": pl.Float64, "explained_variance": pl.Float64, "dead_fraction": pl.Float64, "tokens": pl.Int64, "decoded_tokens": pl.Int64, "d_sae": pl.Int64, "k": pl.Int64, "loss_recovered": pl.Float64}
    if reader.sae is None:
        return pl.DataFrame(schema=schema)
    total, error, n = facts["squares"]
    variance = total - (facts["sum"] ** 2).sum() / n
    tokens, entries = facts["tokens"]
    row = {"site": str(reader.site), "l0": entries / tokens, "explained_variance": 1 - error / variance, "dead_fraction": float((facts["fired"] == 0).mean()),
           "tokens": int(tokens), "decoded_tokens": int(n), "d_sae": reader.sae.d_sae, "k": reader.sae.k, "loss_recovered": reader.sae.report.get("loss_recovered")}  # fmt: skip
    return pl.DataFrame([row], schema=schema)


def _inputs(pool: Samples, examples: dict[str, Samples]) -> pl.DataFrame:
    groups = [("pool", None, pool), *(("target", name, samples) for name, samples in examples.items())]
    rows = [(role, name, ids, mask.tolist()) for role, name, samples in groups for ids, mask in zip(samples.ids, samples.masks)]
    schema = {"role": pl.String, "target": pl.String, "ids": pl.List(pl.Int32), "mask": pl.List(pl.Boolean)}
    return pl.DataFrame(rows, schema=schema, orient="row").with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))


def _explain(reader: Reader, model, pool: Samples, prototypes, group, names, best, wanted, facts, config: Config, context: Context) -> dict[str, pl.DataFrame]:
    """Top passages and logit effects of the wanted features; what the best samples of each target share with it."""
    passages = {"feature": pl.Int64, "place": pl.Int64, "row": pl.Int64, "start": pl.Int64, "peak": pl.Int64, "tokens": pl.List(pl.String),
                "activations": pl.List(pl.Float64), "activation": pl.Float64}  # fmt: skip
    shared = {"target": pl.String, "row": pl.Int64, "feature": pl.Int64, "in_sample": pl.Float64, "in_target": pl.Float64, "both": pl.Float64}
    effects = {"feature": pl.Int64, "promotes": pl.List(pl.String), "promoted_by": pl.List(pl.Float64), "suppresses": pl.List(pl.String), "suppressed_by": pl.List(pl.Float64)}
    if reader.sae is None:
        return {"passages": pl.DataFrame(schema=passages), "effects": pl.DataFrame(schema=effects), "shared": pl.DataFrame(schema=shared)}
    from workbench import features as explain

    def compute() -> dict[str, pl.DataFrame]:
        found: list[dict] = []
        if wanted and config.passages:
            rows = sorted({int(r) for r, v in zip(facts["top row"].ravel(), facts["top value"].ravel()) if v > 0})
            seen = dict(zip(rows, explain.token_activations(model, reader.sae, [pool.ids[r] for r in rows], wanted, edits=context.edits, check=context.check)))
            for f, feature in enumerate(wanted):
                for place, (row, value) in enumerate(zip(facts["top row"][f], facts["top value"][f])):
                    if value > 0:
                        piece = explain.passage(model, pool.ids[row], seen[row][:, f], counted=pool.masks[row])
                        found.append({"feature": feature, "place": place + 1, "row": int(row)} | piece)
        rows = sorted({int(r) for some in best for r in some})
        common: dict[tuple[int, int], list] = {}
        for indices, vectors, *_ in reader.read([pool.ids[r] for r in rows], [pool.masks[r] for r in rows], context) if rows else ():
            for i, index in enumerate(indices):
                for t in range(len(names)):
                    if rows[index] in best[t]:
                        common[t, rows[index]] = explain.shared(*vectors["sae"].take(i), prototypes[np.flatnonzero(group == t)].mean(0))
        lines = [(names[t], int(row), *entry) for t in range(len(names)) for row in best[t] for entry in common[t, row]]
        return {"passages": pl.DataFrame(found, schema=passages), "shared": pl.DataFrame(lines, schema=shared, orient="row")}

    return context.part("explanations", compute) | {"effects": explain.logit_effect(model, reader.sae, wanted)}


def _map(reader: Reader, pool: Samples, config: Config, context: Context) -> pl.DataFrame:
    """Some samples of the pool, drawn at random, in two dimensions."""
    rows = np.sort(context.rng("map").permutation(len(pool.ids))[: config.map_rows])
    if reader.sae is None or len(rows) < 4:
        return pl.DataFrame(schema={"row": pl.Int64, "x": pl.Float64, "y": pl.Float64})
    from workbench.pool_map import layout
    from workbench.similarity import stack

    def compute() -> dict[str, pl.DataFrame]:
        parts = [(indices, vectors["sae"]) for indices, vectors, *_ in reader.read([pool.ids[r] for r in rows], [pool.masks[r] for r in rows], context)]
        place = layout(stack([part for _, part in parts]), seed=context.torch_seed("map") % 2**31, check=context.check)
        order = rows[np.concatenate([indices for indices, _ in parts])]
        return {"map": pl.DataFrame({"row": order, "x": place[:, 0], "y": place[:, 1]}).sort("row")}

    return context.part("map", compute)["map"]


def _export(out: Path, selected: pl.DataFrame, names: list[str]) -> None:
    """The chosen rows of each target as JSONL beside the tables (which hold them as Parquet)."""
    for name in names:
        rows = selected.filter(pl.col("target") == name).iter_rows(named=True)
        safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
        write_bytes(out / f"selected-{safe}.jsonl", "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode())


def _summary(tables, main: str, size: int, pool: Samples, duplicate, reader: Reader, config: Config, context: Context) -> dict[str, Any]:
    out: dict[str, Any] = {"pool": len(pool.ids), "selected": size, "method": main, "duplicates_of_targets": int(duplicate.sum())}
    if reader.sae is not None:
        row = tables["quality"].row(0, named=True)
        out |= {name: row[name] for name in ("l0", "explained_variance", "dead_fraction")}
    lengths = tables["lengths"].filter((pl.col("method") == main) & (pl.col("k") == size))
    if lengths.height:
        out |= {"mean_length_selected": lengths["mean"].mean(), "mean_length_target": lengths["target_mean"].mean(), "mean_length_pool": lengths["pool_mean"].mean()}
    at = tables["precision"].filter(pl.col("k") == size).unique(("target", "method"), maintain_order=True)
    if not at.height:
        return out
    by_method = {m: at.filter(pl.col("method") == m)["precision"].to_numpy() for m in at["method"].unique(maintain_order=True)}
    for method, values in by_method.items():
        low, high = bootstrap_mean(values, rng=context.rng(f"precision {method}"))
        out[f"precision_{method}"] = {"value": float(values.mean()), "low": low, "high": high, "n": len(values)}
        if method != main:
            out[f"{main}_minus_{method}"] = paired_difference(by_method[main], values, rng=context.rng(f"difference {method}")).as_dict()
    return out
