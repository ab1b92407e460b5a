"""Rows that are about the same, or say almost the same, stay on one side of a split: found without knowing the file."""

from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from probes import concept_depth
from probes.concept_depth import Config
from probes.concept_depth.concept_sets import ConceptSet, load_file
from probes.concept_depth.config import ENGLISH
from probes.concept_depth.row_groups import NEAR, grouped_rows, groups_of, repeated_share
from probes.concept_depth.set_splits import near_identical_apart, split
from tests.stats.test_near_duplicates import cities, names
from workbench.core.context import Context
from workbench.models.loading import load


def paired(tmp_path, *, count=300, named=False, seed=0):
    """True and false statements on so many cities, without or with a column that names the city."""
    texts, of = zip(*cities(count, seed=seed))
    labels = [k for _ in range(count) for k in np.random.default_rng(seed).permutation(2)]
    table = pl.DataFrame({"statement": texts, "label": labels})
    path = tmp_path / ("named.csv" if named else "paired.csv")
    (table.with_columns(place=pl.Series(of)) if named else table).write_csv(path)
    return path, of


def as_groups(groups):
    found = defaultdict(list)
    for row, group in enumerate(groups):
        found[group].append(row)
    return set(map(tuple, found.values()))


def test_pairs_are_found_with_and_without_a_column_that_names_them(tmp_path):
    for is_named, rule in ((True, "place"), (False, NEAR)):
        path, of = paired(tmp_path, named=is_named)
        found = load_file(path, template="plain")
        assert found.grouped_by == rule and as_groups(found.groups) == as_groups(of)
        assert grouped_rows(found.groups) == 600 and repeated_share(found.groups) == 0.5
        tests, by_group = split(found, "paper", rng=np.random.default_rng(0))
        parts = [{of[row] for row in rows} for rows in (tests[0], np.delete(np.arange(600), tests[0]))]
        assert by_group and not parts[0] & parts[1]


def test_a_bag_of_words_is_at_chance_on_paired_statements_and_below_it_where_pairs_are_split():
    """Labels are drawn, one of each pair is true: nothing can be known of a statement but that its twin is the
    opposite."""
    rng, accuracies = np.random.default_rng(0), defaultdict(list)
    for seed in range(3):
        texts, of = zip(*cities(400, seed=seed))
        labels = np.concatenate([rng.permutation(2) for _ in range(400)])
        groups, rule = groups_of(texts, pl.DataFrame())
        concept = ConceptSet("paired", texts, labels, ("0", "1"), groups, grouped_by=rule)
        features = CountVectorizer().fit_transform(texts)
        for how in ("auto", "no"):
            tests, by_group = split(concept, "kfold", groups=how, rng=rng)
            assert by_group == (how == "auto")
            for test in tests:
                train = np.setdiff1d(np.arange(800), test)
                probe = LogisticRegression(max_iter=1000).fit(features[train], labels[train])
                accuracies[how].append(probe.score(features[test], labels[test]))
    assert abs(np.mean(accuracies["auto"]) - 0.5) < 0.045  # s.e. of 1,200 pairs, both right or both wrong: 0.0144
    assert np.mean(accuracies["no"]) < 0.35


