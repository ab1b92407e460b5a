"""Knowledge conflict: which heads pull towards what the model memorised, which towards what the prompt says, and what pruning them does.

Jin et al., Cutting Off the Head Ends the Conflict (PH3, arXiv 2402.18154, Findings of ACL 2024). The paper's abstract and the follow-up
JuICE (ICML 2025, text and code) could be read, the paper's body could not: what follows is our specification of it, not a verified
reproduction. Verified: late heads recall the attribute from memory or fetch it from the context; they are scored by path patching and
pruned by zeroing their output, k of {1, 3, 5, 7, 9, 15} chosen on a validation split.

An item has a clean prompt, a prompt that contradicts the fact, a_m (first token of the true answer) and a_c (of the contradiction).
Step A sets attention or MLP outputs at the last position to zero over windows of layers, and cuts attention from there to the names.
Step B puts each head's last output on a corrupted prompt (other names, equal length) in place of its own. `variant=direct` freezes all
else, `direct_mlp` lets MLPs react, `total` everything. Importance is the loss of log p: I = log p_before(a) − log p_patched(a); the
normaliser cancels in I_memory − I_context, so heads are ranked by the change of logit(a_m) − logit(a_c). Step C estimates the total
effect from gradients. Step D prunes the best heads of each side, against random heads of the same layers.

Choices of ours: a head counts for a side if its interval excludes zero on that side; lists for pruning hold every head on the right
side of zero, so that they can be shorter than k; k may cost at most `max_clean_drop` of clean accuracy on validation (1 = JuICE's rule);
an answer that names both sides counts for the one it names first; a subject is in one split only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from workbench.conflicts import (
    COLUMNS,
    OPTIONAL,
    SAME,
    SOURCES,
    SPLITS,
    UNALIGNED,
    Item,
    assign_splits,
    build_items,
    read_conflicts,
)
from workbench.context import Context, Result
from workbench.data import column_map, read_table
from workbench.errors import InputError
from workbench.registry import DataSpec, option, probe
from workbench.statistics import bootstrap_mean, paired_difference, spearman, wilson
from workbench.statistics import mean as mean_of

BIBTEX = """@inproceedings{jin2024cutting,
  title={Cutting Off the Head Ends the Conflict: A Mechanism for Interpreting and Mitigating Knowledge Conflicts in Language Models},
  author={Jin, Zhuoran and Cao, Pengfei and Yuan, Hongbang and Chen, Yubo and Xu, Jiexin and Li, Huaijun and Jiang, Xiaojian and Liu, Kang and Zhao, Jun},
  booktitle={Findings of the Association for Computational Linguistics: ACL 2024},
  pages={1193--1215},
  year={2024}
}"""
ROLES = {"memory": "context", "context": "memory"}  # heads pruned -> the answer that this is meant to bring
NOISE = 1e-3  # effects below this share of the largest are rounding, not a role


@dataclass(frozen=True)
class Config:
    variant: str = option("direct", "direct: head to logits, all else frozen; direct_mlp: MLPs react; total: everything after the head reacts", choices=("direct", "direct_mlp", "total"))
    prune_k: tuple[int, ...] = option((1, 3, 5, 7, 9, 15), "how many heads of a side to prune", low=1)
    ablation: str = option("zero", "what pruning does to a head: zero output (the paper), mean output over the validation prompts, uniform attention", choices=("zero", "mean", "uniform"))
    window: int = option(0, "layers in one window of step A; 0: an eighth of the model's layers", low=0)
    keep: str = option("known", "known: only items whose clean prompt the model answers; all: every item", choices=("known", "all"))
    columns: tuple[str, ...] = option((), "names of the columns in the data file where they differ, as name:name in the file, e.g. subject:Subject,answer:Answer")
    metric: str = option("logprob", "what an importance is a change of: the log-probability of the answer, or its raw logit", choices=("logprob", "logit"))
    find_share: float = option(0.3, "share of the subjects used to find heads (where the file has no column split)", low=0.01, high=0.98)
    validation_share: float = option(0.2, "share of the subjects used to choose k", low=0.01, high=0.98)
    test_relations: tuple[str, ...] = option((), "relations (column relation) that are used for testing only; the others then are not tested on")
    limit: int = option(0, "use at most this many items, drawn at random; 0: all", low=0)
    flow_items: int = option(64, "most items used for step A; 0: no step A", low=0)
    max_new_tokens: int = option(10, "tokens in which the answer must come", low=1)
    random_draws: int = option(5, "random sets of heads of the same layers to prune for comparison", low=1)
    max_clean_drop: float = option(0.02, "largest loss of clean accuracy on validation that the chosen k may cost; 1: any", low=0, high=1)
    neutral: str = option("auto", "text file (one text per line, or a table with a column text) for the perplexity of pruned models; auto: the organism's documents, else the clean prompts with their answers", file=True)
    mask: str = option("context", "which side's heads pruned_heads.json holds: context (then the model follows memory) or memory", choices=("context", "memory"))
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
            raise InputError(f"{data} has no relation '{relation}' to hold out for testing; it has {', '.join(sorted(map(str, known)))}.")
    if config.neutral != "auto":
        read_table(config.neutral, required=("text",), what="neutral text")


def _items(model, config: Config, context: Context) -> tuple[list[Item], dict[str, int]]:
    """Items that can be measured on this model, and how many were skipped for which reason."""
    rows = _rows(config, context.data)
    chosen = range(len(rows))
    if 0 < config.limit < len(rows):
        chosen = sorted(context.rng("limit").permutation(len(rows))[: config.limit].tolist())
    items, skipped = build_items(model, rows, context.data, chosen=chosen, room=config.max_new_tokens, rng=context.rng, check=context.check)
    for reason, why in ((SAME, "answer and distractor start with the same token"), (UNALIGNED, "no corrupted prompt of equal length was found")):
        if skipped[reason]:
            context.warn(f"{skipped[reason]} of {len(chosen)} items were skipped: {why}.")
    return items, skipped


def _split(items: list[Item], config: Config, context: Context) -> dict[str, list[Item]]:
    items = assign_splits(items, find=config.find_share, validation=config.validation_share, test_relations=config.test_relations, rng=context.rng("split"))
    split = {name: [item for item in items if item.split == name] for name in SPLITS}
    for name, part in split.items():
        if not part:
            raise InputError(f"{context.data}: no item is left for the split '{name}' (of {len(items)} that can be used); give more items, other shares or keep=all.")
    return split


# ---- the run


@probe(
    "knowledge-conflict",
    title="Knowledge conflict",
    summary="Which heads follow memory and which follow the context when the two disagree, and how pruning them tips the balance.",
    tables={
        "heads": ("layer", "head", "memory_importance", "context_importance", "gradient_memory", "gradient_context", "role", "ci_low", "ci_high"),
        "flow": ("component", "window_start", "source", "delta_memory", "delta_context"),
        "pruning": ("role", "k", "heads", "draw", "ablation", "memory_rate", "context_rate", "other_rate", "clean_accuracy"),
        "inputs": ("row", "ids", "corrupt_ids", "position", "memory_id", "context_id", "split"),
        "answers": ("row", "role", "k", "subject", "answer", "distractor", "before", "before_kind", "after", "after_kind"),
    },
    bibtex=BIBTEX,
    data=DataSpec(required=COLUMNS, default="workbench:organisms/data/conflicts.jsonl", what="conflicts", columns=OPTIONAL),
    validate=validate,
    figures="workbench.figures.knowledge_conflict:figures",
    keys={"heads": ("layer", "head"), "flow": ("component", "window_start", "source"), "pruning": ("role", "k", "heads", "draw")},
    demo={"limit": 120, "prune_k": (1, 3, 5), "flow_items": 16},
)
def run(model, config: Config, context: Context) -> Result:
    """Measure every head on the find split, choose k on validation, prune on test.

    Raises InputError when no item can be measured or the model knows none of them."""
    if context.engine != "hf":
        raise InputError("knowledge-conflict edits the forward pass, which only the engine 'hf' does; run it with --engine hf.")
    items, skipped = _items(model, config, context)
    items, known = _known(model, config, context, items)
    split = _split(items, config, context)
    effects, gradient = _effects(model, config, context, split["find"])
    heads = _head_table(model, config, context, effects, gradient)
    flow = _flow(model, config, context, split["find"][: config.flow_items])
    tables, summary, chosen = _prune(model, config, context, split, heads)
    _save_masks(config, context, chosen)
    inputs = pl.DataFrame(
        [{"row": i.row, "ids": i.conflict, "corrupt_ids": i.corrupt, "position": len(i.conflict) - 1, "memory_id": i.memory_id, "context_id": i.context_id,
          "split": i.split, "clean_ids": i.clean} for name in SPLITS for i in split[name]]
    )  # fmt: skip
    ranks = {}  # how well gradients order the heads
    for side in ("memory", "context"):
        a, b = heads[f"{side}_importance"].to_numpy(), heads[f"gradient_{side}"].to_numpy()
        ranks[f"gradient_spearman_{side}"] = spearman(a, b, draws=config.draws, rng=context.rng(f"spearman {side}")).as_dict()
    counts = {**{f"items_{name}": len(split[name]) for name in SPLITS}, "known": known, **skipped}
    roles = {f"{role}_heads": heads.filter(pl.col("role") == role).height for role in ROLES}
    summary = {"variant": config.variant, **counts, **roles, **summary, **ranks, "status": "specification of this project; the paper's body was not available"}
    return Result({"heads": heads, "flow": flow, **tables, "inputs": inputs}, {"effects": effects, "gradient": gradient}, summary)


def _known(model, config: Config, context: Context, items: list[Item]) -> tuple[list[Item], dict]:
    """The items whose greedy clean continuation names the answer (all of them for keep=all), and the share that is known."""
    found = context.part("known", lambda: {"right": np.array(_clean_right(model, config, context, items, ()))})["right"]
    low, high = wilson(int(found.sum()), len(found))
    known = {"value": float(found.mean()), "low": low, "high": high, "n": len(found)}
    context.progress(1, 1, "known items")
    if config.keep == "all":
        return items, known
    if not found.any():
        raise InputError(f"{context.data}: the model knows none of the {len(items)} items (its clean answers never name the truth); use keep=all to measure them anyway.")
    return [item for item, right in zip(items, found) if right], known


def _generate(model, config, context, prompts, edits) -> list[str]:
    from workbench.generate import greedy

    out = greedy(model, prompts, max_new_tokens=config.max_new_tokens, edits=(*context.edits, *edits), check=context.check)
    context.count(prompts=len(prompts), tokens=sum(map(len, prompts)) + sum(map(len, out)), forwards=max(map(len, out)))
    return [model.decode(ids).strip() for ids in out]


def _clean_right(model, config, context, items: Sequence[Item], edits) -> list[bool]:
    from workbench.spans import find

    texts = _generate(model, config, context, [item.clean for item in items], edits)
    return [any(find(text, answer) for answer in item.answers) for item, text in zip(items, texts)]


# ---- step A: windows of layers


def _probabilities(model, context: Context, items: Sequence[Item], edits_of) -> np.ndarray:
    """p(a_m), p(a_c) on the conflict prompts under edits_of(items of a batch), [n, 2]."""
    from workbench.batching import batches
    from workbench.capture import logits

    out = np.empty((len(items), 2))
    for rows in batches([len(item.conflict) for item in items]):
        part = [items[i] for i in rows]
        scores = logits(model, [item.conflict for item in part], edits=(*context.edits, *edits_of(part)), check=context.check)
        context.count(prompts=len(part), tokens=sum(len(item.conflict) for item in part), forwards=1)
        for i, item, p in zip(rows, part, scores.softmax(-1)):
            out[i] = p[item.memory_id], p[item.context_id]
    return out


def _flow(model, config: Config, context: Context, items: Sequence[Item]) -> pl.DataFrame:
    """What p(a_m) and p(a_c) lose or gain when a window of layers is switched off or cannot see a name."""
    import torch

    from workbench.intervene import KnockOut, Patch
    from workbench.sites import sites

    width = min(model.n_layers, config.window or max(1, model.n_layers // 8))
    nothing = torch.zeros(model.width)

    def outputs(kind: str, layers):
        return lambda part: [Patch(site, nothing, (-1,)) for site in sites(kind, layers)]

    def edges(source: str, layers):
        return lambda part: [KnockOut(tuple(layers), tuple(item.sources[source] or (-1,) for item in part))]

    kinds = [("attention", "all", lambda layers: outputs("attn_out", layers)), ("mlp", "all", lambda layers: outputs("mlp_out", layers))]
    if model.attention_interface:
        kinds += [("knockout", source, lambda layers, source=source: edges(source, layers)) for source in SOURCES]
    elif items:
        context.warn(f"{model.architecture} allows no attention knock-outs; step A has component knock-outs only.")
    columns = ("component", "window_start", "source", "delta_memory", "delta_context", "memory_low", "memory_high", "context_low", "context_high", "n")
    rows = []
    if items:
        before = context.part("flow", lambda: {"p": _probabilities(model, context, items, lambda part: ())})["p"]
    for component, source, edits in kinds if items else ():
        for start in range(model.n_layers - width + 1):
            layers = range(start, start + width)
            p = context.part(f"flow {component} {source} {start}", lambda: {"p": _probabilities(model, context, items, edits(layers))})["p"]  # noqa: B023
            delta = p - before
            low, high = bootstrap_mean(delta, draws=config.draws, rng=context.rng(f"flow {component} {source} {start}"))
            rows.append((component, start, source, *delta.mean(0), low[0], high[0], low[1], high[1], len(delta)))
            context.progress(start + 1, model.n_layers - width + 1, f"flow: {component} {source}")
    schema = dict.fromkeys(columns, pl.Float64) | {"component": pl.String, "source": pl.String, "window_start": pl.Int64, "n": pl.Int64}
    return pl.DataFrame([dict(zip(columns, map(_plain, row))) for row in rows], schema=schema).with_columns(window=pl.lit(width))


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value


# ---- steps B and C: heads


def _effects(model, config: Config, context: Context, items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Importances of every head for a_m and a_c per item, by patching and by gradient: two arrays [n, layers, H, 2] float32."""
    from workbench.patching import VARIANTS, attribution

    patched, sloped = [], []
    for start in range(0, len(items), 32):
        chunk = items[start : start + 32]
        ids, donors, tokens = ([getattr(item, name) for item in chunk] for name in ("conflict", "corrupt", "tokens"))
        options = {"edits": context.edits, "check": context.check}

        def compute() -> dict[str, np.ndarray]:
            lost = -VARIANTS[config.variant](model, ids, donors, tokens, **options).change(config.metric)  # noqa: B023
            slope = -attribution(model, ids, donors, tokens, metric=config.metric, **options)  # noqa: B023
            context.count(prompts=2 * len(ids), tokens=2 * sum(map(len, ids)), forwards=2)  # noqa: B023
            shape = (len(ids), model.n_layers, model.n_heads, 2)  # noqa: B023
            return {"patched": lost.reshape(shape).numpy(), "gradient": slope.reshape(shape).numpy()}

        found = context.part(f"heads {start}", compute)
        patched.append(found["patched"])
        sloped.append(found["gradient"])
        context.progress(min(start + 32, len(items)), len(items), "heads")
    return np.concatenate(patched), np.concatenate(sloped)


