"""A panel of the Explorer as code: lines of Python, a command, a notebook; and the words that belong beside its figure.

`call` is the panel as a method of an `Exploration` with its arguments, as one writes it: ``lens(colour='entropy')``."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.explorer.exploring import Exploration
from workbench.explorer.switches import Switches

if TYPE_CHECKING:
    import plotly.graph_objects as go


def panels() -> list[str]:
    """The names of the panels: the methods of an `Exploration` that give a table and a figure, but for those that need
    a second one."""
    methods = {name: inspect.signature(method) for name, method in inspect.getmembers(Exploration, inspect.isfunction)}
    panels = [name for name, about in methods.items() if about.return_annotation == "Panel"]
    return [
        name for name in panels if not any(one.annotation == "Exploration" for one in methods[name].parameters.values())
    ]


def parse_call(call: str) -> tuple[str, dict[str, Any]]:
    """A panel's name and its arguments by name. Raises InputError for what is no call of a panel with plain values."""
    try:
        node = ast.parse(call, mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        given = [ast.literal_eval(one) for one in node.args]
        named = {one.arg or "": ast.literal_eval(one.value) for one in node.keywords}
    except (ValueError, SyntaxError) as error:
        raise InputError(f"'{call}' is no call of a panel with plain values, as lens(colour='entropy') is.") from error
    name = node.func.id
    bound = [one for one in parameters(name) if one not in named][: len(given)]
    return name, {**dict(zip(bound, given)), **named}


def parameters(panel: str) -> dict[str, inspect.Parameter]:
    """The arguments of a panel by name. Raises InputError, with the nearest name, where there is no such panel."""
    known = panels()
    if panel not in known:
        raise InputError(f"There is no panel '{panel}'{nearest(panel, known)}; the panels are {', '.join(known)}.")
    found = dict(inspect.signature(getattr(Exploration, panel)).parameters)
    found.pop("self")
    return found


def view_python(view: Exploration, *, model: str, prompt: str) -> str:
    """The line that opens the view."""
    other = "" if view.target.other is None else f", other={view.target.other}"
    opened = f"explore({model!r}, {prompt!r}, target={view.target.token}{other})"
    switches = view.switches
    given = [f"heads={list(switches.heads)}"] if switches.heads else []
    given += [f"mlps={list(switches.mlps)}"] if switches.mlps else []
    given += [f"how={switches.how!r}"] if given and switches.how != "zero" else []
    given += [f"donor={list(switches.donor)}"] if switches.donor else []
    if switches.features:
        given += [f"features={features_of(switches)!r}", f"autoencoder={switches.autoencoder!r}"]
    return f"view = {opened}" + (f".switched({', '.join(given)})" if given else "")


def python(view: Exploration, call: str, *, model: str, prompt: str) -> str:
    """The lines that make a panel in a notebook."""
    opened = view_python(view, model=model, prompt=prompt)
    return f"from workbench import explore\n\n{opened}\ntable, figure = view.{call}\nfigure.show()"


def command(view: Exploration, call: str, *, model: str, prompt: str) -> str:
    """The command that writes a panel's figure."""
    panel, arguments = parse_call(call)
    words = ["workbench", "explore", "--panel", panel, "--target", f"id={view.target.token}"]
    words += [] if view.target.other is None else ["--against", f"id={view.target.other}"]
    switches = view.switches
    words += ["--off", ",".join(f"{a}.{b}" for a, b in switches.heads)] if switches.heads else []
    words += ["--mlps", ",".join(map(str, switches.mlps))] if switches.mlps else []
    words += ["--how", switches.how] if (switches.heads or switches.mlps) and switches.how != "zero" else []
    words += ["--donor", "ids=" + ",".join(map(str, switches.donor))] if switches.donor else []
    if switches.features:
        words += ["--features", features_of(switches), "--autoencoder", switches.autoencoder]
    for name, value in arguments.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else repr(value)}"]
    return shlex.join([*words, "--out", f"{panel}.pdf", "--", model, prompt])


def notebook(view: Exploration, calls: Sequence[str], *, model: str, prompt: str, title: str) -> str:
    """A Jupyter notebook (nbformat 4.5) that opens the view and makes the panels of `calls`, a cell each."""
    cells = [_cell("markdown", f"# {title}")]
    opened = view_python(view, model=model, prompt=prompt)
    cells.append(_cell("code", f"from workbench import explore\n\n{opened}"))
    cells += [_cell("code", f"table, figure = view.{call}\nfigure") for call in calls]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for i, cell in enumerate(cells):
        cell["id"] = hashlib.sha256(f"{i} {cell['source']}".encode()).hexdigest()[:12]
    return json.dumps({"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def _cell(kind: str, source: str) -> dict[str, Any]:
    more = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True), **more}


def caption(fig: go.Figure, view: Exploration) -> str:
    """What a reader must know: what is shown, of which model, on which prompt, with what switched."""
    meta, model = fig.layout.meta or {}, view.opened.model
    parts = [str(meta.get("note") or "").rstrip(".")]
    parts.append(f"Target: {view.said}")
    if view.switches.any:
        how = f" ({view.switches.how})" if view.switches.heads or view.switches.mlps else ""
        parts.append(f"Switched{how}: {switched_in_words(view.switches)}")
    parts.append(f"Prompt: {model.decode(view.ids)!r}")
    dtype = str(model.dtype).removeprefix("torch.")
    parts.append(f"Model: {model.name}, weights {model.fingerprint[:12]}, {dtype}")
    return ". ".join(part for part in parts if part) + "."


def csv(table: pl.DataFrame) -> str:
    """The table as CSV; lists as numbers apart by spaces."""
    flat = [
        pl.col(name).cast(pl.List(pl.String)).list.join(" ")
        for name, dtype in table.schema.items()
        if isinstance(dtype, pl.List)
    ]
    return table.with_columns(flat).write_csv()


def switched_in_words(switches: Switches) -> str:
    """``heads 1.0, 1.1; MLPs 3; features 12=off``."""
    heads = ", ".join(f"{a}.{b}" for a, b in switches.heads)
    mlps = ", ".join(map(str, switches.mlps))
    features = ", ".join(map(str, switches.features))
    named = {"heads": heads, "MLPs": mlps, "features": features}
    return "; ".join(f"{what} {items}" for what, items in named.items() if items)


def features_of(switches: Switches) -> str:
    """``12=off,7=2.5``."""
    return ",".join(map(str, switches.features))


def heads_in(text: str) -> list[tuple[int, int]]:
    """``1.0,2.3`` as pairs. Raises InputError for anything else."""
    parts = [part for part in re.split(r"[,\s]+", text) if part]
    if not all(re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", part) for part in parts):
        raise InputError(f"'{text}' is no list of heads; write layer.head, such as 1.0,2.3.")
    return [(int(a), int(b)) for a, b in (part.split(".") for part in parts)]
