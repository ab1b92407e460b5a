"""Two-hop questions about the generated world of the organisms, as `material/world.jsonl` holds them; `save` writes the
file anew."""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).parent / "material" / "world.jsonl"
# Of each composition of the world: the words of its prompt that name the bridge
PHRASES = {
    "home-country": "{s} lives in",
    "employer-product": "The firm that employs {s}",
    "employer-seat": "The firm that employs {s}",
    "friend-job": "The best friend of {s}",
    "country-language": "the city of {s}",
    "seat-country": "{s} is based in",
}


def world_questions() -> list[dict[str, str]]:
    """A row for every composition of the world; both hops are asked by the first statement of their relation."""
    from workbench.organism_training.world import COMPOSITIONS, Fact, two_hops

    rows = []
    for hop in two_hops():
        first, second, statement, _ = COMPOSITIONS[hop.name]
        rows.append(
            {
                "e1": hop.subject,
                "e2": hop.bridge,
                "e3": hop.object,
                "prompt": statement.split(" {o}")[0].format(s=hop.subject),
                "hop1": Fact(first, hop.subject, hop.bridge).cloze(0),
                "hop2": Fact(second, hop.bridge, hop.object).cloze(0),
                "phrase": PHRASES[hop.name].format(s=hop.subject),
                "composition": hop.name,
                "shown_in_training": str(hop.trained).lower(),
            }
        )
    return rows


def save() -> None:
    """Write the questions to FILE, ordered so that its first rows are of every composition."""
    rows = world_questions()
    by_name = {name: [row for row in rows if row["composition"] == name] for name in PHRASES}
    longest = max(map(len, by_name.values()))
    mixed = [own[k] for k in range(longest) for own in by_name.values() if k < len(own)]
    FILE.write_text("".join(json.dumps(row) + "\n" for row in mixed), encoding="utf-8")
