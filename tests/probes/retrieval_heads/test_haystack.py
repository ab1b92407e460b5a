"""Needle prompts whose beginnings are read once, against plain Hugging Face on every prompt alone."""

import pytest
import torch

from probes.retrieval_heads import haystack
from probes.retrieval_heads.haystack import Haystack, bodies, parts, places, stretches
from probes.retrieval_heads.speculative_decoding import begin, go_on
from tests.support.architectures import NAMES, build
from workbench.engine.kv_cache import feed, prefill
from workbench.models.loading import wrap
from workbench.models.model import Model
from workbench.models.needle_prompts import Trial

TEXT = [1, *(3 + 7 * k % 41 for k in range(30))]
NEEDLES, TAILS = [[50, 51, 52], [53, 54], [55, 56, 57, 58, 59]], [[60, 61, 45], [62, 45], [63, 60, 45]]
ROWS = [[5, 9, 2, 40, 41, 7, 8, 6, 33, 12, 13, 14], [8, 30, 11], [50, 4, 21, 22, 23, 24, 25]]


def grid(lengths=(12, 20, 27), at=(0, 3, 9)):
    """Every needle at every place of texts of every length; the last place is their end."""
    out = []
    for length in lengths:
        for place in (*at, length):
            for k, (needle, tail) in enumerate(zip(NEEDLES, TAILS)):
                ids, start = (*TEXT[: 1 + place], *needle, *TEXT[1 + place : 1 + length], *tail), 1 + place
                out.append(
                    Trial(
                        k, length, place / length, ids, start, len(ids) - len(tail), (start, start + 1), tuple(needle)
                    )
                )
    return out


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    return wrap(build(request.param), name=request.param), build(request.param)


