"""Numbers, sizes, durations and long texts as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from workbench.core.errors import InputError


def significant(value: Any, digits: int = 4) -> str:
    """A number to ``digits`` significant digits, whole numbers whole, - for None; other values as they are."""
    if value is None:
        return "-"
    if isinstance(value, (bool, int, str)):
        return str(value)
    return f"{value:.{digits}g}"


def number(value: Any, digits: int = 3) -> str:
    """A number to ``digits`` decimals without idle zeros, thousands set apart; – for None, NaN and infinities, yes and
    no."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if abs(value) < 1e-3 or abs(value) >= 1e5:
        return f"{value:.{digits}g}"
    return f"{value:,.{digits}f}".rstrip("0").rstrip(".") or "0"


def two_decimals(value: float) -> str:
    """Two decimals in as few characters as can be, for a cell: .07, -.3 as -.30, 0."""
    text = f"{value:.2f}"
    return "0" if text in ("0.00", "-0.00") else text.replace("0.", ".", 1) if abs(value) < 1 else text


def two_digits(count: float) -> str:
    """A count that is an estimate: 1,234 as 1,200."""
    if count < 100:
        return f"{count:.0f}"
    unit = 10 ** (len(str(int(count))) - 2)
    return f"{round(count / unit) * unit:,}"


def quantity(entry: Any, write: Callable[[Any], str] = number) -> str:
    """An entry of a summary in words: a number, or ``{value, low, high, n, rows}`` with what it has of an interval, n
    independent clusters and, where these have more, rows."""
    if not isinstance(entry, dict):
        return write(entry)
    text = write(entry.get("value"))
    if entry.get("low") is not None and entry.get("high") is not None:
        text += f" [{write(entry['low'])}, {write(entry['high'])}]"
    if entry.get("n") is None:
        return text
    text += f", n = {write(entry['n'])}"
    return text if entry.get("rows") in (None, entry["n"]) else f"{text} ({write(entry['rows'])} rows)"


def origin(info: Mapping[str, Any]) -> str:
    """``FILE (SOURCE, licence LICENCE)`` of a run that was imported, by its run.json; nothing for any other."""
    about = info.get("imported")
    if not isinstance(about, Mapping):
        return ""
    more = [about.get("source"), f"licence {about['licence']}" if about.get("licence") else "licence not stated"]
    return f"{about.get('file', '?')} ({', '.join(str(part) for part in more if part)})"


def human_bytes(n: float) -> str:
    """Bytes for people, in powers of 1000: 512 bytes, 3.4 MB, 1.2 GB."""
    if n < 1000:
        return f"{n:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        n /= 1000
        if n < 1000:
            return f"{n:.1f} {unit}"
    return f"{n / 1000:.1f} TB"


def parse_bytes(text: str) -> int:
    """``20GB`` in bytes (powers of ten; GiB and the like of two). Raises InputError for what is no size."""
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([kKMGT]?)(i?)[bB]?\s*", text)
    if match is None:
        raise InputError(f"'{text}' is not a size; write 500MB or 20GB.")
    power = " kMGT".index(match[2].replace("K", "k") or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def duration(seconds: float | None) -> str:
    """Seconds for people: 0.25 s, 12 s, 3 min 20 s, 2 h 5 min; nothing for None."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def one_line(error: BaseException, most: int = 160) -> str:
    """The first line of what an error of a library says, to stand inside a sentence of ours, and what it announces
    where it ends in a colon; the kind of the error where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if type(error) is KeyError and len(lines) == 1 and lines[0] == repr(error.args[0]):  # says the key alone
        lines = [f"there is no {lines[0]}"]
    end = next((number for number, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    said = " ".join(lines[: end + 1])
    said = re.sub(r"\b[A-Za-z_.]*(Error|Exception): ", "", said).rstrip(":")  # what the library calls it inside
    return cut("".join(letter if letter.isprintable() else "?" for letter in said).rstrip("."), most)


# what turns text round or is not seen, late control characters, half a character, tags
UNSEEN = (
    "\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
# and early control characters, ESC among them; tabs and line breaks stay
_HIDDEN = re.compile(f"[\x00-\x08\x0b-\x1f{UNSEEN}]")


def shortened(word: str, most: int = 400) -> str:
    """A word of thousands of characters by its beginning and its end, so that the sentence around it can be read."""
    return word if len(word) <= most else f"{word[: most - 100]}…({len(word):,} characters)…{word[-60:]}"


def harmless(text: object) -> str:
    """Text as a terminal may show it: what would move the cursor, colour, hide or turn round the rest is spelt out
    (``\\x1b``, ``\\u202e``); line breaks and tabs stay."""
    return _HIDDEN.sub(lambda found: _escaped(found[0]), str(text))


def _escaped(letter: str) -> str:
    number = ord(letter)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


def cut(text: object, most: int) -> str:
    """Text of at most ``most`` characters, … where it was longer."""
    text = str(text)
    return text if len(text) <= most else text[: most - 1] + "…"
