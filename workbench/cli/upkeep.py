"""The commands for the house itself: cache, doctor, app, train-organism."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.app import Json, app
from workbench.cli.show import print_columns, print_json, say
from workbench.core.errors import InputError, RunFailed
from workbench.core.wording import human_bytes, parse_bytes

cache = typer.Typer(
    help="Look after the activation store. The environment variable WORKBENCH_STORE_BUDGET (50GB) limits what it "
    "takes: the entries not"
    " used for longest go when a new one needs their room; without it, nothing goes by itself.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(cache, name="cache")


def _store():
    from workbench.store.activation_store import Store

    return Store()


def _print_frame(frame, json: bool, empty: str) -> None:
    rows = [{name: _plain(value) for name, value in row.items()} for row in frame.to_dicts()]
    if json:
        print_json(rows)
    elif not rows:
        print(empty)
    else:
        print_columns(
            frame.columns,
            [[human_bytes(value) if name.endswith("bytes") else value for name, value in row.items()] for row in rows],
        )


def _plain(value):
    """Times as text, to the second."""
    return value.isoformat(timespec="seconds") if hasattr(value, "isoformat") else value


@cache.command("ls")
def cache_ls(json: Json = False) -> None:
    """List the entries of the store."""
    store = _store()
    unreadable = store.unreadable()
    found = store.ls()
    _print_frame(found.filter(~found["key"].is_in(list(unreadable))), json, "The store is empty.")
    if unreadable:
        key, (_, reason) = next(iter(unreadable.items()))
        print(
            f"{_entries(len(unreadable))} could not be read, first {key}: {reason} The next run that needs one "
            f"computes it again, and `workbench cache gc` removes them.",
            file=sys.stderr,
        )


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


@cache.command("verify")
def cache_verify(
    drop: Annotated[
        bool, typer.Option("--drop", help="Remove what is damaged; the next run computes it again.")
    ] = False,
    json: Json = False,
) -> None:
    """Read every shard and every entry.json, and check them against their checksums."""
    found = _store().verify(drop=drop)
    _print_frame(found, json, "The store is empty.")
    damaged = [row for row in found.to_dicts() if row["status"] != "ok"]
    if damaged:
        first, reason = damaged[0]["file"], damaged[0]["reason"].rstrip(".")
        raise RunFailed(
            f"{len(damaged)} of {found.height} files are not whole, first {first} ({reason}); the next "
            f"run that needs one computes it again, and `workbench cache verify --drop` removes them."
        )


@cache.command("gc")
def cache_gc(
    budget: Annotated[
        str | None,
        typer.Option(
            help="Keep at most this much: 500MB, 20GB; default: WORKBENCH_STORE_BUDGET. Without either, only "
            "leftovers go."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Remove leftovers, then the entries not used for longest until the rest fits the budget."""

    _print_frame(_store().gc(None if budget is None else parse_bytes(budget)), json, "Nothing had to go.")


@cache.command("clear")
def cache_clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False, json: Json = False
) -> None:
    """Remove every stored activation. Runs stay."""
    if not yes:
        typer.confirm("Remove every stored activation?", abort=True, err=True)
    _print_frame(_store().clear(), json, "The store was empty.")


@app.command()
def doctor(json: Json = False) -> None:
    """Check this installation, with a remedy for each fault."""
    from workbench.cli import doctor as doctors

    found = doctors.examine()
    if json:
        print_json([vars(item) for item in found])
    else:
        for item in found:
            say(f"{item.status:<5} {item.name}: {item.detail}" + (f" -> {item.remedy}" if item.remedy else ""))
    if any(item.status == "fail" for item in found):
        raise typer.Exit(3)


@app.command("app")
def open_app(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8501,
    browser: Annotated[
        bool, typer.Option(help="Open a browser window, where there is a display and this is not an SSH session.")
    ] = True,
    token: Annotated[
        bool, typer.Option(help="Ask for the token in the printed address. Without, every user of this machine may.")
    ] = True,
) -> None:
    """Open the app in a browser. It listens on this machine only.

    Its printed address holds a token, new at each start unless WORKBENCH_APP_TOKEN says which.
    """
    from workbench.cli import serve

    serve.token_of(os.environ)  # says what is wrong with one that was chosen
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"Port {port} cannot be used ({error.strerror}); choose another with --port.") from error
    environment = {**os.environ, serve.OPEN: "1" if browser and serve.has_screen(os.environ) else "0"}
    if not token:
        environment[serve.NO_TOKEN] = "1"
    command = [sys.executable, "-m", "streamlit", "run", str(app_file())]
    command += ["--server.address", "localhost", "--server.port", str(port)]
    # Headless, Streamlit asks for no e-mail address on its first start; the browser is opened by us.
    command += ["--server.headless", "true", "--browser.gatherUsageStats", "false"]
    raise typer.Exit(subprocess.run(command, env=environment).returncode)


def app_file() -> Path:
    """app.py, of the checkout or of the installed package."""
    package = Path(__file__).resolve().parents[1]
    for path in (package.parent / "app.py", package / "app_entry" / "app.py"):
        if path.is_file():
            return path
    raise InputError("app.py was not found beside the installed package; install the project again.")


@app.command("train-organism")
def train_organism(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoints and the log; a run found there is resumed.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights and of the batches.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default: the recipe's.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train the organism again, from its recipe."""
    from workbench.organism_training.train import train

    options = {} if steps is None else {"steps": steps}
    print(train(out, seed=seed, device=device, log=lambda line: print(line, file=sys.stderr, flush=True), **options))
