"""Parquet files: the file that was named and no other, and a sentence for a damaged one."""

import collections
import datetime
import io
import random
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pyarrow.parquet
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


def written(column: pa.Array) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"a": column}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("encode", [lambda column: column, pa.Array.dictionary_encode], ids=["plain", "categorical"])
def test_columns_that_polars_has_no_kind_for_are_read_in_the_nearest_it_has(encode, capfd):
    noon = datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.UTC)
    digits = Decimal("12345678901234567890123456789012345678901234.5")
    for kind, value, wanted in (
        (pa.decimal256(50, 1), digits, str(digits)),
        (pa.timestamp("us", "+05:30"), noon, noon),  # as pandas writes an offset
        (pa.timestamp("ns", "Europe/Berlin"), noon, noon),
        (pa.timestamp("us", "Mars/Base"), noon, noon),
    ):
        found = parse_parquet(written(encode(pa.array([value, None], kind))), what="the table")
        assert found["a"].to_list() == [wanted, None]
    assert capfd.readouterr().err == ""  # a panic that is caught still prints its stack


@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("s"), pa.timestamp("ms", "UTC"), pa.duration("ms")])
def test_a_date_that_no_calendar_of_python_has_is_a_sentence(kind, capfd):
    most = 2**31 - 1 if kind == pa.date32() else 2**62 // (1000 if kind == pa.timestamp("s") else 1)
    for odd in (most, -most):
        column = pa.array([0, odd], pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
        with pytest.raises(InputError, match="the table, row 2: the field 'a' is outside the years 1 to 9999"):
            parse_parquet(written(column), what="the table")
    assert capfd.readouterr().err == ""


def test_the_first_and_the_last_date_are_dates():
    ends = [datetime.date.min, datetime.date.max, None]
    assert parse_parquet(written(pa.array(ends)), what="the table")["a"].to_list() == ends