def _head_table(model, config: Config, context: Context, effects: np.ndarray, gradient: np.ndarray) -> pl.DataFrame:
    """One row per head: mean importances, the score I_memory − I_context with its interval, and the role that it supports."""
    score = effects[..., 0] - effects[..., 1]
    mean, slope, middle = effects.mean(0, dtype=np.float64), gradient.mean(0, dtype=np.float64), score.mean(0, dtype=np.float64)
    low, high = bootstrap_mean(score, draws=config.draws, rng=context.rng("head scores"))
    sides = [bootstrap_mean(effects[..., k], draws=config.draws, rng=context.rng(f"heads {k}")) for k in (0, 1)]
    floor = NOISE * max(float(np.abs(mean).max()), 1e-12)
    side = np.where((middle > floor) & (mean[..., 0] > floor), "memory", np.where((middle < -floor) & (mean[..., 1] > floor), "context", "none"))
    sure = np.where(side == "memory", low > 0, high < 0) & (side != "none")
    layer, head = np.divmod(np.arange(score[0].size), model.n_heads)
    return pl.DataFrame({
        "layer": layer, "head": head, "memory_importance": mean[..., 0].ravel(), "context_importance": mean[..., 1].ravel(),
        "gradient_memory": slope[..., 0].ravel(), "gradient_context": slope[..., 1].ravel(), "role": np.where(sure, side, "none").ravel(),
        "score": middle.ravel(), "ci_low": low.ravel(), "ci_high": high.ravel(), "memory_low": sides[0][0].ravel(), "memory_high": sides[0][1].ravel(),
        "context_low": sides[1][0].ravel(), "context_high": sides[1][1].ravel(), "side": side.ravel(), "n": np.full(score[0].size, len(score)),
    })  # fmt: skip


