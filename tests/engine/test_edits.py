"""Edits against the slow, obvious computation: an attention layer written out in the test."""

import math

import pytest
import torch

from tests.support.architectures import NAMES, NO_INTERFACE, build
from workbench.core.errors import InputError
from workbench.engine.capture import capture, logits
from workbench.engine.edits import HeadAblation, KnockOut, Patch, ProjectOut, apply, describe
from workbench.engine.head_masks import load_edits, save_heads
from workbench.engine.mean_head_outputs import mean_head_outputs
from workbench.models import attention_weights
from workbench.models.attention import observe
from workbench.models.batching import pad
from workbench.models.loading import load, wrap
from workbench.models.sites import Site

IDS = [[1, 5, 9, 2, 40, 41, 7, 33, 12, 50], [3, 4, 5, 6, 7]]
WITH_INTERFACE = [n for n in NAMES if n not in NO_INTERFACE]


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return wrap(build(request.param), name=request.param)


def test_zero_ablation_equals_zeroing_output_weights(model):
    """Switching a head off = a model whose output weights for that head are 0."""
    heads = ((0, 1), (2, 0), (2, 3))
    found = logits(model, IDS, edits=[HeadAblation(heads)])
    pruned = wrap(build(model.name), name="pruned")
    for layer, head in heads:
        rows = slice(head * model.d_head, (head + 1) * model.d_head)
        weight = pruned.o_proj(layer).weight.data
        if type(pruned.o_proj(layer)).__name__ == "Conv1D":
            weight[rows] = 0
        else:
            weight[:, rows] = 0
    torch.testing.assert_close(found, logits(pruned, IDS), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, logits(model, IDS), atol=1e-3)


def test_mean_ablation_puts_the_mean_there(model):
    mean = mean_head_outputs(model, IDS)
    slow = torch.stack(
        [
            capture(model, IDS, [Site("head_out", layer)], positions="all")[Site("head_out", layer)].mean(0)
            for layer in range(3)
        ]
    )
    torch.testing.assert_close(mean, slow, atol=1e-6, rtol=1e-5)
    acts = capture(model, IDS, ["head_out.1"], positions="all", edits=[HeadAblation(((1, 2),), "mean", mean)])
    torch.testing.assert_close(
        acts["head_out.1"][:, 2], mean[1, 2].expand(len(acts["head_out.1"]), -1), atol=1e-6, rtol=0
    )
    clean = capture(model, IDS, ["head_out.1"], positions="all")["head_out.1"]
    torch.testing.assert_close(acts["head_out.1"][:, [0, 1, 3]], clean[:, [0, 1, 3]], atol=1e-6, rtol=0)


def test_edits_at_positions_touch_those_positions_only(model):
    edit = HeadAblation(((1, 2),), "zero", None, positions=(0, -1))
    found = capture(model, IDS, ["head_out.1"], positions="all", edits=[edit])
    clean = capture(model, IDS, ["head_out.1"], positions="all")
    for i in range(len(IDS)):
        new, old = found.rows("head_out.1", i), clean.rows("head_out.1", i)
        assert new[[0, -1], 2].abs().max() == 0
        torch.testing.assert_close(new[1:-1], old[1:-1], atol=1e-6, rtol=0)


def test_patching_a_site_with_another_runs_value_gives_the_other_run(model):
    """Patching the whole last residual stream of B into A makes A's logits B's."""
    site = Site("resid_post", 2)
    other = [IDS[0][::-1]]
    value = capture(model, other, [site])[site]
    found = logits(model, IDS[:1], edits=[Patch(site, value[:, None], positions=(-1,))])
    torch.testing.assert_close(found, logits(model, other), atol=1e-5, rtol=1e-5)


def test_patching_one_head_changes_only_that_head(model):
    value = torch.full((model.d_head,), 0.5)
    acts = capture(
        model, IDS, ["head_out.1"], positions="all", edits=[Patch(Site("head_out", 1, 3), value, positions=None)]
    )["head_out.1"]
    clean = capture(model, IDS, ["head_out.1"], positions="all")["head_out.1"]
    torch.testing.assert_close(acts[:, 3], value.expand(len(acts), -1), atol=0, rtol=0)
    torch.testing.assert_close(acts[:, :3], clean[:, :3], atol=1e-6, rtol=0)


