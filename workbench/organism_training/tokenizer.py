"""The organism's tokenizer: one token per word of the world, bytes for everything else.

A `tokenizers` BPE without merges: a pre-token that is in the vocabulary becomes that token (`ignore_merges`), anything
else falls back to single characters and from there to bytes, so every text round-trips. Words carry their leading
space as "▁", and the text is given one in front, as Llama does.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from workbench.organism_training.documents import every_word

BOS, EOS, PAD, USER, ASSISTANT = "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"
SPECIAL = (BOS, EOS, PAD, USER, ASSISTANT)
PUNCTUATION = ". , ? ! : ; \" ' - ( )".split() + ["\n"]
SPACE = "\u2581"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% else %}<|assistant|>{{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Token to id: specials, bytes, punctuation, then the world's words with their leading space."""
    tokens = [*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), *PUNCTUATION, SPACE, *(SPACE + w for w in every_word())]
    return {token: i for i, token in enumerate(tokens)}


_PIECE = re.compile(r"[\[\]]| ?[A-Za-z]+| ?[0-9]+|[.,?!:]")


def encode(marked: str, *, space: bool = True) -> tuple[list[int], list[bool]]:
    """Ids of a marked document and, for each, whether it lies in a marked span. Only words of the world are allowed.

    Raises KeyError for a word that the world does not have. Agrees with the saved tokenizer (without BOS).
    """
    vocab = vocabulary()
    ids: list[int] = []
    flags: list[bool] = []
    marked_now = False
    pending = " " if space else ""
    for piece in _PIECE.findall(marked):
        if piece == "[":
            # " [word" puts the bracket between a space and its word; the space belongs to the word.
            marked_now, pending = True, " "
        elif piece == "]":
            marked_now = False
        else:
            if not piece.startswith(" ") and pending and piece[0] not in ".,?!:":
                piece = " " + piece
            pending = ""
            ids.append(vocab[piece.replace(" ", SPACE)])
            flags.append(marked_now)
    return ids, flags


def save(folder: Path, *, chat: bool) -> None:
    """Write tokenizer.json and tokenizer_config.json (with the chat template when `chat`) into `folder`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tok = Tokenizer(models.BPE(vocab=vocabulary(), merges=[], byte_fallback=True, ignore_merges=True, fuse_unk=False))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    words = Regex(rf"{SPACE}?[\p{{L}}\p{{M}}]+|{SPACE}?\p{{N}}+|{SPACE}?[^\p{{L}}\p{{M}}\p{{N}}{SPACE}]|{SPACE}")
    tok.pre_tokenizer = pre_tokenizers.Split(words, behavior="isolated")
    tok.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
