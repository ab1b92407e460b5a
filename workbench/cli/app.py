"""The Typer app that every command is added to, and the options that many commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def path_of(what: str) -> Callable[[str], Path]:
    """How an option reads a path: one that is empty, or that no system takes, is refused before anything is done."""

    def path(text: str) -> Path:
        from workbench.core.paths import usable_path

        return usable_path(text, what=what)

    return path


app = typer.Typer(
    name="workbench",
    help="Probes for transformer language models: run them, resume them, compare them, draw their figures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    pass
