"""Edits with one entry per prompt: whatever function runs them, and however batches fall, each prompt gets its own."""

import random
import re

import pytest
import torch

from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine import patching
from workbench.engine.capture import capture, logits
from workbench.engine.edits import HeadAblation, KnockOut, Patch, ProjectOut, apply
from workbench.engine.evaluation import token_losses
from workbench.engine.generate import greedy, sample
from workbench.engine.scoring import score
from workbench.models.attention import observe
from workbench.models.attention_edits import knock_out
from workbench.models.batching import pad
from workbench.models.loading import wrap
from workbench.models.sinks import SpanMeans
from workbench.models.sites import Site
from workbench.store.activation_store import Store

PROMPTS = [[1, 5, 9, 2, 40], [3, 4, 5], [2, 9, 8, 7, 6, 5, 4], [17, 18, 19, 20], [30, 31, 32, 33, 34, 35]]


@pytest.fixture(scope="module")
def model():
    return wrap(build("llama"), name="llama")


def patches(model, n: int, positions: tuple[int, ...]) -> Patch:
    value = torch.randn(n, len(positions), model.n_heads, model.d_head, generator=torch.Generator().manual_seed(n))
    return Patch(Site("head_out", 1), 5 * value, positions)


def cuts(prompts) -> KnockOut:
    return KnockOut((0, 1, 2), tuple((k % len(ids), len(ids) - 2) for k, ids in enumerate(prompts)), "all")


def single(edit, i: int):
    """The edit of prompt i, made by hand for that prompt alone."""
    if isinstance(edit, Patch):
        return Patch(edit.site, edit.value[i], edit.positions)
    return KnockOut(edit.layers, (edit.sources[i],), edit.queries, edit.heads)


RUNS = {
    "logits": lambda model, prompts, edits: logits(model, prompts, edits=edits, max_rows=2),
    "capture": lambda model, prompts, edits: capture(model, prompts, ["resid_post.2"], edits=edits)["resid_post.2"],
    "greedy": lambda model, prompts, edits: torch.tensor(
        greedy(model, prompts, max_new_tokens=5, edits=edits, edit_phase="prefill", eos=False, max_rows=3)
    ),
    "sample": lambda model, prompts, edits: (
        sample(
            model,
            prompts,
            samples=2,
            max_new_tokens=4,
            edits=edits,
            eos=False,
            max_rows=3,
            prompt_keys=[7] * len(prompts),
        ).ids
    ),
    "score": lambda model, prompts, edits: torch.stack(
        [found[0] for found in score(model, prompts, [[3]] * len(prompts), edits=edits, max_tokens=16)]
    ),
    "losses": lambda model, prompts, edits: torch.tensor(
        [found.sum() for found in token_losses(model, prompts, edits=edits, max_rows=2)]
    ),
}


@pytest.mark.parametrize("how", RUNS)
@pytest.mark.parametrize("kind", ["patch", "knock-out"])
def test_every_prompt_gets_its_own_entry_in_any_order(model, how, kind):
    dice = random.Random(f"{how} {kind}")
    for _ in range(6):
        prompts = dice.sample(PROMPTS, k=dice.randint(2, 5))
        edit = patches(model, len(prompts), (0, 2)) if kind == "patch" else cuts(prompts)
        together = RUNS[how](model, prompts, [edit])
        for i, ids in enumerate(prompts):
            alone = RUNS[how](model, [ids], [single(edit, i)])
            torch.testing.assert_close(together[i], alone[0], atol=2e-5, rtol=1e-5)


def test_two_positions_on_two_prompts_are_positions_and_not_prompts(model):
    """A value [k, H, d_head] for k positions of every prompt, with as many prompts as positions."""
    edit = Patch(Site("head_out", 1), patches(model, 1, (0, 2)).value[0], (0, 2))
    dice = random.Random(0)
    for _ in range(10):
        prompts = dice.sample(PROMPTS, k=2)
        options = {"max_new_tokens": 5, "edits": [edit], "edit_phase": "prefill", "eos": False}
        assert greedy(model, prompts, **options) == [greedy(model, [ids], **options)[0] for ids in prompts]


