"""Models: loading any Hugging Face causal LM, its sites, its attention, batches of its tokens. Only this package knows
what a module of transformers is called."""

from workbench.core.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "load": "workbench.models.loading",
        "wrap": "workbench.models.loading",
        "resolve": "workbench.models.files",
        "Model": "workbench.models.model",
        "DTYPES": "workbench.models.model",
        "Site": "workbench.models.sites",
    },
)
