"""Context-aware decoding in batches gives what the formula gives with plain Hugging Face, one pair and one step at a
time, in float64."""

import pytest
import torch

from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine.context_aware import context_aware, weighed
from workbench.engine.edits import HeadScale
from workbench.engine.generate import greedy
from workbench.models.loading import wrap

PROMPTS = [[5, 9, 11, 3, 40, 22, 8, 17, 30], [7, 44], [33, 12, 60, 21, 5, 5]]
WITHOUT = [[22, 8, 17, 30], [44], [60, 21, 9, 5, 6, 7, 8]]  # shorter than the prompt, or longer


def slowly(hf, prompt, without, weight, steps):
    """(1 + α) · with − α · without, both read anew for every token."""
    hf, written = hf.double(), []
    for _ in range(steps):
        with torch.no_grad():
            first, second = (hf(torch.tensor([[*ids, *written]])).logits[0, -1] for ids in (prompt, without))
        written.append(int(((1 + weight) * first - weight * second).argmax()))
        if written[-1] == 2:  # the end of the text
            break
    return written


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("weight", [1.0, 0.5, -0.5, -1.0])
def test_it_equals_the_formula_one_step_at_a_time(name, weight):
    model = wrap(build(name), name=name)
    found = context_aware(model, PROMPTS, WITHOUT, weight=weight, max_new_tokens=8)
    assert found == [slowly(build(name), a, b, weight, 8) for a, b in zip(PROMPTS, WITHOUT)]


def test_weight_0_is_the_plain_model_and_minus_1_answers_without_the_context():
    model = wrap(build("llama"), name="llama")
    assert context_aware(model, PROMPTS, WITHOUT, weight=0.0, max_new_tokens=6) == greedy(
        model, PROMPTS, max_new_tokens=6
    )
    closed = greedy(model, WITHOUT, max_new_tokens=6)
    assert context_aware(model, PROMPTS, WITHOUT, weight=-1.0, max_new_tokens=6) == closed
    assert closed != greedy(model, PROMPTS, max_new_tokens=6)


def test_where_nothing_is_left_out_it_changes_nothing_whatever_the_weight():
    """So its change on clean prompts, which have no context, is 0 by construction."""
    model = wrap(build("gpt2"), name="gpt2")
    for weight in (3.0, -1.0):
        assert context_aware(model, WITHOUT, WITHOUT, weight=weight, max_new_tokens=6) == greedy(
            model, WITHOUT, max_new_tokens=6
        )


def test_edits_act_on_both_prompts_and_batches_do_not_matter():
    model = wrap(build("llama"), name="llama")
    options = {"weight": -1.0, "max_new_tokens": 6, "edits": (HeadScale(((0, 1), (2, 3)), 0.0),)}
    found = context_aware(model, PROMPTS, WITHOUT, **options)
    assert found == greedy(model, WITHOUT, max_new_tokens=6, edits=options["edits"])
    assert context_aware(model, PROMPTS, WITHOUT, max_rows=1, **options) == found


def test_a_token_that_one_side_forbids_is_never_chosen():
    first, second = torch.tensor([1.0, 0.0, -torch.inf]), torch.tensor([0.0, -torch.inf, -torch.inf])
    assert weighed(first, second, 1.0).tolist() == [2.0, -torch.inf, -torch.inf]
    assert weighed(first.half(), second.half(), -1.0).tolist() == [0.0, -torch.inf, -torch.inf]


def test_prompts_that_do_not_pair_are_refused():
    model = wrap(build("llama"), name="llama")
    with pytest.raises(InputError, match="3 prompts with and 2 without context"):
        context_aware(model, PROMPTS, WITHOUT[:2], weight=1.0, max_new_tokens=2)
    with pytest.raises(InputError, match="the weight nan"):
        context_aware(model, PROMPTS, WITHOUT, weight=float("nan"), max_new_tokens=2)
