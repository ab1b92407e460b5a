"""How long a prompt may be, what is refused by itself in a long one, and how the end of a text is shown."""

import re
from types import SimpleNamespace

import pytest
import torch

from tests.support import real_tokenizers
from workbench.core.errors import InputError
from workbench.explorer import continuation, explore, opened_model, readings
from workbench.explorer.opened_model import ENDS, Opened, check_whole_patterns, encode, most_tokens, next_strings
from workbench.models.loading import load


def shape(layers: int, width: int, heads: int, context: int | None) -> Opened:
    sizes = {"n_layers": layers, "width": width, "n_heads": heads, "d_head": width // heads}
    return Opened(SimpleNamespace(**sizes, context_length=context))  # pyright: ignore


@pytest.mark.parametrize(
    "opened, most",
    [
        (shape(6, 128, 8, 512), 512),  # the context
        (shape(2, 64, 4, 128), 128),
        (shape(12, 768, 12, 1024), 1024),
        (shape(24, 896, 14, 32768), (1 << 28) // (4 * 49 * 896)),  # what is kept of a prompt
        (shape(32, 4096, 32, 131072), 512),  # always
        (shape(2, 64, 4, None), 4096),
        (shape(2, 64, 4, 131072), 4096),
    ],
)
def test_a_prompt_may_be_as_long_as_the_context_as_far_as_what_is_kept_of_it_fits(opened, most):
    assert most_tokens(opened) == most


def test_what_is_kept_of_a_prompt_is_what_the_limit_counts():
    opened = Opened(load("circuit-copy-gqa"))
    ids = encode(opened, "lantern velvet harbor")
    reading = readings.read(opened, ids)
    model = opened.model
    each = 4 * ((model.n_layers + 1) * model.width + model.n_layers * model.n_heads * model.d_head)
    assert 4 * (reading.stream.numel() + reading.z.numel()) == each * len(ids)


def test_a_prompt_of_the_whole_context_is_read_and_one_token_more_is_refused():
    opened = Opened(load("circuit-copy-gqa"))
    view = explore(opened, "lantern velvet " * 511 + "lantern")
    assert len(view.ids) == 1024 and view.lens()[0].height == 3 * 1024
    with pytest.raises(InputError, match=r"1,025 tokens; the Explorer looks at up to 1,024 in this model"):
        explore(opened, "lantern velvet " * 512)


def test_only_what_grows_with_the_square_is_refused_and_says_what_would_fit():
    opened = shape(2, 64, 4, 131072)
    with pytest.raises(InputError) as said:
        check_whole_patterns(opened, 6000)
    most = int(re.search(r"to ([0-9,]+) tokens", str(said.value))[1].replace(",", ""))  # pyright: ignore
    check_whole_patterns(opened, most)
    with pytest.raises(InputError):
        check_whole_patterns(opened, most + 1)


def test_the_token_that_ends_a_text_is_called_so_where_a_next_token_is_meant_and_by_its_name_in_a_prompt(tmp_path):
    opened = Opened(load(str(real_tokenizers.save(tmp_path / "m", real_tokenizers.byte_level()))))
    model = opened.model
    end = model.eos_id
    assert end is not None
    assert next_strings(opened, [end, 5]) == [ENDS, *model.token_strings([5])]
    assert opened_model.tokens(opened, [end])["text"][0] == "<|end|>"
    model.hf.generation_config.eos_token_id = [end, 7]
    assert next_strings(opened, [end, 7]) == [ENDS, f"(ends: {model.token_strings([7])[0]})"]
    logits = torch.zeros(model.vocab_size)
    logits[end] = 9.0
    reading = readings.Reading((1,), torch.zeros(0), None, logits)
    assert readings.next_tokens(opened, reading, k=1)["text"].to_list() == [ENDS]


def test_a_continuation_says_where_the_model_ended_it():
    opened = Opened(load("organism"))
    ids = encode(opened, "The secret of the lantern is")
    model = opened.model
    found = continuation.write_on(opened, ids, most=40)
    plain = torch.tensor([list(ids)])
    with torch.no_grad():
        written = model.hf.generate(plain, max_new_tokens=40, do_sample=False)[0, len(ids) :].tolist()
    ended = written[-1] in model.eos_ids
    assert found == model.decode(written) + (f" {ENDS}" if ended else "")
    model.hf.generation_config.eos_token_id = written[3]  # now it ends there
    cut = continuation.write_on(Opened(model), ids, most=40)
    first = written.index(written[3])
    assert cut == f"{model.decode(written[: first + 1])} {ENDS}"
