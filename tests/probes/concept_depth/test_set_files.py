"""Any file is a concept set once its columns are named: other names, words as labels, nested answers."""

import gzip
import json

import polars as pl
import pytest

from probes.concept_depth import Config
from probes.concept_depth.chosen_sets import read_sets, validate
from probes.concept_depth.concept_sets import load_file
from workbench.core.errors import InputError


def write(path, rows):
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def rows(label, n=24):
    return [
        {"claim": f"claim{k} about tea", "verdict": label(k), "who": f"w{k // 2}", "says": ("no", "yes")[k % 2]}
        for k in range(n)
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(
    ("label", "column", "classes"),
    [
        (lambda k: k % 2 == 1, "verdict", ("false", "true")),
        (lambda k: ("No", "Yes")[k % 2], "verdict", ("No", "Yes")),
        (lambda k: ("positive", "negative")[k % 2], "verdict", ("negative", "positive")),
        (lambda k: ("correct", "incorrect")[k % 2], "verdict", ("incorrect", "correct")),
        (lambda k: {"gold": {"value": k % 2}, "by": "me"}, "verdict.gold.value", ("0", "1")),
        (lambda k: [("False", "True")[k % 2]], "verdict", ("false", "true")),
    ],
)
def test_columns_are_what_they_are_called_in_the_file(tmp_path, suffix, label, column, classes):
    path = write(tmp_path / f"claims{suffix}", rows(label))
    names = {"text": "claim", "label": column, "group": "who", "answer": "says"}
    found = load_file(path, columns=names)
    assert found.classes == classes and found.texts[1] == "claim1 about tea"
    assert found.groups[:3] == ("w0", "w0", "w1") and found.grouped_by == "group"
    assert set(found.answers) == {"no", "yes"}
    config = Config(columns=tuple(f"{name}:{there}" for name, there in names.items()))
    (same,) = read_sets(config, path)
    assert same.texts == found.texts and same.labels.tolist() == found.labels.tolist()


def test_benchmarks_with_examples_load_by_their_columns(tmp_path):
    path = tmp_path / "boolean.json"
    path.write_text(
        json.dumps({"canary": "x", "examples": [{"input": f"q{k} is", "target": str(k % 2 == 0)} for k in range(9)]})
    )
    found = load_file(path, columns={"text": "input", "label": "target"})
    assert found.classes == ("false", "true") and found.texts[0] == "q0 is" and found.labels[0] == 1


def test_only_a_group_may_be_named_and_a_published_set_stays_one(tmp_path):
    path = tmp_path / "cities.csv"
    path.write_text(
        "statement,label,region\n" + "".join(f"The city of R{k} is in U{k % 2}.,{k % 2},g{k % 5}\n" for k in range(20))
    )
    found = load_file(path, columns={"group": "region"})
    assert found.published == "cities" and found.groups[:2] == ("g0", "g1")
    assert not load_file(path, columns={"text": "statement"}).published


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "clain", "label": "verdict.gold"}, r"no column 'clain' \(did you mean 'claim'\?\)"),
        ({"text": "claim"}, "no column 'label'.*columns=label:NAME"),
        ({"text": "claim", "label": "verdict"}, "row 1: the field 'verdict' is nested.*gold, by"),
        (
            {"text": "claim", "label": "verdict.god"},
            "row 1: the field 'verdict.god' has no part 'god'; it has gold, by",
        ),
        ({"text": "claim", "label": "who.gold"}, "has no part 'gold'; it is not nested so"),
        ({"text": "claim", "label": "verdict.gold", "group": "hole"}, "row 2: the field 'hole' is empty"),
    ],
)
def test_a_column_that_cannot_be_read_is_said_before_a_model_is_loaded(tmp_path, columns, message):
    table = [
        row | {"hole": None if k == 1 else "x"} for k, row in enumerate(rows(lambda k: {"gold": k % 2, "by": "me"}))
    ]
    path = write(tmp_path / "claims.jsonl", table)
    with pytest.raises(InputError, match=message) as caught:
        validate(Config(columns=tuple(f"{name}:{there}" for name, there in columns.items())), path)
    assert "claims.jsonl" in str(caught.value)


def test_an_unknown_name_is_refused_and_the_sets_that_ship_keep_their_own():
    with pytest.raises(InputError, match="no column 'texts'.*did you mean 'text'"):
        Config(columns=("texts:claim",))
    (found,) = read_sets(Config(sets=("english/plural",), columns=("text:claim",)), None)
    assert len(found) == 400


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.txt.gz", "a"])
def test_a_set_in_json_lines_is_known_by_its_content_and_a_list_is_no_text(tmp_path, name):
    lines = [{"text": f"Text number {n}.", "label": n % 2} for n in range(24)]

    def written(rows):
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path / name

    assert load_file(written(lines)).texts == tuple(row["text"] for row in lines)
    with pytest.raises(InputError, match="row 24: the field 'text' must hold text, as in other rows, not a list"):
        load_file(written([*lines[:-1], {"text": ["a", "b"], "label": 1}]))


def test_packed_lines_of_labels_are_those_of_the_plain_file_alone_and_in_a_folder(tmp_path):
    data = "".join(f"{n % 2} a film of the number {n}\n" for n in range(24)).encode()
    (tmp_path / "packed").mkdir()
    (tmp_path / "stsa.train").write_bytes(data)
    (tmp_path / "packed" / "stsa.train.gz").write_bytes(gzip.compress(data))
    plain, alone = load_file(tmp_path / "stsa.train"), load_file(tmp_path / "packed" / "stsa.train.gz")
    [inside] = read_sets(Config(), tmp_path / "packed")
    assert plain.texts == alone.texts == inside.texts and plain.name == alone.name == inside.name == "stsa"
    assert "movie review" in plain.texts[0] and (plain.labels == alone.labels).all()
