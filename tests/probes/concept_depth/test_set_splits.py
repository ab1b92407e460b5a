"""Splits keep what they promise, and are those of the official code where that is asked."""

import json

import numpy as np
import polars as pl
import pytest
from sklearn.model_selection import train_test_split

from probes.concept_depth.concept_sets import ConceptSet, load_file
from probes.concept_depth.set_splits import split
from workbench.core.errors import InputError

CD = "concepts/cd"


def toy(n=100, groups=None):
    labels = np.arange(n) % 2
    return ConceptSet("toy", tuple(f"text {i}" for i in range(n)), labels, ("0", "1"), groups)


def test_the_code_split_is_scikit_learns():
    concept = toy(101)
    order = np.concatenate([np.flatnonzero(concept.labels == 0), np.flatnonzero(concept.labels == 1)])
    _, expected = train_test_split(order, test_size=0.4, random_state=42)
    (test,), grouped = split(concept, "code", rng=np.random.default_rng(0))
    assert set(test) == set(expected) and len(test) == 41 and not grouped


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("file", "listed_first"),
    [("cities.csv", 1), ("coin_flip.json", 1), ("StrategyQA_task.json", 1), ("stsa.binary.train", 0)],
)
def test_the_code_split_of_the_official_sets_lists_their_classes_as_the_official_code_does(shared, file, listed_first):
    """The official loaders return two lists, true/yes first but for SST, and split what is concatenated."""
    path = shared(f"{CD}/{file}")
    if file == "cities.csv":
        rows = pl.read_csv(path).select("statement", "label").rows()
    elif file == "coin_flip.json":
        rows = [(r["question"], int(r["answer"] == "yes")) for r in json.loads(path.read_text())["examples"]]
    elif file == "StrategyQA_task.json":
        rows = [(r["input"], r["target_scores"]["Yes"]) for r in json.loads(path.read_text())["examples"]]
    else:
        rows = [(line[2:].strip(), int(line[0])) for line in path.read_text().split("\n") if line]
    lists = [text for text, label in rows if label == listed_first] + [
        text for text, label in rows if label != listed_first
    ]
    expected = train_test_split(lists, test_size=0.4, random_state=42)[1]
    for pair in ((), ("1", "0")):  # which class is called 1 is the user's; the split stays
        found = load_file(path, template="plain", pair=pair)
        (test,), _ = split(found, "code", rng=np.random.default_rng(0))
        texts = [found.texts[i] for i in test]
        if file == "StrategyQA_task.json":  # the evidence follows the question
            assert len(texts) == len(expected) and all(a.startswith(b) for a, b in zip(sorted(texts), sorted(expected)))
        else:
            assert sorted(texts) == sorted(expected)


def test_the_paper_split_is_a_fifth_with_classes_in_proportion():
    (test,), _ = split(toy(1000), "paper", rng=np.random.default_rng(0))
    assert len(test) == 200 and toy(1000).labels[test].sum() == 100


def test_folds_test_every_row_once():
    for groups in (None, tuple(str(i // 4) for i in range(100))):
        tests, grouped = split(toy(100, groups), "kfold", folds=5, rng=np.random.default_rng(0))
        assert grouped == (groups is not None) and sorted(np.concatenate(tests)) == list(range(100))
        assert all(15 <= len(t) <= 25 for t in tests)


def test_groups_stay_together_and_few_groups_do_not_count():
    groups = tuple(f"city {i // 2}" for i in range(100))
    for how in ("paper", "kfold"):
        tests, grouped = split(toy(100, groups), how, rng=np.random.default_rng(0))
        assert grouped
        for test in tests:
            rest = set(range(100)) - set(test)
            assert not {groups[i] for i in test} & {groups[i] for i in rest}
    few = tuple("ab"[i % 2] for i in range(100))
    assert not split(toy(100, few), "paper", rng=np.random.default_rng(0))[1]
    with pytest.raises(InputError, match="both classes"):
        split(toy(100, few), "paper", groups="yes", rng=np.random.default_rng(0))


@pytest.mark.parametrize(("how", "size"), [("kfold", 0.2), ("paper", 0.2), ("code", 0.4)])
def test_parts_by_group_have_both_classes_in_proportion(how, size):
    """Groups of one class each, of 2 to 9 rows: no part far from the whole set's share of class 1."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        units = np.repeat(np.arange(40), rng.integers(2, 10, 40))
        labels = (rng.random(40) < 0.3)[units].astype(int)
        concept = ConceptSet("g", tuple(map(str, range(len(units)))), labels, ("0", "1"), tuple(map(str, units)))
        tests, grouped = split(concept, how, groups="yes", rng=rng)
        assert grouped and all(abs(len(t) / len(units) - size) < 0.06 for t in tests)
        assert all(abs(labels[t].mean() - labels.mean()) < 0.12 for t in tests), [labels[t].mean() for t in tests]
        assert all(not set(units[t]) & set(np.delete(units, t)) for t in tests)


def test_too_few_rows_for_the_folds_are_refused():
    with pytest.raises(InputError, match="4 rows in its smaller class: too few for 5 folds"):
        split(toy(8), "kfold", folds=5, rng=np.random.default_rng(0))
    with pytest.raises(InputError, match="50 rows in its smaller class and 4 groups: too few for 5 folds"):
        split(
            toy(100, tuple(str(i % 4) for i in range(100))),
            "kfold",
            folds=5,
            groups="yes",
            rng=np.random.default_rng(0),
        )


def test_no_message_recommends_what_is_set_already():
    from probes.concept_depth.study import warn_of_few
    from workbench.core.context import Context

    for folds in (True, False):
        context, set_ = Context(), toy(20, tuple("abc"[i % 3] for i in range(20)))
        warn_of_few(set_, 20, 3, folds=folds, context=context)
        assert context.warnings and any("kfold" in w for w in context.warnings) is not folds
    one_sided = ConceptSet("one", ("a", "b", "c"), np.array([0, 0, 1]), ("0", "1"))
    with pytest.raises(InputError, match="add rows") as caught:
        split(one_sided, "paper", rng=np.random.default_rng(0))
    assert "groups=no" not in str(caught.value)  # there are no groups
