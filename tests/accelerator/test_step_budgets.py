"""What the statistics of a step ask of an accelerator: a bounded number of launches, and no wait."""

import pytest
import torch

from tests import virtual_accelerator as va
from tests.support.architectures import build
from workbench.engine.draws import row_keys, step_keys
from workbench.engine.sampling import NUMBER, Rule, likeliest_unchecked, rows_at_once, step
from workbench.engine.scoring import score
from workbench.models.loading import wrap

LAUNCHES = {  # drawn, given
    Rule(): (62, 46),
    Rule(temperature=0.7): (67, 51),
    Rule(temperature=0): (28, 35),
    Rule(top_p=0.9): (59, 49),
    Rule(temperature=0.6, top_p=0.9): (62, 52),
    Rule(top_k=40): (61, 52),
    Rule(top_k=300, top_p=0.9): (66, 56),
    Rule(min_p=0.05): (58, 48),
}


@pytest.mark.parametrize("rule", LAUNCHES, ids=str)
@pytest.mark.parametrize("shape", [(64, 1500), (4, 128_256)], ids=str)
def test_a_step_waits_for_nothing_and_launches_the_same_few_kernels_whatever_its_size(virtual, rule, shape):
    R, V = shape
    scores = torch.randn(R, V, generator=torch.Generator().manual_seed(0)) * 2
    keys, chosen = row_keys(0, range(R), [0] * R), torch.arange(R)
    there, keys_there, chosen_there = (x.to("virtual") for x in (scores, keys, chosen))
    for number, (given, given_there) in enumerate((({"keys": keys}, keys_there), ({"chosen": chosen}, chosen_there))):
        with va.counting() as counts:
            ids, found = step(there, rule, **dict.fromkeys(given, given_there))
        assert counts.waits == 0, counts.of("wait", "to_device", "to_host")
        assert counts.launch <= LAUNCHES[rule][number]
        expected = step(scores, rule, **given)
        assert torch.equal(ids.cpu(), expected[0])
        torch.testing.assert_close(found.cpu(), expected[1], rtol=1e-6, atol=1e-6)


def test_keys_and_greedy_steps_wait_for_nothing(virtual):
    keys, scores = row_keys(0, range(4), [0] * 4).to("virtual"), torch.randn(4, 900).to("virtual")
    with va.counting() as counts:
        step_keys(keys, 3)
        likeliest_unchecked(scores)
    assert counts.waits == 0 and counts.launch <= 14


def test_rows_at_once_fit_into_the_memory_that_is_free_and_may_be_fewer_than_all(virtual):
    V, R = 20_000, 12
    scores = torch.randn(R, V, generator=torch.Generator().manual_seed(0))
    keys = row_keys(0, range(R), [0] * R)
    there, keys_there, rule = scores.to("virtual"), keys.to("virtual"), Rule(top_p=0.9, temperature=1.5)
    va.set_memory(virtual.memory_allocated() + 2 * NUMBER * V * 5)
    rows = rows_at_once(there.device, V)
    assert rows == 5
    ids, found = step(there, rule, keys=keys_there, rows=rows)
    assert torch.equal(ids.cpu(), step(scores, rule, keys=keys)[0])
    before = virtual.memory_allocated()
    virtual.reset_peak_memory_stats()
    step(there[:rows], rule, keys=keys_there[:rows])
    assert virtual.max_memory_allocated() - before <= NUMBER * V * rows


def test_given_texts_are_scored_with_one_copy_back_a_batch(virtual):
    model = wrap(build("llama").to("virtual"), name="llama")
    prompts, texts = [[5, 6, 7], [8], [9, 10]], [[11, 12], [13, 14, 15], [16]]
    score(model, prompts, texts)
    with va.counting() as counts:
        found = score(model, prompts, texts)
    own = {
        kind: {k: n for k, n in counts.of(kind).items() if "scoring.py" in k or "sampling.py" in k} for kind in va.KINDS
    }
    assert not own["wait"] and sum(own["to_host"].values()) == 1 and sum(own["to_device"].values()) <= 1
    for a, b in zip(found, score(wrap(build("llama"), name="llama"), prompts, texts)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
