"""Knowledge conflict: which heads pull towards what the model memorised, which towards what the prompt says, and what
pruning them does.

Jin et al., Cutting Off the Head Ends the Conflict (PH3, arXiv 2402.18154, Findings of ACL 2024). The paper's abstract
and the follow-up JuICE (ICML 2025, text and code) could be read, the paper's body could not: what follows is our
specification of it, not a verified reproduction. Verified: late heads recall the attribute from memory or fetch it from
the context; they are scored by path patching and pruned by zeroing their output, k of {1, 3, 5, 7, 9, 15} chosen on a
validation split.

An item has a clean prompt, a prompt that contradicts the fact, a_m (first token of the true answer) and a_c (of the
contradiction). Step A sets attention or MLP outputs at the last position to zero over windows of layers, and cuts
attention from there to the names. Step B puts each head's last output on a corrupted prompt (other names, equal length)
in place of its own. `variant=direct` freezes all else, `direct_mlp` lets MLPs react, `total` everything. Importance is
the loss of log p: I = log p_before(a) − log p_patched(a); the normaliser cancels in I_memory − I_context, so heads are
ranked by the change of logit(a_m) − logit(a_c). Step C estimates the total effect from gradients, and is compared with
the direct and the total one. Step D prunes the best heads of each side, against random heads of the same layers. Roles
depend on the kind of conflict: `groups` and `head_groups` report by the file's source, relation, form.

Choices of ours: a head counts for a side if its interval excludes zero on that side (never with fewer than five items);
lists for pruning hold every head on the right side of zero, so that they can be shorter than k; k = 0 is a choice too,
and k may cost at most `max_clean_drop` of clean accuracy on validation (1 = JuICE's rule); an answer that names both
sides counts for the one it names first; a subject is in one split only; the names of a corrupted prompt are those of
other items of the same relation. Left out: corruption by Gaussian noise on the names' embeddings, exact match for
open-domain QA with retrieved passages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from probes.knowledge_conflict.estimate import estimate
from probes.knowledge_conflict.items import (
    COLUMNS,
    COUNTS,
    GROUPS,
    OPTIONAL,
    SOURCES,
    SPLITS,
    Item,
    assign_splits,
    build_items,
    kinds,
    read_conflicts,
)
from workbench import organisms
from workbench.core.context import Context, Result
from workbench.core.errors import InputError, RunFailed
from workbench.core.registry import HEAD_MASK, DataSpec, option, probe
from workbench.core.tables import column_map, read_table
from workbench.stats.intervals import bootstrap_mean, paired_difference, spearman, wilson

BIBTEX = """@inproceedings{jin2024cutting,
  title={Cutting Off the Head Ends the Conflict: A Mechanism for Interpreting and Mitigating Knowledge Conflicts in Language Models},
  author={Jin, Zhuoran and Cao, Pengfei and Yuan, Hongbang and Chen, Yubo and Xu, Jiexin and Li, Huaijun and Jiang, Xiaojian and Liu, Kang and Zhao, Jun},
  booktitle={Findings of the Association for Computational Linguistics: ACL 2024},
  pages={1193--1215},
  year={2024}
}"""  # noqa: E501
ESSAYS = Path(__file__).parents[1] / "essays.txt"  # plain English, on no subject in particular
ROLES = {"memory": "context", "context": "memory"}  # heads pruned -> the answer that this is meant to bring
NOISE = 1e-3  # effects below this share of the largest are rounding, not a role
FEW = 5  # with fewer items a bootstrap interval says nothing, and none is given
NEUTRAL_TOKENS = 2048  # of a batch of neutral texts
MAX_CLEAN_LOSS = 0.02  # of clean accuracy on test; more is warned of


@dataclass(frozen=True)
class Config:
    variant: str = option(
        "direct",
        "direct: head to logits, all else frozen; direct_mlp: MLPs react; total: everything after the head reacts",
        choices=("direct", "direct_mlp", "total"),
    )
    prune_k: tuple[int, ...] = option((1, 3, 5, 7, 9, 15), "how many heads of a side to prune", low=1)
    ablation: str = option(
        "zero",
        "what pruning does to a head: zero output (the paper), mean output over the validation prompts, "
        "uniform attention",
        choices=("zero", "mean", "uniform"),
    )
    window: int = option(0, "layers in one window of step A; 0: an eighth of the model's layers", low=0)
    keep: str = option(
        "known", "known: only items whose clean prompt the model answers; all: every item", choices=("known", "all")
    )
    columns: tuple[str, ...] = option(
        (),
        "names of the columns in the data file where they differ, as name:name in the file, e.g. "
        "subject:Subject,answer:Answer",
    )
    metric: str = option(
        "logprob",
        "what an importance is a change of: the log-probability of the answer, or its raw logit",
        choices=("logprob", "logit"),
    )
    find_share: float = option(
        0.3, "share of the subjects used to find heads (where the file has no column split)", low=0.01, high=0.98
    )
    validation_share: float = option(0.2, "share of the subjects used to choose k", low=0.01, high=0.98)
    test_relations: tuple[str, ...] = option(
        (), "relations (column relation) that are used for testing only; the others then are not tested on"
    )
    limit: int = option(0, "use at most this many items, drawn at random; 0: all", low=0)
    flow_items: int = option(64, "most items used for step A; 0: no step A", low=0)
    max_new_tokens: int = option(10, "tokens in which the answer must come", low=1)
    random_draws: int = option(5, "random sets of heads of the same layers to prune for comparison", low=1)
    max_clean_drop: float = option(
        0.02, "largest loss of clean accuracy on validation that the chosen k may cost; 1: any", low=0, high=1
    )
    neutral: str = option(
        "auto",
        "text file (one text per line, or a table with a column text) for the perplexity of pruned models; "
        "auto: English essays that ship with the project, or what suits the tokenizer (see summary, neutral_text)",
        file=True,
    )
    mask: str = option(
        "context",
        "which side's heads pruned_heads.json holds: context (then the model follows memory) or memory",
        choices=("context", "memory"),
    )
    draws: int = option(1000, "bootstrap resamples for the intervals", low=100)


# ---- the data


def _rows(config: Config, data: Path | None) -> list[dict]:
    return read_conflicts(data, column_map(config.columns, (*COLUMNS, *OPTIONAL)))


def validate(config: Config, data: Path | None) -> None:
    rows = _rows(config, data)
    if config.find_share + config.validation_share >= 1:
        raise InputError("find_share and validation_share leave nothing to test on; their sum must be below 1.")
    known = {row.get("relation") for row in rows}
    for relation in config.test_relations:
        if relation not in known:
            raise InputError(
                f"{data} has no relation '{relation}' to hold out for testing; it has "
                f"{', '.join(sorted(map(str, known)))}."
            )
    if config.neutral != "auto":
        read_table(config.neutral, required=("text",), what="neutral text")


def _items(model, config: Config, context: Context) -> tuple[list[Item], dict[str, int]]:
    """Items that can be measured on this model, and how many fell under each of COUNTS."""
    rows = _rows(config, context.data)
    chosen = range(len(rows))
    if 0 < config.limit < len(rows):
        chosen = sorted(context.rng("limit").permutation(len(rows))[: config.limit].tolist())
        context.rows_used = len(chosen)
    items, counts = build_items(
        model, rows, context.data, chosen=chosen, room=config.max_new_tokens, rng=context.rng, check=context.check
    )
    for reason, what in COUNTS.items():
        if counts[reason]:
            context.warn(f"{counts[reason]} of {len(chosen)} items {what}.")
    return items, counts


def _split(items: list[Item], config: Config, context: Context) -> dict[str, list[Item]]:
    items = assign_splits(
        items,
        find=config.find_share,
        validation=config.validation_share,
        test_relations=config.test_relations,
        rng=context.rng("split"),
    )
    split = {name: [item for item in items if item.split == name] for name in SPLITS}
    for name, part in split.items():
        if not part:
            raise InputError(
                f"{context.data}: no item is left for the split '{name}' (of {len(items)} that can be used); "
                f"give more items, other shares or keep=all."
            )
        if len(part) < FEW:
            what = {
                "find": "no head gets a role or an interval",
                "validation": "k hangs on single answers",
                "test": "gains get no interval",
            }[name]
            context.warn(
                f"The split '{name}' has only {len(part)} item{'s' if len(part) > 1 else ''}: {what}; give it "
                f"at least {FEW}."
            )
    return split


# ---- the run


@probe(
    "knowledge-conflict",
    title="Knowledge conflict",
    summary="Which heads follow memory and which follow the context when the two disagree, and how pruning them tips "
    "the balance.",
    tables={
        "heads": (
            "layer",
            "head",
            "memory_importance",
            "context_importance",
            "gradient_memory",
            "gradient_context",
            "role",
            "ci_low",
            "ci_high",
        ),
        "flow": ("component", "window_start", "source", "delta_memory", "delta_context"),
        "pruning": (
            "role",
            "k",
            "heads",
            "draw",
            "ablation",
            "memory_rate",
            "context_rate",
            "other_rate",
            "clean_accuracy",
        ),
        "groups": (
            "role",
            "k",
            "heads",
            "column",
            "group",
            "n",
            "memory_rate",
            "context_rate",
            "other_rate",
            "clean_accuracy",
        ),
        "head_groups": (
            "column",
            "group",
            "n",
            "layer",
            "head",
            "memory_importance",
            "context_importance",
            "score",
            "ci_low",
            "ci_high",
        ),
        "inputs": ("row", "ids", "corrupt_ids", "position", "memory_id", "context_id", "split"),
        "answers": (
            "row",
            "role",
            "k",
            "subject",
            "answer",
            "distractor",
            "before",
            "before_kind",
            "after",
            "after_kind",
        ),
    },
    bibtex=BIBTEX,
    data=DataSpec(
        required=COLUMNS, default="workbench:organisms/data/conflicts.jsonl", what="conflicts", columns=OPTIONAL
    ),
    material=lambda config, _model: (
        {"essays": ESSAYS, "documents": organisms.data("texts")} if config.neutral == "auto" else {}
    ),
    validate=validate,
    figures="probes.knowledge_conflict.figures:figures",
    estimate=estimate,
    example=lambda _model: {"limit": 40, "prune_k": (1, 3), "flow_items": 8, "random_draws": 2},
    example_models=("organism",),
    leaves={"pruned_heads*.json": HEAD_MASK},
    head_scores={
        "heads": (
            "score",
            "memory_importance",
            "context_importance",
            "gradient_memory",
            "gradient_context",
            "direct_memory",
            "direct_context",
            "total_memory",
            "total_context",
            "role",
            "side",
        )
    },
    keys={
        "heads": ("layer", "head"),
        "flow": ("component", "window_start", "source"),
        "pruning": ("role", "k", "heads", "draw"),
        "groups": ("role", "k", "heads", "column", "group"),
        "head_groups": ("column", "group", "layer", "head"),
        "validation": ("role", "k"),
        "answers": ("row", "source", "role", "k"),
        "inputs": ("row",),
    },
    version=2,
)
def run(model, config: Config, context: Context) -> Result:
    """Measure every head on the find split, choose k on validation, prune on test.

    Raises InputError when no item can be measured or the model knows none of them."""
    if context.engine != "hf":
        raise InputError(
            "knowledge-conflict edits the forward pass, which only the engine 'hf' does; run it with --engine hf."
        )
    items, skipped = _items(model, config, context)
    items, known = _known(model, config, context, items)
    split = _split(items, config, context)
    effects, gradient = _effects(model, config, context, split["find"])
    heads = _head_table(model, config, context, effects, gradient)
    head_groups = _head_groups(model, config, context, effects[config.variant], split["find"])
    flow = _flow(model, config, context, split["find"][: config.flow_items])
    tables, summary, chosen = _prune(model, config, context, split, heads)
    _save_masks(model, config, context, chosen, summary)
    columns = [name for name in GROUPS if any(name in item.group for item in items)]
    inputs = pl.DataFrame(
        [
            {
                "row": i.row,
                "ids": i.conflict,
                "corrupt_ids": i.corrupt,
                "position": len(i.conflict) - 1,
                "memory_id": i.memory_id,
                "context_id": i.context_id,
                "split": i.split,
                "clean_ids": i.clean,
                **{name: i.group.get(name) for name in columns},
            }
            for name in SPLITS
            for i in split[name]
        ],
        infer_schema_length=None,
    )
    counts = {**{f"items_{name}": len(split[name]) for name in SPLITS}, "known": known, **skipped}
    roles = {f"{role}_heads": heads.filter(pl.col("role") == role).height for role in ROLES}
    ranks = _gradient_ranks(config, context, heads)
    summary = {
        "variant": config.variant,
        **counts,
        **roles,
        **summary,
        **ranks,
        "status": "specification of this project; the paper's body was not available",
    }
    arrays = {"effects": effects[config.variant], "gradient": gradient}
    return Result(
        {"heads": heads, "head_groups": head_groups, "flow": flow, **tables, "inputs": inputs}, arrays, summary
    )


def _known(model, config: Config, context: Context, items: list[Item]) -> tuple[list[Item], dict]:
    """The items whose greedy clean continuation names the answer (all of them for keep=all), and the share that is
    known."""
    found = context.part("known", lambda: {"right": np.array(_clean_right(model, config, context, items, ()))})["right"]
    low, high = wilson(int(found.sum()), len(found))
    known = {"value": float(found.mean()), "low": low, "high": high, "n": len(found)}
    context.progress(1, 1, "known items")
    if config.keep == "all":
        return items, known
    if not found.any():
        raise InputError(
            f"{context.data}: the model knows none of the {len(items)} items (its clean answers never name "
            f"the truth); use keep=all to measure them anyway."
        )
    return [item for item, right in zip(items, found) if right], known


def _generate(model, config, context, prompts, edits) -> list[str]:
    from workbench.engine.generate import greedy

    out = greedy(
        model, prompts, max_new_tokens=config.max_new_tokens, edits=(*context.edits, *edits), check=context.check
    )
    context.count(prompts=len(prompts), tokens=sum(map(len, prompts)) + sum(map(len, out)), forwards=max(map(len, out)))
    return [model.decode(ids).strip() for ids in out]


def _clean_right(model, config, context, items: Sequence[Item], edits) -> list[bool]:
    from workbench.models.text_positions import find

    texts = _generate(model, config, context, [item.clean for item in items], edits)
    return [any(find(text, answer) for answer in item.answers) for item, text in zip(items, texts)]


# ---- step A: windows of layers


def _probabilities(model, context: Context, items: Sequence[Item], edits_of) -> np.ndarray:
    """p(a_m), p(a_c) on the conflict prompts under edits_of(items of a batch), [n, 2]."""
    from workbench.engine.capture import logits
    from workbench.models.batching import batches

    out = np.empty((len(items), 2))
    for rows in batches([len(item.conflict) for item in items]):
        part = [items[i] for i in rows]
        scores = logits(
            model, [item.conflict for item in part], edits=(*context.edits, *edits_of(part)), check=context.check
        )
        context.count(prompts=len(part), tokens=sum(len(item.conflict) for item in part), forwards=1)
        for i, item, p in zip(rows, part, scores.softmax(-1)):
            out[i] = p[item.memory_id], p[item.context_id]
    return out


def _flow(model, config: Config, context: Context, items: Sequence[Item]) -> pl.DataFrame:
    """What p(a_m) and p(a_c) lose or gain when a window of layers is switched off or cannot see a name."""
    import torch

    from workbench.engine.edits import KnockOut, Patch
    from workbench.models.sites import sites

    width = min(model.n_layers, config.window or max(1, model.n_layers // 8))
    nothing = torch.zeros(model.width)

    def outputs(kind: str, layers):
        return lambda part: [Patch(site, nothing, (-1,)) for site in sites(kind, layers)]

    def edges(source: str, layers):
        return lambda part: [KnockOut(tuple(layers), tuple(item.sources[source] for item in part))]

    panels = [
        ("attention", "all", lambda layers: outputs("attn_out", layers)),
        ("mlp", "all", lambda layers: outputs("mlp_out", layers)),
    ]
    if model.attention_interface:
        panels += [("knockout", source, lambda layers, source=source: edges(source, layers)) for source in SOURCES]
    elif items:
        context.warn(f"{model.architecture} allows no attention knock-outs; step A has component knock-outs only.")
    columns = (
        "component",
        "window_start",
        "source",
        "delta_memory",
        "delta_context",
        "memory_low",
        "memory_high",
        "context_low",
        "context_high",
        "n",
    )
    rows = []
    if items:
        before = context.part("flow", lambda: {"p": _probabilities(model, context, items, lambda part: ())})["p"]
    for component, source, edits in panels if items else ():
        chosen = [n for n, item in enumerate(items) if component != "knockout" or item.sources[source]]
        if not chosen:  # no prompt names the subject twice, for example: there is nothing to cut
            context.warn(f"No item has a span '{source}'; step A leaves it out.")
            continue
        some = [items[n] for n in chosen]
        for start in range(model.n_layers - width + 1):
            layers = range(start, start + width)
            p = context.part(
                f"flow {component} {source} {start}",
                lambda: {"p": _probabilities(model, context, some, edits(layers))},  # noqa: B023
            )["p"]  # noqa: B023
            delta = p - before[chosen]
            low, high = _interval(delta, config, context.rng(f"flow {component} {source} {start}"))
            rows.append((component, start, source, *delta.mean(0), low[0], high[0], low[1], high[1], len(delta)))
            context.progress(start + 1, model.n_layers - width + 1, f"flow: {component} {source}")
    schema = dict.fromkeys(columns, pl.Float64) | {
        "component": pl.String,
        "source": pl.String,
        "window_start": pl.Int64,
        "n": pl.Int64,
    }
    return pl.DataFrame([dict(zip(columns, map(_plain, row))) for row in rows], schema=schema).with_columns(
        window=pl.lit(width)
    )


def _plain(value):
    """A Python number; None for NaN (an interval that is not given)."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value


