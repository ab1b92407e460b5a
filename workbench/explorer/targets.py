"""The named target of the Explorer: one token, or one against another, and how its value is read off logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workbench.core.errors import InputError
from workbench.core.wording import cut
from workbench.models.model import Model


@dataclass(frozen=True)
class Target:
    """A token, by its id, and with `other` the token it is held against."""

    token: int
    other: int | None = None

    @property
    def ids(self) -> list[int]:
        """One id, or two."""
        return [self.token] if self.other is None else [self.token, self.other]

    def value(self, logits: torch.Tensor) -> torch.Tensor:
        """Of logits [..., V] over the whole vocabulary: log p(token) in nats, or with `other` the difference of the
        two logits; [...] float32."""
        logits = logits.float()
        if self.other is not None:
            return logits[..., self.token] - logits[..., self.other]
        return logits[..., self.token] - logits.logsumexp(-1)

    def value_of(self, chosen: torch.Tensor, normaliser: torch.Tensor) -> torch.Tensor:
        """The same from the logits of `ids` [..., 1 or 2] and the logarithm of the summed exponentials [...]."""
        return chosen[..., 0] - (normaliser if self.other is None else chosen[..., 1])

    def tokens_in_words(self, model: Model) -> str:
        """``“ Paris”`` or ``“ Paris” − “ Rome”``."""
        return " − ".join(f"“{cut(text, 24)}”" for text in self._texts(model))

    def _texts(self, model: Model) -> list[str]:
        return [str(i) for i in self.ids] if model.tokenizer is None else model.token_strings(self.ids)

    def in_words(self, model: Model) -> str:
        """``log p(" Paris")`` or ``logit(" Paris") − logit(" Rome")``."""
        names = [f"“{cut(text, 24)}”" for text in self._texts(model)]
        return f"log p({names[0]})" if self.other is None else f"logit({names[0]}) − logit({names[1]})"


def target_of(
    model: Model, token: str | int, other: str | int | None = None, *, logits: torch.Tensor | None = None
) -> Target:
    """A target from ids, or from text that is one token as typed, with a space in front or without the one it has;
    where several of these are, the likeliest by `logits` [V] (what follows the prompt), the first of them without.

    Raises InputError for text of several tokens, for a word or an id the model does not have, and for one token
    against itself."""
    second = None if other is None or other == "" else _id(model, other, logits)
    found = Target(_id(model, token, logits), second)
    if found.other == found.token:
        raise InputError("The target is held against itself: choose two different tokens.")
    return found


def _id(model: Model, token: str | int, logits: torch.Tensor | None) -> int:
    if isinstance(token, int):
        if not 0 <= token < model.vocab_size:
            raise InputError(f"There is no token {token}: {model.name} has the ids 0 to {model.vocab_size - 1}.")
        return token
    if not token:
        raise InputError("The target is empty: type a word that is one token.")
    ways = [model.encode(text, bos=False) for text in (token, f" {token}", token.removeprefix(" ")) if text]
    unknown = None if token.strip() == model.tokenizer.unk_token else model.tokenizer.unk_token_id
    single = list(dict.fromkeys(ids[0] for ids in ways if len(ids) == 1 and ids[0] != unknown))
    if single:
        return single[0] if logits is None else max(single, key=lambda i: float(logits[i]))
    if [unknown] in ways:
        raise InputError(f"“{cut(token, 40)}” is unknown to {model.name}: choose a word that it has.")
    parts = model.token_strings(ways[0])
    raise InputError(
        f"“{cut(token, 40)}” is {len(parts)} tokens to {model.name} ({', '.join(map(repr, parts[:6]))}); the target is "
        f"one of them."
    )
