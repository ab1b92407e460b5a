"""Threads may share a model: the edits, readers and captures of one do not reach into the passes of another."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.support.architectures import build
from workbench.engine.capture import capture, logits
from workbench.engine.edits import HeadAblation, KnockOut, Patch, apply
from workbench.engine.generate import greedy
from workbench.models.attention import observe
from workbench.models.batching import pad
from workbench.models.loading import wrap
from workbench.models.sites import Site

PROMPTS = [[1, 5, 9, 2, 40, 7], [3, 4, 5], [2, 9, 8, 7, 6, 5, 4, 3], [17, 18, 19, 20]]


@pytest.fixture(scope="module", params=["llama", "gpt2", "falcon"])
def model(request):
    return wrap(build(request.param), name=request.param)


def rows_of(model, ids):
    with torch.no_grad(), observe(model, lambda _layer, weights: weights, rows="last") as seen:
        model.forward(pad([ids], pad_id=0))
    return torch.stack([seen[layer] for layer in range(model.n_layers)])


def work_of(model) -> dict:
    """One piece of work of every kind that hangs hooks on the model."""
    off = HeadAblation(((0, 0), (1, 1)))
    patch = Patch(Site("resid_post", 1), torch.full((model.width,), 3.0), (0,))
    work = {
        "plain": lambda: logits(model, PROMPTS),
        "ablated": lambda: logits(model, PROMPTS, edits=[off]),
        "patched": lambda: capture(model, PROMPTS, ["resid_post.2", "head_out.2"], edits=[patch])["resid_post.2"],
        "captured": lambda: capture(model, PROMPTS, ["mlp_in.1"], positions="all")["mlp_in.1"],
        "greedy": lambda: torch.tensor(greedy(model, PROMPTS, max_new_tokens=6, edits=[off], eos=False)),
        "rows": lambda: rows_of(model, PROMPTS[0]),
    }
    if model.attention_interface:
        work["uniform"] = lambda: logits(model, PROMPTS, edits=[HeadAblation(((1, 0),), "uniform")])
        work["cut"] = lambda: logits(model, PROMPTS, edits=[KnockOut((0, 1), ((0,),), "all")])
    return work


def test_many_threads_on_one_model_get_what_each_gets_alone(model):
    work = work_of(model)
    alone = {name: run() for name, run in work.items()}
    torch.set_num_threads(1)
    jobs = [name for name in work for _ in range(6)]
    with ThreadPoolExecutor(len(work)) as pool:
        found = list(pool.map(lambda name: (name, work[name]()), jobs))
    for name, value in found:
        torch.testing.assert_close(value, alone[name], atol=1e-5, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def test_a_pass_runs_unedited_while_another_thread_holds_an_edit_open(model):
    """The other thread's edit is open for certain, not by chance."""
    expected, opened, done = logits(model, PROMPTS), threading.Event(), threading.Event()

    def hold() -> None:
        edits = [HeadAblation(tuple(model.heads())), Patch(Site("resid_post", 0), torch.zeros(model.width))]
        with apply(model, edits), observe(model, lambda _l, w: w):
            opened.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert opened.wait(30)
        torch.testing.assert_close(logits(model, PROMPTS), expected, atol=0, rtol=0)
    finally:
        done.set()
        thread.join()
