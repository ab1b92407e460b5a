"""What a data file is, by its content and its name: JSON under any name, packed files, tsv with bare quotes."""

from __future__ import annotations

import gzip
import json

import polars as pl
import pyarrow as pa
import pytest

from workbench.core.errors import InputError
from workbench.core.tables import read_table, read_text

ROWS = [{"text": "One.", "n": 1}, {"text": 'Two, "three".', "n": 2}]
LINES = "\n".join(json.dumps(row) for row in ROWS) + "\n"


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a", "a.train", "a.txt", "a.csv", "a.jsonl.gz"])
@pytest.mark.parametrize("how", ["lines", "list", "pretty list", "object"])
def test_json_is_known_by_its_content_under_any_name(tmp_path, name, how):
    text = {
        "lines": LINES,
        "list": json.dumps(ROWS),
        "pretty list": json.dumps(ROWS, indent=2),
        "object": json.dumps({"canary": "x", "examples": ROWS}),
    }[how]
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert read_table(path).to_dicts() == ROWS


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a"])
def test_a_list_of_texts_goes_into_the_column_that_is_asked_for(tmp_path, name):
    path = tmp_path / name
    for text in (json.dumps(["one", "two"]), '"one"\n"two"\n', json.dumps({"stories": ["one", "two"], "n": 3})):
        if "stories" in text and name == "a.jsonl":
            continue  # there one object is one row
        path.write_text(text)
        assert read_table(path)["text"].to_list() == ["one", "two"]
        assert read_table(path, required=("prompt",))["prompt"].to_list() == ["one", "two"]


def test_one_object_is_one_row_in_json_lines_and_columns_side_by_side_in_json(tmp_path):
    lines, whole = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text('{"prompt": "p", "tags": ["x", "y"]}')
    assert read_table(lines).to_dicts() == [{"prompt": "p", "tags": ["x", "y"]}]
    whole.write_text('{"text": ["a", "b"], "label": [0, 1]}')
    assert read_table(whole).to_dicts() == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    whole.write_text('{"messages": [{"role": "user", "content": "x"}]}')
    assert read_table(whole).columns == ["messages"]


