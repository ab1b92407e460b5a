"""An autoencoder's own conventions: activations are what TransformerLens' processed copy gives, texts are fed as in
training, and what cannot be kept is refused or said."""

import numpy as np
import pytest
import torch

from tests.sae.test_formats import random
from tests.sae.test_sae import make
from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine.capture import capture
from workbench.models.loading import wrap
from workbench.sae import load as saes
from workbench.sae.conventions import feed_of, lengths_warned, obey

CENTRED = {"center_writing_weights": True}


@pytest.fixture(scope="module")
def gpt2():
    """A GPT-2 whose norms have gains and biases of their own."""
    hf = build("gpt2")
    with torch.no_grad():
        for i, (name, parameter) in enumerate(hf.named_parameters()):
            if "ln_" in name:
                parameter.add_(random(*parameter.shape, seed=i))
    return wrap(hf)


@pytest.fixture(scope="module")
def llama():
    hf = build("llama")
    with torch.no_grad():
        for i, (name, parameter) in enumerate(hf.named_parameters()):
            if "norm" in name:
                parameter.add_(random(*parameter.shape, seed=i).abs())
    return wrap(hf)


def centred_copy(model):
    """The model with all that writes to the stream centred, as TransformerLens does it; logits stay."""
    import copy

    hf = copy.deepcopy(model.hf)
    with torch.no_grad():
        body = hf.transformer
        rows = [body.wte.weight, body.wpe.weight]
        for block in body.h:
            for written in (block.attn.c_proj, block.mlp.c_proj):  # Conv1D: [in, out]
                rows += [written.weight, written.bias]
        for weight in rows:
            weight -= weight.mean(-1, keepdim=True)
    return wrap(hf)


IDS = [[5, 9, 3, 20, 11], [7, 2, 30]]


@pytest.mark.parametrize("site", ["resid_pre.1", "resid_post.0", "attn_out.1", "mlp_out.1"])
def test_centred_writing_weights_are_the_plain_activations_without_their_mean(tmp_path, gpt2, site):
    hook = {"resid_pre": "hook_resid_pre", "resid_post": "hook_resid_post", "attn_out": "hook_attn_out"}
    kind, layer = site.split(".")
    name = f"blocks.{layer}.{hook.get(kind, 'hook_mlp_out')}"
    made = saes.load(make(tmp_path, "jumprelu", d_in=gpt2.width, hook=name, model_from_pretrained_kwargs=CENTRED))
    x = capture(gpt2, IDS, [site], positions="all")[site]
    there = capture(centred_copy(gpt2), IDS, [site], positions="all")[site]
    assert float((x - there).abs().max()) > 1e-2
    with pytest.raises(InputError, match="hold it against the model first"):
        made.encode(x)
    ready, said = obey(made, gpt2)
    assert said == [] and made.frame is None
    with torch.no_grad():
        torch.testing.assert_close(ready.encode(x).dense(), made.inner.encode(there), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ready.decode(ready.encode(x), x), made.inner(there), atol=1e-4, rtol=1e-4)
        mean = x.mean(-1, keepdim=True)
        torch.testing.assert_close(ready.reconstruct(x), made.inner(there) + mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ready.target(x), there, atol=1e-4, rtol=1e-4)
    assert ready.describe()["conventions"]["center_writing_weights"] is True


