"""A small GPT-2 whose tokenizer adds no BOS and whose first position carries a massive activation, as that of GPT-2,
Pythia and Qwen does; what a slow computation finds in it, with plain Hugging Face in float64 and masks by hand."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tests.support.tiny_llama import VOCABULARY, tokenizer

WIDTH, MASSIVE = 48, 400.0
WORDS = (
    "the a little big dog cat ball tree park sun mom dad Tom Lily ran saw liked found sat played and with near".split()
)
LOUD, HEAVY = "▁sea", "▁town"  # a word that is a sink beside common words and none beside heavy ones; a heavy word


def save(folder: Path, *, massive: float = MASSIVE) -> Path:
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(
        GPT2Config(
            n_embd=WIDTH, n_layer=3, n_head=4, vocab_size=VOCABULARY, n_positions=256, tie_word_embeddings=False,
            bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip
    made = tokenizer()
    made.backend_tokenizer.post_processor = processors.Sequence([])
    with torch.no_grad():
        wte, wpe = hf.transformer.wte.weight, hf.transformer.wpe.weight
        wte.copy_(torch.nn.functional.normalize(torch.randn(wte.shape), dim=1))
        direction = torch.nn.functional.normalize(torch.randn(WIDTH), dim=0)
        wpe[0] = massive * direction
        for word, size in ((LOUD, 16.0), (HEAVY, 4.0)):
            wte[made.convert_tokens_to_ids(word)] *= size
    hf.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def texts(n: int, seed: int = 0, low: int = 5, high: int = 30) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(low, high))) for _ in range(n)]


def ids_of(folder: Path, some: list[str]) -> list[list[int]]:
    made = AutoTokenizer.from_pretrained(folder)
    return [made(text)["input_ids"] for text in some]


def slow_states(folder: Path, ids: list[list[int]]) -> list[np.ndarray]:
    """The block outputs [layers, tokens, d] of every text, in float64, one text at a time."""
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    seen: list[torch.Tensor] = []
    for block in hf.transformer.h:
        block.register_forward_hook(
            lambda _m, _a, output: seen.append((output if isinstance(output, torch.Tensor) else output[0])[0])
        )
    out = []
    for row in ids:
        seen.clear()
        with torch.no_grad():
            hf(torch.tensor([row]))
        out.append(torch.stack(seen).numpy())
    return out


def slow_sinks(norms: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Which tokens of one text [T] are sinks: the rule, token by token."""
    counted = np.ones(len(norms), bool) if counted is None else counted
    median = float(np.median(norms))
    found = np.zeros(len(norms), bool)
    for t, norm in enumerate(norms):
        if not counted[t]:
            continue
        if t == 0 and counted.sum() > 1:
            found[t] = True
        if median > 0 and np.isfinite(norm) and norm > 10 * median:
            found[t] = True
    return found
