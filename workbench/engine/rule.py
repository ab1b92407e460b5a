"""The rule by which a token is drawn: temperature, then top-k, then top-p, then min-p, the order of Hugging Face."""

from __future__ import annotations

from dataclasses import dataclass, replace

from workbench.core.errors import InputError


@dataclass(frozen=True)
class Rule:
    """How a token is drawn. Temperature 0 takes the likeliest token; top_p 1, top_k 0 and min_p 0 cut nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, good, allowed in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0 and int(self.top_k) == self.top_k, "0 (off) or a whole number"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 (off) and 1"),
        ):
            if not good:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {allowed}.")

    @classmethod
    def parse(cls, text: str) -> Rule:
        """'temperature=0.6 top_p=0.9' as a rule; what is not named cuts nothing. Raises InputError naming the word that
        is wrong."""
        found: dict[str, float] = {}
        for word in text.split():
            name, _, value = word.partition("=")
            try:
                found[name] = {"temperature": float, "top_p": float, "top_k": int, "min_p": float}[name](value)
            except (KeyError, ValueError):
                raise InputError(
                    f"'{word}' in the decoding rule '{text}' is not temperature=…, top_p=…, top_k=… or min_p=…."
                ) from None
        return replace(cls(), **found)

    @property
    def truncates(self) -> bool:
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0
