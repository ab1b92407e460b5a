"""Six probes for transformer language models; see the README.

The short way from Python::

    from workbench import load, probe, figure
    model = load("organism")
    run = probe(NAME, key=value).run(model)  # `workbench probes` lists names and keys
    figure(run)

Everything here is loaded when it is first asked for: ``import workbench`` imports neither torch nor polars.
"""

from workbench.core.lazy import lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "load": "workbench.models.loading",
        "probe": "workbench.runs.execution:bind",
        "figure": "workbench.runs.execution",
        "open_run": "workbench.runs.folder",
        "Site": "workbench.models.sites",
        "Store": "workbench.store.activation_store",
    },
)