def test_models_with_rms_norms_are_never_centred(tmp_path, llama):
    made = saes.load(
        make(tmp_path, d_in=llama.width, hook="blocks.1.hook_resid_pre", model_from_pretrained_kwargs=CENTRED)
    )
    x = capture(llama, IDS, ["resid_pre.1"], positions="all")["resid_pre.1"]
    ready, _ = obey(made, llama)
    torch.testing.assert_close(ready.encode(x).dense(), made.inner.encode(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_a_norm_gives_before_its_gain_is_what_is_read(tmp_path, kind, gpt2, llama):
    model = gpt2 if kind == "gpt2" else llama
    made = saes.load(make(tmp_path, "standard", d_in=model.width, hook="blocks.1.ln2.hook_normalized"))
    found = capture(model, IDS, ["mlp_in.1", "resid_mid.1"], positions="all")
    stream = found["resid_mid.1"].double()
    if kind == "gpt2":
        stream = stream - stream.mean(-1, keepdim=True)
    eps = 1e-5 if kind == "gpt2" else model.hf.config.rms_norm_eps
    normed = (stream / (stream.pow(2).mean(-1, keepdim=True) + eps).sqrt()).float()
    ready, _ = obey(made, model)
    torch.testing.assert_close(ready.target(found["mlp_in.1"]), normed, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ready.encode(found["mlp_in.1"]).dense(), made.inner.encode(normed), atol=1e-2, rtol=1e-2)
    back = ready.reconstruct(found["mlp_in.1"])
    torch.testing.assert_close(ready.frame.leave(made.inner(normed), normed), back, atol=1e-2, rtol=1e-2)


def test_a_gain_of_zero_cannot_be_undone(tmp_path):
    model = wrap(build("gpt2"))
    with torch.no_grad():
        model.hf.transformer.h[1].ln_2.weight[3] = 0
    made = saes.load(make(tmp_path, d_in=model.width, hook="blocks.1.ln2.hook_normalized"))
    with pytest.raises(InputError, match="zero in places"):
        obey(made, model)


def test_heads_without_their_value_biases_are_refused(tmp_path, gpt2):
    folded = {"fold_value_biases": True}
    made = saes.load(make(tmp_path, d_in=gpt2.width, hook="blocks.1.attn.hook_z", model_from_pretrained_kwargs=folded))
    with pytest.raises(InputError, match="without their value biases"):
        obey(made, gpt2)


class Tokens:
    """What `feed_of` asks of a model."""

    def __init__(self, prepends, bos):
        self.prepends_bos, self.bos_id, self.name = prepends, bos, "tokens"


@pytest.mark.parametrize(
    "wants, prepends, ids, fed, counted",
    [
        (True, False, [5, 6], [1, 5, 6], [False, True, True]),
        (True, True, [1, 5, 6], [1, 5, 6], [True, True, True]),
        (False, True, [1, 5, 6], [5, 6], [True, True]),
        (False, False, [5, 6], [5, 6], [True, True]),
        (None, True, [1, 5], [1, 5], [True, True]),
        (None, False, [5], [5], [True]),
    ],
)
def test_bos_is_put_in_front_or_taken_away_as_in_training(tmp_path, wants, prepends, ids, fed, counted):
    more = {} if wants is None else {"prepend_bos": wants}
    feed = feed_of(saes.load(make(tmp_path, **more)), Tokens(prepends, 1))
    found, mask = feed.apply(ids, np.ones(len(ids), bool))
    assert found == fed and mask.tolist() == counted


def test_a_tokenizer_without_bos_is_said_and_positions_that_were_not_trained_do_not_count(tmp_path):
    made = saes.load(make(tmp_path, prepend_bos=True, seqpos_slice=(1, 3)))
    from workbench.sae.conventions import texts_warned

    assert "has none" in texts_warned(made, Tokens(False, None))[0] and texts_warned(made, Tokens(False, 1)) == []
    found, mask = feed_of(made, Tokens(False, None)).apply([5, 6, 7, 8], np.ones(4, bool))
    assert found == [5, 6, 7, 8] and mask.tolist() == [False, True, True, False]


def test_texts_beyond_the_context_of_training_are_counted(tmp_path):
    made = saes.load(make(tmp_path, context_size=4))
    assert lengths_warned(made, [4, 2], "pool") == []
    assert "1 of 2 rows of the pool are longer than the 4 tokens" in lengths_warned(made, [5, 2], "pool")[0]


def test_what_is_recorded_and_what_is_not_stands_in_the_description(tmp_path):
    about = saes.load(make(tmp_path, prepend_bos=False, dataset_path="pile")).describe()
    assert about["conventions"]["prepend_bos"] is False and about["conventions"]["dataset_path"] == "pile"
    assert about["conventions"]["normalize_activations"] == "none"
    assert {"context_size", "seqpos_slice", "center_writing_weights"} <= set(about["conventions_unknown"])


@pytest.mark.parametrize(
    "odd",
    [
        {"prepend_bos": "yes"},
        {"context_size": 0},
        {"context_size": "long"},
        {"seqpos_slice": [1, 2, 0]},
        {"seqpos_slice": "all"},
        {"model_from_pretrained_kwargs": {"center_writing_weights": "maybe"}},
    ],
)
def test_a_convention_of_the_wrong_kind_is_refused_by_name(tmp_path, odd):
    with pytest.raises(InputError, match=next(iter(odd))):
        saes.load(make(tmp_path, **odd))
