"""The activation store under faults: kills, two processes at once, flipped bits, full disks."""

import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from workbench.core.errors import InputError, RunFailed
from workbench.store import activation_store as store_module
from workbench.store import shards
from workbench.store.activation_store import Store, fingerprint
from workbench.store.shards import DamagedShard

KEY = fingerprint({"name": "capture"})

# A capture of many small shards, without torch so that twenty of them start quickly. It notes what it computes and what
# it finished.
CAPTURE = """
import os, sys
import numpy as np
from workbench.store.activation_store import Store, fingerprint
root, log, n_shards, *names = sys.argv[1:]
out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for name in names or ["capture"]:
    with Store(root).writer(fingerprint({"name": name}), {"n": 1}, n_shards=int(n_shards), expected_bytes=1) as writer:
        for i in writer.missing:
            os.write(out, f"compute {name} {i}\\n".encode())
            writer.write(i, {"x": np.random.default_rng(i).normal(size=(4, 512)), "i": np.array([i])})
            os.write(out, f"finish {name} {i}\\n".encode())
assert "torch" not in sys.modules
"""


def capture(root: Path, log: Path, n_shards: int, *names: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CAPTURE, str(root), str(log), str(n_shards), *names])


def lines(log: Path, word: str) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith(word)] if log.exists() else []


def contents(root: Path) -> dict[str, str]:
    """Digest of every file of the entries but the manifest, which tells when it was made."""
    files = [path for path in sorted((root / "entries").rglob("*")) if path.is_file() and path.name != "entry.json"]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def temporaries(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if ".tmp" in path.name]


def small(store: Store, n_shards: int = 3) -> list[Path]:
    """A finished entry; the paths of its shards."""
    with store.writer(KEY, {"n": 1}, n_shards=n_shards, expected_bytes=1) as writer:
        for i in writer.missing:
            writer.write(i, _values(i))
        return sorted(writer.folder.glob("*.safetensors"))


def _values(i: int) -> dict[str, np.ndarray]:
    return {"x": np.full((2, 100), i, np.float32), "y": np.full((2, 50), -i, np.int16)}


@pytest.mark.load_sensitive("one kill in twenty has to fall into a write of milliseconds")
def test_killed_at_twenty_random_moments_it_resumes_with_nothing_lost_and_nothing_recomputed(tmp_path):
    n_shards, chance = 320, random.Random(20)  # more than are written between the kills, however slow the machine
    undisturbed, root, log = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / "log"
    assert capture(undisturbed, tmp_path / "other", n_shards).wait() == 0
    inodes, torn = {}, 0
    for _ in range(20):
        before, target = len(lines(log, "finish")), chance.randrange(6)
        child = capture(root, log, n_shards)
        while len(lines(log, "finish")) < before + target or not lines(log, "compute"):
            assert child.poll() is None, "the capture ended before it could be killed"
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.004))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        torn += bool(temporaries(root))
        now = {path.name: path.stat().st_ino for path in root.rglob("*.safetensors")}
        assert all(now[name] == inode for name, inode in inodes.items()), "a finished shard was lost or written again"
        inodes = now
        finished = {line.split()[2] for line in lines(log, "finish")}
        assert finished <= {str(int(name[:5])) for name in now}
        assert Store(root).get(KEY) is None
    assert torn, "no kill fell into the writing of a shard"
    assert capture(root, log, n_shards).wait() == 0
    assert temporaries(root) == [] and not list((root / "locks").iterdir())
    assert contents(root) == contents(undisturbed)
    computed, finished = lines(log, "compute"), lines(log, "finish")
    assert len(finished) == len(set(finished))
    assert len(computed) - n_shards <= 20  # at most the open shard, once per kill
    assert Store(root).ls().select("complete", "shards").rows() == [(True, n_shards)]


