"""Exported files: vectors at their printed size, a caption and BibTeX beside each, and a sentence where there is no
browser."""

import errno
import io
import os
import re

import polars as pl
import pytest

from probes.data_selection import figures as data_selection
from probes.knowledge_conflict import figures as knowledge_conflict
from probes.retrieval_heads import figures as retrieval_heads
from tests.support import figure_runs
from workbench import figures
from workbench.core import registry
from workbench.core.errors import InputError, WorkbenchError
from workbench.figures import export

BIBTEX = "@article{someone2026, title={On heads}}"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A small run of a registered probe, with a folder."""
    made = figure_runs.retrieval(layers=3, heads=4, kv_heads=2)
    made.probe, made.info["probe"], made.folder = "drawn", "drawn", tmp_path / "run"
    made.frames = {k: made.frames[k] for k in ("heads", "trials")}
    item = registry.Probe(
        name="drawn",
        summary="s",
        run=lambda model, config, context: None,
        config=object,
        tables={},
        bibtex=BIBTEX,
        figures="probes.retrieval_heads.figures:figures",
    )
    monkeypatch.setitem(registry._registered, "drawn", item)
    return made


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def chromium():
    try:
        return export.browser()
    except WorkbenchError as error:
        pytest.skip(f"no Chromium on this machine: {error}")


@pytest.fixture
def no_chromium(monkeypatch):
    from choreographer.browsers.chromium import Chromium

    monkeypatch.delenv("BROWSER_PATH", raising=False)
    monkeypatch.setattr(Chromium, "find_browser", classmethod(lambda cls, **options: None))


def test_build_dispatches_through_the_registry_and_names_what_it_cannot_draw(run):
    made = figures.build(run)
    assert list(made) == ["head_map", "score_curve", "needle_map", "activation"]
    assert list(figures.build(run, "score_curve")) == ["score_curve"]
    assert (
        figures.problems(run)["masking"] == f"The run {run.id} has no table 'masking', from which this figure is drawn."
    )
    with pytest.raises(InputError, match="no table 'masking'"):
        figures.build(run, "masking")
    with pytest.raises(InputError, match="did you mean 'head_map'"):
        figures.build(run, "headmap")


@pytest.mark.slow
def test_files_are_vectors_of_one_page_at_the_printed_size(run, chromium, out, monkeypatch, tmp_path):
    counted = tmp_path / "chromium"
    counted.write_text(f'#!/bin/sh\necho once >> {tmp_path}/started\nexec {chromium} --proxy-server=127.0.0.1:9 "$@"\n')
    counted.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(counted))
    written = export.export_run(
        run, formats=["pdf", "svg", "png"], preset="single", out=out, only=["head_map", "score_curve"]
    )
    assert (tmp_path / "started").read_text() == "once\n"  # one browser, without a network
    assert sorted(p.name for p in written) == sorted(
        f"{name}.{suffix}"
        for name in ("head_map", "score_curve")
        for suffix in ("pdf", "svg", "png", "caption.txt", "bib")
    )
    assert not list(out.glob(".*"))
    for name in ("head_map", "score_curve"):
        pdf = (out / f"{name}.pdf").read_bytes()
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1
        assert b"/Subtype /Image" not in pdf and b"/Font" in pdf
        width = float(re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+)", pdf).group(1))
        assert width == pytest.approx(3.25 * 72, abs=1)
        svg = (out / f"{name}.svg").read_text()
        assert "<image" not in svg and 'width="312"' in svg
        header = (out / f"{name}.png").read_bytes()[:24]
        assert int.from_bytes(header[16:20], "big") == pytest.approx(3.25 * 600, abs=4)


def test_without_chromium_one_sentence_says_what_to_install_and_the_rest_is_written(run, no_chromium, out):
    with pytest.raises(WorkbenchError, match="apt-get install chromium.*html and csv work"):
        export.export_run(run, formats=["pdf", "html", "csv"], out=out, only="score_curve")
    assert {p.name for p in out.iterdir()} == {
        "score_curve.caption.txt",
        "score_curve.bib",
        "score_curve.html",
        "score_curve.csv",
    }
    page = (out / "score_curve.html").read_text()
    assert "retrieval score" in page and "Seed 7" in page and 'src="https://' not in page  # the script is inside
    with pytest.raises(WorkbenchError, match="Chromium"):
        export.export(retrieval_heads.head_map(run), out / "a.svg")


def test_a_wrong_browser_path_is_named(run, monkeypatch, out):
    monkeypatch.setenv("BROWSER_PATH", str(out / "nothing"))
    with pytest.raises(WorkbenchError, match="BROWSER_PATH names .*nothing"):
        export.export(retrieval_heads.head_map(run), out / "a.pdf")


def test_a_browser_that_cannot_draw_gives_a_sentence_after_a_second_try(run, monkeypatch, out, tmp_path):
    fails = tmp_path / "chromium"
    fails.write_text(f"#!/bin/sh\necho once >> {tmp_path}/started\nexit 1\n")
    fails.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(fails))
    with pytest.raises(WorkbenchError, match="Chromium could not draw a.pdf .*doctor.*html and csv work"):
        export.export(retrieval_heads.head_map(run), out / "a.pdf")
    assert (tmp_path / "started").read_text() == "once\nonce\n" and not list(out.iterdir())


def test_what_a_killed_export_left_is_swept_and_the_next_one_completes(run, out):
    names = (
        ".score_curve.csv.tmp-0123456789ab",
        ".score_curve.caption.txt.tmp-0123456789ab",
        ".other.tmp-0123456789ab",
    )
    for name in names:
        (out / name).write_text("half")
    (out / "score_curve.caption.txt").write_text("of the first try\n")
    (out / "score_curve.csv").write_text("of the first try\n")
    export.export_run(run, formats=["csv"], out=out, only="score_curve")
    assert [p.name for p in out.glob(".*")] == [".other.tmp-0123456789ab"]  # not ours
    assert "trace" in (out / "score_curve.csv").read_text()


def test_a_folder_of_others_keeps_its_files(run, out):
    """A file of one of our names without a caption of ours beside it is somebody else's."""
    (out / "thesis.tex").write_text("mine")
    export.export_run(run, formats=["csv"], out=out, only="score_curve")
    before = (out / "score_curve.csv").read_text()
    export.export_run(run, formats=["csv"], out=out, only="score_curve")  # ours is replaced
    assert (out / "thesis.tex").read_text() == "mine" and (out / "score_curve.csv").read_text() == before
    for name in ("head_map.csv", "head_map.bib"):
        (out / name).write_text("mine")
        with pytest.raises(InputError, match=rf"{name} is there already and is not ours.*--out"):
            export.export_run(run, formats=["csv"], out=out, only="head_map")
        assert (out / name).read_text() == "mine" and not (out / "head_map.caption.txt").exists()
        (out / name).unlink()
    for bad in (out / "thesis.tex", ""):
        with pytest.raises(InputError, match="is no folder; choose another"):
            export.export_run(run, formats=["csv"], out=bad)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_takes_nothing_is_named_in_a_sentence(run, out, monkeypatch, code):
    def fails(path, data):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(export, "write_bytes", fails)
    for made in (
        lambda: export.export_run(run, formats=["csv"], out=out, only="score_curve"),
        lambda: export.export(retrieval_heads.head_map(run), out / "a.html"),
    ):
        with pytest.raises(WorkbenchError, match=rf"cannot be written \({os.strerror(code)}\); make room") as caught:
            made()
        assert str(out) in str(caught.value) and "\n" not in str(caught.value)
    assert not list(out.iterdir())


