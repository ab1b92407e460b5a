"""Curves of the branching factor that others published, read into the table of positions."""

from __future__ import annotations

import io

import polars as pl
import pytest

from workbench.core.errors import InputError
from workbench.runs.compare import compare
from workbench.runs.folder import open_run
from workbench.runs.imported import import_file

STITCHED = """model,series,x,bf
Meta-Llama-3-8B,self_conditioned_baseline,0,18.45047434918666
Meta-Llama-3-8B,self_conditioned_baseline,1,15.153785020164854
Meta-Llama-3-8B,external_random_prefix_30,0,18.45047434918666
Meta-Llama-3-8B,external_random_prefix_30,1,32.6
"""


def write(path, text: str):
    path.write_text(text)
    return path


def test_the_official_curves_are_read_series_by_series(tmp_path):
    run = import_file(write(tmp_path / "stitched_bf.csv", STITCHED))
    table = run.table("positions")
    assert table["condition"].to_list() == ["self_conditioned_baseline"] * 2 + ["external_random_prefix_30"] * 2
    assert table["position"].to_list() == [0, 1, 0, 1]
    assert table["bf_prefix"].to_list() == [18.45047434918666, 15.153785020164854, 18.45047434918666, 32.6]
    assert table.select("bf_window", "entropy", "alive", "ci_low").null_count().row(0) == (4, 4, 4, 4)
    assert run.of("model", "name") == "Meta-Llama-3-8B"
    assert "'bf' was read as the branching factor of everything up to a position" in run.info["warnings"][0]


def test_our_own_positions_come_back_from_csv_as_they_were(tmp_path):
    from tests.support.app_screens import keep
    from tests.support.figure_runs import branching

    ours = open_run(keep(branching(), "branching-factor-0123456789ab"))
    frame = ours.table("positions")
    theirs = import_file(write(tmp_path / "positions.csv", frame.write_csv()))
    back = theirs.table("positions").select(frame.columns)
    for name in frame.columns:
        assert back[name].to_list() == pl.read_csv(io.StringIO(frame.write_csv()))[name].to_list(), name
    found = compare(ours, theirs)["tables"]["positions"]
    assert found["matched"] == frame.height and found["columns"]["bf_prefix"]["max_abs_difference"] < 1e-12


@pytest.mark.parametrize("suffix", ["tsv", "parquet"])
def test_other_shapes_of_the_same_table(tmp_path, suffix):
    frame = pl.read_csv(io.StringIO(STITCHED)).rename({"x": "Position", "bf": "Branching Factor"})
    path = tmp_path / f"curve.{suffix}"
    frame.write_csv(path, separator="\t") if suffix == "tsv" else frame.write_parquet(path)
    assert import_file(path).table("positions")["bf_prefix"].to_list()[-1] == 32.6


def test_columns_of_other_names_are_named_and_never_guessed(tmp_path):
    path = write(tmp_path / "c.csv", "where,value,which\n0,4.5,a\n1,3.5,a\n0,2,b\n")
    with pytest.raises(InputError, match="looks like no results"):
        import_file(path)
    with pytest.raises(InputError, match=r"hold the position .*where, value, which.*--columns position:COLUMN"):
        import_file(path, probe="branching-factor")
    named = {"position": "where", "bf": "value", "series": "which"}
    run = import_file(path, columns=named)
    assert run.table("positions")["condition"].to_list() == ["a", "a", "b"]
    assert "--columns position:where,bf:value,series:which" in run.info["command"]
    with pytest.raises(InputError, match="no column 'valu'.*value"):
        import_file(path, probe="branching-factor", columns=named | {"bf": "valu"})
    with pytest.raises(InputError, match="no column 'serie'.*series"):
        import_file(path, probe="branching-factor", columns={"serie": "which"})
    both = write(tmp_path / "d.csv", "x,bf,branching_factor\n0,4,5\n")
    with pytest.raises(InputError, match="bf and branching_factor, each of which could be the bf"):
        import_file(both)
    assert import_file(both, columns={"bf": "branching_factor"}).table("positions")["bf_prefix"].to_list() == [5]


def test_of_several_models_one_is_named(tmp_path):
    path = write(tmp_path / "c.csv", "model,x,bf\nowner/A,0,4\nowner/B,0,5\n")
    with pytest.raises(InputError, match=r"curves of 2 models \(owner/A, owner/B\); choose one with --model"):
        import_file(path)
    with pytest.raises(InputError, match="none of them is C"):
        import_file(path, model="C")
    a, b = (import_file(path, model=name) for name in ("owner/A", "B"))
    assert a.id != b.id and [run.table("positions")["bf_prefix"].to_list() for run in (a, b)] == [[4], [5]]
    one = write(tmp_path / "one.csv", "model,x,bf\nowner/A,0,4\n")
    assert "The file calls the model owner/A, not B." in import_file(one, model="B").info["warnings"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("0,high", "row 1: the field 'bf' is 'high', which is no number"),
        ("0,2\n1,", "row 2: the field 'bf' is empty or NaN"),
        ("0,2\n1,nan", "row 2: the field 'bf' is empty or NaN"),
        ("0,inf", "row 1: the field 'bf' is infinite"),
        ("0,0.4", "row 1: the field 'bf' is 0.4; it must be at least 1"),
        ("0,1_0", "row 1: the field 'bf'"),
        ("0.5,2", "row 1: the field 'x' is 0.5, and a whole number is needed"),
        ("-1,2", "row 1: the field 'x' is -1; it must be between 0"),
        (",2", "row 1: the field 'x' is empty"),
        ("0,2\n0,3", "row 2: the curve 'published' has the position 0 twice"),
    ],
)
def test_a_cell_that_is_wrong_is_named(tmp_path, rows, said):
    with pytest.raises(InputError) as error:
        import_file(write(tmp_path / "c.csv", f"x,bf\n{rows}\n"))
    assert said in str(error.value) and str(error.value).endswith(".")
