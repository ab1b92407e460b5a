"""Every screen through streamlit's own test driver: opens, says what to do when empty, restores a link, refuses what is
hostile."""

import gc
import html
import json
import re
import tomllib
import weakref
from pathlib import Path

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from pages.widgets import navigation
from probes import ORDER
from tests.support.app_screens import keep, open_page, words
from tests.support.figure_runs import retrieval
from workbench.core import registry
from workbench.core.config import describe
from workbench.core.files import write_json
from workbench.core.parquet import read_parquet, write_parquet
from workbench.runs import demo, job_files, records
from workbench.runs import execution as runs
from workbench.runs import queue as jobs

ROOT = Path(__file__).resolve().parents[2]
SCREENS = ["compare", "explorer", "runs", *ORDER]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def two_runs():
    return [keep(retrieval(seed=i), f"retrieval-heads-{i:012x}") for i in (1, 2)]


@pytest.mark.parametrize("name", [n for n in SCREENS if n != "explorer"])
def test_every_screen_opens_on_an_empty_cache_and_says_what_to_do(name):
    at = open_page(name)
    assert at.info and any(len(item.value) > 30 for item in at.info)


def test_every_probe_has_its_screen_at_its_name_and_the_other_screens_are_one_file_each():
    def script():
        import streamlit as st

        from pages.widgets import navigation

        drawn = []
        pages = navigation.pages(drawn.append)
        for section, screens in pages.items():
            for page in screens:
                st.text(f"{section}/{page.url_path}/{page.title}")
        for page in pages["Probes"]:
            page._page()
        st.text(" ".join(drawn))

    at = AppTest.from_function(script, default_timeout=60).run()
    assert not at.exception
    *screens, drawn = [item.value for item in at.text]
    assert screens[0] == "//Explorer" and screens[-2:] == ["Results/runs/Runs", "Results/compare/Compare"]
    assert screens[1] == "/activations/Map of activations"
    assert screens[2:8] == [
        "Probes/retrieval_heads/Retrieval heads",
        "Probes/concept_depth/Concept depth",
        "Probes/knowledge_conflict/Knowledge conflict",
        "Probes/data_selection/Data selection",
        "Probes/branching_factor/Branching factor",
        "Probes/representation_geometry/Representation geometry",
    ]
    assert drawn.split() == registry.names()
    assert {path.stem for path in (ROOT / "pages").glob("*.py")} == {
        "__init__",
        "activations",
        "compare",
        "explorer",
        "probe",
        "runs",
    }


def test_the_explorer_shows_tokens_heads_and_the_answer_and_a_link_restores_switched_heads():
    at = open_page(
        "explorer",
        model="circuit-copy-gqa",
        prompt="lantern velvet harbor lantern",
        head="1.1",
        off="0.0,1.1",
        how="zero",
        at="2",
    )
    text = words(at)
    assert "Layer 1, head 1" in text and "(switched)" in text and "at token 2" in text
    assert "with the heads switched" in text and re.search(
        r"heads 0\.0, 1\.1 switched \(zero\): KL [0-9.e-]+ nats", text
    )
    at.segmented_control(key="card").set_value("Layer").run()
    assert "logit lens at this layer" in words(at)
    at.segmented_control(key="card").set_value("Scores").run()
    assert "on repeated tokens" in words(at)
    at.segmented_control(key="card").set_value("Beside").run()
    assert not at.exception, at.exception
    at.text_input(key="prompt2").set_value("velvet harbor velvet").run()
    assert "4 tokens, heads switched" in words(at) and words(at).count("attends, from the last token, to") == 2
    at.button[[b.label for b in at.button].index("All on")].click().run()
    assert "with the heads switched" not in words(at) and "off" not in at.query_params
    assert not at.exception


@pytest.mark.parametrize(
    "params",
    [
        {"head": "99.99"},
        {"head": "../.."},
        {"at": "-5"},
        {"at": "99999"},
        {"at": "²"},
        {"at": "١"},
        {"head": "².²"},
        {"off": "7.7,x,<script>"},
        {"how": "bogus"},
        {"card": "bogus"},
        {"how": "patch", "off": "0.0"},
        {"colour": HOSTILE},
    ],
)
def test_a_link_with_nonsense_in_it_gives_a_screen_and_no_traceback(params):
    at = open_page("explorer", model="circuit-copy-gqa", prompt="lantern velvet", **params)
    assert "next token" in words(at)


