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
            help="JSON file of heads, such as the pruned_heads.json of a run.",
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
    """Write a model without some of its heads.

    A Hugging Face folder with the output weights of the mask's heads set to zero, for use in any other software.
    """
    import contextlib
    import sys

    from workbench.core.disk_errors import refusals_as_sentences
    from workbench.core.tables import existing

    path = existing(mask, what="mask")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and is not an empty folder; choose another for the pruned model.")
    from workbench.engine.head_masks import parse_mask
    from workbench.runs.folder import read_file

    chosen = parse_mask(read_file(path), path)
    if chosen.how != "zero":
        does = {
            "uniform": "makes heads attend evenly",
            "dual run": "adds what heads say in a run of their own",
            "components": "scales components of heads",
        }[chosen.how]
        raise InputError(
            f"The mask {path} {does} ({chosen.how}), which no weights can hold; only masks "
            f"that set heads to zero can be exported."
        )
    from workbench.engine.pruned_export import export_pruned as write
    from workbench.models.loading import load

    with contextlib.redirect_stdout(sys.stderr), refusals_as_sentences(folder):
        loaded = load(model, revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        warning = chosen.mismatch_warning(loaded)
        write(loaded, chosen.heads, folder)
    heads = [f"{layer}.{head}" for layer, head in chosen.heads]
    if json:
        print_json(
            {
                "folder": str(folder.resolve()),
                "model": loaded.name,
                "heads": heads,
                "warnings": [warning] if warning else [],
            }
        )
        return
    if warning:
        say(f"warning: {warning}", error=True)
    say(
        f"{loaded.name} without {len(heads)} of its {loaded.n_layers * loaded.n_heads} heads "
        f"({', '.join(heads)}) is in {folder}"
    )