def _interval(values: np.ndarray, config: Config, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap interval of the mean over the first axis; NaN with fewer than FEW items."""
    if len(values) < FEW:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    return bootstrap_mean(values, draws=config.draws, rng=rng)


# ---- steps B and C: heads


def _effects(
    model, config: Config, context: Context, items: Sequence[Item]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Importances of every head for a_m and a_c per item, each [n, layers, H, 2] float32: by patching, for
    config.variant and for "direct" and "total" where the architecture allows them; and by gradient."""
    from workbench.engine.patching import VARIANTS, attribution

    methods = {name: VARIANTS[name] for name in dict.fromkeys((config.variant, "direct", "total"))}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*methods, "gradient")}
    for start in range(0, len(items), 32):
        chunk = items[start : start + 32]
        ids, donors, tokens = ([getattr(item, name) for item in chunk] for name in ("conflict", "corrupt", "tokens"))
        shape = (len(ids), model.n_layers, model.n_heads, 2)
        options = {"edits": context.edits, "check": context.check}

        def compute() -> dict[str, np.ndarray]:
            out = {}
            for name, effects in methods.items():
                try:
                    lost = -effects(model, ids, donors, tokens, **options).change(config.metric)  # noqa: B023
                except InputError as error:
                    if name == config.variant:
                        raise
                    context.warn(f"There are no {name} effects to compare with: {error}")
                    continue
                out[name] = lost.reshape(shape).numpy()  # noqa: B023
            out["gradient"] = (
                -attribution(model, ids, donors, tokens, metric=config.metric, **options).reshape(shape).numpy()  # noqa: B023
            )  # noqa: B023
            for name, lost in out.items():
                if bad := [chunk[i].row for i in range(len(lost)) if not np.isfinite(lost[i]).all()]:  # noqa: B023
                    raise RunFailed(
                        f"The {name} effects of heads are NaN or infinite on the items {bad[:5]}; load the "
                        f"model in bfloat16 or float32."
                    )
            context.count(prompts=2 * len(ids), tokens=2 * sum(map(len, ids)), forwards=2)  # noqa: B023
            return out

        for name, found in context.part(f"heads {start}", compute).items():
            parts[name].append(found)
        context.progress(min(start + 32, len(items)), len(items), "heads")
    whole = {name: np.concatenate(found) for name, found in parts.items() if found}
    return whole, whole.pop("gradient")


