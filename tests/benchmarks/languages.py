"""Words of several languages at every layer, against one forward per word with all hidden states and a full softmax of
each layer at each of its tokens."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.benchmarks.timing import interleaved, row
from workbench.engine.layer_scores import layer_scores
from workbench.models.loading import wrap

# words of the vocabulary, width, layers, prompts, tokens of each, candidates of each, tokens of a candidate
SCALES = {
    "small": (32_000, 256, 8, 4, 72, 12, 3),
    "8b": (128_256, 4096, 32, 8, 72, 12, 3),
    "tiny": (512, 16, 2, 2, 24, 6, 2),
}


def model_of(words: int, width: int, layers: int, device: str):
    """A Llama with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(2, width // 64),
        num_key_value_heads=max(2, width // 64),
        max_position_embeddings=512,
    )
    return wrap(LlamaForCausalLM(config).eval().to(device))


def measure(device: str = "cpu", scale: str = "small", rounds: int = 5) -> dict:
    """Candidates per second: the log-probability of each at every layer."""
    words, width, layers, prompts, length, candidates, tokens = SCALES[scale]
    model = model_of(words, width, layers, device)
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> list:
        return torch.randint(3, words, shape, generator=draw).tolist()

    asked, said = some(prompts, length), some(prompts, candidates, tokens)

    @torch.no_grad()
    def reference() -> np.ndarray:
        found = []
        for prompt, own in zip(asked, said):
            for word in own:
                ids = torch.tensor([[*prompt, *word[:-1]]], device=device)
                out = model.hf(input_ids=ids, output_hidden_states=True, use_cache=False)
                target = torch.tensor(word, device=device)[:, None]
                each = []
                for depth, states in enumerate(out.hidden_states[1:]):  # the last comes after the final norm
                    last = depth == layers - 1
                    read = states if last else model.hf.model.norm(states)
                    log_p = model.hf.lm_head(read[0, length - 1 :]).float().log_softmax(-1)
                    each.append(log_p.gather(1, target).sum())
                found.append(torch.stack(each).cpu())
        return torch.stack(found).numpy()

    def ours() -> np.ndarray:
        wanted: dict[tuple[int, ...], list[int]] = {}
        for prompt, own in zip(asked, said):
            for word in own:
                for k, token in enumerate(word):
                    wanted.setdefault((*prompt, *word[:k]), []).append(token)
        contexts = list(wanted)
        scores = layer_scores(model, contexts, [wanted[context] for context in contexts])
        of = {
            (context, token): one.log_p[0, :, k]
            for context, one in zip(contexts, scores)
            for k, token in enumerate(wanted[context])
        }
        products = [
            sum(of[(*prompt, *word[:k]), token] for k, token in enumerate(word))
            for prompt, own in zip(asked, said)
            for word in own
        ]
        return np.stack(products)

    apart = float(np.abs(ours() - reference()).max())
    if apart > 1e-3:
        raise AssertionError(f"Log-probabilities of words are {apart} nats apart: no speed is reported")
    seconds = interleaved({"reference": reference, "ours": ours}, rounds=rounds, device=device)
    return row(
        "words at every layer",
        "words/s",
        seconds,
        prompts * candidates,
        f"max difference {apart:.0e}",
        reference="one forward a word, a full softmax of every layer at each token",
        words=words,
        width=width,
        layers=layers,
        candidates=candidates,
    )
