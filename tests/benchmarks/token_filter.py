"""Token filter: the sets of all layers from one pass against the obvious loop, one truncated forward per layer and
prompt; and the two stages of the method, filter and answer, against an answer from all tokens."""

from __future__ import annotations

import contextlib

import torch
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tests.benchmarks.timing import interleaved, row
from workbench.core.context import Context
from workbench.engine.generate import greedy
from workbench.engine.token_selection import select_tokens
from workbench.models import devices
from workbench.models.loading import wrap

NAME = "token filter"
# layers, width, heads, key/value heads, MLP width; needle prompts of the sweep: length, depths, needles;
# tokens of a long prompt, tokens kept, filter layer, tokens of the answer
SCALES = {
    "small": ((24, 128, 8, 4, 384), (480, (0, 50, 100), 2), (2048, 128, 9, 16)),
    "8b": ((32, 4096, 32, 8, 14336), (16384, (0, 50, 100), 2), (32768, 1024, 13, 32)),
}
VOCABULARY, KERNEL = 2048, 5


def measure(device: str = "cpu", scale: str = "small", rounds: int = 3) -> list[dict]:
    """Prompts per second. Gate: the sets of every layer are those of the loop, the answer that of plain Hugging Face
    from the same tokens."""
    model = random_llama(scale, device)
    return [sweep(model, device, scale, rounds), stages(model, device, scale, rounds)]


def sweep(model, device: str, scale: str, rounds: int) -> dict:
    """All layers of all prompts, as the probe does it."""
    from probes.token_filter.config import Config
    from probes.token_filter.selection import select
    from probes.token_filter.trials import read_trials
    from workbench.organisms.needles import own_needles

    length, depths, needles = SCALES[scale][1]
    options = {"lengths": (length,), "depths": depths, "needles": needles, "max_new_tokens": 16}
    config, context = Config(**options, k=(64,), retrieval="none"), Context(data=own_needles("organism"))
    found = read_trials(model, config, context)
    prompts, layers = [list(t.ids) for t in found.trials], range(model.n_layers)

    def ours():
        return select(model, config, context, found)

    def reference():
        return [[truncated(model.hf, ids, layer, 64) for layer in layers] for ids in prompts]

    selections, expected = ours(), reference()
    total = len(prompts) * len(layers)
    same = sum(
        selections.kept(i, layer, 64).tolist() == expected[i][layer] for i in range(len(prompts)) for layer in layers
    )
    if same < (total if device == "cpu" else 0.9 * total):
        raise AssertionError(f"{total - same} of {total} sets differ from the loop's: no speed is reported")
    seconds = interleaved({"reference": reference, "ours": ours}, rounds=rounds, device=device)
    agreement = "identical sets" if same == total else f"{same} of {total} sets identical (bfloat16)"
    return row(
        f"{NAME}: layer sweep",
        "prompts/s",
        seconds,
        len(prompts),
        agreement,
        reference="one truncated forward per layer and prompt",
        layers=len(layers),
        tokens=len(prompts[0]),
    )


def stages(model, device: str, scale: str, rounds: int) -> dict:
    """One long prompt answered: filter at a layer, then the whole model on the kept tokens."""
    size, keep, layer, new = SCALES[scale][2]
    ids = torch.randint(3, VOCABULARY, (size,), generator=torch.Generator().manual_seed(1)).tolist()

    def kept() -> list[int]:
        return select_tokens(model, [ids], layer=layer, keep=keep, kernel=KERNEL)[0]

    def ours():
        return greedy(model, [[ids[p] for p in kept()]], max_new_tokens=new, eos=False)[0]

    def plain(prompt: list[int]) -> list[int]:
        there = torch.tensor([prompt], device=model.device)
        how = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
        with torch.no_grad():
            return model.hf.generate(there, attention_mask=torch.ones_like(there), **how)[0, len(prompt) :].tolist()

    positions, expected = kept(), truncated(model.hf, ids, layer, keep)
    shared = len(set(positions) & set(expected))
    if device == "cpu" and (positions != expected or ours() != plain([ids[p] for p in positions])):
        raise AssertionError("the kept tokens or the answer differ from plain Hugging Face: no speed is reported")
    if shared < 0.95 * keep:
        raise AssertionError(f"only {shared} of {keep} kept tokens are those of the loop: no speed is reported")
    seconds = interleaved({"reference": lambda: plain(ids), "ours": ours}, rounds=rounds, device=device)
    details = {"tokens": size, "kept": keep, "filter_layer": layer, "new_tokens": new}
    if not devices.is_cpu(device):
        details["peak_memory_GiB"] = {"reference": peak(lambda: plain(ids)), "ours": peak(ours)}
    agreement = (
        "identical tokens kept and answered" if positions == expected else f"{shared} of {keep} tokens kept alike"
    )
    return row(
        f"{NAME}: two stages",
        "answers/s",
        seconds,
        1,
        agreement,
        reference="plain Hugging Face on all tokens (another answer)",
        **details,
    )


def peak(call) -> float:
    """GiB that a call takes at its height, of everything on a CUDA device."""
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() / 2**30


def random_llama(scale: str, device: str):
    """A random Llama (bfloat16 on a GPU) with the tokenizer of the organism."""
    from workbench.models.files import load_tokenizer
    from workbench.organisms import folder

    layers, width, heads, groups, mlp = SCALES[scale][0]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=mlp,
        vocab_size=VOCABULARY,
        max_position_embeddings=65536,
        initializer_range=0.05 if scale == "small" else 0.02,
    )
    with torch.device(device):
        hf = LlamaForCausalLM(config).to(torch.float32 if devices.is_cpu(device) else torch.bfloat16)
    return wrap(hf, load_tokenizer(folder("organism")), name="organism")


class _Keys:
    """What the attention of the last layer that runs leaves: its query and its keys."""

    query: torch.Tensor
    key: torch.Tensor


def _attend(module, query, key, value, attention_mask, **more):
    _Keys.query, _Keys.key = query[:, :, -1:], key
    return sdpa_attention_forward(module, query, key, value, attention_mask, **more)


AttentionInterface.register("benchmark-filter", _attend)
AttentionMaskInterface.register("benchmark-filter", sdpa_mask)


@contextlib.contextmanager
def attending(hf, name: str):
    before = hf.config._attn_implementation
    hf.set_attn_implementation(name)
    try:
        yield
    finally:
        hf.set_attn_implementation(before)


@torch.no_grad()
def truncated(hf, ids: list[int], layer: int, keep: int) -> list[int]:
    """The published algorithm on one prompt and layer: the decoder cut after the layer, products of the last query and
    the keys summed over heads, averaged over five tokens, the highest ones in the order of the text."""
    whole = hf.model.layers
    hf.model.layers = whole[: layer + 1]
    try:
        with attending(hf, "benchmark-filter"):
            hf.model(torch.tensor([ids], device=hf.device), use_cache=False)
    finally:
        hf.model.layers = whole
    keys = _Keys.key.repeat_interleave(_Keys.query.shape[1] // _Keys.key.shape[1], 1).float()
    scores = (_Keys.query.float() @ keys.mT)[:, :, 0].sum(1, keepdim=True)
    mean = torch.nn.functional.avg_pool1d(scores, KERNEL, stride=1, padding=KERNEL // 2)
    return sorted(mean[0, 0].topk(min(keep, len(ids))).indices.tolist())