def _head_table(
    model, config: Config, context: Context, found: dict[str, np.ndarray], gradient: np.ndarray
) -> pl.DataFrame:
    """One row per head: mean importances, the score I_memory − I_context with its interval, and the role that it
    supports."""
    effects = found[config.variant]
    score = effects[..., 0] - effects[..., 1]
    mean, slope, middle = (
        effects.mean(0, dtype=np.float64),
        gradient.mean(0, dtype=np.float64),
        score.mean(0, dtype=np.float64),
    )
    low, high = _interval(score, config, context.rng("head scores"))
    sides = [_interval(effects[..., k], config, context.rng(f"heads {k}")) for k in (0, 1)]
    floor = NOISE * max(float(np.abs(mean).max()), 1e-12)
    side = np.where(
        (middle > floor) & (mean[..., 0] > floor),
        "memory",
        np.where((middle < -floor) & (mean[..., 1] > floor), "context", "none"),
    )
    sure = np.where(side == "memory", low > 0, high < 0) & (side != "none")
    layer, head = np.divmod(np.arange(score[0].size), model.n_heads)
    table = pl.DataFrame(
        {
            "layer": layer,
            "head": head,
            "memory_importance": mean[..., 0].ravel(),
            "context_importance": mean[..., 1].ravel(),
            "gradient_memory": slope[..., 0].ravel(),
            "gradient_context": slope[..., 1].ravel(),
            "role": np.where(sure, side, "none").ravel(),
            "score": middle.ravel(),
            "ci_low": low.ravel(),
            "ci_high": high.ravel(),
            "memory_low": sides[0][0].ravel(),
            "memory_high": sides[0][1].ravel(),
            "context_low": sides[1][0].ravel(),
            "context_high": sides[1][1].ravel(),
            "side": side.ravel(),
            "n": np.full(score[0].size, len(score)),
            **{
                f"{name}_{answer}": found[name].mean(0, dtype=np.float64)[..., k].ravel()
                for name in ("direct", "total")
                if name in found
                for k, answer in enumerate(ROLES)
            },
        }
    )
    return table.with_columns(
        pl.col("ci_low", "ci_high", "memory_low", "memory_high", "context_low", "context_high").fill_nan(None)
    )


