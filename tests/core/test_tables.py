"""Data files of every format, and errors that name file, row and field."""

from __future__ import annotations

import json

import polars as pl
import pytest

from workbench.core.column_names import column_map
from workbench.core.errors import InputError
from workbench.core.tables import fingerprint_file, read_table, read_text

ROWS = [
    {"needle": 'The key is, as said, "red".', "answer": "red"},
    {"needle": "Zwölf Boxkämpfer\nin two lines", "answer": "42"},
]


def write(folder, suffix):
    path = folder / f"needles{suffix}"
    frame = pl.DataFrame(ROWS)
    if suffix == ".csv":
        frame.write_csv(path)
    elif suffix == ".tsv":
        frame.write_csv(path, separator="\t")
    elif suffix == ".parquet":
        frame.write_parquet(path)
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS))
    else:
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".json", ".jsonl"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    found = read_table(write(tmp_path, suffix), required=["needle", "answer"])
    assert found.to_dicts() == ROWS


def test_a_text_file_is_one_row_per_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\r\n two\n".encode())
    assert read_table(path)["text"].to_list() == ["one", " two"]
    assert read_table(path, required=["prompt"])["prompt"].to_list() == ["one", " two"]
    assert read_text(path).startswith("one")


def test_required_columns_are_text_and_others_keep_their_type(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 1, "n": 3, "tags": ["x"]}\n{"text": "b", "label": true, "n": 4}\n')
    found = read_table(path, required=["text", "label"])
    assert (
        found["label"].to_list() == ["1", "true"]
        and found["n"].to_list() == [3, 4]
        and found["tags"].to_list() == [["x"], None]
    )


def test_columns_are_renamed_and_the_renamed_one_wins(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("entity,subject\nParis,x\n")
    assert read_table(path, required=["subject"], columns={"subject": "entity"})["subject"].to_list() == ["Paris"]
    with pytest.raises(InputError, match=r"no column 'entty' \(did you mean 'entity'\?\)"):
        read_table(path, required=["subject"], columns={"subject": "entty"})
    assert column_map(("subject:entity",), ["subject"]) == {"subject": "entity"}
    for bad in ("subject", "subject:", "sbject:entity"):
        with pytest.raises(InputError):
            column_map((bad,), ["subject"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"needle,answer\nx,y\nz,\n", ["row 2", "'answer' is empty"]),
        ("a.csv", b"needle,answer\nx,   \n", ["row 1", "'answer' is empty"]),
        ("a.csv", b"needle,answers\nx,y\n", ["no column 'answer'", "did you mean 'answers'?", "needle, answers"]),
        ("a.csv", b"needle,answer\nx,y\nx,y,z\n", ["row 2", "3 fields", "header has 2"]),
        ("a.csv", b'needle,answer\n"x,y\n', ["cannot be read as csv"]),
        ("a.csv", b"needle,needle\nx,y\n", ["'needle' is there twice"]),
        ("a.csv", b"needle,answer\n", ["no rows"]),
        ("a.csv", b"", ["is empty"]),
        ("a.csv", b" \n \n", ["is empty"]),
        ("a.csv", b"needle,answer\nx,y\ncaf\xe9,z\n", ["not UTF-8", "line 3", "save it as UTF-8"]),
        ("a.jsonl", b'{"needle": "x", "answer": "y"}\n{"needle": }\n', ["line 2", "not valid JSON"]),
        ("a.jsonl", b'{"needle": "x", "answer": "y"}\n{"needle": "z"}\n', ["row 2", "'answer' is empty"]),
        ("a.jsonl", b"[1]\n", ["row 1", "object is needed"]),
        ("a.jsonl", b'{"needle": "x", "answer": ["y"]}\n', ["'answer' must hold text"]),
        ("a.json", b'{"needle": "x"}', ["list of objects"]),
        ("a.json", b"[", ["line 1", "not valid JSON"]),
        ("a.parquet", b"not parquet", ["cannot be read as parquet"]),
        ("a.xlsx", b"x", ["must be one of", "'.xlsx'"]),
        ("a", b"x", ["must be one of"]),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_sentence_that_names_it(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_table(path, required=["needle", "answer"], what="needles")
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and all(word in sentence for word in words), sentence


def test_a_file_that_is_not_there_is_named_with_the_nearest_one(tmp_path):
    (tmp_path / "needles.csv").write_text("a\n1\n")
    with pytest.raises(InputError, match=r"no needles file .*needle.csv \(did you mean 'needles.csv'\?\)"):
        read_table(tmp_path / "needle.csv", what="needles")
    with pytest.raises(InputError, match="is a folder"):
        read_table(tmp_path)


def test_a_fingerprint_is_that_of_the_content(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("x")
    b.write_text("x")
    assert fingerprint_file(a) == fingerprint_file(b)
    b.write_text("y")
    assert fingerprint_file(a) != fingerprint_file(b) and fingerprint_file(tmp_path) != fingerprint_file(a)
