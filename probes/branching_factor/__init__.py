"""Branching factor: how many next steps a model really considers while it generates (Yang & Holtzman, arXiv
2506.17871).

For every prompt, M continuations are sampled from the truncated distribution (nucleus 0.9, temperature 1). BF is exp of
its mean entropy per step: exp per prompt first, mean over prompts after. Statistics come from all scores of every step,
computed on the device; the official code sees the 50 likeliest tokens only (`estimator=compat` reports what it would).

Deviations from the official code, all of them named in the tables: exact entropies instead of top-50; the entropy
estimator at every length instead of a switch to the likelihood after 50 tokens; all samples instead of the survivors;
the nucleus edge has a margin of 1e-6; a sample's EOS token is one of its steps (as there). `bf` is corrected for the
bias that exp of a mean over few samples has (probes.branching_factor.estimators); `bias=plain` and the columns
bf_entropy, bf_nll and bf_compat are the paper's and the code's own, uncorrected.

Studies (`study=`): pair, complexity, nudging, resampling, decoding, verbalised, hyperfitted; each is one function
below.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from probes.branching_factor.branching_samples import (
    Condition,
    Continuations,
    correct,
    frame,
    sample_table,
    shorten,
    tree_table,
)
from probes.branching_factor.estimate import estimate
from probes.branching_factor.estimators import (
    BIAS,
    ESTIMATORS,
    POOLS,
    Profile,
    around,
    bounds,
    curve_intervals,
    enough,
    enough_samples,
    interval,
    log_bf,
    over_prompts,
    prefix_curve,
    resampled,
    window_curve,
)
from probes.branching_factor.prefix_tree import common_openings
from probes.branching_factor.verbalised import PROMPT as VERBALISED
from probes.branching_factor.verbalised import diversity
from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.registry import DataSpec, option, probe
from workbench.core.tables import read_table
from workbench.engine.generate import greedy, sample
from workbench.engine.sampling import FIELDS, TOP, Rule
from workbench.engine.scoring import score
from workbench.engine.vllm import close_engine, open_engine, sample_vllm
from workbench.models.loading import load
from workbench.models.model import Model
from workbench.models.prompt_templates import prompt_ids, template_of
from workbench.stats.intervals import cluster_bootstrap_mean, multinomial_counts

STUDIES = ("none", "pair", "complexity", "nudging", "resampling", "decoding", "verbalised", "hyperfitted")
DRAWS = 1000
PART_ROWS = 1024  # samples per resumable part
COMPARING = ("pair", "nudging", "complexity", "hyperfitted")  # studies that take a second model
NEARLY_ALL = 0.99  # without a nucleus, compat is warned about where its 50 tokens hold less


@dataclass(frozen=True)
class Config:
    samples: int = option(50, "continuations per prompt (M)", low=1)
    max_new_tokens: int = option(256, "longest continuation, in tokens", low=1)
    temperature: float = option(1.0, "of the sampling distribution; 0 takes the likeliest token", low=0)
    top_p: float = option(0.9, "nucleus: smallest set of tokens with this probability; 1 keeps all", low=0, high=1)
    top_k: int = option(0, "keep the k likeliest tokens; 0 keeps all", low=0)
    min_p: float = option(0.0, "keep tokens at least this likely relative to the likeliest; 0 keeps all", low=0, high=1)
    estimator: str = option(
        "entropy",
        "what `bf` is: entropy, nll (likelihood), or compat (the official code's mixture)",
        choices=ESTIMATORS,
    )
    bias: str = option(
        "jackknife",
        "correct bf for the bias of few samples (jackknife; not for compat), or give it as the paper does (plain)",
        choices=BIAS,
    )
    pool: str = option("tokens", "weigh samples by their tokens, or all the same", choices=POOLS)
    study: str = option("none", "what is compared", choices=STUDIES)
    compare: str = option(
        "",
        "second model, for the studies pair and nudging (the aligned sibling) and, if wanted, complexity, hyperfitted",
        file=True,
    )
    template: str = option(
        "auto",
        "prompts in the model's chat template (chat), as they are (raw), or chat where there is one (auto)",
        choices=("auto", "chat", "raw"),
    )
    system: str = option("", "system message, with a chat template")
    stop: tuple[str, ...] = option((), "texts that end a sample")
    max_prompts: int = option(0, "use only the first prompts; 0 uses all", low=0)
    window: int = option(5, "width of the windows of bf_window, in tokens", low=1)
    late: int = option(5, "tokens left out at the start of each sample for bf_late", low=1)
    max_rows: int = option(256, "samples decoded together; fewer need less memory", low=1)
    sampler: str = option(
        "hf",
        "hf, or vllm (an extra): samples from vLLM, exact statistics from one pass over them",
        choices=("hf", "vllm"),
    )
    levels: tuple[int, ...] = option(
        (0, 1, 2, 3, 4, 5), "study complexity: how much of the prompt text is kept; -1 keeps all", low=-1
    )
    unit: str = option(
        "sentences",
        "study complexity: what a level counts (words: see words_per_level; blocks: few-shot examples before the last)",
        choices=("sentences", "words", "blocks"),
    )
    words_per_level: int = option(
        10, "study complexity, unit=words: words to a level (the official code takes 15 for random strings)", low=1
    )
    nudge_count: int = option(50, "study nudging: an opening is common if at least so many samples share it", low=1)
    nudge_tokens: int = option(5, "study nudging: longest opening", low=1)
    nudge_pick: int = option(
        0,
        "study nudging: which opening, longest first, then most frequent, from 0 (the official code hand-picks 1 or 2)",
        low=0,
    )
    cuts: tuple[int, ...] = option(
        (0, 5, 10, 20, 40),
        "study resampling: positions from which outputs are sampled again; 0, the baseline, is always among them",
        low=0,
    )
    originals: int = option(1, "study resampling: how many samples of each prompt are cut", low=1)
    settings: tuple[str, ...] = option(
        (
            "temperature=1 top_p=0.9",
            "temperature=1 top_p=1",
            "temperature=0.6 top_p=0.9",
            "temperature=1 top_p=1 min_p=0.1",
            "temperature=0",
        ),
        "study decoding: settings to compare with the first, each as 'temperature=… top_p=… top_k=… min_p=…'",
    )
    responses: int = option(5, "study verbalised: how many responses one answer is asked for", low=2)

    def __post_init__(self) -> None:
        if self.top_p == 0:
            raise ValueError("top_p is 0; it must be above 0 (a tiny value keeps one token)")
        if self.estimator == "compat" and self.samples < 4:
            raise ValueError("estimator=compat stops where 3 samples or fewer are alive, so samples must be at least 4")
        if self.study in ("pair", "nudging") and not self.compare:
            raise ValueError(f"study={self.study} needs a second model: compare=NAME")
        if self.compare and self.study not in COMPARING:
            raise ValueError(
                f"study={self.study} has no use for a second model (compare); {', '.join(COMPARING)} take one"
            )
        if self.system and self.template == "raw":
            raise ValueError("a system message needs a chat template, so it cannot go with template=raw")
        if any(not text for text in self.stop):
            raise ValueError("a text of stop is empty; it would end every sample at once")
        if self.study == "complexity" and (not self.levels or len(set(self.levels)) < len(self.levels)):
            raise ValueError("levels must name at least one level of the prompt, each once")
        if self.study == "resampling" and not any(self.cuts):
            raise ValueError("cuts must name at least one position above 0; 0 is the baseline and always there")
        rules = [Rule.parse(setting) for setting in self.settings] if self.study == "decoding" else []
        if self.study == "decoding" and (len(rules) < 2 or len(set(rules)) < len(rules)):
            raise ValueError(
                "settings must name at least two different decoding rules, each once (the first is what the "
                "others are compared with)"
            )


def validate(config: Config, data: Path | None) -> None:
    """Everything that can be refused before a model is loaded."""
    table = read_table(data, required=("prompt",), what="prompts")
    if config.study == "resampling":
        if "answer" not in table.columns:
            raise InputError(
                f"{data} has no column 'answer', and study=resampling checks answers; give --data with the "
                f"columns prompt and answer."
            )
        read_table(data, required=("prompt", "answer"), what="prompts")
    if config.sampler == "vllm" and importlib.util.find_spec("vllm") is None:
        raise InputError(
            "vLLM is not installed here; install the extra (pip install 'interpretability-workbench[vllm]') "
            "or use sampler=hf."
        )


@dataclass(eq=False)
class MeasuredCondition(Continuations):
    """The samples of one condition, and plain BF [P, D] of every prompt in resamples of its samples."""

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
    engines: dict[int, object] = field(default_factory=dict)  # vLLM's, by id() of their models

    def __post_init__(self) -> None:
        self.models = [m for m in (self.model, self.other) if m is not None]
        written = [template_of(m, self.config.template) for m in self.models]
        for m, how in zip(self.models, written):
            if how == "raw" and self.config.template == "auto":
                self.context.warn(
                    f"{m.name} has no chat template, so its prompts are given as raw text; template=raw says "
                    f"that this is meant."
                )
            if how == "raw" and self.config.system and "chat" in written:
                self.context.warn(f"{m.name} has no chat template, so it is not given the system message.")
        if self.config.system and "chat" not in written:
            names = " and ".join(m.name for m in self.models)
            raise InputError(
                f"A system message needs a chat template, and {names} has none; leave out system, or write it "
                f"into the prompts."
            )

    def close(self) -> None:
        while self.engines:
            close_engine(self.engines.popitem()[1])

    def condition(
        self, name: str, model: Model | None = None, *, texts: Sequence[str] | None = None, rule=None, **more
    ) -> Condition:
        """The prompts of the data file (or `texts` in their place), written for the model."""
        model = model or self.model
        texts = list(self.table["prompt"] if texts is None else texts)
        how = template_of(model, self.config.template)
        ids = [
            prompt_ids(model, text, template=how, system=self.config.system if how == "chat" else "") for text in texts
        ]
        for row, tokens in enumerate(ids):
            if not tokens:
                raise InputError(
                    f"Prompt {row} is empty and the tokenizer of {model.name} has no BOS token to begin with."
                )
        answers = self.table["answer"].to_list() if "answer" in self.table.columns else None
        rule = rule or Rule(*(getattr(self.config, key) for key in ("temperature", "top_p", "top_k", "min_p")))
        return Condition(name, model, texts, ids, rule, list(range(len(ids))), answers, template=how, **more)

    def label(self, model: Model) -> str:
        name = Path(model.name).name
        return name + " (2)" if model is self.other and name == Path(self.model.name).name else name

    def measure(self, condition: Condition) -> MeasuredCondition:
        """Sample the condition, part by part; parts that an interrupted run has done are read."""
        per_part, parts = max(1, PART_ROWS // self.config.samples), []
        for start in range(0, len(condition.ids), per_part):
            rows = list(range(start, min(start + per_part, len(condition.ids))))
            parts.append(
                self.context.part(f"{condition.name}/{start}", lambda rows=rows: self._sample(condition, rows))
            )
        longest = max(part["ids"].shape[2] for part in parts)

        def join(name: str, fill) -> np.ndarray:
            wide = [np.full((*p[name].shape[:2], longest, *p[name].shape[3:]), fill, p[name].dtype) for p in parts]
            for whole, part in zip(wide, parts):
                whole[:, :, : part[name].shape[2]] = part[name]
            return np.concatenate(wide)

        whole = {name: np.concatenate([part[name] for part in parts]) for name in ("lengths", "finish")}
        found = MeasuredCondition(
            condition, join("ids", -1), whole["lengths"], whole["finish"], join("steps", np.nan), []
        )
        P, M = found.lengths.shape
        _put_back(found, self.context)
        found.texts = [[condition.model.decode(found.tokens(p, m)) for m in range(M)] for p in range(P)]
        rng = self.context.rng(f"bootstrap/{condition.name}")
        found.draws = resampled(found.profile(), self.config.estimator, pool=self.config.pool, rng=rng, draws=DRAWS)
        _warn(found, self.config, self.context)
        return found

    def _sample(self, condition: Condition, rows: list[int]) -> dict[str, np.ndarray]:
        context, config, total = self.context, self.config, len(condition.ids) * self.config.samples

        def progress(done, _total, label):
            return context.progress(rows[0] * config.samples + done, total, f"{condition.name}: {label}")  # noqa: E731

        common = {
            "samples": config.samples,
            "max_new_tokens": config.max_new_tokens,
            "rule": condition.rule,
            "stop_strings": config.stop,
            "seed": context.torch_seed(condition.stream),
            "check": context.check,
            "progress": progress,
            "prompt_keys": rows,
        }
        edits = context.edits if condition.model is self.model else ()
        ids = [condition.ids[i] for i in rows]
        if config.sampler == "vllm":
            engine = self.engines.get(id(condition.model))
            if engine is None:
                engine = self.engines[id(condition.model)] = open_engine(condition.model, memory=0.6 / len(self.models))
            found = sample_vllm(condition.model, ids, engine=engine, **common)
        else:
            found = sample(condition.model, ids, edits=edits, max_rows=config.max_rows, **common)
        context.count(
            prompts=len(rows), tokens=int(found.lengths.sum()) + sum(map(len, ids)), forwards=found.ids.shape[2]
        )
        arrays = {name: getattr(found, name).numpy() for name in ("ids", "lengths", "finish", "steps")}
        return arrays | {"ids": arrays["ids"].astype(np.int32)}


def _put_back(found: MeasuredCondition, context: Context) -> None:
    """Tokens drawn elsewhere (vLLM) from outside the nucleus as recomputed here: as the official code does, each is put
    back into the nucleus of its step (of the 50 likeliest tokens), and its log-probability is what it has there."""
    own = found.steps[..., FIELDS.index("logprob")]
    cut = np.isneginf(own) & (found.ids >= 0)
    if cut.any():
        again = found.steps[..., FIELDS.index("logprob_top")][cut]
        own[cut] = np.where(
            np.isfinite(again), again, 0.0
        )  # at temperature 0 another token than the likeliest is a tie
        context.warn(
            f"{found.condition.name}: {int(cut.sum())} of {int((found.ids >= 0).sum())} sampled tokens lie "
            f"outside the nucleus as recomputed "
            "here; their log-probability is that of the nucleus with the token put back."
        )


def _short(found: MeasuredCondition) -> np.ndarray:
    """Steps [P, M, N] at which the 50 likeliest tokens, all that compat sees, are not what the rule keeps."""
    top_p = found.condition.rule.top_p
    return (found.statistic("support") > TOP) & (found.statistic("top_mass") < (top_p if top_p < 1 else NEARLY_ALL))


def _warn(found: MeasuredCondition, config: Config, context: Context) -> None:
    name, alive = found.condition.name, found.ids >= 0
    if not found.condition.model.eos_ids:
        context.warn(f"{found.condition.model.name} has no end-of-text token: every sample runs to its length limit.")
    if (found.finish == 3).any():
        context.warn(
            f"{name}: {int((found.finish == 3).sum())} of {found.finish.size} samples ended at the model's "
            f"context limit."
        )
    if (found.statistic("support")[alive] == 1).all():
        context.warn(
            f"{name}: the decoding rule leaves one token at every step, so BF is 1 by construction; bf_full "
            f"is the model's own."
        )
    short = float(_short(found)[alive].mean())
    if short > 0.05 and config.estimator == "compat":
        context.warn(
            f"{name}: at {short:.0%} of the steps the rule keeps more than the 50 likeliest tokens; compat "
            f"cannot see beyond them."
        )
    if config.samples == 1:
        context.warn("With one sample per prompt the intervals over samples have no width; take at least 10.")


# ---- the studies. Each gives its measured conditions, the pairs to compare (a over b), and tables of its own.

Study = Callable[[Lab], tuple[list[MeasuredCondition], list[tuple[str, str]], dict[str, pl.DataFrame]]]


def one_model(lab: Lab):
    """The model on the prompts as they are."""
    return [lab.measure(lab.condition(lab.label(lab.model)))], [], {}


def pair(lab: Lab):
    """The model (base) and a second one (aligned) on the same prompts: BF ratio."""
    models = (lab.model, lab.other)
    found = [lab.measure(lab.condition(lab.label(m), m)) for m in models]
    return found, [(lab.label(lab.model), lab.label(lab.other))], {}


def complexity(lab: Lab):
    """How BF falls with the amount of prompt that is given; with a second model, the impact of both factors (max − min
    of means)."""
    config, found, level_of, texts = lab.config, [], [], {}
    for level in config.levels:
        texts[level] = [shorten(text, level, config.unit, words=config.words_per_level) for text in lab.table["prompt"]]
        twin = next((k for k in list(texts)[:-1] if texts[k] == texts[level]), None)
        if twin is not None:
            lab.context.warn(
                f"Levels {twin} and {level} give the same prompts: none has so many {config.unit}; longer "
                f"prompts tell them apart."
            )
    for m in lab.models:
        for level in config.levels:
            found.append(lab.measure(lab.condition(f"{lab.label(m)}, C={level}", m, texts=texts[level])))
            level_of.append((lab.label(m), level))
    values = [_bf(f, config) for f in found]
    table = pl.DataFrame(
        [
            {"condition": f.condition.name, "model": k[0], "level": k[1], "bf": float(np.nanmean(v))}
            for k, f, v in zip(level_of, found, values)
        ]
    )
    times = multinomial_counts(lab.table.height, DRAWS, lab.context.rng("impact"))
    means = np.array([np.nanmean(v) for v in values])
    drawn = np.array([over_prompts(v, f.draws, times) for v, f in zip(values, found)])  # [conditions, D]
    factors = {"complexity": 1} | ({"model": 0} if len(lab.models) > 1 else {})

    def group(axis, of):
        return np.ptp(
            [np.mean([x for x, k in zip(of, level_of) if k[axis] == g], axis=0) for g in {k[axis] for k in level_of}],
            axis=0,
        )  # noqa: E731

    impact, impacts = ({name: group(axis, of) for name, axis in factors.items()} for of in (means, drawn))
    total, rows = sum(impact.values()) or 1.0, []
    for name in factors:
        low, high = interval(impacts[name])
        share = interval(impacts[name] / sum(impacts.values())) if len(factors) > 1 else (1.0, 1.0)
        rows.append(
            {
                "factor": name,
                "impact": float(impact[name]),
                "impact_low": low,
                "impact_high": high,
                "share": float(impact[name] / total),
                "share_low": share[0],
                "share_high": share[1],
            }
        )
    names, width = [f.condition.name for f in found], len(config.levels)
    pairs = [(names[i], names[i // width * width + width - 1]) for i in range(len(names)) if i % width < width - 1]
    return found, pairs, {"complexity": table, "impact": pl.DataFrame(rows)}


def nudging(lab: Lab):
    """Give the base model the aligned model's most common opening: BF of what follows, against the base model's own
    openings."""
    config, base, aligned = lab.config, lab.label(lab.model), lab.label(lab.other)
    found = [lab.measure(lab.condition(base)), lab.measure(lab.condition(aligned, lab.other))]
    P, M = found[1].lengths.shape
    ends = set(lab.other.eos_ids)
    rows = [found[1].tokens(p, m) for p in range(P) for m in range(M)]
    openings = [
        o for o in common_openings(rows, least=config.nudge_count, longest=config.nudge_tokens) if not ends & set(o[0])
    ]
    if not openings:
        raise InputError(
            f"No opening is shared by {config.nudge_count} of the {P * M} samples of {aligned}; lower "
            f"nudge_count or sample more."
        )
    pick = config.nudge_pick
    if pick >= len(openings):
        raise InputError(
            f"nudge_pick is {pick}, and {aligned} has {len(openings)} common openings; choose 0 to "
            f"{len(openings) - 1}, or lower nudge_count."
        )
    prefix = list(openings[pick][0])
    same = lab.model.tokenizer_fingerprint == lab.other.tokenizer_fingerprint
    nudge = prefix if same else lab.model.encode(lab.other.decode(prefix), bos=False)
    own = [[t for t in found[0].tokens(p, 0) if t not in lab.model.eos_ids][: len(nudge)] for p in range(P)]
    for name, m, given in (
        (f"{base} + opening", lab.model, [nudge] * P),
        (f"{base} + own opening", lab.model, own),
        (f"{aligned} + opening", lab.other, [prefix] * P),
    ):
        condition = lab.condition(name, m, given=given, stream="after the opening")
        condition.ids = [ids + more for ids, more in zip(condition.ids, given)]
        found.append(lab.measure(condition))
    table = pl.DataFrame(
        [
            {
                "opening": lab.other.decode(o),
                "ids": list(o),
                "tokens": len(o),
                "count": n,
                "share": n / (P * M),
                "chosen": i == pick,
            }
            for i, (o, n) in enumerate(openings[:100])
        ]
    )
    steps = pl.DataFrame(
        [
            (base, "nothing", base),
            (base, "opening", f"{base} + opening"),
            (base, "own opening", f"{base} + own opening"),
            (aligned, "nothing", aligned),
            (aligned, "opening", f"{aligned} + opening"),
        ],
        schema=["model", "given", "condition"],
        orient="row",
    )
    pairs = [
        (base, f"{base} + opening"),
        (f"{base} + own opening", f"{base} + opening"),
        (base, aligned),
        (f"{base} + opening", f"{aligned} + opening"),
    ]
    return found, pairs, {"openings": table, "nudging": steps}


def resampling(lab: Lab):
    """Keep the first t tokens of an output and sample the rest again: does the task still come out right?

    Outputs that end before t cannot be cut there, so each cut has a baseline of its own: the same outputs cut at 0."""
    first = lab.measure(lab.condition(lab.label(lab.model)))
    own = correct(first)
    found, rows, baseline, rng = [first], [], {}, lab.context.rng("resampling")
    for t in sorted({0, *lab.config.cuts}):
        chosen = [
            (p, m)
            for p in range(len(first.lengths))
            for m in range(min(lab.config.originals, lab.config.samples))
            if first.lengths[p, m] > t
        ]
        if not chosen:
            lab.context.warn(f"No output is longer than {t} tokens, so none was cut there.")
            continue
        condition = lab.condition(f"cut at {t}", stream=f"cut at {t}")
        given = [first.tokens(p, m)[:t] for p, m in chosen]
        ids = [condition.ids[p] + more for (p, _), more in zip(chosen, given)]
        pick = lambda values, chosen=chosen: [values[p] for p, _ in chosen]  # noqa: E731
        condition = replace(
            condition,
            texts=pick(condition.texts),
            ids=ids,
            prompt=[p for p, _ in chosen],
            answers=pick(condition.answers),
            given=given,
        )
        found.append(lab.measure(condition))
        right, prompts = correct(found[-1]).mean(1), np.array([p for p, _ in chosen])
        baseline = baseline or dict(zip(chosen, right))
        before = np.array([baseline[pair] for pair in chosen])
        ends, drops = (cluster_bootstrap_mean(values, prompts, rng=rng) for values in (right, before - right))
        rows.append(
            {
                "position": t,
                "accuracy": float(right.mean()),
                "ci_low": ends[0],
                "ci_high": ends[1],
                "baseline": float(before.mean()),
                "drop": float((before - right).mean()),
                "drop_low": drops[0],
                "drop_high": drops[1],
                "original_accuracy": float(np.mean([own[pair] for pair in chosen])),
                "bf": float(np.nanmean(_bf(found[-1], lab.config))),
                "outputs": len(chosen),
                "samples": lab.config.samples,
            }
        )
    return found, [], {"resampling": pl.DataFrame(rows)}


def decoding(lab: Lab):
    """Decoding settings against the first of them."""
    found = [lab.measure(lab.condition(name, rule=Rule.parse(name))) for name in lab.config.settings]
    return found, [(name, lab.config.settings[0]) for name in lab.config.settings[1:]], {}


def verbalised(lab: Lab):
    """Ask for several responses with their probabilities: a way to get diversity back out of an aligned model."""
    texts = [VERBALISED.format(k=lab.config.responses, prompt=text) for text in lab.table["prompt"]]
    found = [lab.measure(lab.condition("direct")), lab.measure(lab.condition("verbalised", texts=texts))]
    table = diversity(found[0].texts, found[1].texts, lab.config.responses)
    if table["parse_rate"].max() == 0:
        lab.context.warn(
            f"No output of {lab.model.name} holds a response in the format that was asked for, so its "
            f"diversity is not known."
        )
    return found, [("verbalised", "direct")], {"verbalised": table}


def hyperfitted(lab: Lab):
    """The signature of over-training: almost no entropy on its own text, yet given text surprises it far more than it
    expects."""
    found, rows = [], []
    for model in lab.models:
        name = lab.label(model)
        found.append(lab.measure(lab.condition(name, model)))

        def signature(model=model, condition=found[-1].condition) -> dict[str, np.ndarray]:
            texts = [model.encode(text) for text in lab.table["prompt"]]
            texts = [ids for ids in texts if len(ids) > 1]
            if not texts:
                raise InputError("study=hyperfitted scores the prompts as text; none of them has two tokens.")
            given = np.concatenate(
                [
                    s.numpy()
                    for s in score(
                        model, [ids[:1] for ids in texts], [ids[1:] for ids in texts], check=lab.context.check
                    )
                ]
            )
            best = greedy(
                model,
                condition.ids,
                max_new_tokens=lab.config.max_new_tokens,
                check=lab.context.check,
                max_rows=lab.config.max_rows,
            )
            return {
                "given": given,
                "text": np.repeat(np.arange(len(texts)), [len(ids) - 1 for ids in texts]),
                "types": np.array([len(set(ids)) / len(ids) for ids in best]),
            }

        part = lab.context.part(f"signature/{name}", signature)
        given = {
            key: part["given"][:, FIELDS.index(key)].astype(np.float64)
            for key in ("entropy_full", "logprob_full", "top1")
        }
        own = found[-1].statistic("entropy_full"), found[-1].statistic("top1")
        surprise, rng = -given["logprob_full"] - given["entropy_full"], lab.context.rng(f"signature/{name}")
        alive = found[-1].ids >= 0
        ends = {
            "entropy_own": cluster_bootstrap_mean(own[0][alive], np.nonzero(alive)[0], rng=rng),
            "entropy_given": cluster_bootstrap_mean(given["entropy_full"], part["text"], rng=rng),
            "nll_given": cluster_bootstrap_mean(-given["logprob_full"], part["text"], rng=rng),
            "surprise": cluster_bootstrap_mean(surprise, part["text"], rng=rng),
        }
        rows.append(
            {
                "condition": name,
                "entropy_own": float(own[0][alive].mean()),
                "top1_own": float(own[1][alive].mean()),
                "sure_own": float((own[1][alive] > 0.9).mean()),
                "entropy_given": float(given["entropy_full"].mean()),
                "nll_given": float(-given["logprob_full"].mean()),
                "surprise": float(surprise.mean()),
                "sure_given": float((given["top1"] > 0.9).mean()),
                "type_token_ratio": float(part["types"].mean()),
                "tokens_given": len(part["given"]),
            }
            | {f"{key}_{side}": value[i] for key, value in ends.items() for i, side in enumerate(("low", "high"))}
        )
    names = [f.condition.name for f in found]
    return found, [tuple(names)] if len(names) > 1 else [], {"signature": pl.DataFrame(rows)}


STUDY: dict[str, Study] = {
    "none": one_model,
    "pair": pair,
    "complexity": complexity,
    "nudging": nudging,
    "resampling": resampling,
    "decoding": decoding,
    "verbalised": verbalised,
    "hyperfitted": hyperfitted,
}


# ---- tables


def _bf(found: MeasuredCondition, config: Config, estimator: str | None = None) -> np.ndarray:
    """BF of every prompt [P]: the one of the config, or another estimator's as the paper has it."""
    bias = config.bias if estimator is None else "plain"
    return np.exp(log_bf(found.profile(), estimator or config.estimator, pool=config.pool, bias=bias)[:, 0])


