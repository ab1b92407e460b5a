"""Retrieval heads: which attention heads copy from a long context, and does the model still answer without them?

Wu et al., Retrieval Head Mechanistically Explains Long-Context Factuality (arXiv 2404.15574). A needle is put into a
haystack, the model answers greedily. A head copies at a step if the token it attends to most lies in the answer's span
in the context and is the token being emitted (Eq. 1). Its score in a trial is the share of the answer's tokens that it
copied; its score is the mean over trials.

Where paper and code differ, both are offered. `score=set` counts every token of the answer once (Eq. 1), `score=count`
every step, as the official code does, and can exceed 1. `keep=recalled` drops trials that the model fails (the code),
`keep=all` scores them too (Eq. 1). Masking acts on decoding only, from the last prompt token on, as in the code
(`mask_phase=all` masks the prompt as well); `ablation=uniform` is the code's masking, zero and mean are offered beside
it. `mask_on=held_out` chooses the heads to mask on half of the answered needles and masks them on the other half (the
paper masks on a needle of its own); `same` masks where it has chosen.

Deviations: the answer's span is found by character offsets, not by token-set overlap; random heads never include the
masked top heads, are drawn from the same layers and stay the same over the grid (the code draws them anew for every
cell); BOS stands only at the start; a needle is put after a full stop, as in the code, but also after ! or ? and their
closing quotes; ROUGE-1 counts the words of every script, not of a-z only (the same on English); a prompt of length n
has at most n tokens, needle and question included, instead of n minus 200 plus these; of the needles that ship the
first 12 are used (the paper has 3), of a file of yours all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl

from probes.retrieval_heads.estimate import estimate
from probes.retrieval_heads.shipped import shipped
from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.registry import DataSpec, option, probe
from workbench.core.tables import read_table, read_text
from workbench.stats.intervals import cluster_bootstrap_mean, clustered_draws, pearson, wilson

BIBTEX = """@inproceedings{wu2025retrieval,
  title={Retrieval Head Mechanistically Explains Long-Context Factuality},
  author={Wu, Wenhao and Wang, Yizhong and Xiao, Guangxuan and Peng, Hao and Fu, Yao},
  booktitle={International Conference on Learning Representations},
  year={2025},
  note={arXiv:2404.15574}
}"""
COLUMNS = ("needle", "question", "answer")
MATERIAL = Path(__file__).parent / "material"
ESSAYS = Path(__file__).parents[1] / "essays.txt"
DEFAULT = MATERIAL / "needles.jsonl"
SHIPPED = 12  # of the needles that ship with a model, how many are used unless told otherwise


@dataclass(frozen=True)
class Config:
    needles: int | str = option(
        "default",
        "needle file (needle, question, answer), 'default' for --data or the first 12 that ship, or how many to use",
        low=1,
        file=True,
    )
    haystack: str = option(
        "default", "text file that the needles are hidden in; 'default' ships with the project", file=True
    )
    lengths: str | tuple[int, ...] = option(
        "auto",
        "prompt lengths in tokens; auto: 20 from 1,000 (or a fifth of the longest) to 50,000 or the model's context",
        choices=("auto",),
        low=8,
    )
    depths: tuple[float, ...] = option(
        (0, 11, 22, 33, 44, 56, 67, 78, 89, 100), "needle depths in percent of the haystack", low=0, high=100
    )
    max_new_tokens: int = option(50, "longest answer in tokens", low=1)
    threshold: float = option(0.1, "score from which a head counts as a retrieval head", low=0, high=1)
    score: str = option(
        "set",
        "set: share of the answer's tokens copied (Eq. 1); count: copying steps over the answer's length "
        "(official code)",
        choices=("set", "count"),
    )
    keep: str = option(
        "recalled",
        "recalled: score only trials that the model answers (official code); all: score every trial (Eq. 1)",
        choices=("recalled", "all"),
    )
    recall_threshold: float = option(0.5, "ROUGE-1 recall above which a trial counts as answered", low=0, high=1)
    template: str = option(
        "default",
        "prompt: 'paper', 'chat' (the model's own chat template) or a text with {context} and {question}; "
        "default: the paper's, or the model's where it ships with one",
    )
    stop: tuple[str, ...] = option(
        ("default",),
        "the answer ends after a token that contains one of these; default: a line break, or the model's own",
    )
    mask_k: tuple[int, ...] = option(
        (2, 5, 10, 15, 20, 30, 50, 100),
        "how many top heads to mask; numbers beyond half of the model's heads are left out, those beyond the "
        "heads with a score become these; 0: no masking test",
        low=0,
    )
    ablation: str = option(
        "uniform",
        "what masking does to a head: uniform attention (official code), zero output, mean output",
        choices=("uniform", "zero", "mean"),
    )
    mask_phase: str = option(
        "decode",
        "decode: mask from the last prompt token on (official code); all: mask the prompt too",
        choices=("decode", "all"),
    )
    random_draws: int = option(5, "random sets of heads of the same layers to mask for comparison", low=1)
    mask_on: str = option(
        "held_out",
        "held_out: choose the heads on half of the answered needles, mask them on the other half; same: mask "
        "where they were chosen",
        choices=("held_out", "same"),
    )
    mask_trials: int = option(60, "how many answered trials the masking test uses, evenly over the grid", low=1)
    resample: str = option(
        "needles",
        "what the intervals resample: needles (trials of one needle belong together) or trials",
        choices=("needles", "trials"),
    )
    draws: int = option(1000, "bootstrap resamples for the intervals", low=100)
    max_tokens: int = option(65536, "tokens in one batch of prompts", low=1)


def validate(config: Config, data: Path | None) -> None:
    from probes.retrieval_heads.needles import place

    for name in ("lengths", "depths"):
        if not getattr(config, name):
            raise InputError(
                f"The option '{name}' is empty; give at least one number, as in --set "
                f"{name}={'1000,2000' if name == 'lengths' else '0,50,100'}."
            )
    source = _needle_file(config, data)
    if source is not None:
        rows = read_table(source, required=COLUMNS, what="needles")
        if (
            isinstance(config.needles, int) and source.resolve() != DEFAULT.resolve()
        ):  # a model may ship with more than these
            _first(rows, config.needles, source)
        for k, row in enumerate(rows.iter_rows(named=True)):
            try:
                place(k, row["needle"], row["answer"])
            except InputError as error:
                raise InputError(f"{source}: {error}") from None
    if config.haystack != "default":
        read_text(config.haystack, what="haystack")
    if config.template not in ("default", "paper", "chat") and not (
        "{context}" in config.template and "{question}" in config.template
    ):
        raise InputError(
            "The option 'template' needs {context} and {question}, once each, or one of default, paper, chat."
        )


def _needle_file(config: Config, data: Path | None) -> Path | None:
    return Path(config.needles) if isinstance(config.needles, str) and config.needles != "default" else data


def _first(rows: pl.DataFrame, wanted: int, source: Path) -> pl.DataFrame:
    if wanted > rows.height:
        raise InputError(
            f"{source} has {rows.height} needles, fewer than needles={wanted}; ask for at most {rows.height}."
        )
    return rows.head(wanted)


def _own_needles(model: str) -> Path | None:
    return shipped(model).get("needles")


def _material(config: Config, model: str) -> dict[str, object]:
    """Haystack, template and stopping words, where the config leaves them to what ships with the project or with the
    model."""
    own = {"haystack": ESSAYS} | shipped(model)
    left = {
        "haystack": config.haystack == "default",
        "template": config.template == "default",
        "stop": config.stop == ("default",),
    }
    return {key: own[key] for key, default in left.items() if default and key in own}


def example(model: str) -> dict[str, object]:
    """A short run: on the aligned organism only as much as the two maps need to be compared; never more needles than
    ship with a model."""
    values: dict[str, object] = {
        "lengths": (128, 256, 384, 480),
        "depths": (0, 25, 50, 75, 100),
        "needles": 8,
        "max_new_tokens": 16,
        "mask_k": (1, 2, 3, 4, 8),
    }
    if model == "organism-chat":
        values |= {"lengths": (128, 256), "depths": (0, 50, 100), "needles": 4, "mask_k": (1, 2)}
    own = _own_needles(model)
    if own is not None:
        values["needles"] = min(values["needles"], read_table(own, required=COLUMNS, what="needles").height)
    return values


@probe(
    "retrieval-heads",
    title="Retrieval heads",
    summary="Which attention heads copy from a long context, and what happens to the answers when they are masked.",
    tables={
        "heads": ("layer", "head", "score", "ci_low", "ci_high", "activation_frequency", "n_trials", "is_retrieval"),
        "trials": ("trial", "needle", "length", "depth", "recall", "kept", "response"),
        "masking": ("k", "heads", "draw", "ablation", "recall"),
        "inputs": ("row", "ids", "span_start", "span_end", "generated_ids"),
    },
    bibtex=BIBTEX,
    data=DataSpec(
        required=COLUMNS,
        what="needles",
        default="probes.retrieval_heads:material/needles.jsonl",
        for_model=_own_needles,
        option="needles",
    ),
    material=_material,
    validate=validate,
    figures="probes.retrieval_heads.figures:figures",
    figures_of_several="probes.retrieval_heads.figures:of_several",
    estimate=estimate,
    example=example,
    example_models=("organism", "organism-chat"),
    head_scores={"heads": ("score", "activation_frequency", "span_mass", "is_retrieval")},
    shares=("score", "activation_frequency", "span_mass"),
    keys={
        "heads": ("layer", "head"),
        "trials": ("trial",),
        "masking": ("k", "heads", "draw"),
        "masked_trials": ("k", "heads", "draw", "trial", "length", "depth"),
        "inputs": ("row",),
    },
    version=4,
)
def run(model, config: Config, context: Context) -> Result:
    """Score every head on the needle grid, then mask the best heads against random ones of the same layers.

    Scores are per query head. Raises InputError for needles without their answer and for lengths that do not fit the
    model."""
    from probes.retrieval_heads.haystack import Haystack
    from probes.retrieval_heads.needles import recall

    if context.engine != "hf":
        raise InputError(
            "retrieval-heads reads attention rows, which only the engine 'hf' gives; run it with --engine hf."
        )
    if config.ablation == "uniform" and any(config.mask_k) and not model.attention_interface:
        raise InputError(
            f"Uniform attention cannot be put into {model.architecture}; use --set ablation=zero, or mask_k=0 "
            f"for no masking test."
        )
    needles, shared, trials, stops = _grid(model, config, context)
    context.progress(
        0, len(trials), f"needles: {len(trials):,} trials, {sum(len(t.ids) for t in trials):,} prompt tokens"
    )
    haystack = Haystack(model, shared[: max(t.shared for t in trials)])
    measured = _measure(model, config, context, haystack, trials, stops)
    recalls = [recall(needles[t.needle].answer, text) for t, text in zip(trials, measured.responses)]
    answered = np.array(recalls) > config.recall_threshold
    kept = answered if config.keep == "recalled" else np.ones(len(trials), bool)

    scores = np.stack([_score(t, m, config.score) for t, m in zip(trials, measured.steps)])  # [trials, layers, heads]
    clusters = _clusters(trials, kept, config, context)
    heads = _head_table(model, scores[kept], measured.mass[kept], clusters, config, context)
    if not kept.any():
        context.warn(
            f"The model answered none of the {len(trials)} trials, so no head has a score; try shorter "
            f"lengths, another template or keep=all."
        )
    tables = {
        "heads": heads,
        "trials": _trial_table(model, needles, trials, measured, recalls, kept),
        "inputs": _input_table(trials, measured),
        "enough": _how_many_are_enough(scores[kept], context),
    }
    choosing, testing = _split(trials, kept, answered, config, context)
    plan = _mask_plan(model, scores[choosing].mean(0), config, context) if choosing.any() else []
    chosen = np.isin(np.arange(len(trials)), _spread(np.flatnonzero(testing), config.mask_trials))
    masked = _mask(
        model,
        config,
        context,
        needles,
        shared,
        haystack,
        [(i, trials[i]) for i in np.flatnonzero(chosen).tolist()],
        plan,
        stops,
    )
    groups = _clusters(trials, chosen, config, context) if masked.height else np.array([], int)
    tables["masking"], tables["masked_trials"] = _mask_table(masked, plan, groups, config, context), masked
    summary = _summary(heads, scores[kept], answered, clusters, masked, groups, config, context)
    return Result(tables, {"trial_scores": scores.astype(np.float32)}, summary | {"tied_maxima": measured.ties})


# the grid


def _grid(model, config: Config, context: Context):
    """Needles, the shared tokens, the trials and the stopping rule, from the config or from what ships with the
    model."""
    from probes.retrieval_heads.needles import encode_after, grid, read_needle, split_template

    own = shipped(model.name)
    source = _needle_file(config, context.data)
    haystack = read_text(
        own.get("haystack", ESSAYS) if config.haystack == "default" else config.haystack, what="haystack"
    )
    before, after = split_template(
        model, own.get("template", "paper") if config.template == "default" else config.template
    )
    stop = own.get("stop", ("\n",)) if config.stop == ("default",) else config.stop

    rows = read_table(source, required=COLUMNS, what="needles")
    if again := rows.height - rows.unique(COLUMNS).height:
        context.warn(
            f"{again} of the {rows.height} needles in {source} repeat another one: they are no evidence of "
            f"their own, and the intervals are too narrow."
        )
    if isinstance(config.needles, int):
        rows = _first(rows, config.needles, source)
    elif rows.height > SHIPPED and source.resolve() in (DEFAULT.resolve(), own.get("needles", DEFAULT).resolve()):
        context.warn(
            f"{rows.height} needles ship with {model.name} and the first {SHIPPED} were used; "
            f"needles={rows.height} uses them all."
        )
        rows = rows.head(SHIPPED)
    needles = [
        read_needle(model, k, r["needle"], r["question"], r["answer"], after)
        for k, r in enumerate(rows.iter_rows(named=True))
    ]
    context.rows_used = len(needles)
    longest = min(50_000, (model.context_length or 50_000) - config.max_new_tokens)
    lengths = config.lengths
    if lengths == "auto":
        lengths = sorted({int(x) for x in np.linspace(min(1000, longest // 5), longest, 20).round()})
        floor = 8 + max(len(n.ids) + len(n.tail) for n in needles)
        lengths = [x for x in lengths if x > floor] or [longest]
    lengths, depths = list(dict.fromkeys(lengths)), list(dict.fromkeys(config.depths))
    tokens, _ = encode_after(model, haystack.strip())
    shared, trials = grid(
        model, needles, tokens, before, lengths=lengths, depths=depths, new_tokens=config.max_new_tokens
    )
    if len(tokens) < len(shared):
        context.warn(f"The haystack has {len(tokens)} tokens and was repeated to fill prompts of {max(lengths)}.")
    pieces: dict[int, bool] = {}

    def stops(token: int) -> bool:
        if token not in pieces:
            pieces[token] = token in model.eos_ids or any(s in model.tokenizer.decode([token]) for s in stop)
        return pieces[token]

    return needles, shared, trials, stops


# detection


@dataclass
class MeasuredTrials:
    """What is kept of every trial: emitted ids, each step's most attended position [steps, layers, H], mean span mass
    [layers, H]; `ties`: share of all attention rows whose maximum is tied (the first position counts)."""

    generated: list[list[int]]
    responses: list[str]
    steps: list[tuple[np.ndarray, np.ndarray]]  # (emitted ids [steps], attended positions [steps, layers, H])
    mass: np.ndarray  # [trials, layers, H]
    ties: float


def _measure(model, config: Config, context: Context, haystack, trials: list, stops) -> MeasuredTrials:
    """Greedy answers of all trials with the position every head attends to most at every step."""
    from probes.retrieval_heads.haystack import parts

    context.count(
        tokens=len(haystack.tokens), forwards=1
    )  # here, not where it is computed: a resumed run counts it once too
    found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    tied = steps_seen = 0
    for number, rows in enumerate(parts(model, trials, config.max_tokens)):
        context.progress(len(found), len(trials), "needles")
        part = context.part(
            f"needles-{number}",
            lambda rows=rows: _measure_part(model, config, context, haystack, [trials[i] for i in rows], stops),
        )
        for k, i in enumerate(rows):
            own = part["trial"] == k
            found[i] = part["token"][own], part["position"][own], part["mass"][own].mean(0)
            tied += int(part["tied"][own].sum())
            steps_seen += int(part["tied"][own].size)
    context.progress(len(trials), len(trials), "needles")
    generated = [found[i][0].tolist() for i in range(len(trials))]
    return MeasuredTrials(
        generated,
        [model.decode(g).strip() for g in generated],
        [found[i][:2] for i in range(len(trials))],
        np.stack([found[i][2] for i in range(len(trials))]),
        tied / max(1, steps_seen),
    )


def _measure_part(model, config, context, haystack, part, stops) -> dict[str, np.ndarray]:
    """Steps of some trials, flattened: trial [n], token [n], position, mass and tied [n, layers, H].

    What prompts share is read once, and all that are not answered yet go on together."""
    import torch

    from probes.retrieval_heads.haystack import bodies, places, stretches
    from probes.retrieval_heads.speculative_decoding import begin, go_on
    from workbench.engine.edits import apply
    from workbench.models.batching import halving

    how = {"max_new_tokens": config.max_new_tokens, "stops": stops}

    def answers(trials) -> list:
        steps: dict[int, list] = {}
        waiting: list[tuple] = []  # (numbers of trials, what they have begun)

        def finish() -> None:
            found = go_on(model, [begun for _, begun in waiting], check=_each_step(context), **how)
            steps.update(zip(chain(*(rows for rows, _ in waiting)), found))
            waiting.clear()

        with apply(model, context.edits):
            for place in places(model, trials, config.max_tokens):
                for group, past, ends in bodies(haystack, [trials[i] for i in place]):
                    context.check()
                    context.count(forwards=1)
                    rows = [place[k] for k in group]
                    same = [trials[i] for i in rows]
                    waiting.append(
                        (
                            rows,
                            begin(
                                model,
                                past,
                                [t.ids[end:] for t, end in zip(same, ends)],
                                [() if model.sliding else t.guess for t in same],
                                spans=_span_rows(same, model),
                                use_up=not model.sliding,
                                **how,
                            ),
                        )
                    )
                    if model.sliding or sum(begun.columns for _, begun in waiting) > config.max_tokens:
                        finish()
            if waiting:
                finish()
        context.count(prompts=len(trials), tokens=sum(end - start for start, end in stretches(model, trials)))
        return [steps[i] for i in range(len(trials))]

    steps = [row for _, found in halving(part, answers) for row in found]
    flat = [(k, s) for k, row in enumerate(steps) for s in row]
    readings = torch.stack([s.reading for _, s in flat]).numpy()
    return {
        "trial": np.array([k for k, _ in flat], np.int32),
        "token": np.array([s.token for _, s in flat], np.int64),
        "position": readings[..., 0].astype(np.int32),
        "mass": readings[..., 1],
        "tied": readings[..., 2].astype(bool),
    }


def _span_rows(group, model):
    import torch

    width = max(t.span[1] - t.span[0] for t in group)
    return torch.tensor(
        [[*range(*t.span), *[-1] * (width - t.span[1] + t.span[0])] for t in group], device=model.device
    )


def _each_step(context: Context):
    def step() -> None:
        context.check()
        context.count(forwards=1)

    return step


def _score(trial, steps: tuple[np.ndarray, np.ndarray], how: str) -> np.ndarray:
    """Eq. 1 for every head, [layers, H]: set = |copied ∩ answer| / |answer| over distinct tokens; count = copying steps
    / |span|."""
    emitted, attended = steps
    ids, (start, end) = np.array(trial.ids), trial.span
    inside = (attended >= start) & (attended < end)
    copies = inside & (ids[np.clip(attended, 0, len(ids) - 1)] == emitted[:, None, None])  # [steps, layers, H]
    if how == "count":
        return copies.sum(0) / (end - start)
    answer = np.unique(ids[start:end])
    return np.stack([copies[emitted == token].any(0) for token in answer]).sum(0) / len(answer)


def _clusters(trials, rows: np.ndarray, config: Config, context: Context) -> np.ndarray:
    """What an interval over the trials `rows` [trials] (bool) resamples together, [rows]: those of one needle, unless
    they are all of one."""
    needles = np.array([t.needle for t, wanted in zip(trials, rows) if wanted], int)
    if config.resample == "needles" and len(set(needles.tolist())) > 1:
        return needles
    if len(needles) == 1:
        context.warn("Only one trial counts, so the intervals have no width; they say nothing about other trials.")
    elif len(needles) and config.resample == "needles":
        context.warn(
            "Only one needle counts, so the intervals resample its trials; they say nothing about other needles."
        )
    return np.arange(len(needles))


def _head_table(
    model, scores: np.ndarray, mass: np.ndarray, clusters: np.ndarray, config: Config, context: Context
) -> pl.DataFrame:
    """One row per head; without a kept trial the scores are null, not 0."""
    n, L, H = len(scores), model.n_layers, model.n_heads
    rows = {"layer": np.repeat(np.arange(L), H), "head": np.tile(np.arange(H), L)}
    rows["kv_group"] = np.array([model.kv_group(h) for h in rows["head"]])
    if n == 0:
        empty = {
            name: pl.Series([None] * (L * H), dtype=pl.Float64)
            for name in ("score", "ci_low", "ci_high", "activation_frequency", "span_mass")
        }
        return pl.DataFrame(
            rows | empty | {"n_trials": [0] * (L * H), "is_retrieval": pl.Series([None] * (L * H), dtype=pl.Boolean)}
        )
    means = clustered_draws(scores.reshape(n, L * H), clusters, draws=config.draws, rng=context.rng("heads"))
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    mean = scores.mean(0)
    return pl.DataFrame(
        rows
        | {
            "score": mean.ravel(),
            "ci_low": low,
            "ci_high": high,
            "activation_frequency": (scores > 0).mean(0).ravel(),
            "span_mass": mass.mean(0).ravel().astype(np.float64),
            "n_trials": [n] * (L * H),
            "is_retrieval": (mean > config.threshold).ravel(),
        }
    )


def _trial_table(model, needles, trials, measured: MeasuredTrials, recall, kept) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "trial": range(len(trials)),
            "needle": [t.needle for t in trials],
            "length": [t.length for t in trials],
            "depth": [float(t.depth) for t in trials],
            "recall": recall,
            "kept": kept.tolist(),
            "response": measured.responses,
            "answer": [needles[t.needle].answer for t in trials],
            "prompt_tokens": [len(t.ids) for t in trials],
            "needle_position": [t.shared for t in trials],
        }
    )


def _input_table(trials, measured: MeasuredTrials) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "row": range(len(trials)),
            "ids": [list(t.ids) for t in trials],
            "span_start": [t.span[0] for t in trials],
            "span_end": [t.span[1] for t in trials],
            "generated_ids": measured.generated,
        }
    )


def _how_many_are_enough(scores: np.ndarray, context: Context, *, top: int = 10, repeats: int = 200) -> pl.DataFrame:
    """How well k random trials find the top heads of all trials: expected overlap of the two top lists."""
    n = len(scores)
    sizes = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500) if k < n]
    flat = scores.reshape(n, scores.shape[1] * scores.shape[2])
    top = min(top, int((flat.mean(0) > 0).sum())) if n else 0
    if not sizes or top == 0:
        return pl.DataFrame(
            schema={
                "trials": pl.Int64,
                "top": pl.Int64,
                "overlap": pl.Float64,
                "ci_low": pl.Float64,
                "ci_high": pl.Float64,
            }
        )
    final, rng, rows = set(np.argsort(-flat.mean(0), kind="stable")[:top].tolist()), context.rng("enough"), []
    for k in sizes:
        found = [
            len(final & set(np.argsort(-flat[rng.choice(n, k, replace=False)].mean(0), kind="stable")[:top].tolist()))
            / top
            for _ in range(repeats)
        ]
        rows.append((k, top, float(np.mean(found)), *np.quantile(found, [0.025, 0.975])))
    return pl.DataFrame(rows, schema=["trials", "top", "overlap", "ci_low", "ci_high"], orient="row")


# the causal test


def _split(
    trials, kept: np.ndarray, answered: np.ndarray, config: Config, context: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Which trials choose the heads to mask and which test the masking, both bool [trials]; held out: every second
    answered needle."""
    needles = np.array([t.needle for t in trials])
    met = np.unique(needles[answered])
    if config.mask_on == "same":
        return kept, answered
    if len(met) < 2:
        if len(met) and any(config.mask_k):
            context.warn("Only one needle was answered, so heads were masked on the trials that had chosen them.")
        return kept, answered
    held = np.isin(needles, met[1::2])
    return kept & ~held, answered & held


