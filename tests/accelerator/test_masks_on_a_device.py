"""The bigram subnetwork on a device: a search in double precision, and masks that are judged, as on the CPU."""

import numpy as np
import pytest
import torch

from tests import virtual_accelerator as va
from tests.accelerator.test_probes_on_a_device import _alike
from tests.support import bigram_toy
from workbench.engine.weight_masks import read_masks, save_masks
from workbench.models.loading import load
from workbench.runs.execution import execute

CONFIG = {"steps": 60, "batch": 8, "length": 24, "penalty": 1.0, "attempts": 1, "random_draws": 2, "draws": 100}
CONFIG |= {"layer_draws": 1, "rotation": True, "rotation_tokens": 300}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    with va.present(devices=2):
        yield bigram_toy.build(tmp_path_factory.mktemp("bigrams") / "toy")


def test_a_search_in_double_precision_ends_with_the_same_weights(toy, tmp_path):
    folder, texts, pairs = toy
    here, there = (
        execute(
            "bigram-subnetwork",
            load(str(folder), device=device, dtype="float64"),
            data=texts,
            config=CONFIG | {"reference": str(pairs)},
            out=tmp_path / device,
        )
        for device in ("cpu", "virtual:1")
    )
    one, two = (read_masks(run.folder / "subnetwork.safetensors").masks for run in (here, there))
    assert all(torch.equal(one[name], two[name]) for name in one) and any(mask.any() for mask in one.values())
    for name in here.tables:
        _alike(here.table(name), there.table(name), name)


def test_a_given_mask_is_judged_as_on_the_cpu(toy, tmp_path):
    folder, texts, pairs = toy
    rng = np.random.default_rng(0)
    cpu = load(str(folder), device="cpu", dtype="float32")
    save_masks(
        tmp_path / "mask.safetensors",
        {name: mask | torch.from_numpy(rng.random(mask.shape) < 0.5) for name, mask in bigram_toy.oracle(cpu).items()},
    )
    here, there = (
        execute(
            "bigram-subnetwork",
            cpu if device == "cpu" else load(str(folder), device=device, dtype="float32"),
            data=texts,
            config=CONFIG | {"reference": str(pairs), "mask": str(tmp_path / "mask.safetensors"), "rotation": False},
            out=tmp_path / device,
        )
        for device in ("cpu", "virtual:1")
    )
    for name in here.tables:
        _alike(here.table(name), there.table(name), name)
