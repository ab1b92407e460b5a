"""Tokens that a layer selects, against plain Hugging Face in eager attention, number by number, and against plants
whose place is known."""

import itertools

import numpy as np
import pytest
import torch

from tests.support.architectures import build
from tests.support.plain_token_scores import best, by_hand, plain_of, window_mean
from workbench.core.errors import InputError
from workbench.engine.edits import HeadAblation
from workbench.engine.kv_cache import feed, prefill
from workbench.engine.token_selection import (
    UNSEEN,
    forced_mask,
    observe_token_scores,
    pooled,
    ranked,
    select_tokens,
)
from workbench.models.attention import hooks_of, observe_scores, of_layers
from workbench.models.loading import wrap

FITTING = ("llama", "gpt2", "mistral", "gemma2", "gpt_neox", "qwen3", "phi3")
IDS = [[(7 * i + 3 * i * i) % 57 + 3 for i in range(17)], [(5 * i + i * i) % 57 + 3 for i in range(12)]]


@pytest.fixture(scope="module", params=FITTING)
def both(request):
    """(our model, the same weights in plain Hugging Face, float64, whose attention leaves queries and keys)."""
    return wrap(build(request.param)), plain_of(build(request.param))


def test_the_scores_of_all_layers_of_one_pass_are_the_products_summed_over_heads(both):
    model, plain = both
    for row, rows in ((0, [IDS[0]]), (1, [IDS[1]])):
        with observe_token_scores(model, len(IDS[row])) as seen:
            feed(model, rows, None)
        found = of_layers(seen)[:, 0].double().numpy()
        for layer, expected in enumerate(by_hand(plain, IDS[row])):
            assert np.array_equal(np.isfinite(found[layer]), np.isfinite(expected))
            there = np.isfinite(expected)
            assert np.abs(found[layer][there] - expected[there]).max() < 1e-5 * max(1, np.abs(expected[there]).max())


@pytest.mark.parametrize("kernel", [1, 5])
def test_the_selected_tokens_are_those_of_plain_hugging_face_at_every_layer(both, kernel):
    model, plain = both
    for layer in range(model.n_layers):
        found = select_tokens(model, IDS, layer=layer, keep=4, kernel=kernel)
        for ids, positions in zip(IDS, found):
            assert positions == best(window_mean(by_hand(plain, ids)[layer], kernel), 4)


def test_what_was_read_before_and_in_pieces_scores_as_in_one_pass(both):
    """Chunks: a beginning in the cache, the rest in a past with padding (none where attention slides), the last token
    alone."""
    model, plain = both
    rows = [IDS[0]] if model.sliding else [IDS[0], [*IDS[0][:5], *IDS[1][:7]]]
    past = prefill(model, [row[5:-1] for row in rows], prefill(model, [IDS[0][:5]], None).fork(len(rows)))
    with observe_token_scores(model, 17) as seen:
        feed(model, [row[-1:] for row in rows], past)
    found = of_layers(seen).double().numpy()
    for k, ids in enumerate(rows):
        for layer, expected in enumerate(by_hand(plain, ids)):
            there = np.isfinite(expected)
            scale = max(1, np.abs(expected[there]).max())
            assert np.abs(found[layer, k, : len(ids)][there] - expected[there]).max() < 1e-5 * scale
            assert np.isneginf(found[layer, k, : len(ids)][~there]).all()
            assert np.isneginf(found[layer, k, len(ids) :]).all()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_with_softmax_the_scores_are_attention_rows_summed_over_heads(name):
    model, plain = wrap(build(name)), plain_of(build(name))
    with observe_token_scores(model, 17, score="softmax") as seen:
        feed(model, IDS[:1], None)
    for layer, expected in enumerate(by_hand(plain, IDS[0], softmax=True)):
        assert np.abs(seen[layer][0].numpy() - expected).max() < 1e-5
        assert seen[layer][0].sum() == pytest.approx(model.n_heads, abs=1e-4)
        found = select_tokens(model, IDS[:1], layer=layer, keep=4, score="softmax")
        assert found == [best(window_mean(expected, 5), 4)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_with_a_window_of_one_the_order_is_that_of_the_summed_logarithms_of_eager_attention(name):
    """Another road to the same order: log w = q·k/√d − log Z, and log Z is the same for all tokens."""
    model, eager = wrap(build(name)), build(name).double()
    with torch.no_grad():
        attentions = eager(torch.tensor(IDS[:1]), output_attentions=True).attentions
    for layer, weights in enumerate(attentions):
        logs = weights[0, :, -1].log().sum(0).numpy()
        assert select_tokens(model, IDS[:1], layer=layer, keep=5, kernel=1) == [best(logs, 5)]


# plants


def planted_llama(*, kv_heads: int, plants: dict[int, dict[int, float]], n: int):
    """A Llama whose last query meets keys that are known: rotation by 0, W_Q and W_K pass a coordinate of the stream
    on. `plants`: key/value head -> token position -> product with one query of its group."""
    hf = build("llama", num_key_value_heads=kv_heads, num_hidden_layers=2, max_position_embeddings=64)
    d, H = 8, 4
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.input_layernorm.weight.fill_(1.0)
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.o_proj, layer.mlp.down_proj):
                part.weight.zero_()
        table = torch.zeros(64, 32)
        # position s has the token s: coordinate g holds the key of group g, 31 fills up to a norm that is the same
        for group, own in plants.items():
            for s, value in own.items():
                table[s, group] = value / 100
        table[n - 1, 30] = 1.0  # the last token asks
        table[:, 31] = (32.0 - (table[:, :31] ** 2).sum(1)).clamp_min(0).sqrt()
        hf.model.embed_tokens.weight.copy_(table)
        for layer in hf.model.layers:
            for group in range(kv_heads):
                layer.self_attn.k_proj.weight[group * d, group] = 10.0
            for h in range(H):
                layer.self_attn.q_proj.weight[h * d, 30] = 10.0
    hf.model.rotary_emb.inv_freq.zero_()
    hf.model.rotary_emb.original_inv_freq = hf.model.rotary_emb.inv_freq
    return wrap(hf), list(range(n))


