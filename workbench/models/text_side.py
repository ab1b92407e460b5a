"""A model as its texts see it: what a tokenizer and a config say without the weights. A loaded model has this side, and
so has one whose weights were not read (`workbench.models.unloaded_model`)."""

from __future__ import annotations

import datetime
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from workbench.core.errors import InputError
from workbench.models.token_bytes import readable


class TextSide(ABC):
    """Texts to tokens and back. Whoever has this side says which tokenizer it is, how long a text may be, and which ids
    end one."""

    tokenizer: Any  # of transformers; None where the model has none
    name: str
    prepends_bos: bool
    day: datetime.date

    @property
    @abstractmethod
    def n_layers(self) -> int: ...

    @property
    @abstractmethod
    def width(self) -> int: ...

    @property
    @abstractmethod
    def context_length(self) -> int | None: ...

    @property
    @abstractmethod
    def eos_ids(self) -> tuple[int, ...]: ...

    @property
    def bos_id(self) -> int | None:
        return self.tokenizer.bos_token_id if self.tokenizer is not None else None

    @property
    def eos_id(self) -> int | None:
        return getattr(self.tokenizer, "eos_token_id", None)

    def too_long(self, length: int) -> bool:
        return self.context_length is not None and length > self.context_length

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Token ids of `text`, with BOS in front iff `bos` and the tokenizer itself puts one there; no other
        specials."""
        return (
            self.encode_with_offsets(text, bos=bos)[0]
            if self.tokenizer is None
            else self._bos(bos) + list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        )

    def encode_all(self, texts: Sequence[str], *, bos: bool = True) -> list[list[int]]:
        """`encode` of every text, with few calls of the tokenizer (which keeps much more than ids of what it has in
        hand)."""
        if self.tokenizer is None:
            return [self.encode(text, bos=bos) for text in texts]
        some = (list(texts[start : start + 256]) for start in range(0, len(texts), 256))
        return [
            self._bos(bos) + ids for part in some for ids in self.tokenizer(part, add_special_tokens=False)["input_ids"]
        ]

    def encode_with_offsets(self, text: str, *, bos: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and the character span [start, end) of each; BOS has the empty span (0, 0).

        Raises InputError when the model has no tokenizer, or a slow one that cannot say where its tokens are."""
        if self.tokenizer is None:
            raise InputError(f"The model {self.name} has no tokenizer; give token ids instead of text.")
        if not self.tokenizer.is_fast:
            raise InputError(
                f"The tokenizer of {self.name} is a slow one without character offsets; convert it to a tokenizer.json."
            )
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        front = self._bos(bos)
        return front + list(found["input_ids"]), [(0, 0)] * len(front) + [
            tuple(span) for span in found["offset_mapping"]
        ]

    @property
    def special_ids(self) -> set[int]:
        """Ids that are no text: special tokens, but for an unknown-token id that has no other office (it may be an
        ordinary letter in small vocabularies; where it is also the BOS, as in GPT-2's kin, it is none). Empty without a
        tokenizer."""
        if self.tokenizer is None:
            return set()
        t = self.tokenizer
        return set(t.all_special_ids) - ({t.unk_token_id} - {t.bos_token_id, t.eos_token_id, t.pad_token_id})

    def _bos(self, wanted: bool) -> list[int]:
        if not (wanted and self.prepends_bos):
            return []
        bos = self.bos_id
        assert bos is not None  # the tokenizer puts it in front
        return [bos]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens (an unknown-token id stays: it may be an ordinary letter in small
        vocabularies)."""
        hidden = self.special_ids
        return self.tokenizer.decode([int(i) for i in ids if int(i) not in hidden], clean_up_tokenization_spaces=False)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as it reads in the text (leading space visible as a space), specials by name, bytes that are no
        whole character as ``<0xF0>``."""
        special = set(self.tokenizer.all_special_ids)
        out = []
        for i in ids:
            piece = self.tokenizer.convert_ids_to_tokens(int(i))
            if i in special or piece is None:
                out.append(piece or f"<{i}>")
            elif piece.startswith("▁"):
                out.append(" " + piece[1:])
            else:
                text = self.tokenizer.decode([i], clean_up_tokenization_spaces=False) or piece
                out.append(readable(piece, text))
        return out

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """SHA-256 (hex) over the tokenizer's vocabulary, rules, special tokens and chat template, and the ids that end
        a text."""
        if self.tokenizer is None:
            return "none"
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        rules = [
            str(self.tokenizer.special_tokens_map),
            self.prepends_bos,
            getattr(self.tokenizer, "chat_template", None),
            self.eos_ids,
        ]
        return hashlib.sha256((text + json.dumps(rules, sort_keys=True, default=str)).encode()).hexdigest()


def prepends_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer puts BOS in front of a text."""
    if tokenizer is None or tokenizer.bos_token_id is None:
        return False
    found = tokenizer("a")["input_ids"]
    return len(found) > 0 and found[0] == tokenizer.bos_token_id