def test_two_processes_on_one_key_compute_every_shard_once(tmp_path):
    log = tmp_path / "log"
    children = [capture(tmp_path / "store", log, 40) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert sorted(lines(log, "compute")) == sorted(f"compute capture {i}" for i in range(40))
    assert set(Store(tmp_path / "store").verify()["status"]) == {"ok"}


def test_the_listing_loses_no_entry_of_several_processes(tmp_path):
    root = tmp_path / "store"
    names = [[f"{child}-{i}" for i in range(6)] for child in range(3)]
    children = [capture(root, tmp_path / f"log{child}", 1, *names[child]) for child in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    listed = pl.read_parquet(root / "index.parquet")  # as the last of them left it
    assert set(listed["key"]) == {fingerprint({"name": name}) for group in names for name in group}
    assert listed["complete"].all() and temporaries(root) == []


def test_every_single_flipped_bit_is_found_and_named(tmp_path):
    (path,) = small(Store(tmp_path), 1)
    original = path.read_bytes()
    for position in range(0, len(original), 3):  # the length, the header and the data of both tensors
        flipped = bytearray(original)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedShard, match=path.name):
            shards.check(path)
    path.write_bytes(original)
    shards.check(path)


@pytest.mark.parametrize("harm", ["flip", "truncate", "extend", "empty", "remove", "swap"])
def test_a_damaged_shard_of_a_finished_entry_is_named_and_only_it_is_computed_again(tmp_path, harm, caplog):
    paths = small(Store(tmp_path))
    _harm(paths, harm)
    report = Store(tmp_path).verify()
    bad = report.filter(report["status"] != "ok")
    assert paths[1].name in {Path(file).name for file in bad["file"]} and bad["reason"].null_count() == 0
    computed = []

    def compute(i):
        computed.append(i)
        return _values(i)

    store, told = Store(tmp_path), []
    while True:
        if (entry := store.get(KEY)) is None:
            with store.writer(KEY, {"n": 1}, n_shards=3, expected_bytes=1) as writer:
                for index in writer.missing:
                    writer.write(index, compute(index))
            continue
        try:
            with entry:
                values = {name: entry.tensor(name) for name in ("x", "y")}
                break
        except DamagedShard as error:
            told.append(str(error))
    assert computed == ([0, 1] if harm == "swap" else [1])
    assert values["x"].numpy().tolist() == np.concatenate([_values(i)["x"] for i in range(3)]).tolist()
    assert (paths[1].name in caplog.text + " ".join(told)) == (harm != "remove")
    assert set(Store(tmp_path).verify()["status"]) == {"ok"}


def _harm(paths: list[Path], harm: str) -> None:
    path, content = paths[1], bytearray(paths[1].read_bytes())
    if harm == "flip":
        content[-17] ^= 4
        path.write_bytes(content)
    elif harm == "truncate":
        path.write_bytes(content[:-10])
    elif harm == "extend":
        path.write_bytes(content + b"\0")
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "remove":
        path.unlink()
    elif harm == "swap":  # two sound files under each other's names
        paths[1].write_bytes(paths[0].read_bytes())
        paths[0].write_bytes(content)


def test_a_reader_never_returns_damaged_values_and_drops_the_shard(tmp_path):
    store = Store(tmp_path)
    paths = small(store)
    entry = store.get(KEY)
    assert entry.read(1, ["y"])["y"].tolist() == _values(1)["y"].tolist()
    time.sleep(0.01)  # the flip changes the time of the file, even where clocks are coarse
    _harm(paths, "flip")  # the last bytes: those of y, found sound a moment ago
    with pytest.raises(DamagedShard, match=rf"{paths[1].name} .*the data of y do not match"):
        entry.read(1)
    assert not paths[1].exists() and paths[0].exists() and store.get(KEY) is None


def test_a_damaged_shard_of_an_unfinished_entry_is_dropped_on_resume(tmp_path):
    store = Store(tmp_path)
    with store.writer(KEY, {"n": 1}, n_shards=3, expected_bytes=1) as writer:
        writer.write(0, _values(0))
        writer.write(1, _values(1))
        paths = sorted(writer.folder.glob("*.safetensors"))
    _harm(paths, "flip")
    with store.writer(KEY, {"n": 1}, n_shards=3, expected_bytes=1) as writer:
        assert (writer.done, writer.damaged) == ({0}, [paths[1].name])
        writer.write(1, _values(1))
        writer.write(2, _values(2))
    assert store.get(KEY).read(1)["x"].numpy().tolist() == _values(1)["x"].tolist()


def test_verify_removes_what_is_damaged_only_when_asked(tmp_path):
    store = Store(tmp_path)
    paths = small(store)
    _harm(paths, "flip")
    assert store.verify()["status"].to_list() == ["ok", "damaged", "ok"] and paths[1].exists()
    assert store.verify(drop=True)["status"].to_list() == ["ok", "damaged", "ok"] and not paths[1].exists()
    assert store.verify()["status"].to_list() == ["ok", "missing", "ok"]


@pytest.mark.parametrize("harm", [b"", b"{}", b"[1]", b"not JSON", None])
def test_a_damaged_manifest_makes_the_entry_start_again(tmp_path, harm):
    store = Store(tmp_path)
    small(store)
    manifest = tmp_path / "entries" / KEY / "entry.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"n": 1', b'"n": 2') if harm is None else harm)
    assert store.get(KEY) is None
    assert store.ls()["complete"].to_list() == [False]
    small(store)
    assert store.get(KEY).meta == {"n": 1}


def test_leftovers_of_a_killed_process_are_swept(tmp_path):
    store = Store(tmp_path)
    with store.writer(KEY, {"n": 1}, n_shards=2, expected_bytes=1) as writer:
        writer.write(0, _values(0))
        folder = writer.folder
        live = folder / ".00001.tmp-live"
        live.write_bytes(b"half")
        store.gc()
        assert live.exists()  # of a writer at work
    store.gc()
    assert not live.exists() and store.ls()["shards"].to_list() == [1]
    (folder / ".00001.tmp-dead").write_bytes(b"half")
    (tmp_path / ".index.parquet.tmp-dead").write_bytes(b"half")
    bare = tmp_path / "entries" / fingerprint({"name": "killed before its first shard"})
    bare.mkdir()
    small(store, 2)
    store.gc()
    assert temporaries(tmp_path) == [] and not bare.exists() and store.get(KEY) is not None


@pytest.mark.parametrize(
    "call, number", [("write", errno.ENOSPC), ("fsync", errno.EDQUOT), ("replace", errno.ENOSPC), ("write", errno.EIO)]
)
def test_a_refused_write_leaves_nothing_half_written_and_says_why(tmp_path, monkeypatch, call, number):
    store = Store(tmp_path)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    with pytest.raises(RunFailed) as caught, store.writer(KEY, {"n": 1}, n_shards=3, expected_bytes=1) as writer:
        writer.write(0, _values(0))
        if call == "write":
            monkeypatch.setattr(shards, "_write_hashed", refuse)
        else:
            monkeypatch.setattr(shards.os, call, refuse)
        writer.write(1, _values(1))
    monkeypatch.undo()
    full = "is full" if number != errno.EIO else "refused to write"
    assert (
        "Shard 1 of 3" in str(caught.value) and full in str(caught.value) and os.strerror(number) in str(caught.value)
    )
    assert temporaries(tmp_path) == [] and store.get(KEY) is None
    with store.writer(KEY, {"n": 1}, n_shards=3, expected_bytes=1) as writer:
        assert writer.done == {0}


def test_a_disk_too_full_for_the_manifest_is_explained_and_for_the_listing_is_harmless(tmp_path, monkeypatch):
    store = Store(tmp_path)

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_module, "write_manifest", refuse)
    with pytest.raises(RunFailed, match="is full"), store.writer(KEY, {"n": 1}, n_shards=1, expected_bytes=1):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(store_module, "listing", refuse)
    small(store)
    monkeypatch.undo()
    assert store.get(KEY) is not None and store.ls()["complete"].to_list() == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits behave like this on Linux")