def test_exactly_the_planted_keys_are_selected():
    rng = np.random.default_rng(0)
    values = {s: float(v) for s, v in enumerate(rng.standard_normal(40))}
    plants = {4, 11, 12, 23, 31, 36}
    model, ids = planted_llama(kv_heads=1, plants={0: values | dict.fromkeys(plants, 10.0)}, n=41)
    for layer in range(2):
        with observe_token_scores(model, 41) as seen:
            feed(model, [ids], None)
        products = seen[layer][0] / 4  # four query heads of one group
        assert products[list(plants)].numpy() == pytest.approx(10.0, abs=1e-3)
        assert products[:40].numpy() == pytest.approx([10.0 if s in plants else values[s] for s in range(40)], abs=1e-3)
        assert select_tokens(model, [ids], layer=layer, keep=len(plants), kernel=1) == [sorted(plants)]


def test_each_group_of_query_heads_finds_the_needle_of_its_own_key_head():
    plants = {0: {3: 10.0}, 1: {17: 10.0}}
    model, ids = planted_llama(kv_heads=2, plants=plants, n=25)
    assert select_tokens(model, [ids], layer=1, keep=2, kernel=1) == [[3, 17]]
    with observe_scores(model, lambda _, scores, visible: scores[:, :, 0].clone()) as seen:
        feed(model, [ids], None)
    products = seen[1][0]
    assert products.shape == (4, 25)
    assert products.argmax(-1).tolist() == [3, 3, 17, 17]  # heads 0 and 1 read group 0, heads 2 and 3 group 1


def test_a_window_of_five_demotes_a_lone_token_to_a_fifth_and_ranks_a_span_of_three_first():
    scores = torch.zeros(30)
    scores[4] = scores[20] = 10.0
    scores[11:14] = 10.0
    mean = pooled(scores, 5)
    assert mean[4].item() == mean[20].item() == pytest.approx(10.0 / 5)
    assert mean[12].item() == pytest.approx(3 * 10.0 / 5)
    assert set(ranked(mean, 3).tolist()) == {11, 12, 13}
    assert pooled(scores, 1) is scores and ranked(scores, 5).tolist() == [4, 11, 12, 13, 20]


