"""What everything else stands on: configs, the registry of probes, errors, files, tables that people bring. Imports
nothing of the project.

What a probe of one's own is written with is part of the public interface: `probe` (the decorator), `option`,
`DataSpec`, `Context`, `Result`, `InputError`, `read_table`.
"""

from workbench.core.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "probe": "workbench.core.registry",
        "DataSpec": "workbench.core.registry",
        "option": "workbench.core.config",
        "Context": "workbench.core.context",
        "Result": "workbench.core.context",
        "InputError": "workbench.core.errors",
        "read_table": "workbench.core.tables",
    },
)
