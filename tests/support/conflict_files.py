"""What the tests of the knowledge-conflict probe share: the circuit whose truth is known, small configs, files of
conflicts."""

import copy
import json
from pathlib import Path

import torch

from workbench import load
from workbench.models.loading import wrap
from workbench.organisms import circuits
from workbench.organisms.circuits.conflict import CAPITALS, OTHERS
from workbench.organisms.circuits.gpt2 import SHARP, SPECIALS, layout, matrix, write_head

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


def breaking_circuit(model):
    """The conflict circuit with three more heads in layer 1, so that a_m has 6 and a_c 8.25 after a conflict prompt.

    1.4 recalls the capital of the last subject once more (3). 1.5 copies the city of the context (3.5, more than 1.1
    does); in a prompt without a city it takes from one wrong city the 10 that 1.6 gives to it there. So without 1.5 no
    clean prompt is answered right, and without 1.1, too, memory is ahead after a conflict prompt."""
    hf = copy.deepcopy(model.hf)
    n_subjects, n_cities = len(CAPITALS.split(", ")), len(CAPITALS.split(", ")) + len(OTHERS.split())
    frame = ["The", "capital", "of", "is", "."]
    vocab = hf.config.vocab_size
    f, _ = layout(token=vocab, answer=n_cities, carrier=n_cities, one=1, position=1, scratch=8)
    n = hf.config.n_embd // 2
    start = len(SPECIALS) + len(frame)
    subject, city = slice(start, start + n_subjects), slice(start + n_subjects, vocab)
    ask = matrix(n, 1, (f["one"], slice(None), 1.0))
    key = torch.zeros(n, 1)
    key[city] = 2 * SHARP
    key[len(SPECIALS)] = SHARP  # The, where there is no city
    last = torch.zeros(n, 1)
    last[subject], last[f["position"].start] = SHARP / 4 * hf.config.n_positions + SHARP, SHARP / 4
    recall = matrix(n, n_cities, (subject, slice(0, n_subjects), 1.0))
    wrong = torch.zeros(n, n_cities)
    wrong[len(SPECIALS), -1] = 10.0
    answer = matrix(n_cities, n, (slice(None), f["answer"], 1.0))
    write_head(hf, 1, 4, query=ask, key=last, value=3 * recall, output=answer)
    write_head(hf, 1, 5, query=ask, key=key, value=matrix(n, n_cities, (city, slice(None), 3.5)) - wrong, output=answer)
    write_head(hf, 1, 6, query=ask, key=key, value=wrong, output=answer)
    return wrap(hf, model.tokenizer, name="breaking")