# ---- step D: pruning


def _prune(model, config: Config, context: Context, split: dict[str, list[Item]], heads: pl.DataFrame):
    """Prune the best k heads of each side and random ones: tables `pruning` (test), `validation`, `answers`; the summary; the chosen heads."""
    from workbench.intervene import mean_head_outputs
    from workbench.pruning import ablation, negative_log_likelihood, random_heads

    mean = None
    if config.ablation == "mean":
        mean = mean_head_outputs(model, [item.conflict for item in split["validation"]])
    neutral = _neutral(model, config, split["test"])
    half = heads.height // 2  # beyond it there are too few other heads for a random control
    best = {role: _ranked(heads, role)[:half] for role in ROLES}
    seen: dict[tuple, pl.DataFrame] = {}

    def measure(name: str, chosen: tuple) -> pl.DataFrame:
        """One row per item of the split: its answer and what kind it is, p(a_m), p(a_c), the clean answer; and the neutral text's NLL."""
        key = (name, tuple(sorted(chosen)))
        if key not in seen:
            edits = ablation(key[1], config.ablation, mean)
            label = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
            seen[key] = context.part(f"prune {label}", lambda: {"answers": _answers(model, config, context, split[name], edits)})["answers"]
            if name == "test":
                nll = context.part(f"neutral {label}", lambda: dict(zip(("nll", "count"), negative_log_likelihood(model, neutral, edits=(*context.edits, *edits), check=context.check))))
                seen[key] = seen[key].with_columns(perplexity=pl.lit(float(np.exp(nll["nll"].sum() / max(1, nll["count"].sum())))))
        return seen[key]

    rows = []

    def add(role, name, k, chosen, kind, draw):
        found = measure(name, chosen)
        n = found.height
        row = {"role": role, "split": name, "k": k, "n_heads": len(chosen), "heads": kind, "draw": draw, "ablation": config.ablation, "n": n}
        for side in ("memory", "context", "other"):
            hits = int((found["kind"] == side).sum())
            row[f"{side}_rate"], (row[f"{side}_low"], row[f"{side}_high"]) = hits / n, wilson(hits, n)
        hits = int(found["clean_right"].sum())
        row |= {"clean_accuracy": hits / n, "p_memory": found["p_memory"].mean(), "p_context": found["p_context"].mean()}
        row["clean_low"], row["clean_high"] = wilson(hits, n)
        rows.append(row | {"perplexity": found["perplexity"][0] if name == "test" else None, "which": " ".join(f"{l}.{h}" for l, h in chosen)})
        return row

    plan = [(role, k) for role in ROLES for k in sorted(set(config.prune_k)) if best[role]]
    before = measure("test", ())
    picks, summary = {role: () for role in ROLES}, _baseline(before, context)
    for role in ROLES:
        for name in ("validation", "test"):
            add(role, name, 0, (), "top", 0)
    for number, (role, k) in enumerate(plan):
        context.progress(number, len(plan), f"pruning {role} heads")
        for name in ("validation", "test"):
            add(role, name, k, best[role][:k], "top", 0)
        for draw in range(config.random_draws):
            others = random_heads(best[role][:k], model.n_heads, context.rng(f"random {role} {k} {draw}"), n_layers=model.n_layers)
            add(role, "test", k, others, "random", draw)
    context.progress(len(plan), max(1, len(plan)), "pruning")
    for role, wanted in ROLES.items():
        if not best[role]:
            context.warn(f"No head pulls towards {role} on the find split; there is nothing to prune on that side.")
            summary[f"{role}_pruned_k"] = None
            continue
        k = _choose(config, context, role, wanted, [row for row in rows if row["split"] == "validation" and row["role"] == role])
        picks[role] = best[role][:k]
        randoms = [random_heads(picks[role], model.n_heads, context.rng(f"random {role} {k} {draw}"), n_layers=model.n_layers) for draw in range(config.random_draws)]
        summary |= _gain(context, config, role, wanted, k, before, measure("test", picks[role]), [measure("test", r) for r in randoms])
    for row in rows:
        row["chosen"] = row["heads"] == "top" and row["k"] > 0 and row["k"] == summary.get(f"{row['role']}_pruned_k")
    pruned = pl.DataFrame(rows, infer_schema_length=None)
    answers = [
        before.select("row", "subject", "answer", "distractor", before="text", before_kind="kind").with_columns(
            measure("test", picks[role]).select(after="text", after_kind="kind"), role=pl.lit(role), k=pl.lit(summary[f"{role}_pruned_k"] or 0, pl.Int64)
        )
        for role in ROLES
    ]
    tables = {"pruning": pruned.filter(pl.col("split") == "test").drop("split"), "validation": pruned.filter(pl.col("split") == "validation").drop("split", "perplexity"),
              "answers": pl.concat(answers)}  # fmt: skip
    return tables, summary, picks