def damaged() -> list[str]:
    """Three runs of one probe: a good one, one whose table is garbage, one whose run.json has no model."""
    ids = [keep(retrieval(seed=i), f"retrieval-heads-{i:012x}") for i in (1, 2, 3)]
    (runs.runs_root() / ids[1] / "tables" / "heads.parquet").write_bytes(b"PAR1 and then nothing that is a table")
    path = runs.runs_root() / ids[2] / "run.json"
    info = json.loads(path.read_text())
    del info["model"]
    write_json(path, info)
    return ids


@pytest.mark.parametrize("name", SCREENS)
def test_a_damaged_run_costs_a_sentence_and_not_the_screen(name):
    _, garbage, nameless = damaged()
    said = f"The table 'heads' of the run {garbage} cannot be read"
    at = open_page(name)
    assert not at.exception and bool(at.error) == (name == "compare")
    if name in ("retrieval_heads", "runs"):
        at = open_page(name, run=garbage)
        assert said in html.unescape(words(at))  # the figures that need the table are missing, the others are there
        assert len(at.get("plotly_chart")) == 1
        at.segmented_control(key="part").set_value("Tables").run()
        assert said in at.error[0].value.replace("\\", "") and not at.exception
        at = open_page(name, run=nameless)
        for part in ("Summary", "Tables", "Settings", "Figures"):
            at.segmented_control(key="part").set_value(part).run()
            assert not at.exception, part
    if name == "compare":
        at = open_page(name, a=garbage, b="retrieval-heads-000000000001")
        assert (
            said in at.error[0].value.replace("\\", "")
            and len([s for s in at.selectbox if s.label.endswith("run")]) == 2
        )
        keep(retrieval(seed=4), "retrieval-heads-000000000004")
        at = open_page(name, a="retrieval-heads-000000000001", b="retrieval-heads-000000000004")
        assert not at.error and len(at.get("plotly_chart")) == 4


@pytest.mark.parametrize("card", ["Head", "Layer", "Scores", "Beside"])
def test_every_card_of_the_explorer_is_words_and_tables_of_the_house_and_never_a_raw_data_frame(card):
    at = open_page("explorer", model="organism", prompt="The mayor of Brusa is", card=card)
    written = words(at)
    assert "dataframe" not in written and "shape: (" not in written and "class='wb-head'>" in written
    if card == "Head":
        towards, against = (written.index(title) for title in ("writes towards", "writes against"))
        assert written.index("attends to") < towards < against


def test_the_explorer_passes_over_damaged_runs_of_its_model():
    from workbench.models.loading import load

    mark = load("circuit-copy-gqa").fingerprint
    about = {"name": "circuit-copy-gqa", "fingerprint": mark, "layers": 2, "heads": 4}
    good, garbage = (
        keep(retrieval(layers=2, heads=4, seed=i), f"retrieval-heads-{i:012x}", model=about) for i in (1, 2)
    )
    (runs.runs_root() / garbage / "tables" / "heads.parquet").write_bytes(b"")
    at = open_page("explorer", model="circuit-copy-gqa")
    assert not at.error
    assert any(o.startswith("score · ") and o.endswith(good) for o in at.selectbox(key="colour").options)
    assert not any(garbage in option for option in at.selectbox(key="colour").options)


def test_runs_are_listed_once_and_read_again_only_when_they_change(two_runs, monkeypatch):
    read, real = [], records.read_run
    monkeypatch.setattr(records, "read_run", lambda folder: read.append(folder.name) or real(folder))
    at = open_page("runs")
    at.run()
    assert sorted(read) == sorted(two_runs)
    keep(retrieval(seed=3), "retrieval-heads-000000000003")
    at.run()
    assert read[2:] == ["retrieval-heads-000000000003"] and len(at.dataframe[0].value) == 3


def test_the_explorer_opens_on_words_that_the_model_knows_and_counts_those_that_it_does_not():
    at = open_page("explorer", model="circuit-xor")
    assert not at.warning and not at.error
    at.text_area(key="prompt").set_value("station qqzzy garden").run()
    assert at.warning[0].value.startswith("1 of 3 tokens are unknown")
    at.text_area(key="prompt").set_value("station garden").run()
    assert not at.warning