def test_one_tuple_of_sources_is_for_every_prompt(model):
    edit = KnockOut((0, 1), ((1,),), "all")
    found = logits(model, PROMPTS, edits=[edit], max_rows=2)
    for i, ids in enumerate(PROMPTS):
        torch.testing.assert_close(found[i], logits(model, [ids], edits=[edit])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m: patches(m, 3, (0, 1)), "blocks for 3 prompts, but there are 2"),
        (lambda m: Patch(Site("resid_post", 0), torch.zeros(3, m.width), (0, 1)), "2 positions are patched"),
        (lambda m: Patch(Site("resid_post", 0), torch.zeros(m.width), (0, 4)), "Position 4 .* 3 tokens of prompt 2"),
        (lambda m: Patch(Site("resid_post", 0), torch.zeros(m.width), (-4,)), "Position -4 .* 3 tokens of prompt 2"),
        (lambda m: Patch(Site("resid_post", 0), torch.zeros(2, m.width)), "each of 2 tokens, but a prompt has"),
        (lambda m: Patch(Site("resid_post", 0), torch.zeros(m.width + 1)), "last dimension"),
        (lambda m: Patch(Site("resid_post", 9), torch.zeros(m.width)), "beyond the model"),
        (lambda m: Patch(Site("logits"), torch.zeros(m.width)), "Logits are a result"),
        (lambda m: KnockOut((0,), ((0,), (0,), (0,)), "all"), "sources for 3 prompts, but there are 2"),
        (lambda m: KnockOut((0,), ((0,), (3,)), "all"), "Position 3 to knock out is not among the 3 tokens"),
        (lambda m: KnockOut((7,), ((0,),), "all"), "Head 7.0 does not exist"),
        (lambda m: KnockOut((0,), ((0,),), "all", heads=(99,)), "Head 0.99 does not exist"),
        (lambda m: KnockOut((0,), ((0,),), "first"), "'first' is no choice of queries"),
        (lambda m: HeadAblation(((0, 99),)), "Head 0.99 does not exist"),
        (lambda m: HeadAblation(((0, 0),), "mean", torch.zeros(1, 1, 1)), "mean head outputs"),
        (lambda m: HeadAblation(((0, 0),), positions=(3,)), "Position 3 .* 3 tokens of prompt 2"),
        (lambda m: ProjectOut(Site("resid_post", 0), torch.ones(m.width), positions=(5,)), "Position 5"),
        (lambda m: ProjectOut(Site("resid_post", 0), torch.zeros(m.width)), "zero or not finite"),
        (lambda m: ProjectOut(Site("resid_post", 0), torch.ones(m.width + 2)), "direction"),
    ],
)
@pytest.mark.parametrize("how", ["logits", "capture", "greedy", "sample", "losses"])
def test_an_edit_that_does_not_fit_is_refused_in_one_sentence(model, edit, says, how):
    if how == "sample" and re.match(r"Position [345]", says):
        RUNS[how](model, PROMPTS[:2], [edit(model)])  # the tokens there are generated
        return
    with pytest.raises(InputError, match=says):
        RUNS[how](model, PROMPTS[:2], [edit(model)])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def test_an_edit_at_a_position_that_decoding_never_feeds_is_refused(model):
    edit = HeadAblation(((0, 0),), positions=(1,))
    with pytest.raises(InputError, match="Position 1 of prompt 1 is read before decoding begins"):
        greedy(model, PROMPTS[:1], max_new_tokens=3, edits=[edit], edit_phase="decode")
    late = HeadAblation(((0, 0),), positions=(6,))  # a token that is generated
    greedy(model, PROMPTS[:1], max_new_tokens=4, edits=[late], edit_phase="decode", eos=False)


def test_a_patch_holds_for_a_whole_generation_as_if_every_step_read_the_text_again(model):
    """Positions that were read before are in the cache; the reference reads everything at every step."""
    edit = Patch(Site("resid_post", 0), torch.randn(model.width, generator=torch.Generator().manual_seed(1)), (1,))
    for ids in PROMPTS:
        text = list(ids)
        for _ in range(5):
            batch = pad([text], pad_id=0)
            with torch.no_grad(), apply(model, [edit]):
                text.append(int(model.forward(batch).logits[0, -1].argmax()))
        found = greedy(model, [ids], max_new_tokens=5, edits=[edit], eos=False)
        assert found == [text[len(ids) :]]


