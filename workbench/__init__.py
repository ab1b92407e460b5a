"""Six probes for transformer language models; see the README.

The short way from Python::

    from workbench import load, probe, figure
    model = load("organism")
    run = probe("retrieval-heads", lengths=(128, 256)).run(model)
    figure(run)

Everything here is loaded when it is first asked for: ``import workbench`` imports neither torch nor polars.
"""

from __future__ import annotations

__version__ = "0.1.0"

# public name -> (module, attribute)
_LAZY = {
    "load": ("workbench.models", "load"),
    "probe": ("workbench.runs", "bind"),
    "figure": ("workbench.runs", "figure"),
    "open_run": ("workbench.runs", "open_run"),
    "Site": ("workbench.sites", "Site"),
    "Store": ("workbench.store", "Store"),
}

__all__ = ["__version__", *sorted(_LAZY)]


def __getattr__(name: str):
    """Import a public name on first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _LAZY[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
