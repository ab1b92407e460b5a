"""Hand-built models whose truth is exact: weights written by construction into ordinary Hugging Face folders.

`names()` lists them, `folder(name, root)` builds one (once) and returns its folder. A folder holds what
`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` need, `truth.json` with what a probe must
find, and the data files a probe can be run on (named in `truth.json` under "data").

They are GPT-2 models, one is a Llama. What makes the constructions exact is described in `gpt2.py`.
"""

import json
import os
import shutil
import tempfile
from importlib import import_module
from pathlib import Path

from workbench.core.errors import InputError
from workbench.core.private import close, make_folder

VERSION = 3  # raise it whenever a construction changes: folders built by an older version are built again

_CIRCUITS = {
    "circuit-copy": ("copying", "one induction head copies a needle; scores 1, 0.5 and 0 are known for every head"),
    "circuit-copy-gqa": ("copying_gqa", "the copy circuit in a Llama: rotary positions, grouped-query attention, BOS"),
    "circuit-conflict": ("conflict", "memory head, context head, head that serves both, and a mediated path"),
    "circuit-xor": ("xor", "two features gathered by blocks 0 and 1, their XOR written by the MLP of block 3"),
    "circuit-markov": ("tables", "two-state Markov chain, entropy rate 0.386427 nats"),
    "circuit-zipf": ("tables", "independent draws from 1/rank over 50 tokens"),
    "circuit-geometric": ("tables", "independent draws from a geometric law (1/2) over 20 tokens"),
    "circuit-uniform": ("tables", "independent draws, uniform over 10 tokens"),
    "circuit-survivor": ("tables", "long samples with entropy 0, short ones with ln 4: shows survivor bias"),
    "circuit-decline": ("tables", "uniform over max(1, 16 - t) tokens at position t"),
    "circuit-channel": ("channel", "random heads and one planted composition channel between two of them"),
    "circuit-bilingual": ("bilingual", "words of three languages, read in a pivot language up to block 2"),
}


def names() -> dict[str, str]:
    """Name of every hand-built model and one line about it (does not import torch)."""
    return {name: summary for name, (_, summary) in _CIRCUITS.items()}


def folder(name: str, root: Path) -> Path:
    """The folder `root/name`, built first if it is absent or of an older version.

    Built beside its final place and renamed, so that an interrupted or concurrent build never leaves half a model.
    """
    if name not in _CIRCUITS:
        raise InputError(f"unknown circuit {name!r}: choose one of {', '.join(_CIRCUITS)}")
    root = Path(root)
    place = root / name
    if _version(place) == VERSION:
        return place
    make_folder(root)
    work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    try:
        built = work / "new"
        make_folder(built)
        import_module(f"{__name__}.{_CIRCUITS[name][0]}").build(name, built)
        close(built)
        _move_in(built, place, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return place


def truth(place: Path) -> dict:
    """What is known about the model in `place` (its `truth.json`)."""
    return json.loads((Path(place) / "truth.json").read_text(encoding="utf-8"))


def _version(place: Path) -> int | None:
    try:
        return truth(place).get("version")
    except (OSError, ValueError):
        return None


def _move_in(built: Path, place: Path, work: Path) -> None:
    """Rename `built` to `place`; a stale folder steps aside, a finished one by another process is kept."""
    if place.exists() and _version(place) != VERSION:
        os.replace(place, work / "old")
    try:
        os.replace(built, place)
    except OSError:
        if _version(place) != VERSION:
            raise
