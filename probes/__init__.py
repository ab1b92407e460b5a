"""One folder a method. ``WORKBENCH_PROBES`` names further places that hold such folders, separated as those of PATH."""

import os

# As they are shown; folders that are not named here come after, by name.
ORDER = (
    "retrieval_heads",
    "concept_depth",
    "knowledge_conflict",
    "data_selection",
    "branching_factor",
    "representation_geometry",
    "talking_heads",
    "hopping",
    "latent_language",
    "layer_redundancy",
    "bigram_subnetwork",
    "token_filter",
)

__path__ += [
    os.path.abspath(os.path.expanduser(place))
    for place in os.environ.get("WORKBENCH_PROBES", "").split(os.pathsep)
    if place
]
