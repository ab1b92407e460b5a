"""Screens of the app opened by streamlit's own test driver, and synthetic runs for them to show."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest

from pages.widgets import navigation
from workbench.core.files import write_json
from workbench.runs import execution as runs

ROOT = Path(__file__).resolve().parents[2]


def open_page(name: str, **params: str) -> AppTest:
    """A screen inside the frame that app.py gives it, by its place in the URL."""
    navigation.settle()

    def script(path, probe):
        import runpy

        import streamlit as st

        from pages.probe import screen
        from pages.widgets import styling

        st.session_state["framed"] = True
        with styling.guard():
            if probe:
                screen(probe)
            else:
                runpy.run_path(path, run_name="__page__")

    probe = "" if name in ("activations", "compare", "explorer", "runs") else name.replace("_", "-")
    at = AppTest.from_function(
        script, default_timeout=120, kwargs={"path": str(ROOT / "pages" / f"{name}.py"), "probe": probe}
    )
    for key, value in params.items():
        at.query_params[key] = value
    at.run()
    assert not at.exception, at.exception
    return at


def words(at: AppTest, *, code: bool = True) -> str:
    """Everything that is written on the screen as HTML, Markdown or messages, and as code (which the browser shows as
    text)."""
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
    info = (
        {
            "schema": 1,
            "status": "complete",
            "engine": "hf",
            "edits": [],
            "versions": {},
            "started": "2026-01-01T10:00:00.000+00:00",
            "finished": "2026-01-01T10:01:00.000+00:00",
            "seconds": {"load": 1.0, "compute": 2.0, "total": 3.0},
            "warnings": [],
            "counters": {"prompts": 4, "tokens": 100, "forwards": 4, "cache_hits": 0},
            "peak_memory_bytes": 10**8,
            "command": "workbench run x",
        }
        | fake.info
        | {"id": identifier}
        | about
    )
    write_json(folder / "run.json", info)
    write_json(folder / "summary.json", {"retrieval_heads": {"value": 4, "low": 2, "high": 6, "n": 64}})
    return identifier
