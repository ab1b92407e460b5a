"""Files that `--edit` reads: heads to switch off or to run twice, and modules to drop."""

from __future__ import annotations

from pathlib import Path

from workbench.engine.dropping import ModuleSet, is_modules, parse_modules
from workbench.engine.head_masks import HeadMask, parse_mask

SAVED = (HeadMask, ModuleSet)  # have `edit` and `mismatch_warning(model)`


def parse_edit(data: bytes, path: Path) -> HeadMask | ModuleSet:
    """What the bytes of a file mean. Raises InputError where they are no edit."""
    return parse_modules(data, path) if is_modules(data) else parse_mask(data, path)
