"""Memory reckoned from shapes, against what PyTorch allocates for the same model with numbers."""

import copy

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

from tests import virtual_accelerator as va
from tests.support.architectures import CONFIGS
from workbench.engine.capture import capture
from workbench.engine.draws import row_keys, step_keys
from workbench.engine.hf import stream
from workbench.engine.sampling import Rule, step
from workbench.models import memory
from workbench.models.attention import NAME
from workbench.models.loading import load, wrap

WIDE = {
    "hidden_size": 128,
    "n_embd": 128,
    "intermediate_size": 352,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "head_dim": 32,
    "sliding_window": 48,
}
ROWS, TOKENS = 3, 192
CPU = [torch.profiler.ProfilerActivity.CPU]


def made(name: str, dtype=torch.float32):
    """The footprint of a model of that architecture, and the model with numbers."""
    config = CONFIG_MAPPING[name](**{key: WIDE.get(key, value) for key, value in CONFIGS[name].items()})
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype).eval()
    real = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    return memory.footprint_of(empty), real


def allocated(act) -> int:
    """The most bytes that were allocated at once during act(), as PyTorch's own profiler has it."""
    with torch.no_grad(), torch.profiler.profile(activities=CPU, profile_memory=True) as profile:
        act()
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


# grouped keys; windows; two of four experts; tied embeddings; soft-capped scores; attention that is computed as it is
@pytest.mark.parametrize("name", ["llama", "mistral", "mixtral", "gpt2", "gemma2", "falcon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_of_a_pass_are_what_pytorch_allocates(name, dtype):
    of, real = made(name, dtype)
    if name != "falcon":
        real.set_attn_implementation(NAME)
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.long)
    really = allocated(lambda: real(input_ids=ids, use_cache=False, logits_to_keep=1))
    assert of.activations(ROWS, TOKENS) == pytest.approx(really, rel=0.15)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "falcon", "gpt2"])
def test_keys_and_values_are_those_of_each_kind_of_layer(name):
    of, real = made(name)
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.long)
    for windows, cache in ((True, DynamicCache(config=real.config)), (False, DynamicCache())):
        with torch.no_grad():
            real(input_ids=ids, past_key_values=cache, use_cache=True)
        held = sum(state.numel() * 4 for layer in cache.layers for state in (layer.keys, layer.values))
        assert of.cache(ROWS, TOKENS, windows=windows) == held


def test_scores_of_positions_are_counted_in_the_models_dtype_and_in_float32():
    of, real = made("llama", torch.bfloat16)
    scores = real(input_ids=torch.zeros(1, 5, dtype=torch.long)).logits
    assert of.positions(5) == scores.nbytes + scores.float().nbytes


@pytest.mark.parametrize("rule", [Rule(), Rule(top_p=0.9), Rule(temperature=0.7, top_p=0.9)])
def test_the_statistics_of_a_step_hold_no_more_copies_of_its_scores_than_are_counted(rule):
    scores = torch.randn(32, 32000, generator=torch.Generator().manual_seed(0))  # flat: what takes most
    keys = step_keys(row_keys(0, list(range(32)), [0] * 32, device="cpu"), 0)
    assert 2 * scores.nbytes < allocated(lambda: step(scores, rule, keys=keys)) <= memory.STEP * scores.nbytes


def test_a_batch_takes_its_share_of_what_is_free_at_least_a_row_and_not_without_end():
    of, _ = made("llama")
    row = of.activations(1, 64) + of.positions(1)
    asked = {"longest": 64, "usual": 640, "caches": False}
    assert memory.tokens_that_fit(of, round(7.5 * row / memory.SHARE), **asked) == 7 * 64
    assert memory.tokens_that_fit(of, 0, **asked) == 64
    assert memory.tokens_that_fit(of, 10**15, **asked) == memory.MORE * 640
    for more in ({"caches": True}, {"captured": row}):
        assert memory.tokens_that_fit(of, round(7.5 * row / memory.SHARE), **(asked | more)) < 7 * 64


def test_batches_on_an_accelerator_are_as_large_as_its_memory_allows_and_on_a_cpu_as_ever(monkeypatch):
    _, real = made("llama")
    model = wrap(real)
    assert model.planned_tokens(8192, longest=64) == 8192
    ids = [[1 + i % 60 for i in range(64)]] * 40
    with va.present(memory=32 * 2**20) as module:
        model.hf.to("virtual")
        try:
            free = module.mem_get_info()[0]
            row = model._footprint.activations(1, 64) + model._footprint.positions(1) + 4 * 128
            fits = int(memory.SHARE * free / row)
            assert 1 < fits < 40
            sizes = [len(rows) for rows, _, _ in stream(model, ids, ["resid_post.1"])]
            assert sizes[0] == fits  # none ran out of memory and was halved
            found = capture(model, ids, ["resid_post.1"], positions="all")["resid_post.1"]
            with pytest.raises(torch.OutOfMemoryError):
                module_pass(model, ids * 8)
        finally:
            model.hf.to("cpu")
    torch.testing.assert_close(found, capture(model, ids, ["resid_post.1"], positions="all")["resid_post.1"])


def module_pass(model, ids) -> None:
    """All of them at once, which has no room."""
    with torch.no_grad():
        model.hf(input_ids=torch.tensor(ids, device="virtual"), use_cache=False)


def test_weights_are_those_of_the_files_in_the_dtype_that_is_asked_for(tiny_llama):
    from workbench.models.precision import weight_bytes

    hf = load(str(tiny_llama)).hf
    assert weight_bytes(tiny_llama, "float32") == sum(weight.nbytes for weight in hf.parameters())
    assert weight_bytes(tiny_llama, "bfloat16") == sum(weight.nbytes for weight in hf.parameters()) // 2
