"""Two-hop questions as they are read from a file: the prompts of both hops, of their composition and of two shortcuts.

A file says either how the two relations are written (`r1_template`, `r2_template`, each with {} for its subject), from
which all prompts follow, or it has the prompts themselves (`prompt`, and `hop1`, `hop2` where the single hops are to be
asked)."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from probes.hopping.answers import usable
from probes.hopping.config import COLUMNS, Config
from workbench.core.column_names import column_map
from workbench.core.errors import InputError
from workbench.core.files import digest_path
from workbench.core.tables import asked, existing, open_table

VERB = " is"  # what ends a prompt that is made of templates
DANGLING = re.compile(r"\s+(?:of|by|in|from|to|on|at|with|for|the|a|an)$", re.IGNORECASE)
LABELS = {"e1": "e1_label", "e2": "e2_label", "e3": "e3_label", "prompt": "source_prompt"}  # of the paper's own file
TEXT = tuple(name for name in COLUMNS if not name.endswith("_aliases") and name not in ("e2", "e3"))


@dataclass(frozen=True)
class TwoHopQuestion:
    """(e1, r1, e2), (e2, r2, e3) as a row of a file asks for it. `bridge`, `answer`: the names of e2 and e3. Prompts
    that a file does not give are empty; `phrase`: the words that name the bridge in the prompt, r1(e1)."""

    row: int
    e1: str
    bridge: tuple[str, ...]
    answer: tuple[str, ...]
    prompt: str
    hop1: str
    hop2: str
    entity_shortcut: str
    relation_shortcut: str
    phrase: str

    @property
    def cluster(self) -> str:
        """What is independent of other questions: the bridge."""
        return self.bridge[0].casefold()

    @cached_property
    def names(self) -> frozenset[str]:
        """All names of the bridge and of the answer, in lower case."""
        return frozenset(name.casefold() for name in (*self.bridge, *self.answer))

    @property
    def prompts(self) -> dict[str, str]:
        """What is asked, by name; without what the file does not give."""
        found = {
            "hop1": self.hop1,
            "hop2": self.hop2,
            "two_hop": self.prompt,
            "entity_shortcut": self.entity_shortcut,
            "relation_shortcut": self.relation_shortcut,
        }
        return {name: text for name, text in found.items() if text}


def read_questions(
    config: Config, data: Path | None, tell: Callable[[str], None] | None = None
) -> list[TwoHopQuestion]:
    """The questions of a file. Raises InputError, naming the row, for one that cannot be asked."""
    path = existing(data, what="two-hop questions") if data is not None else None
    if path is None:
        raise InputError("hopping needs a file of two-hop questions; give one with --data.")
    questions, said = _read(path, digest_path(path), tuple(sorted(column_map(config.columns, COLUMNS).items())))
    if said and tell is not None:
        tell(said)
    return list(questions)


@lru_cache(4)
def _read(path: Path, _digest: str, columns: tuple[tuple[str, str], ...]) -> tuple[tuple[TwoHopQuestion, ...], str]:
    named, said = dict(columns), ""
    table = open_table(path, columns=named, what="two-hop questions")
    there = {name: label for name, label in LABELS.items() if name not in table.frame.columns}
    there = {name: label for name, label in there.items() if label in table.frame.columns}
    if there:
        said = f"{path.name}: {', '.join(f'{label} is read as {name}' for name, label in there.items())}"
        table = open_table(path, columns=named | there, what="two-hop questions")
    known = set(table.frame.columns)
    templates = {"r1_template", "r2_template"} <= known
    required = ("e1", "r1_template", "r2_template") if templates and "prompt" not in known else ("prompt",)
    for name in ("e2", "e3"):
        if name not in known:
            raise InputError(
                f"{path} has no column '{name}'; two-hop questions need e2 (bridge), e3 (answer) and prompt, or "
                f"e1, r1_template and r2_template; it has {', '.join(table.frame.columns)}."
            )
    frame = asked(table, path, required=required, optional=[n for n in TEXT if n in known and n not in required])
    rows = frame.to_dicts()
    return tuple(_question(row, number, path) for number, row in enumerate(rows)), said


def _question(row: Mapping[str, Any], number: int, path: Path) -> TwoHopQuestion:
    where = f"{path}, row {number + 1}"
    text = {name: (row.get(name) or "").strip() for name in TEXT}
    bridge, answer = (_names(row, name, where) for name in ("e2", "e3"))
    if text["r1_template"] and text["r2_template"]:
        text |= _from_templates(text, bridge[0], where) | {k: v for k, v in text.items() if v}
    e1 = text["e1"]
    phrase = text["phrase"] or _phrase(text["prompt"], text["hop1"])
    if phrase and _last(text["prompt"], phrase) is None:
        raise InputError(f"{where}: the phrase '{phrase}' does not stand in the prompt '{text['prompt']}'.")
    return TwoHopQuestion(
        number,
        e1,
        bridge,
        answer,
        text["prompt"],
        text["hop1"],
        text["hop2"],
        text["entity_shortcut"] or _instead(text["hop2"], bridge[0], e1),
        text["relation_shortcut"] or _without(text["prompt"], e1),
        phrase,
    )


def _from_templates(text: Mapping[str, str], bridge: str, where: str) -> dict[str, str]:
    """The prompts that two templates make."""
    first, second = text["r1_template"], text["r2_template"]
    for name, template in (("r1_template", first), ("r2_template", second)):
        if template.count("{}") != 1:
            raise InputError(f"{where}: {name} needs {{}} once, where its subject stands, not '{template}'.")
    if not text["e1"]:
        raise InputError(f"{where}: the field 'e1' is empty.")
    phrase = first.replace("{}", text["e1"])
    made = {
        "hop1": phrase,
        "hop2": second.replace("{}", bridge),
        "prompt": second.replace("{}", phrase),
        "entity_shortcut": second.replace("{}", text["e1"]),
    }
    return {"phrase": phrase, **{name: one[:1].upper() + one[1:] + VERB for name, one in made.items()}}


def _names(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """The names of an entity: its label (the first, where a file has a list of them) and its aliases."""
    labels = _list(row[name])
    found = usable(labels[0], [*labels[1:], *_list(row.get(f"{name}_aliases"))]) if labels else ()
    if not found:
        raise InputError(f"{where}: the field '{name}' is empty.")
    return found


def _list(value: Any) -> list[str]:
    """A cell with one name or several: a list, the text of one (JSON or Python), or names between upright strokes."""
    if value is None:
        return []
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("[") and text.endswith("]"):
            for parse in (json.loads, ast.literal_eval):
                try:
                    return _list(parse(text))
                except (ValueError, SyntaxError, RecursionError, MemoryError):
                    continue
        return [part.strip() for part in text.split("|") if part.strip()]
    if isinstance(value, (list, tuple)):
        return [name for part in value for name in _list(part)]
    return [str(value)]


def _phrase(prompt: str, hop1: str) -> str:
    """What of the first hop's prompt stands in the composition before its end: as many of its words from the first on
    as do, two at least."""
    words = hop1.split()
    for size in range(len(words), 1, -1):
        span = _last(prompt, phrase := " ".join(words[:size]))
        if span is not None and span[1] < len(prompt):
            return phrase
    return ""


def _last(text: str, phrase: str) -> tuple[int, int] | None:
    """Where a phrase stands in a text for the last time, as characters [start, end), in any case and as whole words."""
    low, wanted = text.lower(), phrase.lower()
    if len(low) != len(text) or not wanted:  # a letter that is two in lower case: places would be others
        low, wanted = text, phrase
    at = low.rfind(wanted) if wanted else -1
    while at >= 0:
        end = at + len(wanted)
        if not (_in_word(low, at - 1) or _in_word(low, end)):
            return at, end
        at = low.rfind(wanted, 0, end - 1)
    return None


def _in_word(text: str, at: int) -> bool:
    """Whether the character at a place is one of a word."""
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")


def _instead(hop2: str, bridge: str, e1: str) -> str:
    """The second hop asked of e1, without the first; empty where the bridge does not stand in its prompt."""
    span = _last(hop2, bridge) if hop2 and e1 else None
    return hop2[: span[0]] + e1 + hop2[span[1] :] if span is not None else ""


def _without(prompt: str, e1: str) -> str:
    """The prompt with both relations and without e1; with the word that led to e1 gone too where nothing of the phrase
    follows but the verb ("the spouse of the singer of … is")."""
    span = _last(prompt, e1) if e1 else None
    if span is None:
        return ""
    before, after = prompt[: span[0]].rstrip(), prompt[span[1] :]
    if len(after.split()) <= 1:
        before = DANGLING.sub("", before)
    return " ".join((before + " " + after.strip()).split())


def phrase_end(question: TwoHopQuestion) -> int | None:
    """The character of the prompt before which its first hop ends; None where the file does not say which words it
    is."""
    span = _last(question.prompt, question.phrase) if question.phrase else None
    return None if span is None else span[1]


def relation_ends(question: TwoHopQuestion) -> dict[str, int | None]:
    """The characters of the prompt before which the words of both relations end: r1 before e1 in the phrase of the
    first hop, r2 before that phrase, each without the preposition that leads on; None where there are none."""
    phrase = _last(question.prompt, question.phrase) if question.phrase else None
    if phrase is None:
        return {"r1": None, "r2": None}
    inside = _last(question.phrase, question.e1) if question.e1 else None
    before = 0 if inside is None else len(DANGLING.sub("", question.phrase[: inside[0]].rstrip()))
    second = len(DANGLING.sub("", question.prompt[: phrase[0]].rstrip()))
    return {"r1": phrase[0] + before if before else None, "r2": second or None}


def check_aliases(questions: Sequence[TwoHopQuestion]) -> int:
    """How many questions have an answer that is named by naming the bridge."""
    return sum(any(a.casefold() in b.casefold() for a in q.answer for b in q.bridge) for q in questions)