def _ranked(heads: pl.DataFrame, role: str) -> tuple[tuple[int, int], ...]:
    """Heads on one side of zero, the strongest first."""
    found = heads.filter(pl.col("side") == role).sort(pl.col("score").abs(), descending=True)
    return tuple(zip(found["layer"].to_list(), found["head"].to_list()))


def _neutral(model, config: Config, items: Sequence[Item]) -> list[list[int]]:
    """Token ids of the texts whose perplexity is watched: at most 64 texts of 256 tokens."""
    from workbench import organisms

    if config.neutral == "auto" and not model.name.startswith("organism"):
        texts = [item.clean + model.encode(" " + item.answers[0], bos=False) for item in items]
    else:
        path = organisms.data("texts") if config.neutral == "auto" else config.neutral
        texts = [model.encode(text) for text in read_table(path, required=("text",), what="neutral text")["text"].to_list()[:64]]
    texts = [ids[: min(256, model.context_length or 256)] for ids in texts if len(ids) > 1][:64]
    if not texts:
        raise InputError("The neutral text has no line of at least two tokens.")
    return texts


def _answers(model, config: Config, context: Context, items: Sequence[Item], edits) -> pl.DataFrame:
    """Greedy answers to the conflict prompts under edits, what they follow, and whether the clean prompts are still answered."""
    from workbench.spans import first_mention

    texts = _generate(model, config, context, [item.conflict for item in items], edits)
    p = _probabilities(model, context, items, lambda part: edits)
    kinds = [first_mention(text, {"memory": item.answers, "context": [item.distractor]}, "other") for item, text in zip(items, texts)]
    return pl.DataFrame({
        "row": [item.row for item in items], "subject": [item.subject for item in items], "answer": [item.answers[0] for item in items],
        "distractor": [item.distractor for item in items], "text": texts, "kind": kinds, "p_memory": p[:, 0], "p_context": p[:, 1],
        "clean_right": _clean_right(model, config, context, items, edits),
    })  # fmt: skip