def test_a_column_counts_where_it_stands_in_the_texts_and_few_rows_share_it():
    texts, of = zip(*cities(200))
    country = [text.split(" is in ")[1][:-1] for text in texts]
    lower = [place.upper() for place in of]
    opaque = [f"id-{row // 2}" for row in range(400)]
    others = pl.DataFrame({"country": country, "source": opaque, "number": list(range(400)), "city": lower})
    groups, rule = groups_of(texts, others)
    assert rule == "city" and as_groups(groups) == as_groups(of)
    assert groups_of(texts, others.drop("city"))[1] == NEAR
    holes = others.with_columns(city=pl.Series([None, *lower[1:]]))
    assert groups_of(texts, holes)[1] == NEAR
    # numbers are found as words: 1 does not stand in 12
    counted = [f"There are {n} {word}." for n, word in zip(range(10, 40), names(30)) for _ in range(2)]
    assert groups_of(counted, pl.DataFrame({"digit": [n // 2 % 10 for n in range(60)]}))[1] != "digit"


def test_a_group_column_of_the_file_is_kept_as_it_is(tmp_path):
    path, _ = paired(tmp_path)
    table = pl.read_csv(path).with_columns(group=pl.Series([f"g{row % 60}" for row in range(600)]))
    table.write_csv(path)
    found = load_file(path)
    assert found.grouped_by == "group" and found.groups[:2] == ("g0", "g1") and len(set(found.groups)) == 60
    for file in sorted(ENGLISH.glob("*.jsonl")):
        shipped = load_file(file)
        assert shipped.grouped_by == "group" and list(shipped.groups) == pl.read_ndjson(file)["group"].to_list()


def test_sentences_that_have_nothing_to_do_with_one_another_are_split_by_rows(tmp_path):
    rng = np.random.default_rng(0)
    words = names(400)
    rows = [f"{n % 2} {' '.join(rng.choice(words, rng.integers(6, 20)))} ." for n in range(500)]
    rows += rows[:2]  # a few repeats are warned of, and do not change how the rest is split
    path = tmp_path / "sentences.train"
    path.write_text("\n".join(rows))
    found = load_file(path)
    assert grouped_rows(found.groups) == 4 and found.grouped_by == NEAR
    assert not split(found, "paper", rng=rng)[1] and split(found, "paper", groups="yes", rng=rng)[1]
    assert near_identical_apart(found, False) == 0


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("file", "pairs", "share"),
    [
        ("cd/cities.csv", lambda t: t["city"], 0.5),
        ("geometry_of_truth/larger_than.csv", lambda t: t.select(pl.concat_list("n1", "n2").list.sort())["n1"], 0.5),
        ("geometry_of_truth/sp_en_trans.csv", lambda t: t["statement"].str.extract("'([^']+)'"), None),
    ],
)
def test_pairs_of_published_statements_are_found_by_their_texts_alone(shared, file, pairs, share):
    table = pl.read_csv(shared(f"concepts/{file}"))
    groups, rule = groups_of(table["statement"].to_list(), pl.DataFrame())
    truth = list(map(str, pairs(table).to_list()))
    of = defaultdict(set)
    for group, true in zip(groups, truth):
        of[true].add(group)
    assert rule == NEAR and all(len(found) == 1 for found in of.values())  # no pair is parted
    if share is not None:
        assert repeated_share(groups) == share and as_groups(groups) == as_groups(truth)
    else:  # most words are there once: two words of one meaning are a pair too, one true and one false
        assert max(Counter(groups).values()) <= 5 and 0.2 < repeated_share(groups) < 0.4


@pytest.mark.shared_data
@pytest.mark.parametrize("file", ["stsa.binary.train", "coin_flip.json", "StrategyQA_task.json"])
def test_published_sets_of_unrelated_texts_are_hardly_grouped(shared, file):
    found = load_file(shared(f"concepts/cd/{file}"), template="plain")
    assert repeated_share(found.groups or found.texts) < 0.01
    assert not split(found, "paper", rng=np.random.default_rng(0))[1]


@pytest.fixture(scope="module")
def tiny(tiny_llama):
    return load(str(tiny_llama))


def test_the_run_says_what_was_grouped_by_which_rule_and_warns_where_pairs_are_parted(tiny, tmp_path):
    options = {"draws": 100, "shuffles": 0, "causal": "off"}
    for is_named, rule in ((False, NEAR), (True, "place")):
        path, _ = paired(tmp_path, count=60, named=is_named)
        context = Context(data=path)
        row = concept_depth.run(tiny, Config(**options), context).tables["sets"].row(0, named=True)
        assert (row["groups"], row["split_by_group"], row["grouped_by"], row["grouped_rows"]) == (60, True, rule, 120)
        assert not [w for w in context.warnings if "split by rows" in w]
        for parted in ({"split": "code"}, {"groups": "no"}):
            context = Context(data=path)
            row = concept_depth.run(tiny, Config(**options, **parted), context).tables["sets"].row(0, named=True)
            assert not row["split_by_group"] and row["grouped_rows"] == 120
            (warning,) = [w for w in context.warnings if "split by rows" in w]
            assert "120 of the 120 texts" in warning and "groups=yes" in warning
        context = Context(data=path)
        concept_depth.run(tiny, Config(**options, split="code", groups="yes"), context)
        assert not [w for w in context.warnings if "split by rows" in w]