def _head_groups(model, config: Config, context: Context, effects: np.ndarray, items: Sequence[Item]) -> pl.DataFrame:
    """Mean importances of every head on each kind of conflict of the find split, and the score with its interval."""
    layer, head = np.divmod(np.arange(model.n_layers * model.n_heads), model.n_heads)
    tables = []
    for column, value, chosen in kinds(items):
        part = effects[chosen]
        score, mean = part[..., 0] - part[..., 1], part.mean(0, dtype=np.float64)
        low, high = _interval(score, config, context.rng(f"heads of {column} {value}"))
        tables.append(
            pl.DataFrame(
                {
                    "column": [column] * len(layer),
                    "group": [value] * len(layer),
                    "n": [len(chosen)] * len(layer),
                    "layer": layer,
                    "head": head,
                    "memory_importance": mean[..., 0].ravel(),
                    "context_importance": mean[..., 1].ravel(),
                    "score": score.mean(0, dtype=np.float64).ravel(),
                    "ci_low": low.ravel(),
                    "ci_high": high.ravel(),
                }
            ).with_columns(pl.col("ci_low", "ci_high").fill_nan(None))
        )
    schema = {"column": pl.String, "group": pl.String, "n": pl.Int64, "layer": pl.Int64, "head": pl.Int64}
    numbers = ("memory_importance", "context_importance", "score", "ci_low", "ci_high")
    return pl.concat(tables) if tables else pl.DataFrame(schema=schema | dict.fromkeys(numbers, pl.Float64))


