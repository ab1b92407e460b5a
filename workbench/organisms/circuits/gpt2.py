"""Writing weights into a GPT-2 so that every number it computes is known.

Three devices make the constructions exact while the architecture stays plain Hugging Face GPT-2:

1. *Norms that change nothing.* LayerNorm is (x - mean) / sqrt(var + eps) * gamma. With eps = 2^40 and gamma = 2^20
   (config field and weight, both ordinary) the variance of a residual of ordinary size vanishes beside eps in float32:
   1 / sqrt(var + eps) is 2^-20 and the norm is x - mean, exactly, as long as var < 2^16.
2. *Features in pairs.* A feature f is kept in two coordinates as (f, -f): written with weights (1, -1) and read with
   (1/2, -1/2). The mean of the residual is then 0, so the norms are the identity up to the rounding of that mean (about
   1e-8 of the largest feature); all these weights are powers of two, so nothing else is lost. Singular values and
   angles of head matrices are those of the feature matrices.
3. *Sharp attention.* Where a head has to look at one place only, its score leads by at least `SHARP`; exp(-SHARP) is 0
   in float32, so the attention weight is exactly 1.

Everything here speaks in features: matrices are [n_features, r] to read and [r, n_features] to write.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

SHARP = 120.0  # exp(-120) = 8e-53 is below the smallest float32
PAD, EOS, UNK, BOS = "<pad>", "<eos>", "<unk>", "<s>"
SPECIALS = (PAD, EOS, UNK)


def layout(**sizes: int) -> tuple[dict[str, slice], int]:
    """Name consecutive features: layout(token=10, one=1) -> ({"token": slice(0, 10), "one": slice(10, 11)}, 11)."""
    at, n = {}, 0
    for name, size in sizes.items():
        at[name] = slice(n, n + size)
        n += size
    return at, n


def matrix(rows: int, columns: int, *blocks: tuple[slice, slice, Tensor | float]) -> Tensor:
    """Zeros [rows, columns] with blocks filled in; a number stands for that number times the identity."""
    out = torch.zeros(rows, columns)
    for r, c, block in blocks:
        target = out[r, c]
        target += block * torch.eye(*target.shape) if not isinstance(block, Tensor) else block
    return out


def blank(
    words: Sequence[str], *, features: int, layers: int, heads: int, context: int, hidden: int = 4
) -> GPT2LMHeadModel:
    """A GPT-2 of width 2 x `features` whose weights are all zero and whose norms change nothing."""
    if 2 * features % heads:
        raise ValueError(f"{2 * features} coordinates do not divide into {heads} heads")
    config = GPT2Config(
        vocab_size=len(words),
        n_positions=context,
        n_embd=2 * features,
        n_layer=layers,
        n_head=heads,
        n_inner=hidden,
        activation_function="relu",
        layer_norm_epsilon=2.0**40,
        tie_word_embeddings=False,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=words.index(EOS),
        eos_token_id=words.index(EOS),
        pad_token_id=words.index(PAD),
    )
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.fill_(2.0**20 if ".ln_" in name and name.endswith("weight") else 0.0)
    return model


def write_embeddings(model: GPT2LMHeadModel, *, tokens: Tensor, positions: Tensor | None = None) -> None:
    """Token features [vocab, n] and position features [context, n]."""
    model.transformer.wte.weight.copy_(torch.cat([tokens, -tokens], dim=1))
    if positions is not None:
        model.transformer.wpe.weight.copy_(torch.cat([positions, -positions], dim=1))


def write_unembedding(model: GPT2LMHeadModel, rows: Tensor) -> None:
    """rows [vocab, n]: logit of token t = features . rows[t]."""
    model.lm_head.weight.copy_(torch.cat([rows, -rows], dim=1) / 2)


def write_head(
    model: GPT2LMHeadModel,
    layer: int,
    head: int,
    *,
    query: Tensor | None = None,
    key: Tensor | None = None,
    value: Tensor | None = None,
    output: Tensor | None = None,
) -> None:
    """Set one head: attention score = (f_query @ query) . (f_key @ key), output = (f @ value) @ output.

    query, key [n, r] and value [n, s], output [s, n] with r, s <= d_head. The score is the number that enters the
    softmax: the factor 1/sqrt(d_head) of the architecture is undone in the query weights.
    """
    attention = model.transformer.h[layer].attn
    width = model.config.n_embd
    d_head = width // model.config.n_head
    parts = ((query, d_head**0.5), (key, 1.0), (value, 1.0))
    for which, (part, scale) in enumerate(parts):
        if part is not None:
            start = which * width + head * d_head
            attention.c_attn.weight[:, start : start + part.shape[1]] = torch.cat([part, -part]) * (scale / 2)
    if output is not None:
        start = head * d_head
        attention.c_proj.weight[start : start + output.shape[0]] = torch.cat([output, -output], dim=1)


def write_mlp(model: GPT2LMHeadModel, layer: int, *, read: Tensor, write: Tensor) -> None:
    """features += relu(features @ read) @ write, with read [n, hidden] and write [hidden, n]."""
    mlp = model.transformer.h[layer].mlp
    mlp.c_fc.weight[:, : read.shape[1]] = torch.cat([read, -read]) / 2
    mlp.c_proj.weight[: write.shape[0]] = torch.cat([write, -write], dim=1)


def bits(numbers: Tensor, width: int) -> Tensor:
    """Binary code in +1/-1, [len(numbers), width]: equal numbers have product `width`, others at most `width` - 2."""
    return ((numbers[:, None] >> torch.arange(width)) & 1).float() * 2 - 1


def tokenizer(words: Sequence[str], *, context: int, ignored: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token per word or punctuation mark, BOS in front if `words` has it; strings in `ignored` are dropped."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    if len(set(words)) != len(words):
        raise ValueError(f"a word is listed twice: {sorted(w for w in set(words) if list(words).count(w) > 1)}")
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNK))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if ignored:
        raw.normalizer = normalizers.Sequence([normalizers.Replace(text, " ") for text in ignored])
    if BOS in words:
        raw.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=BOS if BOS in words else None,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def save(
    place: Path, model: PreTrainedModel, words: Sequence[str], truth: Mapping, *, ignored: Sequence[str] = (), **files
) -> None:
    """Write model, tokenizer, truth.json and the data files: lists of rows as .jsonl, strings as .txt."""
    from workbench.organisms.circuits import VERSION

    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.save_pretrained(place)
    model.generation_config.save_pretrained(place)
    save_file(model.state_dict(), place / "model.safetensors", metadata={"format": "pt"})
    tokenizer(words, context=model.config.max_position_embeddings, ignored=ignored).save_pretrained(place)
    data = {}
    for name, content in files.items():
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        data[name] = f"{name}.txt" if isinstance(content, str) else f"{name}.jsonl"
        (place / data[name]).write_text(text, encoding="utf-8")
    full = {"version": VERSION, **truth, "data": data}
    (place / "truth.json").write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")
