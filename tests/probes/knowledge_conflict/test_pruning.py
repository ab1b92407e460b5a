"""What pruning rests on: exported models, neutral text, random heads, likelihoods."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import probes
from probes.knowledge_conflict.neutral_text import neutral_texts
from probes.knowledge_conflict.random_controls import random_draws, random_heads
from tests.support.architectures import build
from tests.support.conflict_files import conflict_circuit
from workbench import load
from workbench.core.errors import InputError
from workbench.engine.edits import HeadAblation
from workbench.engine.pruned_export import export_pruned
from workbench.models.loading import wrap

ESSAYS = Path(probes.__file__).parent / "essays.txt"


@pytest.fixture(scope="module")
def circuit(_circuits):
    return conflict_circuit(_circuits)


@pytest.mark.parametrize("name", ("llama", "gpt2", "gpt_neox", "gemma2"))
def test_an_exported_model_gives_the_scores_of_the_model_with_these_heads_ablated(tmp_path, name):
    from workbench.engine.capture import logits

    model = wrap(build(name), None, name=name)
    before = {key: value.clone() for key, value in model.hf.state_dict().items()}
    heads = ((0, 1), (2, 3), (2, 0))
    folder = export_pruned(model, heads, tmp_path / "pruned")
    ids = [[5, 9, 13, 21, 7], [33, 8, 2]]
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    wanted = logits(model, ids, edits=(HeadAblation(heads),))
    for row, expected in zip(ids, wanted):
        with torch.no_grad():
            torch.testing.assert_close(plain(torch.tensor([row])).logits[0, -1], expected, atol=1e-5, rtol=1e-5)
    assert (logits(model, ids) - wanted).abs().max() > 1e-2
    assert all(torch.equal(value, before[key]) for key, value in model.hf.state_dict().items())
    with pytest.raises(InputError, match="not an empty folder"):
        export_pruned(model, heads, folder)
    with pytest.raises(InputError, match="Head 9.0 does not exist"):
        export_pruned(model, [(9, 0)], tmp_path / "other")


def test_neutral_text_hangs_on_the_tokenizer_and_not_on_the_name(circuit, tiny_llama, tmp_path):
    options = {"essays": ESSAYS, "otherwise": [[2, 3, 4]]}
    organism = load("organism")
    texts, which = neutral_texts(organism, "auto", **options)
    assert which == "documents of the organism" and len(texts) == 64
    assert neutral_texts(wrap(organism.hf, organism.tokenizer, name="a copy"), "auto", **options) == (texts, which)
    assert (
        neutral_texts(circuit[0], "auto", **options)[0] == [[2, 3, 4]]
        and "knows no English" in neutral_texts(circuit[0], "auto", **options)[1]
    )
    stories = load(str(tiny_llama))
    texts, which = neutral_texts(stories, "auto", **options)
    assert which == "English essays that ship with the project" and len(texts) == 64 and max(map(len, texts)) == 256
    (tmp_path / "mine.txt").write_text("Once upon a time.\nx\n")
    texts, which = neutral_texts(stories, str(tmp_path / "mine.txt"), **options)
    assert texts[0] == stories.encode("Once upon a time.") and which.endswith("mine.txt")


def test_random_draws_never_repeat_while_the_layers_hold_others():
    import itertools

    options = {"n_layers": 3, "rng": np.random.default_rng(0)}
    found = random_draws(((1, 0),), 8, draws=7, **options)
    assert sorted(found) == [((1, h),) for h in range(1, 8)]
    assert len(random_draws(((1, 0),), 8, draws=12, **options)) == 7
    # heads 0 and 3 of layer 0; one of three of layer 2
    pairs = random_draws(((0, 1), (0, 2), (2, 3)), 4, draws=3, **options)
    assert sorted(pairs) == sorted(tuple(sorted([(0, 0), (0, 3), (2, h)])) for h in (0, 1, 2))
    many = random_draws(((1, 0), (1, 1)), 8, draws=15, **options)
    assert sorted(many) == sorted(tuple((1, h) for h in pair) for pair in itertools.combinations(range(2, 8), 2))


def test_random_heads_are_of_the_same_layers_and_never_the_chosen_ones():
    rng = np.random.default_rng(0)
    heads = ((1, 0), (1, 3), (4, 2))
    draws = {random_heads(heads, 8, rng, n_layers=6) for _ in range(50)}
    assert len(draws) > 20
    for drawn in draws:
        assert sorted(layer for layer, _ in drawn) == [1, 1, 4] and not set(drawn) & set(heads)
    full = tuple((2, h) for h in range(4))
    elsewhere = random_heads(full, 4, rng, n_layers=3)
    assert len(set(elsewhere)) == 4 and all(layer != 2 for layer, _ in elsewhere)
    with pytest.raises(InputError, match="not enough other heads"):
        random_heads(tuple((l, h) for l in range(2) for h in range(2)), 2, rng, n_layers=2)
