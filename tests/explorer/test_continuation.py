"""What is written token by token, held to the plain Hugging Face model run anew for every token."""

import math

import pytest
import torch

from tests.explorer.test_explorer import eager, o_proj
from tests.support.architectures import build
from workbench.core.errors import InputError, RunFailed
from workbench.engine import generate
from workbench.engine.sampling import Rule
from workbench.engine.token_by_token import token_by_token
from workbench.explorer.continuation import MOST, Continuation, write_on
from workbench.explorer.opened_model import Opened, encode
from workbench.explorer.switches import Switches
from workbench.models.loading import load, wrap

HEADS = ((0, 1), (1, 3), (2, 0))
PROMPT = [5, 9, 17, 5, 9, 30, 17, 5, 9]
DONOR = [3, 8, 17, 4, 11]  # shorter: aligned at the end of the prompt


@pytest.fixture(scope="module")
def tiny():
    """Models whose random weights say something else at every token: grouped queries, layer norms with biases, and a
    sliding window, which the cache must not forget."""
    return {name: Opened(wrap(build(name), None, name=name)) for name in ("llama", "gpt2", "mistral")}


@pytest.fixture(scope="module")
def story(tiny_llama):
    return Opened(load(str(tiny_llama)))


def zeroed(hf):
    return [o_proj(hf, layer).register_forward_pre_hook(lambda m, a, h=h: (_off(a[0], hf, h),)) for layer, h in HEADS]


def _off(x, hf, head):
    size = x.shape[-1] // hf.config.num_attention_heads
    x = x.clone()
    x[..., head * size : (head + 1) * size] = 0
    return x


def patched_from(opened, donor, length):
    """Hooks that put the donor's head outputs at the last positions of a prompt of this length."""
    kept = {}

    def grab(hf):
        return [
            o_proj(hf, layer).register_forward_pre_hook(lambda m, a, layer=layer: kept.__setitem__(layer, a[0].clone()))
            for layer in {layer for layer, _ in HEADS}
        ]

    eager(opened, donor, grab)
    size = opened.model.d_head

    def put(hf):
        def change(args, layer, head):
            x, span = args[0].clone(), slice(head * size, (head + 1) * size)
            x[:, length - len(donor) : length, span] = kept[layer][..., span]
            return (x,)

        return [
            o_proj(hf, layer).register_forward_pre_hook(lambda m, a, layer=layer, h=h: change(a, layer, h))
            for layer, h in HEADS
        ]

    return put


def by_hand(opened, ids, n, change=None):
    """n greedy tokens, the whole text read anew for each by the plain model in float64."""
    row = list(ids)
    for _ in range(n):
        row.append(int(eager(opened, row, change)[0][-1].argmax()))
    return row[len(ids) :]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("how", ["none", "zero", "patch"])
def test_tokens_are_those_of_the_plain_model_read_anew_for_each(tiny, name, how):
    opened = tiny[name]
    change = {"none": None, "zero": zeroed, "patch": patched_from(opened, DONOR, len(PROMPT))}[how]
    off = {"none": Switches(), "zero": Switches(HEADS), "patch": Switches(HEADS, "patch", tuple(DONOR))}[how]
    expected = by_hand(opened, PROMPT, 7, change)
    found = Continuation(opened, tuple(PROMPT), off)
    found.grow(7)
    assert found.written == expected
    if how != "none":
        assert expected != by_hand(opened, PROMPT, 7)


def test_text_with_means_in_place_is_that_of_the_engines_own_greedy_decoding(story):
    from workbench.explorer.readings import read

    ids = encode(story, "Once upon a time")
    off = Switches(((0, 1), (2, 3), (4, 7)), "mean", mlps=(1,))
    row = list(ids)
    for _ in range(6):
        row.append(int(read(story, row, off).logits.argmax()))
    assert write_on(story, ids, off, most=6) == story.model.decode(row[len(ids) :])
    with pytest.raises(InputError, match="1 to 64 tokens, not 65"):
        write_on(story, ids, most=65)


