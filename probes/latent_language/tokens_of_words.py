"""Which tokens are a word: all of it as it stands after a prompt, and every token that may begin it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from workbench.models.prompt_style import WrittenPrompt
from workbench.models.prompt_templates import chat_ids, raw_ids
from workbench.models.text_side import TextSide
from workbench.models.token_bytes import alphabet


def is_han(text: str) -> bool:
    """Whether a text is Chinese characters and nothing else (which Chinese and Japanese share)."""
    return bool(text.strip()) and all("CJK UNIFIED" in unicodedata.name(sign, "") for sign in text.strip())


@dataclass(frozen=True)
class WordTokens:
    """`tokens` of a word after a prompt; `apart`: cut by themselves, because the prompt's last token would be cut
    otherwise with the word behind it."""

    tokens: tuple[int, ...]
    apart: bool = False


class WordVocabulary:
    """A model's tokenizer, asked for words; what was found is kept."""

    def __init__(self, model: TextSide):
        self.model = model
        self._beginnings: dict[str, tuple[int, ...]] = {}

    @cached_property
    def _pieces(self) -> Mapping[str, int]:
        return self.model.tokenizer.get_vocab()

    @cached_property
    def _signs(self) -> Mapping[int, str]:
        return {byte: sign for sign, byte in alphabet().items()}

    def beginnings(self, word: str) -> tuple[int, ...]:
        """The ids of all tokens that are the beginning of a word, or all of it, with or without a space in front
        (Wendler et al.). Bytes of a character that is not whole are none."""
        if word not in self._beginnings:
            found = []
            for end in range(1, len(word) + 1):
                for text in (word[:end], " " + word[:end]):
                    found += self._tokens_that_read(text)
            self._beginnings[word] = tuple(dict.fromkeys(found))
        return self._beginnings[word]

    def _tokens_that_read(self, text: str) -> list[int]:
        raw = text.encode()
        spelt = "".join(self._signs[byte] for byte in raw)
        pieces = [text.replace(" ", "▁"), spelt, *([f"<0x{raw[0]:02X}>"] if len(raw) == 1 else [])]
        ids = dict.fromkeys(self._pieces[piece] for piece in pieces if piece in self._pieces)
        special = self.model.special_ids
        return [i for i in ids if i not in special and self.model.token_strings([i])[0] == text]

    def after(self, written: WrittenPrompt, space: str, word: str) -> WordTokens | None:
        """The tokens of a word behind a prompt; None where the tokenizer cannot write it."""
        encoded = chat_ids if written.way == "chat" else raw_ids
        whole = encoded(self.model, written.text + space + word)
        n = len(written.ids)
        if whole[:n] == list(written.ids) and self._reads(whole[n:], word):
            return WordTokens(tuple(whole[n:]))
        front = written.text.rstrip()[-1:] or "."
        for before in (front, ""):
            ids = self.model.encode(before, bos=False) if before else []
            both = self.model.encode(before + space + word, bos=False)
            if both[: len(ids)] == ids and self._reads(both[len(ids) :], word):
                return WordTokens(tuple(both[len(ids) :]), apart=True)
        return None

    def _reads(self, ids: Sequence[int], word: str) -> bool:
        unknown = getattr(self.model.tokenizer, "unk_token_id", None)
        if not ids or (
            unknown is not None and unknown in ids and unknown not in self.model.encode(word[:1], bos=False)
        ):
            return False
        return _alike(self.model.decode(ids)) == _alike(word)

    def writes(self, text: str) -> bool:
        """Whether the tokenizer gives a text back as it was, letter case and spaces aside."""
        return _alike(self.model.decode(self.model.encode(text, bos=False))) == _alike(text)


def _alike(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
