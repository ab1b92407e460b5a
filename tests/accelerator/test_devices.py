"""Devices are what PyTorch knows and has, and what they say of themselves; no kind of them has a list here."""

import pytest
import torch

from tests import virtual_accelerator as va
from workbench.core.errors import InputError
from workbench.models import devices
from workbench.models.batching import halving
from workbench.models.load_options import check_device
from workbench.runs import queue


def test_a_device_that_somebody_registered_is_taken_as_cuda_is():
    with pytest.raises(InputError, match="'virtual' was asked for but this machine has no usable GPU"):
        check_device("virtual")
    with pytest.raises(InputError, match="not a device"):
        check_device("virtuel")
    assert check_device(None) == "cpu"
    with va.present(devices=2):
        assert check_device("virtual:1") == "virtual:1"
        assert check_device(torch.device("virtual")) == torch.device("virtual")
        assert check_device(None) == "virtual"
        assert queue.devices() == ["virtual:0", "virtual:1", "cpu"]
        with pytest.raises(InputError, match="has 2 GPU, counted from virtual:0"):
            check_device("virtual:2")


def test_what_a_device_says_of_itself():
    with va.present(memory=1000):
        assert devices.name("virtual") == "virtual accelerator 0"
        assert devices.has_pinned_memory("virtual") and not devices.has_pinned_memory("cpu")
        x = torch.zeros(100, device="virtual")
        assert devices.memory("virtual") == (600, 1000)
        del x
        devices.free_caches()
        assert devices.memory("virtual") == (1000, 1000) and devices.peak_memory_bytes() == 400
        devices.reset_peak_memory()
        assert devices.peak_memory_bytes() == 0
        with va.counting() as counts:
            devices.synchronise("virtual")
        assert counts.wait == 1
        made, opened = devices.graphs("virtual")
        with opened(made()):
            pass
    assert devices.peak_memory_bytes() is None or torch.accelerator.is_available()
    assert devices.name("cpu") == "cpu" and devices.graphs("cpu") is None
    free, total = devices.memory("cpu")
    assert 0 < free <= total


def test_a_batch_that_a_device_has_no_room_for_is_halved():
    with va.present(memory=1000):
        found = list(halving(list(range(8)), lambda part: torch.ones(len(part), 50, device="virtual").sum().item()))
    assert [part for part, _ in found] == [[0, 1, 2, 3], [4, 5, 6, 7]] and {total for _, total in found} == {200.0}


def test_what_is_drawn_in_a_block_of_kept_randomness_leaves_no_trace(virtual):
    for device in ("cpu", "virtual"):
        torch.manual_seed(1)
        expected = torch.rand(2, device=device).cpu()
        torch.manual_seed(1)
        with devices.kept_randomness(device):
            torch.manual_seed(2)
            torch.rand(5, device=device)
        assert torch.equal(torch.rand(2, device=device).cpu(), expected)
