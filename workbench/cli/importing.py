"""The command that makes runs of published results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.app import Json, app, path_of
from workbench.cli.show import print_json, say, summary_lines


@app.command("import")
def import_results(
    file: Annotated[
        Path,
        typer.Argument(parser=path_of("results file"), metavar="FILE", help="File with results of others."),
    ],
    model: Annotated[str | None, typer.Option(help="The model that they are of; default: what the file says.")] = None,
    source: Annotated[str | None, typer.Option(help="Where they were published: a paper, a URL.")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="The terms that they come under.")
    ] = None,
    probe: Annotated[
        str | None, typer.Option(help="The probe whose results they are; default: recognised by the content.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:COLUMN", help="What the file calls a field, as bf:value; several with commas."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of("--out folder"),
            metavar="PATH",
            help="Folder of the run; default: by id below the runs folder.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make a run of published results.

    `show`, `compare`, `figures` and the app read it like a run made here, and say that it was imported. The same file
    is the same run.
    """
    from workbench.core.disk_errors import refusals_as_sentences
    from workbench.core.wording import origin
    from workbench.runs.folder import runs_root
    from workbench.runs.imported import import_file

    named = _columns(columns or [])
    with refusals_as_sentences(out or runs_root()):
        run = import_file(file, model=model, source=source, licence=licence, probe=probe, columns=named, out=out)
    if json:
        print_json({**run.info, "folder": str(run.folder), "summary": run.summary})
        return
    say(f"{run.probe} on {run.of('model', 'name', default='an unnamed model')}: imported from {origin(run.info)}")
    for line in summary_lines(run.summary):
        say(f"  {line}")
    for warning in run.of("warnings", default=[]):
        say(f"  warning: {warning}")
    say(f"  run: {run.id}")
    say(f"  folder: {run.folder}")


def _columns(pairs: list[str]) -> dict[str, str]:
    """``["position:x,bf:y"]`` as what each field is called in the file."""
    from workbench.core.errors import InputError

    found: dict[str, str] = {}
    for pair in (one.strip() for text in pairs for one in text.split(",")):
        name, colon, there = (part.strip() for part in pair.partition(":"))
        if not colon or not name or not there:
            raise InputError(f"Columns are given as name:column_in_the_file, not '{pair}'.")
        if name in found:
            raise InputError(f"The column '{name}' is named twice, '{found[name]}' and '{there}'; keep one.")
        found[name] = there
    return found
