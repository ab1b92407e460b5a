"""The virtual accelerator itself: it refuses what a GPU refuses, counts what a GPU is asked, and reckons as the CPU."""

import copy
import gc

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests import virtual_accelerator as va

HERE = "tests/accelerator/test_virtual_accelerator.py"


def same(device: torch.Tensor, host: torch.Tensor) -> bool:
    return device.device.type == "virtual" and torch.equal(device.cpu(), host)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda x: torch.ones(3, 3) @ x,
        lambda x: torch.ones(3)[torch.zeros(1, dtype=torch.long, device="virtual")],
        lambda x: torch.ones(3).add_(x),
        lambda x: torch.tensor(1.0).add_(x.sum()),
        lambda x: x.normal_(generator=torch.Generator().manual_seed(0)),
        lambda x: scaled_dot_product_attention(x[None, None, None], *[torch.ones(1, 1, 1, 3)] * 2),
    ],
)
def test_mixing_devices_fails_and_names_the_line(virtual, mix):
    with pytest.raises(RuntimeError, match=rf"{HERE}:\d+"):
        mix(torch.ones(3, device="virtual"))


def test_two_devices_do_not_mix_and_copies_between_them_are_counted():
    with va.present(devices=2):
        x, y = torch.ones(3, device="virtual:0"), torch.ones(3, device="virtual:1")
        with pytest.raises(RuntimeError, match="virtual:0 and virtual:1"):
            x + y
        with va.counting() as counts:
            moved = x.to("virtual:1") + y
        assert (counts.between_devices, counts.launch, counts.waits) == (1, 1, 0)
        assert moved.device == torch.device("virtual:1")
        with pytest.raises(RuntimeError, match="ordinal 2"):
            torch.ones(3, device="virtual:2")


def test_nothing_is_there_outside_the_block():
    assert not torch.get_device_module("virtual").is_available()
    with pytest.raises(RuntimeError, match="0 are present"):
        torch.ones(3, device="virtual")


def test_a_number_of_the_host_goes_with_tensors_of_the_device(virtual):
    x = torch.ones(3, device="virtual")
    with va.counting() as counts:
        y = x * 2 + torch.tensor(1.0)
        x[x > 0] = 5.0  # a masked fill, as on CUDA
    assert counts.waits == 0
    assert same(y, torch.full((3,), 3.0))
    assert x.tolist() == [5.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda x: (x + 1).view(3, 1).expand(3, 2)[1:], {"launch": 1}),
        (lambda x: torch.empty(5, device="virtual"), {}),
        (lambda x: x.view(3, 1).clone().squeeze_(1).add_(x), {"launch": 2}),
        (lambda x: torch.arange(5, device="virtual"), {"launch": 1}),
        (lambda x: x.sum().item(), {"launch": 1, "wait": 1}),
        (lambda x: bool((x > 0).any()), {"launch": 2, "wait": 1}),
        (lambda x: x[x > 0], {"launch": 1, "wait": 1}),
        (lambda x: x.nonzero(), {"wait": 1}),
        (lambda x: torch.unique(x), {"wait": 1}),
        (lambda x: torch.equal(x, x), {"wait": 1}),
        (lambda x: torch.allclose(x, x), {"wait": 1}),
        (lambda x: x.tolist(), {"to_host": 1}),
        (lambda x: x.cpu(), {"to_host": 1}),
        (lambda x: x.to("cpu", non_blocking=True), {"to_host_async": 1}),
        (lambda x: torch.empty(3).copy_(x, non_blocking=True), {"to_host": 1}),
        (lambda x: torch.empty(3, pin_memory=True).copy_(x, non_blocking=True), {"to_host_async": 1}),
        (lambda x: torch.ones(3).to("virtual"), {"to_device": 1}),
        (lambda x: torch.tensor([1, 2], device="virtual"), {"to_device": 1}),
        (lambda x: torch.ones(3).to("virtual", non_blocking=True), {"to_device": 1}),
        (lambda x: torch.ones(3).pin_memory().to("virtual", non_blocking=True), {"to_device_async": 1}),
        (lambda x: torch.ones(3).pin_memory().to("virtual"), {"to_device": 1}),
        (lambda x: x[torch.tensor([0, 1])], {"to_device": 1, "launch": 1}),
        (lambda x: torch.get_device_module("virtual").synchronize(), {"wait": 1}),
        (lambda x: torch.nn.functional.linear(x[None, None], x.view(1, 3)), {"launch": 1}),
    ],
)
def test_counts_are_those_of_a_known_sequence(virtual, act, expected):
    x = torch.arange(3.0, device="virtual")
    with va.counting() as counts:
        act(x)
    found = {kind: getattr(counts, kind) for kind in va.KINDS if getattr(counts, kind)}
    assert found == expected
    assert all(line.startswith(HERE) for _, _, line in counts.lines)


