"""Windows of layers switched off at the last position, against one plain pass of Hugging Face for each (eager,
float64), with hooks that set outputs to zero or cut the attention mask."""

# ruff: noqa: B023 (every hook runs within the turn of the loop that made it)

import copy
import itertools

import pytest
import torch

from tests.engine.test_patching import parts
from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine.edits import HeadAblation
from workbench.engine.layer_windows import CUT, Window
from workbench.engine.window_effects import window_effects
from workbench.models.loading import wrap

# full attention; a sliding window shorter than the prompts; post-norms, soft-caps and a window; parallel blocks
NAMES = ("llama", "mistral", "gemma2", "gpt_neox")
SOURCES = ((2, 6), (8,), ())  # of each prompt, inside a window of six tokens and outside it; nothing of the last
CLOSE = 1e-4
SIZE = 2


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    """(model, float64 copy, prompts of two lengths, tokens)."""
    hf = build(request.param)
    draw = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, 64, (n,), generator=draw).tolist() for n in (9, 12, 9)]
    exact = copy.deepcopy(hf).double().eval()
    return wrap(hf, None, name=request.param), exact, ids, [[5, 6], [7, 8], [9, 10]]


def attentions(hf):
    return (
        [b.attention for b in hf.gpt_neox.layers] if hasattr(hf, "gpt_neox") else [b.self_attn for b in hf.model.layers]
    )


@torch.no_grad()
def slow(hf, row, window, sources, ablated=()):
    """Last log-probabilities [V] of a plain pass with the window switched off, and these heads."""
    handles, layers = [], range(window.layer, window.layer + window.size)

    def zero(_m, _a, output):
        output = output.clone()
        output[:, -1] = 0
        return output

    def cut(_m, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        mask[..., -1, list(sources)] = torch.finfo(mask.dtype).min
        return args, kwargs | {"attention_mask": mask}

    def without(_m, args, head):
        x = args[0].clone()
        x[..., head * 8 : head * 8 + 8] = 0
        return (x, *args[1:])

    for layer in layers if window.what != CUT or sources else ():
        if window.what == CUT:
            handles.append(attentions(hf)[layer].register_forward_pre_hook(cut, with_kwargs=True))
        else:
            handles.append(parts(hf)[layer][window.what == "mlp_out"].register_forward_hook(zero))
    for layer, head in ablated:
        handles.append(parts(hf)[layer][0].register_forward_pre_hook(lambda m, a, h=head: without(m, a, h)))
    try:
        return hf(torch.tensor([row]), use_cache=False).logits[0, -1].log_softmax(-1)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("ablated", [(), ((1, 2),)])
def test_every_window_gives_the_log_probabilities_of_a_plain_pass_with_hooks(case, ablated):
    model, exact, ids, tokens = case
    windows = [
        Window(start, SIZE, what, SOURCES if what == CUT else ())
        for what, start in itertools.product(("attn_out", "mlp_out", CUT), range(model.n_layers - SIZE + 1))
    ]
    edits = (HeadAblation(ablated),) if ablated else ()
    found = window_effects(model, ids, tokens, windows, edits=edits)
    ours = found.patched_logits - found.patched_normaliser[..., None]
    change = 0.0
    for n, row in enumerate(ids):
        plain = slow(exact, row, Window(0, 0, "attn_out"), (), ablated)[tokens[n]]
        torch.testing.assert_close((found.logits - found.normaliser[:, None])[n].double(), plain, atol=CLOSE, rtol=0)
        for k, window in enumerate(windows):
            expected = slow(exact, row, window, SOURCES[n], ablated)[tokens[n]]
            torch.testing.assert_close(ours[n, k].double(), expected, atol=CLOSE, rtol=0)
            if window.what == CUT and SOURCES[n]:
                change = max(change, float((expected - plain).abs().max()))
    assert change > 0.01  # what is cut matters here


def test_a_window_that_does_not_fit_the_model_is_refused(case):
    model, _, ids, tokens = case
    with pytest.raises(InputError, match="3 layers"):
        window_effects(model, ids, tokens, [Window(2, 2, "mlp_out")])
    with pytest.raises(InputError, match="Position 20"):
        window_effects(model, ids, tokens, [Window(0, 1, CUT, ((20,), (), ()))])