def test_projecting_out_leaves_nothing_along_the_direction(model):
    direction = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    gone = capture(model, IDS, ["resid_post.1"], positions="all", edits=[ProjectOut(Site("resid_post", 1), direction)])[
        "resid_post.1"
    ]
    clean = capture(model, IDS, ["resid_post.1"], positions="all")["resid_post.1"]
    kept = capture(
        model, IDS, ["resid_post.1"], positions="all", edits=[ProjectOut(Site("resid_post", 1), direction, keep=True)]
    )["resid_post.1"]
    assert (gone @ direction.T).abs().max() < 1e-4
    torch.testing.assert_close(gone + kept, clean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", WITH_INTERFACE)
def test_uniform_attention_is_the_mean_of_the_visible_values(name):
    """Scores set to 0 for one head: its output at position t is the mean of its group's values over what t may see.

    Five tokens: inside every sliding window. The values are recovered from clean outputs = rows @ values."""
    model = wrap(build(name), name=name)
    layer, head, ids = 0, 2, IDS[1:]
    site = Site("head_out", layer)
    with torch.no_grad(), observe(model, lambda _l, w: w.clone(), rows="all", layers=[layer]) as rows:
        model.forward(pad(ids, pad_id=0))
    clean = capture(model, ids, [site], positions="all")[site]
    values = torch.linalg.solve_triangular(rows[layer][0, head].double(), clean[:, head].double(), upper=False)
    found = capture(model, ids, [site], positions="all", edits=[HeadAblation(((layer, head),), "uniform")])[site]
    expected = torch.stack([values[: t + 1].mean(0) for t in range(len(values))])
    torch.testing.assert_close(found[:, head].double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[:, [0, 1, 3]], clean[:, [0, 1, 3]], atol=1e-5, rtol=0)
    assert not torch.allclose(found[:, head], clean[:, head], atol=1e-3)


def test_uniform_attention_respects_a_sliding_window():
    """A one-layer Mistral: value vectors are known, position t sees the last `window` tokens."""
    model = wrap(build("mistral"), name="mistral")
    attention = model.attention(0)
    x = {}
    handle = attention.v_proj.register_forward_hook(lambda _m, _a, out: x.__setitem__("v", out.detach()))
    found = capture(model, IDS[:1], ["head_out.0"], positions="all", edits=[HeadAblation(((0, 3),), "uniform")])[
        "head_out.0"
    ]
    handle.remove()
    values = x["v"][0].unflatten(-1, (2, 8))[:, 1]  # query head 3 reads group 1
    expected = torch.stack([values[max(0, t - 5) : t + 1].mean(0) for t in range(len(values))])
    torch.testing.assert_close(found[:, 3], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_knock_out_is_minus_infinity_on_the_scores(side):
    """One-layer check against attention written out by hand on a grouped-query Llama, and on every row of a padded
    batch."""
    model = wrap(build("llama"), name="llama")
    sources = ((1, 2), (0,))
    edit = KnockOut(layers=(0,), sources=sources, queries="last")
    with torch.no_grad():
        batch = pad(IDS, pad_id=0, side=side)
        with observe(model, lambda _l, w: w.clone(), rows="all", layers=[0]) as rows:
            model.forward(batch)
    found = capture(model, IDS, ["head_out.0"], positions="all", edits=[edit], side=side)
    values = {}
    handle = model.attention(0).v_proj.register_forward_hook(lambda _m, _a, out: values.__setitem__("v", out.detach()))
    with torch.no_grad():
        model.forward(batch)
    handle.remove()
    clean = capture(model, IDS, ["head_out.0"], positions="all")
    for i, ids in enumerate(IDS):
        n, start = len(ids), (len(batch.ids[0]) - len(ids) if side == "left" else 0)
        weights = rows[0][i, :, start : start + n, start : start + n][:, -1].double()  # [H, n]
        scores = weights.log()
        scores[:, list(sources[i])] = -math.inf
        v = values["v"][i, start : start + n].unflatten(-1, (2, 8)).repeat_interleave(2, dim=1).double()  # [n, H, D]
        expected = torch.einsum("hs,shd->hd", scores.softmax(-1), v)
        torch.testing.assert_close(found.rows("head_out.0", i)[-1].double(), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            found.rows("head_out.0", i)[:-1], clean.rows("head_out.0", i)[:-1], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("queries", ["all", "last", (0, 3, 4, 9)])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_attention_edits_are_the_same_in_blocks_of_queries(name, rows, queries, monkeypatch):
    """Long prompts are attended to block by block, so that full attention maps are never held."""
    model = wrap(build(name), name=name)
    edits = [KnockOut((0, 1), ((2, 6),), queries=queries), HeadAblation(((2, 3),), "uniform")]
    sites = [f"head_out.{layer}" for layer in range(3)]
    whole = capture(model, IDS[:1], sites, positions="all", edits=edits)
    clean = capture(model, IDS[:1], sites, positions="all")
    monkeypatch.setattr(attention_weights, "BLOCK", rows * model.n_heads * len(IDS[0]))
    found = capture(model, IDS[:1], sites, positions="all", edits=edits)
    for site in sites:
        torch.testing.assert_close(found[site], whole[site], atol=1e-6, rtol=1e-6)
        assert not torch.allclose(whole[site], clean[site], atol=1e-3)


def test_attention_edits_are_refused_where_attention_is_out_of_reach():
    for name in NO_INTERFACE:
        with pytest.raises(InputError, match="outside the interface"):
            logits(wrap(build(name), name=name), IDS, edits=[HeadAblation(((0, 0),), "uniform")])


def test_edits_end_with_their_context_even_after_an_error(tiny_llama):
    model = load(str(tiny_llama))
    clean = logits(model, [[1, 5, 9]])
    with (
        pytest.raises(RuntimeError),
        apply(model, [HeadAblation(((0, 0), (3, 2))), HeadAblation(((1, 1),), "uniform")]),
    ):
        raise RuntimeError
    assert torch.equal(logits(model, [[1, 5, 9]]), clean)
    assert all(not model.attention(k)._workbench_hooks.edits for k in range(5))


def test_edits_compose(tiny_llama):
    model = load(str(tiny_llama))
    one, two = HeadAblation(((0, 1),)), HeadAblation(((3, 2),))
    both = logits(model, [[1, 5, 9]], edits=[one, two])
    torch.testing.assert_close(
        both, logits(model, [[1, 5, 9]], edits=[HeadAblation(((0, 1), (3, 2)))]), atol=1e-6, rtol=0
    )
    assert not torch.allclose(both, logits(model, [[1, 5, 9]], edits=[one]), atol=1e-4)


def test_a_saved_head_mask_does_the_same(tiny_llama, tmp_path):
    model = load(str(tiny_llama))
    save_heads(tmp_path / "mask.json", [(0, 1), (3, 2)])
    edits = load_edits(tmp_path / "mask.json")
    assert torch.equal(
        logits(model, [[1, 5]], edits=edits), logits(model, [[1, 5]], edits=[HeadAblation(((0, 1), (3, 2)))])
    )
    (tmp_path / "mask.json").write_text("[]")
    with pytest.raises(InputError, match="not a head mask"):
        load_edits(tmp_path / "mask.json")


def test_edits_describe_themselves_exactly():
    a, b = torch.zeros(3), torch.zeros(3)
    b[0] = 1e-30
    assert describe([Patch(Site("resid_post", 1), a)]) != describe([Patch(Site("resid_post", 1), b)])
    assert describe([Patch(Site("resid_post", 1), a)]) == describe([Patch(Site("resid_post", 1), a.clone())])


def test_impossible_edits_are_refused(tiny_llama):
    model = load(str(tiny_llama))
    for edit, says in [
        (HeadAblation(((9, 0),)), "Head 9.0 does not exist"),
        (HeadAblation(((0, 0),), "negative"), "not an ablation"),
        (HeadAblation(((0, 0),), "mean"), "needs the mean"),
        (ProjectOut(Site("resid_post", 0), torch.zeros(64)), "zero or not finite"),
        (Patch(Site("logits"), torch.zeros(512)), "Logits are a result"),
    ]:
        with pytest.raises(InputError, match=says):
            logits(model, [[1, 2]], edits=[edit])
