"""Is the device that runs take here right? What ships with the project is run on it, and held to plain Hugging Face on
the CPU; and what no check here could show is said."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from workbench.cli.finding import Finding
from workbench.core.wording import human_bytes
from workbench.models import devices

if TYPE_CHECKING:
    import torch

    from workbench.models import Model

MODEL = "organism"
PROMPTS = (
    "Once upon a time",
    "The",
    "The workshop of Mira is in the town by the river, and",
    "She looked at the box.",
)
WRITTEN = 8  # tokens
SITES = ("resid_post.0", "resid_post.2")
CLOSE = 1e-3  # of scores and activations between two devices in float32, relative to the largest
HALF = {"bfloat16": 2e-2, "float16": 3e-3}  # of a product of matrices, the same


def device() -> Finding:
    """Which device runs take, and what it has."""
    found = devices.listed()
    if not found:
        return Finding("device", "ok", "cpu: no accelerator is in this machine, or PyTorch cannot use it")
    said = [
        f"{name} ({devices.name(name)}, {human_bytes(devices.memory(name)[0])} of "
        f"{human_bytes(devices.memory(name)[1])} free)"
        for name in found
    ]
    return Finding("device", "ok", ", ".join(said))


def passes() -> Finding:
    """A batch of prompts and its continuation on the device, against plain Hugging Face on the CPU, prompt by
    prompt."""
    import torch

    from workbench.engine.capture import capture, logits
    from workbench.engine.generate import greedy
    from workbench.models import load

    kind = devices.current()
    model = load(MODEL, device=kind, dtype="float32")  # what is compared is the device, not the precision
    ids = [model.encode(text) for text in PROMPTS]
    scores, states, written = _plainly(model, ids)
    here = logits(model, ids)
    kept = capture(model, ids, SITES)
    far = {
        "scores": _far(here, scores),
        "activations": max(_far(kept[site], state) for site, state in zip(SITES, states, strict=True)),
    }
    other = sum(a != b for a, b in zip(greedy(model, ids, max_new_tokens=WRITTEN, eos=False), written, strict=True))
    said = (
        f"{len(ids)} prompts through {MODEL} on {kind} in float32, against plain Hugging Face on the CPU: scores "
        f"within {far['scores']:.0e}, activations within {far['activations']:.0e}, "
        + (f"{WRITTEN} tokens written the same" if not other else f"{other} of {len(ids)} continuations differ")
    )
    if max(far.values()) <= CLOSE and not other and bool(torch.isfinite(here).all()):
        return Finding("passes", "ok", said)
    return Finding("passes", "fail", said, "use --device cpu, and update PyTorch or the driver of the device")


def _plainly(model: Model, ids: list[list[int]]) -> tuple[torch.Tensor, list[torch.Tensor], list[list[int]]]:
    """Scores [n, V] and states (for each site [n, d]) of the last tokens, and what is written, the slow way."""
    import torch
    from transformers import AutoModelForCausalLM

    hf: Any = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32, attn_implementation="eager")
    scores, states, written = [], [], []
    with torch.no_grad():
        for row in ids:
            seen = hf(torch.tensor([row]), output_hidden_states=True)
            scores.append(seen.logits[0, -1])
            states.append([seen.hidden_states[int(site.partition(".")[2]) + 1][0, -1] for site in SITES])
            longer = list(row)
            for _ in range(WRITTEN):
                longer.append(int(hf(torch.tensor([longer])).logits[0, -1].argmax()))
            written.append(longer[len(row) :])
    return torch.stack(scores), [torch.stack(column) for column in zip(*states)], written


def _far(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The greatest difference, relative to the largest number that is expected."""
    return float((found.double().cpu() - expected.double()).abs().max() / expected.abs().max())


def dtypes() -> Finding:
    """Whether the device multiplies matrices in half precision, and rightly."""
    import torch

    kind, bad, good = devices.current(), [], []
    numbers = torch.linspace(-1, 1, 64 * 64, dtype=torch.float64).view(64, 64)
    for name, close in HALF.items():
        half = numbers.to(getattr(torch, name))
        try:
            far = _far(half.to(kind) @ half.to(kind), half.double() @ half.double())
        except (RuntimeError, TypeError, NotImplementedError) as error:
            bad.append(f"{name} is not there ({type(error).__name__})")
            continue
        (good if far <= close else bad).append(f"{name} within {far:.0e}")
    said = f"products of matrices on {kind}: {', '.join(good + bad)}"
    return Finding("dtypes", "warn", said, "use --dtype float32") if bad else Finding("dtypes", "ok", said)


def transfers() -> Finding:
    """Whether copies can go on while the device computes."""
    kind = devices.current()
    if devices.is_cpu(kind):
        return Finding("transfers", "ok", "cpu: nothing is copied")
    if not devices.has_pinned_memory(kind):
        return Finding("transfers", "ok", f"{kind} reads no pinned memory: passes wait for copies")
    import torch

    sent = torch.arange(1000.0).pin_memory()
    there = sent.to(kind, non_blocking=True)
    back = torch.empty_like(sent, pin_memory=True).copy_(there * 2, non_blocking=True)
    devices.synchronise(kind)
    if torch.equal(back, sent * 2):
        return Finding("transfers", "ok", f"{kind} copies from and to pinned memory while the host goes on")
    return Finding(
        "transfers", "fail", f"{kind} gave other numbers than it was sent", "update the driver of the device"
    )


def graphs() -> Finding:
    """Whether what a device is asked can be recorded and asked again at once."""
    kind = devices.current()
    found = devices.graphs(kind)
    if found is None:
        return Finding("graphs", "ok", f"{kind} records no graphs: every operation is launched by itself")
    import torch

    made, recorded = found
    x = torch.ones(3, device=kind)
    (x * 2 + 1).sum()  # whatever is made at a first use is not recorded
    devices.synchronise(kind)
    graph = made()
    with recorded(graph):
        y = x * 2 + 1
    x.fill_(5)
    graph.replay()
    devices.synchronise(kind)
    if y.tolist() == [11.0] * 3:
        return Finding("graphs", "ok", f"{kind} records graphs and gives the right numbers when one is run again")
    return Finding(
        "graphs", "fail", f"a graph of {kind} gave wrong numbers", "update PyTorch or the driver of the device"
    )


def unchecked() -> Finding:
    """What no check here can show."""
    found, said = devices.listed(), []
    if not found:
        said.append("an accelerator (none is here)")
    if len(found) < 2:
        said.append("a model on several devices (there are fewer than two)")
    if find_spec("vllm") is None:
        said.append("sampling with vLLM (not installed)")
    elif not found:
        said.append("sampling with vLLM (it needs an accelerator)")
    else:
        said.append("sampling with vLLM (installed, but not run here)")
    said.append("speed, and models of other sizes than the one that ships")
    return Finding("unchecked", "ok", "; ".join(said))


CHECKS = (device, passes, dtypes, transfers, graphs, unchecked)
