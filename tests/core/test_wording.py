"""Numbers, sizes and durations as people read them, and the name that was meant."""

import pytest

from workbench.core import wording
from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.core.wording import human_bytes, one_line, parse_bytes, shortened


def test_sizes_are_read_as_people_write_them():
    sizes = {
        "500MB": 500_000_000,
        "20 GB": 20_000_000_000,
        "1.5k": 1500,
        "2GiB": 2 << 30,
        "7": 7,
        ".5TB": 500_000_000_000,
    }
    assert {text: parse_bytes(text) for text in sizes} == sizes
    for text in ("", "many", "5 PB", "1.2.3GB", ".", "-1GB"):
        with pytest.raises(InputError, match="not a size; write 500MB or 20GB"):
            parse_bytes(text)


def test_bytes_are_written_for_people():
    assert [human_bytes(n) for n in (0, 999, 1500, 3_400_000, 1.2e9, 5e12, 2e16)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "3.4 MB",
        "1.2 GB",
        "5.0 TB",
        "20000.0 TB",
    ]


def test_numbers_have_as_many_digits_as_are_read():
    values = (None, float("nan"), 0.12345, 3, 12345, True, 1e-7, 0.5, 1234.5678, "7")
    assert [wording.number(v) for v in values] == [
        "–",
        "–",
        "0.123",
        "3",
        "12,345",
        "yes",
        "1e-07",
        "0.5",
        "1,234.568",
        "7",
    ]
    assert [wording.significant(v) for v in (None, 0.123456, 3, 12345, "x", 1e-7)] == [
        "-",
        "0.1235",
        "3",
        "12345",
        "x",
        "1e-07",
    ]
    assert [wording.two_decimals(v) for v in (0.071, -0.3, 0.001, 1.25)] == [".07", "-.30", "0", "1.25"]
    assert [wording.two_digits(v) for v in (7.4, 99, 1234, 98_765)] == ["7", "99", "1,200", "99,000"]


def test_a_quantity_says_its_interval_and_n_where_it_has_them():
    assert wording.quantity(0.5) == "0.5"
    assert wording.quantity({"value": 0.5, "low": 0.25, "high": 0.75, "n": 1200}) == "0.5 [0.25, 0.75], n = 1,200"
    assert wording.quantity({"value": 0.5, "low": None, "high": None, "n": None}) == "0.5"
    clustered = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 12, "rows": 2400}
    assert wording.quantity(clustered) == "0.5 [0.25, 0.75], n = 12 (2,400 rows)"
    assert wording.quantity(clustered | {"rows": 12}) == wording.quantity(clustered | {"rows": None})
    assert wording.quantity({"value": 3, "n": None, "rows": 5}) == "3"
    assert wording.quantity({"value": 1 / 3, "n": 1200}, wording.significant) == "0.3333, n = 1200"


def test_durations_never_say_sixty_seconds():
    seconds = (None, 0.25, 12.4, 59.7, 200, 3599.9, 7500)
    assert [wording.duration(s) for s in seconds] == [
        "",
        "0.25 s",
        "12 s",
        "1 min 0 s",
        "3 min 20 s",
        "1 h 0 min",
        "2 h 5 min",
    ]


def test_a_long_text_is_cut_to_its_length():
    assert wording.cut("abcdef", 6) == "abcdef" and wording.cut("abcdefg", 6) == "abcde…"


def test_the_nearest_name_is_offered_whatever_its_case_or_hyphens_and_nothing_where_none_is_near():
    known = ["retrieval-heads", "concept-depth"]
    assert nearest("Retreival_heads", known) == " (did you mean 'retrieval-heads'?)"
    assert nearest("zzz", known) == ""


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (
            ValueError("Validation error for field 'layers':\n    TypeError: Field 'layers' is a str\n more"),
            "Validation error for field 'layers': Field 'layers' is a str",
        ),
        (
            RuntimeError("Error(s) in loading:\n\tsize mismatch for a.b: 3 and 4.\n\tsize mismatch for c"),
            "Error(s) in loading: size mismatch for a.b: 3 and 4",
        ),
        (ValueError("It failed:"), "It failed"),
        (ValueError("First.\nSecond:\nThird"), "First"),
        (KeyError("added_tokens"), "there is no 'added_tokens'"),
        (ValueError(), "ValueError"),
    ],
)
def test_one_line_of_an_error_holds_what_it_announces(error, wanted):
    assert one_line(error) == wanted


def test_a_word_of_thousands_of_characters_leaves_its_sentence_readable():
    assert shortened("a" * 400) == "a" * 400
    cut_short = shortened("'" + "a" * 4998 + "'.")
    assert len(cut_short) < 400 and cut_short.startswith("'aaa") and cut_short.endswith("aaa'.")
    assert "(5,001 characters)" in cut_short
