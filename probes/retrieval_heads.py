"""Retrieval heads: which attention heads copy from a long context, and does the model still answer without them?

Wu et al., Retrieval Head Mechanistically Explains Long-Context Factuality (arXiv 2404.15574). A needle is put into a haystack, the
model answers greedily. A head copies at a step if the token it attends to most lies in the answer's span in the context and is the
token being emitted (Eq. 1). Its score in a trial is the share of the answer's tokens that it copied; its score is the mean over trials.

Where paper and code differ, both are offered. `score=set` counts every token of the answer once (Eq. 1), `score=count` every step, as
the official code does, and can exceed 1. `keep=recalled` drops trials that the model fails (the code), `keep=all` scores them too
(Eq. 1). Masking acts on decoding only, from the last prompt token on, as in the code (`mask_phase=all` masks the prompt as well);
`ablation=uniform` is the code's masking, zero and mean are offered beside it. Deviations: the answer's span is found by character
offsets, not by token-set overlap; random heads never include the masked top heads and are drawn from the same layers; BOS stands only
at the start; a prompt of length n has at most n tokens, needle and question included, instead of n minus 200 plus these.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from workbench.context import Context, Result
from workbench.data import read_table, read_text
from workbench.errors import InputError
from workbench.registry import DataSpec, option, probe
from workbench.statistics import cluster_bootstrap_mean, clustered_draws, pearson, wilson

BIBTEX = """@inproceedings{wu2025retrieval,
  title={Retrieval Head Mechanistically Explains Long-Context Factuality},
  author={Wu, Wenhao and Wang, Yizhong and Xiao, Guangxuan and Peng, Hao and Fu, Yao},
  booktitle={International Conference on Learning Representations},
  year={2025},
  note={arXiv:2404.15574}
}"""
COLUMNS = ("needle", "question", "answer")
MATERIAL = Path(__file__).parent / "material" / "retrieval"


@dataclass(frozen=True)
class Config:
    needles: int | str = option("default", "needle file (needle, question, answer), 'default' for those that ship, or how many of the given ones to use", low=1, file=True)
    haystack: str = option("default", "text file that the needles are hidden in; 'default' ships with the project", file=True)
    lengths: str | tuple[int, ...] = option("auto", "prompt lengths in tokens; auto: 20 from 1,000 (or a fifth of the longest) to 50,000 or the model's context", choices=("auto",), low=8)
    depths: tuple[float, ...] = option((0, 11, 22, 33, 44, 56, 67, 78, 89, 100), "needle depths in percent of the haystack", low=0, high=100)
    max_new_tokens: int = option(50, "longest answer in tokens", low=1)
    threshold: float = option(0.1, "score from which a head counts as a retrieval head", low=0, high=1)
    score: str = option("set", "set: share of the answer's tokens copied (Eq. 1); count: copying steps over the answer's length (official code)", choices=("set", "count"))
    keep: str = option("recalled", "recalled: score only trials that the model answers (official code); all: score every trial (Eq. 1)", choices=("recalled", "all"))
    recall_threshold: float = option(0.5, "ROUGE-1 recall above which a trial counts as answered", low=0, high=1)
    template: str = option("default", "prompt: 'paper', 'chat' (the model's own chat template) or a text with {context} and {question}; default: the paper's, or the model's where it ships with one")
    stop: tuple[str, ...] = option(("default",), "the answer ends after a token that contains one of these; default: a line break, or the model's own")
    mask_k: tuple[int, ...] = option((2, 5, 10, 15, 20, 30, 50, 100), "how many top heads to mask; numbers beyond half of the model's heads are left out; 0: no masking test", low=0)
    ablation: str = option("uniform", "what masking does to a head: uniform attention (official code), zero output, mean output", choices=("uniform", "zero", "mean"))
    mask_phase: str = option("decode", "decode: mask from the last prompt token on (official code); all: mask the prompt too", choices=("decode", "all"))
    random_draws: int = option(5, "random sets of heads of the same layers to mask for comparison", low=1)
    mask_trials: int = option(60, "how many answered trials the masking test uses, evenly over the grid", low=1)
    resample: str = option("needles", "what the intervals resample: needles (trials of one needle belong together) or trials", choices=("needles", "trials"))
    draws: int = option(1000, "bootstrap resamples for the intervals", low=100)
    max_tokens: int = option(65536, "tokens in one batch of prompts", low=1)


def validate(config: Config, data: Path | None) -> None:
    source = Path(config.needles) if isinstance(config.needles, str) and config.needles != "default" else data
    if source is not None:
        read_table(source, required=COLUMNS, what="needles")
    if config.haystack != "default":
        read_text(config.haystack, what="haystack")
    if config.template not in ("default", "paper", "chat") and not ("{context}" in config.template and "{question}" in config.template):
        raise InputError("The option 'template' needs {context} and {question}, once each, or one of default, paper, chat.")


def _own_needles(model: str) -> Path | None:
    from workbench.organisms.material import material

    return material(model).get("needles")


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
    data=DataSpec(required=COLUMNS, what="needles", default="probes:material/retrieval/needles.jsonl", for_model=_own_needles),
    validate=validate,
    figures="workbench.figures.retrieval_heads:figures",
    keys={"heads": ("layer", "head"), "trials": ("trial",), "masking": ("k", "heads", "draw")},
    demo={"lengths": (128, 256, 384, 480), "depths": (0, 25, 50, 75, 100), "needles": 8, "max_new_tokens": 16, "mask_k": (1, 2, 3, 4, 8)},
)
def run(model, config: Config, context: Context) -> Result:
    """Score every head on the needle grid, then mask the best heads against random ones of the same layers.

    Scores are per query head. Raises InputError for needles without their answer and for lengths that do not fit the model."""
    if context.engine != "hf":
        raise InputError("retrieval-heads reads attention rows, which only the engine 'hf' gives; run it with --engine hf.")
    if config.ablation == "uniform" and any(config.mask_k) and not model.attention_interface:
        raise InputError(f"Uniform attention cannot be put into {model.architecture}; use --set ablation=zero, or mask_k=0 for no masking test.")
    needles, shared, trials, stops = _grid(model, config, context)
    measured = _measure(model, config, context, shared, trials, stops)
    recall = [_rouge_recall(needles[t.needle].answer, text) for t, text in zip(trials, measured.responses)]
    answered = np.array(recall) > config.recall_threshold
    kept = answered if config.keep == "recalled" else np.ones(len(trials), bool)

    scores = np.stack([_score(t, m, config.score) for t, m in zip(trials, measured.steps)])  # [trials, layers, heads]
    clusters = _clusters(trials, config, context)
    heads = _head_table(model, scores[kept], measured.mass[kept], clusters[kept], config, context)
    if not kept.any():
        context.warn(f"The model answered none of the {len(trials)} trials, so no head has a score; try shorter lengths, another template or keep=all.")
    tables = {
        "heads": heads,
        "trials": _trial_table(model, needles, trials, measured, recall, kept),
        "inputs": _input_table(trials, measured),
        "enough": _how_many_are_enough(scores[kept], context),
    }
    chosen = _spread(np.flatnonzero(answered), config.mask_trials)
    plan = _mask_plan(model, heads, config, context) if kept.any() else []
    tables["masking"], tables["masked_trials"] = _mask(model, config, context, needles, shared, [(i, trials[i]) for i in chosen], clusters, plan, stops)
    summary = _summary(heads, scores[kept], answered, kept, clusters, tables["masked_trials"], config, context)
    return Result(tables, {"trial_scores": scores.astype(np.float32)}, summary | {"tied_maxima": measured.ties})


# the grid


def _grid(model, config: Config, context: Context):
    """Needles, the shared tokens, the trials and the stopping rule, from the config or from what ships with the model."""
    from workbench.needles import encode_after, grid, read_needle, split_template
    from workbench.organisms.material import material

    own = material(model.name)
    source = Path(config.needles) if isinstance(config.needles, str) and config.needles != "default" else context.data
    haystack = read_text(own.get("haystack", MATERIAL / "haystack.txt") if config.haystack == "default" else config.haystack, what="haystack")
    before, after = split_template(model, own.get("template", "paper") if config.template == "default" else config.template)
    stop = own.get("stop", ("\n",)) if config.stop == ("default",) else config.stop

    rows = read_table(source, required=COLUMNS, what="needles")
    if isinstance(config.needles, int):
        rows = rows.head(config.needles)
    needles = [read_needle(model, k, r["needle"], r["question"], r["answer"], after) for k, r in enumerate(rows.iter_rows(named=True))]
    longest = min(50_000, (model.context_length or 50_000) - config.max_new_tokens)
    lengths = config.lengths
    if lengths == "auto":
        lengths = sorted({int(x) for x in np.linspace(min(1000, longest // 5), longest, 20).round()})
        floor = 8 + max(len(n.ids) + len(n.tail) for n in needles)
        lengths = [x for x in lengths if x > floor] or [longest]
    tokens, _ = encode_after(model, haystack.strip())
    shared, trials = grid(model, needles, tokens, before, lengths=lengths, depths=config.depths, new_tokens=config.max_new_tokens)
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
class Measured:
    """What is kept of every trial: emitted ids, each step's most attended position [steps, layers, H], mean span mass [layers, H];
    `ties`: share of all attention rows whose maximum is tied (the first position counts)."""

    generated: list[list[int]]
    responses: list[str]
    steps: list[tuple[np.ndarray, np.ndarray]]  # (emitted ids [steps], attended positions [steps, layers, H])
    mass: np.ndarray  # [trials, layers, H]
    ties: float


def _measure(model, config: Config, context: Context, shared: list[int], trials: list, stops) -> Measured:
    """Greedy answers of all trials with the position every head attends to most at every step."""
    groups = _groups(model, trials, config.max_tokens)
    found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    tied = steps_seen = 0
    prefix = _Prefix(model, shared, context)
    for number, rows in enumerate(groups):
        context.progress(len(found), len(trials), "needles")
        part = context.part(f"needles-{number}", lambda rows=rows: _measure_group(model, config, context, prefix, [trials[i] for i in rows], stops))
        for k, i in enumerate(rows):
            own = part["trial"] == k
            found[i] = part["token"][own], part["position"][own], part["mass"][own].mean(0)
            tied += int(part["tied"][own].sum())
            steps_seen += int(part["tied"][own].size)
    context.progress(len(trials), len(trials), "needles")
    generated = [found[i][0].tolist() for i in range(len(trials))]
    return Measured(generated, [model.decode(g).strip() for g in generated], [found[i][:2] for i in range(len(trials))],
                    np.stack([found[i][2] for i in range(len(trials))]), tied / max(1, steps_seen))  # fmt: skip


def _measure_group(model, config, context, prefix, group, stops) -> dict[str, np.ndarray]:
    """Steps of trials that share their haystack prefix, flattened: trial [n], token [n], position, mass and tied [n, layers, H]."""
    import torch

    from workbench.continuation import greedy_steps
    from workbench.intervene import apply

    length = group[0].shared
    spans = _span_rows(group, model)
    with apply(model, context.edits):
        before = prefix.upto(length, len(group))
        steps = greedy_steps(
            model, before, [t.ids[length:] for t in group], [() if model.sliding else t.guess for t in group],
            max_new_tokens=config.max_new_tokens, stops=stops, spans=spans, check=context.check,
        )  # fmt: skip
    context.count(prompts=len(group), tokens=sum(len(t.ids) - length for t in group), forwards=1)
    flat = [(k, s) for k, row in enumerate(steps) for s in row]
    readings = torch.stack([s.reading for _, s in flat]).numpy()
    return {
        "trial": np.array([k for k, _ in flat], np.int32), "token": np.array([s.token for _, s in flat], np.int64),
        "position": readings[..., 0].astype(np.int32), "mass": readings[..., 1], "tied": readings[..., 2].astype(bool),
    }  # fmt: skip


def _span_rows(group, model):
    import torch

    width = max(t.span[1] - t.span[0] for t in group)
    return torch.tensor([[*range(*t.span), *[-1] * (width - t.span[1] + t.span[0])] for t in group], device=model.device)


class _Prefix:
    """Keys and values of the haystack's beginning, computed once for the longest prefix and cut for the others."""

    def __init__(self, model, shared: list[int], context: Context):
        self.model, self.shared, self.context, self.cached = model, shared, context, None

    def upto(self, length: int, copies: int):
        """Keys and values of the first `length` tokens for a batch of `copies` rows; None for length 0."""
        from workbench.continuation import feed

        if length == 0:
            return None
        if self.cached is None or self.cached.past.mask.shape[1] < length:
            self.cached, _ = feed(self.model, [self.shared[:length]], None)
            self.context.count(tokens=length, forwards=1)
        return self.cached.first(length).fork(copies)


