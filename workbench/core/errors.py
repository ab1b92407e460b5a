"""The errors that people see: one sentence each, and the exit code that the command line gives them."""

from __future__ import annotations


class WorkbenchError(Exception):
    """Base of every error that is meant to be read by a person."""

    exit_code = 3


class InputError(WorkbenchError):
    """The input is wrong: what, where, and what to do about it."""

    exit_code = 2


class RunFailed(WorkbenchError):
    """The run began and could not finish."""

    exit_code = 3


class Cancelled(WorkbenchError):
    """The run was stopped on request; it can be resumed."""

    exit_code = 130


def is_panic(error: BaseException) -> bool:
    """Whether this is a failure inside a library written in Rust (polars), which passes every ``except Exception``.

    Its class derives from BaseException, is made anew by each library and can be imported from none, so it goes by its
    name. What Rust has printed on stderr by then cannot be kept off: no library offers its panic hook to Python."""
    return type(error).__name__ == "PanicException" and not isinstance(error, Exception)
