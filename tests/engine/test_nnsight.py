"""The nnsight engine gives the numbers of the hf engine."""

import pytest
import torch

from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine.capture import capture
from workbench.engine.edits import HeadAblation
from workbench.models.loading import load, wrap

IDS = [[1, 5, 9, 2, 40], [3, 4, 5], [17]]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "falcon"])
def test_nnsight_equals_hf_at_every_site(name):
    model = wrap(build(name), name=name)
    wanted = [
        "resid_pre.1",
        "head_out.0",
        "head_out.2",
        "head_out.1.3",
        "attn_out.1",
        "mlp_in.1",
        "mlp_hidden.1",
        "mlp_out.1",
        "resid_post.2",
        "final_norm",
        "logits",
    ]
    wanted += [] if model.anatomy.parallel_blocks else ["resid_mid.2"]
    for positions in ("last", "all"):
        ours = capture(model, IDS, wanted, positions=positions)
        theirs = capture(model, IDS, wanted, positions=positions, engine="nnsight")
        for site in wanted:
            torch.testing.assert_close(theirs[site], ours[site], atol=1e-5, rtol=0)


def test_nnsight_equals_hf_on_a_trained_model_and_under_edits(tiny_llama):
    model = load(str(tiny_llama))
    ids = [model.encode(t) for t in ("Once upon a time", "The cat sat on the mat")]
    for edits in ((), (HeadAblation(((1, 2), (3, 0))),)):
        ours = capture(model, ids, ["resid_post.4", "head_out.4", "logits"], edits=edits)
        theirs = capture(model, ids, ["resid_post.4", "head_out.4", "logits"], edits=edits, engine="nnsight")
        for site in ours:
            torch.testing.assert_close(theirs[site], ours[site], atol=1e-5, rtol=0)


def test_tracing_leaves_the_model_as_it_was(tiny_llama):
    model = load(str(tiny_llama))
    before = capture(model, [[1, 5, 9]], ["logits"])["logits"]
    capture(model, [[1, 5, 9]], ["resid_post.1"], engine="nnsight")
    assert torch.equal(capture(model, [[1, 5, 9]], ["logits"])["logits"], before)


def test_an_unknown_engine_is_refused(tiny_llama):
    with pytest.raises(InputError, match="not an engine"):
        capture(load(str(tiny_llama)), [[1]], ["resid_post.1"], engine="vllm")