def test_another_model_brings_its_own_example_unless_one_has_typed():
    at = open_page("explorer", model="circuit-markov")
    assert at.text_area(key="prompt").value == "start"
    at.selectbox(key="model").set_value("circuit-conflict").run()
    assert "capital" in at.text_area(key="prompt").value and not at.warning
    at.text_area(key="prompt").set_value("my own").run()
    at.selectbox(key="model").set_value("circuit-markov").run()
    assert at.text_area(key="prompt").value == "my own"


def test_a_mean_or_patch_is_not_saved_as_a_mask(two_runs):
    at = open_page("explorer", model="circuit-copy-gqa", off="1.1", how="mean")
    at.text_input(key="mask name").set_value("m").run()
    at.button[[b.label for b in at.button].index("Save")].click().run()
    assert "cannot hold 'mean'" in at.error[0].value.replace("\\", "")
    at.selectbox(key="how").set_value("uniform").run()
    at.button[[b.label for b in at.button].index("Save")].click().run()
    assert not at.error and any("--edit" in c.value.replace("\\", "") for c in at.caption)


def test_the_explorer_opens_on_the_head_that_matters():
    at = open_page("explorer", model="circuit-copy-gqa")
    assert "Layer 1, head 1" in words(at)  # the copying head of that circuit, by its induction score


def test_text_from_outside_is_shown_and_never_becomes_part_of_the_page():
    at = open_page("explorer", model="circuit-copy-gqa", prompt=f"lantern {HOSTILE} velvet")
    assert "<script" not in words(at, code=False) and "<img" not in words(at, code=False)
    at = open_page("explorer", model=HOSTILE, prompt="lantern")
    assert at.error and "<script" not in at.error[0].value.replace("\\<", "")
    fake = retrieval(name=HOSTILE)
    keep(fake, "retrieval-heads-00000000000a", warnings=[HOSTILE])
    for page in ("retrieval_heads", "runs"):
        text = words(open_page(page, run="retrieval-heads-00000000000a"), code=False)
        assert "script" in text and "<script" not in text.replace("\\<", "") and "<img" not in text.replace("\\<", "")


def test_a_model_that_does_not_exist_is_a_sentence():
    at = open_page("explorer", model="organizm-x", prompt="a")
    assert "organizm" in at.error[0].value


def test_a_probe_screen_opens_on_a_finished_run_with_its_figure_and_downloads(two_runs):
    at = open_page("retrieval_heads", run=two_runs[0])
    assert len(at.get("plotly_chart")) == 1
    assert {"SVG", "PNG", "CSV", "HTML"} <= {b.proto.label for b in at.get("download_button")}
    assert "@inproceedings" in words(at) and two_runs[0] in words(at)
    at.segmented_control(key="part").set_value("Tables").run()
    assert not at.exception and {"CSV", "Parquet"} <= {b.proto.label for b in at.get("download_button")}
    at.segmented_control(key="part").set_value("Summary").run()
    assert "4 [2, 6], n = 64" in words(at)
    at.segmented_control(key="part").set_value("Settings").run()
    assert "from workbench import" in words(at)


@pytest.mark.parametrize(
    "identifier", ["../../etc", "..", "/etc/passwd", "retrieval-heads-ffffffffffff", "%2e%2e", HOSTILE]
)
@pytest.mark.parametrize("page", ["retrieval_heads", "runs"])
def test_a_run_id_from_the_url_cannot_leave_the_runs_folder(two_runs, page, identifier):
    at = open_page(page, run=identifier)
    assert len(at.error) == 1 and "no run" in at.error[0].value


def test_the_form_has_a_control_with_help_for_every_key_and_refuses_what_the_command_line_refuses():
    probe = registry.get("retrieval-heads")
    at = open_page("retrieval_heads")
    keys = {f"retrieval-heads.{field['name']}": field for field in describe(probe.config)}
    found = {
        item.key: item
        for kind in ("text_input", "number_input", "selectbox", "toggle")
        for item in at.get(kind)
        if item.key in keys
    }
    assert set(found) == set(keys)
    assert all(item.help and keys[key]["help"] in item.help for key, item in found.items())
    at.text_input(key="retrieval-heads.depths").set_value("0,300").run()
    assert "depths" in at.error[0].value and at.button[[b.label for b in at.button].index("Run")].disabled


