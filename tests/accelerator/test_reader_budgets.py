"""What reading attention costs on a device: counted on the virtual accelerator, and the same numbers as eager Hugging
Face gives on the CPU."""

import pytest
import torch

from probes.retrieval_heads.speculative_decoding import greedy_steps
from tests import virtual_accelerator as va
from tests.probes.retrieval_heads.test_speculative_decoding import PROMPTS, SPANS, N, compare, plain_decode
from tests.support.architectures import build
from workbench.engine.last_token_replay import Injection, injected_states
from workbench.explorer.head_score_passes import attention_to
from workbench.models import attention_stacks
from workbench.models.attention import observe, observe_stacked
from workbench.models.batching import pad
from workbench.models.loading import wrap

LAYERS, PER_LAYER, NEW = 8, 6, 17  # launches that a layer may cost for its reading; tokens that are written


def on_device(name, **changes):
    """A tiny model that was checked on the CPU, on the virtual device."""
    model = wrap(build(name, **changes), name=name)
    model.hf.to("virtual")
    return model


def steps(model, spans, *, guesses=((), (), ()), new=N, stops=lambda _ids: False):
    return greedy_steps(model, None, PROMPTS, guesses, max_new_tokens=new, stops=stops, spans=spans)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2", "gptj"])
def test_steps_on_a_device_are_those_of_eager_decoding_on_the_cpu(virtual, name):
    """Rows with right and wrong guesses, rows that end before the host looks: the tokens and readings are the same."""
    reference = [plain_decode(name, p, s.tolist(), {}) for p, s in zip(PROMPTS, SPANS)]
    model, spans = on_device(name), SPANS.to("virtual")
    compare(steps(model, spans), reference)
    end = reference[0][0][2]
    until = [tokens.index(end) + 1 if end in tokens else N for tokens, *_ in reference]
    compare(
        steps(model, spans, guesses=[reference[0][0][:2], [63], ()], stops=lambda ids: ids[-1] == end),
        [tuple(x[:n] for x in row) for row, n in zip(reference, until)],
    )


def test_decoding_with_readers_costs_little_more_than_generate_and_waits_every_few_steps(virtual):
    """At most PER_LAYER launches a layer and step beside those of decoding without readers, in all at most 1.25 times
    those of Hugging Face's `generate` without readers, and a wait at each look."""
    model, counts = on_device("llama", num_hidden_layers=LAYERS), {}
    for spans in (None, SPANS.to("virtual")):
        steps(model, spans, new=2)  # what is made once
        with va.counting() as counts[spans is not None]:
            steps(model, spans, new=NEW)
    plain, read = counts[False], counts[True]
    batch = pad(PROMPTS, pad_id=0, side="left", device="virtual")
    with va.counting() as generate:
        written = model.hf.generate(
            batch.ids, attention_mask=batch.mask.long(), max_new_tokens=NEW, do_sample=False, eos_token_id=None
        )
    assert written.shape[1] == batch.ids.shape[1] + NEW
    assert read.launch - plain.launch <= NEW * LAYERS * PER_LAYER, (plain, read)
    assert read.launch <= 1.25 * generate.launch, (generate, read)
    assert read.waits == plain.waits <= 0.2 * NEW, read.of("wait", "to_host", "to_device")
    assert read.to_host_async == read.to_host  # readings go beside the tokens


def test_a_layer_costs_one_product_and_the_rest_is_shared(virtual):
    """Twice the layers: twice the launches of the model, and of the readers one for each layer more."""
    more = {}
    for layers in (4, 8):
        model, spans = on_device("llama", num_hidden_layers=layers), SPANS.to("virtual")
        with va.counting() as plain:
            steps(model, None, new=1)
        with va.counting() as read:
            steps(model, spans, new=1)
        more[layers] = read.launch - plain.launch
    assert more[8] - more[4] <= 4 * 2, more  # a product, and queries laid out for it


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_masked_pass_on_a_device_waits_for_nothing_and_copies_no_keys(virtual, side):
    model = wrap(build("llama"), name="llama")
    with torch.no_grad():
        expected = model.forward(pad(PROMPTS, pad_id=0, side=side)).logits
        model.hf.to("virtual")
        batch = pad(PROMPTS, pad_id=0, side=side, device="virtual")
        with va.counting() as counts:
            found = model.forward(batch).logits
    assert counts.waits == 0, counts.of("wait", "to_device", "to_host")
    copies = [line for line in counts.of("launch") if line.startswith("clone ") and "attention.py" in line]
    assert len(copies) <= 2, copies  # queries and results laid out; keys and values are as they were
    torch.testing.assert_close(found.cpu()[batch.real], expected[batch.real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at_once", [1, 1 << 20])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gptj"])
def test_rows_of_layers_together_are_those_of_eager_attention(name, at_once, monkeypatch):
    """In one stack and in many; layers with windows of their own and without; rows in a stretch and by position."""
    monkeypatch.setattr(attention_stacks, "ON_CPU", at_once)
    reference, model = build(name).double(), wrap(build(name), name=name)
    ids = [[5, 9, 2, 40, 41, 7, 30, 11], [6, 3, 1, 50, 8, 4, 2, 9]]
    with torch.no_grad():
        expected = torch.stack(reference(torch.tensor(ids), output_attentions=True).attentions, 1)
        for rows, take in ((slice(-3, None), [5, 6, 7]), ([1, -1], [1, 7]), ("all", list(range(8)))):
            for see in (observe_stacked, observe):
                reduce = (lambda w: w.clone()) if see is observe_stacked else (lambda _layer, w: w.clone())
                with see(model, reduce, rows=rows) as seen:
                    model.forward(pad(ids, pad_id=0))
                found = torch.stack([seen[layer] for layer in range(model.n_layers)], 1)
                torch.testing.assert_close(found.double(), expected[:, :, :, take], atol=1e-5, rtol=0)


def test_replaying_the_last_token_waits_once_however_many_layers_and_heads(virtual):
    """On a device as on the CPU, where whole passes hold it (tests/engine/test_patching.py)."""
    ids = [[5, 9, 2, 40], [6, 3, 1, 50]]
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    jobs, model = [(2, 0), (0, 1), (0, 3), (1, 2)], wrap(build("llama"), name="llama")
    expected = injected_states(model, ids, [Injection(*job, z) for job in jobs])
    model.hf.to("virtual")
    there = z.to("virtual")
    with va.counting() as counts:
        found = injected_states(model, ids, [Injection(*job, there) for job in jobs])
    assert counts.waits == 1, counts.of("wait", "to_host", "to_device")
    for one, other in zip(found, expected):
        torch.testing.assert_close(one.cpu(), other, atol=1e-5, rtol=1e-5)


def test_scores_of_heads_leave_the_device_in_one_copy(virtual):
    ids, model = [5, 9, 2, 5, 9, 7], wrap(build("llama"), name="llama")
    marks = {"before": torch.eye(6).bool().roll(-1, 1).tril(), "itself": torch.eye(6).bool()}
    expected = attention_to(model, ids, marks)
    model.hf.to("virtual")
    with va.counting() as counts:
        found = attention_to(model, ids, marks)
    assert counts.wait + counts.to_host == 1, counts.of("wait", "to_host")
    for name in marks:
        assert abs(found[name] - expected[name]).max() < 1e-6
