"""Parquet files: the file that was named and no other, and a sentence for a damaged one."""

import collections
import random

import polars as pl
import pytest

from workbench.core.errors import InputError
from workbench.core.parquet import parquet_bytes, parse_parquet, read_parquet, write_parquet

ALL_KINDS = pl.DataFrame(
    {
        "whole": pl.Series(range(300), dtype=pl.Int32),
        "text": [f"text {i % 17}" for i in range(300)],
        "real": pl.Series([i / 7 for i in range(300)], dtype=pl.Float32),
        "yes": [i % 2 == 0 for i in range(300)],
        "ids": [[i, i + 1] for i in range(300)],
        "nothing": pl.Series([None] * 300, dtype=pl.String),
        "kind": pl.Series([f"kind {i % 3}" for i in range(300)], dtype=pl.Categorical),
    }
)


@pytest.mark.parametrize("name", ["my [v2].parquet", "all*.parquet", "a?b.parquet", "ü % #1.parquet", "{a,b}.parquet"])
def test_a_path_is_never_a_pattern(tmp_path, name):
    for other in ("my v.parquet", "my 2.parquet", "all1.parquet", "aXb.parquet", "a.parquet"):
        write_parquet(tmp_path / other, pl.DataFrame({"a": [0]}))
    write_parquet(tmp_path / name, ALL_KINDS)
    assert read_parquet(tmp_path / name).equals(ALL_KINDS)
    assert read_parquet(tmp_path / name).schema == ALL_KINDS.schema


def test_an_absent_file_is_absent_even_where_it_would_match_as_a_pattern(tmp_path):
    write_parquet(tmp_path / "a1.parquet", ALL_KINDS)
    with pytest.raises(FileNotFoundError):
        read_parquet(tmp_path / "a[1].parquet")


def test_damage_is_a_sentence_and_never_ends_the_process():
    whole, told = parquet_bytes(ALL_KINDS), collections.Counter()
    for seed in range(400):
        dice = random.Random(seed)
        data = bytearray(whole)
        for _ in range(dice.choice([1, 1, 3])):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        if seed % 10 == 0:
            del data[dice.randrange(len(data)) :]
        try:
            parse_parquet(bytes(data), what="the table")
            told["read"] += 1
        except InputError as error:
            told["refused"] += 1
            assert str(error).startswith("the table cannot be read as parquet: ") and "\n" not in str(error)
    assert told["refused"] > 100
