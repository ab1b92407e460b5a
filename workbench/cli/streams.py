"""Where the command line writes: a stderr that may go away without taking the run with it, a stdout that says what the
system refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any


class Watched:
    """A stream that notes the first error of writing to it in ``refused``; ``forgiving``: and goes on as if it had been
    written, to nowhere."""

    def __init__(self, stream: IO[str], *, forgiving: bool):
        self._stream = stream
        self._forgiving = forgiving
        self.refused: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            if isinstance(error, OSError):
                self.refused = self.refused or error
            if not self._forgiving:
                raise
            drop(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def watched() -> Iterator[Watched | None]:
    """Within the block nothing that is written to stderr raises, from libraries and their threads too: no line of
    progress is worth a run of hours. Yields the stream that is stdout; None where there is none."""
    before = sys.stdout, sys.stderr
    out: Any = None if before[0] is None else Watched(before[0], forgiving=False)
    err: Any = None if before[1] is None else Watched(before[1], forgiving=True)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        for stream in (out, err):
            if stream is not None:
                with suppress(OSError, ValueError):  # said already, where the command itself was done
                    stream.flush()
                if stream.refused is not None:
                    drop(stream)
        sys.stdout, sys.stderr = before


def drop(stream: IO[str] | Watched) -> None:
    """Let a stream lead nowhere, so that the interpreter can flush what is left of it when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
        stream.flush()
