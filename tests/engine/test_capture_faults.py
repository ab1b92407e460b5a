"""Stored captures of a real model under faults: kill -9 at random moments, a flipped byte, a budget, a memory that is
small."""

import logging
import mmap
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from workbench.core.context import Context
from workbench.core.progress import SCALE
from workbench.engine import capture as captures
from workbench.engine import stored_capture
from workbench.engine.capture import capture
from workbench.models.loading import load
from workbench.store.activation_store import Store
from workbench.store.shards import DamagedShard

IDS = [[1, 2 + i, 3, 4 + i % 5, 7][: 3 + i % 3] for i in range(160)]
SITES = ["resid_post.1", "head_out.3"]

# A process that loads torch and the model once, then forks a child for every kill. A child captures through the store
# and notes which prompts it computes and which shards it finished; the parent kills it a random while after a random
# number of those.
KILLS = """
import hashlib, os, random, signal, sys, time
from pathlib import Path
import torch
from workbench.engine import capture as captures, stored_capture
from workbench.store import activation_store as stores
from workbench.models import load
from tests.engine.test_capture_faults import IDS, SITES

model, root, log = load(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
model.fingerprint
stored_capture.SHARD_BYTES = 1000
plain = captures.capture(model, IDS, SITES, positions="all")
log.touch()
note = os.open(log, os.O_WRONLY | os.O_APPEND)
stream, write = captures.ENGINES["hf"], stores.Writer.write

def noted_stream(model, ids, *args, **options):
    os.write(note, f"compute {hashlib.sha256(str(ids).encode()).hexdigest()}\\n".encode())
    yield from stream(model, ids, *args, **options)

def noted_write(writer, index, tensors):
    write(writer, index, tensors)
    os.write(note, f"finish {index}\\n".encode())

captures.ENGINES["hf"], stores.Writer.write = noted_stream, noted_write

def child():
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            found = captures.capture(model, IDS, SITES, positions="all", store=stores.Store(root))
            code = 0 if all(torch.allclose(found[site], plain[site], atol=1e-5, rtol=0) for site in SITES) else 2
        finally:
            os._exit(code)
    return pid

def finished():
    return [line for line in log.read_text().splitlines() if line.startswith("finish")]

dice, torn, inodes = random.Random(0), 0, {}
for kill in range(20):
    wanted, pid = len(finished()) + dice.randrange(3), child()
    while len(finished()) < wanted:
        assert os.waitpid(pid, os.WNOHANG)[0] == 0, "the capture ended before it could be killed"
        time.sleep(0.0005)
    time.sleep(dice.uniform(0, 0.004))
    os.kill(pid, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    torn += any(".tmp" in path.name for path in root.rglob("*"))
    now = {path.name: path.stat().st_ino for path in root.rglob("*.safetensors") if ".tmp" not in path.name}
    assert all(now.get(name) == inode for name, inode in inodes.items()), "a finished shard was lost or written again"
    assert {int(line.split()[1]) for line in finished()} <= {int(name[:5]) for name in now}
    inodes = now
assert os.waitstatus_to_exitcode(os.waitpid(child(), 0)[1]) == 0, "the resumed capture differs from one without a store"
print("torn", torn)
"""


def temporaries(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if ".tmp" in path.name]


def shard_contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.safetensors")}


@pytest.mark.slow
def test_a_capture_killed_at_twenty_random_moments_resumes_as_if_undisturbed(tiny_llama, tmp_path, monkeypatch):
    root, log = tmp_path / "killed", tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tiny_llama), str(root), str(log)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr("workbench.engine.stored_capture.SHARD_BYTES", 1000)
    model, undisturbed = load(str(tiny_llama)), Store(tmp_path / "undisturbed")
    wanted = capture(model, IDS, SITES, positions="all", store=undisturbed)
    assert shard_contents(root) == shard_contents(undisturbed.root) and temporaries(root) == []
    n_shards = len(shard_contents(root))
    assert n_shards > 100  # more than are finished between twenty kills
    lines = log.read_text().splitlines()
    computed = [line for line in lines if line.startswith("compute")]
    finished = [line for line in lines if line.startswith("finish")]
    # a kill costs the shard that is written and the one that is computed beside it, at most
    assert len(set(computed)) == n_shards and len(computed) <= n_shards + 2 * 20
    assert len(finished) == len(set(finished))
    monkeypatch.setattr(model.hf, "forward", None)  # what the killed processes left needs no model any more
    found = capture(model, IDS, SITES, positions="all", store=Store(root))
    assert all(torch.equal(found[site], wanted[site]) for site in SITES)