def test_run_puts_exactly_what_the_form_says_into_the_queue(monkeypatch):
    monkeypatch.setattr(jobs, "_start", lambda device: None)
    at = open_page("retrieval_heads", **{"retrieval-heads.model": "circuit-copy"})
    at.button[[b.label for b in at.button].index("Demo")].click().run()
    assert (
        at.text_input(key="retrieval-heads.needles").value == "6"
    )  # the demo asks for eight, this model comes with six
    at.text_input(key="retrieval-heads.lengths").set_value("64,128").run()
    at.number_input(key="retrieval-heads.seed").set_value(7).run()
    command = next(item.value for item in at.code if "workbench run" in item.value)
    assert "--set lengths=64,128" in command and "--seed 7" in command and "--model circuit-copy" in command
    at.button[[b.label for b in at.button].index("Run")].click().run()
    assert not at.exception
    (job,) = jobs.listing()
    assert (job.probe, job.model, job.seed, job.config["lengths"], job.status) == (
        "retrieval-heads",
        "circuit-copy",
        7,
        [64, 128],
        "queued",
    )
    assert job.config["max_new_tokens"] == demo.settings(registry.get(job.probe), "circuit-copy")["max_new_tokens"]
    assert "waiting, number 1" in words(at)
    import os

    import psutil

    job_files.write_state(job.id, status="running", pid=os.getpid(), born=psutil.Process().create_time())
    job_files.write_progress(job.id, 3, 12, "grid", 4.0)
    at.run()
    assert not at.exception and "25% · grid · 4 s left" in words(at)
    (jobs.root() / job.id / "state.json").unlink()
    at.button(key=f"cancel {job.id}").click().run()
    assert jobs.get(job.id).status == "cancelled"


@pytest.mark.parametrize("page", ["runs", "concept_depth"])
@pytest.mark.parametrize("content", ["5", "[" * 50_000, '{"id": 5}'])
def test_a_job_that_cannot_be_read_is_named_on_the_screen_and_dismissed(page, content):
    bad = job_files.root() / "20260101T000000000001-abcdef"
    bad.mkdir(parents=True)
    (bad / "job.json").write_text(content)
    at = open_page(page)
    assert not at.exception and "1 job could not be read" in words(at) and "job.json" in words(at)
    at.button(key="forget unreadable").click().run()
    assert not at.exception and "could not be read" not in words(at) and not bad.exists()


@pytest.mark.parametrize("part", ["page", "fragment"])
def test_a_panic_in_rust_costs_a_sentence_and_not_the_screen(monkeypatch, part):
    def panic(*_, **__):
        raise pl.exceptions.PanicException("index out of bounds")

    monkeypatch.setattr(jobs, "listing" if part == "fragment" else "devices", panic)
    at = open_page("concept_depth")
    assert not at.exception and any("index out of bounds" in error.value for error in at.error)


def test_a_probe_that_cannot_be_imported_says_why_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(registry, "problem", lambda name: "ImportError: no module named nothing")
    at = open_page("concept_depth")
    assert "no module named nothing" in at.info[0].value.replace("\\", "")


def test_runs_are_searched_noted_and_deleted_only_when_confirmed(two_runs):
    at = open_page("runs", run=two_runs[0])
    at.text_input(key="search").set_value("retrieval 0002").run()
    frame = at.dataframe[0].value
    assert list(frame["id"]) == [two_runs[1]]
    at.text_area(key=f"note {two_runs[0]}").set_value("a note").run()
    folder = runs.runs_root() / two_runs[0]
    assert json.loads((folder / "notes.json").read_text())["note"] == "a note"
    delete = [b.label for b in at.button].index("Delete it")
    assert at.button[delete].disabled
    at.checkbox(key=f"sure {two_runs[0]}").check().run()
    at.button[[b.label for b in at.button].index("Delete it")].click().run()
    assert not folder.exists() and (runs.runs_root() / two_runs[1]).exists() and not at.exception


