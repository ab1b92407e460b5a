"""Random command lines, run in this process, and what is wrong with how one of them ended."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 15  # no odd command line takes longer
NUMBERS = (
    *("0", "-1", "1", "2", "3.5", "1e20", "1e400", "-1e-400", "nan", "-inf", "9" * 30, "9" * 6000, "-" + "9" * 20),
    *("1_000", "٣", "0x10", "", " ", "none", "null", "true", "1,2", "[1,2]", "[1,[2]]", "[" * 3000, "{}", "1,,2", ","),
)
WORDS = (
    *("", " ", "none", "all", "last", "a=b=c", "../..", "~", "~nobody/x", "-", "$HOME", "*", "[x]", "?", "{}", "%s"),
    *("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\nb", "\u202eright", "ü ß 漢字", "\udcff", "x" * 300, "y" * 5000),
    *("/dev/null", "/proc/self/mem", "/", "file:///etc/passwd", "http://x/y", "a/b", "a/b/c", "nul", "con.parquet"),
)
_EXCEPTION = re.compile(r"\b[A-Z]\w*(Error|Exception|Warning)\b|Traceback|panicked at|terminate called|0x[0-9a-f]{8}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")


class TooLong(BaseException):
    """A case that does not end; no OSError and no Exception, so that nothing that is tried takes it for its own."""


@dataclass(frozen=True)
class Place:
    """What the command lines may name: a folder of data files, runs that are complete, and a model."""

    files: tuple[Path, ...]
    runs: tuple[str, ...]
    model: str
    folder: Path


@dataclass(frozen=True)
class Outcome:
    argv: tuple[str, ...]
    code: int | None
    out: str
    err: str
    seconds: float
    raised: str | None = None


def tried(argv: Sequence[str]) -> Outcome:
    """Run one command line as the program would, with its output kept."""
    from workbench.cli.main import run

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    begun, code, raised = time.monotonic(), None, None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(list(argv))
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if isinstance(error, (KeyboardInterrupt, TooLong)):
            raise
        raised = f"{type(error).__name__}: {error}"[:300]
    texts = [stream.buffer.getvalue().decode("utf-8") for stream in (out, err)]
    return Outcome(tuple(argv), code, *texts, time.monotonic() - begun, raised)


def complaint(outcome: Outcome) -> str | None:
    """What a user would complain of, or None: an exception by name, more than a sentence, a wrong exit code, control
    characters for the terminal, JSON that is none."""
    if outcome.raised is not None:
        return f"it raised {outcome.raised}"
    if outcome.code not in (0, 2, 3, 130):
        return f"it ended with exit code {outcome.code}"
    if outcome.code == 2 and outcome.err.startswith("Usage: "):  # a command without its sub-command shows its help
        return None
    own = [line for line in outcome.err.splitlines() if line.startswith("workbench: ")]
    if outcome.code and (len(own) != 1 or not own[0].endswith(".")):
        return f"its error is not one sentence: {outcome.err[-300:]!r}"
    if outcome.code and len(own[0]) > 1500:
        return f"its error has {len(own[0])} characters"
    if found := _EXCEPTION.search(outcome.err):
        return f"it names an exception: {outcome.err[max(0, found.start() - 100) : found.end() + 100]!r}"
    if found := _CONTROL.search(outcome.err + ("" if "--json" in outcome.argv else outcome.out)):
        return f"it sends the control character {found[0]!r} to the terminal"
    if outcome.code == 0 and "--json" in outcome.argv:
        try:
            json.loads(outcome.out)
        except ValueError as error:
            return f"its JSON is none ({error}): {outcome.out[:200]!r}"
    return None


def command_line(dice: random.Random, place: Place) -> list[str]:
    """One command line: most of it as a user would write it, with a few odd things in it."""
    made = dice.choices((_run, _sweep, _look, _cache, _other), weights=(6, 2, 4, 1, 1))[0](dice, place)
    if dice.random() < 0.1:
        made.insert(dice.randrange(len(made) + 1), dice.choice((*WORDS, *NUMBERS, "--json", "--what", "--set")))
    return made


def _value(dice: random.Random, place: Place) -> str:
    kind = dice.random()
    if kind < 0.4:
        return dice.choice(NUMBERS)
    if kind < 0.7:
        return dice.choice(WORDS)
    if kind < 0.85:
        return str(dice.choice(place.files))
    return ",".join(dice.choice((*NUMBERS[:10], "a", "b")) for _ in range(dice.randrange(1, 4)))


def _assignments(dice: random.Random, place: Place, probe: str) -> list[str]:
    from workbench.core import config, registry

    keys = config.describe(registry.get(probe).config)
    words: list[str] = []
    for field in dice.sample(keys, min(len(keys), dice.randrange(0, 4))):
        choices = [str(choice) for choice in field["choices"] or ()]
        value = dice.choice(choices) if choices and dice.random() < 0.4 else _value(dice, place)
        name = field["name"] if dice.random() < 0.95 else field["name"][:-1]
        words += ["--set", f"{name}={value}"]
    return words


def _run(dice: random.Random, place: Place) -> list[str]:
    from workbench.core import registry

    known = registry.names()
    probe = dice.choice(known) if dice.random() < 0.95 else dice.choice(WORDS)
    model = place.model if probe == "next-token-entropy" else dice.choice(("no/such-model", "./nowhere", *WORDS))
    words = ["run", probe, "--model", model]
    if probe in known:
        words += _assignments(dice, place, probe)
    if dice.random() < 0.6:
        words += ["--data", str(dice.choice(place.files)) if dice.random() < 0.8 else dice.choice(WORDS)]
    options = (
        ("--seed", NUMBERS),
        ("--dtype", ("float32", "bfloat16", "int8", *WORDS)),
        ("--device", ("cpu", "cuda:99", "mps", "meta", *WORDS)),
        ("--engine", ("hf", "nnsight", "remote", *WORDS)),
        ("--revision", WORDS),
        ("--config", tuple(map(str, place.files))),
        ("--edit", tuple(map(str, place.files))),
        ("--out", (str(place.folder / "out" / dice.choice(WORDS[6:]).replace("\udcff", "_")), "", str(place.folder))),
    )
    for name, values in dice.sample(options, dice.choice((0, 0, 1, 2))):
        words += [name, dice.choice(values)]
    return words + dice.choice(([], ["--json"], ["--fresh"], ["--quiet"]))


def _sweep(dice: random.Random, place: Place) -> list[str]:
    from workbench.core import registry

    def thing() -> str:
        texts = (json.dumps(dice.choice(WORDS).replace("\udcff", "")), dice.choice(NUMBERS))
        return dice.choice((*texts, "[]", "{}", "[1, 'a']", "1979-05-27", "true", '["organism"]'))

    lines = [f"{dice.choice(('model', 'models', 'seed', 'seeds', 'device', 'dtype', 'x'))} = {thing()}"]
    lines += [f"models = {json.dumps([place.model, 'no/such-model'])}"] * (dice.random() < 0.7)
    for _ in range(dice.randrange(3)):
        lines += ["[[probes]]", f"name = {json.dumps(dice.choice(registry.names()))}"]
        lines += [f"{dice.choice(('config', 'grid', 'data', 'seeds'))} = {dice.choice((thing(), '{ a = [1, 2] }'))}"]
    path = place.folder / f"sweep {dice.randrange(10**6)} [x].toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return ["sweep", str(path), "--dry-run", *dice.choice(([], ["--json"]))]


def _look(dice: random.Random, place: Place) -> list[str]:
    def run() -> str:
        return dice.choice(place.runs) if dice.random() < 0.6 else dice.choice((*WORDS, *map(str, place.files[:3])))

    options = dice.choice(([], ["--json"], ["--table", dice.choice(("rows", "texts", *WORDS))]))
    return dice.choice(
        (
            ["show", run(), *options],
            ["compare", run(), run(), *dice.choice(([], ["--json"]))],
            ["runs", *dice.choice(([], ["--json"], ["--probe", dice.choice(WORDS)]))],
            ["probes", *dice.choice(([], ["--json"], [dice.choice(WORDS)]))],
            ["verify", *(run() for _ in range(dice.randrange(3))), *dice.choice(([], ["--json"]))],
            [
                "figures",
                run(),
                "--format",
                dice.choice(("html", "csv", *WORDS)),
                "--out",
                str(place.folder / "figures"),
            ],
            ["models", *dice.choice(([], ["--json"]))],
        )
    )


def _cache(dice: random.Random, place: Place) -> list[str]:
    number = dice.choice((*NUMBERS, "1GB", "-3GB", "1e9TB"))
    return [
        "cache",
        *dice.choice((["ls"], ["ls", "--json"], ["verify"], ["gc", "--budget", number], ["clear", "--yes"])),
    ]


def _other(dice: random.Random, place: Place) -> list[str]:
    word, file = dice.choice((*WORDS, *NUMBERS)), str(dice.choice(place.files))
    return dice.choice(
        (
            ["export-pruned", "./nowhere", file, word],
            ["train-sae", "-m", "./nowhere", "--data", file, "--site", word, "--out", str(place.folder / "sae")],
            ["train-sae", "-m", "./nowhere", "--data", file, "--site", "resid_post.0", "--out", "x", "--tokens", word],
            ["app", "--port", dice.choice(("x", "-1", "99999999", "", "1e3"))],
            ["doctor", word],
            [word],
            [],
        )
    )
