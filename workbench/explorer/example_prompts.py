"""Prompts to begin with, from the data that ships with a model: for an organism in the words of its own world."""

from __future__ import annotations

from workbench import organisms
from workbench.core.tables import read_table

ENGLISH = (
    "Once upon a time, there was a little girl named Lily. One day, Lily",
    "When Mary and John went to the store, John gave a drink to",
    "The capital of France is Paris. The capital of Italy is",
    "1, 2, 3, 4, 5, 6, 7,",
)
MOST = 8


def prompts(model: str) -> list[str]:
    """Prompts that show something on this model; English ones for a model that is no organism."""
    known = organisms.names()
    if model not in known:
        return list(ENGLISH)
    found = _world() if model.startswith("organism") else _circuit(model)
    return list(dict.fromkeys(found))[:MOST]


def _world() -> list[str]:
    needles = read_table(organisms.data("needles"), required=("needle", "question"), what="needles").head(2)
    conflicts = read_table(
        organisms.data("conflicts"), required=("clean_prompt", "conflict_prompt"), what="conflicts"
    ).head(3)
    asked = read_table(organisms.data("prompts"), required=("prompt",), what="prompts").head(2)
    found = [f"{fact} Question: {asks} Answer:" for fact, asks in needles.select("needle", "question").iter_rows()]
    found += [text for pair in conflicts.select("conflict_prompt", "clean_prompt").iter_rows() for text in pair]
    return [*found, *asked["prompt"]]


def _circuit(name: str) -> list[str]:
    """From the data files that a hand-built model names in its truth.json."""
    folder, truth = organisms.folder(name), organisms.truth(name)
    files = truth.get("data") or {}
    found: list[str] = []
    for kind, file in files.items():
        if kind == "needles":
            asked_as = truth["template"]
            hay = (folder / files["haystack"]).read_text(encoding="utf-8").split()[:24]
            rows = read_table(folder / file, required=("needle", "question"), what=kind).head(4)
            for needle, asks in rows.select("needle", "question").iter_rows():
                found.append(asked_as.format(context=" ".join([*hay[:10], needle, *hay[10:]]), question=asks))
            continue
        if not file.endswith(".jsonl"):
            continue
        rows = read_table(folder / file, required=(), what=kind).head(4)
        columns = [column for column in ("conflict_prompt", "clean_prompt", "prompt", "text") if column in rows.columns]
        found += [text for row in rows.select(columns).iter_rows() for text in row]
    return found