def test_two_runs_are_compared_on_one_scale_with_their_difference(two_runs):
    at = open_page("compare", a=two_runs[0], b=two_runs[1])
    assert [s.value for s in at.selectbox if s.label.endswith("run")] == two_runs
    charts = [json.loads(c.proto.spec) for c in at.get("plotly_chart")]
    assert len(charts) == 4
    ends = [c["layout"]["coloraxis"] for c in charts[:3]]
    assert (ends[0]["cmin"], ends[0]["cmax"]) == (ends[1]["cmin"], ends[1]["cmax"]) and ends[2]["cmin"] == -ends[2][
        "cmax"
    ]
    assert "Spearman" in words(at)
    at.segmented_control(key="view").set_value("Tables").run()
    assert "64 rows matched on layer, head" in words(at) and not at.exception
    at = open_page("compare", a="../..", b=two_runs[1])
    assert "no run" in at.error[0].value


def test_two_runs_stand_in_one_figure_where_the_probe_has_one_and_a_sentence_says_where_not():
    from tests.support.figure_runs import conflict, depth

    fakes = {i: depth(seed=i) for i in (1, 2)}
    one, two = (
        keep(fake, f"concept-depth-{i:012x}", model=fake.info["model"] | {"name": f"model-{i}"})
        for i, fake in fakes.items()
    )
    at = open_page("compare", a=one, b=two, view="In one figure")
    (chart,) = [json.loads(c.proto.spec) for c in at.get("plotly_chart")]
    assert not at.error and {"model-1", "model-2"} <= {trace.get("name") for trace in chart["data"]}
    three, four = (keep(conflict(seed=i), f"knowledge-conflict-{i:012x}") for i in (3, 4))
    at = open_page("compare", a=three, b=four, view="Figures side by side")
    assert "In one figure" not in at.segmented_control(key="view").options and len(at.get("plotly_chart")) == 2
    assert any("has no figure of several runs" in c.value for c in at.caption)


def test_tables_of_one_row_are_compared_without_a_column_to_match_on(two_runs):
    for i, identifier in enumerate(two_runs):
        pl.DataFrame({"accuracy": [0.5 + i / 4]}).write_parquet(
            runs.runs_root() / identifier / "tables" / "overall.parquet"
        )
    at = open_page("compare", a=two_runs[0], b=two_runs[1], view="Tables", table="overall")
    assert "one row in each run" in words(at) and "matched on" not in words(at) and not at.error


@pytest.mark.parametrize("column", ["layer", "score"])
def test_a_table_that_can_be_read_and_makes_no_sense_costs_a_sentence(two_runs, column):
    path = runs.runs_root() / two_runs[1] / "tables" / "heads.parquet"
    write_parquet(path, read_parquet(path).drop(column))
    for view in ("Heads", "Figures side by side", "Tables"):
        at = open_page("compare", a=two_runs[0], b=two_runs[1], view=view)
        assert not at.exception and len([s for s in at.selectbox if s.label.endswith("run")]) == 2
        if view == "Heads" and column == "layer":
            assert two_runs[1] in at.error[0].value.replace("\\", "") and "cannot be compared" in at.error[0].value


def test_models_of_different_shape_are_drawn_each_on_its_own_grid():
    small = keep(retrieval(layers=2, heads=4, kv_heads=4, name="small"), "retrieval-heads-00000000000b")
    large = keep(retrieval(layers=8, heads=8, name="large", seed=1), "retrieval-heads-00000000000c")
    at = open_page("compare", a=small, b=large)
    charts = [json.loads(c.proto.spec) for c in at.get("plotly_chart")]
    assert len(charts) == 2  # no difference, no scatter
    assert cell_count(charts[0]) == 8 and cell_count(charts[1]) == 64
    ends = [c["layout"]["coloraxis"] for c in charts]
    assert (ends[0]["cmin"], ends[0]["cmax"]) == (ends[1]["cmin"], ends[1]["cmax"])
    assert "different shapes" in at.info[0].value and "2 × 4" in at.info[0].value and "8 × 8" in at.info[0].value


def cell_count(chart: dict) -> int:
    """Heads that a drawn map has a cell for."""
    (found,) = [t for t in chart["data"] if t.get("customdata")]
    data = found["customdata"]
    return sum(len(row) for row in data) if isinstance(data[0][0], list) else len(data)


