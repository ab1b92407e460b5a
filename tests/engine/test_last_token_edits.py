"""Scores after edits of the last token are those of whole passes under the same edits, on every kind of attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine import last_token_edits as module
from workbench.engine.edits import HeadAblation
from workbench.engine.last_token_edits import last_token_scores
from workbench.engine.layer_scores import layer_scores
from workbench.engine.steering import Steer
from workbench.models.loading import wrap
from workbench.models.sites import Site

PROMPTS = [[1, *range(5, 5 + n)] for n in (9, 4, 9, 6, 1)]
WANTED = [[3, 9], [4], [63, 1, 2], [8], [7]]


def steers() -> list[tuple[Steer, ...]]:
    drawn = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return [(), *((Steer(Site("resid_post", k), 2 * vector, 1.0, (-1,)),) for k, vector in enumerate(drawn))]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2", "gpt_neox", "opt", "falcon", "bloom"])
def test_every_edit_gives_what_a_whole_pass_of_each_prompt_alone_gives(name, monkeypatch):
    model = wrap(build(name))
    ran: list[int] = []
    usual = module._after
    monkeypatch.setattr(module, "_after", lambda *a: ran.append(1) or usual(*a))
    found = last_token_scores(model, PROMPTS, WANTED, steers(), max_rows=2)
    assert len(ran) == 1 + 4 * 3 or name == "bloom"  # else whole passes would be compared with themselves
    for sets, edits in zip(found, steers()):
        for i, (row, tokens) in enumerate(zip(PROMPTS, WANTED)):
            alone = layer_scores(model, [row], [tokens], layers=[2], edits=edits)[0].log_p[0, 0]
            np.testing.assert_allclose(sets[i], alone, rtol=2e-4, atol=2e-4)
    assert not np.allclose(found[0][0], found[1][0], atol=1e-2)


def test_the_edits_of_the_pass_act_on_all_of_a_prompt():
    model = wrap(build("llama"))
    off = HeadAblation(((0, 1),))
    steer = steers()[2]
    found = last_token_scores(model, PROMPTS, WANTED, [(), steer], edits=(off,))
    for sets, edits in zip(found, [(off,), (off, *steer)]):
        for i, (row, tokens) in enumerate(zip(PROMPTS, WANTED)):
            alone = layer_scores(model, [row], [tokens], layers=[2], edits=edits)[0].log_p[0, 0]
            np.testing.assert_allclose(sets[i], alone, rtol=2e-4, atol=2e-4)


def test_a_model_that_does_not_go_on_exactly_is_given_whole_passes(monkeypatch):
    model = wrap(build("llama"))
    usual = module._after
    monkeypatch.setattr(module, "_after", lambda *a: usual(*a) + 1.0)
    found = last_token_scores(model, PROMPTS, WANTED, steers())
    alone = layer_scores(model, PROMPTS, WANTED, layers=[2])
    for mine, whole in zip(found[0], alone):
        np.testing.assert_allclose(mine, whole.log_p[0, 0], rtol=1e-4, atol=1e-4)


def test_an_edit_that_does_not_fit_is_refused():
    model = wrap(build("llama"))
    with pytest.raises(InputError, match="shape"):
        last_token_scores(model, PROMPTS, WANTED, [(Steer(Site("resid_post", 0), torch.ones(3)),)])
    with pytest.raises(InputError, match="5 prompts and 1 lists"):
        last_token_scores(model, PROMPTS, WANTED[:1], [()])
