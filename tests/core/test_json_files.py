"""JSON from elsewhere: what is wrong with it is one sentence, whatever it is."""

import os

import pytest

from workbench.core.errors import InputError
from workbench.core.json_files import parse_json, read_json, read_json_object


@pytest.mark.parametrize(
    "text, words",
    [
        (b"", "valid JSON"),
        (b'{"a": 1', "line 1"),
        (b'{"a":\n x}', "line 2"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b"9" * 6000, "too long"),
        (b'{"a": [-' + b"9" * 6000 + b"]}", "too long"),
    ],
)
def test_what_is_no_json_is_one_sentence(text, words):
    with pytest.raises(InputError) as found:
        parse_json(text, what="The file")
    assert words in str(found.value) and str(found.value).startswith("The file ") and "\n" not in str(found.value)


def test_a_mark_at_the_beginning_and_any_value_are_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1, "\xc3\xbc"]}')
    assert read_json_object(tmp_path / "a.json", what="a") == {"a": [1, "ü"]}
    assert parse_json("5", what="x") == 5


def test_what_is_no_object_or_no_file_is_named(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    for name, words in (
        ("list.json", "a list"),
        ("folder.json", "no file"),
        ("pipe.json", "no file"),
        ("loop.json", "not there"),
        ("absent.json", "not there"),
    ):
        with pytest.raises(InputError, match=words):
            read_json_object(tmp_path / name, what="It")
    assert read_json(tmp_path / "list.json", what="It") == [1]
