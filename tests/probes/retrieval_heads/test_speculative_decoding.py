"""Guessed and prefix-shared decoding against Hugging Face, one prompt at a time, eager, with full attention maps."""

import pytest
import torch

from probes.retrieval_heads.speculative_decoding import begin, go_on, greedy_steps
from tests.support.architectures import NAMES, NO_INTERFACE, build
from workbench.core.errors import InputError
from workbench.engine.edits import HeadAblation, apply
from workbench.engine.kv_cache import feed, merge
from workbench.models.attention import observe
from workbench.models.loading import wrap

PROMPTS = [[1, 5, 9, 2, 40, 41, 7], [1, 5, 9, 8, 30], [1, 5, 9, 50]]
SPANS = torch.tensor([[3, 4], [1, 2], [0, -1]])
N = 6


def plain_decode(name, prompt, span, changes):
    """Greedy decoding with full eager attention at every step: tokens, per head argmax position and span mass."""
    hf = build(name, **changes)
    ids, tokens, places, masses = list(prompt), [], [], []
    for _ in range(N):
        with torch.no_grad():
            out = hf(torch.tensor([ids]), output_attentions=True, use_cache=False)
        row = torch.stack([a[0, :, -1] for a in out.attentions])  # [L, H, S]
        places.append(row.argmax(-1))
        masses.append(row[..., [s for s in span if s >= 0]].sum(-1))
        tokens.append(int(out.logits[0, -1].argmax()))
        ids.append(tokens[-1])
    return tokens, torch.stack(places), torch.stack(masses)


@pytest.fixture(scope="module", params=[n for n in NAMES if n not in NO_INTERFACE])
def case(request):
    changes = {}  # sliding models keep their window of 6 tokens: it must be respected
    reference = [plain_decode(request.param, p, s.tolist(), changes) for p, s in zip(PROMPTS, SPANS)]
    return wrap(build(request.param, **changes), name=request.param), reference


def compare(steps, reference):
    for row, (tokens, places, masses) in zip(steps, reference):
        assert [s.token for s in row] == tokens
        reading = torch.stack([s.reading for s in row])
        assert torch.equal(reading[..., 0].long(), places)
        torch.testing.assert_close(reading[..., 1], masses, atol=1e-5, rtol=0)


def test_right_guesses_give_the_steps_of_plain_decoding(case):
    model, reference = case
    guesses = [tokens[:k] for (tokens, *_), k in zip(reference, (5, 3, 1))]
    compare(
        greedy_steps(model, None, PROMPTS, guesses, max_new_tokens=N, stops=lambda _t: False, spans=SPANS), reference
    )


def test_wrong_guesses_change_nothing(case):
    model, reference = case
    half = [reference[0][0][:2] + [63, 63], [62], []]
    compare(greedy_steps(model, None, PROMPTS, half, max_new_tokens=N, stops=lambda _t: False, spans=SPANS), reference)


def test_no_guess_decodes_step_by_step(case):
    model, reference = case
    compare(
        greedy_steps(model, None, PROMPTS, [(), (), ()], max_new_tokens=N, stops=lambda _t: False, spans=SPANS),
        reference,
    )


def test_a_shared_prefix_changes_nothing(case):
    model, reference = case
    cached, _ = feed(model, [PROMPTS[0][:3]], None)
    rows, guesses = [p[3:] for p in PROMPTS], [r[0][:4] for r in reference]
    if model.sliding:  # one row at a time: paddings may not stand between prefix and prompt
        for i in range(3):
            compare(
                greedy_steps(
                    model,
                    cached.fork(),
                    rows[i : i + 1],
                    [()],
                    max_new_tokens=N,
                    stops=lambda _t: False,
                    spans=SPANS[i : i + 1],
                ),
                reference[i : i + 1],
            )
    else:
        compare(
            greedy_steps(model, cached.fork(3), rows, guesses, max_new_tokens=N, stops=lambda _t: False, spans=SPANS),
            reference,
        )
    assert cached.past.mask.shape[1] == 3 and cached.cache.get_seq_length() == 3


@pytest.mark.parametrize("name", NO_INTERFACE)
@pytest.mark.parametrize("prefix", [0, 2])
def test_where_rows_come_from_full_maps_only_the_queries_wanted_go_through_one(name, prefix, monkeypatch):
    """Room for maps of the last prompt token and the guess, not for one of the prompt."""
    from workbench.models import attention_weights

    reference = [plain_decode(name, p, s.tolist(), {}) for p, s in zip(PROMPTS, SPANS)]
    model = wrap(build(name), name=name)
    guesses = [tokens[:2] for tokens, *_ in reference]
    longest = max(map(len, PROMPTS))
    monkeypatch.setattr(attention_weights, "BLOCK", len(PROMPTS) * model.n_heads * 3 * (longest + N) / 4)
    before = feed(model, [PROMPTS[0][:prefix]], None)[0].fork(3) if prefix else None
    compare(
        greedy_steps(
            model, before, [p[prefix:] for p in PROMPTS], guesses, max_new_tokens=N, stops=lambda _t: False, spans=SPANS
        ),
        reference,
    )
    with pytest.raises(InputError, match="full attention maps"), observe(model, lambda _layer, w: w, rows="last"):
        feed(model, PROMPTS, None)


