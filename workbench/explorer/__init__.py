"""What the explorer shows of heads and layers, callable from a notebook as well: `explore(model, prompt)`,
`activation_map(model, texts)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import polars as pl

    from workbench.explorer.exploring import Exploration

__all__ = ["activation_map", "explore"]


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


def activation_map(
    model: Any,
    source: Any,
    *,
    layer: int | str = -1,
    method: str = "pca",
    token: str | None = None,
    colour: str | None = None,
    clusters: int = 0,
    neighbours: int = 15,
    most: int = 5000,
    part: str = "",
) -> tuple[pl.DataFrame, go.Figure]:
    """See :func:`workbench.explorer.activation_maps.activation_map`; torch is imported when it is called."""
    from workbench.explorer import activation_maps

    return activation_maps.activation_map(
        model,
        source,
        layer=layer,
        method=method,
        token=token,
        colour=colour,
        clusters=clusters,
        neighbours=neighbours,
        most=most,
        part=part,
    )
