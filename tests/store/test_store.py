"""The activation store, used as intended: what goes in comes out, listings tell the truth, the budget holds."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from workbench.core.errors import Cancelled, InputError
from workbench.store.activation_store import Store, fingerprint
from workbench.store.shards import DTYPES


def key(name) -> str:
    return fingerprint({"name": name})


def tensors(i: int, rows: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(i)
    return {
        "resid_post.0": torch.randn(rows, 4, generator=generator),
        "head_out.1": torch.randn(rows, 2, 5, generator=generator).bfloat16(),
    }


def fill(store: Store, name, *, n_shards: int = 3, rows: int = 3, meta=None) -> str:
    with store.writer(key(name), meta or {"name": str(name)}, n_shards=n_shards, expected_bytes=1000) as writer:
        for i in writer.missing:
            writer.write(i, tensors(i, rows))
    return key(name)


def test_what_is_written_is_read_back_bit_for_bit(tmp_path):
    store = Store(tmp_path)
    entry = store.get(fill(store, "a", meta={"sites": ["resid_post.0"], "n": 9}))
    assert (entry.n_shards, entry.meta, entry.key) == (3, {"sites": ["resid_post.0"], "n": 9}, key("a"))
    for i in range(3):
        read = entry.read(i)
        assert set(read) == set(tensors(i))
        for name, expected in tensors(i).items():
            assert read[name].dtype == expected.dtype and torch.equal(read[name], expected)
    assert list(entry.read(1, ["head_out.1"])) == ["head_out.1"]
    assert torch.equal(entry.tensor("resid_post.0"), torch.cat([tensors(i)["resid_post.0"] for i in range(3)]))
    with pytest.raises(InputError, match=r"no 'logits'; it has .*resid_post\.0"):
        entry.tensor("logits")


@pytest.mark.parametrize("dtype", sorted({name for name, _ in DTYPES.values()}))
def test_every_type_and_awkward_shape_survives(tmp_path, dtype):
    full = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype))
    given = {
        "full": full,
        "transposed": full.transpose(0, 2),
        "scalar": full[1, 1, 1],
        "empty": full[:0],
        "odd": full[0, 0, :3],
    }
    store = Store(tmp_path)
    with store.writer(key(dtype), {}, n_shards=1, expected_bytes=100) as writer:
        writer.write(0, given)
    read = store.get(key(dtype)).read(0)
    for name, expected in given.items():
        assert read[name].dtype == expected.dtype and read[name].shape == expected.shape
        assert (
            read[name].contiguous().reshape(-1).view(torch.uint8).tolist()
            == expected.contiguous().reshape(-1).view(torch.uint8).tolist()
        )


def test_any_safetensors_reader_opens_a_shard(tmp_path):
    store = Store(tmp_path)
    folder = tmp_path / "entries" / fill(store, "a")
    (path,) = folder.glob("00001-*.safetensors")
    theirs = safetensors.torch.load_file(path)
    assert all(torch.equal(theirs[name], value) for name, value in tensors(1).items())


def test_numpy_arrays_are_stored_as_they_are(tmp_path):
    store = Store(tmp_path)
    given = {
        "big": np.arange(6, dtype=">f4").reshape(2, 3),
        "flag": np.array([True, False]),
        "strided": np.arange(10)[::3],
    }
    with store.writer(key("np"), {}, n_shards=1, expected_bytes=100) as writer:
        writer.write(0, given)
    read = store.get(key("np")).read(0)
    assert all(read[name].tolist() == value.tolist() for name, value in given.items())


def test_writing_into_a_read_tensor_changes_neither_the_file_nor_another_read(tmp_path):
    store = Store(tmp_path)
    entry = store.get(fill(store, "a"))
    entry.read(0)["resid_post.0"].fill_(7)
    assert torch.equal(entry.read(0)["resid_post.0"], tensors(0)["resid_post.0"])
    assert set(store.verify()["status"]) == {"ok"}


def test_an_unfinished_entry_is_not_an_entry_and_is_taken_up_where_it_stopped(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.writer(key("a"), {"m": 1}, n_shards=3, expected_bytes=100) as writer:
        writer.write(1, tensors(1))
        raise RuntimeError("the computation failed")
    assert store.get(key("a")) is None
    assert store.ls().select("complete", "shards", "n_shards").rows() == [(False, 1, 3)]
    with store.writer(key("a"), {"m": 1}, n_shards=3, expected_bytes=100) as writer:
        assert (writer.done, writer.missing, writer.complete) == ({1}, [0, 2], False)
        with pytest.raises(ValueError, match="stored already"):
            writer.write(1, tensors(1))
        with pytest.raises(ValueError, match="shard 3 of an entry of 3"):
            writer.write(3, tensors(1))
        writer.write(0, tensors(0))
    assert store.get(key("a")) is None  # left without an error, but one shard short
    with store.writer(key("a"), {"m": 1}, n_shards=3, expected_bytes=100) as writer:
        writer.write(2, tensors(2))
    assert torch.equal(store.get(key("a")).read(1)["resid_post.0"], tensors(1)["resid_post.0"])


@pytest.mark.parametrize("change", [{"n_shards": 4}, {"meta": {"rows": [5, 1]}}])
def test_an_unfinished_entry_cut_into_other_shards_is_never_mixed_with_the_new_one(tmp_path, change):
    store = Store(tmp_path)
    plan = {"meta": {"rows": [3, 3]}, "n_shards": 2, "expected_bytes": 100}
    with store.writer(key("a"), **plan) as writer:
        writer.write(0, tensors(0))
    with store.writer(key("a"), **plan | change) as writer:
        assert writer.done == set()
        assert not list(writer.folder.glob("*.safetensors"))


def test_a_finished_entry_asks_for_nothing(tmp_path):
    store = Store(tmp_path)
    fill(store, "a")
    with store.writer(key("a"), {"other": "cut"}, n_shards=5, expected_bytes=100) as writer:
        assert writer.complete and writer.missing == []
    assert store.get(key("a")).n_shards == 3


def test_an_attempt_that_stores_nothing_leaves_nothing(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.writer(key("a"), {}, n_shards=2, expected_bytes=100):
        raise KeyboardInterrupt
    assert store.ls().is_empty() and not [
        path for path in tmp_path.rglob("*") if path.is_file() and path.name != "index.parquet"
    ]


def test_a_key_depends_on_every_part_and_not_on_their_order():
    parts = {"model": "abc", "ids": [[1, 2], [3]], "sites": ("resid_post.1",), "dtype": "float32", "edits": None}
    assert (
        fingerprint(parts)
        == fingerprint(dict(reversed(parts.items())))
        == fingerprint(parts | {"sites": ["resid_post.1"]})
    )
    changes = [
        {"ids": [[1], [2, 3]]},
        {"ids": [[1, 2], [3.0]]},
        {"edits": False},
        {"edits": "None"},
        {"model": "abd"},
        {"new": 1},
    ]
    assert len({fingerprint(parts | change) for change in [{}, *changes]}) == 1 + len(changes)
    assert (
        fingerprint({"ids": torch.tensor([1, 2])})
        == fingerprint({"ids": np.array([1, 2])})
        == fingerprint({"ids": [1, 2]})
    )
    with pytest.raises(InputError, match="object cannot be written as JSON"):
        fingerprint({"site": object()})


@pytest.mark.parametrize("bad", ["", "../../etc", "xyz", "a" * 65, "A" * 32, None, "0" * 15])
def test_a_key_cannot_leave_the_store(tmp_path, bad):
    with pytest.raises(InputError, match="hexadecimal"):
        Store(tmp_path).get(bad)
    with pytest.raises(InputError, match="hexadecimal"), Store(tmp_path).writer(bad, {}, n_shards=1, expected_bytes=1):
        pass


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "no tensors"),
        ({"a": [1, 2]}, "'a' is a list"),
        ({"a": torch.zeros(1).to(torch.complex128)}, "complex128 of 'a'"),
        ({"a": np.array(["x"])}, "cannot hold"),
        ({"__metadata__": torch.zeros(1)}, "cannot be called"),
    ],
)
def test_what_safetensors_cannot_hold_is_refused(tmp_path, given, message):
    with (
        pytest.raises(InputError, match=message),
        Store(tmp_path).writer(key("a"), {}, n_shards=1, expected_bytes=1) as writer,
    ):
        writer.write(0, given)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_listing_equals_the_entries_whatever_happens_to_its_file(tmp_path):
    store = Store(tmp_path)
    assert store.ls().is_empty()
    for name in "ab":
        fill(store, name, meta={"name": name})
    index = tmp_path / "index.parquet"
    expected = store.ls()
    assert expected["key"].to_list() == [key("b"), key("a")]  # the last used first
    assert expected["bytes"].to_list() == [store.get(key(name)).bytes for name in "ba"]
    assert [json.loads(meta) for meta in expected["meta"]] == [{"name": "b"}, {"name": "a"}]
    for content in (None, b"", b"PAR1 but not really", pl.DataFrame({"key": ["x"]})):
        index.unlink(missing_ok=True)
        if isinstance(content, pl.DataFrame):
            content.write_parquet(index)
        elif content is not None:
            index.write_bytes(content)
        assert store.ls().drop("last_used").sort("key").equals(expected.drop("last_used").sort("key"))
        assert pl.read_parquet(index).drop("stamp").equals(store.ls())


def test_the_environment_sets_the_budget(tmp_path, monkeypatch):
    monkeypatch.delenv("WORKBENCH_STORE_BUDGET", raising=False)
    assert Store(tmp_path).budget_bytes is None
    fill(Store(tmp_path), "a")
    size = Store(tmp_path).get(key("a")).bytes
    monkeypatch.setenv(
        "WORKBENCH_STORE_BUDGET", f"{size + 1000}"
    )  # `fill` announces 1000 bytes: room for "b" beside "a", not for "c"
    os.utime(tmp_path / "entries" / key("a") / "used", (1000, 1000))
    fill(Store(tmp_path), "b")
    assert set(Store(tmp_path).ls()["key"]) == {key("a"), key("b")}
    fill(Store(tmp_path), "c")
    assert set(Store(tmp_path).ls()["key"]) == {key("b"), key("c")}
    assert Store(tmp_path, budget_bytes=5).budget_bytes == 5
    monkeypatch.setenv("WORKBENCH_STORE_BUDGET", "a lot")
    with pytest.raises(InputError, match="WORKBENCH_STORE_BUDGET: 'a lot' is not a size"):
        Store(tmp_path)


def test_the_least_recently_used_goes_first_and_what_is_in_use_stays(tmp_path):
    store = Store(tmp_path)
    for age, name in enumerate("abcd"):
        fill(store, name)
        os.utime(tmp_path / "entries" / key(name) / "used", (1000 + age, 1000 + age))
    size = store.get(key("b")).bytes  # also the last use of b
    held = store.get(key("c"))
    os.utime(tmp_path / "entries" / key("c") / "used", (900, 900))  # the oldest of all, but open
    assert store.gc(3 * size)["key"].to_list() == [key("a")]
    with store.writer(key("e"), {}, n_shards=2, expected_bytes=100) as writer:
        writer.write(0, tensors(0))
        os.utime(writer.folder / "used", (800, 800))  # being written: in use as well
        assert set(store.gc(0)["key"]) == {key("b"), key("d")}
        writer.write(1, tensors(1))
    assert set(store.ls()["key"]) == {key("c"), key("e")}
    values = held.read(0)
    held.close()
    assert set(store.clear()["key"]) == {key("c"), key("e")}
    assert torch.equal(values["resid_post.0"], tensors(0)["resid_post.0"])  # what was read stays readable
    assert store.ls().is_empty() and not list(tmp_path.joinpath("entries").iterdir())


def test_an_entry_that_nobody_refers_to_any_more_can_be_evicted(tmp_path):
    store = Store(tmp_path)
    entry = store.get(fill(store, "a"))
    assert store.clear().is_empty()
    del entry
    assert store.clear()["key"].to_list() == [key("a")]


def test_a_new_entry_makes_room_within_the_budget(tmp_path):
    store = Store(tmp_path)
    fill(store, "a")
    size = store.ls()["bytes"][0]
    store.budget_bytes = 2 * size + 10
    for name in "bcd":
        with store.writer(key(name), {}, n_shards=3, expected_bytes=size) as writer:
            for i in writer.missing:
                writer.write(i, tensors(i))
        assert store.ls()["bytes"].sum() <= store.budget_bytes
    assert set(store.ls()["key"]) == {key("c"), key("d")}
    with pytest.raises(InputError, match=r"takes 5\.0 GB, more than the store's whole budget of"):
        with store.writer(key("e"), {}, n_shards=1, expected_bytes=5_000_000_000):
            pass


def test_a_capture_that_the_disk_cannot_hold_is_refused_with_the_numbers(tmp_path):
    store = Store(tmp_path / "not" / "made" / "yet")
    with pytest.raises(InputError, match=r"takes 1000\.0 TB and the disk of .* has only [\d.]+ [GMT]B; free"):
        with store.writer(key("a"), {}, n_shards=1, expected_bytes=10**15):
            pass
    assert store.ls().is_empty()


def test_a_store_that_may_only_be_read_is_read():
    program = (
        "import os, sys, filelock, polars; from workbench.store import Store; from workbench.core.errors "
        "import RunFailed\n"
        "os.setuid(65534) if os.getuid() == 0 else None  # nothing is forbidden to root\n"
        "store, key = Store(sys.argv[1]), sys.argv[2]; entry = store.get(key)\n"
        "assert (entry.n_shards, store.ls()['key'].to_list(), set(store.verify()['status'])) == (3, [key], {'ok'})\n"
        "with store.writer('0' * 64, {}, n_shards=1, expected_bytes=1): pass\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folder is closed to other users
        root = Path(folder)
        stored = fill(Store(root), "a")
        for path in [root, *root.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        done = subprocess.run([sys.executable, "-c", program, root, stored], capture_output=True, text=True)
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert f"RunFailed: The disk of {root} refused to write (Permission denied)." in done.stderr


def test_using_the_store_without_tensors_imports_no_torch(tmp_path):
    store = Store(tmp_path)
    fill(store, "a")
    program = (
        "import sys; from workbench.store import Store; store = Store(sys.argv[1]);"
        "assert len(store.verify()) == 3 and len(store.ls()) == 1; store.clear(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.load_sensitive("a limit of two seconds")
def test_waiting_for_another_writer_can_be_given_up(tmp_path):
    store, told = Store(tmp_path), []

    def give_up():
        raise Cancelled("asked to stop")

    with store.writer(key("a"), {}, n_shards=1, expected_bytes=1) as writer:
        writer.write(0, tensors(0))
        start = time.monotonic()
        with pytest.raises(Cancelled):
            with Store(tmp_path).writer(
                key("a"), {}, n_shards=1, expected_bytes=1, waiting=lambda: told.append(1), check=give_up
            ):
                pass
        assert time.monotonic() - start < 2 and told == [1]
    assert store.get(key("a")) is not None