def _gradient_ranks(config: Config, context: Context, heads: pl.DataFrame) -> dict:
    """Spearman's correlation over heads of step C with step B: with config.variant, with the direct and with the total
    effect."""
    out = {}
    for side in ROLES:
        named = {"": f"{side}_importance", "_direct": f"direct_{side}", "_total": f"total_{side}"}
        for suffix, column in named.items():
            if column in heads.columns:
                rank = spearman(
                    heads[column].to_numpy(),
                    heads[f"gradient_{side}"].to_numpy(),
                    draws=config.draws,
                    rng=context.rng(f"spearman {side}"),
                )
                out[f"gradient_spearman_{side}{suffix}"] = rank.as_dict()
    return out


# ---- step D: pruning


def _prune(model, config: Config, context: Context, split: dict[str, list[Item]], heads: pl.DataFrame):
    """Prune the best k heads of each side and random ones: tables `pruning` (test), `validation`, `groups`, `answers`;
    the summary; the chosen heads."""
    from probes.knowledge_conflict.pruning import ablation, neutral_texts, random_draws
    from workbench.engine.mean_head_outputs import mean_head_outputs

    mean = None
    if config.ablation == "mean":
        mean = mean_head_outputs(model, [item.conflict for item in split["validation"]], edits=context.edits)
    answered = [item.clean + model.encode(" " + item.answers[0], bos=False) for item in split["test"]]
    neutral, which = neutral_texts(model, config.neutral, essays=ESSAYS, otherwise=answered)
    half = heads.height // 2  # beyond it there are too few other heads for a random control
    best = {role: _ranked(heads, role)[:half] for role in ROLES}
    plan = [(role, k) for role in ROLES for k in _sizes(config, context, role, len(best[role]))]
    controls: dict[tuple, list] = {}
    for role, k in plan:
        rng = context.rng(f"random {role} {k}")
        controls[role, k] = random_draws(
            best[role][:k], model.n_heads, rng, n_layers=model.n_layers, draws=config.random_draws
        )
        if len(controls[role, k]) < config.random_draws:
            context.warn(
                f"The layers of the {k} {role} heads hold only {len(controls[role, k])} different sets of "
                f"other heads; so many random draws were made for k = {k}."
            )
    seen: dict[tuple, pl.DataFrame] = {}

    def measure(name: str, chosen: tuple) -> pl.DataFrame:
        """One row per item of the split: its answer and what kind it is, p(a_m), p(a_c), the clean answer; and the
        neutral text's NLL."""
        key = (name, tuple(sorted(chosen)))
        if key not in seen:
            edits = ablation(key[1], config.ablation, mean)
            label = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
            seen[key] = context.part(
                f"prune {label}", lambda: {"answers": _answers(model, config, context, split[name], edits)}
            )["answers"]
            if name == "test":
                nll = context.part(f"neutral {label}", lambda: _neutral_loss(model, neutral, context, edits))
                seen[key] = seen[key].with_columns(
                    perplexity=pl.lit(float(np.exp(nll["nll"].sum() / max(1, nll["count"].sum()))))
                )
        return seen[key]

    rows = []

    def add(role, name, k, chosen, kind, draw):
        found = measure(name, chosen)
        row = {
            "role": role,
            "split": name,
            "k": k,
            "n_heads": len(chosen),
            "heads": kind,
            "draw": draw,
            "ablation": config.ablation,
            **_rates(found),
        }
        row |= {"p_memory": found["p_memory"].mean(), "p_context": found["p_context"].mean()}
        rows.append(
            row
            | {
                "perplexity": found["perplexity"][0] if name == "test" else None,
                "which": " ".join(f"{l}.{h}" for l, h in chosen),
            }
        )

    before = measure("test", ())
    summary = _baseline(before, context) | {"neutral_text": which, "perplexity": float(before["perplexity"][0])}
    for role in ROLES:
        for name in ("validation", "test"):
            add(role, name, 0, (), "top", 0)
    for number, (role, k) in enumerate(plan):
        context.progress(number, len(plan), f"pruning {role} heads")
        for name in ("validation", "test"):
            add(role, name, k, best[role][:k], "top", 0)
        for draw, others in enumerate(controls[role, k]):
            add(role, "test", k, others, "random", draw)
    context.progress(len(plan), max(1, len(plan)), "pruning")
    picks, groups, answers = {}, [], []
    for role in ROLES:
        k = (
            _choose(
                config, context, role, [row for row in rows if row["split"] == "validation" and row["role"] == role]
            )
            if best[role]
            else None
        )
        if k is None:
            context.warn(
                f"No head pulls towards {role} on the find split; there is nothing to prune on that side, and "
                f"no mask of it is written."
            )
        picks[role] = best[role][: k or 0]
        top, randoms = (
            measure("test", picks[role]),
            [measure("test", others) for others in controls[role, k]] if k else [],
        )
        summary |= _gain(context, config, role, k, before, top, randoms)
        groups += _by_group(role, k or 0, split["test"], before, top, randoms)
        after = top.select(after="text", after_kind="kind")
        answers.append(
            before.rename({"text": "before", "kind": "before_kind"})
            .drop("p_memory", "p_context", "clean_right", "perplexity")
            .with_columns(after, role=pl.lit(role), k=pl.lit(k or 0, pl.Int64))
        )
    for row in rows:
        row["chosen"] = row["heads"] == "top" and row["k"] > 0 and row["k"] == summary[f"{row['role']}_pruned_k"]
    pruned = pl.DataFrame(rows, infer_schema_length=None)
    tables = {
        "pruning": pruned.filter(pl.col("split") == "test").drop("split"),
        "validation": pruned.filter(pl.col("split") == "validation").drop("split", "perplexity"),
        "groups": pl.DataFrame(groups, schema=_GROUP_SCHEMA),
        "answers": pl.concat(answers),
    }
    return tables, summary, picks


