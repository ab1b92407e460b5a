"""Representation geometry: how many dimensions do the representations use, in which layer and at which point of
training?

Li et al., Tracing the Representation Geometry of Language Models from Pretraining to Post-training (arXiv 2509.23024).
The last token's state of every sequence is a sample; the eigenvalues of the samples' covariance give RankMe (exp of
their entropy) and alpha (the exponent of their power law). Over checkpoints, RankMe falls (warm-up), rises
(entropy-seeking) and falls again (compression-seeking).

Where definitions differ, both are given. `rankme`: covariance eigenvalues, centred (this paper). `rankme_singular`:
singular values of the uncentred features with 1e-7 added (Garrido et al., arXiv 2210.02885). `rankme_code`: as the
official code computes the first, that is from the 2048 largest eigenvalues with 1e-7 added. alpha is the official
weighted fit over ranks 12 to 100. The last layer is read after the final norm (`final=norm`, what `hidden_states[-1]`
is in Hugging Face), the others are block outputs. Deviations: the full spectrum in float64, never a truncated one; the
last token is found whatever the padding; intervals, the finite-sample curve and its extrapolation, and the null
(`rankme_null`, `alpha_null`: white Gaussian features of the same number and width) are additions. The paper does not
say where eigen-directions are removed: here from the final norm's states h, as h - VᵀVh or VᵀVh, before the
unembedding. Features are streamed; memory grows with width² per layer, not with the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from probes.representation_geometry import checkpoints, phases, spectra
from probes.representation_geometry.estimate import estimate
from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.registry import DataSpec, option, probe
from workbench.core.tables import read_table
from workbench.engine.evaluation import encode_choices, final_state_losses, read_choices, right_choices
from workbench.models.sites import Site
from workbench.stats.intervals import bootstrap_mean, pearson, spearman

BIBTEX = """@inproceedings{li2025tracing,
  title={Tracing the Representation Geometry of Language Models from Pretraining to Post-training},
  author={Li, Melody Zixuan and Agrawal, Kumar Krishna and Ghosh, Arna and Teru, Komal Kumar and Santoro, Adam and Lajoie, Guillaume and
          Richards, Blake A.},
  booktitle={Advances in Neural Information Processing Systems},
  year={2025},
  note={arXiv:2509.23024}
}
@inproceedings{garrido2023rankme,
  title={RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their Rank},
  author={Garrido, Quentin and Balestriero, Randall and Najman, Laurent and LeCun, Yann},
  booktitle={International Conference on Machine Learning},
  year={2023}
}"""  # noqa: E501


@dataclass(frozen=True)
class Config:
    layers: str = option("last", "last: the last layer, as in the paper; all: every layer", choices=("last", "all"))
    final: str = option(
        "norm",
        "the last layer's states: norm (after the final norm, as in the paper) or residual (before it)",
        choices=("norm", "residual"),
    )
    token: int | str = option(
        "last",
        "the sample of a sequence: its last token, the mean over its tokens, or a position (negative from the end)",
        choices=("last", "mean"),
    )
    checkpoints: tuple[str, ...] = option(
        (),
        "checkpoints to follow: folders, a folder of step* or checkpoint-* folders, organism or hub names "
        "(name@revision); name@* for all of an organism; none: the model alone",
        file=True,
    )
    fit_range: tuple[int, int] = option((12, 100), "first and last rank of the power-law fit", low=1)
    fit_weights: str = option(
        "rank", "rank: weights 1/rank, as in the official code; none: ordinary least squares", choices=("rank", "none")
    )
    max_length: int = option(512, "longest sequence in tokens; longer texts are cut", low=2)
    min_length: int = option(1, "texts with fewer tokens are left out", low=1)
    limit: int = option(15000, "sequences to use", low=2)
    draws: int = option(200, "bootstrap draws for the intervals; 0: none", low=0)
    curve: bool = option(
        True,
        "finite-sample curve: the same numbers at n/8, n/4 and n/2 sequences, and the value extrapolated to "
        "infinitely many",
    )
    ablate: tuple[int, ...] = option(
        (10, 50), "how many top eigen-directions to remove or keep; none: no ablation", low=1
    )
    random_draws: int = option(5, "sets of random directions that the eigen-directions are compared with", low=1)
    loss_rows: int = option(
        64, "sequences for the next-token loss, the ablations and the memorisation curve; 0: none", low=0
    )
    choices: str = option(
        "",
        "multiple-choice file (prompt, choices, answer: the right one's number from 0) to score under the ablations",
        file=True,
    )
    ngram: str = option(
        "", "text to fit an n-gram model on: correlation of its token probabilities with the model's", file=True
    )
    ngram_order: int = option(5, "longest n-gram", low=1)
    task: str = option(
        "", "table with a column `step` and numbers per checkpoint, to correlate the geometry with", file=True
    )
    map: tuple[str, ...] = option(
        ("pca",), "maps of the last layer's features in two dimensions", choices=("pca", "umap")
    )
    map_rows: int = option(2000, "sequences on a map", low=3)
    colour: str = option("", "column of the data file that colours the maps")
    max_tokens: int = option(
        0, "tokens in one batch; 0: 768 for each thread of a CPU, whose caches are small, 16384 on a GPU", low=0
    )


def validate(config: Config, data: Path | None) -> None:
    frame = read_table(data, required=("text",), what="text")
    if config.colour and config.colour not in frame.columns:
        raise InputError(
            f"{data} has no column '{config.colour}' to colour the maps by; it has {', '.join(frame.columns)}."
        )
    if not config.fit_range[0] < config.fit_range[1]:
        raise InputError(f"fit_range must grow, not {config.fit_range[0]},{config.fit_range[1]}.")
    if config.min_length > config.max_length:
        raise InputError(
            f"No text can have at least min_length={config.min_length} tokens when it is cut at "
            f"max_length={config.max_length}."
        )
    if config.choices:
        read_choices(config.choices)
    if config.ngram:
        read_table(config.ngram, required=("text",), what="n-gram text")
    if config.task:
        _task(config.task)


def example(model: str) -> dict[str, object]:
    """All layers of a few texts; of the organism at every checkpoint of its training."""
    course = {"checkpoints": ("organism@*",)} if model == "organism" else {}
    return {"layers": "all", "limit": 300, "ablate": (4, 16)} | course


@probe(
    "representation-geometry",
    title="Representation geometry",
    summary="How many dimensions representations use (RankMe, alpha-ReQ), over layers and over training.",
    tables={
        "layers": (
            "checkpoint",
            "step",
            "layer",
            "rankme",
            "rankme_singular",
            "alpha",
            "alpha_r2",
            "n",
            "d",
            "ci_low",
            "ci_high",
            "rankme_null",
            "alpha_null",
        ),
        "spectrum": ("checkpoint", "layer", "rank", "eigenvalue"),
        "phases": ("number", "phase", "start_step", "end_step"),
        "checkpoints": ("checkpoint", "step", "loss", "loss_low", "loss_high", "memorisation"),
        "curve": ("checkpoint", "layer", "n", "rankme"),
        "ablation": ("checkpoint", "step", "k", "directions", "draw", "loss", "accuracy"),
        "correlation": ("measure", "against", "method", "value", "low", "high", "n"),
        "map": ("checkpoint", "layer", "method", "row", "x", "y"),
        "inputs": ("row", "ids"),
    },
    bibtex=BIBTEX,
    data=DataSpec(required=("text",), what="text", default="workbench:organisms/data/texts.jsonl"),
    validate=validate,
    figures="probes.representation_geometry.figures:figures",
    estimate=estimate,
    example=example,
    example_models=("organism",),
    layer_curves={"layers": ("rankme", "alpha")},
    keys={
        "layers": ("checkpoint", "layer"),
        "spectrum": ("checkpoint", "layer", "rank"),
        "checkpoints": ("checkpoint",),
        "phases": ("number",),
        "curve": ("checkpoint", "layer", "n"),
        "ablation": ("checkpoint", "k", "directions", "draw"),
        "correlation": ("measure", "against", "method"),
        "map": ("checkpoint", "layer", "method", "row"),
        "inputs": ("row",),
    },
)
def run(model, config: Config, context: Context) -> Result:
    """Spectra of every checkpoint and layer, with what depends on them.

    Layers count from 0. Raises InputError for texts that are all too short, checkpoints that differ in tokenizer or
    shape, and NaN."""
    frame = read_table(context.data, required=("text",), what="text")
    length = min(config.max_length, model.context_length or config.max_length)
    encoded = [ids[:length] for ids in model.encode_all(frame["text"].to_list())]
    kept = [row for row, ids in enumerate(encoded) if len(ids) >= config.min_length][: config.limit]
    if len(kept) < 2:
        raise InputError(
            f"{context.data}: {len(kept)} texts have at least {config.min_length} tokens; a spectrum needs "
            f"two, and means something with many more."
        )
    ids = [encoded[row] for row in kept]
    context.rows_used = len(kept)
    if isinstance(config.token, int):
        short = next((row for row in kept if not -len(encoded[row]) <= config.token < len(encoded[row])), None)
        if short is not None:
            raise InputError(
                f"{context.data}, row {short + 1}: the text has {len(encoded[short])} tokens, and "
                f"token={config.token} is beyond them; leave short texts out with min_length."
            )
    needed, most = config.fit_range[1], min(len(ids) - 1, model.width)
    if needed > most:
        context.warn(
            f"There is no alpha: the fit needs {needed} eigenvalues and there are at most {most} ({len(ids)} "
            f"texts, width {model.width}); give a shorter fit_range or more texts."
        )
    counted = _count_ngrams(model, config, ids[: config.loss_rows])
    questions = encode_choices(model, config.choices) if config.choices else []
    found_at = checkpoints.find(model, config.checkpoints)
    if config.task:
        _task_steps(config.task, [step for _, step, _ in found_at], context)
    null = _null(model, len(ids), config, context)
    found: dict[str, list[pl.DataFrame]] = {}
    for number, (name, step, make) in enumerate(found_at):
        colours = None if not config.colour else [str(frame[config.colour][row]) for row in kept]
        maps = config.map if number == len(found_at) - 1 else ()
        part = context.part(
            f"checkpoint {name}",
            lambda: _study(make(), name, step, ids, kept, null, counted, questions, colours, maps, config, context),  # noqa: B023
        )  # noqa: B023
        for table, rows in part.items():
            found.setdefault(table, []).append(rows)
        context.progress(number + 1, len(found_at), "checkpoints")
    tables = {name: pl.concat(parts).with_columns(pl.selectors.float().fill_nan(None)) for name, parts in found.items()}
    tables["phases"] = _phases(tables["layers"], context)
    tables["correlation"] = _correlations(tables, config, context)
    tables["inputs"] = pl.DataFrame({"row": kept, "ids": ids}, schema={"row": pl.Int64, "ids": pl.List(pl.Int64)})
    return Result(tables, {}, _summary(tables))


# one checkpoint


def _study(
    model, name, step, ids, kept, null, counted, questions, colours, maps, config: Config, context: Context
) -> dict[str, pl.DataFrame]:
    """Tables of one checkpoint: spectra of its layers, loss, ablations, memorisation, maps."""
    sites = {layer: Site("resid_post", layer) for layer in range(model.n_layers)}
    if config.final == "norm":
        sites[model.n_layers - 1] = Site("final_norm")
    if config.layers == "last":
        sites = {model.n_layers - 1: sites[model.n_layers - 1]}
    found = _spectra(model, ids, dict.fromkeys([*sites.values(), Site("final_norm")]), config, context)
    where = {"checkpoint": name, "step": step}
    layers, spectrum, curve = [], [], []
    for layer, site in sites.items():
        measured, bootstraps, nested = found[site]
        layers.append(
            where | {"layer": layer, "site": str(site)} | _numbers(measured, bootstraps, nested, config) | null
        )
        if not measured.eigenvalues.sum() > 0:
            context.warn(
                f"The features at {site} of {name} are the same for every text: there is no spectrum to describe."
            )
        elif (
            layer == model.n_layers - 1
            and layers[-1]["alpha_missing"]
            and config.fit_range[1] <= min(len(ids) - 1, model.width)
        ):
            context.warn(
                f"There is no alpha: {layers[-1]['alpha_missing']}; give a shorter fit_range or more varied texts."
            )
        spectrum.append(
            pl.DataFrame(
                where
                | {
                    "layer": layer,
                    "rank": np.arange(1, len(measured.eigenvalues) + 1),
                    "eigenvalue": measured.eigenvalues,
                },
                schema_overrides={"step": pl.Int64, "layer": pl.Int64},
            )
        )
        curve += [
            where
            | {
                "layer": layer,
                "n": s.n,
                "rankme": s.rankme,
                "rankme_singular": s.rankme_singular,
                "alpha": _alpha(s, config).alpha,
            }
            for s in nested
        ]
    last = found[Site("final_norm")][0]
    tables = {
        "layers": pl.DataFrame(layers, schema_overrides={"step": pl.Int64}),
        "spectrum": pl.concat(spectrum),
        "curve": pl.DataFrame(
            curve,
            schema={
                "checkpoint": pl.String,
                "step": pl.Int64,
                "layer": pl.Int64,
                "n": pl.Int64,
                "rankme": pl.Float64,
                "rankme_singular": pl.Float64,
                "alpha": pl.Float64,
            },
        ),
    }
    tables |= _losses(model, where, ids[: config.loss_rows], last, counted, questions, config, context)
    tables["map"] = _maps(
        model,
        where,
        ids,
        kept,
        sites[model.n_layers - 1],
        found[sites[model.n_layers - 1]][0],
        colours,
        maps,
        config,
        context,
    )
    return tables


def _passes(model, ids, config: Config, context: Context) -> Iterator:
    """(rows, {site: features [m, d]}) shard by shard: the first pass runs the model, later ones read the store."""
    from workbench.engine.capture import shards

    # with resid_post the whole stack is kept: concept-depth, run on the same texts, reads the same entry
    sites = (
        [Site("final_norm")]
        if config.layers == "last" and config.final == "norm"
        else [*(Site("resid_post", i) for i in range(model.n_layers)), Site("final_norm")]
    )
    positions = config.token if isinstance(config.token, str) else [config.token]
    for rows, acts in shards(
        model,
        ids,
        sites,
        positions=positions,
        edits=context.edits,
        store=context.store,
        context=context,
        engine=context.engine,
        max_tokens=model.tokens_at_once(config.max_tokens),
    ):
        yield rows, {site: x.flatten(1) for site, x in acts.items()}


def _spectra(model, ids, sites, config: Config, context: Context) -> dict:
    """site -> (Spectrum, Bootstraps of covariance and second moment if any, nested Spectra of n/8, n/4, n/2 and n
    samples).

    With at most as many samples as dimensions the features are held (they are no larger than a covariance); else only
    sums are."""
    n, d = len(ids), model.width
    sizes = spectra.subset_sizes(n) if config.curve else [n]
    order = context.rng("subsets").permutation(n)
    joins_at = np.empty(n, dtype=int)  # the sample joins at the first of the nested sizes that holds it
    for k, (start, end) in enumerate(zip([0, *sizes], sizes)):
        joins_at[order[start:end]] = k
    sums: dict[Site, list[spectra.Moments]] = {}
    held: dict[Site, list] = {site: [None] * n for site in sites}
    for rows, acts in _passes(model, ids, config, context):
        for site in sites:
            x = acts[site].to(model.device)
            if not bool(x.isfinite().all()):
                raise InputError(
                    f"The activations at {site} are NaN or infinite; load the model in float32 or bfloat16."
                )
            if n <= d:
                for row, vector in zip(rows, x):
                    held[site][row] = vector
                continue
            if site not in sums:
                first = spectra.Moments.like(x)
                sums[site] = [
                    first,
                    *(replace(first, total=first.total.clone(), outer=first.outer.clone()) for _ in sizes[1:]),
                ]
            for k, moments in enumerate(sums[site]):
                members = np.flatnonzero(joins_at[rows] == k)
                if len(members):
                    moments.add(x[members])
        context.check()
    out = {}
    for site in sites:
        context.check()
        if n <= d:
            import torch

            x = torch.stack(held[site])
            nested = [spectra.from_features(x[np.sort(order[:size])]) for size in sizes[:-1]]
            whole = spectra.from_features(x, vectors=True)
        else:
            total, nested = sums[site][0], []
            for more in sums[site][1:]:
                nested.append(spectra.from_moments(total))
                total = total + more
            sums[site] = []
            whole = spectra.from_moments(total, vectors=True)
        bootstraps = (
            [spectra.Bootstrap(whole, draws=config.draws, centred=centred) for centred in (True, False)]
            if config.draws
            else []
        )
        out[site] = (whole, bootstraps, [*nested, whole])
    if config.draws:
        seed = context.torch_seed("bootstrap") % 2**32
        for rows, acts in _passes(model, ids, config, context):
            weight = spectra.weights(rows, config.draws, seed=seed)
            for site, (_, bootstraps, _) in out.items():
                for bootstrap in bootstraps:
                    bootstrap.add(weight, acts[site])
            context.check()
    return out


def _null(model, n: int, config: Config, context: Context) -> dict[str, float]:
    """RankMe and alpha of white Gaussian features [n, width]: what finite samples alone make of features without any
    structure."""
    white = spectra.white_eigenvalues(n, model.width, rng=context.rng("null"), device=model.device)
    fit = spectra.power_law(white, fit_range=config.fit_range, weighted=config.fit_weights == "rank")
    return {"rankme_null": float(spectra.rankme(white)), "alpha_null": fit.alpha}


def _alpha(spectrum, config: Config) -> spectra.PowerLaw:
    return spectra.power_law(spectrum.eigenvalues, fit_range=config.fit_range, weighted=config.fit_weights == "rank")


def _numbers(spectrum, bootstraps, nested, config: Config) -> dict:
    """A row of `layers`."""
    values, fit = spectrum.eigenvalues, _alpha(spectrum, config)
    weighted = config.fit_weights == "rank"

    def interval(name: str, statistic, which: int = 0) -> dict:
        low, high = bootstraps[which].interval(statistic) if bootstraps else (float("nan"), float("nan"))
        return {f"{name}low": low, f"{name}high": high}

    singular = interval("rankme_singular_", lambda v: spectra.rankme_singular(np.sqrt(v)), 1)
    alpha = interval(
        "alpha_",
        lambda v: (
            spectra.alphas(v, fit_range=config.fit_range, weighted=weighted)
            if not fit.reason
            else np.full(len(v), np.nan)
        ),
    )
    return {
        "rankme": spectrum.rankme,
        **interval("ci_", spectra.rankme),
        "rankme_singular": spectrum.rankme_singular,
        **singular,
        "rankme_code": float(spectra.rankme(values[:2048], epsilon=spectra.EPSILON)),
        "rankme_extrapolated": spectra.extrapolate([s.n for s in nested], [s.rankme for s in nested]),
        "alpha": fit.alpha,
        **alpha,
        "alpha_r2": fit.r2,
        "alpha_intercept": fit.intercept,
        "fit_first": fit.first,
        "fit_last": fit.last,
        "alpha_missing": fit.reason,
        "participation_ratio": float(spectra.participation_ratio(values)),
        **interval("participation_ratio_", spectra.participation_ratio),
        "stable_rank": float(spectra.stable_rank(values)),
        **interval("stable_rank_", spectra.stable_rank),
        "top10_share": float(values[:10].sum() / values.sum()) if values.sum() > 0 else float("nan"),
        "n": spectrum.n,
        "d": spectrum.d,
    }


# loss, ablations, memorisation


def _losses(model, where, ids, last, counted, questions, config: Config, context: Context) -> dict[str, pl.DataFrame]:
    """Next-token loss and multiple-choice accuracy of the model, and with eigen-directions of the final norm's states
    removed or kept."""
    import torch

    generator = torch.Generator().manual_seed(context.torch_seed("random directions"))
    variants: list[tuple[int, str, int, torch.Tensor | None]] = [(0, "none", 0, None)]
    there = min(len(last.directions), int((last.eigenvalues > last.eigenvalues.max(initial=0) * 1e-14).sum()))
    for k in config.ablate:
        if k > there:
            context.warn(
                f"The ablation of the top {k} eigen-directions was left out: {last.n} texts have {there} "
                f"({last.d} dimensions)."
            )
            continue
        variants += [(k, how, 0, last.directions[:k].float()) for how in ("remove", "keep")]
        for draw in range(config.random_draws):
            random = torch.linalg.qr(torch.randn(last.d, k, generator=generator))[0].T
            variants += [(k, how, draw, random) for how in ("remove random", "keep random")]
    rows, memorised = [], (float("nan"),) * 3
    options = {
        "edits": context.edits,
        "max_tokens": min(model.tokens_at_once(config.max_tokens), 4096),
        "check": context.check,
    }
    if ids and max(map(len, ids)) < 2:
        raise InputError(
            f"{context.data}: no text has the two tokens that a loss needs; give longer texts, or set loss_rows=0."
        )
    loss = final_state_losses(model, ids, [(how, v) for _, how, _, v in variants], **options) if ids else []
    right = right_choices(model, questions, [(how, v) for _, how, _, v in variants], **options) if questions else None
    context.count(prompts=len(ids), tokens=sum(map(len, ids)))
    measured = (float("nan"),) * 3
    for k, (size, how, draw, _) in enumerate(variants):
        row = where | {
            "k": size,
            "directions": how,
            "draw": draw,
            "loss": None,
            "ci_low": None,
            "ci_high": None,
            "accuracy": None,
            "accuracy_low": None,
            "accuracy_high": None,
            "n": len(ids),
        }
        if ids:
            sequence = np.array([x[k].mean() for x in loss if x.shape[1]])
            low, high = bootstrap_mean(sequence, rng=context.rng("loss"))
            row |= {"loss": float(sequence.mean()), "ci_low": low, "ci_high": high}
            measured = (row["loss"], low, high) if k == 0 else measured
        if right is not None:
            low, high = bootstrap_mean(right[k], rng=context.rng("choices"))
            row |= {"accuracy": float(right[k].mean()), "accuracy_low": low, "accuracy_high": high}
        rows.append(row)
    if counted is not None and ids:
        mine, theirs = -np.concatenate([x[0] for x in loss]), np.concatenate(counted)
        some = np.sort(context.rng("memorisation").permutation(len(mine))[:4000])
        rho = spearman(mine[some], theirs[some], draws=200, rng=context.rng("memorisation interval"))
        memorised = (rho.value, rho.low, rho.high)
    one = (
        where
        | dict(zip(("loss", "loss_low", "loss_high"), measured))
        | dict(zip(("memorisation", "memorisation_low", "memorisation_high"), memorised))
    )
    numbers = {"step": pl.Int64} | {
        c: pl.Float64 for c in ("loss", "ci_low", "ci_high", "accuracy", "accuracy_low", "accuracy_high")
    }
    return {
        "ablation": pl.DataFrame(rows, schema_overrides=numbers),
        "checkpoints": pl.DataFrame([one], schema_overrides={"step": pl.Int64}),
    }


def _count_ngrams(model, config: Config, rows) -> list[np.ndarray] | None:
    if not config.ngram or not rows:
        return None
    from probes.representation_geometry import n_grams as ngram

    text = read_table(config.ngram, required=("text",), what="n-gram text")["text"]
    return ngram.probabilities(
        (model.encode(document, bos=False) for document in text), rows, order=config.ngram_order
    )[0]


# maps, phases, correlations


def _maps(model, where, ids, kept, site, spectrum, colours, methods, config: Config, context: Context) -> pl.DataFrame:
    """Two dimensions of the last layer's features, one row per sequence and method; `row` is that of the data file, as
    in `inputs`."""
    schema = {
        "checkpoint": pl.String,
        "step": pl.Int64,
        "layer": pl.Int64,
        "method": pl.String,
        "row": pl.Int64,
        "x": pl.Float64,
        "y": pl.Float64,
        "colour": pl.String,
        "seed": pl.Int64,
    }
    if not methods or len(spectrum.directions) < 2:
        return pl.DataFrame(schema=schema)
    chosen = np.sort(context.rng("map").permutation(len(ids))[: config.map_rows])
    place = {int(row): k for k, row in enumerate(chosen)}
    features = np.empty((len(chosen), model.width))
    for rows, acts in _passes(model, ids, config, context):
        for row, x in zip(rows, acts[site]):
            if row in place:
                features[place[row]] = x.double().numpy()
    seed, out = context.torch_seed("umap") % 2**31, []
    for method in methods:
        if method == "pca":
            axes = spectrum.directions[:2].cpu().numpy()
            axes = (
                axes * np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])[:, None]
            )  # a direction has no sign of its own
            xy = (features - spectrum.mean.cpu().numpy()) @ axes.T
        else:
            xy = _umap(features, seed)
        colour = pl.Series([None if colours is None else colours[i] for i in chosen], dtype=pl.String)
        out.append(
            pl.DataFrame(
                where
                | {
                    "layer": model.n_layers - 1,
                    "method": method,
                    "row": np.asarray(kept)[chosen],
                    "x": xy[:, 0],
                    "y": xy[:, 1],
                    "colour": colour,
                    "seed": seed,
                },
                schema=schema,
            )
        )
    return pl.concat(out)


def _umap(features: np.ndarray, seed: int) -> np.ndarray:
    import torch
    import umap

    threads = torch.get_num_threads()
    try:
        return umap.UMAP(
            n_components=2, n_neighbors=min(15, len(features) - 1), random_state=seed, n_jobs=1
        ).fit_transform(features)
    finally:
        torch.set_num_threads(threads)  # numba's thread pool resets it, and with it the rounding of every later product


def _course(layers: pl.DataFrame) -> pl.DataFrame:
    """The last layer over the checkpoints, by step; empty unless every checkpoint has a step."""
    course = layers.filter(pl.col("layer") == layers["layer"].max())
    return course.sort("step") if course["step"].null_count() == 0 else course.clear()


def _phases(layers: pl.DataFrame, context: Context) -> pl.DataFrame:
    course, schema = (
        _course(layers),
        {
            "number": pl.Int64,
            "phase": pl.String,
            "layer": pl.Int64,
            **{f"{end}_{of}": pl.Float64 for end in ("start", "end") for of in ("step", "low", "high", "rankme")},
        },
    )
    if course.height < 4 or course["rankme"].null_count():
        if layers["checkpoint"].n_unique() > 1:
            context.warn(
                f"Phases need at least four checkpoints with a step in their names; there are {course.height}."
            )
        return pl.DataFrame(schema=schema)
    error = None if course["ci_low"].null_count() else (course["ci_high"] - course["ci_low"]).to_numpy() / (2 * 1.96)
    found = phases.segment(
        course["step"].to_numpy(), course["rankme"].to_numpy(), error=error, rng=context.rng("phases")
    )
    rows = [
        {
            "number": k,
            "phase": p.name,
            "layer": course["layer"][0],
            "start_step": p.start_step,
            "end_step": p.end_step,
            "start_low": p.start_low,
            "start_high": p.start_high,
            "end_low": p.end_low,
            "end_high": p.end_high,
            "start_rankme": course["rankme"][p.start],
            "end_rankme": course["rankme"][p.end],
        }
        for k, p in enumerate(found, 1)
    ]
    return pl.DataFrame(rows, schema=schema)


def _task(path: str) -> pl.DataFrame:
    frame = read_table(path, required=("step",), what="task")
    try:
        frame = frame.with_columns(
            pl.col("step").cast(pl.Float64).cast(pl.Int64),
            *(pl.col(c).cast(pl.Float64).fill_nan(None) for c in frame.columns if c != "step"),
        )
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: a task table holds numbers only ({str(error).splitlines()[0]}).") from None
    if frame.width < 2 or frame["step"].is_duplicated().any():
        raise InputError(f"{path} needs a column of numbers besides `step`, and each step once.")
    return frame


def _task_steps(path: str, steps: list[int | None], context: Context) -> None:
    """Say which checkpoints a task table has nothing for, before anything is computed; InputError where it has nothing
    for any."""
    known = set(_task(path)["step"].to_list())
    missing = [step for step in steps if step not in known]
    if len(missing) == len(steps):
        own = ", ".join(str(s) for s in steps[:6] if s is not None)
        have = f"steps {own}{', …' if len(steps) > 6 else ''}" if own else "no step in their names"
        raise InputError(
            f"{path}: no row is of a checkpoint that is measured; the checkpoints have {have}, the table "
            f"{', '.join(map(str, sorted(known)[:6]))}{', …' if len(known) > 6 else ''}."
        )
    if missing:
        context.warn(
            f"{path} has no row for {len(missing)} of {len(steps)} checkpoints "
            f"({', '.join(map(str, missing[:6]))}): its correlations are over the others."
        )


def _correlations(tables, config: Config, context: Context) -> pl.DataFrame:
    """Geometry against loss, memorisation and task numbers over checkpoints. Checkpoints are a time series: intervals
    of plain correlations are too narrow, which is why those of the step-to-step differences stand beside them."""
    schema = {
        "measure": pl.String,
        "against": pl.String,
        "method": pl.String,
        "value": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "n": pl.Int64,
    }
    course = _course(tables["layers"])
    if course.height < 4:
        return pl.DataFrame(schema=schema)
    course = course.join(tables["checkpoints"].select("step", "loss", "memorisation"), on="step")
    against = ["loss", "memorisation"]
    if config.task:
        task = _task(config.task)
        task = task.rename({c: f"task: {c}" for c in task.columns if c != "step"})
        against += [c for c in task.columns if c != "step"]
        course = course.join(task, on="step", how="left")
    rows = []
    for measure in ("rankme", "rankme_singular", "alpha"):
        for other in against:
            pair = course.select(measure, other).drop_nulls().to_numpy()
            if len(pair) < 4:
                continue
            for method, statistic, values in (
                ("pearson", pearson, pair),
                ("spearman", spearman, pair),
                ("spearman of differences", spearman, np.diff(pair, axis=0)),
            ):
                found = statistic(values[:, 0], values[:, 1], rng=context.rng(f"{measure} {other} {method}"))
                rows.append({"measure": measure, "against": other, "method": method} | found.as_dict())
    return pl.DataFrame(rows, schema=schema).fill_nan(None)


def _summary(tables) -> dict:
    layers = tables["layers"]
    last = layers.filter(pl.col("layer") == layers["layer"].max()).row(-1, named=True)
    out: dict = {
        "RankMe": {"value": last["rankme"], "low": last["ci_low"], "high": last["ci_high"], "n": last["n"]},
        "RankMe (singular values)": last["rankme_singular"],
    }
    out["alpha"] = {"value": last["alpha"], "low": last["alpha_low"], "high": last["alpha_high"], "n": last["n"]}
    out["alpha fit R²"] = last["alpha_r2"]
    loss = tables["checkpoints"].row(-1, named=True)
    if loss["loss"] is not None:
        out["next-token loss"] = {
            "value": loss["loss"],
            "low": loss["loss_low"],
            "high": loss["loss_high"],
            "n": tables["ablation"]["n"][0],
        }
    if layers["checkpoint"].n_unique() > 1:
        out["checkpoints"] = layers["checkpoint"].n_unique()
        out["phases"] = (
            " → ".join(
                f"{p['phase']} ({p['start_step']:.0f}–{p['end_step']:.0f})"
                for p in tables["phases"].iter_rows(named=True)
            )
            or "none found"
        )
    return out