def _choose(config: Config, context: Context, role: str, wanted: str, rows: list[dict]) -> int:
    """k by validation: the highest rate, then the highest probability, of the wanted answer; the smallest k among equals."""
    base = next(row for row in rows if row["k"] == 0)
    rows = [row for row in rows if row["k"]]
    kept = [row for row in rows if row["clean_accuracy"] >= base["clean_accuracy"] - config.max_clean_drop - 1e-9]
    if not kept:
        context.warn(f"Every number of pruned {role} heads costs more than {config.max_clean_drop:.0%} of clean accuracy on validation; k was chosen without that limit.")
    return max(kept or rows, key=lambda row: (row[f"{wanted}_rate"], row[f"p_{wanted}"], -row["k"]))["k"]


def _baseline(before: pl.DataFrame, context: Context) -> dict:
    n, out = before.height, {}
    for side in ("memory", "context", "other"):
        hits = int((before["kind"] == side).sum())
        low, high = wilson(hits, n)
        out[f"{side}_rate"] = {"value": hits / n, "low": low, "high": high, "n": n}
        if hits == n and side != "other":
            context.warn(f"Every test item already follows {side}; pruning cannot raise that side.")
        if hits == n and side == "other":
            context.warn("No test item is answered with either side; the rates say nothing about memory against context.")
    return out