def test_pasts_of_different_lengths_go_on_together(case):
    model, reference = case
    read = merge([feed(model, [p[:-1]], None)[0] for p in PROMPTS])
    assert read.past.mask.sum(1).tolist() == [len(p) - 1 for p in PROMPTS]
    for guesses in ([()] * 3, [tokens[:3] for tokens, *_ in reference]):
        compare(
            greedy_steps(
                model, read, [p[-1:] for p in PROMPTS], guesses, max_new_tokens=N, stops=lambda _t: False, spans=SPANS
            ),
            reference,
        )


def test_continuations_begun_apart_go_on_together(case):
    """Each after its own first pass, with guesses right, wrong and complete, spans of different widths, and one row
    done before."""
    model, reference = case
    how = {"max_new_tokens": N, "stops": lambda ids: ids[-1] == reference[0][0][1]}
    until = [tokens.index(reference[0][0][1]) + 1 if reference[0][0][1] in tokens else N for tokens, *_ in reference]
    expected = [tuple(x[:n] for x in row) for row, n in zip(reference, until)]
    guesses = [reference[0][0][:5], [63], ()]
    begun = [
        begin(model, None, [p], [g], spans=s[None] if i else s[None, s >= 0], **how)
        for i, (p, g, s) in enumerate(zip(PROMPTS, guesses, SPANS))
    ]
    read_at_once = 1 if model.sliding else 2  # behind a window guesses are not read
    assert begun[0].done == [reference[0][0][1] in reference[0][0][:read_at_once]] and begun[2].done == [False]
    # a window counts columns: where there is one, pasts of different lengths go on one after the other
    together = [[b] for b in begun] if model.sliding else [begun]
    compare([steps for some in together for steps in go_on(model, some, **how)], expected)


def test_decoding_stops_where_it_should(case):
    model, reference = case
    stop = reference[0][0][2]
    stops = lambda ids: ids[-1] == stop  # noqa: E731
    steps = greedy_steps(model, None, PROMPTS[:1], [()], max_new_tokens=N, stops=stops, spans=SPANS[:1])
    expected = reference[0][0][: reference[0][0].index(stop) + 1]
    assert [s.token for s in steps[0]] == expected


@pytest.mark.parametrize("how", ["zero", "uniform"])
def test_masked_decoding_equals_masked_full_passes(how):
    """Edits from the last prompt token on, keys and values of the prompt untouched: written out as a two-phase cache
    loop."""
    from transformers import DynamicCache

    model = wrap(build("llama"), name="llama")
    edit = HeadAblation(((0, 1), (2, 3)), how)
    for prompt in PROMPTS:
        cache, ids, expected = DynamicCache(), torch.tensor([prompt]), []
        with torch.no_grad():
            model.hf(ids[:, :-1], past_key_values=cache, use_cache=True)
            token = ids[:, -1:]
            for k in range(N):
                with apply(model, [edit]):
                    from workbench.models.running_pass import PassPositions, running

                    position = torch.tensor([[len(prompt) - 1 + k]])
                    with running(
                        PassPositions(position, torch.ones(1, 1, dtype=torch.bool), torch.arange(len(prompt) + k)[None])
                    ):
                        token = model.hf(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
                expected.append(int(token))
        read, _ = feed(model, [prompt[:-1]], None)
        with apply(model, [edit]):
            found = greedy_steps(model, read, [prompt[-1:]], [expected[:3]], max_new_tokens=N, stops=lambda _t: False)
        assert [s.token for s in found[0]] == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_uniform_attention_sees_no_padding_and_no_later_key_in_any_precision(dtype):
    """The smallest number of float16 is no mask for scores in float32: such keys would be taken for visible ones."""
    model = wrap(build("llama").to(dtype), name="llama")
    with apply(model, [HeadAblation(((0, 1), (1, 2)), "uniform", None)]):
        _, together = feed(model, PROMPTS, None)
        for i, prompt in enumerate(PROMPTS):
            _, alone = feed(model, [prompt], None)
            torch.testing.assert_close(
                together[i, -1],
                alone[0, -1],
                atol=1e-4 if dtype == torch.float32 else 0.03 * float(alone.abs().max()),
                rtol=0,
            )