def _mask_plan(model, scores: np.ndarray, config: Config, context: Context) -> list[tuple[int, str, int, tuple]]:
    """(k, "top" or "random", draw, heads) for every masking, by `scores` [layers, H]; random heads come from the top
    heads' layers and are none of them. Heads without a score have no order, so none of them is a top head."""
    order = [divmod(int(i), model.n_heads) for i in np.argsort(-scores.ravel(), kind="stable")]
    plan, scored = [(0, "top", 0, ())], int((scores > 0).sum())
    wanted_k = {k for k in config.mask_k if 0 < k <= len(order) // 2}
    if scored and wanted_k and max(wanted_k) > scored:
        some = (
            "1 head has a score, so masking ends with it"
            if scored == 1
            else f"{scored} heads have a score, so masking ends with these"
        )
        context.warn(f"{some}; mask_k asks for up to {max(wanted_k)}.")
    for k in sorted({min(k, scored) for k in wanted_k} - {0}):
        top = order[:k]
        plan.append((k, "top", 0, tuple(top)))
        for draw in range(config.random_draws):
            rng, chosen = context.rng(f"random-{k}-{draw}"), []
            for layer in sorted({layer for layer, _ in top}):
                wanted = sum(1 for l, _ in top if l == layer)
                free = [h for h in range(model.n_heads) if (layer, h) not in top]
                if len(free) < wanted:
                    context.warn(
                        f"Layer {layer} has too few other heads for a random control of k={k}; it masks "
                        f"{len(free)} instead of {wanted} there."
                    )
                chosen += [(layer, int(h)) for h in rng.permutation(free)[:wanted]]
            plan.append((k, "random", draw, tuple(chosen)))
    return plan if len(plan) > 1 else []


def _mask(
    model, config, context, needles, shared: list[int], haystack, trials: list[tuple], plan, stops
) -> pl.DataFrame:
    """Answers and recall of `trials` (number, trial) under every masking: k, heads, draw, trial, length, depth, recall,
    response."""
    schema = {
        "k": pl.Int64,
        "heads": pl.String,
        "draw": pl.Int64,
        "trial": pl.Int64,
        "length": pl.Int64,
        "depth": pl.Float64,
        "recall": pl.Float64,
        "response": pl.String,
    }
    if not plan or not trials:
        return pl.DataFrame(schema=schema)
    from workbench.models.batching import batches, halving

    mean = _haystack_mean(model, shared, context) if config.ablation == "mean" else None
    # prompts of any length and depth go on together once they are read; few enough that a stopped run has parts to go
    # on from
    groups, parts, done = batches([len(t.ids) for _, t in trials], max_tokens=config.max_tokens, max_rows=16), [], 0

    def compute(group: list[tuple]) -> dict[str, pl.DataFrame]:
        def masked(some: list) -> list:
            return _mask_group(model, config, context, needles, haystack, some, plan, mean, stops)

        rows = [row for _, found in halving(group, masked) for row in found]
        return {"trials": pl.DataFrame(rows, schema=schema, orient="row")}

    for number, group in enumerate(groups):
        context.progress(done, len(trials), "masking")
        parts.append(
            context.part(f"masking-{number}", lambda group=group: compute([trials[i] for i in group]))["trials"]
        )
        done += len(group)
    context.progress(done, len(trials), "masking")
    return pl.concat(parts).sort("k", "heads", "draw", "trial", descending=[False, True, False, False])


def _mask_group(model, config, context, needles, haystack, group, plan, mean, stops) -> list[tuple]:
    """The rows of one batch. The prompts are read once, every masking continues from there (unless it masks the prompts
    too)."""
    from probes.retrieval_heads.haystack import places
    from probes.retrieval_heads.needles import recall
    from probes.retrieval_heads.speculative_decoding import greedy_steps
    from workbench.engine.edits import HeadAblation, apply
    from workbench.engine.kv_cache import merge, prefill

    alike = [[group[i] for i in rows] for rows in places(model, [t for _, t in group], config.max_tokens)]
    group = [item for part in alike for item in part]
    prompts, rows = [t.ids for _, t in group], []
    with apply(model, context.edits):
        prompt = merge(
            [
                prefill(model, [t.ids[t.shared : -1] for _, t in part], haystack.upto(part[0][1].shared, len(part)))
                for part in alike
            ]
        )
    for k, kind, draw, heads in plan:
        context.check()
        edits = (*context.edits, HeadAblation(heads, config.ablation, mean)) if heads else context.edits
        with apply(model, edits):
            before = prompt if config.mask_phase == "decode" else prefill(model, [ids[:-1] for ids in prompts], None)
            steps = greedy_steps(
                model,
                before,
                [ids[-1:] for ids in prompts],
                [() if model.sliding else t.guess for _, t in group],
                max_new_tokens=config.max_new_tokens,
                stops=stops,
                check=_each_step(context),
            )
        for (i, t), row in zip(group, steps):
            text = model.decode([s.token for s in row]).strip()
            rows.append((k, kind, draw, i, t.length, float(t.depth), recall(needles[t.needle].answer, text), text))
    again = config.mask_phase == "all"
    context.count(
        tokens=sum(len(t.ids) - t.shared for _, t in group) + again * len(plan) * sum(map(len, prompts)),
        forwards=len(alike) + len(plan) * (1 + again),
    )
    return rows


def _mask_table(masked: pl.DataFrame, plan, clusters: np.ndarray, config: Config, context: Context) -> pl.DataFrame:
    """Mean recall per masking with its interval; `clusters` belong to the trials in the order of their numbers."""
    schema = {
        "k": pl.Int64,
        "heads": pl.String,
        "draw": pl.Int64,
        "ablation": pl.String,
        "recall": pl.Float64,
        "ci_low": pl.Float64,
        "ci_high": pl.Float64,
        "n": pl.Int64,
        "masked": pl.String,
    }
    out = []
    for k, kind, draw, heads in plan if masked.height else ():
        recalls = (
            masked.filter((pl.col("k") == k) & (pl.col("heads") == kind) & (pl.col("draw") == draw))
            .sort("trial")["recall"]
            .to_numpy()
        )
        low, high = cluster_bootstrap_mean(recalls, clusters, draws=config.draws, rng=context.rng("masking"))
        out.append(
            (
                k,
                kind,
                draw,
                config.ablation,
                float(recalls.mean()),
                low,
                high,
                len(recalls),
                " ".join(f"{l}.{h}" for l, h in heads),
            )
        )
    return pl.DataFrame(out, schema=schema, orient="row")


def _haystack_mean(model, tokens: list[int], context: Context):
    from workbench.engine.mean_head_outputs import mean_head_outputs

    context.count(tokens=min(len(tokens), 4096), forwards=1)
    return mean_head_outputs(model, [tokens[:4096]], edits=context.edits)


def _spread(rows: np.ndarray, wanted: int) -> list[int]:
    """At most `wanted` of `rows`, evenly over their order (which runs over lengths, depths and needles)."""
    return (
        rows[np.unique(np.linspace(0, len(rows) - 1, min(wanted, len(rows))).round().astype(int))].tolist()
        if len(rows)
        else []
    )


# what a person would quote


def _summary(
    heads: pl.DataFrame,
    scores: np.ndarray,
    answered: np.ndarray,
    clusters: np.ndarray,
    masked: pl.DataFrame,
    groups: np.ndarray,
    config: Config,
    context: Context,
) -> dict:
    """`scores` and `clusters` of the trials that count, `groups`: clusters of those that were masked."""
    low, high = wilson(int(answered.sum()), len(answered))  # of the trials: a bootstrap has no width when all succeed
    summary = {
        "recalled": {"value": float(answered.mean()), "low": low, "high": high, "n": len(answered)},
        "trials_scored": len(scores),
    }
    if not len(scores):
        return summary | {"note": "No trial was answered, so heads have no score."}
    n = len(scores)
    flat = scores.reshape(n, -1)
    counts = (clustered_draws(flat, clusters, draws=config.draws, rng=context.rng("count")) > config.threshold).sum(1)
    over, (low, high) = int((flat.mean(0) > config.threshold).sum()), np.quantile(counts, [0.025, 0.975]).tolist()
    size = flat.shape[1]
    summary["retrieval_heads"] = {"value": over, "low": low, "high": high, "n": size}
    summary["share_of_heads"] = {"value": over / size, "low": low / size, "high": high / size, "n": size}
    best = heads.sort("score", descending=True).head(10)
    summary["top_heads"] = ", ".join(
        f"{r['layer']}.{r['head']} {r['score']:.3f}" for r in best.iter_rows(named=True) if r["score"] > 0
    )
    order = context.rng("split").permutation(n)
    halves = [flat[half].mean(0) for half in (order[0::2], order[1::2]) if len(half)]
    if n > 3 and halves[0].std() > 0 and halves[1].std() > 0:
        summary["split_half_correlation"] = pearson(*halves, rng=context.rng("halves")).as_dict()
    for k in sorted({int(k) for k in masked["k"].to_list() if k > 0} if masked.height else ()):
        # over the trials, random draws averaged within each; `masking` shows every draw
        by_trial = (
            masked.filter(pl.col("k") == k)
            .group_by("trial", "heads")
            .agg(pl.col("recall").mean())
            .pivot("heads", index="trial", values="recall")
            .sort("trial")
        )
        found = {f"recall_masking_{kind}_{k}": by_trial[kind].to_numpy() for kind in ("top", "random")}
        found[f"recall_top_minus_random_{k}"] = by_trial["top"].to_numpy() - by_trial["random"].to_numpy()
        for name, values in found.items():
            low, high = cluster_bootstrap_mean(values, groups, draws=config.draws, rng=context.rng("masking"))
            summary[name] = {"value": float(values.mean()), "low": low, "high": high, "n": len(values)}
    return summary
