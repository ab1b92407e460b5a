"""The command that writes a pruned model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.app import Json, app, path_of
from workbench.cli.show import print_json, say
from workbench.core.errors import InputError


@app.command("export-pruned")
def export_pruned(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Organism, local folder in Hugging Face format, or hub id.")
    ],
    mask: Annotated[
        Path,
        typer.Argument(
            parser=path_of("mask file"),
            metavar="MASK",
            help="File of heads, modules to drop or weights to keep, such as a run's pruned_heads.json.",
        ),
    ],
    folder: Annotated[
        Path,
        typer.Argument(
            parser=path_of("folder"),
            metavar="FOLDER",
            help="Folder to write; new or empty.",
        ),
    ],
    revision: Annotated[str | None, typer.Option(help="Revision of the model on the hub.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(help="Precision of the weights that are written: auto (their own), float32, bfloat16 or float16."),
    ] = "auto",
    trust_remote_code: Annotated[bool, typer.Option(help="Run the code that comes with the model.")] = False,
    json: Json = False,
) -> None:
    """Write a model without some of its heads, modules or weights.

    A Hugging Face folder for use in any other software. The output weights of heads are set to zero, and those of
    attention and MLPs that are dropped; dropped blocks are not in it; of a mask of weights only what it keeps is not
    zero.
    """
    import contextlib
    import sys

    from workbench.core.disk_errors import refusals_as_sentences
    from workbench.core.tables import existing

    path = existing(mask, what="mask")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and is not an empty folder; choose another for the pruned model.")
    from workbench.engine.edit_files import parse_edit
    from workbench.engine.pruned_export import check_exportable, export_edit
    from workbench.models.loading import load
    from workbench.runs.folder import read_file

    chosen = parse_edit(read_file(path), path)
    check_exportable(chosen, path)
    with contextlib.redirect_stdout(sys.stderr), refusals_as_sentences(folder):
        loaded = load(model, revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        warning = chosen.mismatch_warning(loaded)
        done = export_edit(loaded, chosen, folder)
    if json:
        print_json(
            {
                "folder": str(folder.resolve()),
                "model": loaded.name,
                done.kind: done.what,
                "warnings": [warning] if warning else [],
            }
        )
        return
    if warning:
        say(f"warning: {warning}", error=True)
    say(f"{done.said} is in {folder}")
