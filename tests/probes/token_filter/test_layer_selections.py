"""What every layer selects of a prompt that is read in pieces, with others, is what plain Hugging Face says of it."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from probes.token_filter.config import Config
from probes.token_filter.layer_recall import Kept, _rows, by_chance, kept_of
from probes.token_filter.selection import Selections, select
from probes.token_filter.trials import FilterTrials
from tests.support.architectures import build
from tests.support.plain_token_scores import best, by_hand, plain_of, window_mean
from workbench.core.context import Context
from workbench.core.errors import RunFailed
from workbench.models.attention_weights import Weights
from workbench.models.loading import wrap
from workbench.models.needle_prompts import Needle, Trial
from workbench.models.thinking import ThinkingSpan
from workbench.stats.clusters import clusters_of

ARCHITECTURES = ("llama", "gpt2", "gemma2", "gpt_neox", "qwen3", "mistral")
TEXT = [(11 * i + i * i) % 50 + 5 for i in range(30)]


def trials(*, ks=(6,), forced=(), lengths=(22, 28)) -> FilterTrials:
    """Two needles of different lengths at three places of a text, and a question of two tokens."""
    needles = [
        Needle(0, "q", "a", (3, 4, 5, 6), (1, 3), (60, 61)),
        Needle(1, "q", "a", (8, 9, 7, 6, 5), (2, 5), (62, 61)),
    ]
    found = []
    for length in lengths:
        for at in (0, 7, 15):
            for k, needle in enumerate(needles):
                room = length - len(needle.ids) - 3
                ids = (1, *TEXT[:at], *needle.ids, *TEXT[at:room], *needle.tail)
                span = (1 + at + needle.span[0], 1 + at + needle.span[1])
                found.append(Trial(k, length, at, ids, 1 + at, len(ids) - 2, span, guess=()))
    return FilterTrials(
        needles=needles,
        beginning=[1, *TEXT[:15]],
        trials=found,
        closed=[],
        head=1,
        words=(),
        stops=lambda emitted: False,
        split=lambda ids: ThinkingSpan(0, "none"),
        ks=tuple(ks),
        forced=frozenset(forced),
        has_bos=True,
    )


@pytest.fixture(scope="module", params=ARCHITECTURES)
def both(request):
    """(our model, plain Hugging Face with the same weights, float64)."""
    return wrap(build(request.param)), plain_of(build(request.param))


def test_every_layer_selects_what_plain_hugging_face_says_of_each_prompt_alone(both):
    model, plain = both
    found = trials()
    selections = select(model, Config(), Context(), found)
    for i, trial in enumerate(found.trials):
        for layer, scores in enumerate(by_hand(plain, list(trial.ids))):
            assert selections.kept(i, layer, 6).tolist() == best(window_mean(scores, 5), 6)
            assert selections.seen[i, layer] == np.isfinite(scores).sum()


def test_heads_copy_what_the_eager_attention_of_the_whole_text_says(both):
    """The share of the answer's tokens for which a head attends most to the very token in the answer's span."""
    model, _ = both
    eager, found = build(model.hf.config.model_type), trials(lengths=(22,))
    selections = select(model, Config(), Context(), found)
    for i, trial in enumerate(found.trials):
        answer = trial.ids[trial.span[0] : trial.span[1]]
        with torch.no_grad():
            weights = eager(torch.tensor([[*trial.ids, *answer[:-1]]]), output_attentions=True).attentions
        for layer in range(3):
            for head in range(4):
                row = weights[layer][0, head]
                at = [int(row[len(trial.ids) - 1 + j].argmax()) for j in range(len(answer))]
                hits = [trial.span[0] <= p < trial.span[1] and trial.ids[p] == answer[j] for j, p in enumerate(at)]
                assert selections.copying[i, layer, head] == pytest.approx(sum(hits) / len(answer))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_prompts_that_are_read_in_blocks_give_the_same_sets(name, monkeypatch):
    """Blocks of a few columns, each after the keys of those before it."""
    model, found = wrap(build(name)), trials(lengths=(50,))
    whole = select(model, Config(), Context(), found)
    passes: list[int] = []
    monkeypatch.setattr(type(model), "tokens_at_once", lambda self, wanted=0: 1)
    forward = type(model).forward

    def counted(self, batch, **more):
        passes.append(batch.ids.shape[1])
        return forward(self, batch, **more)

    monkeypatch.setattr(type(model), "forward", counted)
    blocks = select(model, Config(), Context(), found)
    assert len(passes) > 8 and max(passes) < 40  # three places, read whole, are seven passes
    assert all(np.array_equal(a, b) for a, b in zip(whole.orders, blocks.orders))
    assert np.allclose(whole.copying, blocks.copying)


def test_of_attention_only_the_rows_that_are_read_are_ever_computed(monkeypatch):
    """The last query for the sets, and the tokens before the answer's for the heads; never one for every token."""
    model, rows = wrap(build("llama")), []
    products = Weights.products

    def counted(self, at, out=None):
        found = products(self, at, out)
        rows.append(found.shape[2])
        return found

    monkeypatch.setattr(Weights, "products", counted)
    select(model, Config(), Context(), trials())
    assert set(rows) == {1, 3}  # the longest answer has three tokens


def test_batches_of_any_size_give_the_same_sets():
    model, found = wrap(build("llama")), trials()
    one, few, all_ = (select(model, Config(max_tokens=n), Context(), found) for n in (1, 60, 65536))
    for i in range(len(found.trials)):
        assert np.array_equal(one.orders[i], all_.orders[i]) and np.array_equal(few.orders[i], all_.orders[i])
    assert np.allclose(one.copying, all_.copying) and np.array_equal(one.seen, all_.seen)