def test_plain_text_that_begins_with_a_bracket_stays_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("[1] A first line.\n{two}\n")
    assert read_table(path)["text"].to_list() == ["[1] A first line.", "{two}"]


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".txt"])
def test_packed_files_read_as_the_unpacked_ones(tmp_path, pack, suffix):
    plain = tmp_path / f"a{suffix}"
    frame = pl.DataFrame(ROWS)
    if suffix == ".parquet":
        frame.write_parquet(plain)
    elif suffix == ".jsonl":
        plain.write_text(LINES)
    elif suffix == ".txt":
        plain.write_text("one\ntwo\n")
    else:
        frame.write_csv(plain, separator="," if suffix == ".csv" else "\t")
    for name in (f"a{suffix}.{'gz' if pack is gzip.compress else 'zst'}", f"odd{suffix}"):
        packed = tmp_path / name
        packed.write_bytes(pack(plain.read_bytes()))
        assert read_table(packed).equals(read_table(plain))
        if suffix != ".parquet":
            assert read_text(packed) == read_text(plain)


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, ".gz"), (zstd, ".zst")])
def test_a_packed_file_that_is_cut_off_or_none_is_one_sentence(tmp_path, pack, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    whole = pack((LINES * 50).encode())
    for size in (len(whole) - 1, len(whole) - 5, len(whole) // 2, 8):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="cut off or damaged") as caught:
            read_table(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.write_text(LINES)
    with pytest.raises(InputError, match=f"named {suffix} and is not packed so"):
        read_table(path)
    path.write_bytes(pack(b""))
    with pytest.raises(InputError, match="is empty"):
        read_table(path)


def test_a_quotation_mark_in_a_tsv_is_text_where_quoting_makes_no_sense(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"Go" he said\t1\n"unbalanced\t0\nso "it" is\t1\n"\t0\n')
    assert read_table(path)["text"].to_list() == ['"Go" he said', '"unbalanced', 'so "it" is', '"']
    path.write_text('text\tlabel\n"one\t0\ntwo"\t1\n')  # quoted, it would be one row, of one text over two lines
    assert read_table(path).rows() == [('"one', "0"), ('two"', "1")]
    path.write_text('text\tlabel\n"a ""b"""\t1\n"two\nlines"\t0\n')
    assert read_table(path).rows() == [('a "b"', "1"), ("two\nlines", "0")]
    path.write_text('text\tlabel\n"a\tb"\t1\n')
    assert read_table(path).rows() == [("a\tb", "1")]
    path.write_text('text\tlabel\n"bad" x\t1\ny\n')
    with pytest.raises(InputError, match="cannot be read as tsv"):
        read_table(path)
    path.write_bytes(b"a\tb\r\n1\t2\r\n\t\r\n3\t4\r\n")
    assert read_table(path).rows() == [("1", "2"), (None, None), ("3", "4")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.train", b"a,b\n1,2\n", ["'.train'", "looks like csv", "name it .csv"]),
        ("a", b"a\tb\n1\t2\n", ["looks like tsv"]),
        ("a.md", b"Some text.\nMore, of it.\n", ["looks like plain text"]),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["Git LFS pointer"]),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS pointer"]),
        ("a.xlsx", b"PK\x03\x04xx", ["zip archive"]),
        ("a.json", b"<!DOCTYPE html><html>", ["web page"]),
        ("a.bz2", b"BZh91AY", ["bzip2"]),
        ("a.json", b'{"a": 1, "b": {"c": 2}}', ["list of objects", "keys a, b"]),
        ("a.json", b'{"train": [{"a": 1}], "test": [{"a": 2}]}', ["several lists", "train, test"]),
        ("a.json", b"3", ["list of objects"]),
        ("a.json", b'["one", {"a": 1}]', ["row 1", "object is needed"]),
        ("a", b'{"a": 1}\n{"a": \n', ["line 2", "not valid JSON"]),
    ],
)
def test_what_a_file_looks_like_is_said_where_it_is_no_table(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_table(path, what="pool")
    assert str(path) in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a"])
@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"text": "one"}\n{"text": "two"}\n{"text": "thr', 3),  # cut off
        ('{"text": "one"\n{"text": "two"}\n{"text": "three"}\n', 1),
        ('{"text": "one"}\nno object\n{"text": "three"}\n', 2),
    ],
)
def test_a_damaged_line_of_json_lines_is_an_error_and_no_text(tmp_path, name, content, line):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=f"line {line}: not valid JSON"):
        read_table(path, required=("text",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text;label\n"a; b, c";1\nd;0\n'),
        ("a.csv", "\ufeff\r\ntext\tlabel\r\na; b, c\t1\r\nd\t0\r\n"),
        ("a.tsv", 'text,label\n"a; b, c",1\nd,0\n'),
        ("a.tsv", "text\tlabel\na; b, c\t1\nd\t0\n"),
    ],
)
def test_columns_are_parted_by_what_the_header_has(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert read_table(path).rows() == [("a; b, c", "1"), ("d", "0")]
    path.write_bytes(content.encode() + b"one too many;,\t;,\t\n")
    with pytest.raises(InputError, match="row 3"):
        read_table(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("How many are there?,1,2,3,4,A\nWhich?,5,6,7,8,B\n", "no column 'prompt'.*its first line looks like a row"),
        ("How many are there?,1,1,3,4,A\n", "the column '1' is there twice; its first line looks like a row"),
        ("task,label\na,1\n", r"no column 'prompt'[^;]*; it has task, label\.$"),
    ],
)
def test_a_file_without_names_of_columns_is_told_so(tmp_path, content, words):
    path = tmp_path / "mmlu.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        read_table(path, required=("prompt",))
