"""Every probe gives on a device the tables that it gives on the CPU, and mixes no tensors of the two."""

import json

import numpy as np
import pytest

from tests import virtual_accelerator as va
from workbench.models.loading import load
from workbench.organisms import circuits, data
from workbench.runs.execution import execute
from workbench.store.activation_store import Store

CLOSE = 1e-6  # relative above 1: batches are larger on a device, and sums of other batches round otherwise
SHORT = {  # (model, config)
    "retrieval-heads": (
        "organism",
        {
            "lengths": (96,),
            "depths": (0.0, 60.0),
            "needles": 2,
            "mask_k": (1,),
            "mask_trials": 2,
            "random_draws": 1,
            "max_new_tokens": 4,
            "draws": 100,
        },
    ),
    "concept-depth": (
        "organism",
        {
            "sets": ("topic",),
            "limit": 8,
            "draws": 100,
            "shuffles": 1,
            "control_tasks": 1,
            "random_draws": 1,
            "steer": (1.0,),
        },
    ),
    "knowledge-conflict": (
        "circuit-conflict",
        {"limit": 8, "prune_k": (1,), "random_draws": 1, "flow_items": 1, "draws": 100, "curve_draws": 0},
    ),
    "data-selection": (
        "organism",
        {
            "k": 5,
            "features": 2,
            "explain": 1,
            "feature_effects": 1,
            "effect_controls": 2,
            "effect_rows": 5,
            "target": ("sea",),
        },
    ),
    "branching-factor": ("organism", {"samples": 3, "max_new_tokens": 5, "max_prompts": 2, "forking": 0.5}),
    "representation-geometry": (
        "organism",
        {
            "limit": 24,
            "draws": 10,
            "loss_rows": 2,
            "ablate": (4,),
            "fit_range": "5,12",
            "layers": "all",
            "also": ("dimension", "similarity", "cosine", "curvature"),
            "neighbours": 8,
            "max_tokens": 768,
        },
    ),
    "layer-redundancy": (
        "organism",
        {
            "limit": 12,
            "max_length": 24,
            "random_draws": 2,
            "drop_n": (1, 2),
            "also": ("iterative", "consecutive"),
            "timing_rounds": 0,
            "max_tokens": 768,
        },
    ),
    "token-filter": (
        "organism",
        {"lengths": (96,), "depths": (0.0, 60.0), "needles": 2, "k": (32,), "answer_trials": 2, "random_draws": 1}
        | {"max_new_tokens": 4, "draws": 100, "force_keep": ("head", "question")},
    ),
    "hopping": ("organism", {"limit": 24, "items": 2, "shuffles": 2, "max_new_tokens": 4}),
    "latent-language": ("circuit-bilingual", {"draws": 100, "steer_rows": 4, "random_draws": 2, "lens": "both"}),
    # a penalty that leaves nothing: which weights are kept beside hangs on roundings, see test_masks_on_a_device.py
    "bigram-subnetwork": (
        "organism",
        {"limit": 24, "steps": 6, "batch": 4, "length": 32, "attempts": 1, "penalty": 1e9, "random_draws": 1}
        | {"draws": 100, "rotation": True, "rotation_tokens": 200},
    ),
    "talking-heads": (
        "organism",
        {"sequences": 8, "limit": 12, "random_draws": 2, "receivers_each": 1, "scales": (0.0, 2.0), "sweep": "context"},
    ),
}


@pytest.fixture(scope="module")
def present():
    with va.present(devices=2):
        yield


@pytest.fixture(scope="module")
def loaded(present, _circuits):
    """loaded(model, device) → the model, loaded once."""
    kept: dict = {}

    def get(name: str, device: str):
        if (name, device) not in kept:
            kept[name, device] = load(name, device=device, dtype="float32")
        return kept[name, device]

    return get


@pytest.fixture
def material(tmp_path, _circuits):
    """material(probe) → its data file, None for the one that ships."""

    def get(probe: str):
        if probe == "knowledge-conflict":
            return circuits.folder("circuit-conflict", _circuits) / "conflicts.jsonl"
        if probe != "data-selection":
            return None
        path = tmp_path / "pool.jsonl"
        rows = data("pool").read_text(encoding="utf-8").splitlines()[:40]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return path

    return get


@pytest.mark.parametrize("probe", SHORT)
def test_a_probe_gives_the_tables_of_the_cpu(probe, loaded, material, tmp_path):
    model, config = SHORT[probe]
    here, there = (
        execute(
            probe,
            loaded(model, device),
            config=config,
            data=material(probe),
            out=tmp_path / device,
            store=Store(tmp_path / f"store-{device}"),
        )
        for device in ("cpu", "virtual:1")
    )
    assert there.info["model"]["device"] == "virtual:1" and there.info["model"]["device_name"]
    assert there.info["peak_device_memory_bytes"] > 0
    assert here.info["warnings"] == there.info["warnings"]
    assert set(here.tables) == set(there.tables) and here.tables
    for name in here.tables:
        _alike(here.table(name), there.table(name), name)
    for name in here.arrays:
        np.testing.assert_allclose(there.array(name), here.array(name), rtol=1e-5, atol=1e-5, err_msg=name)


def _alike(here, there, name: str) -> None:
    """Numbers within CLOSE, all else (tokens, texts, counts) the same."""
    assert here.columns == there.columns and here.height == there.height, name
    for column in here.columns:
        one, other = here[column], there[column]
        if one.dtype.is_float():
            np.testing.assert_allclose(
                other.to_numpy(), one.to_numpy(), rtol=CLOSE, atol=CLOSE, err_msg=f"{name}.{column}"
            )
        else:
            assert json.dumps(one.to_list()) == json.dumps(other.to_list()), f"{name}.{column}"