def _groups(model, trials, max_tokens: int) -> list[list[int]]:
    """Trials that can run as one batch: same haystack prefix (and same length where attention slides), longest prefixes first."""
    by_prefix = defaultdict(list)
    for i, trial in enumerate(trials):
        by_prefix[trial.length, trial.shared, len(trial.ids) if model.sliding else 0].append(i)
    out = []
    for (length, *_), rows in sorted(by_prefix.items(), key=lambda item: (-item[0][1], item[0])):
        size = max(1, max_tokens // length)
        out += [rows[k : k + size] for k in range(0, len(rows), size)]
    return out


def _score(trial, steps: tuple[np.ndarray, np.ndarray], how: str) -> np.ndarray:
    """Eq. 1 for every head, [layers, H]: set = |copied ∩ answer| / |answer| over distinct tokens; count = copying steps / |span|."""
    emitted, attended = steps
    ids, (start, end) = np.array(trial.ids), trial.span
    inside = (attended >= start) & (attended < end)
    copies = inside & (ids[np.clip(attended, 0, len(ids) - 1)] == emitted[:, None, None])  # [steps, layers, H]
    if how == "count":
        return copies.sum(0) / (end - start)
    answer = np.unique(ids[start:end])
    return np.stack([copies[emitted == token].any(0) for token in answer]).sum(0) / len(answer)


def _clusters(trials, config: Config, context: Context) -> np.ndarray:
    """Which trials an interval resamples together, [trials]: those of one needle, unless that would leave fewer than two clusters."""
    needles = np.array([t.needle for t in trials])
    if config.resample == "needles" and len(set(needles.tolist())) > 1:
        return needles
    if config.resample == "needles":
        context.warn("There is one needle, so the intervals resample trials; they say nothing about other needles.")
    return np.arange(len(trials))


def _head_table(model, scores: np.ndarray, mass: np.ndarray, clusters: np.ndarray, config: Config, context: Context) -> pl.DataFrame:
    """One row per head; without a kept trial the scores are null, not 0."""
    n, L, H = len(scores), model.n_layers, model.n_heads
    rows = {"layer": np.repeat(np.arange(L), H), "head": np.tile(np.arange(H), L)}
    rows["kv_group"] = np.array([model.kv_group(h) for h in rows["head"]])
    if n == 0:
        empty = {name: pl.Series([None] * (L * H), dtype=pl.Float64) for name in ("score", "ci_low", "ci_high", "activation_frequency", "span_mass")}
        return pl.DataFrame(rows | empty | {"n_trials": [0] * (L * H), "is_retrieval": pl.Series([None] * (L * H), dtype=pl.Boolean)})
    means = clustered_draws(scores.reshape(n, L * H), clusters, draws=config.draws, rng=context.rng("heads"))
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    mean = scores.mean(0)
    return pl.DataFrame(rows | {
        "score": mean.ravel(), "ci_low": low, "ci_high": high, "activation_frequency": (scores > 0).mean(0).ravel(),
        "span_mass": mass.mean(0).ravel().astype(np.float64), "n_trials": [n] * (L * H), "is_retrieval": (mean > config.threshold).ravel(),
    })  # fmt: skip


def _rouge_recall(answer: str, response: str) -> float:
    """ROUGE-1 recall of the answer in the response, stemmed, between 0 and 1 (the official success measure, which prints it × 100)."""
    from rouge_score.rouge_scorer import RougeScorer

    return float(RougeScorer(["rouge1"], use_stemmer=True).score(answer, response)["rouge1"].recall)


def _trial_table(model, needles, trials, measured: Measured, recall, kept) -> pl.DataFrame:
    return pl.DataFrame({
        "trial": range(len(trials)), "needle": [t.needle for t in trials], "length": [t.length for t in trials], "depth": [float(t.depth) for t in trials],
        "recall": recall, "kept": kept.tolist(), "response": measured.responses, "answer": [needles[t.needle].answer for t in trials],
        "prompt_tokens": [len(t.ids) for t in trials], "needle_position": [t.shared for t in trials],
    })  # fmt: skip


def _input_table(trials, measured: Measured) -> pl.DataFrame:
    return pl.DataFrame({
        "row": range(len(trials)), "ids": [list(t.ids) for t in trials], "span_start": [t.span[0] for t in trials],
        "span_end": [t.span[1] for t in trials], "generated_ids": measured.generated,
    })  # fmt: skip


def _how_many_are_enough(scores: np.ndarray, context: Context, *, top: int = 10, repeats: int = 200) -> pl.DataFrame:
    """How well k random trials find the top heads of all trials: expected overlap of the two top lists."""
    n = len(scores)
    sizes = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500) if k < n]
    flat = scores.reshape(n, scores.shape[1] * scores.shape[2])
    top = min(top, int((flat.mean(0) > 0).sum())) if n else 0
    if not sizes or top == 0:
        return pl.DataFrame(schema={"trials": pl.Int64, "top": pl.Int64, "overlap": pl.Float64, "ci_low": pl.Float64, "ci_high": pl.Float64})
    final, rng, rows = set(np.argsort(-flat.mean(0), kind="stable")[:top].tolist()), context.rng("enough"), []
    for k in sizes:
        found = [len(final & set(np.argsort(-flat[rng.choice(n, k, replace=False)].mean(0), kind="stable")[:top].tolist())) / top for _ in range(repeats)]
        rows.append((k, top, float(np.mean(found)), *np.quantile(found, [0.025, 0.975])))
    return pl.DataFrame(rows, schema=["trials", "top", "overlap", "ci_low", "ci_high"], orient="row")