@pytest.mark.parametrize("front", [0, 5])
def test_what_is_prefilled_in_blocks_leaves_the_keys_of_whole_prompts(case, front, monkeypatch):
    model, hf = case
    rows = ROWS if not (model.sliding and front) else [row[:3] for row in ROWS]  # padding may not stand inside a window
    monkeypatch.setattr(Model, "tokens_at_once", lambda self: 1)  # the smallest blocks there are
    before = prefill(model, [TEXT[:front]], None).fork(len(rows)) if front else None
    past = prefill(model, rows, before)
    for b, row in enumerate(rows):
        with torch.no_grad():
            expected = hf(torch.tensor([TEXT[:front] + row]), use_cache=True).past_key_values
        real = past.past.mask[b]
        assert past.past.ids[b][real].tolist() == TEXT[:front] + row and past.past.position_ids[b][real].tolist() == [
            *range(front + len(row))
        ]
        for found, wanted in zip(past.cache.layers, expected.layers, strict=True):
            kept = wanted.keys.shape[2]  # the plain cache of a layer with a window holds that many
            torch.testing.assert_close(found.keys[b][:, real][:, -kept:], wanted.keys[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found.values[b][:, real][:, -kept:], wanted.values[0], atol=1e-5, rtol=1e-4)


def test_prompts_that_share_beginnings_are_answered_as_alone(case):
    """Also where they begin one after the other in the same memory and all go on together afterwards, as in the
    probe."""
    model, hf = case
    trials, seen, how = grid(), [], {"max_new_tokens": 3, "stops": lambda _t: False}
    shared = Haystack(model, TEXT[: max(t.shared for t in trials)])
    for place in places(model, trials, max_tokens=10_000):
        begun, rows = [], []
        for group, past, ends in bodies(shared, [trials[i] for i in place]):
            same = [trials[place[k]] for k in group]
            begun.append(
                begin(
                    model,
                    past,
                    [t.ids[end:] for t, end in zip(same, ends)],
                    [() if model.sliding else t.guess for t in same],
                    use_up=not model.sliding,
                    **how,
                )
            )
            rows += [place[k] for k in group]
            if model.sliding:
                seen += zip(rows, go_on(model, begun, **how))
                begun, rows = [], []
        seen += zip(rows, go_on(model, begun, **how) if begun else [])
    assert sorted(i for i, _ in seen) == list(range(len(trials)))
    for i, steps in seen:
        ids = list(trials[i].ids)
        assert len(steps) == 3
        for step in steps:
            with torch.no_grad():
                logits = hf(torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert logits[step.token] > logits.max() - 1e-4, "another token than plain decoding gives"
            ids.append(step.token)


def test_a_past_with_room_grows_where_it_is_and_one_without_is_copied():
    model, hf = wrap(build("llama"), name="llama"), build("llama")
    row, more = TEXT[:20], [[5, 9, 2], [8, 30]]

    def address(past):
        return [layer.keys.data_ptr() for layer in past.cache.layers]

    past = prefill(model, [row], None, room=3)
    before = address(past)
    for columns, ids in ((20, more[0]), (14, more[1])):  # the shorter cut does not miss what the longer one grew over
        cut = past.first(columns)
        grown, logits = feed(model, [ids], cut)
        assert address(grown) == before
        with torch.no_grad():
            torch.testing.assert_close(
                logits[0, -1], hf(torch.tensor([row[:columns] + ids])).logits[0, -1], atol=1e-4, rtol=1e-4
            )
    assert address(feed(model, [more[0]], past.first(14).fork())[0]) != before, (
        "a fork must leave what it was cut from as it is"
    )
    full = prefill(model, [row], None)
    assert address(feed(model, [more[0]], full)[0]) != before, "without room, keys go to new memory"


def test_every_beginning_is_run_once(monkeypatch):
    """As many tokens go through the model as the prompts have different beginnings."""
    model, trials, run = wrap(build("llama"), name="llama"), grid(), []
    usual = Model.forward
    monkeypatch.setattr(
        Model, "forward", lambda self, batch, **more: (run.append(int(batch.mask.sum())), usual(self, batch, **more))[1]
    )
    shared = Haystack(model, TEXT[: max(t.shared for t in trials)])
    for place in places(model, trials, max_tokens=10_000):
        for group, past, ends in bodies(shared, [trials[i] for i in place]):
            same = [trials[place[k]] for k in group]
            feed(model, [t.ids[end:] for t, end in zip(same, ends)], past.fork())
    different = {t.ids[:k] for t in trials for k in range(1, len(t.ids) + 1)}
    assert sum(run) == len(different) < sum(len(t.ids) for t in trials) / 2
    assert sum(end - start for start, end in stretches(model, trials)) == len(different) - len(shared.tokens)


def test_any_part_of_the_grid_can_be_read():
    """A needle may be missing at some lengths: where memory runs out, a place is cut anywhere."""
    model, hf = wrap(build("llama"), name="llama"), build("llama")
    trials = [t for k, t in enumerate(grid(at=(3,))) if k % 4 != 1]
    shared = Haystack(model, TEXT[: max(t.shared for t in trials)])
    for place in places(model, trials, max_tokens=10_000):
        for group, past, ends in bodies(shared, [trials[i] for i in place]):
            same = [trials[place[k]] for k in group]
            _, logits = feed(model, [t.ids[end:] for t, end in zip(same, ends)], past.fork())
            with torch.no_grad():
                expected = torch.stack([hf(torch.tensor([t.ids])).logits[0, -1] for t in same])
            torch.testing.assert_close(logits[:, -1], expected, atol=1e-4, rtol=1e-4)


def test_places_and_parts_cover_the_trials_within_their_limits():
    model, trials = wrap(build("llama"), name="llama"), grid()
    for cut in (places, parts):
        for most in (1, 70, 10_000):
            found = cut(model, trials, most)
            assert sorted(i for rows in found for i in rows) == list(range(len(trials)))
            for rows in found:
                longest = {
                    k: max(len(trials[i].ids) for i in rows if trials[i].needle == k)
                    for k in {trials[i].needle for i in rows}
                }
                assert len(longest) * max(longest.values()) <= most or len(longest) == 1
    assert max(map(len, parts(model, trials, 10_000))) <= haystack.PART and len(parts(model, trials, 10_000)) < len(
        places(model, trials, 10_000)
    )
