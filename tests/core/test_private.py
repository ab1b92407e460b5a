"""What the workbench writes is for its owner alone, whatever the umask; what is there already keeps its mode."""

import os
import stat
from contextlib import contextmanager

import pytest

from workbench.core import files, private


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


UMASKS = [0o000, 0o022, 0o077, 0o277, 0o777]


@pytest.mark.parametrize("mask", UMASKS)
def test_new_folders_and_all_new_parents_are_private_and_old_ones_keep_their_mode(tmp_path, mask):
    old = tmp_path / "old"
    old.mkdir()
    old.chmod(0o755)
    with umask(mask):
        private.make_folder(old / "a" / "b")
        private.make_folder(old)
    assert (mode(old), mode(old / "a"), mode(old / "a" / "b")) == (0o755, 0o700, 0o700)
    (old / "file").touch()
    with pytest.raises(FileExistsError):
        private.make_folder(old / "file")


@pytest.mark.parametrize("mask", UMASKS)
def test_every_way_to_write_a_file_makes_it_private(tmp_path, mask):
    with umask(mask):
        files.write_bytes(tmp_path / "bytes", b"x")
        files.write_json(tmp_path / "json", {})
        with files.atomic(tmp_path / "quick", durable=False) as temporary:
            assert mode(temporary) == 0o600
            temporary.write_text("x")
        with private.appending(tmp_path / "log") as file:
            file.write(b"x")
        private.mark(tmp_path / "mark")
        with open(tmp_path / "opened", "w", opener=private.opener) as file:
            file.write("x")
    assert {path.name: mode(path) for path in tmp_path.iterdir()} == dict.fromkeys(
        ("bytes", "json", "quick", "log", "mark", "opened"), 0o600
    )


def test_a_file_that_is_opened_to_others_stays_so_when_it_is_added_to(tmp_path):
    log = tmp_path / "log"
    log.write_text("a")
    log.chmod(0o644)
    with private.appending(log) as file:
        file.write(b"b")
    assert mode(log) == 0o644 and log.read_text() == "ab"


def test_a_link_that_somebody_planted_is_never_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(victim)
    for write in (private.appending, private.mark, private.create):
        with pytest.raises(OSError):
            write(link)
    files.write_bytes(link, b"new")  # replaces the link itself
    assert not link.is_symlink() and victim.read_text() == "mine"
    monkeypatch.setattr(files.uuid, "uuid4", lambda: type("Known", (), {"hex": "0" * 32}))
    planted = tmp_path / ".out.tmp-000000000000"
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.write_bytes(tmp_path / "out", b"theirs")
    assert victim.read_text() == "mine" and not (tmp_path / "out").exists()
