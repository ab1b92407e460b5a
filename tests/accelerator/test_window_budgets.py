"""What windows of layers ask of a device: the numbers of the CPU, and waits that do not grow with the windows."""

import copy

import pytest
import torch

from tests import virtual_accelerator as va
from tests.support.architectures import build
from workbench.engine.layer_windows import Window
from workbench.engine.window_effects import window_effects
from workbench.models.loading import wrap

IDS, TOKENS = [[5, 9, 12, 7, 30, 22], [8, 11, 40, 6, 17, 3]], [[4, 5], [6, 7]]


def windows(n: int) -> list[Window]:
    """n of either component, and one cut."""
    both = [Window(k % 3, 1, what) for what in ("attn_out", "mlp_out") for k in range(n)]
    return [*both, Window(1, 1, "cut", ((1, 2), ()))]


@pytest.fixture(scope="module")
def hf():
    return build("llama")


def test_windows_on_a_device_give_the_numbers_of_the_cpu_and_wait_no_more_for_many_than_for_few(hf, virtual):
    on_host = window_effects(wrap(copy.deepcopy(hf)), IDS, TOKENS, windows(9))
    model = wrap(copy.deepcopy(hf).to("virtual"))
    waits = {}
    for n in (3, 9):
        window_effects(model, IDS, TOKENS, windows(n))  # what is found out once
        with va.counting() as counts:
            found = window_effects(model, IDS, TOKENS, windows(n))
        waits[n] = counts.waits
    assert waits[3] == waits[9] <= 20, counts.of("wait", "to_device", "to_host")
    torch.testing.assert_close(found.patched_logits, on_host.patched_logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.patched_normaliser, on_host.patched_normaliser, atol=1e-6, rtol=0)
