"""In which precision a model is opened, by what is free and by what is stored; on screen, from Python, in the URL."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import virtual_accelerator as va
from tests.support import tiny_llama as small
from tests.support.app_screens import open_page, words
from workbench import explore
from workbench.core.errors import InputError
from workbench.explorer.opened_model import open_model
from workbench.models import devices, precision
from workbench.models.load_options import AUTOMATIC
from workbench.models.loading import load
from workbench.runs.description import command_for, describe_model, identify, with_dtype
from workbench.runs.execution import prepare


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def half(request, tiny_llama, tmp_path_factory):
    """A model that is stored in 16 bits, and its dtype."""
    folder = tmp_path_factory.mktemp("half") / request.param
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).to(getattr(torch, request.param))
    model.save_pretrained(folder)
    small.tokenizer().save_pretrained(folder)
    return folder, request.param, sum(p.numel() for p in model.parameters())


def only(monkeypatch, size: float) -> None:
    monkeypatch.setattr(precision, "free_bytes", lambda device=None: int(size))


def test_halves_stay_halves_where_float32_would_take_more_than_its_share_of_what_is_free(half, monkeypatch):
    folder, stored, n = half
    only(monkeypatch, 4 * n / precision.SHARE + 1)
    opened = open_model(str(folder))
    assert (opened.model.dtype, opened.precision) == (torch.float32, "")
    only(monkeypatch, 4 * n / precision.SHARE - 1)
    opened = open_model(str(folder))
    assert opened.model.dtype == getattr(torch, stored)
    assert f"held in {stored}, as they are stored: in float32 they would take {4 * n / 2**20:.1f} MiB" in (
        opened.precision
    )
    assert open_model(str(folder), dtype="float32").model.dtype == torch.float32  # whoever asks for it, gets it


def test_the_dtype_of_itself_is_float32_on_a_cpu_and_as_stored_on_an_accelerator(half, tiny_llama, monkeypatch):
    folder, stored, _ = half
    assert load(str(folder)).dtype == load(str(folder), dtype="float32").dtype == torch.float32
    with va.present():
        assert load(str(folder)).dtype == load(str(folder), device="virtual").dtype == getattr(torch, stored)
        assert load(str(folder), device="virtual", dtype="float32").dtype == torch.float32
        assert load(str(folder), device="cpu").dtype == torch.float32
        opened = open_model(str(folder), device="virtual")
        assert (opened.model.dtype, opened.precision) == (getattr(torch, stored), "")
        assert precision.dtype_for(tiny_llama, "virtual") == "float32"
    quantised = {"U8": 10**6, "BF16": 10**4}
    monkeypatch.setattr(precision, "stored_numbers", lambda folder: quantised)
    with va.present():
        assert precision.dtype_for(folder) == "auto"
    assert precision.weight_bytes(folder, "auto") == 10**6 + 2 * 10**4


def test_what_cannot_fit_is_refused_with_what_would_before_any_weight_is_read(half, tiny_llama, monkeypatch):
    folder, stored, n = half

    def read(*args, **kwargs):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    only(monkeypatch, 3 * n)
    for asked in ({}, {"dtype": "float32"}):
        with pytest.raises(InputError, match=rf"take .* in float32, and .* free on cpu; use --dtype {stored}"):
            load(str(folder), device="cpu", **asked)
    with pytest.raises(InputError, match="use a smaller model, or a machine with more memory"):
        load(str(tiny_llama), device="cpu", dtype="float64")
    with pytest.raises(InputError, match="a weight was read"):  # 16 bits have room
        load(str(folder), device="cpu", dtype=stored)
    monkeypatch.undo()
    with va.present(memory=n):
        with pytest.raises(InputError, match=rf"take .* in {stored}, and .* free on virtual; .*--device auto"):
            load(str(folder))
        precision.check_fits(folder, "m", dtype=stored, device="auto")


def test_a_run_is_what_it_was_on_a_cpu_and_another_one_in_the_dtype_that_an_accelerator_takes(half):
    folder, stored, _ = half
    ready = prepare("representation-geometry", {}, model=str(folder))
    alone, asked, halved = (load(str(folder), device="cpu", **o) for o in ({}, {"dtype": "float32"}, {"dtype": stored}))
    assert identify(ready, alone, seed=0) == identify(ready, asked, seed=0) != identify(ready, halved, seed=0)
    with va.present():
        on_device = load(str(folder))
        assert identify(ready, on_device, seed=0) == identify(ready, halved, seed=0)
        assert describe_model(on_device)["dtype"] == stored and f"--dtype {stored}" in command_for(ready, on_device)
    assert "--dtype" not in command_for(ready, alone) and "--dtype" not in with_dtype("workbench run x", alone)
    assert with_dtype("workbench run x", halved) == f"workbench run x --dtype {stored}"
    assert f"--dtype {stored}" in command_for(ready, halved)
    for device, said in (("cpu", False), ("cuda", True), (None, True)):  # where float32 is not what comes by itself
        assert ("--dtype float32" in command_for(ready, str(folder), dtype="float32", device=device)) is said
    assert "--dtype" not in command_for(ready, str(folder), dtype=AUTOMATIC, device="cuda")


def test_what_is_stored_in_float32_is_not_rounded_however_little_is_free(tiny_llama, monkeypatch):
    only(monkeypatch, precision.weight_bytes(tiny_llama, "float32"))
    opened = open_model(str(tiny_llama))
    assert (opened.model.dtype, opened.precision) == (torch.float32, "")


def test_what_is_free_is_the_least_of_what_the_system_has_and_a_limit_leaves(monkeypatch, tmp_path):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"available": 5000, "total": 8000}))
    real = devices.Path
    (tmp_path / "memory.current").write_text("1000\n")
    monkeypatch.setattr(devices, "Path", lambda p: tmp_path if p == "/sys/fs/cgroup" else real(p))
    for limit, free in (("3000\n", 2000), ("max\n", 5000), ("900\n", 0), ("9000\n", 5000)):
        (tmp_path / "memory.max").write_text(limit)
        assert precision.free_bytes("cpu") == free
    (tmp_path / "memory.max").unlink()
    assert precision.free_bytes("cpu") == 5000


def test_a_model_in_16_bits_is_read_as_the_plain_model_of_16_bits_reads(half):
    """Final scores are read off in float32, from the stream that the plain model in 16 bits computes."""
    folder, stored, _ = half
    view = explore(str(folder), "Once upon a time there was a big dog", dtype=stored)
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, stored)).eval()
    with torch.no_grad():
        out = hf(input_ids=torch.tensor([view.ids]), output_hidden_states=True)
        states = out.hidden_states[1].float()
    torch.testing.assert_close(view.reading.stream[1], states[0], atol=0.05, rtol=0.05)
    torch.testing.assert_close(view.reading.logits, out.logits[0, -1].float(), atol=0.1, rtol=0.05)
    for table, figure in (view.lens(), view.direct_effects(), view.waterfall()):
        assert table.height and figure.data


def test_a_dtype_is_of_a_model_that_is_not_loaded_yet(tiny_llama):
    assert explore(str(tiny_llama), "Once", dtype="bfloat16").opened.model.dtype == torch.bfloat16
    with pytest.raises(InputError, match="comes too late"):
        explore(load(str(tiny_llama)), "Once", dtype="bfloat16")
    with pytest.raises(InputError, match="'half' is not a dtype"):
        explore(str(tiny_llama), "Once", dtype="half")


def test_the_screen_says_the_precision_and_keeps_a_choice_in_its_address(half, monkeypatch):
    folder, stored, n = half
    only(monkeypatch, 4 * n)
    at = open_page("explorer", model=str(folder), prompt="Once upon a time")
    assert f"Weights in {stored} on cpu" in words(at).replace("\\", "")
    assert any(f"held in {stored}" in item.value.replace("\\", "") for item in at.info)
    at = open_page("explorer", model=str(folder), prompt="Once upon a time", dtype="float32", off="1.1")
    assert "Weights in float32" in words(at) and not any("held in" in item.value for item in at.info)
    assert at.selectbox(key="dtype").value == "float32"
    at = open_page("explorer", model=str(folder), prompt="Once upon a time", dtype="<b>")
    assert f"Weights in {stored}" in words(at)
    only(monkeypatch, 1e12)
    at = open_page("explorer", model="circuit-copy-gqa", prompt="lantern velvet")
    at.selectbox(key="dtype").set_value("bfloat16").run()
    assert not at.exception and "Weights in bfloat16 on cpu" in words(at)