def test_a_write_that_the_kernel_stops_half_way_leaves_nothing(tmp_path):
    """A real refusal after part of the data was taken: the process may not make a file of more than a million bytes."""
    program = (
        "import resource, sys, numpy as np; from workbench.store import Store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, -1))\n"
        "with Store(sys.argv[1]).writer(sys.argv[2], {}, n_shards=2, expected_bytes=1) as writer:\n"
        "    writer.write(0, {'x': np.ones(100)})\n"
        "    writer.write(1, {'x': np.ones(1_000_000)})\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path, KEY], capture_output=True, text=True)
    assert "RunFailed: Shard 1 of 2 could not be stored. The disk of" in done.stderr
    assert temporaries(tmp_path) == [] and len(list(tmp_path.rglob("*.safetensors"))) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A disk of four million bytes. Needs the right to mount; the injected errors above cover the same paths."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4000k", "tmpfs", disk], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_nothing_half_written_and_the_rest_goes_on_after_making_room(small_disk):
    store = Store(small_disk)
    with pytest.raises(InputError, match=r"takes 9\.0 MB and the disk of .* has only 4\.1 MB; free"):
        with store.writer(KEY, {}, n_shards=3, expected_bytes=8_000_000):
            pass
    other = small_disk / "other"
    other.write_bytes(bytes(1_000_000))
    values = {"x": np.ones(125_000)}  # one million bytes
    with pytest.raises(RunFailed, match="Shard 3 of 4 .* is full .*No space left"):
        with store.writer(
            KEY, {}, n_shards=4, expected_bytes=1
        ) as writer:  # told too little: the disk fills up on the way
            for i in writer.missing:
                writer.write(i, values)
    assert temporaries(small_disk) == []
    other.unlink()
    with store.writer(KEY, {}, n_shards=4, expected_bytes=1) as writer:
        assert writer.missing == [3]
        writer.write(3, {"x": np.ones(100_000)})
    assert store.get(KEY).tensor("x").shape == (475_000,)
