"""The entry point: reads the arguments, turns errors into one sentence and an exit code, and signals into a clean
stop."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from workbench.cli import exploring, exporting, importing, looking, running, streams, training, upkeep  # noqa: F401  (they add their commands to `app`)
from workbench.cli.app import app
from workbench.cli.show import say
from workbench.core.errors import Cancelled, WorkbenchError, is_panic
from workbench.core.private import keep_new_files_private
from workbench.core.signals import stop_signals
from workbench.core.wording import one_line, shortened


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave with 0 done, 2 bad input, 3 failed or 130 cancelled."""
    keep_new_files_private()
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """The same, giving the exit code back."""
    debug = "--debug" in argv
    with streams.watched() as out:
        return _answer(_spread_set([word for word in argv if word != "--debug"]), debug, out)


def _answer(argv: list[str], debug: bool, out: streams.Watched | None) -> int:
    try:
        if argv[:1] == ["--version"]:
            from workbench import __version__

            print(__version__)
            code = 0
        else:
            with _stopping_cleanly():
                code = app(argv, standalone_mode=False, prog_name="workbench")
            if code == Cancelled.exit_code:  # typer makes an exit of a KeyboardInterrupt
                say("workbench: Cancelled.", error=True)
        if out is not None:
            out.flush()
        return code if isinstance(code, int) else 0
    except WorkbenchError as error:
        return _report(error, str(error), error.exit_code, debug)
    except KeyboardInterrupt as error:
        return _report(error, "Cancelled.", Cancelled.exit_code, debug)
    except (BrokenPipeError, SystemExit) as error:  # `workbench runs | head`; typer makes it an exit with code 1
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        if out is not None:
            streams.drop(out)
        return 0
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return 2
        if hasattr(error, "format_message"):  # typer could not read the arguments
            said = error.format_message().strip().rstrip(".")
            return _report(error, f"{said}{'' if said.endswith('?') else '.'} See workbench --help.", 2, debug)
        if type(error).__name__ == "Abort":
            return _report(error, "Cancelled.", Cancelled.exit_code, debug)
        if out is not None and out.refused is not None:
            return _report(error, f"The output could not be written: {out.refused.strerror}.", 3, debug)
        return _report(error, f"{type(error).__name__}: {error} (--debug shows where).", 3, debug)
    except BaseException as error:  # the last resort: a panic in Rust is no Exception
        what = "A library failed inside" if is_panic(error) else "The command failed"
        return _report(error, f"{what}: {type(error).__name__}: {one_line(error)} (--debug shows where).", 3, debug)


def _report(error: BaseException, sentence: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    say("workbench: " + " ".join(shortened(word) for word in sentence.split()), error=True)
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
    """Ctrl-C, SIGTERM and the end of the terminal (SIGHUP) raise KeyboardInterrupt, once: a run then closes its folder
    and can be resumed. A second signal counts only when the first has not ended the process within five seconds. A
    SIGHUP that is ignored (nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = [-60.0]

    def stop(number: int, frame: Any) -> None:
        if time.monotonic() - last[0] > 5:
            last[0] = time.monotonic()
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
