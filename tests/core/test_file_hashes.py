"""Hashes of files are remembered only while the file is surely the same."""

import json
import os
import time

import pytest

from workbench.core import file_hashes
from workbench.core.files import digest_file


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once, so that they are remembered without waiting."""
    monkeypatch.setattr(file_hashes, "TICK", -60.0)


def test_other_content_of_the_same_size_and_time_has_another_hash(tmp_path, settled):
    file, memory = tmp_path / "weights", tmp_path / "memory.json"
    file.write_bytes(b"one")
    before = file.stat()
    (first,) = file_hashes.hashes([file], memory)
    assert json.loads(memory.read_text())["files"], "nothing was remembered"
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert file_hashes.hashes([file], memory) == [digest_file(file)] != [first]


def test_another_file_under_the_same_name_has_another_hash(tmp_path, settled):
    file, other, memory = tmp_path / "weights", tmp_path / "other", tmp_path / "memory.json"
    file.write_bytes(b"one")
    other.write_bytes(b"two")
    os.utime(other, ns=(0, file.stat().st_mtime_ns))
    first = file_hashes.hashes([file], memory)
    os.replace(other, file)
    assert file_hashes.hashes([file], memory) == [digest_file(file)] != first


def test_a_link_is_the_file_that_it_leads_to(tmp_path, settled):
    one, two, link = tmp_path / "one", tmp_path / "two", tmp_path / "link"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    link.symlink_to(one)
    first = file_hashes.hashes([link], tmp_path / "memory.json")
    link.unlink()
    link.symlink_to(two)
    assert file_hashes.hashes([link], tmp_path / "memory.json") == [digest_file(two)] != first == [digest_file(one)]


def test_an_unchanged_file_is_read_once(tmp_path, settled, monkeypatch):
    file, memory = tmp_path / "weights", tmp_path / "memory.json"
    file.write_bytes(b"one")
    first = file_hashes.hashes([file], memory)
    monkeypatch.setattr(file_hashes, "digest_file", lambda _: pytest.fail("it was read again"))
    assert file_hashes.hashes([file], memory) == first


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    file, memory = tmp_path / "weights", tmp_path / "memory.json"
    file.write_bytes(b"one")
    os.utime(file, (0, 0))  # an old time that was copied onto it makes it no older
    assert file_hashes.hashes([file], memory) == [digest_file(file)]
    assert not memory.exists()
    assert time.time() - file_hashes.stamp(file)[4] / 1e9 < file_hashes.TICK


WRONG = "f" * 64


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"5",
        b"null",
        b"[]",
        b'{"files": []}',
        b"[" * 100_000,
        b"1" * 6000,
        '{"files": {"KEY": "WRONG"}}',
        '{"KEY": "WRONG"}',
        '{"files": {"KEY": 5}, "checksum": "CHECK"}',
        '{"files": {"KEY": "WRONG"}, "checksum": "CHECK"}',
    ],
    ids=lambda content: str(content[:24]),
)
def test_what_the_memory_says_is_not_believed_unless_it_is_as_it_was_written(tmp_path, settled, content):
    file, memory = tmp_path / "weights", tmp_path / "memory.json"
    file.write_bytes(b"one")
    if isinstance(content, str):
        content = content.replace("KEY", file_hashes._key(file)).replace("WRONG", WRONG).replace("CHECK", WRONG)
        content = content.encode()
    memory.write_bytes(content)
    assert file_hashes.hashes([file], memory) == [digest_file(file)]
    assert list(json.loads(memory.read_text())["files"].values()) == [digest_file(file)]


def test_one_odd_entry_takes_the_others_with_it_even_under_a_right_checksum(tmp_path, settled):
    file, memory = tmp_path / "weights", tmp_path / "memory.json"
    file.write_bytes(b"one")
    for odd in ({"x": WRONG}, {file_hashes._key(file): WRONG.upper()}, {file_hashes._key(file): None}):
        memory.write_text(json.dumps({"files": odd, "checksum": file_hashes._checksum(odd)}))
        assert file_hashes.hashes([file], memory) == [digest_file(file)]


def test_a_memory_that_cannot_be_written_or_is_a_folder_is_none(tmp_path, settled):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    (tmp_path / "memory.json").mkdir()
    for memory in (tmp_path / "memory.json", file / "below a file" / "memory.json"):
        assert file_hashes.hashes([file], memory) == [digest_file(file)]
    assert [path.name for path in tmp_path.iterdir() if ".tmp-" in path.name] == []


def test_the_stamps_of_a_folder_change_with_any_file_below_it(tmp_path):
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "code.py"
    file.write_bytes(b"one")
    first, times = file_hashes.folder_stamps(tmp_path), file.stat()
    assert file_hashes.folder_stamps(tmp_path) == first
    time.sleep(0.02)  # the clock of some file systems goes in steps of 10 ms
    file.write_bytes(b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    second = file_hashes.folder_stamps(tmp_path)
    (tmp_path / "new.json").write_text("{}")
    assert len({first, second, file_hashes.folder_stamps(tmp_path)}) == 3
