"""The plain-English concept sets are what their generator says, balanced, different, and true."""

import pytest

from probes.concept_depth import concept_sets as concept_data
from probes.concept_depth.chosen_sets import read_sets
from probes.concept_depth.config import ENGLISH, Config
from probes.concept_depth.english_sets import CAPITALS, CONCEPTS, rows, text_of


@pytest.mark.parametrize("name", CONCEPTS)
def test_what_ships_is_what_the_generator_makes(name):
    assert (ENGLISH / f"{name}.jsonl").read_text(encoding="utf-8") == text_of(name)
    found = concept_data.load_file(ENGLISH / f"{name}.jsonl")
    assert (
        len(found) == 400 and found.labels.sum() == 200 and len(set(found.texts)) == 400 and found.answers is not None
    )


def test_labels_are_true():
    for row in rows("switches"):
        text = row["text"]
        on = text.startswith("The lamp is on")
        assert (on + text.count("presses")) % 2 == row["label"]
    for row in rows("capitals"):
        country = row["group"]
        assert (CAPITALS[country] in row["text"].split(country)[0] + row["text"].split(country)[1]) == bool(
            row["label"]
        )
    for row in rows("plural"):
        assert (row["text"].split()[1] == row["group"] + "s") == bool(row["label"])


def test_the_probe_finds_them_by_name():
    names = [s.name for s in read_sets(Config(sets=("english",)), None)]
    assert [name for name in names if name != "facts"] == list(CONCEPTS) and len(names) == len(CONCEPTS) + 1
    assert [s.name for s in read_sets(Config(sets=("english/larger", "english/plural")), None)] == ["larger", "plural"]
