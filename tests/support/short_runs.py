"""Settings under which the short run of each probe takes a second or two on a tiny model."""

PROBES = (
    "retrieval-heads",
    "concept-depth",
    "knowledge-conflict",
    "data-selection",
    "branching-factor",
    "representation-geometry",
    "layer-redundancy",
    "token-filter",
    "hopping",
    "latent-language",
    "talking-heads",
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
    "layer-redundancy": {"limit": 12, "random_draws": 2, "max_length": 16, "timing_rounds": 0, "drop_n": (1,)},
    "token-filter": {
        "depths": (50,),
        "needles": 2,
        "answer_trials": 2,
        "random_draws": 1,
        "max_new_tokens": 4,
        "draws": 100,
    },
    "hopping": {"items": 2, "shuffles": 2},
    "latent-language": {"draws": 100, "limit": 6, "steer_rows": 2, "steer_layers": (1,)},
    "talking-heads": {
        "sequences": 8,
        "limit": 8,
        "random_draws": 1,
        "receivers_each": 1,
        "ablate": 1,
        "scales": (0.0,),
    },
    "bigram-subnetwork": {"steps": 6, "random_draws": 1, "eval_texts": 6, "layer_ablation": False, "draws": 100},
}
