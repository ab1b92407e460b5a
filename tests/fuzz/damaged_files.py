"""Random damage to a file, of the kinds that disks, editors, archives and other programs do."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD_TEXTS = (
    *(b"", b" ", b"5", b"null", b"[]", b"{}", b'"x"', b"true", b"{", b"[" * 100_000, b"9" * 6000, b"NaN", b"1e400"),
    *(b"\xff\xfe\x00x", b"\x00" * 200, b"PAR1", b"PK\x03\x04", b"version https://git-lfs.github.com/spec/v1\n"),
    *(b'{"a": ' * 5000, b'{"schema": 1, "schema": 2}', b"a,b\n1\n", b'{"x": "\\ud800"}', b"\xef\xbb\xbf", b"--- [x]"),
)
ODD_VALUES = (None, True, -1, 0, 5, 10**400, 1.5, 1e308, "", "x", "\x1b[31m", "../../x", "9" * 5000, [], [1], {}, [[]])


def damage(path: Path, dice: random.Random) -> str:
    """Damage ``path`` in place; what was done, in words."""
    kinds: list[Callable[[Path, random.Random], str]] = [_flip, _flip, _cut, _replace, _other_kind]
    if path.suffix in (".json", ".jsonl"):
        kinds += [_field, _field, _field]
    return dice.choice(kinds)(path, dice)


def _flip(path: Path, dice: random.Random) -> str:
    data = bytearray(path.read_bytes())
    if not data:
        return _replace(path, dice)
    places = [dice.randrange(len(data)) for _ in range(dice.choice((1, 1, 1, 5)))]
    for place in places:
        data[place] ^= 1 << dice.randrange(8)
    path.write_bytes(bytes(data))
    return f"flipped a bit at {', '.join(map(str, places))}"


def _cut(path: Path, dice: random.Random) -> str:
    data = path.read_bytes()
    keep = dice.randrange(len(data)) if data else 0
    path.write_bytes(data[:keep])
    return f"cut it off after {keep} of {len(data)} bytes"


def _replace(path: Path, dice: random.Random) -> str:
    text = dice.choice(ODD_TEXTS)
    path.write_bytes(text)
    return f"wrote {text[:40]!r} ({len(text)} bytes)"


def _other_kind(path: Path, dice: random.Random) -> str:
    path.unlink()
    kind = dice.choice(("nothing", "folder", "dangling link", "link to itself", "pipe"))
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(path.parent / "not there")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    return f"put {kind} in its place"


def _field(path: Path, dice: random.Random) -> str:
    """Another value in one field of one JSON document (of one line of several)."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
    number = dice.randrange(len(lines))
    found = json.loads(lines[number])
    holder, key, where = found, None, ""
    while isinstance(holder, (dict, list)) and len(holder):
        key = dice.choice(list(holder)) if isinstance(holder, dict) else dice.randrange(len(holder))
        where += f".{key}"
        if not isinstance(holder[key], (dict, list)) or not holder[key] or dice.random() < 0.4:
            break
        holder = holder[key]
    if key is None:
        return _replace(path, dice)
    value = dice.choice(ODD_VALUES)
    if dice.random() < 0.15 and isinstance(holder, dict):
        del holder[key]
        value = "nothing at all"
    else:
        holder[key] = value
    lines[number] = _dump(found)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"wrote {str(value)[:40]!r} into {where}"


def _dump(value: Any) -> str:
    import sys

    most = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value)
    finally:
        sys.set_int_max_str_digits(most)


def restore(copy: Path, path: Path) -> None:
    """Put the folder ``copy`` back in place of ``path``."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(copy, path, symlinks=True)