# the causal test


def _mask_plan(model, heads: pl.DataFrame, config: Config, context: Context) -> list[tuple[int, str, int, tuple]]:
    """(k, "top" or "random", draw, heads) for every masking; random heads come from the top heads' layers and are none of them."""
    ranked = heads.sort("score", "layer", "head", descending=[True, False, False])
    order = list(zip(ranked["layer"].to_list(), ranked["head"].to_list()))
    plan = [(0, "top", 0, ())]
    for k in sorted({k for k in config.mask_k if 0 < k <= len(order) // 2}):
        top = order[:k]
        plan.append((k, "top", 0, tuple(top)))
        for draw in range(config.random_draws):
            rng, chosen = context.rng(f"random-{k}-{draw}"), []
            for layer in sorted({layer for layer, _ in top}):
                wanted = sum(1 for l, _ in top if l == layer)
                free = [h for h in range(model.n_heads) if (layer, h) not in top]
                if len(free) < wanted:
                    context.warn(f"Layer {layer} has too few other heads for a random control of k={k}; it masks {len(free)} instead of {wanted} there.")
                chosen += [(layer, int(h)) for h in rng.permutation(free)[:wanted]]
            plan.append((k, "random", draw, tuple(chosen)))
    return plan if len(plan) > 1 else []


def _mask(model, config, context, needles, shared, trials, clusters, plan, stops) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Recall of the answered trials under every masking. The prompt is read once per trial, every masking continues from there."""
    nothing = pl.DataFrame(schema={"k": pl.Int64, "heads": pl.String, "draw": pl.Int64, "ablation": pl.String, "recall": pl.Float64,
                                   "ci_low": pl.Float64, "ci_high": pl.Float64, "n": pl.Int64, "masked": pl.String})  # fmt: skip
    empty = pl.DataFrame(schema={"k": pl.Int64, "heads": pl.String, "draw": pl.Int64, "trial": pl.Int64, "length": pl.Int64,
                                 "depth": pl.Float64, "recall": pl.Float64, "response": pl.String})  # fmt: skip
    if not plan or not trials:
        return nothing, empty
    only = [t for _, t in trials]
    mean = _haystack_mean(model, shared, context) if config.ablation == "mean" else None
    prefix, rows, done = _Prefix(model, shared, context), [], 0
    for number, group in enumerate(_groups(model, only, config.max_tokens)):
        part = context.part(f"masking-{number}", lambda group=group: {"trials": _mask_group(model, config, context, needles, prefix, [trials[i] for i in group], plan, mean, stops)})
        rows.append(part["trials"])
        done += len(group)
        context.progress(done, len(only), "masking")
    by_trial = pl.concat(rows).sort("k", "heads", "draw", "trial", descending=[False, True, False, False])
    out = []
    for k, kind, draw, heads in plan:
        own = by_trial.filter((pl.col("k") == k) & (pl.col("heads") == kind) & (pl.col("draw") == draw))
        recall = own["recall"].to_numpy()
        low, high = cluster_bootstrap_mean(recall, clusters[own["trial"].to_numpy()], draws=config.draws, rng=context.rng("masking"))
        out.append((k, kind, draw, config.ablation, float(recall.mean()), low, high, len(recall), " ".join(f"{l}.{h}" for l, h in heads)))
    return pl.DataFrame(out, schema=nothing.schema, orient="row"), by_trial


def _mask_group(model, config, context, needles, prefix, group, plan, mean, stops) -> pl.DataFrame:
    from workbench.continuation import feed, greedy_steps
    from workbench.intervene import HeadAblation, apply

    length = group[0][1].shared
    with apply(model, context.edits):
        read, _ = feed(model, [t.ids[length:-1] for _, t in group], prefix.upto(length, len(group)))
    rows = []
    for k, kind, draw, heads in plan:
        context.check()
        edits = (*context.edits, HeadAblation(heads, config.ablation, mean)) if heads else context.edits
        with apply(model, edits):
            before = read if config.mask_phase == "decode" else feed(model, [t.ids[:-1] for _, t in group], None)[0]
            steps = greedy_steps(model, before, [t.ids[-1:] for _, t in group], [() if model.sliding else t.guess for _, t in group],
                                 max_new_tokens=config.max_new_tokens, stops=stops, check=context.check)  # fmt: skip
        context.count(forwards=1)
        for (i, t), row in zip(group, steps):
            text = model.decode([s.token for s in row]).strip()
            rows.append((k, kind, draw, i, t.length, float(t.depth), _rouge_recall(needles[t.needle].answer, text), text))
    return pl.DataFrame(rows, schema=["k", "heads", "draw", "trial", "length", "depth", "recall", "response"], orient="row")


def _haystack_mean(model, shared, context):
    from workbench.intervene import mean_head_outputs

    context.count(tokens=min(len(shared), 4096), forwards=1)
    return mean_head_outputs(model, [shared[:4096]])


def _spread(rows: np.ndarray, wanted: int) -> list[int]:
    """At most `wanted` of `rows`, evenly over their order (which runs over lengths, depths and needles)."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(wanted, len(rows))).round().astype(int))].tolist() if len(rows) else []


# what a person would quote


def _summary(heads: pl.DataFrame, scores: np.ndarray, answered: np.ndarray, kept: np.ndarray, clusters: np.ndarray, masked: pl.DataFrame, config: Config, context: Context) -> dict:
    low, high = wilson(int(answered.sum()), len(answered))  # of the trials: a bootstrap has no width when all succeed
    summary = {"recalled": {"value": float(answered.mean()), "low": low, "high": high, "n": len(answered)}, "trials_scored": len(scores)}
    if not len(scores):
        return summary | {"note": "No trial was answered, so heads have no score."}
    n = len(scores)
    flat = scores.reshape(n, -1)
    counts = (clustered_draws(flat, clusters[kept], draws=config.draws, rng=context.rng("count")) > config.threshold).sum(1)
    over = int((flat.mean(0) > config.threshold).sum())
    summary["retrieval_heads"] = {"value": over, "low": float(np.quantile(counts, 0.025)), "high": float(np.quantile(counts, 0.975)), "n": flat.shape[1]}
    summary["share_of_heads"] = over / flat.shape[1]
    best = heads.sort("score", descending=True).head(10)
    summary["top_heads"] = ", ".join(f"{r['layer']}.{r['head']} {r['score']:.3f}" for r in best.iter_rows(named=True) if r["score"] > 0)
    order = context.rng("split").permutation(n)
    halves = [flat[half].mean(0) for half in (order[0::2], order[1::2]) if len(half)]
    if n > 3 and halves[0].std() > 0 and halves[1].std() > 0:
        summary["split_half_correlation"] = pearson(*halves, rng=context.rng("halves")).as_dict()
    for k in sorted({int(k) for k in masked["k"].to_list() if k > 0} if masked.height else ()):
        for kind in ("top", "random"):  # over the trials, random draws averaged within each; `masking` shows every draw
            recall = masked.filter((pl.col("k") == k) & (pl.col("heads") == kind)).group_by("trial").agg(pl.col("recall").mean()).sort("trial")
            own, recall = clusters[recall["trial"].to_numpy()], recall["recall"].to_numpy()
            low, high = cluster_bootstrap_mean(recall, own, draws=config.draws, rng=context.rng("masking"))
            summary[f"recall_masking_{kind}_{k}"] = {"value": float(recall.mean()), "low": low, "high": high, "n": len(recall)}
    return summary
