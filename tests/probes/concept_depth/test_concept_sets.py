"""Concept sets load as published, splits keep what they promise, and bad files are refused in one sentence."""

import json
from collections import Counter

import numpy as np
import pytest

from probes.concept_depth import concept_sets as concept_data
from probes.concept_depth.set_splits import split
from workbench.core.errors import InputError

CD = "concepts/cd"


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("file", "rows", "ones", "answers"),
    [
        ("cities.csv", 1496, 748, ("False", "True")),
        ("coin_flip.json", 500, 253, ("No", "Yes")),
        ("StrategyQA_task.json", 2290, 1071, ("No", "Yes")),
        ("stsa.binary.train", 6920, 3610, ("Negative", "Positive")),
    ],
)
def test_published_sets_have_their_published_counts(shared, file, rows, ones, answers):
    found = concept_data.load_file(shared(f"{CD}/{file}"))
    assert len(found) == rows and int(found.labels.sum()) == ones and found.classes == ("0", "1")
    assert found.answers == answers
    assert concept_data.load_file(shared(f"{CD}/{file}"), pair=("1", "0")).answers == answers[::-1]
    plain = concept_data.load_file(shared(f"{CD}/{file}"), template="plain")
    assert all(p in framed and len(p) < len(framed) for p, framed in zip(plain.texts, found.texts))
    assert tuple(map(found.bare, range(rows))) == plain.texts


@pytest.mark.shared_data
def test_answers_are_those_of_a_question_that_was_asked(shared, tmp_path):
    """Without its frame a statement asks nothing, and the model's next word is not an answer."""
    for file in ("cd/cities.csv", "cd/coin_flip.json", "cd/stsa.binary.train"):
        assert concept_data.load_file(shared(f"concepts/{file}"), template="plain").answers is None
        assert concept_data.load_file(shared(f"concepts/{file}"), template="It is said: {text}").answers is None
    for file in ("larger_than.csv", "sp_en_trans.csv"):
        assert concept_data.load_file(shared(f"concepts/geometry_of_truth/{file}")).answers is None
    path = write(
        tmp_path,
        "own.csv",
        "statement,label,answer\n" + "".join(f"s{i},{i % 2},{('no', 'yes')[i % 2]}\n" for i in range(8)),
    )
    assert concept_data.load_file(path, template="Is it so? {text}").answers == ("no", "yes")


@pytest.mark.shared_data
def test_strategyqa_evidence_does_not_give_the_answer_away(shared):
    found = concept_data.load_file(shared(f"{CD}/StrategyQA_task.json"), template="plain")
    assert found.texts[0].startswith(
        "Is it common to see frost during some college commencements? College commencement"
    )
    assert "? Yes." not in found.texts[0]


@pytest.mark.shared_data
def test_statement_files_load_with_their_groups(shared):
    cities = concept_data.load_file(shared(f"{CD}/cities.csv"), template="plain")
    assert cities.texts[0] == "The city of Krasnodar is in Russia." and cities.labels[0] == 1
    assert cities.groups[:2] == ("Krasnodar", "Krasnodar")
    larger = concept_data.load_file(shared("concepts/geometry_of_truth/larger_than.csv"))
    assert len(larger) == 1980 and larger.texts[0] == "Fifty-one is larger than fifty-two."
    # both orders of two numbers, one true and one false, are one group
    assert set(Counter(larger.groups).values()) == {2}
    both = {g: {int(k) for k, other in zip(larger.labels, larger.groups) if other == g} for g in larger.groups[:50]}
    assert all(labels == {0, 1} for labels in both.values())
    both = concept_data.load(shared("concepts/geometry_of_truth"))
    assert [s.name for s in both] == ["larger_than", "sp_en_trans"]


