"""The command that makes a panel of the Explorer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.app import Json, app, path_of
from workbench.cli.show import print_json, say, say_data
from workbench.core.errors import InputError


@app.command("explore")
def explore_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Organism, local folder in Hugging Face format, or hub id.")
    ],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt, as it is fed.")],
    panel: Annotated[str, typer.Option(help="lens, waterfall, direct_effects, patch_map, paths, …")] = "lens",
    target: Annotated[
        str | None, typer.Option(help="The next token that effects are of, or id=N; the likeliest unless given.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="A token to hold it against, or id=N.")] = None,
    off: Annotated[str, typer.Option(help="Heads to switch: 1.0,2.3.")] = "",
    mlps: Annotated[str, typer.Option(help="MLPs to switch: 0,2.")] = "",
    how: Annotated[str, typer.Option(help="How they are switched: zero, mean, uniform or patch.")] = "zero",
    donor: Annotated[
        str | None, typer.Option(help="Prompt to patch the switched ones from, or its tokens: ids=1,2,3.")
    ] = None,
    features: Annotated[str, typer.Option(help="Features of an autoencoder to change: 12=off,7=2.5,9=add-1.")] = "",
    autoencoder: Annotated[
        str | None, typer.Option(help="Whose features they are; the one that ships with an organism unless given.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An argument of the panel; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of("file"),
            metavar="FILE",
            help="File to write: .pdf, .svg, .png or .html of the figure, with caption and BibTeX beside it, or .csv.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make one panel of the Explorer: its table on stdout, or its figure in a file.

    The same as explore(MODEL, PROMPT).PANEL(...) in Python; the app writes this command for every panel.
    """
    import contextlib
    import sys

    from workbench.explorer import as_code
    from workbench.explorer.as_code import csv
    from workbench.explorer.exploring import explore

    given = _arguments(panel, settings or [])
    suffix = _suffix(out)
    with contextlib.redirect_stdout(sys.stderr):
        view = explore(model, prompt, target=_token(target), other=_token(against))
        heads, layers = as_code.heads_in(off), _numbers(mlps, "layers")
        if heads or layers or features:
            of = {} if autoencoder is None else {"autoencoder": autoencoder}
            view = view.switched(heads=heads, mlps=layers, how=how, donor=_prompt(donor), features=features, **of)
        table, figure = getattr(view, panel)(**given)
    if out is None:
        print_json(table.to_dicts()) if json else say_data(csv(table))
        return
    written = _write(out, suffix, table, figure, as_code.caption(figure, view), panel)
    print_json({"files": [str(path) for path in written]}) if json else say("\n".join(map(str, written)))


def _write(out: Path, suffix: str, table: Any, figure: Any, words: str, panel: str) -> list[Path]:
    from workbench.core.files import write_bytes
    from workbench.explorer.as_code import csv
    from workbench.explorer.panel_papers import bibtex
    from workbench.figures.export import write_figures

    if suffix == "csv":
        write_bytes(out, csv(table).encode())
        return [out]
    return write_figures(
        {out.stem: figure}, {out.stem: words}, out.parent, formats=[suffix], entry=bibtex(panel), preset="double"
    )


def _suffix(out: Path | None) -> str:
    from workbench.figures.export import FORMATS

    suffix = "" if out is None else out.suffix.lstrip(".").lower()
    if out is not None and suffix not in FORMATS:
        raise InputError(f"'{out}' says no format by its end; write one of {', '.join(FORMATS)}.")
    return suffix


def _arguments(panel: str, settings: list[str]) -> dict[str, Any]:
    """The arguments of a panel from KEY=VALUE: plain Python values, all else is text."""
    import ast

    from workbench.core.nearest_name import nearest
    from workbench.explorer import as_code

    known = as_code.parameters(panel)
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in known:
            raise InputError(
                f"The panel {panel} has no setting '{key}'{nearest(key, list(known))}; it has {', '.join(known)}."
            )
        try:
            found[key] = ast.literal_eval(value) if "str" not in str(known[key].annotation).split(" | ")[0] else value
        except (ValueError, SyntaxError):
            found[key] = value
    missing = [name for name, one in known.items() if one.default is one.empty and name not in found]
    if missing:
        raise InputError(f"The panel {panel} needs {' and '.join(missing)}; give it with --set {missing[0]}=….")
    return found


def _token(text: str | None) -> str | int | None:
    if text is None or not text.startswith("id="):
        return text
    return _numbers(text.removeprefix("id="), "tokens")[0]


def _prompt(text: str | None) -> str | list[int]:
    if text is None or not text.startswith("ids="):
        return text or ""
    return _numbers(text.removeprefix("ids="), "tokens")


def _numbers(text: str, what: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"'{text}' is no list of {what}; write numbers with commas between them.") from error
