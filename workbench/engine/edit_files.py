"""Files that `--edit` reads: sets of heads (JSON) and masks of weights."""

from __future__ import annotations

from pathlib import Path

from workbench.engine.head_masks import HeadMask, parse_mask
from workbench.engine.weight_masks import SavedWeightMask, parse_masks


def parse_edit_file(data: bytes, path: Path) -> HeadMask | SavedWeightMask:
    """What the bytes of an edit file hold. Raises InputError for a file that is neither."""
    packed = data[8:9] == b"{" and data[:1] != b"{"  # safetensors: the length of its header stands in front
    return parse_masks(data, path) if packed or data[:1] == b"\x80" else parse_mask(data, path)
