"""Adding a direction: what plain Hugging Face hooks give, on two architectures; nothing else moves."""

import pytest
import torch

from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine.capture import capture, logits
from workbench.engine.edits import describe
from workbench.engine.generate import greedy
from workbench.engine.steering import Steer
from workbench.models.loading import wrap
from workbench.models.sites import Site

IDS = [[5, 9, 3, 17, 4, 8], [7, 2, 11], [1, 6, 13, 9]]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def named(request):
    return request.param, wrap(build(request.param), name=request.param)


def direction_of(model, site=None):
    width = model.width if site is None else model.site_size(site)
    return torch.randn(width, generator=torch.Generator().manual_seed(0))


def by_hand(model, name, ids, layer, added, positions):
    """Logits of the last token with a plain hook on the block's output, eager, one prompt at a time."""
    block = model.hf.model.layers[layer] if name == "llama" else model.hf.transformer.h[layer]

    def hook(_module, _args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        rows = slice(None) if positions is None else list(positions)
        hidden[:, rows] = hidden[:, rows] + added
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = block.register_forward_hook(hook)
    with torch.no_grad():
        found = torch.stack([model.hf(torch.tensor([row])).logits[0, -1] for row in ids])
    handle.remove()
    return found


@pytest.mark.parametrize("positions", [None, (-1,), (0, -2)])
def test_steering_is_a_plain_hook_that_adds(named, positions):
    name, model = named
    direction = direction_of(model)
    clean = logits(model, IDS)
    for strength in (0.7, -2.0):
        edit = Steer(Site("resid_post", 1), direction, strength, positions=positions)
        expected = by_hand(model, name, IDS, 1, strength * direction, positions)
        torch.testing.assert_close(logits(model, IDS, edits=[edit]), expected, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(expected, clean, atol=1e-2)
    torch.testing.assert_close(logits(model, IDS), clean, atol=0, rtol=0)  # nothing is left on the model


def test_positions_by_prompt_are_those_of_one_prompt_at_a_time(named):
    _, model = named
    own, direction = ((1, 3), (1,), (-1, 2)), direction_of(model)
    together = logits(model, IDS, edits=[Steer(Site("resid_mid", 1), direction, positions=own)])
    for row, positions in enumerate(own):
        alone = logits(model, [IDS[row]], edits=[Steer(Site("resid_mid", 1), direction, positions=positions)])
        torch.testing.assert_close(together[row], alone[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["mlp_in", "attn_out", "resid_pre", "head_out"])
def test_exactly_the_direction_is_added_where_it_is_asked_for(named, kind):
    """Only at the positions, only at the site (one head of head_out), and by strength times the direction."""
    _, model = named
    site = Site(kind, 1, 2 if kind == "head_out" else None)
    direction = direction_of(model, site)
    clean = capture(model, IDS, [site], positions="all")
    found = capture(model, IDS, [site], positions="all", edits=[Steer(site, direction, 3.0, positions=(0, -1))])
    for row in range(len(IDS)):
        moved = found.rows(str(site), row) - clean.rows(str(site), row)
        torch.testing.assert_close(moved[[0, -1]], (3 * direction).expand(2, -1), atol=1e-5, rtol=1e-5)
        assert moved[1:-1].abs().max() == 0


def test_generation_is_steered_at_every_token_and_one_token_only_where_it_was_read(named):
    _, model = named
    direction = direction_of(model)

    def slow(edit):
        ids = list(IDS[0])
        for _ in range(4):
            ids.append(int(logits(model, [ids], edits=[edit])[0].argmax()))
        return ids[len(IDS[0]) :]

    for positions in (None, (2,)):
        edit = Steer(Site("resid_post", 0), direction, 4.0, positions=positions)
        found = greedy(model, IDS[:1], max_new_tokens=4, edits=[edit], eos=False)
        assert found[0] == slow(edit)


def test_strength_and_direction_are_in_the_key_of_what_is_stored(named):
    _, model = named
    direction = direction_of(model)
    site = Site("resid_post", 1)
    keys = [
        Steer(site, direction),
        Steer(site, direction, 2.0),
        Steer(site, -direction),
        Steer(site, direction, 1.0, (0,)),
    ]
    said = [str(describe([edit])) for edit in keys]
    assert len(set(said)) == 4 and str(describe([Steer(site, direction.clone())])) == said[0]


def test_what_does_not_fit_is_refused_in_one_sentence(named):
    _, model = named
    site, right = Site("resid_post", 1), torch.ones(model.width)
    for edit, message in (
        (Steer(Site("logits"), right), "Logits are a result"),
        (Steer(site, torch.ones(model.width + 1)), "holds .* numbers"),
        (Steer(site, torch.ones(2, model.width)), "has the shape 2 × "),
        (Steer(site, right * float("nan")), "not finite"),
        (Steer(site, right, float("inf")), "not finite"),
        (Steer(Site("head_out", 1), right), "added to one head"),
        (Steer(site, right, positions=(5,)), "Position 5 to edit is not among the 3 tokens of prompt 2"),
        (Steer(site, right, positions=((1,), (1,))), "for 2 prompts, but there are 3"),
        (Steer(Site("resid_post", 99), right), "99"),
    ):
        with pytest.raises(InputError, match=message):
            logits(model, IDS, edits=[edit])
