"""Two small probes for the tests: one without a model, in resumable parts, and one that reads a real model.

Also runs as a script, for tests that kill or interrupt a process::

    python tiny_probes.py workbench run parts --model fake ...     the command line, with a model that needs no torch
"""

from __future__ import annotations

import os
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.registry import DataSpec, option, probe
from workbench.core.tables import read_table

BIBTEX = "@misc{tiny,\n  title = {A probe for tests}\n}"


@dataclass(frozen=True)
class PartsConfig:
    parts: int = option(6, "how many parts", low=1)
    seconds: float = option(0.0, "time that each part takes", low=0)
    fail_at: int | None = option(None, "part that raises an error; none for none")
    log: str = option("", "file that gets one line for each part that is begun")


@probe(
    "parts",
    summary="Random numbers in parts.",
    tables={"rows": ("part", "draw", "x")},
    bibtex=BIBTEX,
    example=lambda _model: {"parts": 3},
)
def parts(model, config: PartsConfig, context: Context) -> Result:
    frames = []
    for number in range(config.parts):

        def compute(number: int = number) -> dict:
            if config.log:
                with open(config.log, "a") as file:
                    file.write(f"{number}\n")
            if number == config.fail_at:
                raise ZeroDivisionError("the part that fails")
            time.sleep(config.seconds)
            context.count(prompts=2, tokens=10)
            x = context.rng(f"part {number}").normal(size=4)
            return {
                "table": pl.DataFrame({"part": [number] * 4, "draw": range(4), "x": x}),
                "scalar": np.float32(number),
            }

        found = context.part(f"part {number}", compute)
        assert found["scalar"].shape == () and found["scalar"] == number
        frames.append(found["table"])
        context.progress(number + 1, config.parts, "parts")
    table = pl.concat(frames)
    return Result(
        tables={"rows": table},
        arrays={"x": table["x"].to_numpy().reshape(-1, 4)},
        summary={"mean": {"value": table["x"].mean(), "low": -1.0, "high": 1.0, "n": table.height}},
    )


@dataclass(frozen=True)
class EntropyConfig:
    most: int = option(8, "how many texts to read", low=1)
    unit: str = option("nats", "unit of the entropy", choices=("nats", "bits"))


def _texts(config: EntropyConfig, data: Path | None) -> list[str]:
    if data is None:
        raise InputError("The probe 'next-token-entropy' needs a texts file.")
    return read_table(data, required=["text"], what="texts")["text"].to_list()[: config.most]


@probe(
    "next-token-entropy",
    summary="Entropy of the next token after each text.",
    tables={"texts": ("row", "tokens", "entropy"), "inputs": ("row", "ids")},
    bibtex=BIBTEX,
    data=DataSpec(required=("text",), what="texts"),
    validate=lambda config, data: _texts(config, data) and None,
    example=lambda _model: {"most": 3},
)
def entropy(model, config: EntropyConfig, context: Context) -> Result:
    import torch

    from workbench.engine.capture import logits

    ids = [model.encode(text) for text in _texts(config, context.data)]
    values = logits(model, ids, positions="last", edits=context.edits).double()
    logs = torch.log_softmax(values, -1)
    found = -(logs.exp() * logs).sum(-1) / (np.log(2) if config.unit == "bits" else 1.0)
    context.count(prompts=len(ids), tokens=sum(map(len, ids)), forwards=1)
    context.progress(len(ids), len(ids), "texts")
    rows = list(range(len(ids)))
    return Result(
        tables={
            "texts": pl.DataFrame({"row": rows, "tokens": [len(row) for row in ids], "entropy": found.tolist()}),
            "inputs": pl.DataFrame({"row": rows, "ids": ids}),
        },
        summary={"mean_entropy": {"value": float(found.mean()), "n": len(ids)}},
    )


def fake_model(name: str = "fake") -> types.SimpleNamespace:
    """What run folders record of a model, without one."""
    return types.SimpleNamespace(
        name=name,
        revision=None,
        fingerprint=f"fingerprint of {name}",
        tokenizer_fingerprint="t",
        architecture="Fake",
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        width=16,
        dtype="float32",
        device="cpu",
    )


if __name__ == "__main__":
    sys.modules["workbench.models.loading"] = types.SimpleNamespace(
        load=lambda name, revision=None, **_: fake_model(name)
    )
    sys.modules["tiny_probes"] = sys.modules["__main__"]
    from workbench.cli.main import main

    print("ready", os.getpid(), file=sys.stderr, flush=True)
    main(sys.argv[2:])
