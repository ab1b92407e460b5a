"""The Chromium that draws PDF, SVG and PNG, where there is one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from workbench.core.errors import WorkbenchError

NO_BROWSER = (
    "PDF, SVG and PNG need Chromium, which was not found: install it (on Debian or Ubuntu 'sudo apt-get "
    "install chromium', "
    "elsewhere run '{get}') or set BROWSER_PATH to it; html and csv work without it."
)


def browser() -> str:
    """The path of the Chromium to draw with. Raises WorkbenchError, saying what to install, where there is none."""
    from choreographer.browsers.chromium import Chromium

    named = os.environ.get("BROWSER_PATH")
    if named:
        if not Path(named).is_file():
            raise WorkbenchError(f"BROWSER_PATH names {named}, which is not a file: set it to Chromium or unset it.")
        return named
    with contextlib.suppress(Exception):
        found = Chromium.find_browser(skip_local=False)
        if found and Path(found).is_file():
            return str(found)
    raise WorkbenchError(NO_BROWSER.format(get="kaleido_get_chrome"))


def can_draw() -> bool:
    """Whether there is one."""
    try:
        browser()
    except WorkbenchError:
        return False
    return True
