"""Tokens that are part of a character, by their bytes: ``<0xF0>``.

A byte-level tokenizer writes every byte as one sign of its own alphabet (Radford et al. 2019); SentencePiece spells the
bytes of what it has no piece for as ``<0xF0>`` itself."""

from __future__ import annotations

import re
from functools import cache

LOST = "\ufffd"  # what decoding puts for bytes that are no character


def readable(piece: str, text: str) -> str:
    """The text of a token, with the bytes in it that are no whole character by their numbers. ``piece``: the token as
    its tokenizer spells it."""
    raw = bytes_of(piece) if LOST in text else None
    return text if raw is None else in_words(raw)


def bytes_of(piece: str) -> bytes | None:
    """The bytes that a piece stands for; None where its tokenizer does not write bytes."""
    if found := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece):
        return bytes([int(found[1], 16)])
    known = alphabet()
    return bytes(known[sign] for sign in piece) if all(sign in known for sign in piece) else None


def in_words(raw: bytes) -> str:
    """Bytes as text, each that belongs to no whole character as ``<0xF0>``."""
    out = ""
    while raw:
        try:
            return out + raw.decode()
        except UnicodeDecodeError as error:
            out += raw[: error.start].decode() + "".join(f"<0x{b:02X}>" for b in raw[error.start : error.end])
            raw = raw[error.end :]
    return out


@cache
def alphabet() -> dict[str, int]:
    """The sign of every byte in byte-level tokenizers: itself where it can be seen, else the next one from 256 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in seen]
    return {**{chr(byte): byte for byte in seen}, **{chr(256 + n): byte for n, byte in enumerate(rest)}}