@pytest.mark.parametrize("name", SCREENS)
def test_every_control_has_a_help_text(name, two_runs):
    at = open_page(name)
    kinds = (
        "button",
        "text_input",
        "text_area",
        "number_input",
        "selectbox",
        "multiselect",
        "toggle",
        "checkbox",
        "download_button",
        "segmented_control",
        "pills",
        "file_uploader",
        "popover",
        "button_group",
    )
    found = [(kind, item) for kind in kinds for item in at.get(kind)]
    assert len(found) > 3 or name in ("compare", "runs")
    without = [
        (kind, getattr(item.proto, "label", ""))
        for kind, item in found
        if hasattr(item.proto, "help") and not item.proto.help
    ]
    assert without == []


def test_the_screen_says_what_a_run_will_take_and_follows_the_form():
    at = open_page("retrieval_heads", **{"retrieval-heads.model": "circuit-copy"})
    at.button[[b.label for b in at.button].index("Demo")].click().run()
    said = [next(c.value for c in at.caption if c.value.startswith("About")).replace("\\", "")]
    at.text_input(key="retrieval-heads.lengths").set_value("64").run()
    said.append(next(c.value for c in at.caption if c.value.startswith("About")).replace("\\", ""))
    prompts = [int(re.search(r"About ([0-9,]+) prompts", text)[1].replace(",", "")) for text in said]
    assert prompts[1] == 36 and prompts[0] == 140  # four lengths in the demo: 144, said to two digits
    assert "no speed measured yet" in said[0]  # four lengths in the demo


def test_a_wrong_value_is_told_with_what_the_control_takes():
    at = open_page("retrieval_heads")
    at.text_input(key="retrieval-heads.lengths").set_value("abc").run()
    said = at.error[0].value.replace("\\", "")
    assert "lengths" in said and "list of int" in said


def test_figures_of_one_panel_fit_on_a_small_screen_and_the_tree_can_be_chosen():
    from tests.support.figure_runs import branching

    one = keep(retrieval(seed=1), "retrieval-heads-000000000001")
    at = open_page("retrieval_heads", run=one)
    assert json.loads(at.get("plotly_chart")[0].proto.spec)["layout"]["height"] <= 420
    fake = branching()
    other = keep(fake, "branching-factor-000000000001")
    at = open_page("branching_factor", run=other, figure="tree")
    before = at.get("plotly_chart")[0].proto.spec
    options = at.selectbox(key="prompt").options
    assert len(options) == 1 + fake.table("samples")["prompt"].n_unique()
    at.selectbox(key="prompt").set_value(options[-1]).run()
    assert not at.exception and at.get("plotly_chart")[0].proto.spec != before


def test_a_failed_run_shows_its_message(two_runs):
    keep(
        retrieval(seed=3),
        "retrieval-heads-00000000000f",
        status="failed",
        error={"type": "X", "message": "the <b>reason</b>", "traceback": "line 1"},
    )
    at = open_page("retrieval_heads", run="retrieval-heads-00000000000f")
    assert "reason" in at.error[0].value and "<b>" not in at.error[0].value.replace("\\<", "")


def test_what_modules_hold_is_no_part_of_a_round_of_the_garbage_collector_and_a_dropped_model_is_gone_all_the_same(
    monkeypatch,
):
    from workbench.explorer.opened_model import encode, open_model
    from workbench.explorer.readings import read

    class Ring:
        def __init__(self):
            self.me = self

    opened, ring = open_model("circuit-copy-gqa"), Ring()
    read(opened, encode(opened, "lantern velvet"))
    gone, lost = weakref.ref(opened.model.hf), weakref.ref(ring)
    del ring
    gc.unfreeze()
    monkeypatch.setattr(navigation, "_settled", 0)
    navigation.settle()
    assert lost() is None and gc.get_freeze_count() > 20 * len(gc.get_objects())
    del opened  # a model that the cache lets go of, after it was frozen
    assert gone() is None
    gc.unfreeze()
    navigation.settle()
    assert gc.get_freeze_count() == 0  # nothing was imported since: nothing to do


