"""Branching factor: how many next steps a model really considers while it generates (Yang & Holtzman, arXiv 2506.17871).

For every prompt, M continuations are sampled from the truncated distribution (nucleus 0.9, temperature 1). BF is exp of its mean
entropy per step: exp per prompt first, mean over prompts after. Statistics come from all scores of every step, computed on the
device; the official code sees the 50 likeliest tokens only (`estimator=compat` reports what it would).

Deviations from the official code, all of them named in the tables: exact entropies instead of top-50; the entropy estimator at every
length instead of a switch to the likelihood after 50 tokens; all samples instead of the survivors; the nucleus edge has a margin of
1e-6; a sample's EOS token is one of its steps (as there).

Studies (`study=`): pair, complexity, nudging, resampling, decoding, verbalised, hyperfitted; each is one function below.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from workbench.branching import (
    ESTIMATORS,
    POOLS,
    Profile,
    enough,
    interval,
    log_bf,
    over_prompts,
    prefix_curve,
    resampled,
    window_curve,
)
from workbench.context import Context, Result
from workbench.continuations import Condition, Continuations, correct, frame, sample_table, shorten, tree_table
from workbench.data import read_table
from workbench.errors import InputError
from workbench.generate import greedy, prompt_ids, sample
from workbench.models import Model, load
from workbench.prefix_tree import common_openings
from workbench.registry import DataSpec, option, probe
from workbench.scoring import FIELDS, Rule, score
from workbench.vllm_engine import sample_vllm

STUDIES = ("none", "pair", "complexity", "nudging", "resampling", "decoding", "verbalised", "hyperfitted")
DRAWS = 1000
PART_ROWS = 1024  # samples per resumable part
VERBALISED = (
    "Generate {k} responses to the request below. Put each in a <response> tag, with a <text> and a numeric <probability>: the "
    "probability of that response among all the responses you could give.\n\nRequest: {prompt}"
)


@dataclass(frozen=True)
class Config:
    samples: int = option(50, "continuations per prompt (M)", low=1)
    max_new_tokens: int = option(256, "longest continuation, in tokens", low=1)
    temperature: float = option(1.0, "of the sampling distribution; 0 takes the likeliest token", low=0)
    top_p: float = option(0.9, "nucleus: smallest set of tokens with this probability; 1 keeps all", low=0, high=1)
    top_k: int = option(0, "keep the k likeliest tokens; 0 keeps all", low=0)
    min_p: float = option(0.0, "keep tokens at least this likely relative to the likeliest; 0 keeps all", low=0, high=1)
    estimator: str = option("entropy", "what `bf` is: entropy, nll (likelihood), or compat (the official code's mixture)", choices=ESTIMATORS)
    pool: str = option("tokens", "weigh samples by their tokens, or all the same", choices=POOLS)
    study: str = option("none", "what is compared", choices=STUDIES)
    compare: str = option("", "second model, for the studies pair and nudging (the aligned sibling) and, if wanted, complexity, hyperfitted", file=True)
    template: str = option("auto", "prompts in the model's chat template (chat), as they are (raw), or chat where there is one (auto)", choices=("auto", "chat", "raw"))
    system: str = option("", "system message, with a chat template")
    stop: tuple[str, ...] = option((), "texts that end a sample")
    max_prompts: int = option(0, "use only the first prompts; 0 uses all", low=0)
    window: int = option(5, "width of the windows of bf_window, in tokens", low=1)
    late: int = option(5, "tokens left out at the start of each sample for bf_late", low=1)
    max_rows: int = option(256, "samples decoded together; fewer need less memory", low=1)
    sampler: str = option("hf", "hf, or vllm (an extra): samples from vLLM, exact statistics from one pass over them", choices=("hf", "vllm"))
    levels: tuple[int, ...] = option((0, 1, 2, 3, 4, 5), "study complexity: how much of the prompt text is kept; -1 keeps all", low=-1)
    unit: str = option("sentences", "study complexity: what a level counts (words: ten at a time; blocks: few-shot examples before the last)", choices=("sentences", "words", "blocks"))
    nudge_count: int = option(50, "study nudging: an opening is common if at least so many samples share it", low=1)
    nudge_tokens: int = option(5, "study nudging: longest opening", low=1)
    nudge_pick: int = option(0, "study nudging: which opening, longest first, then most frequent (the official code hand-picks 1 or 2)", low=0)
    cuts: tuple[int, ...] = option((0, 5, 10, 20, 40), "study resampling: positions from which outputs are sampled again", low=0)
    originals: int = option(1, "study resampling: how many samples of each prompt are cut", low=1)
    settings: tuple[str, ...] = option(
        ("temperature=1 top_p=0.9", "temperature=1 top_p=1", "temperature=0.6 top_p=0.9", "temperature=1 top_p=1 min_p=0.1", "temperature=0"),
        "study decoding: settings to compare with the first, each as 'temperature=… top_p=… top_k=… min_p=…'",
    )  # fmt: skip
    responses: int = option(5, "study verbalised: how many responses one answer is asked for", low=2)

    def __post_init__(self) -> None:
        if self.top_p == 0:
            raise ValueError("top_p is 0; it must be above 0 (a tiny value keeps one token)")
        if self.estimator == "compat" and self.samples < 4:
            raise ValueError("estimator=compat stops where 3 samples or fewer are alive, so samples must be at least 4")
        if self.study in ("pair", "nudging") and not self.compare:
            raise ValueError(f"study={self.study} needs a second model: compare=NAME")
        for setting in self.settings if self.study == "decoding" else ():
            Rule.parse(setting)


def validate(config: Config, data: Path | None) -> None:
    """Everything that can be refused before a model is loaded."""
    read_table(data, required=("prompt", "answer") if config.study == "resampling" else ("prompt",), what="prompts")
    if config.sampler == "vllm" and importlib.util.find_spec("vllm") is None:
        raise InputError("vLLM is not installed here; install the extra (pip install 'interpretability-workbench[vllm]') or use sampler=hf.")


@dataclass(eq=False)
class Measured(Continuations):
    """The samples of one condition, and BF [P, D] of every prompt in resamples of its samples."""

    draws: np.ndarray = None

    def profile(self) -> Profile:
        return Profile(self.lengths, *(self.statistic(n) for n in ("entropy", "logprob", "entropy_top", "logprob_top")))


@dataclass(eq=False)
class Lab:
    """What the studies share: how a condition is made from texts and how it is measured."""

    model: Model
    config: Config
    context: Context
    table: pl.DataFrame
    other: Model | None = None

    def condition(self, name: str, model: Model | None = None, *, texts: Sequence[str] | None = None, rule=None, **more) -> Condition:
        """The prompts of the data file (or `texts` in their place), written for the model."""
        model = model or self.model
        texts = list(self.table["prompt"] if texts is None else texts)
        ids = [prompt_ids(model, text, template=self.config.template, system=self.config.system) for text in texts]
        for row, tokens in enumerate(ids):
            if not tokens:
                raise InputError(f"Prompt {row} is empty and the tokenizer of {model.name} has no BOS token to begin with.")
        answers = self.table["answer"].to_list() if "answer" in self.table.columns else None
        rule = rule or Rule(*(getattr(self.config, key) for key in ("temperature", "top_p", "top_k", "min_p")))
        return Condition(name, model, texts, ids, rule, list(range(len(ids))), answers, **more)

    def label(self, model: Model) -> str:
        name = Path(model.name).name
        return name + " (2)" if model is self.other and name == Path(self.model.name).name else name

    def measure(self, condition: Condition) -> Measured:
        """Sample the condition, part by part; parts that an interrupted run has done are read."""
        per_part, parts = max(1, PART_ROWS // self.config.samples), []
        for start in range(0, len(condition.ids), per_part):
            rows = list(range(start, min(start + per_part, len(condition.ids))))
            parts.append(self.context.part(f"{condition.name}/{start}", lambda rows=rows: self._sample(condition, rows)))
        longest = max(part["ids"].shape[2] for part in parts)

        def join(name: str, fill) -> np.ndarray:
            wide = [np.full((*p[name].shape[:2], longest, *p[name].shape[3:]), fill, p[name].dtype) for p in parts]
            for whole, part in zip(wide, parts):
                whole[:, :, : part[name].shape[2]] = part[name]
            return np.concatenate(wide)

        whole = {name: np.concatenate([part[name] for part in parts]) for name in ("lengths", "finish")}
        found = Measured(condition, join("ids", -1), whole["lengths"], whole["finish"], join("steps", np.nan), [])
        P, M = found.lengths.shape
        found.texts = [[condition.model.decode(found.tokens(p, m)) for m in range(M)] for p in range(P)]
        rng = self.context.rng(f"bootstrap/{condition.name}")
        found.draws = resampled(found.profile(), self.config.estimator, pool=self.config.pool, rng=rng, draws=DRAWS)
        _warn(found, self.config, self.context)
        return found

    def _sample(self, condition: Condition, rows: list[int]) -> dict[str, np.ndarray]:
        context, config, total = self.context, self.config, len(condition.ids) * self.config.samples
        progress = lambda done, _total, label: context.progress(rows[0] * config.samples + done, total, f"{condition.name}: {label}")  # noqa: E731
        common = {"samples": config.samples, "max_new_tokens": config.max_new_tokens, "rule": condition.rule, "stop_strings": config.stop,
                  "seed": context.torch_seed(condition.stream), "check": context.check, "progress": progress,
                  "prompt_keys": rows}  # fmt: skip
        edits = context.edits if condition.model is self.model else ()
        ids = [condition.ids[i] for i in rows]
        if config.sampler == "vllm":
            found = sample_vllm(condition.model, ids, **common)
        else:
            found = sample(condition.model, ids, edits=edits, max_rows=config.max_rows, **common)
        context.count(prompts=len(rows), tokens=int(found.lengths.sum()) + sum(map(len, ids)), forwards=found.ids.shape[2])
        arrays = {name: getattr(found, name).numpy() for name in ("ids", "lengths", "finish", "steps")}
        return arrays | {"ids": arrays["ids"].astype(np.int32)}


def _warn(found: Measured, config: Config, context: Context) -> None:
    name, alive = found.condition.name, found.ids >= 0
    if not found.condition.model.eos_ids:
        context.warn(f"{found.condition.model.name} has no end-of-text token: every sample runs to its length limit.")
    if (found.finish == 3).any():
        context.warn(f"{name}: {int((found.finish == 3).sum())} of {found.finish.size} samples ended at the model's context limit.")
    if (found.statistic("support")[alive] == 1).all():
        context.warn(f"{name}: the decoding rule leaves one token at every step, so BF is 1 by construction; bf_full is the model's own.")
    short = float((found.statistic("top_mass")[alive] < found.condition.rule.top_p).mean())
    if short > 0.05 and config.estimator == "compat":
        context.warn(f"{name}: at {short:.0%} of the steps the 50 likeliest tokens hold less than top_p; compat cannot see beyond them.")
    if config.samples == 1:
        context.warn("With one sample per prompt the intervals over samples have no width; take at least 10.")


# ---- the studies. Each gives its measured conditions, the pairs to compare (a over b), and tables of its own.

Study = Callable[[Lab], tuple[list[Measured], list[tuple[str, str]], dict[str, pl.DataFrame]]]


def one_model(lab: Lab):
    """The model on the prompts as they are."""
    return [lab.measure(lab.condition(lab.label(lab.model)))], [], {}


def pair(lab: Lab):
    """The model (base) and a second one (aligned) on the same prompts: BF ratio."""
    models = (lab.model, lab.other)
    found = [lab.measure(lab.condition(lab.label(m), m)) for m in models]
    return found, [(lab.label(lab.model), lab.label(lab.other))], {}


def complexity(lab: Lab):
    """How BF falls with the amount of prompt that is given; with a second model, the impact of both factors (max − min of means)."""
    models = [m for m in (lab.model, lab.other) if m is not None]
    found, level_of = [], []
    for m in models:
        for level in lab.config.levels:
            name = f"{lab.label(m)}, C={level}"
            texts = [shorten(text, level, lab.config.unit) for text in lab.table["prompt"]]
            found.append(lab.measure(lab.condition(name, m, texts=texts)))
            level_of.append((lab.label(m), level))
    means = {key: float(np.nanmean(_bf(f, lab.config))) for key, f in zip(level_of, found)}
    tables = {"complexity": pl.DataFrame([{"condition": f.condition.name, "model": k[0], "level": k[1], "bf": means[k]} for k, f in zip(level_of, found)])}
    spread = lambda axis: np.ptp([np.mean([v for k, v in means.items() if k[axis] == g]) for g in {k[axis] for k in means}])  # noqa: E731
    impact = {"complexity": float(spread(1))} | ({"model": float(spread(0))} if len(models) > 1 else {})
    total = sum(impact.values()) or 1.0
    tables["impact"] = pl.DataFrame([{"factor": k, "impact": v, "share": v / total} for k, v in impact.items()])
    names = [f.condition.name for f in found]
    width = len(lab.config.levels)
    return found, [(names[i], names[i // width * width + width - 1]) for i in range(len(names)) if i % width < width - 1], tables


def nudging(lab: Lab):
    """Give the base model the aligned model's most common opening: BF of what follows, against the base model's own openings."""
    config, base, aligned = lab.config, lab.label(lab.model), lab.label(lab.other)
    found = [lab.measure(lab.condition(base)), lab.measure(lab.condition(aligned, lab.other))]
    P, M = found[1].lengths.shape
    ends = set(lab.other.eos_ids)
    rows = [found[1].tokens(p, m) for p in range(P) for m in range(M)]
    openings = [o for o in common_openings(rows, least=config.nudge_count, longest=config.nudge_tokens) if not ends & set(o[0])]
    if not openings:
        raise InputError(f"No opening is shared by {config.nudge_count} of the {P * M} samples of {aligned}; lower nudge_count or sample more.")
    pick = min(config.nudge_pick, len(openings) - 1)
    prefix = list(openings[pick][0])
    same = lab.model.tokenizer_fingerprint == lab.other.tokenizer_fingerprint
    nudge = prefix if same else lab.model.encode(lab.other.decode(prefix), bos=False)
    own = [[t for t in found[0].tokens(p, 0) if t not in lab.model.eos_ids][: len(nudge)] for p in range(P)]
    for name, m, given in (
        (f"{base} + opening", lab.model, [nudge] * P), (f"{base} + own opening", lab.model, own), (f"{aligned} + opening", lab.other, [prefix] * P)
    ):  # fmt: skip
        condition = lab.condition(name, m, given=given, stream="after the opening")
        condition.ids = [ids + more for ids, more in zip(condition.ids, given)]
        found.append(lab.measure(condition))
    table = pl.DataFrame([{"opening": lab.other.decode(o), "ids": list(o), "tokens": len(o), "count": n, "share": n / (P * M), "chosen": i == pick}
                          for i, (o, n) in enumerate(openings[:100])])  # fmt: skip
    return found, [(base, f"{base} + opening"), (f"{base} + own opening", f"{base} + opening"), (base, aligned), (f"{base} + opening", f"{aligned} + opening")], {"openings": table}


def resampling(lab: Lab):
    """Keep the first t tokens of an output and sample the rest again: does the task still come out right?"""
    first = lab.measure(lab.condition(lab.label(lab.model)))
    found, rows, baseline = [first], [], {}
    rng = lab.context.rng("resampling")
    for t in lab.config.cuts:
        chosen = [(p, m) for p in range(len(first.lengths)) for m in range(min(lab.config.originals, lab.config.samples)) if first.lengths[p, m] > t]
        if not chosen:
            lab.context.warn(f"No output is longer than {t} tokens, so none was cut there.")
            continue
        condition = lab.condition(f"cut at {t}", stream=f"cut at {t}")
        given = [first.tokens(p, m)[:t] for p, m in chosen]
        ids = [condition.ids[p] + more for (p, _), more in zip(chosen, given)]
        pick = lambda values, chosen=chosen: [values[p] for p, _ in chosen]  # noqa: E731
        condition = replace(condition, texts=pick(condition.texts), ids=ids, prompt=[p for p, _ in chosen], answers=pick(condition.answers), given=given)
        found.append(lab.measure(condition))
        right = correct(found[-1]).mean(1)
        per_prompt = {p: float(np.mean([r for r, (q, _) in zip(right, chosen) if q == p])) for p in dict.fromkeys(q for q, _ in chosen)}
        baseline = baseline or per_prompt
        low, high = interval(rng.choice(right, (DRAWS, len(right))).mean(1))
        drop = np.array([baseline[p] - value for p, value in per_prompt.items() if p in baseline])
        drops = interval(rng.choice(drop, (DRAWS, len(drop))).mean(1))
        rows.append({"position": t, "accuracy": float(right.mean()), "ci_low": low, "ci_high": high, "drop": float(drop.mean()), "drop_low": drops[0],
                     "drop_high": drops[1], "bf": float(np.nanmean(_bf(found[-1], lab.config))), "outputs": len(chosen), "samples": lab.config.samples})  # fmt: skip
    return found, [], {"resampling": pl.DataFrame(rows)}


def decoding(lab: Lab):
    """Decoding settings against the first of them."""
    found = [lab.measure(lab.condition(name, rule=Rule.parse(name))) for name in lab.config.settings]
    return found, [(name, lab.config.settings[0]) for name in lab.config.settings[1:]], {}


def verbalised(lab: Lab):
    """Ask for several responses with their probabilities: a way to get diversity back out of an aligned model."""
    texts = [VERBALISED.format(k=lab.config.responses, prompt=text) for text in lab.table["prompt"]]
    found = [lab.measure(lab.condition("direct")), lab.measure(lab.condition("verbalised", texts=texts))]
    return found, [("verbalised", "direct")], {}


def hyperfitted(lab: Lab):
    """The signature of over-training: almost no entropy on its own text, yet given text surprises it far more than it expects."""
    found, rows = [], []
    for model in [m for m in (lab.model, lab.other) if m is not None]:
        name = lab.label(model)
        found.append(lab.measure(lab.condition(name, model)))

        def signature(model=model, condition=found[-1].condition) -> dict[str, np.ndarray]:
            texts = [model.encode(text) for text in lab.table["prompt"]]
            texts = [ids for ids in texts if len(ids) > 1]
            if not texts:
                raise InputError("study=hyperfitted scores the prompts as text; none of them has two tokens.")
            given = np.concatenate([s.numpy() for s in score(model, [ids[:1] for ids in texts], [ids[1:] for ids in texts], check=lab.context.check)])
            best = greedy(model, condition.ids, max_new_tokens=lab.config.max_new_tokens, check=lab.context.check, max_rows=lab.config.max_rows)
            return {"given": given, "types": np.array([len(set(ids)) / len(ids) for ids in best])}

        part = lab.context.part(f"signature/{name}", signature)
        given = {key: part["given"][:, FIELDS.index(key)].astype(np.float64) for key in ("entropy_full", "logprob_full", "top1")}
        own = found[-1].statistic("entropy_full"), found[-1].statistic("top1")
        rows.append({"condition": name, "entropy_own": float(np.nanmean(own[0])), "top1_own": float(np.nanmean(own[1])),
                     "sure_own": float((own[1][found[-1].ids >= 0] > 0.9).mean()), "entropy_given": float(given["entropy_full"].mean()), "nll_given": float(-given["logprob_full"].mean()),
                     "surprise": float(-given["logprob_full"].mean() - given["entropy_full"].mean()), "sure_given": float((given["top1"] > 0.9).mean()),
                     "type_token_ratio": float(part["types"].mean()), "tokens_given": len(part["given"])})  # fmt: skip
    names = [f.condition.name for f in found]
    return found, [tuple(names)] if len(names) > 1 else [], {"signature": pl.DataFrame(rows)}


STUDY: dict[str, Study] = {"none": one_model, "pair": pair, "complexity": complexity, "nudging": nudging, "resampling": resampling,
                           "decoding": decoding, "verbalised": verbalised, "hyperfitted": hyperfitted}  # fmt: skip


# ---- tables


def _bf(found: Measured, config: Config, estimator: str | None = None) -> np.ndarray:
    """BF of every prompt [P]."""
    return np.exp(log_bf(found.profile(), estimator or config.estimator, pool=config.pool)[:, 0])


def prompt_table(found: Measured, config: Config, first_row: int) -> pl.DataFrame:
    """One row per prompt."""
    profile, alive = found.profile(), found.ids >= 0
    P, M = found.lengths.shape
    bounds = [interval(row) if M > 1 else (np.nan, np.nan) for row in found.draws]
    full = found.statistic("entropy_full")
    late = np.exp(log_bf(profile.without_first(config.late), config.estimator, pool=config.pool)[:, 0])
    size = np.array([[len(text.encode()) for text in texts] for texts in found.texts]).sum(1)
    nats = np.nansum(profile.entropy, (1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "condition": [found.condition.name] * P, "row": list(range(first_row, first_row + P)), "prompt": found.condition.prompt,
            "bf": _bf(found, config), "bf_entropy": _bf(found, config, "entropy"), "bf_nll": _bf(found, config, "nll"),
            "bf_compat": _bf(found, config, "compat"), "ci_low": [low for low, _ in bounds], "ci_high": [high for _, high in bounds],
            "bf_full": np.exp(np.nansum(full, (1, 2)) / found.lengths.sum(1)), "bf_late": late, "nats_per_byte": nats / size,
            "samples": [M] * P, "mean_length": found.lengths.mean(1), "ended": (found.finish == 1).mean(1),
            "distinct": [len(set(texts)) / M for texts in found.texts],
            "top50_short": ((found.statistic("top_mass") < found.condition.rule.top_p) & alive).sum((1, 2)) / found.lengths.sum(1),
            "accuracy": correct(found).mean(1) if found.condition.answers else [np.nan] * P, "text": found.condition.texts,
        }  # fmt: skip
    return frame(columns)


def position_table(found: Measured, config: Config, rng: np.random.Generator) -> pl.DataFrame:
    """One row per position of the output; entropy and alive are over all samples of all prompts."""
    profile, N = found.profile(), found.ids.shape[2]
    curve = np.exp(prefix_curve(profile, config.estimator, pool=config.pool))
    window = np.repeat(window_curve(profile, config.window), config.window, axis=1)[:, :N]
    alive = (found.ids >= 0).sum((0, 1))
    if len(curve) > 1:  # over prompts
        draws = [np.nanmean(curve[rng.integers(0, len(curve), len(curve))], axis=0) for _ in range(200)]
    else:  # over the samples of the only prompt
        M = found.lengths.shape[1]
        draws = []
        for _ in range(200 if M > 1 else 0):
            chosen = rng.integers(0, M, M)
            one = Profile(*(getattr(profile, n)[:, chosen] for n in Profile.__dataclass_fields__))
            draws.append(np.exp(prefix_curve(one, config.estimator, pool=config.pool))[0])
    bounds = [interval(column) for column in np.array(draws).T] if draws else [(np.nan, np.nan)] * N
    columns = {
        "condition": [found.condition.name] * N, "position": list(range(N)), "bf_prefix": _mean(curve), "bf_window": _mean(window),
        "entropy": np.nansum(profile.entropy, (0, 1)) / alive, "alive": alive.astype(np.int64),
        "ci_low": [low for low, _ in bounds], "ci_high": [high for _, high in bounds], "prompts": np.isfinite(curve).sum(0),
    }  # fmt: skip
    return frame(columns)


def condition_row(found: Measured, prompts: pl.DataFrame, config: Config, rng: np.random.Generator) -> dict:
    """The numbers of one condition; ci over prompts and samples."""
    low, high = interval(over_prompts(found.draws, rng.integers(0, len(found.draws), found.draws.shape[::-1])))
    means = ("bf", "bf_entropy", "bf_nll", "bf_compat", "bf_full", "bf_late", "nats_per_byte", "mean_length", "ended", "distinct", "top50_short", "accuracy")
    rule, mean = found.condition.rule, {name: prompts[name].mean() for name in means}
    pooled = np.exp(np.nansum(found.statistic("entropy")) / found.lengths.sum())
    return {"condition": found.condition.name, "model": found.condition.model.name, "ci_low": low, "ci_high": high, **mean, "bf_pooled": float(pooled),
            "prompts": prompts.height, "samples": config.samples, **asdict(rule)}  # fmt: skip


def comparison_row(a: Measured, b: Measured, config: Config, rng: np.random.Generator) -> dict:
    """BF of a over BF of b on the same prompts; prompts are resampled together, samples within each."""
    choice = rng.integers(0, len(a.draws), a.draws.shape[::-1])
    over_a, over_b = over_prompts(a.draws, choice), over_prompts(b.draws, choice)
    value = [float(np.nanmean(_bf(x, config))) for x in (a, b)]
    ratio, difference = interval(over_a / over_b), interval(over_a - over_b)
    return {"a": a.condition.name, "b": b.condition.name, "bf_a": value[0], "bf_b": value[1], "ratio": value[0] / value[1], "ratio_low": ratio[0],
            "ratio_high": ratio[1], "difference": value[0] - value[1], "difference_low": difference[0], "difference_high": difference[1], "prompts": len(a.draws)}  # fmt: skip


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over prompts of what is defined; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)


@probe(
    "branching-factor",
    title="Branching factor",
    summary="How many next steps the model really considers while it generates, along the output and against a second model.",
    tables={
        "prompts": ("prompt", "bf", "bf_entropy", "bf_nll", "ci_low", "ci_high", "samples", "mean_length"),
        "positions": ("position", "bf_prefix", "bf_window", "entropy", "alive"),
        "samples": ("prompt", "sample", "text", "length", "nll", "entropy", "generated_ids"),
        "inputs": ("row", "ids"),
        "conditions": ("condition", "bf", "ci_low", "ci_high"),
        "enough": ("condition", "samples", "bf", "sd", "ci_low", "ci_high"),
        "tree": ("prompt", "node", "parent", "depth", "text", "count", "probability", "bf"),
    },
    bibtex="""@article{yang2026branching,
  title = {{LLM} Probability Concentration: How Alignment Shrinks the Generative Horizon},
  author = {Yang, Chenghao and Li, Sida and Holtzman, Ari},
  journal = {Transactions on Machine Learning Research},
  year = {2026},
  note = {arXiv:2506.17871}
}""",
    data=DataSpec(required=("prompt",), default="workbench:organisms/data/prompts.jsonl", what="prompts", columns=("answer",)),
    validate=validate,
    figures="workbench.figures.branching_factor:figures",
    demo={"samples": 8, "max_new_tokens": 24, "max_prompts": 4},
)
def run(model: Model, config: Config, context: Context) -> Result:
    if context.engine != "hf":
        raise InputError(f"branching-factor samples with the engine hf only, not {context.engine}.")
    if context.edits and config.sampler == "vllm":
        raise InputError("Edits are hooks on the Hugging Face model; with them, use sampler=hf.")
    table = read_table(context.data, required=("prompt",), optional=("answer",), what="prompts")
    table = table.head(config.max_prompts) if config.max_prompts else table
    lab = Lab(model, config, context, table)
    if config.compare:
        lab.other = load(config.compare, dtype=model.dtype, device=model.device)
    found, pairs, tables = STUDY[config.study](lab)

    rows = {name: [] for name in ("prompts", "positions", "samples", "inputs", "tree", "conditions", "enough")}
    by_name, at = {f.condition.name: f for f in found}, 0
    for f in found:
        name = f.condition.name
        prompts = prompt_table(f, config, at)
        rows["prompts"].append(prompts)
        rows["positions"].append(position_table(f, config, context.rng(f"positions/{name}")))
        rows["samples"].append(sample_table(f, at))
        rows["tree"].append(tree_table(f, at))
        ids = pl.Series("ids", f.condition.ids, dtype=pl.List(pl.Int64))
        rows["inputs"].append(prompts.select("row", "condition", "prompt").with_columns(ids))
        rows["conditions"].append(pl.DataFrame([condition_row(f, prompts, config, context.rng(f"prompts/{name}"))], infer_schema_length=None))
        more = enough(f.profile(), config.estimator, pool=config.pool, rng=context.rng(f"enough/{name}"))
        rows["enough"].append(pl.DataFrame([{"condition": name, **row} for row in more]))
        at += prompts.height
    tables |= {name: pl.concat(parts, how="vertical_relaxed") for name, parts in rows.items()}
    tables = {name: t.with_columns(pl.selectors.by_dtype(pl.Null).cast(pl.Float64)) for name, t in tables.items()}
    if pairs:
        tables["comparisons"] = pl.DataFrame([comparison_row(by_name[a], by_name[b], config, context.rng(f"{a}/{b}")) for a, b in pairs])
    return Result(tables=tables, summary=_summary(tables, config, lab))


def _summary(tables: dict[str, pl.DataFrame], config: Config, lab: Lab) -> dict:
    first = tables["conditions"].row(0, named=True)
    quoted = lambda row: {"value": row["bf"], "low": row["ci_low"], "high": row["ci_high"], "n": row["prompts"]}  # noqa: E731
    out = {"bf": quoted(first)}
    out |= {name: first[name] for name in ("bf_entropy", "bf_nll", "bf_compat", "bf_full", "bf_late", "nats_per_byte", "mean_length")}
    chat = config.template != "raw" and getattr(lab.model.tokenizer, "chat_template", None)
    out |= {"estimator": config.estimator, "samples": config.samples, "template": "chat" if chat else "raw"}
    tight = tables["enough"].filter((pl.col("condition") == first["condition"]) & (pl.col("relative_error") < 0.05))
    out["samples_for_5_percent"] = int(tight["samples"].min()) if tight.height else f"more than {config.samples}"
    for row in tables["conditions"].iter_rows(named=True):
        if row["condition"] != first["condition"]:
            out[f"bf of {row['condition']}"] = quoted(row)
    for row in tables["comparisons"].iter_rows(named=True) if "comparisons" in tables else ():
        out[f"{row['a']} / {row['b']}"] = {"value": row["ratio"], "low": row["ratio_low"], "high": row["ratio_high"], "n": row["prompts"]}
    return {key: value for key, value in out.items() if value is not None}
