"""Resumable parts of a run: saved, checked, counted once."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from workbench.core.context import Context
from workbench.core.errors import WorkbenchError
from workbench.core.sinks import count_sinks, counted_sinks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402

MODEL = tiny_probes.fake_model()
CHILD = [sys.executable, tiny_probes.__file__, "workbench", "run", "parts", "--model", "fake"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_part_is_named_and_computed_again(tmp_path, damage):
    def values():
        return {
            "x": np.arange(5.0),
            "t": pl.DataFrame({"a": ["b", None]}),
            "flags": np.array([True, False]),
            "none": np.zeros((0, 3), np.int16),
        }

    Context(out=tmp_path).part("p", values)
    (path,) = (tmp_path / "parts").iterdir()
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[-20] ^= 1
    path.write_bytes(bytes(raw) if damage == "flip" else bytes(raw[: len(raw) // 2]) if damage == "cut" else b"")
    context = Context(out=tmp_path)
    again = context.part("p", values)
    assert context.parts_computed == 1 and "'p' was damaged" in context.warnings[0]
    context = Context(out=tmp_path)
    loaded = context.part("p", lambda: pytest.fail("a good part was computed again"))
    for found in (again, loaded):
        assert list(found) == ["x", "t", "flags", "none"] and found["t"].equals(values()["t"])
        for name in ("x", "flags", "none"):
            assert np.array_equal(found[name], values()[name]) and found[name].dtype == values()[name].dtype
            assert found[name].shape == values()[name].shape


def test_a_part_that_is_loaded_brings_its_counts_and_warnings_along(tmp_path):
    def compute():
        context.count(prompts=2, tokens=30, forwards=1)
        count_sinks(context, left_out=4, texts=2)
        context.warn("one prompt was cut")
        return {"x": np.arange(2)}

    context = Context(out=tmp_path)
    context.count(tokens=5)
    context.warn("said before")
    context.part("p", compute)
    first, context = context, Context(out=tmp_path)
    context.part("p", lambda: pytest.fail("a good part was computed again"))
    assert context.warnings == ["one prompt was cut"] and context.counters["tokens"] == 30
    assert (context.counters["prompts"], context.counters["forwards"]) == (2, 1)
    assert counted_sinks(context) == counted_sinks(first) == {"sinks_left_out": 4, "texts_with_sinks": 2}
    assert first.warnings == ["said before", "one prompt was cut"] and first.counters["tokens"] == 35


def test_part_names_that_differ_never_share_a_file(tmp_path):
    context = Context(out=tmp_path)
    names = ["a/b", "a b", "../a", "a" * 300, "a" * 301, "é", ""]
    for number, name in enumerate(names):
        context.part(name, lambda number=number: {"n": np.array(number)})
    assert [int(context.part(name, dict)["n"]) for name in names] == list(range(len(names)))
    assert all(path.parent == tmp_path / "parts" for path in tmp_path.rglob("*.safetensors"))


def test_a_part_that_is_not_numbers_or_tables_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="numbers and tables; 'a'"):
        Context(out=tmp_path).part("p", lambda: {"a": ["text"]})
