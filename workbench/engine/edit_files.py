"""Files that `--edit` reads: heads to switch off or to run twice, modules to drop (JSON), and masks of weights."""

from __future__ import annotations

from pathlib import Path

from workbench.engine.dropping import ModuleSet, is_modules, parse_modules
from workbench.engine.head_masks import HeadMask, parse_mask
from workbench.engine.weight_masks import PICKLE, SavedWeightMask, is_safetensors, parse_masks

SavedEdit = HeadMask | ModuleSet | SavedWeightMask  # each has `edit` and `mismatch_warning(model)`


def parse_edit(data: bytes, path: Path) -> SavedEdit:
    """What the bytes of a file mean. Raises InputError where they are no edit."""
    if is_safetensors(data) or data[:1] == PICKLE:
        return parse_masks(data, path)
    return parse_modules(data, path) if is_modules(data) else parse_mask(data, path)
