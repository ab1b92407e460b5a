"""What decoding asks of a device, beside plain `generate` of the same prompts on the same device: launches and waits,
counted. And that steps recorded as a graph write what the plain ones do."""

import logging

import pytest
import torch

from tests import virtual_accelerator as va
from tests.support.architectures import build
from workbench.core.errors import RunFailed
from workbench.engine import recorded_steps
from workbench.engine.edits import HeadAblation
from workbench.engine.generate import greedy, sample
from workbench.engine.kv_cache import feed, merge, prefill
from workbench.engine.sampling import Rule
from workbench.models.attention import observe
from workbench.models.loading import wrap

PROMPTS = [[5, 9, 11, 3, 40, 22, 8, 17, 30], [7], [33, 12, 60, 21], [4, 50]]
STEPS = 24


def on_device(name):
    return wrap(build(name).to("virtual"), name=name)


def plain_generate(model, **options):
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS]).to("virtual")
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS]).to("virtual")
    with va.counting() as counts, torch.no_grad():
        out = model.hf.generate(
            ids, attention_mask=mask, max_new_tokens=STEPS, pad_token_id=0, eos_token_id=-1, **options
        )
    return out[:, width:].tolist(), counts


def decoded(write, monkeypatch, *, recorded):
    """What `write` gives, and its counts."""
    monkeypatch.setattr(recorded_steps, "SHORTEST", 16 if recorded else 10**6)
    with va.counting() as counts:
        found = write()
    assert counts.waits <= 0.2 * STEPS, counts.of("wait", "to_device", "to_host")
    return found, counts


def replays(counts):
    return sum(n for line, n in counts.of("launch").items() if line.startswith("graph replay"))


def test_greedy_steps_stay_in_their_budget_and_recorded_they_are_one_launch_each(virtual, monkeypatch):
    model = on_device("llama")
    reference, theirs = plain_generate(model, do_sample=False)

    def write():
        return greedy(model, PROMPTS, max_new_tokens=STEPS, eos=False)

    found, plain = decoded(write, monkeypatch, recorded=False)
    assert found == reference and plain.launch <= 1.25 * theirs.launch and replays(plain) == 0
    found, recorded = decoded(write, monkeypatch, recorded=True)
    assert found == reference and recorded.launch <= 0.5 * theirs.launch
    # not the first token, which the prompt gives, nor those before the first look, nor the step beside a plain one
    assert replays(recorded) == STEPS - 1 - 7 - 1
    assert theirs.waits > STEPS


@pytest.mark.parametrize("rule", [Rule(top_p=0.9), Rule()], ids=str)
def test_sampling_with_statistics_stays_in_its_budget_and_draws_what_the_cpu_draws(virtual, monkeypatch, rule):
    model, options = on_device("llama"), {"samples": 1, "max_new_tokens": STEPS, "rule": rule, "eos": False}
    _, theirs = plain_generate(model, do_sample=True, top_p=rule.top_p, top_k=0)
    expected = sample(wrap(build("llama"), name="llama"), PROMPTS, **options)
    for recorded, most in ((False, 1.25), (True, 0.6)):
        found, ours = decoded(lambda: sample(model, PROMPTS, **options), monkeypatch, recorded=recorded)
        assert torch.equal(found.ids, expected.ids)
        torch.testing.assert_close(found.steps, expected.steps, atol=1e-4, rtol=1e-4)
        assert ours.launch <= most * theirs.launch and (replays(ours) > 0) == recorded


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma2"])
def test_recorded_steps_write_what_the_cpu_writes_while_rows_leave(virtual, monkeypatch, name):
    monkeypatch.setattr(recorded_steps, "SHORTEST", 1)
    monkeypatch.setattr(recorded_steps, "SEGMENT", 10)  # longer than a look, and not a multiple of it
    cpu = wrap(build(name), name=name)
    free = greedy(cpu, PROMPTS, max_new_tokens=26, eos=False)
    stop = next(token for ids in free for token in ids if any(token not in other for other in free))
    options = {"max_new_tokens": 26, "stop_ids": [stop], "eos": False}
    expected = greedy(cpu, PROMPTS, **options)
    assert min(map(len, expected)) < 26 == max(map(len, expected))
    with va.counting() as ours:
        assert greedy(on_device(name), PROMPTS, **options) == expected
    assert replays(ours) > 0


def test_a_past_is_read_forked_cut_picked_and_merged_without_a_wait_and_with_one_copy_each(virtual):
    model, cpu = on_device("llama"), wrap(build("llama"), name="llama")

    def scores(model):
        past = prefill(model, PROMPTS[2:], None, room=8)
        past, _ = feed(model, [[5, 6], [7, 8]], past)
        both = merge([past.fork().pick([1]), past.fork().first(4, [0]), past])
        return feed(model, [[9]] * 4, both, last_logits=1)[1]

    with va.counting() as counts:
        found = scores(model)
    torch.testing.assert_close(found.cpu(), scores(cpu), rtol=1e-4, atol=1e-5)
    assert counts.waits == 0, counts.of("wait", "to_device", "to_host")
    assert counts.to_device_async == 5  # what is read three times, and which rows are picked twice


def test_a_step_that_waits_is_not_recorded_and_the_log_says_so(virtual, caplog):
    hf = build("llama")

    class Waiting(type(hf.model.norm)):
        def forward(self, x):
            assert bool(x.isfinite().all())
            return super().forward(x)

    hf.model.norm.__class__ = Waiting
    expected = greedy(wrap(hf, name="waits"), PROMPTS, max_new_tokens=STEPS, eos=False)
    recorded_steps._say.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert greedy(wrap(hf.to("virtual"), name="waits"), PROMPTS, max_new_tokens=STEPS, eos=False) == expected
    assert "Steps of waits are launched one operation at a time" in caplog.text and "capturing" in caplog.text


def test_rows_with_edits_or_readers_are_never_recorded(virtual):
    model = on_device("llama")
    edits = (HeadAblation(((0, 1), (2, 3)), "zero"),)
    expected = greedy(wrap(build("llama"), name="llama"), PROMPTS, max_new_tokens=STEPS, edits=edits, eos=False)
    with va.counting() as edited:
        assert greedy(model, PROMPTS, max_new_tokens=STEPS, edits=edits, eos=False) == expected
    with va.counting() as watched, observe(model, lambda _, weights: weights.amax(-1)):
        greedy(model, PROMPTS, max_new_tokens=STEPS, eos=False)
    assert replays(edited) == replays(watched) == 0


def test_scores_that_are_no_numbers_are_refused_on_a_device_too(virtual):
    model = on_device("llama")
    with torch.no_grad():
        model.hf.lm_head.weight[7].fill_(torch.nan)
    with pytest.raises(RunFailed, match="NaN"):
        greedy(model, PROMPTS, max_new_tokens=STEPS)
