"""Data selection against its baselines on two pools of known labels: the organism's own, and one of public instruction
data.

    python -m tests.studies.selection        rewrites tests/studies/selection.json (some minutes on one core)

The public pool is a fixed draw of GSM8K, Dolly and three BBH tasks; the organism's tokenizer spells most of their words
out in bytes, so it tells how far the methods go on text that the model cannot read. Every number comes from the probe
itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tests.conftest import SHARED

RESULTS = Path(__file__).with_suffix(".json")
INSTRUCT = "instruct"
BBH = ("boolean_expressions", "date_understanding", "object_counting")
ROWS = {"gsm8k": 200, "dolly": 200, **dict.fromkeys(BBH, 67)}  # of the pool
EXAMPLES = 20  # of each target


def mixed_pool(folder: Path, *, share: float = 1.0, seed: int = 0) -> tuple[Path, list[Path]]:
    """(pool file, target files) with prompt, response and task, drawn without overlap; `share` of the rows for a quick
    look."""
    rng = np.random.default_rng(seed)
    pool: list[dict[str, str]] = []
    targets = []
    for task, size in ROWS.items():
        rows = source(task)
        order = rng.permutation(len(rows))
        size = round(size * share)
        pool += [rows[i] for i in order[:size]]
        targets.append(write(folder / f"{task}.jsonl", [rows[i] for i in order[size : size + EXAMPLES]]))
    return write(folder / "pool.jsonl", [pool[i] for i in rng.permutation(len(pool))]), targets


def source(task: str) -> list[dict[str, str]]:
    """Prompt, response and task of every usable row of one file."""
    place = SHARED / INSTRUCT
    if task == "gsm8k":
        found = [
            (row["question"], row["answer"])
            for row in map(json.loads, (place / "gsm8k_train_1000.jsonl").read_text(encoding="utf-8").splitlines())
        ]
    elif task == "dolly":
        rows = json.loads((place / "dolly_1000.json").read_text(encoding="utf-8"))
        found = [(f"{row['instruction']}\n{row['input']}".strip(), row["output"]) for row in rows]
    else:
        rows = json.loads((place / "bbh" / f"{task}.json").read_text(encoding="utf-8"))["examples"]
        found = [(row["input"], row["target"]) for row in rows]
    return [
        {"prompt": prompt, "response": response, "task": task}
        for prompt, response in found
        if prompt.strip() and response.strip()
    ]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def study(
    model: Any,
    pool: Path | None,
    targets: list[Path] | None,
    out: Path,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Precision at 5 % of every method with intervals, of features under each similarity, and lengths under mean and
    sum, for one pool."""
    from workbench.runs import execution as runs

    def execute(name: str, **config: Any):
        say(name)
        config = (
            {"features": 0, "explain": 0, "resamples": 0, "ratios": (0.05,)}
            | ({"target": tuple(map(str, targets))} if targets else {})
            | config
        )
        return runs.execute("data-selection", model, data=pool, config=config, out=out / name)

    whole = execute("mean, jaccard")
    numbers = {key: value for key, value in whole.summary.items() if isinstance(value, dict)}
    at = whole.table("precision")
    by_target = {
        target: {
            m: [p, low, high]
            for m, p, low, high in at.filter(target=target)
            .select("method", "precision", "ci_low", "ci_high")
            .iter_rows()
        }
        for target in at["target"].unique(maintain_order=True)
    }
    others = {
        kind: execute(f"mean, {kind}", similarity=kind, baselines=()).summary["precision_sae"]
        for kind in ("cosine", "euclidean")
    }
    summed = execute("sum, jaccard", aggregate="sum", baselines=())
    lengths: dict[str, dict[str, float]] = {}
    for name, run in (("mean", whole), ("sum", summed)):
        for row in run.table("lengths").filter(method="sae").iter_rows(named=True):
            lengths.setdefault(row["target"], {"target": row["target_mean"], "pool": row["pool_mean"]})[name] = row[
                "mean"
            ]
    return {
        "rows": whole.summary["pool"],
        "selected": whole.summary["selected"],
        "explained_variance": whole.summary["explained_variance"],
        "not_better_than": whole.summary.get("not_better_than", ""),
        "methods": numbers,
        "targets": by_target,
        "similarities": {"jaccard": numbers["precision_sae"], **others},
        "precision_with_sum": summed.summary["precision_sae"],
        "lengths": lengths,
    }


def main() -> int:
    from workbench.models.loading import load

    model = load("organism")
    results: dict[str, Any] = {"model": {"name": model.name, "fingerprint": model.fingerprint}}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def say(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        results["organism pool"] = study(model, None, None, place / "organism", say=say)
        results["mixed pool"] = study(model, *mixed_pool(place), place / "mixed", say=say)
    RESULTS.write_text(json.dumps(rounded(results), indent=1) + "\n", encoding="utf-8")
    return 0


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def frame(results: dict[str, Any]) -> pl.DataFrame:
    """Pool, method, precision and interval: the table of the results."""
    rows = [
        (pool, key.removeprefix("precision_"), v["value"], v["low"], v["high"])
        for pool in ("organism pool", "mixed pool")
        for key, v in results[pool]["methods"].items()
        if key.startswith("precision_")
    ]
    return pl.DataFrame(rows, schema=["pool", "method", "precision", "low", "high"], orient="row")


if __name__ == "__main__":
    sys.exit(main())
