"""JSON files of any content: a value, nothing there, or one sentence that names the file."""

import pytest

from workbench.core.errors import InputError
from workbench.core.files import read_json, write_bytes, write_json

ODD = {
    "nothing in it": b"",
    "cut short": b'{"a": 1',
    "another encoding": '{"a": "é"}'.encode("latin-1"),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NaN": b'{"a": NaN}',
    "minus infinity": b"[-Infinity]",
    "beyond a float": b'{"a": 1e400}',
    "6,000 digits": b"9" * 6000,
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "half a pair": b'{"a": ["\\uD83D"]}',
    "zeros": bytes(100),
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_what_is_no_json_is_one_sentence_with_the_file(tmp_path, content):
    path = tmp_path / "x [1].json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(path)
    said = str(caught.value)
    assert str(path) in said and said.endswith(".") and len(said.splitlines()) == 1 and len(said) < 400
    assert path.read_bytes() == content


def test_what_is_no_file_is_told_from_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in (("folder", "directory"), ("link", "leads nowhere"), ("loop", "links")):
        with pytest.raises(InputError, match=words):
            read_json(tmp_path / name)


def test_plain_values_are_what_they_are(tmp_path):
    plain = {
        '{"a": [1, 2.5, "ü", null, true]}': {"a": [1, 2.5, "ü", None, True]},
        "5": 5,
        '"x"': "x",
        r'"\ud83d\ude00"': "😀",
    }
    for text, value in plain.items():
        (tmp_path / "x").write_text(text, encoding="utf-8")
        assert read_json(tmp_path / "x") == value


def test_a_name_that_fits_the_disk_fits_it_while_it_is_written_too(tmp_path):
    path = tmp_path / ("x" * 250)
    write_bytes(path, b"1")
    assert path.read_bytes() == b"1" and [item.name for item in tmp_path.iterdir()] == [path.name]


def test_a_name_that_is_no_text_does_not_stop_what_is_written_about_it(tmp_path):
    write_json(tmp_path / "x", {"error": "no file a\udcff.csv"})
    assert read_json(tmp_path / "x") == {"error": "no file a?.csv"}
