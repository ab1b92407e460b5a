"""Lists of features that others published, read into a table of features."""

from __future__ import annotations

import json

import pytest

from workbench.core.errors import InputError
from workbench.runs.imported import import_file


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_list_of_neuronpedia_is_a_table_with_densities_explanations_and_links(tmp_path):
    rows = [
        {"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": "9", "frac_nonzero": 0.125},
        {"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": "4", "description": "dates "},
        {"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": "4", "description": "years"},
        {
            "modelId": "gemma-2-2b",
            "layer": "20-gemmascope-res-16k",
            "index": "9",
            "explanations": [{"description": "a"}, "b"],
        },
    ]
    run = import_file(write(tmp_path / "f.json", rows))
    table = run.table("features")
    assert table.select("feature", "density", "explanation").rows() == [(4, None, "dates | years"), (9, 0.125, "a | b")]
    assert table["link"].to_list()[0] == "https://www.neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/4"
    assert table["weight"].null_count() == table["target"].null_count() == 2
    assert (run.of("model", "name"), run.of("config", "layer")) == ("gemma-2-2b", 20)
    assert run.summary == {"features": 2, "explained": 2, "median_density": 0.125, "dead": 0}


@pytest.mark.parametrize(
    "value",
    [
        [{"feature": 3, "density": 0.5}],
        {"features": [{"feature_index": 3.0, "feature_density": "0.5"}]},
        '{"featureIndex": 3, "fracNonzero": 0.5}\n{"featureIndex": 5, "fracNonzero": 0}\n',
    ],
)
def test_other_shapes_of_the_list(tmp_path, value):
    row = import_file(write(tmp_path / ("f.jsonl" if isinstance(value, str) else "f.json"), value)).table("features")
    assert row.select("feature", "density").row(0) == (3, 0.5) and row["link"].null_count() == row.height


def test_fields_of_other_names_are_named(tmp_path):
    path = write(tmp_path / "f.json", [{"latent": 3, "p": 0.5}])
    with pytest.raises(InputError, match="looks like no results"):
        import_file(path)
    with pytest.raises(InputError, match=r"hold the feature \(its fields are latent, p\).*--columns feature:FIELD"):
        import_file(path, probe="data-selection")
    assert import_file(path, columns={"feature": "latent", "density": "p"}).table("features")["density"].to_list() == [
        0.5
    ]
    with pytest.raises(InputError, match="no field 'late'.*latent"):
        import_file(path, probe="data-selection", columns={"feature": "late"})


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"index": "x", "density": 0.5}], "row 1: the field 'index' is 'x', which is no number"),
        ([{"index": 1.5, "density": 0.5}], "row 1: the field 'index' is 1.5, and a whole number is needed"),
        ([{"index": 1, "density": 0.5}, {"density": 0.5}], "row 2: the object has no field 'index'"),
        ([{"index": 1, "feature": 2, "density": 0.5}], "row 1: the object says two numbers of the feature"),
        ([{"index": 1, "density": 12.5}], "row 1: the field 'density' is 12.5; it must be between 0 and 1"),
        (
            [{"index": 1, "density": 0.5}, {"index": 1, "density": 0.25}],
            "row 2: the feature 1 has the densities 0.25 and",
        ),
        ([{"index": 1, "density": 0.5}, 7], "row 2: a JSON object is needed, not 7"),
        ([{"index": 1, "description": 5}], "row 1: the field 'description' is 5, and an explanation is text"),
        (
            [{"index": 1, "density": 0, "layer": 3}, {"index": 1, "density": 0, "layer": 4}],
            "row 2: the source is '4' and was '3' before",
        ),
        (
            [{"index": 1, "density": 0, "modelId": "a"}, {"index": 1, "density": 0, "modelId": "b"}],
            "row 2: the model is 'b' and was 'a' before",
        ),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path, rows, said):
    with pytest.raises(InputError) as error:
        import_file(write(tmp_path / "f.json", rows))
    assert said in str(error.value) and str(error.value).endswith(".")
