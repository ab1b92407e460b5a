"""The activation store on disk: content-addressed, append-only, checked."""

from workbench.core.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"Store": "workbench.store.activation_store"})
