"""Runs: one probe on one model with one config in a folder of its own; started, resumed, queued, swept, compared,
checked."""

from workbench.core.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "execute": "workbench.runs.execution",
        "prepare": "workbench.runs.execution",
        "open_run": "workbench.runs.folder",
        "list_runs": "workbench.runs.folder",
        "runs_root": "workbench.runs.folder",
        "Run": "workbench.runs.folder",
    },
)
