"""Files that `--edit` reads: sets of heads (JSON) and masks of weights."""

from __future__ import annotations

from pathlib import Path

from workbench.engine.head_masks import HeadMask, parse_mask
from workbench.engine.weight_masks import PICKLE, SavedWeightMask, is_safetensors, parse_masks


def parse_edit_file(data: bytes, path: Path) -> HeadMask | SavedWeightMask:
    """What the bytes of an edit file hold. Raises InputError for a file that is neither."""
    return parse_masks(data, path) if is_safetensors(data) or data[:1] == PICKLE else parse_mask(data, path)
