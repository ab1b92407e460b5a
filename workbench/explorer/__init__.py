"""What the explorer shows of heads and layers, callable from a notebook as well: `explore(model, prompt)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.explorer.exploring import Exploration

__all__ = ["explore"]


def explore(
    model: Any,
    prompt: str,
    *,
    target: str | int | None = None,
    other: str | int | None = None,
    dtype: str | None = None,
) -> Exploration:
    """See :func:`workbench.explorer.exploring.explore`; torch is imported when it is called."""
    from workbench.explorer import exploring

    return exploring.explore(model, prompt, target=target, other=other, dtype=dtype)
