"""Every screen through streamlit's own test driver: opens, says what to do when empty, restores a link, refuses what is hostile."""

import json
import re
import tomllib
from pathlib import Path

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from tests.figure_runs import retrieval
from workbench import jobs, registry, runs
from workbench.config import describe
from workbench.files import write_json

ROOT = Path(__file__).resolve().parents[1]
SCREENS = sorted(path.stem for path in (ROOT / "pages").glob("*.py") if path.stem != "__init__")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def open_page(name: str, **params: str) -> AppTest:
    """A screen inside the frame that app.py gives it."""

    def script(path, params):
        import runpy

        import streamlit as st

        from pages.parts import look

        st.session_state["framed"] = True
        with look.guard():
            runpy.run_path(path, run_name="__page__")

    at = AppTest.from_function(
        script, default_timeout=120, kwargs={"path": str(ROOT / "pages" / f"{name}.py"), "params": params}
    )
    for key, value in params.items():
        at.query_params[key] = value
    at.run()
    assert not at.exception, at.exception
    return at


def words(at: AppTest, *, code: bool = True) -> str:
    """Everything that is written on the screen as HTML, Markdown or messages, and as code (which the browser shows as text)."""
    kinds = (
        "html",
        "markdown",
        "caption",
        "info",
        "error",
        "warning",
        "title",
        "subheader",
        *(("code",) if code else ()),
    )
    return "\n".join(
        str(getattr(item, "value", None) or getattr(item, "body", None) or item.proto)
        for kind in kinds
        for item in at.get(kind)
    )


def keep(fake, identifier: str, **about) -> str:
    """Write a synthetic run as a folder below the runs root."""
    folder = runs.runs_root() / identifier
    (folder / "tables").mkdir(parents=True)
    for name in fake.tables:
        fake.table(name).write_parquet(folder / "tables" / f"{name}.parquet")
    info = {
        "schema": 1, "status": "complete", "engine": "hf", "edits": [], "versions": {}, "started": "2026-01-01T10:00:00.000+00:00",
        "finished": "2026-01-01T10:01:00.000+00:00", "seconds": {"load": 1.0, "compute": 2.0, "total": 3.0}, "warnings": [],
        "counters": {"prompts": 4, "tokens": 100, "forwards": 4, "cache_hits": 0}, "peak_memory_bytes": 10**8, "command": "workbench run x",
    } | fake.info | {"id": identifier} | about  # fmt: skip
    write_json(folder / "run.json", info)
    write_json(folder / "summary.json", {"retrieval_heads": {"value": 4, "low": 2, "high": 6, "n": 64}})
    return identifier


@pytest.fixture
def two_runs():
    return [keep(retrieval(seed=i), f"retrieval-heads-{i:012x}") for i in (1, 2)]


@pytest.mark.parametrize("name", [n for n in SCREENS if n != "explorer"])
def test_every_screen_opens_on_an_empty_cache_and_says_what_to_do(name):
    at = open_page(name)
    assert at.info and any(len(item.value) > 30 for item in at.info)


def test_every_probe_has_its_screen():
    from importlib.metadata import entry_points

    assert {name.replace("-", "_") for name in entry_points(group=registry.GROUP).names} <= set(SCREENS)


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


@pytest.mark.parametrize("params", [
    {"head": "99.99"}, {"head": "../.."}, {"at": "-5"}, {"at": "99999"}, {"off": "7.7,x,<script>"}, {"how": "bogus"}, {"card": "bogus"},
    {"how": "patch", "off": "0.0"}, {"colour": HOSTILE},
])  # fmt: skip
def test_a_link_with_nonsense_in_it_gives_a_screen_and_no_traceback(params):
    at = open_page("explorer", model="circuit-copy-gqa", prompt="lantern velvet", **params)
    assert "next token" in words(at)


def test_text_from_outside_is_shown_and_never_becomes_part_of_the_page():
    at = open_page("explorer", model="circuit-copy-gqa", prompt=f"lantern {HOSTILE} velvet")
    assert "<script" not in words(at) and "<img" not in words(at)
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
    assert job.config["max_new_tokens"] == registry.get("retrieval-heads").demo["max_new_tokens"]
    assert "waiting, number 1" in words(at)
    import os

    import psutil

    jobs.write_state(job.id, status="running", pid=os.getpid(), born=psutil.Process().create_time())
    jobs.write_progress(job.id, 3, 12, "grid", 4.0)
    at.run()
    assert not at.exception and "grid, 3 of 12 (25%), 4 s left" in words(at)
    (jobs.root() / job.id / "state.json").unlink()
    at.button(key=f"cancel {job.id}").click().run()
    assert jobs.get(job.id).status == "cancelled"


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


def test_a_failed_run_shows_its_message(two_runs):
    keep(
        retrieval(seed=3),
        "retrieval-heads-00000000000f",
        status="failed",
        error={"type": "X", "message": "the <b>reason</b>", "traceback": "line 1"},
    )
    at = open_page("retrieval_heads", run="retrieval-heads-00000000000f")
    assert "reason" in at.error[0].value and "<b>" not in at.error[0].value.replace("\\<", "")


def test_pages_hold_no_tensor_maths_and_nothing_that_could_run_foreign_code():
    for path in [ROOT / "app.py", *(ROOT / "pages").rglob("*.py")]:
        source = path.read_text()
        assert not re.search(r"^\s*(import|from) (torch|transformers|pickle|subprocess)\b", source, re.M), path
        assert not re.search(
            r"\b(eval|exec)\(|unsafe_allow_html|unsafe_allow_javascript|trust_remote_code|innerHTML|https?://", source
        ), path
    for name in ("jobs", "worker", "explorer"):
        assert not re.search(
            r"\b(eval|exec)\(|import pickle|shell=True", (ROOT / "workbench" / f"{name}.py").read_text()
        )


def test_the_app_listens_to_this_machine_only_and_tells_nobody():
    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    assert config["server"]["address"] == "localhost" and config["server"]["maxUploadSize"] <= 50
    assert config["browser"]["gatherUsageStats"] is False and config["server"]["enableXsrfProtection"]


def test_markdown_and_html_escapes_leave_only_text():
    from pages.parts import look

    assert look.esc(HOSTILE).count("<") == 0
    assert re.sub(r"\\[\W_]", "", look.md("*a* [b](c) <i> `d` $e$ :f:")).strip() == "a bc i d e f"
    table = look.table([(HOSTILE, HOSTILE, 0.5)], [("a", "tok"), (HOSTILE, "text"), ("p", "bar")])
    assert "<script" not in table and "<img" not in table
    assert (
        look.limits([0.1, 0.4]) == (0.0, 0.4)
        and look.limits([-2.0, 1.0], diverging=True) == (-2.0, 2.0)
        and look.limits([]) == (0.0, 1.0)
    )
    assert pl.Series([look.number(v) for v in (None, float("nan"), 0.12345, 3, True, 1e-7)]).to_list() == [
        "–",
        "–",
        "0.123",
        "3",
        "yes",
        "1e-07",
    ]
