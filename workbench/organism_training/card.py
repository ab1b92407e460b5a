"""Writes the model card from measured numbers: `weights/behaviour.json` and `weights/findings.json` hold them,
`weights/MODEL_CARD.md` shows them.

python -m workbench.organism_training.card RUN [RUN ...]     one folder per seed, the first is the one that ships
"""

from __future__ import annotations

import json
from pathlib import Path

from workbench import organisms
from workbench.organism_training import behaviour, datafiles

WEIGHTS = organisms.WEIGHTS


def _step(folder: Path) -> int:
    return json.loads((folder / "recipe.json").read_text())["step"]


def trajectory(run: Path) -> list[dict[str, float]]:
    """RankMe, alpha, facts and needles at every checkpoint of a run."""
    rows = []
    for folder in sorted([*run.glob("organism@step-*"), run / "organism"], key=_step):
        subject = behaviour.Subject(folder)
        facts, needles = behaviour.fact_accuracy(subject), behaviour.needle_grid(subject, 1)
        rows.append(
            {
                "step": _step(folder),
                **behaviour.geometry(subject, 500),
                "facts": facts["question"],
                "needle": needles["overall"],
            }
        )
    return rows


def measure(runs: list[Path]) -> dict[str, object]:
    """Numbers of every seed; the trajectory of the shipped one."""
    out: dict[str, object] = {"seeds": {}}
    for run in runs:
        recipe = json.loads((run / "organism" / "recipe.json").read_text())
        chat = run / "organism-chat"
        done = run / "behaviour.json"  # from `python -m workbench.organism_training.behaviour --out`
        found = (
            json.loads(done.read_text())
            if done.exists()
            else behaviour.measure(run / "organism", chat if chat.exists() else None)
        )
        out["seeds"][str(recipe["seed"])] = found | {"recipe": recipe}
    return out | {
        "shipped": str(json.loads((runs[0] / "organism" / "recipe.json").read_text())["seed"]),
        "trajectory": trajectory(runs[0]),
    }


def pct(x: float) -> str:
    return f"{100 * x:.1f} %"


def table(numbers: dict) -> str:
    """The behaviour table, one column per seed."""
    seeds = list(numbers["seeds"])

    def row(name: str, bar: str, pick) -> str:
        cells = []
        for seed in seeds:
            try:
                cells.append(pick(numbers["seeds"][seed]))
            except KeyError:
                cells.append("not measured")
        return f"| {name} | {bar} | " + " | ".join(cells) + " |"

    def masking(kind: str):
        def cell(n: dict) -> str:
            m = n[f"masking {kind}"]
            top = m[f"top {m['k']}"]
            return (
                f"k = {m['k']}: {pct(top)} (none {pct(m['none'])}, random {pct(m['random mean'])}); "
                f"facts {pct(m['facts'])} → {pct(m['facts masked'])}"
            )

        return cell

    def conflict(kind: str):
        return lambda n: " / ".join(pct(n["conflict"][kind][o]) for o in ("memory", "context", "other"))

    lines = [
        "| behaviour | bar | "
        + " | ".join(f"seed {s}" + (" (shipped)" if s == numbers["shipped"] else "") for s in seeds)
        + " |",
        "|---|---|" + "---|" * len(seeds),
        row("facts, question", "≥ 98 %", lambda n: pct(n["facts"]["question"])),
        row("facts, cloze", "≥ 98 %", lambda n: pct(n["facts"]["cloze"])),
        row("facts, wording held out for that fact", "≥ 95 %", lambda n: pct(n["facts"]["held-out wording"])),
        row("needle, 64 to 480 tokens, all depths", "≥ 97 %", lambda n: pct(n["needle"]["overall"])),
        row("needle, worst length × depth cell", "≥ 85 %", lambda n: pct(n["needle"]["worst cell"])),
        row(
            "heads with retrieval score > 0.1 (> 0.5)",
            "2–15 %",
            lambda n: f"{pct(n['retrieval']['share above 0.1'])} ({pct(n['retrieval']['share above 0.5'])})",
        ),
        row(
            "needle with top k heads masked, uniform attention while decoding",
            "< 20 %, random ≥ 80 %, facts −5 at most",
            masking("uniform"),
        ),
        row("the same, heads zeroed everywhere", "", masking("zero")),
        row("conflict, reliable source: memory / context / other", "context ≥ 95 %", conflict("reliable")),
        row("conflict, unreliable source", "memory ≥ 95 %", conflict("unreliable")),
        row("conflict, unmarked", "30–70 % each", conflict("unmarked")),
        row("conflict on facts never contradicted in training, reliable", "", conflict("reliable, held out")),
        row("the same, unreliable", "", conflict("unreliable, held out")),
        row("branching factor, open prompts, base", "", lambda n: f"{n['branching']['mean']:.2f}"),
        row("branching factor, open prompts, aligned", "", lambda n: f"{n['chat']['branching']['mean']:.2f}"),
        row("their ratio", "2–10", lambda n: f"{n['branching']['mean'] / n['chat']['branching']['mean']:.2f}"),
        row(
            "aligned: chat answers with the right fact (asked / never asked in fine-tuning)",
            "",
            lambda n: f"{pct(n['chat']['facts']['asked in fine-tuning'])} / {pct(n['chat']['facts']['never asked'])}",
        ),
        row(
            "aligned: facts as the base is asked",
            "within 2 points",
            lambda n: pct(n["chat"]["facts as base"]["question"]),
        ),
        row(
            "two-hop, compositions held out (question / cloze)",
            "reported",
            lambda n: f"{pct(n['two-hop']['heldout question'])} / {pct(n['two-hop']['heldout cloze'])}",
        ),
        row(
            "two-hop, trained compositions (question / cloze)",
            "",
            lambda n: f"{pct(n['two-hop']['train question'])} / {pct(n['two-hop']['train cloze'])}",
        ),
    ]
    for skill in ("fact_truth", "review", "comparison", "context_truth", "coin", "arithmetic"):
        lines.append(row(f"skill: {skill.replace('_', ' ')}", "", lambda n, skill=skill: pct(n["skills"][skill])))
    return "\n".join(lines)


