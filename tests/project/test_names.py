"""One word, one meaning, where a reader meets it first: the names of classes."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_no_two_public_classes_share_a_name():
    """Every probe has its `Config`, which is always said with the probe's name."""
    places = defaultdict(list)
    for package in ("workbench", "probes", "pages"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(str(path.relative_to(ROOT)))
    assert len(places) > 50
    assert {name: found for name, found in places.items() if len(found) > 1 and name != "Config"} == {}