def test_zeros_beyond_the_ends_of_the_text_count():
    mean = pooled(torch.full((10,), 5.0), 5)
    assert mean.tolist() == pytest.approx([3.0, 4.0, *[5.0] * 6, 4.0, 3.0])
    assert ranked(pooled(torch.full((10,), -5.0), 5), 2).tolist() == [
        0,
        9,
    ]  # so the ends gain where scores are negative


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_pooling_and_ranking_are_those_of_a_loop(kernel):
    rng = np.random.default_rng(kernel)
    for n in (1, 2, 5, 23):
        scores = rng.standard_normal((3, n))
        scores[1, : n // 3] = UNSEEN
        mean = pooled(torch.tensor(scores), kernel).numpy()
        expected = np.stack([window_mean(row, kernel) for row in scores])
        assert np.array_equal(np.isfinite(mean), np.isfinite(expected))
        assert np.allclose(mean[np.isfinite(mean)], expected[np.isfinite(expected)], atol=1e-12)
        for row, order in zip(expected, ranked(torch.tensor(expected), 4).tolist()):
            assert sorted(p for p in order if p >= 0) == best(row, 4)


def test_of_equal_scores_the_earlier_token_comes_first():
    scores = torch.tensor([1.0, 2.0, 2.0, 1.0, 2.0, 1.0]).repeat(300)  # long enough for an unstable sort
    order = ranked(scores, 1000).tolist()
    twos = [i for i in range(1800) if scores[i] == 2]
    assert order == [*twos, *[i for i in range(1800) if scores[i] == 1][:100]]


def test_forced_tokens_are_kept_first_and_take_the_place_of_others():
    scores = torch.tensor([[5.0, 4.0, 3.0, UNSEEN, 1.0]])
    forced = forced_mask([[3, 4]], 5, scores.device)
    assert ranked(scores, 3, forced=forced).tolist() == [[3, 4, 0]]
    assert ranked(scores, 5).tolist() == [[0, 1, 2, 4, -1]] and forced_mask([[], []], 5, scores.device) is None
    model = wrap(build("llama"))
    for found, plain in zip(
        select_tokens(model, IDS, layer=1, keep=5, forced=[[0, 16], [0, 11]]),
        select_tokens(model, IDS, layer=1, keep=5),
    ):
        assert {0} < set(found) and len(found) == 5 and len(set(found) - set(plain)) <= 2
    with pytest.raises(InputError, match="3 tokens of prompt 1 are forced and 2 are kept"):
        select_tokens(model, IDS[:1], layer=1, keep=2, forced=[[0, 1, 2]])


# the pass


def test_the_layers_after_the_filter_do_not_run_and_nothing_is_left_on_the_model():
    model, ran = wrap(build("llama")), []
    handles = [
        block.mlp.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(model.hf.model.layers)
    ]
    select_tokens(model, IDS[:1], layer=1, keep=4)
    assert ran == [0]  # of layer 1 no more than its attention
    for handle in handles:
        handle.remove()
    assert not any(hooks_of(model.attention(layer)).readers for layer in range(3))


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "gpt2"])
def test_a_padded_batch_selects_what_single_prompts_select_and_edits_act(name):
    model = wrap(build(name))
    rows = [IDS[0], IDS[1], IDS[0][:9], IDS[1][:6]]
    together = select_tokens(model, rows, layer=2, keep=4)
    assert together == [select_tokens(model, [row], layer=2, keep=4)[0] for row in rows]
    ablated = select_tokens(model, rows, layer=2, keep=4, edits=[HeadAblation([(0, h) for h in range(4)])])
    assert ablated != together


def test_half_precision_scores_are_summed_in_float32():
    model = wrap(build("llama").bfloat16())
    with observe_token_scores(model, 17) as seen:
        feed(model, IDS[:1], None)
    assert all(scores.dtype == torch.float32 for scores in seen.values())
    assert len(set(seen[2][0].tolist())) == 17  # bfloat16 would tie


def test_a_layer_with_a_window_selects_among_what_it_sees_only():
    model = wrap(build("mistral"))  # its window holds 6 tokens
    assert select_tokens(model, IDS[:1], layer=0, keep=10) == [list(range(11, 17))]


@pytest.mark.parametrize(
    "name,reason",
    [("falcon", "does not hand its queries and keys"), ("gptj", "does not hand"), ("gpt_oss", "do not sum to 1")],
)
def test_an_architecture_without_queries_and_keys_is_refused_in_one_sentence(name, reason):
    with pytest.raises(InputError, match=reason):
        select_tokens(wrap(build(name)), IDS[:1], layer=0, keep=4)


def test_a_layer_a_window_and_a_score_that_do_not_exist_are_refused():
    model = wrap(build("llama"))
    for wrong, words in (
        ({"layer": 3}, "no layer 3"),
        ({"kernel": 4}, "must be odd"),
        ({"score": "sum"}, "'sum' is no"),
    ):
        with pytest.raises(InputError, match=words):
            select_tokens(model, IDS[:1], **{"layer": 0, "keep": 4} | wrong)


def test_every_number_of_kept_tokens_gives_the_beginning_of_the_same_order():
    model = wrap(build("gpt2"))
    sets = [set(select_tokens(model, IDS[:1], layer=1, keep=k)[0]) for k in range(1, 20)]
    assert all(a <= b for a, b in itertools.pairwise(sets)) and len(sets[-1]) == 17
