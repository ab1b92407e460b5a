"""Links between heads that runs name: which are drawn, and that none is where a run has none."""

from __future__ import annotations

import dataclasses

import polars as pl
import pytest

from tests.support.figure_runs import retrieval
from workbench.core import registry
from workbench.core.errors import InputError
from workbench.explorer.head_links import links_of


@dataclasses.dataclass
class Fake:
    probe: str
    frames: dict

    @property
    def tables(self):
        return list(self.frames)

    def table(self, name):
        if self.frames[name] is None:
            raise InputError("damaged")
        return self.frames[name]


def channels(n: int = 40) -> pl.DataFrame:
    rows = [(0, i % 4, 1 + i % 3, i % 5, float(i), i % 2 == 0) for i in range(n)]
    schema = ["source_layer", "source_head", "target_layer", "target_head", "z", "is_channel"]
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_the_strongest_links_that_count_are_drawn_once_for_each_pair_of_heads():
    frame = channels()
    found, name = links_of(Fake("talking-heads", {"channels": frame}), most=5)  # pyright: ignore[reportArgumentType]
    assert name == "z" and found["weight"].to_list() == [38.0, 36.0, 34.0, 32.0, 30.0]
    ends = ["source_layer", "source_head", "target_layer", "target_head"]
    every, _ = links_of(Fake("talking-heads", {"channels": frame}), most=1000)  # pyright: ignore[reportArgumentType]
    wanted = frame.filter("is_channel").group_by(ends).agg(pl.col("z").max())
    assert not every.select(ends).is_duplicated().any()
    assert every.sort(ends).rows() == wanted.sort(ends).rows()


@pytest.mark.parametrize(
    "run",
    [
        Fake("talking-heads", {}),
        Fake("talking-heads", {"channels": None}),
        Fake("talking-heads", {"channels": channels().drop("z")}),
        Fake("no-such-probe", {"channels": channels()}),
    ],
)
def test_a_run_without_links_has_no_rows(run):
    found, _ = links_of(run)
    assert found.is_empty() and "weight" in found.columns


def test_a_probe_that_declares_no_links_has_none():
    assert not registry.get("retrieval-heads").head_links
    assert links_of(retrieval())[0].is_empty()  # pyright: ignore[reportArgumentType]


def test_declared_links_are_columns_of_their_table():
    found = registry.get("talking-heads").head_links
    assert found == {"channels": ("z", "is_channel")}
