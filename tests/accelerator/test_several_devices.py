"""A model whose layers are on two devices gives what it gives on one: every reading, edit, patch and decoded token."""

import copy

import pytest
import torch
from accelerate import dispatch_model

from tests import virtual_accelerator as va
from tests.support.architectures import build
from workbench.engine import patching
from workbench.engine.capture import capture, logits
from workbench.engine.dual_run import DualRun
from workbench.engine.edits import HeadAblation, HeadScale, KnockOut, Patch, ProjectOut
from workbench.engine.evaluation import token_losses
from workbench.engine.generate import greedy, sample
from workbench.engine.head_gates import fit_gates
from workbench.engine.head_paths import head_to_head
from workbench.engine.kv_cache import feed, prefill
from workbench.engine.mean_head_outputs import mean_head_outputs
from workbench.engine.scoring import score
from workbench.engine.steering import Steer
from workbench.models.attention import observe
from workbench.models.batching import pad
from workbench.models.loading import wrap
from workbench.models.sites import Site

IDS = [[1, 5, 9, 13, 20], [1, 7, 3], [4, 4, 8, 22]]
DONORS = [[1, 6, 9, 2, 20], [1, 8, 3], [5, 4, 9, 22]]
TOKENS = [[3, 9], [11, 2], [7, 30]]
SITES = [f"{kind}.{layer}" for kind in ("resid_pre", "resid_mid", "head_out", "mlp_hidden") for layer in (0, 2)]
SITES += ["attn_out.1", "mlp_in.1", "mlp_out.1", "head_out.2.3", "resid_post.0", "final_norm", "logits"]


@pytest.fixture(scope="module")
def models():
    """The same weights on the CPU, and with the first layer and the embedding on one device, the rest on another."""
    hf = build("llama")
    first = ("model.embed_tokens", "model.rotary_emb", "model.layers.0")
    second = ("model.layers.1", "model.layers.2", "model.norm", "lm_head")
    where = dict.fromkeys(first, "virtual:0") | dict.fromkeys(second, "virtual:1")
    one = wrap(copy.deepcopy(hf))
    with va.present(devices=2):
        spread = dispatch_model(hf, where, main_device="virtual:0", force_hooks=True)
        yield one, wrap(spread)


def captured(model):
    for positions in ("last", "all"):
        found = capture(model, IDS, SITES, positions=positions)
        yield from (found[site] for site in SITES)


def edited(model):
    direction, mean = torch.linspace(-1, 1, model.width), torch.ones(3, 4, 8)
    edits = [
        HeadAblation(((0, 1), (2, 3))),
        HeadAblation(((0, 1), (2, 3)), "mean", mean),
        HeadAblation(((0, 1), (2, 3)), "uniform"),
        HeadScale(((0, 0), (1, 2)), (2.0, -1.0)),
        Patch(Site("resid_post", 1), direction, (-1,)),
        ProjectOut(Site("resid_post", 2), direction),
        Steer(Site("resid_post", 0), direction, 2.0),
        KnockOut((0, 2), ((0,), (1,), (1, 2))),
        DualRun(((0, 1), (2, 0)), 0.5),
    ]
    yield from (logits(model, IDS, edits=[edit]) for edit in edits)


def effects(model):
    for measure in (patching.direct_effects, patching.total_effects, patching.direct_mlp_effects):
        yield measure(model, IDS, DONORS, TOKENS).change()
    yield patching.attribution(model, IDS, DONORS, TOKENS)
    yield patching.activation_patching(model, IDS[:1], DONORS[:1], TOKENS[:1], "resid_post").change()
    yield patching.head_patching(model, IDS[:1], DONORS[:1], TOKENS[:1]).change()
    yield head_to_head(model, IDS, DONORS, TOKENS, receiver=(2, 1), through="k").change()


def decoded(model):
    yield from map(torch.tensor, greedy(model, IDS, max_new_tokens=6))
    yield from map(torch.tensor, greedy(model, IDS, max_new_tokens=4, edits=[HeadAblation(((0, 1), (2, 3)))]))
    found = sample(model, IDS, samples=3, max_new_tokens=6, seed=1)
    yield from (found.ids, found.lengths, found.steps)
    yield from score(model, IDS[:2], IDS[1:])


def read(model):
    batch = pad(IDS, pad_id=0, device=model.device)
    with torch.no_grad(), observe(model, lambda _, weights: weights, rows="all") as rows:
        model.forward(batch)
    yield from (rows[layer][i, :, : len(ids), : len(ids)] for layer in range(3) for i, ids in enumerate(IDS))
    yield mean_head_outputs(model, IDS)
    yield from map(torch.as_tensor, token_losses(model, IDS))
    gates = fit_gates(model, IDS, [3, 4, 5], steps=2)
    yield from (gates.free, gates.kept, gates.removed)


@pytest.mark.parametrize("what", [captured, edited, effects, decoded, read])
def test_a_spread_model_gives_the_numbers_of_one_device(models, what):
    expected, found = (list(what(model)) for model in models)
    assert len(expected) == len(found) > 2
    for one, two in zip(expected, found):
        torch.testing.assert_close(two.cpu(), one, atol=2e-5, rtol=1e-5, equal_nan=True)


def test_what_is_read_after_a_kept_past_is_the_same_on_two_devices(models):
    def after(model):
        past = prefill(model, [[1, 5, 9], [1, 7]], None, room=4)
        return feed(model, [[13, 20], [3]], past.first(3).pick([1, 0]))[1]

    expected, found = map(after, models)
    torch.testing.assert_close(found.cpu(), expected, atol=2e-5, rtol=1e-5)
