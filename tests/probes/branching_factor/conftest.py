"""Prompts, a model, and a way to run the probe on either."""

import json

import pytest

from workbench import organisms
from workbench.models.loading import load
from workbench.runs.execution import execute

PROMPTS = ["Once upon a time", "The dog", "Lily and Tom went to the park and"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "answer": "girl|the"}) + "\n" for p in PROMPTS))
    return path


@pytest.fixture
def run(prompts, tmp_path):
    """Run the probe; a circuit brings its own prompts."""

    def go(model, *, data=None, seed=0, **config):
        if isinstance(model, str) and model.startswith("circuit"):
            data = data or organisms.folder(model) / "prompts.jsonl"
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        return execute(
            "branching-factor",
            model,
            config={"samples": 6, "max_new_tokens": 24, **config},
            data=data or prompts,
            seed=seed,
            out=out,
        )

    return go


@pytest.fixture(scope="module")
def stories(tiny_llama):
    return load(str(tiny_llama))
