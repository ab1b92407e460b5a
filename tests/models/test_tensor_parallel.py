"""A model spread over processes: refused where it cannot be, else with the stream, scores and texts of a whole one."""

import functools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from tests.support.architectures import build
from workbench import probe
from workbench.core.errors import InputError
from workbench.engine.capture import capture, logits
from workbench.engine.generate import greedy
from workbench.models.loading import load

IDS = [[1, 5, 9, 13, 20], [1, 7, 3]]
SITES = ("resid_pre.0", "resid_mid.1", "attn_out.1", "mlp_in.1", "mlp_out.1", "resid_post.1", "final_norm")


def started(monkeypatch, count: int) -> None:
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", count)):
        monkeypatch.setenv(name, str(value))


def test_what_cannot_be_spread_is_refused_before_it_is_read(tiny_llama, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="torchrun --nproc-per-node N"):
        load(str(tiny_llama), tp_plan="auto")
    started(monkeypatch, 3)
    with pytest.raises(InputError, match="4 key/value heads .* cannot be shared by 3 processes"):
        load(str(tiny_llama), tp_plan="auto")
    started(monkeypatch, 2)
    with pytest.raises(InputError, match="not a tensor-parallel plan"):
        load(str(tiny_llama), tp_plan="colwise")
    with pytest.raises(InputError, match="device=cpu cannot be had"):
        load(str(tiny_llama), tp_plan="auto", device="cpu")
    build("gpt2").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no tensor-parallel plan for GPT2LMHeadModel"):
        load(str(tmp_path), tp_plan="auto")


def read(model) -> dict:
    """What a process that has a part of the model can read."""
    found = {site: capture(model, IDS, [site], positions="all")[site] for site in SITES}
    return found | {"logits": logits(model, IDS), "greedy": greedy(model, IDS, max_new_tokens=5)}


def one_of_two(rank: int, folder, out) -> None:
    """A process of two: reads, and keeps the sentences with which it refuses the rest."""
    import os

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out / 'meeting'}", rank=rank, world_size=2)
    model = load(str(folder), tp_plan="auto")
    found, refused = read(model), []
    for ask in (
        functools.partial(capture, model, IDS, ["head_out.1"]),
        functools.partial(capture, model, IDS, ["mlp_hidden.1"]),
        functools.partial(probe("representation-geometry").run, model),
    ):
        with pytest.raises(InputError) as error:
            ask()
        refused.append(str(error.value))
    torch.save(found | {"refused": refused}, out / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_read_what_one_reads_and_refuse_what_each_has_a_part_of(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))  # where the new processes find this file
    expected = read(load(str(tiny_llama)))
    multiprocessing.start_processes(one_of_two, (tiny_llama, tmp_path), nprocs=2, start_method="spawn")
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["greedy"] == expected["greedy"]
        for site in (*SITES, "logits"):
            torch.testing.assert_close(found[site], expected[site], atol=2e-5, rtol=1e-5)
        heads, neurons, run = found["refused"]
        assert "spreads its heads over 2 processes" in heads and "spreads its neurons over 2 processes" in neurons
        assert "spread over 2 processes (tp_plan), and a run is made by one" in run
