"""What observing costs: a plain forward pass of Hugging Face against the same pass with captures."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.benchmarks.timing import interleaved, row
from workbench.engine.hf import stream
from workbench.models.loading import wrap
from workbench.models.sites import sites

NAME = "capture"
# layers, width, heads, key/value heads, MLP width, vocabulary, prompts × tokens
SCALES = {"small": (8, 256, 8, 4, 768, 2048, 32, 256), "8b": (32, 4096, 32, 8, 14336, 128256, 8, 2048)}


def random_llama(scale: str, device: str) -> tuple:
    """A randomly initialised Llama of the scale's shape (bfloat16 on a GPU), and prompts for it."""
    layers, width, heads, groups, mlp, vocabulary, n, length = SCALES[scale]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=mlp,
        vocab_size=vocabulary,
        max_position_embeddings=65536,
    )
    with torch.device(device):
        hf = LlamaForCausalLM(config).to(torch.bfloat16 if device.startswith("cuda") else torch.float32)
    ids = torch.randint(3, vocabulary, (n, length), generator=torch.Generator().manual_seed(1)).tolist()
    return wrap(hf, name=f"random llama {scale}"), ids


def measure(device: str = "cpu", scale: str = "small", rounds: int = 9) -> list[dict]:
    """Tokens per second: the decoder's forward pass alone (no unembedding on either side) against the pass that is
    captured."""
    model, ids = random_llama(scale, device)
    tokens = sum(map(len, ids))
    batch_tokens = 8 * len(ids[0])
    inputs = torch.tensor(ids, device=device)
    last = model.n_layers - 1

    def plain() -> None:
        with torch.no_grad():
            for start in range(0, len(ids), 8):
                model.hf.model(inputs[start : start + 8], use_cache=False)

    def consume(wanted, positions) -> None:
        for _ in stream(model, ids, wanted, positions=positions, max_tokens=batch_tokens):
            pass

    out = []
    cases = [
        ("one residual site, every token", [f"resid_post.{last}"], "all"),
        ("all residual sites, last token", sites("resid_post", range(model.n_layers)), "last"),
    ]
    for name, wanted, positions in cases:
        agreement = agree(model, inputs, ids, wanted, positions)
        # the captured pass ends after the last block, the plain one after the final norm: a difference of well under 1
        # %
        seconds = interleaved(
            {"reference": plain, "ours": lambda w=wanted, p=positions: consume(w, p)}, rounds=rounds, device=device
        )
        out.append(
            row(
                f"capture: {name}",
                "tokens/s",
                seconds,
                tokens,
                agreement,
                reference="plain Hugging Face forward, nothing kept",
            )
        )
    return out


def agree(model, inputs: torch.Tensor, ids: list, wanted: list, positions: str) -> str:
    """The gate: captured equals `output_hidden_states` on the first prompts."""
    with torch.no_grad():
        states = model.hf.model(inputs[:8], use_cache=False, output_hidden_states=True).hidden_states
    worst = 0.0
    for indices, found, _ in stream(model, ids[:8], wanted, positions=positions):
        for site, value in found.items():
            if site.layer + 1 == model.n_layers:  # Hugging Face gives the last one only after the final norm
                value = model.final_norm(value)
            expected = states[site.layer + 1][indices]
            expected = expected[:, -1] if positions == "last" else expected.flatten(0, 1)
            worst = max(worst, float((value - expected).abs().max()))
    limit = 1e-4 if model.dtype == torch.float32 else 0.25
    if worst > limit:
        raise AssertionError(f"captured activations differ from Hugging Face by {worst}: no speed is reported")
    return f"max difference {worst:.0e}"