@pytest.mark.parametrize("effects", ["direct_effects", "direct_mlp_effects", "total_effects", "attribution"])
def test_path_patching_takes_the_edits_of_each_prompt(model, effects):
    prompts, donors = [[1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11]], [[1, 9, 3, 4], [5, 8, 7], [8, 2, 10, 11]]
    edit = KnockOut((0, 1), ((1,), (0,), (2,)), "all")
    tokens = [[3], [4], [5]]
    run = getattr(patching, effects)
    together = run(model, prompts, donors, tokens, edits=[edit])
    for i in range(3):
        alone = run(model, [prompts[i]], [donors[i]], [tokens[i]], edits=[single(edit, i)])
        pairs = [(together, alone)] if effects == "attribution" else [(together.change(), alone.change())]
        for many, one in pairs:
            torch.testing.assert_close(many[i], one[0], atol=1e-5, rtol=1e-4)


def test_a_knock_out_of_chosen_queries_is_the_same_in_blocks_of_queries(model, monkeypatch):
    """Where rows are computed in blocks, a query beyond a block must not stand for its last one."""
    from workbench.models import attention_weights

    batch, seen = pad([PROMPTS[2]], pad_id=0), {}
    for name, block in (("whole", attention_weights.BLOCK), ("blocks", 2 * model.n_heads * len(PROMPTS[2]))):
        monkeypatch.setattr(attention_weights, "BLOCK", block)
        with torch.no_grad(), knock_out(model, 1, queries=(1, 3, 5), sources=[[0]]):
            seen[name] = model.forward(batch).logits
    with torch.no_grad(), observe(model, lambda _l, w: w, rows="all", layers=[1]):
        plain = model.forward(batch).logits
    torch.testing.assert_close(seen["whole"], seen["blocks"], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(seen["whole"][:, 1], plain[:, 1], atol=1e-4)
    torch.testing.assert_close(seen["whole"][:, 0], plain[:, 0], atol=1e-6, rtol=1e-6)


def test_positions_of_a_projection_by_prompt_are_those_of_one_prompt_at_a_time(model):
    ids = PROMPTS[:3]
    direction = torch.randn(model.width, generator=torch.Generator().manual_seed(1))
    own = ((1, 3), (1,), (-1, 2, 4))
    site = Site("resid_post", 1)
    together = logits(model, ids, edits=(ProjectOut(site, direction, positions=own),))
    for row, positions in enumerate(own):
        alone = logits(model, [ids[row]], edits=(ProjectOut(site, direction, positions=positions),))
        torch.testing.assert_close(together[row], alone[0], atol=2e-5, rtol=1e-4)
    with pytest.raises(InputError, match="for 2 prompts, but there are 3"):
        logits(model, ids, edits=(ProjectOut(site, direction, positions=own[:2]),))
    with pytest.raises(InputError, match="Position 40 to edit is not among the .* tokens of prompt 2"):
        logits(model, ids, edits=(ProjectOut(site, direction, positions=((1,), (40,), (1,))),))


def test_means_of_spans_are_those_of_all_tokens_and_are_stored_under_a_key_of_their_own(model, tmp_path):
    ids = PROMPTS[:3]
    every, spans = capture(model, ids, ["resid_post.1"], positions="all"), ((1, 3), (0, 2), (2, len(ids[2])))
    for side in ("left", "right"):
        found = capture(model, ids, ["resid_post.1"], positions=SpanMeans(spans), side=side)["resid_post.1"]
        for row, (start, end) in enumerate(spans):
            expected = every.rows("resid_post.1", row)[start:end].mean(0)
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-4)
    store = Store(tmp_path)
    first = capture(model, ids, ["resid_post.1"], positions=SpanMeans(spans), store=store)["resid_post.1"]
    other = SpanMeans(((0, 1), *spans[1:]))
    second = capture(model, ids, ["resid_post.1"], positions=other, store=store)["resid_post.1"]
    again = capture(model, ids, ["resid_post.1"], positions=SpanMeans(spans), store=store)["resid_post.1"]
    assert torch.equal(first, again) and not torch.equal(first[0], second[0])
    for bad in ((3, 3), (0, 99)):
        with pytest.raises(InputError, match="are not among the"):
            capture(model, ids, ["resid_post.1"], positions=SpanMeans((bad, *spans[1:])))
