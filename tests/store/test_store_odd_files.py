"""Files of the store with any content: what is odd is named, what is good is listed, nothing wrong is believed."""

import json
import os
import shutil
import stat

import numpy as np
import polars as pl
import pytest

from workbench.cli.main import run as command_line
from workbench.core.parquet import read_parquet, write_parquet
from workbench.store import Store
from workbench.store.activation_store import fingerprint
from workbench.store.manifests import read_manifest, write_manifest

BAD, GOOD = fingerprint({"entry": "bad"}), fingerprint({"entry": "good"})


def fill(store, key):
    with store.writer(key, {"n": 1}, n_shards=2, expected_bytes=100) as writer:
        for index in writer.missing:
            writer.write(index, {"x": np.arange(4) + index})


def replaced(**fields):
    """A manifest with other fields and a checksum that fits them."""

    def harm(path):
        write_manifest(path.parent, read_manifest(path.parent) | fields)

    return harm


def link(path):
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def folder(path):
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def content(text):
    return lambda path: path.write_bytes(text)


HARMS = {
    "5": content(b"5"),
    "[]": content(b"[]"),
    "a word": content(b'"x"'),
    "deep": content(b"[" * 50_000 + b"]" * 50_000),
    "digits": content(b"9" * 6000),
    "not UTF-8": content(b'{"key": "\xff"}'),
    "NaN": content(b'{"schema": NaN}'),
    "empty": content(b""),
    "a folder": folder,
    "a link": link,
    "gone": lambda path: path.unlink(),
    "shards 5": replaced(shards=5),
    "shards of words": replaced(shards=["x"]),
    "a shard outside": replaced(shards=[{"file": "../../x", "bytes": 1}] * 2),
    "bytes as text": replaced(shards=[{"file": f"0000{i}-{'0' * 32}.safetensors", "bytes": "8"} for i in (0, 1)]),
    "n_shards text": replaced(n_shards="2"),
    "n_shards huge": replaced(n_shards=10**30),
    "n_shards true": replaced(n_shards=True),
    "created a list": replaced(created=[1]),
    "complete a word": replaced(complete="yes"),
    "schema 2": replaced(schema=2),
    "another key": replaced(key=GOOD),
    "deep meta": lambda path: path.write_bytes(
        path.read_bytes().replace(b'"n": 1', b'"n": ' + b"[" * 900 + b"]" * 900)
    ),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_an_odd_manifest_is_named_by_verify_told_by_ls_computed_again_and_removed_by_gc(harm, capsys):
    store = Store()
    fill(store, GOOD)
    fill(store, BAD)
    manifest = store.root / "entries" / BAD / "entry.json"
    harm(manifest)

    assert command_line(["cache", "verify", "--json"]) == 3
    found = capsys.readouterr()
    (row,) = [row for row in json.loads(found.out) if row["key"] == BAD]
    assert row["file"] == f"entries/{BAD}/entry.json" and row["status"] in ("damaged", "missing") and row["reason"]
    assert f"entries/{BAD}/entry.json" in found.err and len(found.err.strip().splitlines()) == 1
    assert {row["status"] for row in json.loads(found.out) if row["key"] == GOOD} == {"ok"}

    assert command_line(["cache", "ls", "--json"]) == 0
    found = capsys.readouterr()
    assert [row["key"] for row in json.loads(found.out)] == [GOOD]
    assert "1 entry could not be read" in found.err and BAD in found.err

    kept = shutil.copytree(store.root, store.root.with_name("copy"), symlinks=True)
    assert store.get(BAD) is None
    fill(store, BAD)  # as a capture does
    assert store.get(BAD).tensor("x").tolist() == [0, 1, 2, 3, 1, 2, 3, 4]
    assert command_line(["cache", "verify"]) == 0

    for remove in (lambda other: other.gc(), lambda other: other.clear(), lambda other: other.verify(drop=True)):
        other = Store(shutil.copytree(kept, kept.with_name("again"), symlinks=True))
        remove(other)
        assert not os.path.lexists(other.root / "entries" / BAD) and other.unreadable() == {}
        shutil.rmtree(other.root)


@pytest.mark.parametrize("kind", ["file", "link", "loop"])
def test_what_is_no_folder_in_the_place_of_an_entry_is_named_and_gives_way(kind):
    store = Store()
    fill(store, GOOD)
    place = store.root / "entries" / BAD
    if kind == "file":
        place.write_text("5")
    else:
        place.symlink_to(place if kind == "loop" else place.with_name("nowhere"))
    assert set(store.unreadable()) == {BAD} and store.get(BAD) is None
    assert store.ls().filter(pl.col("complete"))["key"].to_list() == [GOOD]
    fill(store, BAD)
    assert store.get(BAD) is not None and store.unreadable() == {}


def test_an_entry_without_its_time_of_use_is_held_again():
    store = Store()
    fill(store, BAD)
    (store.root / "entries" / BAD / "used").unlink()
    fill(store, BAD)
    assert store.get(BAD) is not None


@pytest.mark.parametrize("name", ["used", "shard"])
def test_a_folder_in_the_place_of_a_file_of_an_entry_gives_way(name):
    store = Store()
    fill(store, BAD)
    path = store.root / "entries" / BAD / "used"
    path = path if name == "used" else next(path.parent.glob("00001-*"))
    path.unlink()
    path.mkdir()
    assert store.get(BAD) is None
    fill(store, BAD)
    assert store.get(BAD).tensor("x").tolist() == [0, 1, 2, 3, 1, 2, 3, 4]


def test_an_entry_that_is_being_written_is_not_unreadable():
    store = Store()
    with store.writer(BAD, {}, n_shards=1, expected_bytes=1) as writer:
        (writer.folder / "entry.json").unlink()
        assert store.unreadable() == {} and store.verify().is_empty()


FORGED = {
    "bytes": lambda frame: frame.with_columns(bytes=pl.col("bytes") * 10),
    "created": lambda frame: frame.with_columns(created=pl.lit("1999-01-01")),
    "meta": lambda frame: frame.with_columns(meta=pl.lit('{"n": 2}')),
    "n_shards": lambda frame: frame.with_columns(n_shards=pl.lit(7, pl.Int64)),
    "complete": lambda frame: frame.with_columns(complete=~pl.col("complete")),
    "stamp": lambda frame: frame.with_columns(stamp=pl.lit(0, pl.Int64)),
    "nothing": lambda frame: frame.with_columns(pl.lit(None, frame.schema[name]).alias(name) for name in frame.columns),
    "swapped": lambda frame: frame.with_columns(key=pl.col("key").reverse()),
    "twice": lambda frame: pl.concat([frame, frame]),
    "rows of nobody": lambda frame: frame.with_columns(key=pl.lit("0" * 64)),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_nothing_wrong_is_believed_from_the_listing(forge):
    store = Store()
    fill(store, GOOD)
    with store.writer(BAD, {"n": 3}, n_shards=3, expected_bytes=50) as writer:
        writer.write(0, {"x": np.arange(100)})
    right = store.ls().sort("key")
    index = store.root / "index.parquet"
    write_parquet(index, forge(read_parquet(index)))
    assert store.ls().sort("key").drop("last_used").equals(right.drop("last_used"))
    assert read_parquet(index).sort("key").drop("stamp", "last_used").equals(right.drop("last_used"))


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_whatever_is_in_the_place_of_the_listing_gives_way(kind):
    store = Store()
    fill(store, GOOD)
    index = store.root / "index.parquet"
    index.unlink()
    if kind == "folder":
        (index / "deep").mkdir(parents=True)
    else:
        index.symlink_to(store.root / "nowhere")
    assert store.ls()["key"].to_list() == [GOOD] and index.is_file() and not index.is_symlink()


def test_everything_in_the_store_is_private_whatever_the_umask():
    before = os.umask(0)
    try:
        store = Store()
        fill(store, GOOD)
        store.get(GOOD)
        store.ls()
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in store.root.rglob("*") if path.is_file()}
    folders = {stat.S_IMODE(path.stat().st_mode) for path in [store.root, *store.root.rglob("*")] if path.is_dir()}
    assert modes == {0o600} and folders == {0o700}
