"""Two sides of an exploration set against each other, held to the plain model on each side."""

import numpy as np
import polars as pl
import pytest

from tests.explorer.test_explorer import eager
from tests.support.architectures import build
from workbench import explore
from workbench.core.errors import InputError
from workbench.explorer.differences import align_texts, heads_apart, lenses_apart, patterns_apart, same_vocabulary
from workbench.explorer.exploring import Exploration
from workbench.explorer.opened_model import Opened
from workbench.explorer.readings import read
from workbench.explorer.targets import Target
from workbench.models.loading import wrap

PROMPT = "The secret of the lantern is {} walrus cactus. Question: What is the secret of the lantern? Answer:"
ONE, TWO = [5, 9, 17, 5, 9, 30, 17], [5, 9, 17, 40, 5, 9, 30, 17]  # a token more in the middle
WHERE = (0, 1, 2, 4, 5, 6, 7)


@pytest.fixture(scope="module")
def pair():
    """Two models of one shape with other weights."""
    return [Opened(wrap(build("llama", seed=seed), None, name=f"m{seed}")) for seed in (0, 1)]


def lens_by_hand(opened, ids, target):
    """log p of a token by [layer + 1, position], from the plain model's own hidden states in float64."""
    logits, _, hidden = eager(opened, ids)
    hf = opened.model.hf
    rows = [hf.lm_head(hf.model.norm(state[0].float())).double().log_softmax(-1)[:, target] for state in hidden[:-1]]
    return np.stack([row.detach().numpy() for row in rows] + [logits.log_softmax(-1)[:, target].numpy()])


def test_lens_maps_of_two_models_and_prompts_are_subtracted_where_their_tokens_are_the_same(pair):
    target = Target(11)
    table = lenses_apart((pair[0], read(pair[0], ONE), target), (pair[1], read(pair[1], TWO), target), WHERE)
    mine, theirs = lens_by_hand(pair[0], ONE, 11), lens_by_hand(pair[1], TWO, 11)
    assert table.height == mine.size
    for layer, position, there, a, b, off in table.iter_rows():
        assert there == WHERE[position] and TWO[there] == ONE[position]
        assert a == pytest.approx(mine[layer + 1, position], abs=1e-4)
        assert b == pytest.approx(theirs[layer + 1, there], abs=1e-4)
        assert off == pytest.approx(theirs[layer + 1, there] - mine[layer + 1, position], abs=2e-4)


def test_explorations_are_aligned_and_subtracted_panel_by_panel(pair):
    here = Exploration(pair[0], tuple(ONE), Target(11))
    there = Exploration(pair[1], tuple(TWO), Target(3))  # its own target is not asked for
    table, fig = here.difference(there)
    assert table["there_position"].to_list()[: len(ONE)] == list(WHERE)
    assert table["there"].to_list()[-1] == pytest.approx(lens_by_hand(pair[1], TWO, 11)[-1, -1], abs=1e-4)
    assert len(fig.data) >= 3
    (_, mine, _), (_, theirs, _) = eager(pair[0], ONE), eager(pair[1], TWO)
    pattern, _ = here.difference(there, of="pattern", head=(2, 1))
    for query, key, a, b, off in pattern.iter_rows():
        assert a == pytest.approx(float(mine[2, 1, query, key]), abs=1e-5)
        assert b == pytest.approx(float(theirs[2, 1, WHERE[query], WHERE[key]]), abs=1e-5)
        assert off == pytest.approx(b - a, abs=1e-9) and key <= query
    scores, _ = here.difference(there, of="previous_token")
    for layer, head, a, b, _ in scores.iter_rows():
        before = [np.mean([float(w[layer, head, i, i - 1]) for i in range(1, w.shape[-1])]) for w in (mine, theirs)]
        assert [a, b] == pytest.approx(before, abs=1e-5)
    p, q = (eager(m, ids)[0][-1].softmax(-1) for m, ids in ((pair[0], ONE), (pair[1], TWO)))
    following, _ = here.difference(there, of="next_tokens")
    assert {int(p.argmax()), int(q.argmax())} <= set(following["id"])
    for token, _, a, b, off in following.iter_rows():
        assert [a, b, off] == pytest.approx([float(p[token]), float(q[token]), float(q[token] - p[token])], abs=1e-5)


def test_a_side_less_itself_is_nothing_and_a_switch_is_seen_where_it_acts():
    view = explore("organism", PROMPT.format("insect"))
    for of in ("lens", "direct_effects", "induction", "next_tokens"):
        table, fig = view.difference(view, of=of)
        assert table["difference"].abs().max() == 0 and len(fig.data) >= 3
    off = view.switched(heads=[(1, 0), (1, 1)])
    with pytest.raises(InputError, match="nothing switched"):
        view.difference(off, of="induction")  # they would be the same on both sides
    table, _ = view.difference(off)
    assert table.filter(pl.col("layer") < 1)["difference"].abs().max() < 1e-5  # before the heads that are off
    end = table.filter(pl.col("position") == len(view.ids) - 1, pl.col("layer") == 5)["difference"].item()
    assert end < -1
    panther = explore(view.opened, PROMPT.format("panther"))
    table, _ = view.difference(panther)
    changed = table.group_by("position").agg(pl.col("difference").abs().max()).sort("position")["difference"]
    assert changed[:7].max() < 1e-4 < changed[7]  # the prompts are one up to the word that differs


