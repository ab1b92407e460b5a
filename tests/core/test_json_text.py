"""JSON that cannot be read is one sentence that names the file and the place."""

from __future__ import annotations

import os

import pytest

from workbench.core.errors import InputError
from workbench.core.json_text import parse_json, read_json_object
from workbench.core.tables import read_table

BAD = [
    ('{"text": "a", "text": "b"}', "the key 'text' is there twice"),
    ('{"text": "a", "n": {"x": 1, "y": 2, "x": 3}}', "the key 'x' is there twice"),
    ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ('{"text": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}", "nested too deeply"),
    ('{"text": ' + "9" * 6000 + "}", "too many digits"),
    ('{"text": }', "not valid JSON"),
]


@pytest.mark.parametrize(("row", "words"), BAD)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_that_cannot_be_read_is_one_sentence_with_the_file(tmp_path, name, row, words):
    path = tmp_path / name
    path.write_text(f'{{"text": "fine"}}\n{row}\n' if name == "a.jsonl" else f"[{row}]")
    with pytest.raises(InputError) as caught:
        read_table(path, required=("text",))
    said = str(caught.value)
    assert str(path) in said and words in said and "\n" not in said and len(said) < 300 + len(str(path))
    assert name == "a.json" or "line 2" in said


def test_nan_is_null_wherever_it_stands():
    assert parse_json('{"a": NaN, "b": ["x", NaN], "c": 1.5}', "x") == {"a": None, "b": ["x", None], "c": 1.5}
    assert parse_json("[Infinity, -Infinity]", "x") == [float("inf"), float("-inf")]


def test_a_value_nested_deeply_in_a_field_that_nobody_reads_harms_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "more": ' + "[" * 200 + "1" + "]" * 200 + '}\n{"text": "b", "more": "word"}\n')
    assert read_table(path, required=("text",))["text"].to_list() == ["a", "b"]


@pytest.mark.parametrize(
    "text, words",
    [
        (b"", "not valid JSON"),
        (b'{"a":\n x}', "line 2"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": [-' + b"9" * 6000 + b"]}", "too many digits"),
        (b"[1]", "no JSON object but a list"),
        (b"5", "no JSON object but one value"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path, text, words):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(InputError, match=words) as found:
        read_json_object(tmp_path / "a.json", what="It")
    assert str(found.value).startswith("It") and "\n" not in str(found.value)


def test_what_is_no_file_is_never_opened(tmp_path):
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    said = {"folder": "a directory", "pipe": "no plain file", "loop": "opened", "absent": "not there"}
    for name, words in said.items():
        with pytest.raises(InputError, match=words):
            read_json_object(tmp_path / f"{name}.json", what="It")


def test_a_mark_at_the_beginning_is_dropped(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1, "\xc3\xbc"]}')
    assert read_json_object(tmp_path / "a.json", what="a") == {"a": [1, "ü"]}