def test_a_continuation_stops_between_tokens_and_leaves_the_model_to_others(tiny):
    opened = tiny["llama"]
    whole = by_hand(opened, PROMPT, 6)
    found = Continuation(opened, tuple(PROMPT), Switches(HEADS))
    found.grow(6, seconds=0)
    assert len(found.written) == 1 and not found.finished(6)
    assert opened.lock.acquire(blocking=False)
    opened.lock.release()
    modules = list(opened.model.hf.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    other = Continuation(opened, tuple(PROMPT))
    other.grow(6)  # in between
    found.grow(6)
    assert other.written == whole and found.written == by_hand(opened, PROMPT, 6, zeroed)
    before = list(found.written)
    found.grow(6)
    assert found.written == before


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_a_seed_draws_what_the_engine_samples_with_it_and_another_draws_something_else(tiny, temperature):
    opened = tiny["llama"]
    rule = Rule(temperature=temperature)
    expected = generate.sample(opened.model, [PROMPT], samples=1, max_new_tokens=9, rule=rule, seed=4).tokens(0, 0)
    found = Continuation(opened, tuple(PROMPT), temperature=temperature, seed=4)
    found.grow(9)
    assert found.written == expected
    other = Continuation(opened, tuple(PROMPT), temperature=temperature, seed=5)
    other.grow(9)
    assert other.written != found.written


def test_draws_follow_the_models_probabilities(tiny):
    """First tokens of 2,000 seeds against softmax(logits / T) of the plain model."""
    from workbench.engine.draws import row_keys, step_keys
    from workbench.engine.token_by_token import _chosen

    opened, T, n = tiny["gpt2"], 0.8, 2000
    scores = eager(opened, PROMPT)[0][-1:]
    p = (scores[0] / T).softmax(-1)
    rule = Rule(temperature=T)
    drawn = torch.tensor([_chosen(scores.float(), rule, step_keys(row_keys(i, [0], [0]), 0), "m") for i in range(n)])
    count = torch.bincount(drawn, minlength=len(p)).double()
    top = p.topk(10).indices
    for i in top.tolist():
        assert abs(count[i] / n - p[i]) < 4.5 * math.sqrt(p[i] * (1 - p[i]) / n)


def test_it_ends_at_eos_at_the_context_and_at_the_longest_that_is_kept(tiny, story, monkeypatch):
    opened = Opened(wrap(build("llama", max_position_embeddings=128), None, name="long"))
    found = Continuation(opened, tuple(PROMPT))
    found.grow(10**6)
    assert found.ended and len(found.written) == MOST and found._tokens is None
    third = found.written[2]
    first = found.written.index(third)
    monkeypatch.setattr(type(opened.model), "eos_ids", (third,))
    ended = Continuation(opened, tuple(PROMPT))
    ended.grow(24)
    assert ended.written == found.written[: first + 1] and ended.ended
    monkeypatch.undo()
    limit = story.model.context_length
    ids = [1, *[7] * (limit - 3)]
    near = list(token_by_token(story.model, ids, max_new_tokens=50, eos=False))
    assert len(near) == 3  # the last one is never fed
    with pytest.raises(InputError, match="at least one"):
        token_by_token(story.model, ids, max_new_tokens=0)


def test_scores_that_are_no_numbers_are_refused_each_time_that_more_is_asked_for(tiny):
    import copy

    hf = copy.deepcopy(tiny["gpt2"].model.hf)
    opened = Opened(wrap(hf, None, name="broken"))
    hf.lm_head.weight.data[3] = torch.nan
    found = Continuation(opened, tuple(PROMPT))
    for _ in range(2):
        with pytest.raises(RunFailed, match="NaN"):
            found.grow(3)
    assert found.written == [] and not found.ended