def test_a_copy_that_was_not_waited_for_has_no_numbers(virtual):
    x = torch.arange(3.0, device="virtual")
    out = x.to("cpu", non_blocking=True)
    assert out.isnan().all()
    event = virtual.Event()
    event.record()
    later = x.long().to("cpu", non_blocking=True)
    event.synchronize()
    assert torch.equal(out, torch.arange(3.0)) and later.tolist() != [0, 1, 2]
    virtual.synchronize()
    assert later.tolist() == [0, 1, 2]


def test_pinned_memory_may_not_be_written_before_the_copy_is_waited_for(virtual):
    host = torch.ones(3).pin_memory()
    host.to("virtual", non_blocking=True)
    virtual.synchronize()
    host += 1  # waited for: allowed
    host.to("virtual", non_blocking=True)
    host += 1
    with pytest.raises(RuntimeError, match=f"written to before.*{HERE}"):
        virtual.synchronize()


def test_memory_above_the_limit_is_refused_and_freed_memory_is_free_again():
    with va.present(memory=1000) as module:
        x = torch.zeros(100, device="virtual")
        view = x[10:]
        assert module.mem_get_info() == (600, 1000)
        with pytest.raises(torch.OutOfMemoryError, match="virtual:0 has 1000 bytes"):
            torch.zeros(200, device="virtual")
        del x
        gc.collect()
        assert module.memory_allocated() == 400  # the view holds it
        del view
        gc.collect()
        assert module.memory_allocated() == 0 and module.max_memory_allocated() == 400
        module.reset_peak_memory_stats()
        assert module.max_memory_allocated() == 0


def test_gradients_are_those_of_the_cpu(virtual):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 4))
    ours = copy.deepcopy(model).to("virtual")
    x = torch.randn(2, 3, 5, 4)
    found = []
    for net, given in ((model, x), (ours, x.to("virtual"))):
        optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            states = net(given).clone()
            states[:, 0] = states[:, 0] * 2
            loss = scaled_dot_product_attention(states, states, states, is_causal=True).square().sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
        found.append([loss.detach(), *(p.grad for p in net.parameters()), *(p.detach() for p in net.parameters())])
    assert all(same(there, here) for here, there in zip(*found, strict=True))


def test_forward_mode_gradients_are_those_of_the_cpu(virtual):
    torch.manual_seed(0)
    x, along, scale = torch.randn(2, 3), torch.randn(2, 3), torch.randn(3)

    def norm(scale, a):
        return a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 1e-5) * scale

    _, here = torch.func.jvp(lambda a: norm(scale, a), (x,), (along,))
    there = scale.to("virtual")
    _, moved = torch.func.jvp(lambda a: norm(there, a), (x.to("virtual"),), (along.to("virtual"),))
    assert same(moved, here)


def test_a_replayed_graph_is_the_eager_computation_and_one_launch(virtual):
    weight, x = torch.eye(3, device="virtual") * 2, torch.ones(2, 3, device="virtual")
    cache, step = torch.zeros(4, 2, 3, device="virtual"), torch.zeros((), dtype=torch.long, device="virtual")

    def work():
        y = torch.relu(x @ weight) + 1
        cache.index_copy_(0, step.view(1), y[None])
        step.add_(1)
        top = y.max(-1)
        return y, top.values

    captured = virtual.CUDAGraph()
    with va.counting() as counts, virtual.graph(captured):
        y, top = work()
    assert counts.launch == 0
    assert step.item() == 0 and not cache.cpu().any() and y.isnan().all()  # captured, not run
    for i in range(3):
        x.fill_(i)
        with va.counting() as counts:
            captured.replay()
        assert (counts.launch, counts.waits) == (1, 0)
        assert same(y, torch.full((2, 3), 2.0 * i + 1)) and same(top, torch.full((2,), 2.0 * i + 1))
    assert step.item() == 3
    assert cache[:, 0, 0].tolist() == [1.0, 3.0, 5.0, 0.0]


@pytest.mark.parametrize(
    "act", [lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x[x > 0], lambda x: torch.tensor([1.0]).to(x.device)]
)
def test_a_graph_refuses_what_makes_the_host_wait(virtual, act):
    x = torch.ones(3, device="virtual")
    with pytest.raises(RuntimeError, match=f"not permitted when stream is capturing.*{HERE}"):
        with virtual.graph(virtual.CUDAGraph()):
            act(x)
    assert (x + 1).tolist() == [2, 2, 2]  # and it is over


def test_random_numbers_on_the_device_follow_a_generator_of_it(virtual):
    def draw(device):
        return torch.rand(4, generator=torch.Generator(device).manual_seed(3), device=device)

    assert same(draw("virtual"), draw("cpu"))


def test_a_model_moves_to_the_device_and_gives_the_same_numbers(virtual, tiny_llama):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        expected = model(ids).logits
        written = model.generate(ids, max_new_tokens=5, do_sample=False)
        model.to("virtual")
        assert same(model(ids.to("virtual")).logits, expected)
        assert same(model.generate(ids.to("virtual"), max_new_tokens=5, do_sample=False), written)
