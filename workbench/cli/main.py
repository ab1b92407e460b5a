"""The entry point: reads the arguments, turns errors into one sentence and an exit code, and signals into a clean
stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from workbench.cli import exporting, looking, running, training, upkeep  # noqa: F401  (they add their commands to `app`)
from workbench.cli.app import app
from workbench.cli.show import say
from workbench.core.errors import Cancelled, WorkbenchError


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave with 0 done, 2 bad input, 3 failed or 130 cancelled."""
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """The same, giving the exit code back."""
    debug = "--debug" in argv
    argv = _spread_set([word for word in argv if word != "--debug"])
    if argv[:1] == ["--version"]:
        from workbench import __version__

        print(__version__)
        return 0
    try:
        with _stopping_cleanly():
            code = app(argv, standalone_mode=False, prog_name="workbench")
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
    except WorkbenchError as error:
        return _report(error, str(error), error.exit_code, debug)
    except KeyboardInterrupt as error:
        return _report(error, "Cancelled.", Cancelled.exit_code, debug)
    except (BrokenPipeError, SystemExit) as error:  # `workbench runs | head`; typer makes it an exit with code 1
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return 2
        if hasattr(error, "format_message"):  # typer could not read the arguments
            return _report(error, f"{error.format_message().strip().rstrip('.')}. See workbench --help.", 2, debug)
        if type(error).__name__ == "Abort":
            return _report(error, "Cancelled.", Cancelled.exit_code, debug)
        return _report(error, f"{type(error).__name__}: {error} (--debug shows where).", 3, debug)


def _report(error: BaseException, sentence: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    say("workbench: " + " ".join(sentence.split()), error=True)
    return code


def _spread_set(argv: list[str]) -> list[str]:
    """``--set a=1 b=2`` as ``--set a=1 --set b=2``."""
    words: list[str] = []
    after = False
    for word in argv:
        if after and "=" in word and not word.startswith("-") and words[-1] != "--set":
            words.append("--set")
        elif word.startswith("-") or words[-1:] != ["--set"]:
            after = word == "--set"
        words.append(word)
    return words


@contextmanager
def _stopping_cleanly() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt, once: a run then closes its folder and can be resumed. A second
    signal counts only when the first has not ended the process within five seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = [-60.0]

    def stop(number: int, frame: Any) -> None:
        if time.monotonic() - last[0] > 5:
            last[0] = time.monotonic()
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
