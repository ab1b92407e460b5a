"""The token strip: names that can be said, contrast that can be read, and nothing of what was not attended to."""

import numpy as np
import pytest

from pages.widgets import styling, token_strip
from workbench.explorer import opened_model
from workbench.figures import style as theme


@pytest.fixture(scope="module")
def opened():
    return opened_model.open_model("circuit-copy-gqa")


def test_a_tokens_name_is_its_word_then_its_place_then_what_it_gets(opened):
    ids = opened_model.encode(opened, "lantern velvet harbor")
    found = token_strip.items(opened, ids, [0.125, 0.5, 0.375, 0.0], at=2)
    assert [item["name"] for item in found[1:]] == [
        "lantern, position 1, attention 0.500",
        "velvet, position 2, attention 0.375",
        "harbor, position 3",  # after the chosen one: it is not seen from there
    ]
    assert found[3]["colour"] is None and found[2]["colour"] is not None


@pytest.mark.parametrize(
    "text,said",
    [
        (" cat", "cat"),
        (" ", "space"),
        ("\n", "line break"),
        ("\n\n", "2 characters, line break"),
        (" \t", "2 characters, space, tab"),
        ("\u00a0", "white space"),
        ("", "empty token"),
        ("<0xF0>", "<0xF0>"),
        (" a\n", "a"),
    ],
)
def test_white_space_has_a_name_and_a_word_is_only_its_word(text, said):
    assert token_strip.spoken(text) == said


def test_words_on_every_colour_of_the_house_scales_have_a_contrast_of_four_and_a_half():
    for scale in (theme.SEQUENTIAL, theme.SEQUENTIAL_DARK, theme.DIVERGING, theme.DIVERGING_DARK):
        for share in np.linspace(0, 1, 101):
            colour = theme.colour_at(scale, float(share))
            assert theme.contrast(colour, styling.ink_on(colour)) >= 4.5, (colour, share)
    for grey in (theme.MISSING, theme.MISSING_DARK):
        assert theme.contrast(grey, styling.ink_on(grey)) >= 4.5
