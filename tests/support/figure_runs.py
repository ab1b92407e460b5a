"""Synthetic runs with the tables that probes write, for the tests of the figures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from probes.branching_factor.prefix_tree import build


@dataclass
class FakeRun:
    """What a figure reads of a run."""

    probe: str
    frames: dict[str, pl.DataFrame]
    info: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.info.get("id", "fake")

    @property
    def tables(self) -> list[str]:
        return list(self.frames)

    def table(self, name: str) -> pl.DataFrame:
        return self.frames[name]


def about(probe: str, *, layers=8, heads=8, kv_heads=4, name="organism", **config) -> dict:
    return {
        "id": f"{probe}-0123456789ab",
        "probe": probe,
        "config": config,
        "model": {
            "name": name,
            "revision": "main",
            "fingerprint": "a1b2c3d4e5f60718",
            "architecture": "LlamaForCausalLM",
            "layers": layers,
            "heads": heads,
            "kv_heads": kv_heads,
            "width": heads * 16,
            "dtype": "float32",
            "device": "cpu",
        },
        "data": {"path": "needles.jsonl", "fingerprint": "00ff00ff00ff00ff", "rows": 8},
        "seed": 7,
    }


def retrieval(*, layers=8, heads=8, kv_heads=4, name="organism", seed=0, ablations=("uniform", "zero")) -> FakeRun:
    rng = np.random.default_rng(seed)
    layer, head = (a.ravel() for a in np.indices((layers, heads)))
    score = np.clip(rng.beta(0.25, 4, layers * heads), 0, 1)
    strong = rng.choice(len(score), max(1, len(score) // 16), replace=False)
    score[strong] = rng.uniform(0.3, 0.95, len(strong))
    width = 0.02 + 0.1 * np.sqrt(score * (1 - score))
    frame = pl.DataFrame(
        {
            "layer": layer,
            "head": head,
            "score": score,
            "ci_low": np.clip(score - width, 0, None),
            "ci_high": score + width,
            "activation_frequency": np.clip(score * 1.4 + rng.normal(0, 0.05, len(score)), 0, 1),
            "n_trials": 240,
            "n_needles": 4,
            "is_retrieval": score > 0.1,
        }
    )
    lengths, depths = [128, 256, 512, 1024, 2048, 4096], [0, 11, 22, 33, 44, 56, 67, 78, 89, 100]
    trials, masked = [], []
    for length in lengths:
        for depth in depths:
            for needle in range(4):
                recall = float(np.clip(1 - 0.15 * (length > 1000) * abs(depth - 50) / 50 + rng.normal(0, 0.05), 0, 1))
                trials.append((len(trials), needle, length, depth, recall, recall > 0.5, "the answer"))
                masked.append((10, "top", 0, "uniform", length, depth, recall * rng.uniform(0, 0.4)))
                masked.append((10, "random", 0, "uniform", length, depth, recall * rng.uniform(0.8, 1)))
    masking, means = [], [(0, "none", 0.95, 0.7, 0.99, 4, 60, 1)]
    for k in (1, 2, 5, 10, 20):
        top, random = float(0.95 * np.exp(-k / 5)), 0.95 - 0.01 * k
        means.append((k, "top", top, 0.8 * top, min(1.0, top + 0.1), 4, 60, 1))
        means.append((k, "random", random, random - 0.1, min(1.0, random + 0.04), 4, 60, 5))
        means.append((k, "top_minus_random", top - random, top - random - 0.1, top - random + 0.1, 4, 60, 5))
    for ablation in ablations:
        for k in (0, 1, 2, 5, 10, 20):
            recall = float(0.95 * np.exp(-k / 5))
            masking.append((k, "top", 0, ablation, recall, recall - 0.04, recall + 0.04, 60))
            for d in range(5 if k else 0):
                recall = float(0.95 - 0.01 * k + rng.normal(0, 0.03))
                masking.append((k, "random", d, ablation, recall, recall - 0.04, recall + 0.04, 60))
    frames = {
        "heads": frame,
        "trials": pl.DataFrame(
            trials, schema=["trial", "needle", "length", "depth", "recall", "kept", "response"], orient="row"
        ),
        "masking": pl.DataFrame(
            masking, schema=["k", "heads", "draw", "ablation", "recall", "ci_low", "ci_high", "n"], orient="row"
        ),
        "masked_recall": pl.DataFrame(
            means, schema=["k", "heads", "recall", "ci_low", "ci_high", "n", "rows", "draws"], orient="row"
        ),
        "masked_trials": pl.DataFrame(
            masked, schema=["k", "heads", "draw", "ablation", "length", "depth", "recall"], orient="row"
        ),
        "enough": pl.DataFrame(
            [
                {
                    "trials": t,
                    "top": k,
                    "overlap": 1 - 0.4 / t**0.5 / k**0.1,
                    "ci_low": 1 - 0.6 / t**0.5,
                    "ci_high": 1.0,
                }
                for k in (5, 10, 20)
                for t in (1, 2, 5, 10, 20, 50)
            ]
        ),
    }
    return FakeRun(
        "retrieval-heads",
        frames,
        about(
            "retrieval-heads",
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            name=name,
            threshold=0.1,
            resample="needles",
        ),
    )


def conflict(*, layers=8, heads=8, kv_heads=8, name="organism", seed=1) -> FakeRun:
    rng = np.random.default_rng(seed)
    layer, head = (a.ravel() for a in np.indices((layers, heads)))
    n = layers * heads
    memory, context = rng.normal(0, 0.03, n), rng.normal(0, 0.03, n)
    order = rng.permutation(n)
    many = max(1, n // 16)
    memory[order[:many]] += rng.uniform(0.2, 0.8, many)
    context[order[-many:]] += rng.uniform(0.2, 0.8, many)
    role = np.array(["none"] * n, dtype=object)
    role[order[:many]], role[order[-many:]] = "memory", "context"
    frame = pl.DataFrame(
        {
            "layer": layer,
            "head": head,
            "memory_importance": memory,
            "context_importance": context,
            "gradient_memory": memory * 0.9 + rng.normal(0, 0.02, n),
            "gradient_context": context * 0.8 + rng.normal(0, 0.02, n),
            "role": role.tolist(),
            "ci_low": memory - context - 0.05,
            "ci_high": memory - context + 0.05,
        }
    )
    flow = [
        {
            "component": component,
            "window_start": w,
            "source": source,
            "delta_memory": -0.3 * float(np.exp(-((w - 5) ** 2) / 3)),
            "delta_context": -0.5 * float(np.exp(-((w - 6) ** 2) / 4)),
        }
        for component, source in (
            ("attention", None),
            ("mlp", None),
            ("knockout", "subject"),
            ("knockout", "attribute"),
        )
        for w in range(layers)
    ]
    pruning = []
    for r in ("memory", "context"):
        for k in (0, 1, 3, 5, 7, 9, 15):
            for group, draws in (("top", 1), ("random", 5)):
                for draw in range(draws if k else int(group == "top")):
                    shift = (0.6 * (1 - np.exp(-k / 4)) if group == "top" else 0.02 * k / 5) * (
                        1 if r == "context" else -1
                    )
                    m = float(np.clip(0.35 + shift + rng.normal(0, 0.02), 0, 1))
                    other = 0.05 + 0.004 * k
                    pruning.append(
                        {
                            "role": r,
                            "k": k,
                            "heads": group,
                            "draw": draw,
                            "ablation": "zero",
                            "memory_rate": m,
                            "context_rate": max(0.0, 1 - other - m),
                            "other_rate": other,
                            "memory_low": m - 0.05,
                            "memory_high": m + 0.05,
                            "context_low": 0.95 - other - m,
                            "context_high": 1.05 - other - m,
                            "other_low": other - 0.04,
                            "other_high": other + 0.04,
                            "clean_accuracy": 0.98 - 0.003 * k,
                            "perplexity": 6 + 0.05 * k,
                        }
                    )
    answers = [
        {
            "subject": f"Person {i} of the <long> village name",
            "answer": "amber",
            "distractor": "cobalt",
            "before": "cobalt. The",
            "after": "amber and then" if i % 2 else "cobalt. The",
            "role": "context",
            "k": 5,
        }
        for i in range(20)
    ]
    groups = [
        {
            "role": r,
            "k": k,
            "heads": group,
            "column": column,
            "group": kind,
            "n": 30,
            "memory_rate": m,
            "context_rate": 0.95 - m,
            "memory_low": m - 0.04,
            "memory_high": m + 0.04,
            "context_low": 0.9 - m,
            "context_high": 0.99 - m,
        }
        for r in ("memory", "context")
        for column, kind in (("source", "reliable"), ("source", "unmarked"), ("relation", "home"))
        for k, group, m in ((0, "top", 0.3), (5, "random", 0.35), (5, "top", 0.8 if r == "context" else 0.1))
    ]
    patching = [
        {
            "component": component,
            "layer": l,
            "position": position,
            "score": score,
            "p_adjusted": 0.001 if abs(score) > 0.3 else 0.4,
            "shown": abs(score) > 0.3,
            "n": 30,
            "rows": 41,
        }
        for component in ("residual", "attention", "mlp")
        for l in range(layers)
        for position, at in (("subject_context", 0), ("attribute_context", 2), ("subject_question", 4), ("last", 6))
        for score in (float(np.exp(-((l - at) ** 2) / 4) * (-1 if at == 2 else 1)),)
    ]
    strong = [(int(i) // heads, int(i) % heads) for i in order[:6]]
    paths = [
        {
            "sender_layer": a,
            "sender_head": b,
            "receiver_layer": c,
            "receiver_head": d,
            "through": side,
            "sender": "top" if number % 2 else "random",
            "score": score,
            "p_adjusted": 0.01 if abs(score) > 0.2 else 0.7,
            "shown": abs(score) > 0.2,
            "n": 12,
            "rows": 16,
        }
        for number, (a, b) in enumerate(strong)
        for c, d in strong
        for side in ("q", "k", "v")
        for score in (float(rng.normal(0, 0.15)),)
        if a < c
    ]
    frames = {
        "heads": frame,
        "patching": pl.DataFrame(patching),
        **({"paths": pl.DataFrame(paths)} if paths else {}),  # a model of one layer has none
        "flow": pl.DataFrame(flow, infer_schema_length=None),
        "pruning": pl.DataFrame(pruning),
        "answers": pl.DataFrame(answers),
        "groups": pl.DataFrame(groups),
        "inputs": pl.DataFrame({"row": [0, 1, 2], "ids": [[1], [1], [1]], "split": ["find", "test", "test"]}),
    }
    return FakeRun(
        "knowledge-conflict",
        frames,
        about(
            "knowledge-conflict", layers=layers, heads=heads, kv_heads=kv_heads, name=name, variant="direct", window=1
        ),
    )


def depth(
    *, layers=12, concepts=("colour of things", "kind of animal", "odd one out"), conditions=("clean", "noise"), seed=2
) -> FakeRun:
    rng = np.random.default_rng(seed)
    rows, points, causal, path = [], [], [], []
    for c, condition in enumerate(conditions):
        for d, concept in enumerate(concepts):
            centre = layers * (0.15 + 0.2 * (d % 4)) + c
            accuracy = 0.5 + (0.48 - 0.04 * (d % 5)) / (1 + np.exp(-(np.arange(layers) - centre) * 1.2))
            accuracy = np.clip(accuracy + rng.normal(0, 0.008, layers), 0, 1)
            for layer, a in enumerate(accuracy):
                control = 0.5 + float(rng.normal(0, 0.01))
                rows.append(
                    {
                        "dataset": concept,
                        "condition": condition,
                        "layer": layer,
                        "accuracy": float(a),
                        "f1": float(a) - 0.02,
                        "auc": min(1.0, float(a) + 0.02),
                        "ci_low": float(a) - 0.03,
                        "ci_high": min(1.0, float(a) + 0.03),
                        "control_accuracy": control,
                        "selectivity": float(a) - control,
                        "n_test": 200,
                    }
                )
            beta = accuracy[1:] / accuracy[:-1]
            jump = np.flatnonzero(beta >= 1.1)
            stable = next((i for i in range(1, layers) if (np.abs(beta[i - 1 :] - 1) < 0.03).all()), None)
            point = {
                "jump": (jump[0] + 1) / layers if len(jump) else None,
                "converge_stable": stable / layers if stable else None,
                "converge_literal": (layers - 1) / layers,
                "converge_after_jump": stable / layers if stable else None,
                "comprehension": float(np.argmax(accuracy > 0.7)) / layers,
            }
            points.append(
                {
                    "dataset": concept,
                    "condition": condition,
                    **point,
                    **{f"{k}_low": None if v is None else max(0, v - 0.08) for k, v in point.items()},
                    **{f"{k}_high": None if v is None else min(1, v + 0.08) for k, v in point.items()},
                    "peak_accuracy": float(accuracy.max()),
                    "peak_layer": int(accuracy.argmax()),
                    "n_test": 200,
                }
            )
    for concept in concepts:
        causal.append(
            {
                "dataset": concept,
                "condition": "clean",
                "layer": -1,
                "direction": "none",
                "draw": 0,
                "separation": 4.0,
                "separation_low": 3.5,
                "separation_high": 4.5,
                "answer_accuracy": 0.9,
                "n": 100,
            }
        )
        for layer in range(layers):
            for direction, draws in (("probe", 1), ("random", 5)):
                for draw in range(draws):
                    value = (
                        4 - (3 * np.exp(-((layer - 6) ** 2) / 8) if direction == "probe" else 0.1) + rng.normal(0, 0.1)
                    )
                    causal.append(
                        {
                            "dataset": concept,
                            "condition": "clean",
                            "layer": layer,
                            "direction": direction,
                            "draw": draw,
                            "separation": float(value),
                            "separation_low": float(value) - 0.4,
                            "separation_high": float(value) + 0.4,
                            "answer_accuracy": 0.9,
                            "n": 100,
                        }
                    )
        path += [
            {
                "dataset": concept,
                "condition": "clean",
                "c": c,
                "layer": layer,
                "accuracy": 0.9 - 0.02 * abs(np.log10(c)),
            }
            for c in (0.01, 0.1, 1.0, 10.0)
            for layer in range(layers)
        ]
    return FakeRun(
        "concept-depth",
        {
            "layers": pl.DataFrame(rows),
            "depth": pl.DataFrame(points, infer_schema_length=None),
            "causal": pl.DataFrame(causal),
            "path": pl.DataFrame(path),
            "steering": pl.DataFrame(
                {
                    "dataset": concept,
                    "condition": "clean",
                    "layer": layer,
                    "strength": 2.0,
                    "direction": direction,
                    "draw": draw,
                    "log_odds": effect,
                    "log_odds_low": effect - 0.3,
                    "log_odds_high": effect + 0.3,
                    "n": 100,
                }
                for concept in concepts
                for layer in range(layers)
                for direction, draws in (("probe", 1), ("random", 5))
                for draw in range(draws)
                for effect in ((4 * np.exp(-((layer - 6) ** 2) / 8),) if direction == "probe" else (0.2 * draw - 0.4,))
            ),
            "numbers": pl.DataFrame(
                {
                    "dataset": name,
                    "condition": "clean",
                    "layer": layer,
                    "r2": r2,
                    "r2_low": r2 - 0.1,
                    "r2_high": min(1.0, r2 + 0.05),
                    "control_r2": -0.01,
                    "control_low": -0.06,
                    "control_high": 0.03,
                    "n": 40,
                    "n_test": 200,
                }
                for k, name in enumerate(("how many", "which year"))
                for layer in range(layers)
                for r2 in (0.9 / (1 + np.exp(-(layer - layers * (0.3 + 0.3 * k)))),)
            ),
            "transfer": pl.DataFrame(
                {
                    "train": train,
                    "test": test,
                    "layer": layer,
                    "picked": layer == layers // 2,
                    "auc": 0.5 + 0.4 * (i + j == 1),
                    "above_chance": i + j == 1,
                    "n": 100,
                }
                for i, train in enumerate(concepts)
                for j, test in enumerate(concepts)
                for layer in range(layers)
                if i != j
            ),
        },
        about("concept-depth", layers=layers, site="mlp_in"),
    )


def dimension_rows(layers, steps) -> pl.DataFrame:
    """The table `dimension` of a run of geometry: a hump over layers, below that of Gaussian states."""
    rows = []
    for step in steps or (None,):
        for layer in range(layers):
            row = {"checkpoint": f"step{step}" if step is not None else "model", "step": step, "layer": layer}
            row |= {"site": "final_norm" if layer == layers - 1 else f"resid_post.{layer}"}
            for name, high in (("two_nn", 12.0), ("mle", 10.0)):
                value = high + 6 * np.sin(np.pi * layer / max(layers - 1, 1))
                row |= {name: value, f"{name}_low": value - 2, f"{name}_high": value + 2.5, f"{name}_half": value - 1}
                row |= {f"{name}_null": 1.5 * value, f"{name}_null_low": 1.4 * value, f"{name}_null_high": 1.6 * value}
            rows.append(row | {"k": 20, "n": 1000, "duplicates": 3, "d": 64})
    return pl.DataFrame(rows, schema_overrides={"step": pl.Int64})


def similarity_rows(layers, steps) -> pl.DataFrame:
    """The table `similarity` of a run of geometry: neighbours are alike, what is far apart is as texts in another
    order are."""
    names = [f"step{step}" for step in steps] or ["model"]
    pairs = [(names[t], names[t], a, b) for t in range(len(names)) for b in range(layers) for a in range(b)]
    pairs += [(names[a], names[b], layers - 1, layers - 1) for b in range(len(names)) for a in range(b)]
    rows = []
    for first, second, a, b in pairs:
        apart = b - a if first == second else names.index(second) - names.index(first)
        value = max(0.97 - 0.14 * apart, 0.01)
        row = {"checkpoint_a": first, "checkpoint_b": second, "layer_a": a, "layer_b": b, "value": value}
        row |= {"step_a": int(first[4:]), "step_b": int(second[4:])} if steps else {"step_a": None, "step_b": None}
        row |= {
            "low": value - 0.02,
            "high": min(value + 0.02, 0.999),
            "null": 0.0,
            "null_low": -0.03,
            "null_high": 0.03,
        }
        rows.append(row | {"n": 1000})
    schema = {"checkpoint_a": pl.String, "checkpoint_b": pl.String, "layer_a": pl.Int64, "layer_b": pl.Int64}
    more = {"value": pl.Float64, "step_a": pl.Int64, "step_b": pl.Int64} | dict.fromkeys(("low", "high"), pl.Float64)
    more |= dict.fromkeys(("null", "null_low", "null_high"), pl.Float64) | {"n": pl.Int64}
    return pl.DataFrame(rows, schema=schema | more)


def course_rows(layers, steps, measures) -> pl.DataFrame:
    """A table of `measures` {column: height} with their ends, falling over layers."""
    rows = []
    for step in steps or (None,):
        for layer in range(layers):
            row = {"checkpoint": f"step{step}" if step is not None else "model", "step": step, "layer": layer}
            row |= {"site": "final_norm" if layer == layers - 1 else f"resid_post.{layer}", "n": 1000}
            for number, (name, height) in enumerate(measures.items()):
                value = height * (1 - 0.02 * layer / (number + 1))
                row |= {name: value, f"{name}_low": value - 0.02, f"{name}_high": value + 0.02}
            rows.append(row)
    return pl.DataFrame(rows, schema_overrides={"step": pl.Int64})


def geometry(
    *, layers=8, steps=(0, 16, 64, 128, 256, 512, 1000, 2000, 3000, 4000, 6000, 8000), width=64, seed=3
) -> FakeRun:
    rng = np.random.default_rng(seed)
    straightening = {"from_first": 4, "from_first_shuffled": 1} if layers > 1 else {}
    rows, spectrum = [], []
    for t, step in enumerate(steps or (None,)):
        course = 30 - 15 * np.exp(-((t - 2) ** 2) / 2) + 2 * min(t, 8) - 2 * max(0, t - 8)
        for layer in range(layers):
            rankme = float(course * (0.6 + 0.4 * layer / max(layers - 1, 1)) + rng.normal(0, 0.3))
            alpha = 2.0 - rankme / 40
            name = f"step{step}" if step is not None else None
            rows.append(
                {
                    "checkpoint": name,
                    "step": step,
                    "layer": layer,
                    "rankme": rankme,
                    "rankme_singular": rankme * 1.6,
                    "alpha": alpha,
                    "alpha_intercept": 0.1,
                    "alpha_r2": 0.98,
                    "n": 2000,
                    "d": width,
                    "ci_low": rankme - 0.8,
                    "ci_high": rankme + 0.8,
                    "site": "final_norm" if layer == layers - 1 else f"resid_post.{layer}",
                    "rankme_null": 62.1,
                    "alpha_null": 0.21,
                    "rankme_inf": rankme + 2,
                    "rankme_inf_low": rankme + 1,
                    "rankme_inf_high": rankme + 3.5,
                }
            )
            value = np.arange(1, width + 1.0) ** -alpha * np.exp(rng.normal(0, 0.03, width))
            spectrum += [
                {"checkpoint": name or "model", "layer": layer, "rank": r + 1, "eigenvalue": float(v)}
                for r, v in enumerate(value)
            ]
    n = 300
    centre = rng.integers(0, 3, n)
    frames = {
        "layers": pl.DataFrame(rows),
        "spectrum": pl.DataFrame(spectrum),
        "map": pl.concat(
            [
                pl.DataFrame(
                    {
                        "method": m,
                        "row": np.arange(n),
                        "x": rng.normal(0, 1, n) + 3 * centre,
                        "y": rng.normal(0, 1, n) - 2 * (centre == 1),
                        "colour": [("fact", "story <with> markup", "list")[c] for c in centre],
                    }
                )
                for m in ("pca", "umap")
            ]
        ),
        "ablation": pl.DataFrame(
            [
                {
                    "checkpoint": "model",
                    "k": k,
                    "directions": how,
                    "draw": draw,
                    "loss": loss + 0.1 * draw,
                    "ci_low": loss - 0.1,
                    "ci_high": loss + 0.1,
                    "draws_low": loss + 0.05 if "random" in how else None,
                    "draws_high": loss + 0.35 if "random" in how else None,
                    "accuracy": None,
                    "n": 64,
                }
                for k in (1, 5, 10, 20, 50)
                for how, loss in (
                    ("remove", 3 + 0.02 * k),
                    ("keep", 3 + 2 / k),
                    ("remove random", 3 + 0.005 * k),
                    ("keep random", 5.0),
                )
                for draw in range(5 if "random" in how else 1)
            ]
            + [
                {
                    "checkpoint": "model",
                    "k": 0,
                    "directions": "none",
                    "draw": 0,
                    "loss": 2.8,
                    "ci_low": 2.7,
                    "ci_high": 2.9,
                    "accuracy": None,
                    "n": 64,
                }
            ]
        ),
        "dimension": dimension_rows(layers, steps),
        "similarity": similarity_rows(layers, steps),
        "cosine": course_rows(layers, steps, {"cosine": 0.6, "cosine_null": 0.0, "centred": 0.01, "centred_null": 0.0}),
        "curvature": course_rows(
            layers, steps, {"curvature": 100, "shuffled_tokens": 112, "shuffled_states": 121} | straightening
        ),
        "curve": pl.DataFrame(
            [
                {"checkpoint": rows[-1]["checkpoint"] or "model", "layer": layer, "n": m}
                | {"rankme": rows[layer - layers]["rankme"] * (1 - 60 / m + 60 / 2000)}
                for layer in range(layers)
                for m in (250, 500, 1000, 2000)
            ]
        ),
        "correlation": pl.DataFrame(
            [
                {
                    "measure": m,
                    "against": a,
                    "method": how,
                    "value": v,
                    "low": v - 0.3,
                    "high": min(1.0, v + 0.2),
                    "n": 12,
                }
                for m, v in (("rankme", 0.5), ("alpha", -0.4))
                for a in ("loss", "memorisation")
                for how in ("pearson", "spearman", "spearman of differences")
            ]
        ),
    }
    if len(steps) > 1:
        frames["phases"] = pl.DataFrame(
            {
                "phase": ["warm-up", "entropy-seeking", "compression-seeking"],
                "start_step": [steps[0], steps[2], steps[8]],
                "end_step": [steps[2], steps[8], steps[-1]],
            }
        )
        late = np.arange(len(steps))
        frames["checkpoints"] = pl.DataFrame(
            {
                "checkpoint": [f"step{s}" for s in steps],
                "step": steps,
                "loss": 6 * np.exp(-late / 4) + 2,
                "loss_low": 6 * np.exp(-late / 4) + 1.9,
                "loss_high": 6 * np.exp(-late / 4) + 2.1,
                "memorisation": 0.6 - 0.4 * np.exp(-late / 3),
                "memorisation_low": 0.55 - 0.4 * np.exp(-late / 3),
                "memorisation_high": 0.65 - 0.4 * np.exp(-late / 3),
                "memorisation_of_frequency": 0.3 - 0.1 * np.exp(-late / 3),
                "memorisation_of_frequency_low": 0.26 - 0.1 * np.exp(-late / 3),
                "memorisation_of_frequency_high": 0.34 - 0.1 * np.exp(-late / 3),
            }
        )
    return FakeRun(
        "representation-geometry", frames, about("representation-geometry", layers=layers, fit_range=[3, 40])
    )


def branching(
    *, conditions=("organism", "organism-chat"), prompts=6, samples=30, length=40, seed=4, name="organism"
) -> FakeRun:
    rng = np.random.default_rng(seed)
    words = [
        "The",
        "old",
        "miller",
        "walked",
        "to",
        "a",
        "river",
        "and",
        "saw",
        "light",
        "under",
        "stone",
        "bridge",
        "then",
        "slept",
    ]
    tables: dict[str, list] = {k: [] for k in ("prompts", "positions", "samples", "conditions", "enough")}
    for c, condition in enumerate(conditions):
        base = 6.0 / (1 + 2 * c)
        for t in range(length):
            bf = 1 + base * np.exp(-t / 25)
            tables["positions"].append(
                {
                    "condition": condition,
                    "position": t,
                    "bf_prefix": bf,
                    "bf_window": 1 + base * np.exp(-t / 12),
                    "entropy": np.log(bf),
                    "alive": int(prompts * samples * min(1, 1.4 - t / length)),
                    "ci_low": bf * 0.9,
                    "ci_high": bf * 1.1,
                    "window_low": 0.85 * (1 + base * np.exp(-t / 12)),
                    "window_high": 1.15 * (1 + base * np.exp(-t / 12)),
                }
            )
        for p in range(prompts):
            bf = float(1 + base * rng.uniform(0.4, 1))
            tables["prompts"].append(
                {
                    "condition": condition,
                    "prompt": p,
                    "text": f"Tell the story of the {words[p % 15]} and the <b>long</b> way home, part {p}",
                    "bf": bf,
                    "bf_entropy": bf,
                    "bf_nll": bf * 1.02,
                    "ci_low": bf * 0.9,
                    "ci_high": bf * 1.12,
                    "samples": samples,
                    "mean_length": length * 0.8,
                }
            )
            for m in range(samples):
                ids = (
                    rng.choice(15, size=8, p=rng.dirichlet(np.full(15, 0.3)))
                    if m % 3
                    else np.array([0, 1, 2, 3, 4, m % 5, 6, 7])
                )
                steps = np.abs(rng.normal(1.2 / (1 + c), 0.6, 8))
                tables["samples"].append(
                    {
                        "condition": condition,
                        "prompt": p,
                        "sample": m,
                        "text": " ".join(words[i] for i in ids),
                        "length": 8,
                        "nll": float(steps.mean()),
                        "entropy": float(steps.mean()),
                        "generated_ids": ids.tolist(),
                        "step_entropy": steps.tolist(),
                    }
                )
        tables["conditions"].append(
            {"condition": condition, "bf": 1 + base * 0.7, "ci_low": 1 + base * 0.6, "ci_high": 1 + base * 0.8}
        )
        tables["enough"] += [
            {
                "condition": condition,
                "samples": m,
                "bf": 1 + base * 0.7,
                "sd": 1 / m,
                "ci_low": 1 + base * 0.7 - 1 / m**0.5,
                "ci_high": 1 + base * 0.7 + 1 / m**0.5,
            }
            for m in (1, 2, 5, 10, 20, 30)
        ]
    frames = {k: pl.DataFrame(v) for k, v in tables.items()}
    frames["tree"] = pl.concat(
        [
            build(
                part["generated_ids"].to_list(),
                part["step_entropy"].to_list(),
                text=lambda ids: "".join(" " + words[i] for i in ids),
            ).select(
                pl.lit(c).alias("condition"),
                pl.lit(p, dtype=pl.Int64).alias("row"),
                pl.lit(p, dtype=pl.Int64).alias("prompt"),
                pl.all(),
            )
            for (c, p), part in frames["samples"].group_by("condition", "prompt", maintain_order=True)
        ]
    )
    frames["comparisons"] = pl.DataFrame(
        {
            "a": [conditions[0]],
            "b": [conditions[-1]],
            "ratio": [2.4],
            "ratio_low": [2.0],
            "ratio_high": [2.9],
            "prompts": [prompts],
        }
    )
    frames["complexity"] = pl.DataFrame(
        [
            {"condition": m, "model": m, "level": k, "bf": (4 - 0.4 * k) / (1 + j)}
            for j, m in enumerate(conditions)
            for k in range(-1, 6)
        ]
    )
    frames["impact"] = pl.DataFrame(
        {
            "factor": ["complexity", "model"],
            "impact": [0.6, 1.9],
            "share": [0.24, 0.76],
            "share_low": [0.2, 0.72],
            "share_high": [0.28, 0.8],
        }
    )
    given = (
        [(0, "nothing", 5.0), (0, "opening", 2.2), (0, "own opening", 4.4), (1, "nothing", 1.5), (1, "opening", 1.4)]
        if len(conditions) > 1
        else []
    )
    frames["nudging"] = pl.DataFrame(
        [
            {"model": conditions[m], "given": g, "condition": conditions[m] + ("" if g == "nothing" else f" + {g}")}
            for m, g, _ in given
        ]
        or None
    )
    frames["conditions"] = pl.concat(
        [
            frames["conditions"],
            pl.DataFrame(
                [
                    {"condition": f"{conditions[m]} + {g}", "bf": bf, "ci_low": bf * 0.93, "ci_high": bf * 1.08}
                    for m, g, bf in given
                    if g != "nothing"
                ],
                schema=frames["conditions"].schema,
            ),
        ]
    )
    frames["signature"] = pl.DataFrame(
        [
            {"condition": c}
            | {
                k: v * (1 - 0.3 * j) + w * j
                for k, v, w in (
                    ("entropy_own", 1.4, -0.7),
                    ("entropy_given", 1.5, -0.6),
                    ("nll_given", 1.6, 2.1),
                    ("surprise", 0.1, 2.4),
                )
            }
            for j, c in enumerate(conditions)
        ]
    )
    frames["signature"] = frames["signature"].with_columns(
        *(pl.col(k).sub(0.1).alias(f"{k}_low") for k in ("entropy_own", "entropy_given", "nll_given", "surprise")),
        *(pl.col(k).add(0.1).alias(f"{k}_high") for k in ("entropy_own", "entropy_given", "nll_given", "surprise")),
    )
    frames["verbalised"] = pl.DataFrame(
        {
            "prompt": list(range(prompts)),
            "parse_rate": 0.8,
            "n": 20,
            "distinct_direct": np.linspace(0.2, 0.4, prompts),
            "distinct_verbalised": np.linspace(0.6, 0.9, prompts),
            "effective_stated": 3.2,
        }
    )
    frames["resampling"] = pl.DataFrame(
        [
            {
                "position": t,
                "accuracy": 0.8 - 0.005 * t,
                "baseline": 0.8 + 0.001 * t,
                "ci_low": 0.7 - 0.005 * t,
                "ci_high": 0.88 - 0.005 * t,
                "outputs": 50,
            }
            for t in (0, 5, 10, 20, 40)
        ]
    )
    frames |= _controls(prompts) | _forking(conditions, prompts) | _sentences(prompts)
    frames["openings"] = pl.DataFrame(
        {"opening": ["Sure, here is", "Once upon"], "tokens": [4, 2], "share": [0.4, 0.6], "chosen": [True, False]}
    )
    return FakeRun("branching-factor", frames, about("branching-factor", name=name, unit="sentences"))


def _forking(conditions: tuple[str, ...], prompts: int) -> dict[str, pl.DataFrame]:
    """Tokens at which outputs fork, and some that do not."""
    words = [" wait", " so", " <b>then</b>", "\n\n", " however, as was said before", " the", ".", " of"]
    tokens = [
        {
            "condition": name,
            "token": word,
            "id": i,
            "count": 400 - 30 * i,
            "share": 0.9 - 0.1 * i,
            "ci_low": 0.8 - 0.1 * i,
        }
        | {"ci_high": 0.95 - 0.09 * i, "expected": 0.2, "mean_entropy": 2.0, "forking": i < 5, "prompts": prompts}
        for name in conditions
        for i, word in enumerate(words)
    ]
    rows = [{"condition": name, "forking": 0.2, "entropy_held": 0.71} for name in conditions]
    return {"forking": pl.DataFrame(rows), "forking_tokens": pl.DataFrame(tokens)}


def _sentences(prompts: int) -> dict[str, pl.DataFrame]:
    """Sentences of which the third decides the answer."""
    means = [
        {"sentence": i, "importance": 0.2 + 1.1 * (i == 2), "importance_null": 0.18, "excess": 0.02 + 1.1 * (i == 2)}
        | {"excess_low": 1.1 * (i == 2) - 0.1, "excess_high": 1.1 * (i == 2) + 0.2, "prompts": prompts, "rows": prompts}
        | {"accuracy_change": 0.3 * (i == 2), "change_low": 0.3 * (i == 2) - 0.1, "change_high": 0.3 * (i == 2) + 0.1}
        for i in (None, *range(7))
    ]
    rows = [
        {"prompt": p, "sample": 0, "sentence": i, "p": 0.001 if i == 2 else 0.5, "anchor": i == 2}
        for p in range(prompts)
        for i in range(7)
    ]
    return {"sentence_means": pl.DataFrame(means), "sentence_importance": pl.DataFrame(rows)}


def _controls(prompts: int) -> dict[str, pl.DataFrame]:
    """Random tokens inside an output, and feedback on an answer."""
    rows = [
        {
            "offset": t,
            "inserted": kind,
            "tokens": 30 * (kind != "nothing"),
            "bf": bf - t / 60,
            "ci_low": bf - t / 60 - 0.3,
        }
        | {"ci_high": bf - t / 60 + 0.4, "difference": None if kind == "own" else bf - 4}
        | {
            "difference_low": None if kind == "own" else bf - 4.2,
            "difference_high": None if kind == "own" else bf - 3.7,
        }
        for t in (0, 30, 60)
        for kind, bf in (("nothing", 4.3), ("own", 4.0), ("shuffled", 5.2), ("random", 7.5))
    ]
    said = [
        {
            "feedback": kind,
            "bf": bf,
            "ci_low": bf - 0.1,
            "ci_high": bf + 0.1,
            "difference": None if k == 0 else bf - 1.7,
        }
        | {"difference_low": None if k == 0 else bf - 1.8, "difference_high": None if k == 0 else bf - 1.6}
        for k, (kind, bf) in enumerate((("control", 1.7), ("adversarial", 2.1), ("noise", 1.6)))
    ]
    counted = {"prompts": prompts, "rows": 2 * prompts}
    return {
        name: pl.DataFrame([row | counted for row in own], infer_schema_length=None)
        for name, own in (("random_prefix", rows), ("feedback", said))
    }


def selection(*, targets=("gsm8k", "boolean expressions of BBH"), rows=800, features=300, seed=5) -> FakeRun:
    rng = np.random.default_rng(seed)
    methods = ("sae", "neurons", "hidden", "bm25", "random")
    scores, weights, precision, overlap, lengths = [], [], [], [], []
    for t, target in enumerate(targets):
        value = np.concatenate([rng.beta(6, 6, rows // 5), rng.beta(2, 14, rows - rows // 5)])
        rank = np.argsort(np.argsort(-value))
        scores += [
            {"row": r, "target": target, "score": float(v), "rank": int(k), "selected": bool(k < rows // 20)}
            for r, (v, k) in enumerate(zip(value, rank))
        ]
        w = np.sort(rng.gamma(0.4, 1.0, features))[::-1]
        order = np.random.default_rng(t).permutation(4096)[:features]
        weights += [
            {"target": target, "feature": int(f), "weight": float(v), "density": 0.02, "explanation": f"what {f} is"}
            for f, v in zip(order, w)
        ]
        for m, method in enumerate(methods):
            for ratio in (0.01, 0.05, 0.1):
                p = max(0.2, 0.95 - 0.15 * m - ratio)
                where = {"target": target, "method": method, "ratio": ratio, "k": int(rows * ratio)}
                precision.append(
                    where | {"precision": p, "ci_low": p - 0.08, "ci_high": min(1, p + 0.06), "base_rate": 0.2}
                )
                lengths.append(
                    where | {"mean": 120.0 + 60 * m, "median": 100.0, "target_mean": 150.0, "pool_mean": 210.0}
                )
                overlap += [
                    {
                        "target": target,
                        "ratio": ratio,
                        "k": 40,
                        "method_a": method,
                        "method_b": other,
                        "overlap": float(rng.uniform(0, 0.6)),
                        "expected": ratio,
                    }
                    for other in methods[m + 1 :]
                ]
    off = [
        {"target": target, "feature": 40 * t + f, "difference": 0.03 - 0.008 * f, "ci_low": 0.01 - 0.008 * f}
        | {"ci_high": 0.05 - 0.008 * f, "needed": f < 2, "n": 10, "rows": 12}
        | {"pool_difference": 0.002, "pool_low": -0.004, "pool_high": 0.008}
        for t, target in enumerate(targets)
        for f in range(5)
    ]
    tuned, gains = [], []
    for t, target in enumerate(targets):
        level = 2.1 + 0.2 * t
        for condition, shift in (("selected", -0.5), ("random", -0.35), ("full", -0.33)):
            tuned += [
                {"target": target, "condition": condition, "seed": s, "loss_before": level, "n": 10, "rows": 12}
                | {"loss_after": level + shift + float(rng.normal(0, 0.02)), "trained_rows": 40, "tokens": 8000 + s}
                for s in range(5)
            ]
        for other in ("random", "full"):
            gain = {"target": target, "against": other, "difference": -0.15, "ci_low": -0.24, "ci_high": -0.06}
            gains.append(gain | {"n": 10, "rows": 12, "seeds": 5})
    top = [r["feature"] for r in weights[:6]]
    tokens = [
        "She",
        " sold",
        " <b>",
        "48",
        " clips",
        " in",
        " April",
        ",",
        " and",
        " then",
        " half",
        " as",
        " many",
        " in",
        " May",
    ]
    frames = {
        "scores": pl.DataFrame(scores),
        "features": pl.DataFrame(weights),
        "precision": pl.DataFrame(precision),
        "overlap": pl.DataFrame(overlap),
        "lengths": pl.DataFrame(lengths),
        "feature_effects": pl.DataFrame(off),
        "finetuning": pl.DataFrame(tuned),
        "finetuning_gain": pl.DataFrame(gains),
        "passages": pl.DataFrame(
            [
                {
                    "feature": f,
                    "place": 1,
                    "row": 3,
                    "start": 0,
                    "peak": j,
                    "tokens": tokens,
                    "activations": [float(i == j) for i in range(len(tokens))],
                    "activation": 1.0,
                }
                for j, f in enumerate(top)
            ]
        ),
        "effects": pl.DataFrame({"feature": top, "promotes": [[" clips", " pens", "<br>", " dollars"]] * len(top)}),
        "map": pl.DataFrame(
            {"row": np.arange(rows), "method": "umap", "x": rng.normal(size=rows), "y": rng.normal(size=rows)}
        ),
        "quality": pl.DataFrame(
            {"site": ["resid_post.3"], "l0": [32.0], "explained_variance": [0.87], "dead_fraction": [0.03]}
        ),
    }
    return FakeRun("data-selection", frames, about("data-selection", similarity="jaccard", ratio=0.05))


def filtering(*, layers=8, heads=8, ks=(48, 96), lengths=(192, 480), depths=(0, 50, 100), name="organism") -> FakeRun:
    """Token filter: the recall of the layers rises to the middle and falls; the first layers attend over a window."""
    rng = np.random.default_rng(11)
    at, rows, cells = np.arange(layers), [], []
    for k in ks:
        recall = np.clip(0.2 + 0.7 * np.exp(-(((at - layers / 2) / 2) ** 2)) + 0.02 * rng.normal(size=layers), 0, 1)
        chance = k / 400
        for layer in at:
            value = float(recall[layer])
            rows.append(
                {
                    "layer": int(layer),
                    "needle_recall": value,
                    "answer_kept": value**2,
                    "k": k,
                    "ci_low": max(0.0, value - 0.1),
                    "ci_high": min(1.0, value + 0.1),
                    "answer_low": max(0.0, value**2 - 0.15),
                    "answer_high": min(1.0, value**2 + 0.15),
                    "recall_by_chance": chance,
                    "recall_drawn": chance,
                    "drawn_low": chance - 0.01,
                    "drawn_high": chance + 0.01,
                    "sees_all": bool(layer > 1),
                    "n": 12,
                    "rows": 240,
                    "retrieval_score": float(0.9 * value),
                }
            )
            for length in lengths:
                for depth in depths:
                    cells.append((k, int(layer), length, float(depth), value * (0.6 + 0.4 * depth / 100), 12))
    arms = ("all", "closed", "filter", "filter_without_needle", "recent", "random", "random_with_question")
    rates = [
        (k, arm, v, max(0.0, v - 0.1), min(1.0, v + 0.1), 12, 60, 20 if "random" in arm else 1)
        for k in ks
        for arm, v in zip(arms, (0.95, 0.02, 0.8, 0.05, 0.3, 0.04, 0.12))
    ]
    frames = {
        "layers": pl.DataFrame(rows),
        "places": pl.DataFrame(cells, schema=["k", "layer", "length", "depth", "needle_recall", "rows"], orient="row"),
        "rates": pl.DataFrame(
            rates, schema=["k", "arm", "recall", "ci_low", "ci_high", "n", "rows", "draws"], orient="row"
        ),
        "choice": pl.DataFrame({"k": [*ks, *ks], "fold": [0] * len(ks) + [1] * len(ks), "layer": [4] * 2 * len(ks)}),
        "agreement": pl.DataFrame(
            {"k": ks, "correlation": [0.7] * len(ks), "ci_low": [0.3] * len(ks), "ci_high": [0.9] * len(ks)}
        ),
    }
    config = {"filter_layer": "chosen", "random_draws": 20}
    return FakeRun("token-filter", frames, about("token-filter", layers=layers, heads=heads, name=name, **config))


def hopping(*, layers=8, name="organism", seed=0) -> FakeRun:
    rng = np.random.default_rng(seed)
    stages = {
        "bridge_described_t1": 0.2,
        "knockout": 0.35,
        "attention_bridge": 0.45,
        "bridge_described_t2": 0.5,
        "mlp_bridge": 0.6,
        "answer_described_t1": 0.9,
        "answer_described_t2": 0.7,
        "attention_answer": 0.75,
        "mlp_answer": 0.8,
        "mlp_prediction": 0.9,
    }
    curves, means = [], []
    for late, split in enumerate(("correct", "incorrect")):
        for stage, centre in stages.items():
            for layer in range(layers):
                where = (layer + 0.5) / layers - centre - 0.1 * late
                rate = float(np.clip(0.8 * np.exp(-((where / 0.2) ** 2)) + rng.normal(0, 0.02), 0, 1))
                null = None if stage == "mlp_prediction" else 0.05
                curves.append((split, stage, layer, rate, max(0, rate - 0.1), min(1, rate + 0.1), null, 40, 80))
        for place, stage in enumerate(("first_hop", "propagation", "second_hop", "extraction")):
            first = (0.2 + 0.2 * place + 0.1 * late) * layers
            means.append((split, stage, 0.8, 0.7, 0.9, None, first, first - 1, first + 1, 40, 80))
    pairs, best, oracle = [], [], []
    for position in ("t1", "t2"):
        for target in range(layers):
            for source in range(target + 1, layers):
                value = float(np.clip(rng.beta(1, 6), 0, 1))
                pairs.append((position, source, target, value, value - 0.02, value + 0.1, value / 3, 40, 80, 0.9, 0.5))
        best.append((position, layers - 2, 1, 0.5, 20, 0.4, 0.3, 0.5, 0.1, 0.05, 0.2, 0.3, 0.2, 0.4, 20, 40))
    for split in ("correct", "incorrect"):
        for position in ("t1", "t2", "either"):
            size = layers * (layers - 1) // 2
            oracle.append((split, position, size, 0.6, 0.5, 0.7, 0.3, 0.2, 0.4, 0.3, 0.2, 0.4, 40, 80))
    ends = [f"{what}{end}" for what in ("solved", "control", "difference") for end in ("", "_low", "_high")]
    items = pl.DataFrame(
        {
            "row": range(120),
            "hop1": rng.random(120) < 0.8,
            "hop2": rng.random(120) < 0.9,
            "two_hop": rng.random(120) < 0.4,
            "shortcut": rng.random(120) < 0.1,
            "split": ["correct", "incorrect", "left out"] * 40,
            "entity_shortcut": rng.random(120) < 0.1,
            "relation_shortcut": rng.random(120) < 0.05,
            "bridge": [f"bridge {i % 30}" for i in range(120)],
        }
    )
    frames = {
        "items": items,
        "layers": pl.DataFrame(
            curves,
            schema=["split", "stage", "layer", "rate", "ci_low", "ci_high", "null", "n", "rows"],
            orient="row",
        ),
        "stages": pl.DataFrame(
            means,
            schema=["split", "stage", "reached", "reached_low", "reached_high", "reached_null", "layer", "ci_low"]
            + ["ci_high", "n", "rows"],
            orient="row",
        ),
        "backpatch": pl.DataFrame(
            pairs,
            schema=["position", "source_layer", "target_layer", "solved", "ci_low", "ci_high", "control", "n", "rows"]
            + ["preserved", "preserved_control"],
            orient="row",
        ),
        "oracle": pl.DataFrame(oracle, schema=["split", "position", "pairs", *ends, "n", "rows"], orient="row"),
        "best_pair": pl.DataFrame(
            best,
            schema=["position", "source_layer", "target_layer", "dev_solved", "dev_n", *ends, "n", "rows"],
            orient="row",
        ),
    }
    return FakeRun("hopping", frames, about("hopping", layers=layers, name=name))


RUNS = {
    "retrieval": retrieval,
    "conflict": conflict,
    "depth": depth,
    "geometry": geometry,
    "branching": branching,
    "selection": selection,
    "filter": filtering,
    "hopping": hopping,
}
