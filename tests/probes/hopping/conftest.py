"""The circuit that hops too late, and a run on all of its questions."""

import pytest

from tests.support import two_hop_circuit as circuit
from workbench.models.loading import load
from workbench.runs.execution import execute

CONFIG = {"describe_prompt": circuit.DESCRIBE, "shuffles": 5, "items": 0}


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    return circuit.build(tmp_path_factory.mktemp("circuit") / "two-hop")


@pytest.fixture(scope="package")
def toy(place):
    return load(str(place))


@pytest.fixture(scope="package")
def toy_run(toy, place, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "toy"
    return execute("hopping", toy, config=CONFIG, data=place / "questions.jsonl", out=out)
