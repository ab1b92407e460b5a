"""Only plain files are read: nothing waits for a pipe, and a folder or a device is said to be one."""

import os

import pytest

from workbench.core.config import read_toml
from workbench.core.errors import InputError
from workbench.core.files import digest_file, open_plain, read_json, read_plain
from workbench.core.json_text import read_json_object
from workbench.core.parquet import read_parquet
from workbench.core.tables import read_text
from workbench.store.shards import DamagedShard, Shard

READERS = (
    read_plain,
    open_plain,
    digest_file,
    read_json,
    read_parquet,
    read_toml,
    read_text,
    lambda path: read_json_object(path, what=str(path)),
    Shard,
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a pipe", "device", "link to itself"])
def test_nothing_but_a_plain_file_is_read_and_nothing_is_waited_for(tmp_path, reader, kind):
    path = tmp_path / "a.txt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path)
    with pytest.raises((OSError, InputError, DamagedShard)):
        reader(path)


def test_the_bytes_of_a_file_and_of_a_link_to_it_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"\x00\xff" * 100_000)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_plain(tmp_path / "a") == read_plain(tmp_path / "b") == b"\x00\xff" * 100_000
