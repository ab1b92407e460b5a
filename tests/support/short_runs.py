"""Settings under which the short run of each probe takes a second or two on a tiny model."""

PROBES = (
    "retrieval-heads",
    "concept-depth",
    "knowledge-conflict",
    "data-selection",
    "branching-factor",
    "representation-geometry",
    "bigram-subnetwork",
)
# As the short run, but with less of each: what decides whether it fits the model is left as it is
LESS = {
    "retrieval-heads": {"depths": (50,), "mask_k": (1,), "draws": 100},
    "concept-depth": {"limit": 30, "shuffles": 0, "draws": 100, "random_draws": 1},
    "knowledge-conflict": {"random_draws": 1, "flow_items": 1, "prune_k": (1,), "draws": 100},
    "data-selection": {"target": ("code",), "features": 2, "resamples": 0, "explain": 1, "passages": 0}
    | {"baselines": ("neurons", "hidden")},
    "branching-factor": {"samples": 2, "max_new_tokens": 4},
    "representation-geometry": {"limit": 60, "random_draws": 1, "draws": 20, "loss_rows": 4},
    "bigram-subnetwork": {"steps": 6, "random_draws": 1, "eval_texts": 6, "layer_ablation": False, "draws": 100},
}