def prompt_table(found: MeasuredCondition, config: Config, first_row: int) -> pl.DataFrame:
    """One row per prompt. bf, bf_late and bf_full as `bias` says; bf_entropy, bf_nll and bf_compat uncorrected; ci over
    samples."""
    profile, alive = found.profile(), found.ids >= 0
    P, M = found.lengths.shape
    bf = _bf(found, config)
    ends = [bounds(around(value, row)) if M > 1 else (np.nan, np.nan) for value, row in zip(bf, found.draws)]
    full = log_bf(
        replace(profile, entropy=found.statistic("entropy_full")), "entropy", pool=config.pool, bias=config.bias
    )[:, 0]
    late = np.exp(
        log_bf(profile.without_first(config.late), config.estimator, pool=config.pool, bias=config.bias)[:, 0]
    )
    size = np.array([[len(text.encode()) for text in texts] for texts in found.texts]).sum(1)
    nats = np.nansum(profile.entropy, (1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "condition": [found.condition.name] * P,
            "row": list(range(first_row, first_row + P)),
            "prompt": found.condition.prompt,
            "bf": bf,
            "bf_entropy": _bf(found, config, "entropy"),
            "bf_nll": _bf(found, config, "nll"),
            "bf_compat": _bf(found, config, "compat"),
            "ci_low": [low for low, _ in ends],
            "ci_high": [high for _, high in ends],
            "bf_full": np.exp(full),
            "bf_late": late,
            "nats_per_byte": nats / size,
            "samples": [M] * P,
            "mean_length": found.lengths.mean(1),
            "ended": (found.finish == 1).mean(1),
            "distinct": [len(set(texts)) / M for texts in found.texts],
            "top50_short": (_short(found) & alive).sum((1, 2)) / found.lengths.sum(1),
            "accuracy": correct(found).mean(1) if found.condition.answers else [np.nan] * P,
            "text": found.condition.texts,
        }
    return frame(columns)


def position_table(found: MeasuredCondition, config: Config, rng: np.random.Generator) -> pl.DataFrame:
    """One row per position of the output; entropy and alive are over all samples of all prompts, intervals over prompts
    and samples."""
    profile, N = found.profile(), found.ids.shape[2]
    P, M = found.lengths.shape
    curve = np.exp(prefix_curve(profile, config.estimator, pool=config.pool, bias=config.bias))
    alive = (found.ids >= 0).sum((0, 1))
    ends = {name: (np.full(N, np.nan),) * 2 for name in ("prefix", "window")}
    if P * M > 1:
        ends = curve_intervals(
            profile, config.estimator, pool=config.pool, bias=config.bias, window=config.window, rng=rng
        )
    wide = lambda windows: np.repeat(windows, config.window, axis=-1)[..., :N]  # noqa: E731
    columns = {
        "condition": [found.condition.name] * N,
        "position": list(range(N)),
        "bf_prefix": _mean(curve),
        "bf_window": wide(_mean(window_curve(profile, config.window))),
        "entropy": np.nansum(profile.entropy, (0, 1)) / alive,
        "alive": alive.astype(np.int64),
        "ci_low": ends["prefix"][0],
        "ci_high": ends["prefix"][1],
        "window_low": wide(ends["window"][0]),
        "window_high": wide(ends["window"][1]),
        "prompts": np.isfinite(curve).sum(0),
    }
    return frame(columns)


def condition_row(found: MeasuredCondition, prompts: pl.DataFrame, config: Config, rng: np.random.Generator) -> dict:
    """The numbers of one condition; ci over prompts and samples."""
    low, high = bounds(over_prompts(_bf(found, config), found.draws, multinomial_counts(prompts.height, DRAWS, rng)))
    if found.lengths.size == 1:
        low = high = None  # nothing to resample
    means = (
        "bf",
        "bf_entropy",
        "bf_nll",
        "bf_compat",
        "bf_full",
        "bf_late",
        "nats_per_byte",
        "mean_length",
        "ended",
        "distinct",
        "top50_short",
        "accuracy",
    )
    rule, mean = found.condition.rule, {name: prompts[name].mean() for name in means}
    pooled = np.exp(np.nansum(found.statistic("entropy")) / found.lengths.sum())
    return {
        "condition": found.condition.name,
        "model": found.condition.model.name,
        "template": found.condition.template,
        "ci_low": low,
        "ci_high": high,
        **mean,
        "bf_pooled": float(pooled),
        "prompts": prompts.height,
        "samples": config.samples,
        **asdict(rule),
    }


def comparison_row(a: MeasuredCondition, b: MeasuredCondition, config: Config, rng: np.random.Generator) -> dict:
    """BF of a over BF of b on the same prompts; prompts are resampled together, samples within each."""
    bf, times = [_bf(x, config) for x in (a, b)], multinomial_counts(len(a.draws), DRAWS, rng)
    over_a, over_b = (over_prompts(values, x.draws, times) for values, x in zip(bf, (a, b)))
    value = [float(np.nanmean(values)) for values in bf]
    ratio, difference = (
        (interval(over_a / over_b), interval(over_a - over_b)) if a.lengths.size > 1 else ((None, None),) * 2
    )
    return {
        "a": a.condition.name,
        "b": b.condition.name,
        "bf_a": value[0],
        "bf_b": value[1],
        "ratio": value[0] / value[1],
        "ratio_low": ratio[0],
        "ratio_high": ratio[1],
        "difference": value[0] - value[1],
        "difference_low": difference[0],
        "difference_high": difference[1],
        "prompts": len(a.draws),
    }


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over prompts of what is defined; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)


