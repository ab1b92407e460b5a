"""A model spread over processes: refused where it cannot be, else with the stream, scores and texts of a whole one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.architectures import build
from tests.support.one_of_two import SITES, read
from workbench.core.errors import InputError
from workbench.models.loading import load

ROOT = Path(__file__).resolve().parents[2]


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


def test_two_processes_read_what_one_reads_and_refuse_what_each_has_a_part_of(tiny_llama, tmp_path):
    expected = read(load(str(tiny_llama)))
    # started as programs, not spawned: a spawned process first runs what the parent says is its main file, and that is
    # a page of the app where an earlier test has shown one
    command = [sys.executable, "-m", "tests.support.one_of_two"]
    two = [
        subprocess.Popen([*command, str(rank), tiny_llama, tmp_path], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for process in two:
        _, said = process.communicate()
        assert process.returncode == 0, said
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["greedy"] == expected["greedy"]
        for site in (*SITES, "logits"):
            torch.testing.assert_close(found[site], expected[site], atol=2e-5, rtol=1e-5)
        heads, neurons, run = found["refused"]
        assert "spreads its heads over 2 processes" in heads and "spreads its neurons over 2 processes" in neurons
        assert "spread over 2 processes (tp_plan), and a run is made by one" in run
