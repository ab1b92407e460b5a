"""Prompts run on a trie give what each gives alone, on every architecture, and models that cannot do it are run
plainly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.architectures import NAMES, build
from workbench.engine import shared_prefix
from workbench.engine.capture import capture
from workbench.engine.hf import stream
from workbench.engine.shared_prefix import applies, beginning, front, nodes_per_token, packs, stream_after
from workbench.models.loading import load, wrap
from workbench.models.sites import Site

TEMPLATE = [5, 6, 7, 8]
PROMPTS = [[*TEMPLATE, 10 + i % 5, 20 + i % 3, 30 + i] for i in range(20)] + [TEMPLATE, [40, 41]]


def single(model, ids, site):
    """One prompt per forward."""
    return torch.stack([next(stream(model, [row], [site]))[1][site][0] for row in ids])


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=20), st.integers(1, 12))
def test_packs_hold_every_prompt_once_and_every_node_sees_its_prompt(rows, limit):
    found = packs(rows, max_nodes=limit)
    assert sorted(row for pack in found for row in pack.rows) == list(range(len(rows)))
    for pack in found:
        assert len(pack.rows) == 1 or len(pack.tokens) <= limit
        sees = pack.sees()
        for row, last in zip(pack.rows, pack.last):
            nodes = sees[last].nonzero()[:, 0].tolist()
            assert [pack.tokens[node] for node in nodes] == rows[row] and [pack.depth[node] for node in nodes] == list(
                range(len(rows[row]))
            )
    assert round(nodes_per_token(rows) * sum(map(len, rows))) == len(
        {tuple(row[: k + 1]) for row in rows for k in range(len(row))}
    )


@pytest.mark.parametrize("begins", ["alike", "differently"])
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_gives_what_single_prompts_give(name, begins, monkeypatch):
    """In several packs and passes, and after a beginning that all have or that two do not have."""
    model = wrap(build(name))
    monkeypatch.setitem(shared_prefix.NODES, "cpu", 8)
    monkeypatch.setitem(shared_prefix.TOKENS, "cpu", 36)
    prompts = [
        row[:6] for row in (PROMPTS[:-2] if begins == "alike" else PROMPTS)
    ]  # within the windows of the small models
    sites = [Site.parse(site) for site in ("resid_post.1", "head_out.2", "final_norm", "logits")]
    assert applies(model, prompts) and front(model, prompts) == (TEMPLATE if begins == "alike" else [])
    rows, found, padded, tokens = [], {site: [] for site in sites}, 0, 0
    for indices, acts, batch in shared_prefix.stream(model, prompts, sites):
        rows += indices
        tokens += batch.tokens
        padded += not bool(batch.mask.all())
        assert int(batch.lengths.max()) <= 16 and len(batch.lengths) <= 3
        for site, x in acts.items():
            found[site].append(x)
    assert sorted(rows) == list(range(len(prompts))) and padded and tokens < sum(map(len, prompts))
    for site in sites:
        expected = single(model, [prompts[i] for i in rows], site)
        torch.testing.assert_close(torch.cat(found[site]), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_a_beginning_longer_than_a_pack_is_read_once(tiny_llama):
    """The few-shot part of labelled texts: 200 tokens that every prompt begins with."""
    model = load(str(tiny_llama))
    shots = model.encode("Once upon a time there was a little girl. " * 20)[:200]
    prompts = [
        [*shots, *model.encode(f"The city of {'Paris' if i % 2 else 'London'} is number {i}", bos=False)]
        for i in range(40)
    ]
    sizes = [batch.tokens for _, _, batch in shared_prefix.stream(model, prompts, ["resid_post.3"])]
    assert len(shots) <= sizes[0] and sum(sizes) < 0.15 * sum(map(len, prompts))
    found = capture(model, prompts, ["resid_post.3"])["resid_post.3"]
    torch.testing.assert_close(found, single(model, prompts, Site.parse("resid_post.3")), atol=1e-5, rtol=0)


def test_capture_uses_the_trie_and_keeps_the_order(tiny_llama):
    model = load(str(tiny_llama))
    ids = [
        model.encode(f"Judge the statement. The city of {'Paris' if i % 2 else 'London'} is number {i}")
        for i in range(60)
    ]
    assert nodes_per_token(ids) < 0.5
    ran = []
    handle = model.hf.model.layers[0].register_forward_hook(
        lambda _m, _a, out: ran.append(out[0].shape[-2] if isinstance(out, tuple) else out.shape[-2] * out.shape[0])
    )
    found = capture(model, ids, ["resid_post.3"])["resid_post.3"]
    handle.remove()
    assert sum(ran) < 0.7 * sum(map(len, ids))  # the check of two prompts by a plain pass included
    torch.testing.assert_close(found, single(model, ids, Site.parse("resid_post.3")), atol=1e-5, rtol=0)


def test_a_model_in_which_prompts_see_each_other_is_run_plainly(monkeypatch):
    model = wrap(build("llama"))
    expected = capture(model, PROMPTS, ["final_norm"])["final_norm"]
    real = shared_prefix._run

    def leaking(*args):
        found, batch = real(*args)
        return {site: x + 0.1 for site, x in found.items()}, batch

    monkeypatch.setattr(shared_prefix, "_run", leaking)
    torch.testing.assert_close(capture(model, PROMPTS, ["final_norm"])["final_norm"], expected, atol=1e-5, rtol=0)


def test_the_first_pass_that_fits_is_checked(monkeypatch):
    """The largest pack may not fit: what comes after it is checked all the same."""
    model = wrap(build("llama"))
    expected = capture(model, PROMPTS, ["final_norm"])["final_norm"]
    monkeypatch.setitem(shared_prefix.NODES, "cpu", 12)
    monkeypatch.setitem(shared_prefix.TOKENS, "cpu", 16)
    real, calls = shared_prefix._run, []

    def too_much_then_wrong(*args):
        calls.append(len(args[1]))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        found, batch = real(*args)
        return {site: x + 0.1 for site, x in found.items()}, batch

    monkeypatch.setattr(shared_prefix, "_run", too_much_then_wrong)
    torch.testing.assert_close(capture(model, PROMPTS, ["final_norm"])["final_norm"], expected, atol=1e-5, rtol=0)
    assert len(calls) == 2


def test_a_pack_that_does_not_fit_into_memory_is_run_in_plain_batches(monkeypatch):
    model = wrap(build("llama"))
    expected = capture(model, PROMPTS, ["final_norm"])["final_norm"]

    def too_much(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(shared_prefix, "_run", too_much)
    torch.testing.assert_close(capture(model, PROMPTS, ["final_norm"])["final_norm"], expected, atol=1e-5, rtol=0)


def test_it_is_left_to_plain_batches_where_nothing_is_gained_or_it_cannot_be_exact():
    model = wrap(build("llama"))
    different = [[i + 3, 50 - i, 7 + i % 9] for i in range(20)]
    assert applies(model, PROMPTS) and not applies(model, different)
    windowed = wrap(build("mistral"))  # a window of 6 tokens
    assert not applies(windowed, PROMPTS) and applies(windowed, [row[:6] for row in PROMPTS])
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        vocab_size=64,
        max_position_embeddings=64,
        window_size=6,
        attention_types=[[["global", "local"], 1]],
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    assert not applies(wrap(GPTNeoForCausalLM(config).eval()), PROMPTS), (
        "its window counts columns, whatever mask it is given"
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_token_after_a_common_beginning_is_what_it_is_in_a_prompt_alone(name):
    """Uneven rests, in several padded batches; the beginning's own tokens too."""
    model = wrap(build(name))
    prompts = [
        [*TEMPLATE, *(10 + (3 * i + j) % 40 for j in range(1 + (i > 6)))] for i in range(20)
    ]  # within the windows of the small models
    sites = [Site.parse(site) for site in ("resid_pre.1", "resid_post.1", "head_out.2", "mlp_out.1")]
    begun = beginning(model, prompts, sites)
    assert begun.tokens == TEMPLATE
    plain = {i: next(stream(model, [row], sites, positions="all"))[1] for i, row in enumerate(prompts)}
    seen, padded = [], 0
    for indices, acts, batch in stream_after(model, begun, prompts, sites, max_tokens=14):
        seen += indices
        padded += not bool(batch.mask.all())
        assert batch.lengths.tolist() == [len(prompts[i]) - len(TEMPLATE) for i in indices] and batch.ids.numel() <= 14
        for site in sites:
            expected = torch.cat([plain[i][site][len(TEMPLATE) :] for i in indices])
            torch.testing.assert_close(acts[site], expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert sorted(seen) == list(range(len(prompts))) and padded
    for site in sites:
        expected = plain[0][site][: len(TEMPLATE)]
        torch.testing.assert_close(begun.found[site], expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_a_beginning_is_left_where_it_does_not_pay_or_cannot_be_gone_on_from(monkeypatch):
    model = wrap(build("llama"))
    alike, sites = PROMPTS[:-2], ["resid_post.1"]
    assert beginning(model, alike, sites).tokens == TEMPLATE and beginning(model, alike, sites, size=3) is None
    assert beginning(model, PROMPTS, sites) is None, "two prompts begin otherwise"
    assert beginning(model, alike[:8], sites) is None, "so few are read sooner than their beginning"
    assert beginning(model, [row + [9 + i] * 50 for i, row in enumerate(alike)], sites) is None, (
        "it is a small part of the prompts"
    )
    assert beginning(wrap(build("mistral")), [row + [9 + i] * 4 for i, row in enumerate(alike)], sites) is None, (
        "its window is shorter"
    )
    real = shared_prefix._continue

    def leaking(*args):
        found, batch = real(*args)
        return {site: x + 0.1 for site, x in found.items()}, batch

    monkeypatch.setattr(shared_prefix, "_continue", leaking)
    assert beginning(model, alike, sites) is None, "a model whose cached tokens come out otherwise"