def _sizes(config: Config, context: Context, role: str, available: int) -> list[int]:
    """The k of prune_k for this side; those beyond the heads that there are would all prune the same heads, and become
    one k."""
    asked = sorted(set(config.prune_k))
    sizes = sorted({min(k, available) for k in asked}) if available else []
    if available and asked[-1] > available:
        beyond = ", ".join(str(k) for k in asked if k > available)
        context.warn(
            f"Only {available} {role} heads can be pruned: k = {beyond} would all prune these, and k = "
            f"{available} is reported in their place."
        )
    return sizes


def _rates(found: pl.DataFrame) -> dict[str, float]:
    """Shares of answers that follow memory, context or neither, and of clean prompts answered right, with Wilson
    intervals."""
    n, out = found.height, {"n": found.height}
    hits = {f"{side}_": int((found["kind"] == side).sum()) for side in ("memory", "context", "other")} | {
        "clean_": int(found["clean_right"].sum())
    }
    for name, right in hits.items():
        out["clean_accuracy" if name == "clean_" else f"{name}rate"] = right / n
        out[f"{name}low"], out[f"{name}high"] = wilson(right, n)
    return out


_GROUP_SCHEMA = {
    "role": pl.String,
    "k": pl.Int64,
    "heads": pl.String,
    "column": pl.String,
    "group": pl.String,
    "n": pl.Int64,
} | dict.fromkeys(
    [f"{side}_{end}" for side in ("memory", "context", "other") for end in ("rate", "low", "high")]
    + ["clean_accuracy", "clean_low", "clean_high"],
    pl.Float64,
)