def test_scores_that_are_no_numbers_are_refused_and_select_nothing():
    model = wrap(build("llama"))
    found = trials()
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[TEXT[3]] = torch.nan
    with pytest.raises(RunFailed, match="at layer 0 of .* are NaN or infinite; use another dtype"):
        select(model, Config(retrieval="none"), Context(), found)


def test_forced_tokens_are_in_every_set_and_the_rest_is_of_the_best():
    model = wrap(build("llama"))
    found, free = trials(ks=(8,), forced=("head", "question")), trials(ks=(8,))
    forced, plain = (select(model, Config(), Context(), each) for each in (found, free))
    for i, trial in enumerate(found.trials):
        always = found.always(trial)
        assert always == [0, len(trial.ids) - 2, len(trial.ids) - 1]
        for layer in range(3):
            order = [p for p in plain.orders[i][layer].tolist() if p not in always]
            assert forced.kept(i, layer, 8).tolist() == sorted([*always, *order[:5]])


def test_what_is_kept_without_the_needle_holds_none_of_it_and_as_many_tokens():
    model, found = wrap(build("llama")), trials(ks=(6,))
    selections = select(model, Config(), Context(), found)
    for i, trial in enumerate(found.trials):
        start, end = found.needle_span(trial)
        for layer in range(3):
            cut = selections.kept(i, layer, 6, without=(start, end))
            rest = [p for p in selections.kept(i, layer, 6) if not start <= p < end]
            assert len(cut) == 6 and not [p for p in cut if start <= p < end] and set(rest) <= set(cut.tolist())


def test_needle_recall_and_kept_answers_are_counted_token_by_token():
    found = trials(ks=(5,), lengths=(22,))
    rng = np.random.default_rng(0)
    orders = [np.stack([rng.permutation(len(t.ids))[:12] for _ in range(3)]) for t in found.trials]
    selections = Selections(orders, np.full((len(orders), 3), 22), None)
    kept = kept_of(found, selections, 5, Config(), Context())
    for i, trial in enumerate(found.trials):
        start, end = found.needle_span(trial)
        for layer in range(3):
            own = set(orders[i][layer][:5].tolist())
            assert kept.needle[i, layer] == len(own & set(range(start, end))) / (end - start)
            assert kept.answer[i, layer] == (set(range(*trial.span)) <= own)
    assert kept.drawn.shape == (20, len(found.trials))


@pytest.mark.parametrize("forced", [(), ("bos", "question"), ("head",)])
@pytest.mark.parametrize("k", [3, 4, 9, 12])
def test_what_chance_keeps_is_the_mean_over_all_sets_of_that_size(k, forced):
    """Every set of k tokens with the forced ones is written down."""
    found = trials(ks=(k,), forced=forced, lengths=(12,))
    trial = found.trials[0]
    trial = Trial(0, 12, 0, trial.ids[:12], trial.shared, 10, trial.span, guess=())
    always, free = found.always(trial), [p for p in range(12) if p not in found.always(trial)]
    sets = [{*always, *more} for more in combinations(free, k - len(always))]
    needle, answer = set(range(*found.needle_span(trial))), set(range(*trial.span))
    share, whole = by_chance(found, trial, k)
    assert share == pytest.approx(sum(len(s & needle) for s in sets) / len(sets) / len(needle))
    assert whole == pytest.approx(sum(answer <= s for s in sets) / len(sets))


def test_drawn_sets_agree_with_the_closed_form_within_their_error():
    found = trials(ks=(6,), lengths=(22, 28))
    orders = [np.zeros((3, 12), int) for _ in found.trials]
    kept = kept_of(
        found, Selections(orders, np.full((len(orders), 3), 22), None), 6, Config(random_draws=4000), Context()
    )
    error = 4 * kept.drawn.std(0) / math.sqrt(4000)
    assert (np.abs(kept.drawn.mean(0) - kept.by_chance) < error).all()
    values = Counter(np.round(kept.drawn[:, 0] * 4).astype(int).tolist())
    assert set(values) <= {0, 1, 2, 3, 4} and values[1] > 100


def test_layers_that_keep_random_sets_are_hardly_ever_told_from_chance():
    """Fifty runs of forty layers whose sets are random: after the adjustment a run marks any of them in few cases."""
    rng, names = np.random.default_rng(0), np.repeat(np.arange(10), 6)
    marked = []
    for _ in range(50):
        share = rng.hypergeometric(4, 18, 6, size=(60, 40)) / 4
        kept = Kept(6, share, share == 1, np.full(60, 6 / 22), np.zeros(60), share[:, :20].T)
        selections = Selections([], np.full((60, 40), 22), None)
        frame = _rows(kept, clusters_of(names), selections, np.full(60, 22))
        marked.append(frame["finds"].any())
        assert frame["above_chance"].abs().max() < 0.12
    assert np.mean(marked) <= 0.1


def test_a_layer_that_keeps_the_needle_more_often_is_told_from_chance():
    rng, names = np.random.default_rng(1), np.repeat(np.arange(10), 6)
    share = rng.hypergeometric(4, 18, 6, size=(60, 5)) / 4
    share[:, 3] = np.maximum(share[:, 3], rng.integers(1, 5, 60) / 4)
    kept = Kept(6, share, share == 1, np.full(60, 6 / 22), np.zeros(60), share[:, :4].T)
    frame = _rows(kept, clusters_of(names), Selections([], np.full((60, 5), 22), None), np.full(60, 22))
    assert frame["finds"].to_list() == [False, False, False, True, False]
