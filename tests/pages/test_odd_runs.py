"""What the screens say of run folders that cannot be read, and of runs whose files are not what they left."""

from __future__ import annotations

import json

import pytest

from tests.support.app_screens import keep, open_page, words
from tests.support.figure_runs import retrieval
from workbench.core.files import write_json
from workbench.runs import execution as runs
from workbench.runs.checksums import of_folder
from workbench.runs.records import seal


@pytest.fixture
def two_runs():
    return [keep(retrieval(seed=i), f"retrieval-heads-{i:012x}") for i in (1, 2)]


@pytest.mark.parametrize("name", ["runs", "compare", "explorer"])
def test_a_folder_that_is_no_run_is_named_where_runs_are_chosen_and_takes_no_screen_down(two_runs, name):
    for number, text in enumerate(("5", '{"schema": 1}', "[" * 5000)):
        folder = runs.runs_root() / f"odd [{number}]"
        folder.mkdir()
        (folder / "run.json").write_text(text)
    at = open_page(name, **({"model": "circuit-copy-gqa"} if name == "explorer" else {}))
    said = words(at).replace("\\", "")
    assert "3 folders could not be read" in said and "odd [1]/run.json" in said and not at.error
    if name == "runs":
        assert len(at.dataframe[0].value) == 2


def test_a_damaged_run_says_on_its_screen_which_file_and_how_to_get_it_back(two_runs):
    folder = runs.runs_root() / two_runs[0]
    info = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", seal({**info, "files": of_folder(folder)}))
    assert "damaged" not in words(open_page("runs", run=two_runs[0]))
    (folder / "tables" / "trials.parquet").unlink()
    said = words(open_page("runs", run=two_runs[0])).replace("\\", "")
    assert "This run is damaged: tables/trials.parquet (it is missing); its command, given again" in said


def test_notes_that_cannot_be_read_are_said_and_not_written_over(two_runs):
    path = runs.runs_root() / two_runs[0] / "notes.json"
    path.write_text("{")
    at = open_page("runs", run=two_runs[0])
    assert "notes.json cannot be read" in at.error[0].value.replace("\\", "") and path.read_text() == "{"
    assert f"tags {two_runs[0]}" not in [box.key for box in at.text_input]
