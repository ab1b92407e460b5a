"""The doctor runs what ships on the device that is here, says what it found, and fails where the device is wrong."""

import pytest

from tests import virtual_accelerator as va
from workbench.cli import device_checks
from workbench.cli.device_checks import PROMPTS, WRITTEN


@pytest.fixture(params=["cpu", "virtual"])
def kind(request):
    if request.param == "cpu":
        yield "cpu"
        return
    with va.present(devices=2):
        yield "virtual"


def test_a_device_that_is_right_passes_every_check(kind):
    found = {check.__name__: check() for check in device_checks.CHECKS}
    assert {item.status for item in found.values()} == {"ok"}, found
    there = kind == "virtual"
    assert found["device"].detail.startswith("virtual:0 (virtual accelerator 0, " if there else "cpu: no accelerator")
    assert f"{len(PROMPTS)} prompts" in found["passes"].detail and f" on {kind} " in found["passes"].detail
    assert f"{WRITTEN} tokens written the same" in found["passes"].detail
    assert "bfloat16 within" in found["dtypes"].detail
    assert ("pinned memory" in found["transfers"].detail) == there
    assert ("right numbers when one is run again" in found["graphs"].detail) == there
    unchecked = found["unchecked"].detail
    assert ("an accelerator" in unchecked) == ("several devices" in unchecked) == (not there) and "vLLM" in unchecked


def test_a_device_that_computes_wrongly_fails(virtual, monkeypatch):
    right = va._raw_attention
    monkeypatch.setattr(va, "_raw_attention", lambda *given, **options: right(*given, **options) * 0.9)
    found = device_checks.passes()
    assert found.status == "fail" and found.remedy and "continuations differ" in found.detail