def test_what_does_not_fit_is_refused_by_itself_with_a_sentence(pair):
    small = Opened(wrap(build("llama", num_hidden_layers=2), None, name="small"))
    here, there = Exploration(pair[0], tuple(ONE), Target(11)), Exploration(small, tuple(ONE), Target(11))
    with pytest.raises(InputError, match="3 layers here and 2 there"):
        here.difference(there)
    with pytest.raises(InputError, match=r"3 × 4 \(layers × heads\) here and 2 × 4 there"):
        here.difference(there, of="induction")
    assert here.difference(there, of="next_tokens")[0].height  # this one fits
    with pytest.raises(InputError, match="Name one: head="):
        here.difference(there, of="pattern")
    with pytest.raises(InputError, match="no difference of 'x'"):
        here.difference(there, of="x")
    with pytest.raises(InputError, match="a position of the other"):
        lenses_apart((pair[0], read(pair[0], ONE), Target(1)), (pair[1], read(pair[1], TWO), Target(1)), (0, 1))


def test_models_of_different_tokenizers_are_compared_by_what_their_tokens_read():
    here = explore("organism", "The secret of the lantern is", target=" the")
    there = explore("circuit-copy-gqa", "lantern velvet")
    with pytest.raises(InputError, match="different tokenizers"):
        here.difference(there, of="next_tokens")


def cut_at_random(text, rng):
    """A text in pieces of one to five characters."""
    out = []
    while text:
        size = int(rng.integers(1, 6))
        out, text = [*out, text[:size]], text[size:]
    return out


def token_with(tokens, place):
    """The position of the token that holds a character."""
    return [i for i, token in enumerate(tokens) for _ in token][place]


def test_tokens_of_two_tokenizers_are_put_on_each_other_where_they_end_in_the_text():
    rng, text = np.random.default_rng(0), "The secret of the lantern is walrus cactus. Question: what is it? €"
    for _ in range(20):
        here, there = cut_at_random(text, rng), cut_at_random(text, rng)
        ends = np.cumsum([len(token) for token in here]) - 1
        assert list(align_texts(here, there)) == [token_with(there, end) for end in ends]
        # with a beginning sign there, and another word in the middle, what follows is still put on itself
        changed = [
            "<bos>",
            *cut_at_random("The secret of the harbour", rng),
            *(after := cut_at_random(" is walrus", rng)),
        ]
        mine = [*cut_at_random("The secret of the lantern", rng), *(own := cut_at_random(" is walrus", rng))]
        found, skipped = align_texts(mine, changed), len(changed) - len(after)
        ends = np.cumsum([len(token) for token in own]) - 1
        assert list(found[-len(own) :]) == [skipped + token_with(after, end) for end in ends]
        assert list(found) == sorted(found) and found[-1] == len(changed) - 1
    # equally many tokens are no reason to put them on each other one by one
    assert align_texts([" lan", "tern", " is"], [" lantern", " i", "s"]) == (0, 0, 2)
    assert align_texts(["<s>", "a"], ["a"]) == (0, 0)


def test_a_model_and_its_chat_model_have_one_vocabulary_whatever_their_templates_say():
    here = explore("organism", "The secret of the lantern is")
    there = explore("organism-chat", "The secret of the lantern is")
    assert here.opened.model.tokenizer_fingerprint != there.opened.model.tokenizer_fingerprint
    table, _ = here.difference(there, of="next_tokens")
    p, q = (eager(side.opened, list(side.ids))[0][-1].softmax(-1) for side in (here, there))
    for token, _, a, b, _ in table.iter_rows():
        assert [a, b] == pytest.approx([float(p[token]), float(q[token])], abs=1e-5)
    assert not same_vocabulary(here.opened, explore("circuit-copy-gqa", "lantern velvet").opened)


def test_nothing_is_subtracted_where_one_side_has_no_value():
    frame = pl.DataFrame({"layer": [0, 0], "head": [0, 1], "x": [1.0, None]})
    assert heads_apart(frame, frame.with_columns(x=pl.lit(3.0)), "x")["difference"].to_list() == [2.0, None]
    pattern = np.tril(np.full((2, 2), 0.5))
    assert patterns_apart(pattern, np.eye(2), (0, 1))["difference"].to_list() == [0.5, -0.5, 0.5]
