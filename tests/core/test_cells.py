"""Text and labels out of cells: the same words whatever the format of the file, and NaN is no word."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal

import pandas as pd
import polars as pl
import pytest

from workbench.core.cells import as_label, cell_text
from workbench.core.errors import InputError
from workbench.core.tables import read_table

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


def write(folder, suffix, labels):
    """The same two columns as pandas and Python write them."""
    path = folder / f"table{suffix}"
    frame = pd.DataFrame({"text": [f"row {n}" for n in range(len(labels))], "label": labels})
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix in (".csv", ".tsv"):
        frame.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    else:
        rows = frame.to_dict("records")
        path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    return path


def labels_in(path):
    return read_table(path, required=("text",), labels=("label",))["label"].to_list()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([0, 1, 1, 0], ["0", "1", "1", "0"]),
        ([0, 1, None, 0], ["0", "1", None, "0"]),  # pandas turns these integers into floats
        ([0.1 + 0.2, 0.3, 1.0, -0.0], ["0.3", "0.3", "1", "0"]),
        ([True, False, True, True], ["true", "false", "true", "true"]),
        (["sea", " sea ", "True", "1.0"], ["sea", "sea", "true", "1"]),
        (["sea", float("nan"), "NaN", None], ["sea", None, None, None]),
        ([1234567890123456, 1234567890123457, 2, 3], ["1234567890123456", "1234567890123457", "2", "3"]),
        ([99.9999999999986, 100, 1e21, 2.5], ["100", "100", "1000000000000000000000", "2.5"]),
    ],
)
def test_labels_do_not_depend_on_the_format_of_the_file(tmp_path, suffix, written, expected):
    assert labels_in(write(tmp_path, suffix, written)) == expected


@pytest.mark.parametrize(
    "column",
    [
        pd.Categorical(["a", "b", None]),
        pd.array(["a", "b", None], dtype="string"),
        pl.Series(["a", "b", None], dtype=pl.Categorical),
        pl.Series(["a", "b", None], dtype=pl.Enum(["a", "b"])),
    ],
)
def test_categories_and_nullable_columns_are_words(tmp_path, column):
    path = tmp_path / "a.parquet"
    if isinstance(column, pl.Series):
        pl.DataFrame({"text": ["x", "y", "z"], "label": column}).write_parquet(path)
    else:
        pd.DataFrame({"text": ["x", "y", "z"], "label": column}).to_parquet(path)
    assert labels_in(path) == ["a", "b", None]


@pytest.mark.parametrize(
    ("values", "dtype", "text", "label"),
    [
        ([Decimal("1.10"), Decimal("2.00")], pl.Decimal(10, 2), ["1.10", "2.00"], ["1.1", "2"]),
        ([0.3, 16777216.0], pl.Float32, ["0.3", "16777216"], ["0.3", "16777216"]),
        ([1, None], pl.UInt8, ["1", None], ["1", None]),
        ([1.0, float("nan")], pl.Float64, ["1", None], ["1", None]),
        ([datetime.date(2020, 1, 2), None], pl.Date, ["2020-01-02", None], ["2020-01-02", None]),
        (
            [datetime.datetime(2020, 1, 2, 3, 4), None],
            pl.Datetime("us"),
            ["2020-01-02T03:04:00", None],
            ["2020-01-02T03:04:00", None],
        ),
        ([datetime.time(1, 2), None], pl.Time, ["01:02:00", None], ["01:02:00", None]),
        ([datetime.timedelta(seconds=1), None], pl.Duration("us"), ["PT1S", None], ["PT1S", None]),
        ([True, None], pl.Boolean, ["true", None], ["true", None]),
    ],
)
def test_every_kind_of_column_that_has_words_is_read_as_a_person_writes_it(tmp_path, values, dtype, text, label):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"x": pl.Series(values, dtype=dtype)}).write_parquet(path)
    assert read_table(path, optional=("x",))["x"].to_list() == text
    assert read_table(path, labels=("x",))["x"].to_list() == label


def test_text_is_never_rewritten_only_labels_are():
    assert as_label("1e3") == "1000" and as_label("-0.0") == "0" and as_label("007") == "007"
    assert as_label("TRUE") == "true"
    assert as_label("1.5.2") == "1.5.2" and as_label("yes ") == "yes" and as_label("nan") is None
    assert as_label("9" * 6000) == "9" * 6000
    assert cell_text("1.0") == "1.0" and cell_text(" x ") == " x " and cell_text("NaN") == "NaN"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_nan_in_a_field_that_must_be_filled_is_an_empty_field(tmp_path, name):
    path, rows = tmp_path / name, [{"text": "a"}, {"text": float("nan")}, {"text": "c"}]
    if name == "a.parquet":
        pl.DataFrame({"text": [1.0, float("nan"), 3.0]}).write_parquet(path)
    else:
        path.write_text(json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"row 2: the field 'text' is empty\."):
        read_table(path, required=("text",))


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("other", ['"word"', "2.5"])
def test_an_infinite_number_is_no_text(tmp_path, value, other):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": {other}, "n": 1}}\n{{"text": {value}, "n": {value}}}\n')
    with pytest.raises(InputError, match=r"row 2: the field 'text' is infinite"):
        read_table(path, required=("text",))
    path.write_text(f'{{"text": "a", "n": 1.5}}\n{{"text": "b", "n": {value}}}\n')
    assert read_table(path, required=("text",))["n"].is_infinite().to_list() == [False, True]  # nobody reads it as text


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pl.Series("text", [b"x", b"y"]), "must hold text, not bytes"),
        (pl.Series("text", [["x"], ["y"]]), "must hold text, not lists"),
        (pl.Series("text", [{"a": 1}, {"a": 2}]), "must hold text, not objects"),
    ],
)
def test_what_is_no_word_is_refused_in_one_sentence(tmp_path, column, words):
    path = tmp_path / "a.parquet"
    pl.DataFrame([column]).write_parquet(path)
    with pytest.raises(InputError, match=f"the column 'text' {words}"):
        read_table(path, required=("text",))
