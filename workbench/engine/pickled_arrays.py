"""A dict of numpy arrays from a pickle of others, without running anything that it asks for.

A pickle may name any function to be called. Here the few that numpy's own arrays need can be named and no other, so
that a file is either arrays and texts or an error.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.errors import InputError
from workbench.core.wording import one_line

_ALLOWED = {
    (module, name)
    for core in ("numpy.core", "numpy._core")
    for module, name in ((f"{core}.multiarray", "_reconstruct"), (f"{core}.numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype")}


def _latin(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes as {encoding}")
    return text.encode("latin1")


class _OnlyArrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return _latin
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which may run any code")
        return super().find_class(module, name)


def arrays_and_texts(data: bytes, path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the texts of a pickled dict. Raises InputError for anything else in it, and for a file that names
    code to run, which is not run."""
    try:
        found = _OnlyArrays(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle raises whatever it trips over
        raise InputError(f"{path} is no pickle of numpy arrays alone: {one_line(error)}.") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InputError(f"{path} holds no dict from names to arrays.")
    arrays = {key: value for key, value in found.items() if isinstance(value, np.ndarray)}
    texts = {key: value for key, value in found.items() if isinstance(value, str)}
    if odd := sorted(found.keys() - arrays.keys() - texts.keys()):
        raise InputError(f"{path} holds '{odd[0]}', which is neither an array nor a text.")
    if objects := sorted(key for key, value in arrays.items() if value.dtype.kind not in "biuf"):
        raise InputError(f"{path} holds '{objects[0]}', which is no array of numbers.")
    return arrays, texts
