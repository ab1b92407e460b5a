"""The model whose bigram subnetwork is known, built once, and a short run of the probe on it."""

from __future__ import annotations

import pytest

from tests.support import bigram_toy
from workbench.models.loading import load
from workbench.runs.execution import execute

SHORT = {"steps": 150, "batch": 16, "length": 40, "penalty": 1.0, "attempts": 1}
SHORT |= {"random_draws": 4, "draws": 200, "layer_draws": 1}


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """(model, texts, pairs that are counted)."""
    folder, texts, pairs = bigram_toy.build(tmp_path_factory.mktemp("bigrams") / "toy")
    return load(str(folder)), texts, pairs


@pytest.fixture(scope="session")
def found(toy, tmp_path_factory):
    """The probe on the toy."""
    model, texts, pairs = toy
    out = tmp_path_factory.mktemp("bigram-run") / "run"
    return execute("bigram-subnetwork", model, data=texts, config=SHORT | {"reference": str(pairs)}, out=out)