def _by_group(
    role: str, k: int, items: Sequence[Item], before: pl.DataFrame, top: pl.DataFrame, randoms: list[pl.DataFrame]
) -> list[dict]:
    """The rates of each kind of conflict: unpruned (k = 0), with the chosen heads pruned, and the mean over the random
    draws."""
    rows = []
    for column, value, chosen in kinds(items):
        place = {"role": role, "column": column, "group": value}
        rows.append(place | {"k": 0, "heads": "top"} | _rates(before[chosen]))
        if k:
            rows.append(place | {"k": k, "heads": "top"} | _rates(top[chosen]))
            draws = [_rates(found[chosen]) for found in randoms]
            means = {
                name: float(np.mean([rates[name] for rates in draws]))
                for name in draws[0]
                if not name.endswith(("low", "high", "n"))
            }
            rows.append(place | {"k": k, "heads": "random", "n": len(chosen)} | means)
    return rows


def _ranked(heads: pl.DataFrame, role: str) -> tuple[tuple[int, int], ...]:
    """Heads on one side of zero, the strongest first."""
    found = heads.filter(pl.col("side") == role).sort(pl.col("score").abs(), descending=True)
    return tuple(zip(found["layer"].to_list(), found["head"].to_list()))


def _neutral_loss(model, neutral: Sequence[Sequence[int]], context: Context, edits) -> dict[str, np.ndarray]:
    """Summed −log p of the tokens of every neutral text after the first (nats), and how many tokens that is."""
    from workbench.engine.evaluation import token_losses

    losses = token_losses(
        model, neutral, edits=(*context.edits, *edits), max_tokens=NEUTRAL_TOKENS, check=context.check
    )
    return {"nll": np.array([row.sum() for row in losses]), "count": np.array([len(row) for row in losses])}


def _answers(model, config: Config, context: Context, items: Sequence[Item], edits) -> pl.DataFrame:
    """Greedy answers to the conflict prompts under edits, what they follow, and whether the clean prompts are still
    answered."""
    from workbench.models.text_positions import first_mention

    texts = _generate(model, config, context, [item.conflict for item in items], edits)
    p = _probabilities(model, context, items, lambda part: edits)
    sides = [
        first_mention(text, {"memory": item.answers, "context": [item.distractor]}, "other")
        for item, text in zip(items, texts)
    ]
    return pl.DataFrame(
        {
            "row": [item.row for item in items],
            "subject": [item.subject for item in items],
            "answer": [item.answers[0] for item in items],
            "distractor": [item.distractor for item in items],
            "text": texts,
            "kind": sides,
            "p_memory": p[:, 0],
            "p_context": p[:, 1],
            "clean_right": _clean_right(model, config, context, items, edits),
            **{
                name: [item.group.get(name) for item in items]
                for name in GROUPS
                if any(name in item.group for item in items)
            },
        }
    )


def _choose(config: Config, context: Context, role: str, rows: list[dict]) -> int:
    """k by validation: the highest rate, then the highest probability, of the wanted answer; the smallest k among
    equals, 0 included."""
    wanted = ROLES[role]
    base = next(row for row in rows if row["k"] == 0)
    kept = [row for row in rows if row["clean_accuracy"] >= base["clean_accuracy"] - config.max_clean_drop - 1e-9]
    k = max(kept, key=lambda row: (row[f"{wanted}_rate"], row[f"p_{wanted}"], -row["k"]))["k"]
    if k == 0:
        why = (
            f"none that costs at most {config.max_clean_drop:.0%} of clean accuracy brings more {wanted} answers "
            f"than none at all"
        )
        context.warn(f"No {role} heads are pruned (k = 0): on validation, {why}; no mask of that side is written.")
    return k