def concept_table(numbers: dict) -> str:
    """Accuracy per layer of the shipped seed, easiest first, with the shuffled control's range."""
    curves = numbers["seeds"][numbers["shipped"]]["concepts"]
    layers = len(next(iter(curves.values()))["accuracy"])
    lines = [
        "| concept | difficulty | " + " | ".join(f"layer {i}" for i in range(layers)) + " | shuffled labels |",
        "|---|---|" + "---|" * (layers + 1),
    ]
    for name, curve in curves.items():
        low, high = min(curve["shuffled"]), max(curve["shuffled"])
        lines.append(
            f"| {name.replace('_', ' ')} | {datafiles.CONCEPTS[name][0]} | "
            + " | ".join(f"{a:.2f}" for a in curve["accuracy"])
            + f" | {low:.2f}–{high:.2f} |"
        )
    return "\n".join(lines)


def trajectory_table(numbers: dict) -> str:
    lines = ["| step | RankMe | α | facts | needle |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['step']} | {r['rankme']:.1f} | {r['alpha']:.2f} | {pct(r['facts'])} | {pct(r['needle'])} |"
        for r in numbers["trajectory"]
    ]
    return "\n".join(lines)


def head_table(numbers: dict) -> str:
    scores = numbers["seeds"][numbers["shipped"]]["retrieval"]["scores"]
    strong = sorted(
        ((s, layer, head) for layer, row in enumerate(scores) for head, s in enumerate(row) if s > 0.1), reverse=True
    )
    return ", ".join(f"{layer}.{head} {s:.2f}" for s, layer, head in strong)


def sae_table(numbers: dict) -> str:
    """Quality of the sparse autoencoder that ships, from the report beside it."""
    q = json.loads((WEIGHTS / "sae" / "organism" / "quality.json").read_text())
    return (
        f"`weights/sae/organism` (sae-lens format, {q['architecture']}, {q['site']}, {q['width']} features, k "
        f"= {q['k']}): L0 {q['l0']:.1f}, "
        f"explained variance {q['explained_variance']:.3f}, loss recovered {q['loss_recovered']:.3f}, "
        f"features that never fire "
        f"{pct(q['dead_fraction'])}, on {q['tokens']:,} tokens of held-out texts, after {q['tokens_seen']:,} "
        f"tokens of training."
    )


def findings_table(_numbers: dict) -> str:
    """What probes find by default on every seed, before and after, against what is known: of
    `weights/findings.json`."""
    rows = json.loads((WEIGHTS / "findings.json").read_text(encoding="utf-8"))
    seeds = range(len(rows[0]["after"]))
    lines = [
        "| asked | known | " + " | ".join(f"seed {seed}" for seed in seeds) + " |",
        "|---|---|" + "---|" * len(seeds),
    ]
    for row in rows:
        before = row["before"] or [""] * len(seeds)
        cells = [f"{a} → {b}" if a else b for a, b in zip(before, row["after"], strict=True)]
        lines.append(" | ".join(("| " + row["question"], row["truth"], *cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="*", type=Path, help="run folders; without one, the card is rewritten from behaviour.json"
    )
    args = parser.parse_args()
    path = WEIGHTS / "behaviour.json"
    if args.runs:
        path.write_text(json.dumps(measure(args.runs), indent=1) + "\n")
    numbers = json.loads(path.read_text())
    text = (WEIGHTS / "card.template.md").read_text()
    for name, make in (
        ("behaviour", table),
        ("concepts", concept_table),
        ("trajectory", trajectory_table),
        ("heads", head_table),
        ("sae", sae_table),
        ("findings", findings_table),
    ):
        text = text.replace(f"{{{{{name}}}}}", make(numbers))
    (WEIGHTS / "MODEL_CARD.md").write_text(text)


if __name__ == "__main__":
    main()
