"""Passes, edits, generation, patching, autoencoders and the explorer give on a device what they give on the CPU."""

import numpy as np
import pytest
import torch

from tests import virtual_accelerator as va
from workbench import explore
from workbench.engine.capture import capture, logits
from workbench.engine.context_aware import context_aware
from workbench.engine.edits import HeadAblation, HeadScale, KnockOut, Patch, ProjectOut
from workbench.engine.evaluation import token_losses
from workbench.engine.generate import capture_generation, greedy, sample
from workbench.engine.head_gates import fit_gates
from workbench.engine.head_paths import head_to_head
from workbench.engine.patching import (
    activation_patching,
    attribution,
    direct_effects,
    direct_mlp_effects,
    head_patching,
    total_effects,
)
from workbench.engine.sampling import Rule
from workbench.engine.scoring import score
from workbench.engine.steering import Steer
from workbench.engine.token_by_token import token_by_token
from workbench.models.loading import load
from workbench.models.sites import Site
from workbench.sae import load as sae_files
from workbench.sae.train import SaeRecipe, train

IDS = [[1, *range(300 + 7 * i, 300 + 7 * i + n)] for i, n in enumerate((5, 9, 3, 9))]
OTHER = [[1, *range(400 + 3 * i, 400 + 3 * i + n)] for i, n in enumerate((5, 9, 3, 9))]
TOKENS = [(301, 402)] * len(IDS)
UP = torch.linspace(-1, 1, 64)


@pytest.fixture(scope="module")
def models(tiny_llama):
    """(on the CPU, on a device)"""
    with va.present():
        yield tuple(load(str(tiny_llama), device=device, dtype="float32") for device in ("cpu", "virtual"))


def flat(found) -> list:
    """Tensors, numbers and lists of whatever a function gives, in order."""
    if isinstance(found, torch.Tensor):
        return [found.detach().cpu().double().numpy()]
    if isinstance(found, np.ndarray):
        return [found]
    if isinstance(found, dict):
        return [x for key in found for x in flat(found[key])]
    if isinstance(found, (list, tuple)):
        return [x for part in found for x in flat(part)]
    if hasattr(found, "__dataclass_fields__"):
        return [x for name in found.__dataclass_fields__ for x in flat(getattr(found, name))]
    return [np.asarray(found)] if isinstance(found, (int, float, bool)) else []


@pytest.mark.parametrize(
    "act",
    [
        lambda m: capture(m, IDS, ["resid_pre.0", "attn_out.1", "mlp_out.1", "head_out.3"], positions="all"),
        lambda m: capture(m, IDS, ["resid_post.1", "final_norm"], positions="mean", engine="nnsight"),
        lambda m: logits(m, IDS),
        lambda m: token_losses(m, IDS),
        lambda m: greedy(m, IDS, max_new_tokens=6, eos=False),
        lambda m: sample(m, IDS, samples=2, max_new_tokens=5, rule=Rule(temperature=0.8, top_p=0.9), seed=3),
        lambda m: list(token_by_token(m, IDS[0], max_new_tokens=5, rule=Rule(temperature=1.0), seed=1)),
        lambda m: capture_generation(m, IDS, ["resid_post.1"], max_new_tokens=3),
        lambda m: score(m, IDS, OTHER, rule=Rule(temperature=1.0)),
        lambda m: context_aware(m, IDS, OTHER, weight=0.5, max_new_tokens=3),
        lambda m: direct_effects(m, IDS, OTHER, TOKENS),
        lambda m: direct_mlp_effects(m, IDS, OTHER, TOKENS),
        lambda m: total_effects(m, IDS, OTHER, TOKENS),
        lambda m: attribution(m, IDS, OTHER, TOKENS),
        lambda m: head_patching(m, IDS, OTHER, TOKENS),
        lambda m: activation_patching(m, IDS[:1], OTHER[:1], TOKENS[:1], "resid_pre"),
        lambda m: head_to_head(m, IDS, OTHER, TOKENS, receiver=(3, 1), through="v"),
        lambda m: fit_gates(m, IDS, [301] * len(IDS), steps=3),
    ],
)
def test_a_pass_gives_the_numbers_of_the_cpu(models, act):
    here, there = (flat(act(model)) for model in models)
    assert here and len(here) == len(there)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "edit",
    [
        HeadAblation(((1, 0), (2, 3))),
        HeadAblation(((1, 0),), "mean", torch.ones(5, 8, 8)),
        HeadScale(((1, 0),), 0.5),
        Patch(Site("resid_post", 1), UP, (-1,)),
        ProjectOut(Site("resid_post", 1), UP),
        KnockOut((1, 2), ((1, 2),) * len(IDS)),
        Steer(Site("resid_post", 1), UP, 2.0),
    ],
    ids=lambda edit: type(edit).__name__,
)
def test_an_edited_pass_gives_the_numbers_of_the_cpu(models, edit):
    here, there = (logits(model, IDS, edits=[edit]) for model in models)
    assert not torch.allclose(here, logits(models[0], IDS), atol=1e-4), "the edit does nothing"
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)
    assert greedy(models[1], IDS, max_new_tokens=3, edits=[edit]) == greedy(
        models[0], IDS, max_new_tokens=3, edits=[edit]
    )


def test_an_autoencoder_is_trained_and_read_on_a_device_as_on_the_cpu(models, tmp_path):
    recipe = SaeRecipe(site="resid_post.2", width="2x", k=4, tokens=128 * 6, batch=64)
    texts = [[1, *((torch.arange(40) * (7 + i)) % 500 + 3).tolist()] for i in range(12)]
    reports = [train(model, texts, tmp_path / str(model.device), recipe) for model in models]
    assert reports[1]["explained_variance"] == pytest.approx(reports[0]["explained_variance"], abs=1e-4)
    states = capture(models[0], texts, ["resid_post.2"], positions="all")["resid_post.2"]
    here, there = (
        sae_files.load(tmp_path / "cpu", device=device).encode(states.to(device)) for device in ("cpu", "virtual")
    )
    assert there.value.device.type == "virtual" and len(here.value) > len(states)
    dense = [
        torch.zeros(len(states), 128).index_put_((rows.row.cpu(), rows.feature.cpu()), rows.value.cpu())
        for rows in (here, there)
    ]  # which feature of a row comes first is nobody's promise
    torch.testing.assert_close(dense[1], dense[0], rtol=1e-5, atol=1e-5)


PANELS = {
    "lens": lambda view: view.lens(),
    "waterfall": lambda view: view.waterfall(heads=4),
    "direct effects": lambda view: view.direct_effects(),
    "heads": lambda view: view.heads(),
    "steps": lambda view: view.steps(most=3),
    "patterns": lambda view: view.patterns(layer=1),
    "patch map": lambda view: view.patch_map("Then the cat saw a dog"),
    "paths": lambda view: view.paths("Then the cat saw a dog", (3, 1)),
    "difference": lambda view: view.difference(view.switched(heads=[(1, 0)], mlps=[2])),
}


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_of_the_explorer_shows_the_numbers_of_the_cpu(models, panel):
    here, there = (PANELS[panel](explore(model, "Then the cat saw a bird"))[0] for model in models)
    assert here.height and here.columns == there.columns and here.height == there.height
    for name in here.columns:
        if here[name].dtype.is_float():
            np.testing.assert_allclose(
                there[name].to_numpy(), here[name].to_numpy(), rtol=1e-4, atol=1e-5, err_msg=name
            )
        else:
            assert there[name].to_list() == here[name].to_list(), name
