"""Tokens that are parts of characters are shown by their bytes, in the tokenizers that people use."""

import re
from types import SimpleNamespace

import pytest

from tests.support import real_tokenizers
from workbench.models.model import Model
from workbench.models.token_bytes import alphabet, bytes_of, in_words, readable

TEXT = "naïve 🦙🜲 𒀀 日本語 fin�\n"


def test_the_alphabet_of_bytes_is_the_one_of_the_library():
    from tokenizers import pre_tokenizers

    assert set(alphabet()) == set(pre_tokenizers.ByteLevel.alphabet()) and sorted(alphabet().values()) == [*range(256)]
    for text in ("é", " a", "\n", "🦙"):
        (piece, _), *_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        assert bytes_of(piece) == text.encode()


@pytest.mark.parametrize(
    "raw, said",
    [
        (b"\xf0", "<0xF0>"),
        (b" \xf0\x9f", " <0xF0><0x9F>"),
        (b"\x99a", "<0x99>a"),
        (b"\xf0\x9f\xa6\x99", "🦙"),
        (b"", ""),
        (b"a\xffb\xfec", "a<0xFF>b<0xFE>c"),
    ],
)
def test_bytes_that_are_no_character_are_named_and_all_others_read(raw, said):
    assert in_words(raw) == said


def test_a_character_that_is_the_replacement_sign_itself_stays():
    sign = "\ufffd"
    piece = "".join(key for byte in sign.encode() for key, value in alphabet().items() if value == byte)
    assert readable(piece, sign) == sign and readable("日", sign) == sign


def check(tokenizer) -> None:
    """Put together again, the tokens that are shown are the text, byte by byte."""
    model = SimpleNamespace(tokenizer=tokenizer)
    shown = Model.token_strings(model, tokenizer(TEXT, add_special_tokens=False)["input_ids"])  # pyright: ignore
    assert any("<0x" in text for text in shown)
    bare = re.sub(rb"<0x([0-9A-F]{2})>", lambda found: bytes([int(found[1], 16)]), "".join(shown).encode())
    assert bare.decode().lstrip(" ") == TEXT
    special = tokenizer.all_special_ids[0]
    assert Model.token_strings(model, [special]) == [tokenizer.convert_ids_to_tokens(special)]  # pyright: ignore


def test_a_byte_level_tokenizer_shows_the_bytes_of_what_it_splits():
    check(real_tokenizers.byte_level())


@pytest.mark.shared_data
@pytest.mark.parametrize("tokenizer", real_tokenizers.NAMES)
def test_a_real_tokenizer_shows_the_bytes_of_what_it_splits(shared, tokenizer):
    from transformers import AutoTokenizer

    check(AutoTokenizer.from_pretrained(shared(f"tokenizers/{tokenizer}")))
