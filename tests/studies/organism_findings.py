"""What each probe finds by default on organisms of several seeds, against what is known of them: the table of the model
card.

    python -m tests.studies.organism_findings OUT WEIGHTS [WEIGHTS ...]     runs every probe, some minutes a seed
    python -m tests.studies.organism_findings OUT                           only writes the table anew

A WEIGHTS folder holds `organism`, its checkpoints `organism@step-N` and `sae/organism`, as `weights` of the package
does; `workbench train-organism` and `python -m workbench.organism_training.sae` make one. The runs go to OUT/0, OUT/1 …
Where OUT/before/0, OUT/before/1 … hold the same of another version, what that version said stands before the arrow.
The table goes to `workbench/organisms/weights/findings.json`, from which `python -m workbench.organism_training.card`
takes it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench import organisms

TABLE = organisms.WEIGHTS / "findings.json"
CONCEPTS = ("topic", "sentiment", "negation", "recall", "conflict")  # that can be learned; the card says of the rest
Said = Callable[[dict[str, Any]], str]


def main(out: Path, weights: list[Path]) -> None:
    for seed, folder in enumerate(weights):
        run_all(out / str(seed), folder)
    rows = [
        {
            "question": question,
            "truth": truth,
            "before": [said(summary) for summary in summaries(out / "before", probe)],
            "after": [said(summary) for summary in summaries(out, probe)],
        }
        for probe, question, truth, said in ROWS
    ]
    TABLE.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def run_all(out: Path, weights: Path) -> None:
    """The default run of every probe on the organism whose weights lie in a folder, with all that ships for it."""
    from workbench import load
    from workbench.runs.execution import execute

    shipped, organisms.WEIGHTS = organisms.WEIGHTS, weights.resolve()
    try:
        model = load("organism")
        for probe in PROBES:
            execute(probe, model, out=out / probe)
    finally:
        organisms.WEIGHTS = shipped


def summaries(out: Path, probe: str) -> list[dict[str, Any]]:
    """The summaries of a probe's runs, seed by seed."""
    found = sorted((p for p in out.glob(f"[0-9]*/{probe}/summary.json")), key=lambda p: int(p.parts[-3]))
    return [json.loads(path.read_text(encoding="utf-8")) for path in found]


def of(key: str, form: Callable[[float], str]) -> Said:
    """A number of the summary with its interval, where it has one."""

    def said(summary: dict[str, Any]) -> str:
        if key not in summary:
            return "not measured"
        found = summary[key]
        found = found if isinstance(found, dict) else {"value": found}
        if found["value"] is None:
            return "none"
        ends = [found.get("low"), found.get("high")]
        return form(found["value"]) + ("" if None in ends else f" [{form(ends[0])}, {form(ends[1])}]")

    return said


def share(value: float) -> str:
    return f"{100 * value:.0f} %"


def decimals(value: float) -> str:
    return f"{value:.2f}"


def tenths(value: float) -> str:
    return f"{value:.1f}"


def best_heads(summary: dict[str, Any]) -> str:
    """The heads above a tenth."""
    scores = dict(pair.split() for pair in summary["top_heads"].split(", "))
    return ", ".join(sorted(head for head, score in scores.items() if float(score) > 0.1)) or "none"


def masked(summary: dict[str, Any]) -> str:
    """Recall with the two best heads masked, and with two others."""
    top, random = (of(f"recall_masking_{which}_2", share)(summary) for which in ("top", "random"))
    return f"{top}; others {random}"


def pruned(summary: dict[str, Any]) -> str:
    """Points of answers from memory that pruning context heads gains, against the better of none and random heads."""
    if not summary["context_pruned_k"]:
        return "no mask keeps the facts"
    gain = summary["context_pruned_gain"]
    points, low, high = (round(100 * gain[end]) for end in ("value", "low", "high"))
    return f"k = {summary['context_pruned_k']}: {points:+d} ({low} to {high})"


def roles(summary: dict[str, Any]) -> str:
    mixed = summary.get("mixed_heads")
    said = f"memory {summary['memory_heads']}, context {summary['context_heads']}"
    return said + ("" if mixed is None else f", mixed {mixed}; expected false {summary['false_roles_expected']:.1f}")


def jumps(readable: bool) -> Said:
    """The concepts for which a jump is printed, of those that can be read or of the others."""

    def said(summary: dict[str, Any]) -> str:
        names = [key.removesuffix(": jump") for key in summary if key.endswith(": jump")]
        asked = [name for name in names if (name in CONCEPTS) == readable]
        found = [name for name in asked if isinstance(summary[f"{name}: jump"], dict)]
        found = [name for name in found if summary[f"{name}: jump"].get("value") is not None]
        return ", ".join(name.replace("_", " ") for name in found) or "none"

    return said


def precision(summary: dict[str, Any]) -> str:
    return f"{of('precision_sae', share)(summary)}; random {of('precision_random', share)(summary)}"


def rankme(summary: dict[str, Any]) -> str:
    return of("RankMe (infinitely many texts)" if "RankMe (infinitely many texts)" in summary else "RankMe", tenths)(
        summary
    )


ROWS: tuple[tuple[str, str, str, Said], ...] = (
    ("retrieval-heads", "heads that copy from the context", "two of 1.0, 1.1, 2.0, 2.1", best_heads),
    ("retrieval-heads", "answers recalled without their needle", "none", of("recalled_without_needle", share)),
    ("retrieval-heads", "recall with the two best heads masked", "lost; kept with two others", masked),
    ("knowledge-conflict", "points of answers from memory gained by pruning context heads", "large", pruned),
    ("knowledge-conflict", "heads with a role", "unknown; few", roles),
    ("concept-depth", "jumps of concepts that can be read", "at most those of " + ", ".join(CONCEPTS), jumps(True)),
    ("concept-depth", "jumps of concepts that cannot be read", "none", jumps(False)),
    ("data-selection", "selected rows that are of the target's topic", "far above random", precision),
    ("branching-factor", "branching factor of open prompts", "unknown", of("bf", decimals)),
    ("representation-geometry", "RankMe after the final norm", "that of all texts", rankme),
)
PROBES = tuple(dict.fromkeys(probe for probe, *_ in ROWS))

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m tests.studies.organism_findings OUT [WEIGHTS ...]")
    main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