def _baseline(before: pl.DataFrame, context: Context) -> dict:
    found = {f"{side}_rate": _rate(before, side) for side in ("memory", "context", "other")}
    for side in ROLES:
        if found[f"{side}_rate"]["value"] == 1:
            context.warn(f"Every test item already follows {side}; pruning cannot raise that side.")
    if found["other_rate"]["value"] == 1:
        context.warn("No test item is answered with either side; the rates say nothing about memory against context.")
    return found


def _rate(found: pl.DataFrame, side: str) -> dict:
    rates = _rates(found)
    return {
        "value": rates[f"{side}_rate"],
        "low": rates[f"{side}_low"],
        "high": rates[f"{side}_high"],
        "n": found.height,
    }


def _gain(
    context: Context,
    config: Config,
    role: str,
    k: int | None,
    before: pl.DataFrame,
    top: pl.DataFrame,
    randoms: list[pl.DataFrame],
) -> dict:
    """What the chosen k does on test, against the unpruned model and against random heads of the same layers; nulls
    where none is pruned."""
    wanted, name = ROLES[role], f"{role}_pruned"
    out = {f"{name}_k": k} | dict.fromkeys(
        f"{name}_{what}"
        for what in (
            f"{wanted}_rate",
            "gain",
            "gain_over_random",
            "clean_change",
            "perplexity_ratio",
            "random_perplexity_ratio",
        )
    )
    if not k:
        return out

    follows = lambda found: (found["kind"] == wanted).to_numpy().astype(float)  # noqa: E731
    right = lambda found: found["clean_right"].to_numpy().astype(float)  # noqa: E731

    def difference(a: np.ndarray, b: np.ndarray) -> dict:
        found = paired_difference(a, b, draws=config.draws, rng=context.rng(f"gain {role}")).as_dict()
        return found if found["n"] >= FEW else found | {"low": None, "high": None}

    gain = difference(follows(top), follows(before))
    over = difference(follows(top), np.mean([follows(found) for found in randoms], axis=0))
    clean = difference(right(top), right(before))
    for found, against in ((gain, "pruning none"), (over, "pruning random heads of the same layers")):
        if found["low"] is None or found["low"] <= 0:
            seen = (
                "too few items for an interval"
                if found["low"] is None
                else f"interval {found['low']:+.2f} to {found['high']:+.2f}"
            )
            context.warn(
                f"Pruning {k} {role} heads is not shown to bring more {wanted} answers than {against}: "
                f"{found['value']:+.2f} ({seen})."
            )
    if clean["value"] < -MAX_CLEAN_LOSS:
        context.warn(
            f"Pruning {k} {role} heads costs {-clean['value']:.1%} of clean accuracy on test, more than "
            f"{MAX_CLEAN_LOSS:.0%}."
        )
    return out | {
        f"{name}_{wanted}_rate": _rate(top, wanted),
        f"{name}_gain": gain,
        f"{name}_gain_over_random": over,
        f"{name}_clean_change": clean,
        f"{name}_perplexity_ratio": float(top["perplexity"][0] / before["perplexity"][0]),
        f"{name}_random_perplexity_ratio": float(
            np.mean([found["perplexity"][0] for found in randoms]) / before["perplexity"][0]
        ),
    }


def _save_masks(model, config: Config, context: Context, chosen: dict[str, tuple], summary: dict) -> None:
    """Write the chosen heads of each side into the run folder, for `--edit` and the explorer; a side without any leaves
    no file."""
    from workbench.core.files import atomic
    from workbench.engine.head_masks import save_heads

    if context.out is None:
        return
    how = "uniform" if config.ablation == "uniform" else "zero"
    if config.ablation == "mean":
        context.warn("A head mask cannot hold means: pruned_heads.json switches its heads to zero, not to their mean.")
    for name, role in (
        ("pruned_heads", config.mask),
        ("pruned_heads_memory", "memory"),
        ("pruned_heads_context", "context"),
    ):
        path = context.out / f"{name}.json"
        path.unlink(missing_ok=True)  # of an earlier run in this folder
        if chosen[role]:
            gain, over, clean = (
                summary[f"{role}_pruned_{what}"]["value"] for what in ("gain", "gain_over_random", "clean_change")
            )
            effect = (
                f"{ROLES[role]} rate on test {gain:+.3f} ({over:+.3f} over random heads), clean accuracy {clean:+.3f}"
            )
            note = (
                f"{role} heads found by knowledge-conflict; without them the model should follow {ROLES[role]}: "
                f"{effect}"
            )
            with atomic(path) as temporary:
                save_heads(temporary, chosen[role], how=how, note=note, model=model)