def test_a_plain_table_with_words_as_labels_groups_and_answers(tmp_path):
    rows = [
        {
            "text": f"t{i}",
            "label": ("positive", "negative")[i % 2],
            "group": str(i // 2),
            "answer": ("good", "bad")[i % 2],
        }
        for i in range(8)
    ]
    path = write(tmp_path, "reviews.jsonl", "\n".join(map(json.dumps, rows)))
    found = concept_data.load_file(path)
    assert found.classes == ("negative", "positive") and found.labels.tolist() == [1, 0] * 4
    assert found.answers == ("bad", "good") and found.groups[2] == "1"
    assert concept_data.load_file(path, pair=("positive", "negative")).labels.tolist() == [0, 1] * 4
    assert concept_data.load_file(path, limit=2).texts == ("t0", "t1", "t2", "t3")
    assert concept_data.load_file(path, template="Q: {text} A:").texts[0] == "Q: t0 A:"


def test_a_pair_is_chosen_among_several_labels(tmp_path):
    path = write(tmp_path, "many.csv", "text,label\n" + "".join(f"t{i},{'abc'[i % 3]}\n" for i in range(12)))
    every = concept_data.load_file(path)
    assert every.classes == ("a", "b", "c") and every.labels.tolist() == [0, 1, 2] * 4 and every.answers is None
    found = concept_data.load_file(path, pair=("c", "a"))
    assert len(found) == 8 and found.classes == ("c", "a")
    with pytest.raises(InputError, match="'d'"):
        concept_data.load_file(path, pair=("a", "d"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("one.csv", "text,label\na,1\nb,1\n", "every row has the label '1'"),
        ("lacks.csv", "text,class\na,1\nb,0\n", "no column 'label'"),
        ("empty.csv", "", "empty"),
        ("hole.csv", "text,label\na,1\n,0\n", "row 2"),
        ("sst.train", "1 good film\nno label here\n", "line 2"),
        ("broken.json", '{"examples": [', "not valid JSON"),
        (
            "coin.json",
            '{"examples": [{"question": "A coin is heads up.", "answer": "maybe"}]}',
            "row 1: the field 'answer'",
        ),
        ("qa.json", '{"examples": [{"question": "q", "answer": "yes"}]}', "no column 'text'.*columns=text:NAME"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message) as caught:
        concept_data.load_file(write(tmp_path, name, text))
    assert name in str(caught.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no concept set"):
        concept_data.load(tmp_path)


def test_noise_is_independent_of_the_label():
    concept = concept_data.ConceptSet(
        "toy", ("Judge: x",) * 2000, np.arange(2000) % 2, ("0", "1"), template="Judge: {text}"
    )
    rng = np.random.default_rng
    code, paper = concept_data.noisy(concept, "code", rng=rng(0)), concept_data.noisy(concept, "paper", rng=rng(0))
    # the official code puts it before the question and frames that
    assert set(code) == {"Judge: aaax", "Judge: bbbx"} and abs(code.count("Judge: aaax") - 1000) < 100
    assert set(paper) == {"aaa Judge: x", "bbb Judge: x"}
    assert abs(sum(t.startswith("aaa") for t in paper[::2]) - 500) < 70


def _as_pandas_writes(frame, path):
    import pandas as pd

    table = pd.DataFrame(frame)
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        table.to_csv(path, index=False, sep="," if path.suffix == ".csv" else "\t")
    else:
        rows = table.to_dict("records")
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("labels", [[True, False], [1.0, 0.0], [1, 0], [0.1 + 0.2, 0.2], ["True ", "false"]])
def test_classes_and_splits_do_not_depend_on_the_format_of_the_file(tmp_path, labels):
    frame = {
        "statement": [f"{n // 2 + 300 * (n % 2)} is larger than {n // 2 + 300 * (1 - n % 2)}" for n in range(60)],
        "label": [labels[n % 2] for n in range(60)],
        "smaller": [n // 2 for n in range(60)],
    }
    found = [
        concept_data.load_file(_as_pandas_writes(frame, tmp_path / f"larger{suffix}"))
        for suffix in (".csv", ".tsv", ".jsonl", ".json", ".parquet")
    ]
    splits = [split(one, "paper", rng=np.random.default_rng(0))[0][0].tolist() for one in found]
    assert len({(one.classes, tuple(one.labels), one.groups) for one in found}) == 1
    assert len(set(map(tuple, splits))) == 1 and len(set(found[0].groups)) == 30


def test_nan_is_a_missing_label_and_no_class(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": NaN}\n')
    with pytest.raises(InputError, match="row 2: the field 'label' is empty"):
        concept_data.load_file(path)
    rows = '{"text": "a", "label": 1, "group": NaN}\n{"text": "b", "label": 0, "group": "g"}\n'
    path = write(tmp_path, "b.jsonl", rows)
    with pytest.raises(InputError, match="row 1: the field 'group' is empty"):
        concept_data.load_file(path)


def test_the_pair_of_labels_is_read_as_the_labels_are(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\na,1.0\nb,2.0\nc,3.0\nd,1.0\n")
    assert concept_data.load_file(path, pair=("3.0", "1")).labels.tolist() == [1, 0, 1]


def test_examples_of_another_shape_are_named(tmp_path):
    flip = '{"question": "A coin is heads up.", "answer": "no"}'
    for row, message in [
        ("5", "row 21: a JSON object is needed, not int"),
        ('{"answer": "yes", "question": NaN}', "row 21: the field 'question' is empty"),
        ('{"answer": "yes"}', "row 21: the field 'question' is empty"),
        ('{"answer": ["yes", "no"], "question": "A coin is heads up."}', "row 21: the field 'answer' "),
    ]:
        path = write(tmp_path, "a.json", f'{{"examples": [{", ".join([flip] * 20 + [row])}]}}')
        with pytest.raises(InputError, match=message):
            concept_data.load_file(path)