@pytest.mark.parametrize("where", [0.02, 0.5, -1])
def test_a_flipped_byte_is_named_and_only_its_shard_is_computed_again(tiny_llama, tmp_path, monkeypatch, caplog, where):
    """In the header, in the middle of the data, in the last byte: what is read back is what was computed, never the
    damage."""
    monkeypatch.setattr("workbench.engine.stored_capture.SHARD_BYTES", 20_000)
    model = load(str(tiny_llama))
    wanted = capture(model, IDS, SITES, positions="all")
    capture(model, IDS, SITES, positions="all", store=Store(tmp_path))
    before = shard_contents(tmp_path)
    assert len(before) > 3
    path = tmp_path / sorted(before)[1]
    raw = bytearray(path.read_bytes())
    raw[int(where * len(raw)) if where > 0 else -1] ^= 1
    path.write_bytes(bytes(raw))
    forwards, context = [], Context(store=Store(tmp_path))
    forward = model.hf.forward
    monkeypatch.setattr(
        model.hf,
        "forward",
        lambda *args, **kwargs: forwards.append(kwargs["input_ids"].shape[0]) or forward(*args, **kwargs),
    )
    with caplog.at_level(logging.WARNING):
        found = capture(model, IDS, SITES, positions="all", store=context.store, context=context)
    for site in SITES:
        torch.testing.assert_close(found[site], wanted[site], atol=1e-5, rtol=0)
    assert 0 < sum(forwards) < len(IDS) / 2  # the prompts of one shard
    assert shard_contents(tmp_path).keys() == before.keys() and shard_contents(tmp_path) == before
    assert context.counters["cache_hits"] == len(before) - 1


def test_reading_a_damaged_shard_raises_rather_than_returns(tiny_llama, tmp_path):
    model = load(str(tiny_llama))
    capture(model, IDS[:3], SITES, store=Store(tmp_path))
    (path,) = tmp_path.rglob("*.safetensors")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    store = Store(tmp_path)
    (key,) = store.ls()["key"]
    with pytest.raises(DamagedShard, match=path.name):
        store.get(key).read(0)


def test_the_size_of_a_stored_capture_is_told_before_it_starts(tiny_llama, tmp_path, caplog):
    model, told = load(str(tiny_llama)), []
    context = Context(store=Store(tmp_path), on_progress=lambda *step: told.append(step))
    expected = 160 * (64 + 8 * 8) * 4
    with caplog.at_level(logging.INFO):
        capture(model, IDS, SITES, store=context.store, context=context)
    assert told[0] == (0, SCALE, "storing 81.9 kB of activations: 0 of 160") and expected == 81_920
    assert f"Storing 81.9 kB of activations in {tmp_path}." in caplog.text
    told.clear()
    capture(model, IDS, SITES, store=context.store, context=context)
    assert [label for *_, label in told] == ["capture (stored): 160 of 160"]


def test_a_budget_evicts_the_capture_not_used_for_longest(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_STORE_BUDGET", "120kB")  # room for one capture of 82 kB
    model = load(str(tiny_llama))
    for layer in (0, 1):
        capture(model, IDS, [f"resid_post.{layer}", f"head_out.{layer}"], store=Store(tmp_path))
    (kept,) = Store(tmp_path).ls().to_dicts()
    assert "resid_post.1" in kept["meta"] and kept["complete"]


@pytest.mark.parametrize("positions", ["last", "all"])
def test_a_stored_capture_holds_one_shard_once(tiny_llama, tmp_path, monkeypatch, positions):
    """No batch outlives its copy into the shard, and no shard that was read outlives the reading of the next one."""
    model, stream, computed, mapped, most = (
        load(str(tiny_llama)),
        captures.ENGINES["hf"],
        [],
        [],
        {"computed": 0, "mapped": 0},
    )

    def alive(references) -> int:
        return sum(reference() is not None for reference in references)

    def watched(*args, **options):
        for indices, found, batch in stream(*args, **options):
            arrays = [tensor.numpy().copy() for tensor in found.values()]
            computed.extend(weakref.ref(array) for array in arrays)
            lent = {
                site: torch.from_numpy(array) for site, array in zip(found, arrays)
            }  # an array lives as long as anything sees its memory
            del arrays, found
            yield indices, lent, batch
            del lent
            most["computed"] = max(most["computed"], alive(computed))

    class Map(mmap.mmap):
        def __init__(self, *_, **__):
            most["mapped"] = max(most["mapped"], alive(mapped) + 1)
            mapped.append(weakref.ref(self))

    monkeypatch.setitem(captures.ENGINES, "hf", watched)
    monkeypatch.setattr(stored_capture, "SHARD_BYTES", 1000 * (16 if positions == "last" else 64))
    monkeypatch.setattr(mmap, "mmap", Map)
    options = {"positions": positions, "store": Store(tmp_path), "max_rows": 2}
    for _rows, found in captures.shards(model, IDS, SITES, **options):
        assert alive(computed) == 0
        del found
    n_shards = len(shard_contents(tmp_path))
    assert (
        n_shards > 3 and len(computed) >= len(IDS) and len(mapped) >= n_shards
    )  # two sites, at most two prompts a batch
    assert most == {"computed": len(SITES), "mapped": 1}  # of the batch that was just taken