def test_pages_hold_no_tensor_maths_and_nothing_that_could_run_foreign_code():
    for path in [ROOT / "app.py", *(ROOT / "pages").rglob("*.py")]:
        source = path.read_text()
        assert not re.search(r"^\s*(import|from) (torch|transformers|pickle|subprocess)\b", source, re.M), path
        assert not re.search(
            r"\b(eval|exec)\(|unsafe_allow_html|unsafe_allow_javascript|trust_remote_code|innerHTML|https?://", source
        ), path
    for name in ("runs/queue", "runs/worker", "explorer/readings"):
        assert not re.search(
            r"\b(eval|exec)\(|import pickle|shell=True", (ROOT / "workbench" / f"{name}.py").read_text()
        )


def test_the_app_listens_to_this_machine_only_and_tells_nobody():
    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    assert config["server"]["address"] == "localhost" and config["server"]["maxUploadSize"] <= 50
    assert config["browser"]["gatherUsageStats"] is False and config["server"]["enableXsrfProtection"]


def test_markdown_and_html_escapes_leave_only_text():
    from pages.widgets import styling

    assert styling.esc(HOSTILE).count("<") == 0
    assert re.sub(r"\\[\W_]", "", styling.md("*a* [b](c) <i> `d` $e$ :f:")).strip() == "a bc i d e f"
    for text in ("https://a.example", "www.a.example", "a@b.example", ":material/home:", "a -> b", "a -- b"):
        said = styling.md(text)  # what Streamlit would turn into something is parted, and reads as before
        assert styling.JOINER in said and re.sub(r"\\(.)", r"\1", said).replace(styling.JOINER, "") == text
    assert styling.JOINER not in styling.md("run it again with --fresh, as a->b: 5 % of it")
    assert [styling.named(n) for n in ("masked_trials", "head map", "a-b")] == ["masked_trials", "head map", "a-b"]
    assert styling.named("_a_") == r"\_a\_" and styling.named("![i](x)").startswith("\\!\\[")
    table = styling.table([(HOSTILE, HOSTILE, 0.5)], [("a", "tok"), (HOSTILE, "text"), ("p", "bar")])
    assert "<script" not in table and "<img" not in table
    assert (
        styling.limits([0.1, 0.4]) == (0.0, 0.4)
        and styling.limits([-2.0, 1.0], diverging=True) == (-2.0, 2.0)
        and styling.limits([]) == (0.0, 1.0)
    )


def test_the_explorer_names_no_head_where_none_is_above_its_control():
    at = open_page("explorer", model="organism@step-0", card="Scores")  # before any training
    said = "no head's induction is above its control by 0.1 or more (n = 20 sequences"
    opened_on = said.replace("20", "12")
    assert opened_on in words(at).replace("\\", "").replace("&#x27;", "'")
    assert "No head to open on" in words(at) and "Layer 5, head 0" in words(at)
    assert said in words(at).replace("\\", "").replace("&#x27;", "'") and "its control" in words(at)
    at.selectbox(key="colour").set_value("induction").run()
    assert any("takes 5 sequences" in c.value.replace("\\", "") for c in at.caption)  # the prompt is one
    at.selectbox(key="scored").set_value("repeated tokens").run()
    assert any(said in c.value.replace("\\", "") for c in at.caption)
    at.button[[b.label for b in at.button].index("Switch these off")].click().run()
    assert not at.exception and at.button(key="switch").label == "Switch off 5.0"
    assert sum(said in c.value.replace("\\", "") for c in at.caption) == 2  # why nothing was switched, too


def test_the_explorer_says_so_where_words_are_too_few_to_score_heads_on(tmp_path):
    from tests.support.architectures import build
    from tests.support.real_tokenizers import byte_level

    names = ["A", "B", "C"]
    made = byte_level()
    made.save_pretrained(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"], tokenizer["model"]["merges"] = {name: i for i, name in enumerate(names)}, []
    tokenizer["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    build("gpt2", vocab_size=3, bos_token_id=None, eos_token_id=None).save_pretrained(tmp_path)
    at = open_page("explorer", model=str(tmp_path), prompt="ABCA", card="Scores")
    assert not at.error and "cannot be scored on repeated words" in words(at)


def test_what_tells_runs_apart_stands_first_in_the_boxes_of_compare(two_runs):
    at = open_page("compare", a=two_runs[0], b=two_runs[1])
    assert not at.exception
    assert [box.options[0][:15] for box in at.selectbox[:2]] == ["organism 000000", "organism 000000"]