def test_the_caption_says_model_revision_data_seed_n_and_interval(run):
    said = export.caption(run, retrieval_heads.score_curve(run))
    for part in (
        "organism",
        "revision main",
        "a1b2c3d4e5f6",
        "float32",
        "needles.jsonl",
        "8 rows",
        "Seed 7",
        "n = 4 needles (240 trials)",
        "95 % over needles",
        run.info["id"],
    ):
        assert part in said, part
    assert said.endswith(".") and ".." not in said
    assert "Vertical lines separate" in export.caption(run, retrieval_heads.head_map(run))
    run.info["config"]["resample"] = "trials"
    assert "95 % over trials" in export.caption(run, retrieval_heads.score_curve(run))
    run.info = {"probe": "drawn"}
    assert export.caption(run, retrieval_heads.score_curve(run)).startswith("Retrieval scores")


def test_bibtex_is_that_of_the_method_and_a_probe_that_is_gone_has_none(run):
    assert export.bibtex(run) == BIBTEX
    run.probe = "no-such-probe"
    assert export.bibtex(run) == ""


def test_csv_holds_the_numbers_that_are_drawn(run, out):
    path = export.export(retrieval_heads.head_map(run), out / "map.csv")
    frame = pl.read_csv(path)
    table = run.table("heads")
    joined = frame.join(
        table, left_on=["x", "y"], right_on=[pl.col("head").cast(pl.Float64), pl.col("layer").cast(pl.Float64)]
    )
    assert joined.height == 12 and joined["value"].to_list() == pytest.approx(joined["score"].to_list())
    curve = pl.read_csv(io.StringIO(export.data_of(retrieval_heads.score_curve(run)).write_csv()))
    best = table.sort("score", descending=True)
    assert curve["y"].to_list() == pytest.approx(best["score"].to_list())
    assert curve["low"].to_list() == pytest.approx(best["ci_low"].to_list())
    assert curve["high"].to_list() == pytest.approx(best["ci_high"].to_list())
    run = figure_runs.selection()
    spots = export.data_of(data_selection.precision(run)).filter(
        (pl.col("trace") == "SAE features") & (pl.col("panel") == "gsm8k")
    )
    wanted = run.table("precision").filter((pl.col("method") == "sae") & (pl.col("target") == "gsm8k")).sort("ratio")
    assert spots["low"].to_list() == pytest.approx(wanted["ci_low"].to_list())
    words = export.data_of(knowledge_conflict.answers(figure_runs.conflict()))
    assert words.columns == ["subject", "memory", "context", "answer before", "answer after"]
    assert words["subject"][0] == "Person 1 of the <long> village name"  # as it is, not escaped


def test_wrong_formats_and_sizes_are_refused_before_anything_is_drawn(run, out):
    with pytest.raises(InputError, match="pdf, svg, png, html, csv"):
        export.export_run(run, formats=["eps"], out=out)
    with pytest.raises(InputError, match="single, double, slide"):
        export.export_run(run, formats=["csv"], preset="poster", out=out)
    with pytest.raises(InputError, match="No format"):
        export.export_run(run, formats=[], out=out)
    assert not list(out.iterdir())


def test_figures_go_into_the_folder_of_the_run_unless_told_otherwise(run):
    written = export.export_run(run, formats=["csv"], only="head_map")
    assert {p.parent for p in written} == {run.folder / "figures"}
