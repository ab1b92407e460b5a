"""circuit-copy-gqa: the copy circuit in a Llama with rotary positions, shared key/value heads and a BOS token.

Same task and data as circuit-copy. Four query heads share two key/value heads (query head h reads number h // 2).
The value of key/value head 1 is permuted, so a wrong assignment of query heads copies wrong words. Layer 1:
1.0 looks at BOS (score 0); 1.1 is the copy head (score 1); 1.2 looks at the earlier occurrence of the current token
(score 0); 1.3 looks where 1.1 looks when the current token has an even id, else at BOS (score 0.5).
Layer 0: heads 0 and 2 write the previous token (twins in different key/value groups), 0.1 looks at BOS, 0.3 at itself.

Rotary positions do two jobs. Coordinate pairs that turn fast give "one position back": a constant key, and a constant
query turned back by one position, have score sum_i cos(w_i (distance - 1)). Pairs that turn slowly (less than 1e-5 over
the whole context) carry content. The base of the rotation is set so large that both kinds exist in one head. RMSNorm is
the identity by the device of `gpt2.py`: epsilon 2^40 and weight 2^20.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.organisms.circuits.copying import CONTEXT, save_circuit, unembedding, vocabulary
from workbench.organisms.circuits.gpt2 import BOS, EOS, PAD, SHARP, bits, layout, matrix

HEADS, KV_HEADS, D_HEAD = 4, 2, 128
BASE = 1e24  # pair i of 64 turns by 10^(-0.375 i) per position
FAST, SLOW = 8, 26  # pairs below FAST measure distance, pairs from SLOW on carry content
TOKEN_BITS = 8


def build(name: str, place: Path) -> None:
    words = vocabulary(bos=True)
    vocab = len(words)
    f, n = layout(token=vocab, code=TOKEN_BITS, previous=TOKEN_BITS, out=vocab, one=1, bos=1, scratch=8)
    model = _blank(words, n)

    codes = bits(torch.arange(vocab), TOKEN_BITS)
    tokens = matrix(vocab, n, (slice(None), f["token"], 1.0), (slice(None), f["code"], codes))
    tokens[:, f["one"]] = 1.0
    tokens[words.index(BOS), f["bos"]] = 1.0
    model.model.embed_tokens.weight.copy_(tokens)

    content = torch.cat([torch.arange(SLOW, D_HEAD // 2), torch.arange(D_HEAD // 2 + SLOW, D_HEAD)])
    own, before, bos = content[:TOKEN_BITS], content[TOKEN_BITS : 2 * TOKEN_BITS], content[2 * TOKEN_BITS :][:1]

    def to(feature: str, where: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """[n, D_HEAD]: a feature onto coordinates of the head."""
        out = torch.zeros(n, D_HEAD)
        out[f[feature], where] = gain if isinstance(gain, Tensor) else gain * torch.eye(len(where))
        return out

    # every key/value head offers the same keys: constant fast pairs, own code, code of the previous token, BOS
    fast = torch.arange(FAST)
    still = to("one", fast, torch.ones(1, FAST))
    keys = still + to("code", own) + to("previous", before) + to("bos", bos)

    def distance(back: int, gain: float) -> Tensor:
        """Query with score gain * sum_i cos(w_i (distance - back)): prefers `back` positions before if gain > 0."""
        angle = -back * BASE ** (-2 * fast / D_HEAD)
        return gain * (to("one", fast, angle.cos()[None]) + to("one", fast + D_HEAD // 2, angle.sin()[None]))

    shuffle = torch.eye(vocab)[torch.randperm(vocab, generator=torch.Generator().manual_seed(0))]
    read_token = torch.zeros(n, D_HEAD)
    read_token[f["token"], :vocab] = torch.eye(vocab)
    shuffled = torch.zeros(n, D_HEAD)
    shuffled[f["token"], :vocab] = shuffle
    for layer in range(2):
        attention = model.model.layers[layer].self_attn
        attention.k_proj.weight.copy_(torch.cat([keys, keys], dim=1).T)
        attention.v_proj.weight.copy_(torch.cat([read_token, shuffled], dim=1).T)

    def head(layer: int, number: int, query: Tensor, output: Tensor) -> None:
        """query [n, D_HEAD] gives the score itself; output [vocab, n] maps a copied token to features."""
        attention = model.model.layers[layer].self_attn
        rows = slice(number * D_HEAD, (number + 1) * D_HEAD)
        attention.q_proj.weight[rows] = query.T * D_HEAD**0.5
        attention.o_proj.weight[:, rows][:, :vocab] = ((shuffle.T if number >= 2 else torch.eye(vocab)) @ output).T

    noise = matrix(
        vocab, n, (slice(None), f["scratch"], torch.randn(vocab, 8, generator=torch.Generator().manual_seed(1)))
    )
    previous = matrix(vocab, n, (slice(None), f["previous"], codes))
    previous[words.index(BOS)] = 0
    at_bos = to("one", bos, torch.full((1, 1), SHARP))
    head(0, 0, distance(1, SHARP), previous)
    head(0, 1, at_bos, noise)
    head(0, 2, distance(1, SHARP), previous)
    head(0, 3, distance(0, SHARP), noise)

    # Codes of different tokens differ in at least one bit. The slot of the previous token holds its code twice (once
    # per twin), so a match scores 16 and the next best token at most 12 (8 and 6 with one twin masked).
    attend = torch.ones(vocab, 1)
    attend[words.index(".")] = 0  # a full stop looks nowhere
    even = attend * (torch.arange(vocab) % 2 == 0).float()[:, None]
    head(1, 0, at_bos, noise)
    head(1, 1, to("token", before, attend * codes * SHARP / 2), matrix(vocab, n, (slice(None), f["out"], 1.0)))
    # the same token, but not here: the code outweighs every distance
    head(1, 2, to("token", own, 20 * SHARP * codes) + distance(0, -2 * SHARP), noise)
    # BOS beats the zeros of an odd token and loses to a match
    head(1, 3, to("token", before, even * codes * SHARP) + 4 * at_bos, noise)

    model.lm_head.weight.copy_(unembedding(words, f, n))
    truth = {
        "kv_group": {f"{layer}.{h}": h // (HEADS // KV_HEADS) for layer in (0, 1) for h in range(HEADS)},
    }
    save_circuit(name, place, model, words, copy_head="1.1", half_head="1.3", twins=["0.0", "0.2"], extra=truth)


def _blank(words: list[str], width: int) -> LlamaForCausalLM:
    """A Llama whose weights are zero and whose norms change nothing."""
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=4,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=D_HEAD,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=2.0**40,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
        tie_word_embeddings=False,
        bos_token_id=words.index(BOS),
        eos_token_id=words.index(EOS),
        pad_token_id=words.index(PAD),
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.fill_(2.0**20 if "norm" in name else 0.0)
    return model
