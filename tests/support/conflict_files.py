"""What the tests of the knowledge-conflict probe share: the circuit whose truth is known, small configs, files of
conflicts."""

import json
from pathlib import Path

from workbench import load
from workbench.organisms import circuits

PROBE = "knowledge-conflict"
QUICK = {"prune_k": (1, 3), "random_draws": 5, "curve_draws": 5, "draws": 200, "flow_items": 4}


def conflict_circuit(root: Path):
    """(model, folder, truth) of the hand-built conflict circuit."""
    place = circuits.folder("circuit-conflict", root)
    return load(str(place)), place, circuits.truth(place)


def circuit_rows(place):
    return [json.loads(line) for line in (place / "conflicts.jsonl").read_text().splitlines()]


def conflict_file(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def about(subject, answer, distractor, **more):
    clean = f"The capital of {subject} is"
    return {
        "subject": subject,
        "answer": answer,
        "distractor": distractor,
        "clean_prompt": clean,
        "conflict_prompt": f"{clean} {distractor} . {clean}",
    } | more
