"""Causal head gating: slopes as plain autograd gives them, gates that are the same for a seed, and what they find on a
circuit whose truth is known."""

import pytest
import torch

from tests.support.architectures import build
from tests.support.conflict_files import circuit_rows, conflict_circuit
from workbench.core.errors import InputError
from workbench.engine.head_gates import Gates, fit_gates, gate_slopes
from workbench.models.loading import wrap

PROMPTS, WANTED = [[5, 9, 13, 21, 7], [33, 8, 2], [3, 4, 5, 6]], [11, 12, 30]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_slopes_are_those_of_plain_autograd_one_prompt_at_a_time(name):
    hf = build(name)
    model = wrap(hf, None, name=name)
    blocks = hf.model.layers if name == "llama" else hf.transformer.h
    gates = torch.rand(model.n_layers, model.n_heads, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = torch.zeros(())
    for ids, wanted in zip(PROMPTS, WANTED):
        handles = []
        for layer, block in enumerate(blocks):
            projection = block.self_attn.o_proj if name == "llama" else block.attn.c_proj
            wide = gates[layer].repeat_interleave(model.d_head)
            handles.append(projection.register_forward_pre_hook(lambda _m, args, g=wide: (args[0] * g,)))
        loss = loss - hf(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[wanted] / len(PROMPTS)
        for handle in handles:
            handle.remove()
    expected = torch.autograd.grad(loss, gates)[0]
    for limit in (None, 5):  # one batch, or one a prompt
        found = gate_slopes(model, PROMPTS, WANTED, gates, max_tokens=limit)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())
    assert all(parameter.grad is None for parameter in hf.parameters())


def test_gates_of_the_circuit_close_the_head_that_copies_and_keep_the_one_that_recalls(_circuits):
    """Head 1.1 copies the city of the context, 1.0 recalls the capital: for the capital to be said the first interferes
    and the second is needed; heads that write where nothing reads are irrelevant."""
    model, place, _ = conflict_circuit(_circuits)
    rows = circuit_rows(place)[:8]
    ids = [model.encode(row["conflict_prompt"]) for row in rows]
    wanted = [model.encode(" " + row["answer"], bos=False)[0] for row in rows]
    found = fit_gates(model, ids, wanted, steps=60, seed=1)
    assert found.role[1][1] == "interfering" and found.role[1][0] == "facilitating"
    assert found.role[0][3] == "irrelevant" and found.kept[0, 3] > 0.5 > found.removed[0, 3]
    for gates in (found.free, found.kept, found.removed):
        assert gates.shape == (model.n_layers, model.n_heads) and 0 <= float(gates.min()) <= float(gates.max()) <= 1
    again = fit_gates(model, ids, wanted, steps=60, seed=1)
    assert torch.equal(found.kept, again.kept) and torch.equal(found.removed, again.removed)


def test_roles_are_read_off_the_two_fits():
    kept, removed = torch.tensor([[0.1, 0.9, 0.9, 0.1]]), torch.tensor([[0.1, 0.9, 0.1, 0.9]])
    assert Gates(kept, kept, removed).role == [["interfering", "facilitating", "irrelevant", "interfering"]]


def test_tokens_that_do_not_fit_are_refused():
    model = wrap(build("llama"), None, name="llama")
    with pytest.raises(InputError, match="one wanted token id below"):
        fit_gates(model, PROMPTS, [1, 2])