def _gain(context: Context, config: Config, role: str, wanted: str, k: int, before: pl.DataFrame, top: pl.DataFrame, randoms: list[pl.DataFrame]) -> dict:
    """What the chosen k does on test, against the unpruned model and against random heads of the same layers."""

    def follows(found: pl.DataFrame) -> np.ndarray:
        return (found["kind"] == wanted).to_numpy().astype(float)

    def right(found: pl.DataFrame) -> np.ndarray:
        return found["clean_right"].to_numpy().astype(float)

    options = {"draws": config.draws, "rng": context.rng(f"gain {role}")}
    control = np.mean([follows(found) for found in randoms], axis=0)
    name = f"{role}_pruned"
    return {
        f"{name}_k": k,
        f"{name}_{wanted}_rate": mean_of(follows(top), **options).as_dict(),
        f"{name}_gain": paired_difference(follows(top), follows(before), **options).as_dict(),
        f"{name}_gain_over_random": paired_difference(follows(top), control, **options).as_dict(),
        f"{name}_clean_change": paired_difference(right(top), right(before), **options).as_dict(),
        f"{name}_perplexity_ratio": float(top["perplexity"][0] / before["perplexity"][0]),
        f"{name}_random_perplexity_ratio": float(np.mean([found["perplexity"][0] for found in randoms]) / before["perplexity"][0]),
    }


def _save_masks(config: Config, context: Context, chosen: dict[str, tuple]) -> None:
    """Write the chosen heads into the run folder, for `--edit` and the explorer."""
    from workbench.files import atomic
    from workbench.intervene import save_heads

    if context.out is None:
        return
    how = "uniform" if config.ablation == "uniform" else "zero"
    if config.ablation == "mean":
        context.warn("A head mask cannot hold means: pruned_heads.json switches its heads to zero, not to their mean.")
    for name, role in (("pruned_heads", config.mask), ("pruned_heads_memory", "memory"), ("pruned_heads_context", "context")):
        with atomic(context.out / f"{name}.json") as temporary:
            save_heads(temporary, chosen[role], how=how, note=f"{role} heads found by knowledge-conflict; without them the model should follow {ROLES[role]}")