@probe(
    "branching-factor",
    title="Branching factor",
    summary="How many next steps the model really considers while it generates, along the output and against a second "
    "model.",
    tables={
        "prompts": (
            "condition",
            "row",
            "prompt",
            "bf",
            "bf_entropy",
            "bf_nll",
            "ci_low",
            "ci_high",
            "samples",
            "mean_length",
        ),
        "positions": ("condition", "position", "bf_prefix", "bf_window", "entropy", "alive"),
        "samples": ("condition", "row", "prompt", "sample", "text", "length", "nll", "entropy", "generated_ids"),
        "inputs": ("row", "condition", "prompt", "ids"),
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
    data=DataSpec(
        required=("prompt",), default="workbench:organisms/data/prompts.jsonl", what="prompts", columns=("answer",)
    ),
    validate=validate,
    figures="probes.branching_factor.figures:figures",
    figures_of_several="probes.branching_factor.figures:compare",
    estimate=estimate,
    example=lambda _model: {"samples": 8, "max_new_tokens": 24, "max_prompts": 4},
    example_models=("organism",),
    keys={
        "prompts": ("condition", "row", "prompt"),
        "positions": ("condition", "position"),
        "samples": ("condition", "row", "prompt", "sample"),
        "inputs": ("row", "condition", "prompt"),
        "conditions": ("condition",),
        "enough": ("condition", "samples"),
        "complexity": ("condition",),
        "nudging": ("condition",),
        "signature": ("condition",),
        "resampling": ("position",),
        "verbalised": ("prompt",),
    },
)
def run(model: Model, config: Config, context: Context) -> Result:
    if context.engine != "hf":
        raise InputError(f"branching-factor samples with the engine hf only, not {context.engine}.")
    if context.edits and config.sampler == "vllm":
        raise InputError("Edits are hooks on the Hugging Face model; with them, use sampler=hf.")
    table = read_table(context.data, required=("prompt",), optional=("answer",), what="prompts")
    table = table.head(config.max_prompts) if config.max_prompts else table
    lab = Lab(
        model,
        config,
        context,
        table,
        load(config.compare, dtype=model.dtype, device=model.device) if config.compare else None,
    )
    try:
        found, pairs, tables = STUDY[config.study](lab)
    finally:
        lab.close()

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
        rows["conditions"].append(
            pl.DataFrame([condition_row(f, prompts, config, context.rng(f"prompts/{name}"))], infer_schema_length=None)
        )
        more = enough(
            f.profile(), config.estimator, pool=config.pool, bias=config.bias, rng=context.rng(f"enough/{name}")
        )
        rows["enough"].append(
            frame({"condition": [name] * len(more)} | {key: [row[key] for row in more] for key in more[0]})
        )
        at += prompts.height
    tables |= {name: pl.concat(parts, how="vertical_relaxed") for name, parts in rows.items()}
    tables = {name: t.with_columns(pl.selectors.by_dtype(pl.Null).cast(pl.Float64)) for name, t in tables.items()}
    if pairs:
        tables["comparisons"] = pl.DataFrame(
            [comparison_row(by_name[a], by_name[b], config, context.rng(f"{a}/{b}")) for a, b in pairs]
        )
    return Result(tables=tables, summary=_summary(tables, config, lab))


def _summary(tables: dict[str, pl.DataFrame], config: Config, lab: Lab) -> dict:
    first = tables["conditions"].row(0, named=True)
    quoted = lambda row: {"value": row["bf"], "low": row["ci_low"], "high": row["ci_high"], "n": row["prompts"]}  # noqa: E731
    out = {"bf": quoted(first)}
    out |= {
        name: first[name]
        for name in ("bf_entropy", "bf_nll", "bf_compat", "bf_full", "bf_late", "nats_per_byte", "mean_length")
    }
    out |= {
        "estimator": config.estimator,
        "bias": config.bias,
        "samples": config.samples,
        "template": first["template"],
    }
    more = tables["enough"].filter(pl.col("condition") == first["condition"])
    if more["relative_error"].is_not_null().any():
        out["samples_for_5_percent"] = enough_samples(more.rows(named=True)) or f"more than {config.samples}"
    for row in tables["conditions"].iter_rows(named=True):
        if row["condition"] != first["condition"]:
            out[f"bf of {row['condition']}"] = quoted(row)
    for row in tables["comparisons"].iter_rows(named=True) if "comparisons" in tables else ():
        out[f"{row['a']} / {row['b']}"] = {
            "value": row["ratio"],
            "low": row["ratio_low"],
            "high": row["ratio_high"],
            "n": row["prompts"],
        }
    return {key: value for key, value in (out | _study_summary(tables)).items() if value is not None}


def _study_summary(tables: dict[str, pl.DataFrame]) -> dict:
    """What the tables of the studies say in a few numbers."""
    out = {}
    for row in tables["resampling"].iter_rows(named=True) if "resampling" in tables else ():
        out[f"accuracy, cut at {row['position']}"] = {
            "value": row["accuracy"],
            "low": row["ci_low"],
            "high": row["ci_high"],
            "n": row["outputs"],
        }
    for row in tables["impact"].iter_rows(named=True) if "impact" in tables else ():
        out[f"impact of {row['factor']}"] = {
            "value": row["impact"],
            "low": row["impact_low"],
            "high": row["impact_high"],
        }
    for row in tables["signature"].iter_rows(named=True) if "signature" in tables else ():
        for key in ("entropy_own", "nll_given", "surprise"):
            out[f"{key} of {row['condition']}"] = {
                "value": row[key],
                "low": row[f"{key}_low"],
                "high": row[f"{key}_high"],
            }
    for key in (
        ("parse_rate", "distinct_direct", "distinct_verbalised", "effective_stated") if "verbalised" in tables else ()
    ):
        out[key] = tables["verbalised"][key].mean()
    return out
