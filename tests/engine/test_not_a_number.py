"""Scores and activations that are not numbers are refused wherever something is read off them: comparisons with NaN are
false, its argmax is token 0, and both look like results."""

import json

import numpy as np
import pytest
import torch

from probes.concept_depth import concept_sets as concept_data
from probes.concept_depth import set_splits
from probes.representation_geometry import phases
from probes.retrieval_heads.speculative_decoding import greedy_steps
from tests.support.architectures import build
from workbench.core.errors import InputError, RunFailed
from workbench.engine import sampling
from workbench.engine.capture import logits
from workbench.engine.evaluation import final_state_losses, read_choices
from workbench.engine.generate import greedy
from workbench.engine.mean_head_outputs import mean_head_outputs
from workbench.engine.patching import direct_effects
from workbench.engine.token_selection import select_tokens
from workbench.models.loading import wrap

BROKEN = 7  # the token whose embedding is NaN, as a word at which float16 overflows
CLEAN, BAD = [[4, 5, 6], [4, 8, 9, 10, 11]], [[4, 5, 6], [4, 8, BROKEN, 10, 11]]


@pytest.fixture(scope="module")
def model():
    """Finite but at one word."""
    model = wrap(build("llama"))
    assert not model.hf.config.tie_word_embeddings
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[BROKEN] = torch.nan
    return model


def continued(model, prompts):
    return greedy_steps(model, None, prompts, [[]] * len(prompts), max_new_tokens=3, stops=lambda _: False)


READERS = {
    "greedy": lambda model, prompts: greedy(model, prompts, max_new_tokens=3),
    "greedy_steps": continued,
    "logits": logits,
    "losses": lambda model, prompts: final_state_losses(model, prompts, [("keep", None)]),
    "mean_head_outputs": mean_head_outputs,
    "select_tokens": lambda model, prompts: select_tokens(model, prompts, layer=1, keep=2),
    "direct_effects": lambda model, prompts: direct_effects(
        model, prompts, [row[::-1] for row in prompts], [[1, 2]] * len(prompts)
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_text_at_which_the_model_is_not_finite_is_refused_and_the_others_are_not(model, name):
    READERS[name](model, CLEAN)
    with pytest.raises((RunFailed, InputError), match="NaN"):
        READERS[name](model, BAD)


def test_scores_that_are_nan_stay_nan_in_the_statistics_of_a_large_vocabulary():
    scores = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    scores[1] = torch.nan
    for rule in (sampling.Rule(), sampling.Rule(top_p=0.9), sampling.Rule(temperature=0)):
        _, found = sampling.step(scores, rule, keys=torch.arange(3))
        assert not bool(found[[0, 2]].isnan().any())
        with pytest.raises(RunFailed, match="NaN"):
            sampling.check_steps(found, "a model")


def test_the_likeliest_token_of_padding_may_be_anything():
    scores = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    scores[..., 8] = -torch.inf  # the vocabulary is padded
    expected = scores.argmax(-1).tolist()
    assert sampling.likeliest(scores, "a model").tolist() == expected
    scores[1, 0] = torch.nan
    assert sampling.likeliest(scores, "a model", last=[3, 2])[0].tolist() == expected[0]
    assert sampling.likeliest(scores, "a model", last=[3, 2])[1][1:].tolist() == expected[1][1:]
    for value in (torch.nan, torch.inf):
        scores[1, 1, 4] = value
        with pytest.raises(RunFailed, match="NaN"):
            sampling.likeliest(scores, "a model", last=[3, 2])


@pytest.mark.parametrize("course", [[5.0] * 6, [5.0, 5.0, 5.0, 5.0, 5.0 + 1e-13]])
def test_checkpoints_that_do_not_differ_have_no_phases(course):
    assert phases.segment(range(1, len(course) + 1), course, rng=np.random.default_rng(0)) == []


def test_a_question_with_the_same_choice_twice_is_refused(tmp_path):
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps({"prompt": "It was", "choices": ["good", "good "], "answer": 0}) + "\n")
    with pytest.raises(InputError, match=r"row 1: `choices` must be a list of at least two different texts"):
        read_choices(file)


def test_texts_that_repeat_are_kept_in_one_part_of_a_split(tmp_path):
    """Else the probe is tested on what it was fitted on, and random labels are read off at 98 %."""
    rows = [{"text": f"text number {i}", "label": int(i % 3 == 0)} for i in range(60)] * 5
    file = tmp_path / "set.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    concept = concept_data.load_file(file)
    for how in ("paper", "kfold"):
        tests, by_group = set_splits.split(concept, how, rng=np.random.default_rng(0))
        assert by_group
        for test in tests:
            held_out = {concept.texts[i] for i in test}
            assert len(held_out) * 5 == len(test)
        assert set_splits.tested_and_fitted_on(concept, tests) == 0
        apart, _ = set_splits.split(concept, how, groups="no", rng=np.random.default_rng(0))
        assert set_splits.tested_and_fitted_on(concept, apart) == sum(
            any(concept.texts[j] == concept.texts[i] for j in set(range(300)) - set(t.tolist()))
            for t in apart
            for i in t
        )
    file.write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in [*rows[:60], *({"text": f"other {i}", "label": i % 2} for i in range(60)), rows[0]]
        )
    )
    _, by_group = set_splits.split(concept_data.load_file(file), "paper", rng=np.random.default_rng(0))
    assert not by_group, "one of a hundred and more is no leak"
