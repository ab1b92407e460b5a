"""Run folders: what is in them, stopping, resuming, damage, and what goes wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from workbench.core import context as contexts
from workbench.core import files
from workbench.core.context import Context, Result
from workbench.core.errors import Cancelled, InputError, RunFailed, WorkbenchError
from workbench.core.registry import DataSpec, Probe, option
from workbench.core.tables import read_table
from workbench.runs import execution as runs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402

MODEL = tiny_probes.fake_model()
CHILD = [sys.executable, tiny_probes.__file__, "workbench", "run", "parts", "--model", "fake"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every result file of a run folder, by name."""
    kept = [*folder.glob("tables/*"), folder / "arrays.safetensors", folder / "summary.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_a_run_folder_holds_exactly_what_the_design_says():
    told = []
    run = runs.execute("parts", MODEL, config={"parts": "4"}, seed=3, progress=lambda *step: told.append(step))
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "arrays.safetensors",
        "progress.jsonl",
        "run.json",
        "summary.json",
        "tables",
    ]
    info = json.loads((run.folder / "run.json").read_text())
    assert {
        "schema",
        "id",
        "probe",
        "status",
        "config",
        "model",
        "data",
        "seed",
        "versions",
        "command",
        "started",
        "finished",
        "seconds",
        "counters",
        "peak_memory_bytes",
        "warnings",
    } <= set(info)
    assert info["status"] == "complete" and info["id"] == run.folder.name and info["seed"] == 3 and info["data"] is None
    assert info["config"] == {"parts": 4, "seconds": 0.0, "fail_at": None, "log": ""}
    assert info["model"] == {
        "name": "fake",
        "revision": None,
        "fingerprint": "fingerprint of fake",
        "architecture": "Fake",
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "width": 16,
        "dtype": "float32",
        "device": "cpu",
    }
    assert info["counters"] == {"prompts": 8, "tokens": 40, "forwards": 0, "cache_hits": 0}
    assert set(info["seconds"]) == {"load", "compute", "total"} and info["peak_memory_bytes"] > 10_000_000
    assert info["versions"]["polars"] == pl.__version__ and info["versions"]["python"].startswith("3.")
    assert info["started"] <= info["finished"]
    assert info["command"] == "workbench run parts --model fake --set parts=4 --seed 3"
    assert [step[2] for step in told] == [*(f"parts: {n} of 4" for n in (1, 2, 3, 4)), "complete"]
    assert [step[:2] for step in told] == [(225, 1000), (450, 1000), (675, 1000), (900, 1000), (1000, 1000)]
    assert run.progress()["done"] == run.progress()["total"] == 1000


def test_tables_arrays_and_summary_come_back_as_the_probe_gave_them():
    run = runs.execute("parts", MODEL, config={"parts": 2})
    rows = run.table("rows")
    expected = np.concatenate([Context(seed=0).rng(f"part {number}").normal(size=4) for number in range(2)])
    assert run.tables == ["rows"] and run.arrays == ["x"]
    assert rows["x"].to_list() == expected.tolist() and rows.schema == {
        "part": pl.Int64,
        "draw": pl.Int64,
        "x": pl.Float64,
    }
    assert np.array_equal(run.array("x"), expected.reshape(2, 4))
    assert run.summary == {"mean": {"value": pytest.approx(expected.mean()), "low": -1.0, "high": 1.0, "n": 8}}
    with pytest.raises(InputError, match=r"no table 'row' \(did you mean 'rows'\?\)"):
        run.table("row")
    with pytest.raises(InputError, match="no array 'y'"):
        run.array("y")


def test_the_same_command_returns_the_complete_run_without_computing_and_fresh_computes_again(tmp_path):
    log = tmp_path / "log"
    first = runs.execute("parts", MODEL, config={"log": str(log)})
    second = runs.execute("parts", MODEL, config={"log": str(log)})
    assert second.info == first.info and len(log.read_text().split()) == 6
    third = runs.execute("parts", MODEL, config={"log": str(log)}, fresh=True)
    assert third.id == first.id and third.info["started"] > first.info["started"] and len(log.read_text().split()) == 12


def test_the_id_changes_with_everything_that_the_numbers_depend_on_and_with_nothing_else(tmp_path):
    base = {"probe": "parts", "model": MODEL, "config": {"parts": 1}, "seed": 0}

    def identity(**changes):
        return runs.execute(**{**base, **changes}, out=tmp_path / str(time.perf_counter_ns())).id

    reference = identity()
    assert identity() == identity(config={"parts": "1"}) == identity(command="something else") == reference
    other = tiny_probes.fake_model()
    other.dtype = "torch.bfloat16"
    changed = [
        identity(seed=1),
        identity(config={"parts": 2}),
        identity(model=tiny_probes.fake_model("b")),
        identity(model=other),
        identity(engine="nnsight"),
    ]
    assert len({reference, *changed}) == 6
    assert reference.startswith("parts-") and len(reference) == len("parts-") + 12


def test_files_named_in_a_config_and_data_count_by_content_and_name_not_by_folder(tmp_path):
    @dataclass(frozen=True)
    class Config:
        haystack: str = option("default", "a text file, or default", file=True)

    probe = Probe("files", "S.", lambda *_: Result(), Config, {}, "@misc{x}", data=DataSpec(("text",)))

    def identity(haystack, data):
        ready = runs.prepare(probe, {"haystack": str(haystack)}, data)
        return json.dumps(runs.identify(ready, MODEL, seed=0))

    (tmp_path / "other").mkdir()
    same, called, holds = tmp_path / "other" / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"
    a = tmp_path / "a.txt"
    for path, text in ((a, "one"), (same, "one"), (called, "one"), (holds, "two")):
        path.write_text(text)
    assert identity(a, a) == identity(same, same)
    different = [(a, a), (holds, a), (a, holds), (called, a), (a, called), ("default", a)]
    assert len({identity(*pair) for pair in different}) == len(different)


@dataclass(frozen=True)
class TextsConfig:
    texts: str = option("default", "file of texts, or default", file=True)
    most: int = option(100, "how many of the texts to use", low=1)
    refuse: str = option("", "when to refuse its input: at once, or after a part")


def _texts_probe(material=None, **spec):
    def run(model, config, context):
        if config.refuse == "at once":
            raise InputError("The texts do not fit the model.")
        used = read_table(context.data, required=("text",))["text"].to_list()[: config.most]
        context.rows_used = len(used)
        context.part("lengths", lambda: {"lengths": np.array([len(text) for text in used])})
        if config.refuse == "after a part":
            raise InputError("The second half of the texts does not fit the model.")
        return Result({"texts": pl.DataFrame({"text": used})})

    data = DataSpec(("text",), what="texts", option="texts", **spec)
    return Probe("texts", "S.", run, TextsConfig, {"texts": ("text",)}, "@misc{x}", data=data, material=material)


@pytest.fixture
def two_files(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("text\n" + "".join(f"a{i}\n" for i in range(5)))
    (tmp_path / "b.csv").write_text("text\nb0\nb1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_data_file_named_in_the_config_is_the_one_that_is_read_and_recorded(two_files):
    item = _texts_probe()
    run = runs.execute(item, MODEL, config={"texts": "b.csv"})
    assert run.table("texts")["text"].to_list() == ["b0", "b1"]
    sha = hashlib.sha256((two_files / "b.csv").read_bytes()).hexdigest()
    assert run.info["data"] == {"path": str(two_files / "b.csv"), "fingerprint": sha, "rows": 2}
    by_data = runs.execute(item, MODEL, data="b.csv")
    assert by_data.info["data"] == run.info["data"] and by_data.id != runs.execute(item, MODEL, data="a.csv").id
    with pytest.raises(InputError, match="texts file is given twice, --data a.csv and texts=b.csv; keep one"):
        runs.prepare(item, {"texts": "b.csv"}, "a.csv")
    assert (
        runs.prepare(item, {"texts": "b.csv"}, two_files / "b.csv").data == two_files / "b.csv"
    )  # as a finished run names them
    with pytest.raises(InputError, match="There is no texts file c.csv"):
        runs.prepare(item, {"texts": "c.csv"})


def test_the_rows_of_the_data_are_those_that_were_used(two_files):
    run = runs.execute(_texts_probe(), MODEL, config={"most": 3}, data="a.csv")
    assert (run.info["data"]["rows"], run.info["data"]["rows_in_file"]) == (3, 5)
    whole = runs.execute(_texts_probe(), MODEL, data="a.csv")
    assert whole.info["data"]["rows"] == 5 and "rows_in_file" not in whole.info["data"]


def test_the_command_of_a_run_works_from_any_folder(two_files, monkeypatch):
    item = _texts_probe()
    model = two_files / "models" / "m"
    model.mkdir(parents=True)
    ready = runs.prepare(item, {"texts": "b.csv"})
    command = runs.command_for(ready, "models/m", edit="edits.json", out="here")
    monkeypatch.chdir("/")
    assert command == (
        f"workbench run texts --model {model} --set texts={two_files}/b.csv --edit {two_files}/edits.json "
        f"--out {two_files}/here"
    )
    assert (
        runs.command_for(runs.prepare(item, None, two_files / "a.csv"), "organism")
        == f"workbench run texts --model organism --data {two_files}/a.csv"
    )


def test_material_that_a_probe_names_counts_by_content_and_is_recorded(two_files):
    hay = two_files / "hay.txt"
    item = _texts_probe(material=lambda config, model: {"haystack": hay, "template": f"for {model}"})
    hay.write_text("one")
    first = runs.execute(item, MODEL, data="b.csv")
    assert first.info["material"] == {
        "haystack": {"file": "hay.txt", "fingerprint": hashlib.sha256(b"one").hexdigest()},
        "template": {"value": "for fake"},
    }
    assert runs.execute(item, MODEL, data="b.csv").info["started"] == first.info["started"]
    hay.write_text("two")
    second = runs.execute(item, MODEL, data="b.csv")
    assert (
        second.id != first.id
        and second.info["material"]["haystack"]["fingerprint"] == hashlib.sha256(b"two").hexdigest()
    )
    assert "material" not in runs.execute(_texts_probe(), MODEL, data="b.csv").info


def test_the_retrieval_probe_counts_the_haystack_that_it_takes_by_default(tmp_path, monkeypatch):
    from probes.retrieval_heads import shipped

    (tmp_path / "haystack.txt").write_text("A haystack. ")
    monkeypatch.setattr(shipped, "ESSAYS", tmp_path / "haystack.txt")

    def identity(**config):
        return runs.identify(runs.prepare("retrieval-heads", config), MODEL, seed=0)

    before, given = identity(), identity(haystack=str(tmp_path / "haystack.txt"))
    haystack = hashlib.sha256(b"A haystack. ").hexdigest()
    assert before["material"] == {"haystack": haystack, "template": "auto"} and "haystack" not in given["material"]
    (tmp_path / "haystack.txt").write_text("Another haystack. ")
    assert identity() != before


def test_input_that_a_probe_refuses_leaves_no_run_unless_something_was_computed(two_files):
    item = _texts_probe()
    for out in (None, two_files / "new"):
        with pytest.raises(InputError, match="do not fit"):
            runs.execute(item, MODEL, config={"refuse": "at once"}, data="a.csv", out=out)
    assert runs.list_runs() == [] and list(runs.runs_root().iterdir()) == [] and not (two_files / "new").exists()
    (two_files / "mine").mkdir()
    with pytest.raises(InputError, match="do not fit"):
        runs.execute(item, MODEL, config={"refuse": "at once"}, data="a.csv", out=two_files / "mine")
    assert list((two_files / "mine").iterdir()) == []  # the folder was there before the run
    with pytest.raises(InputError, match="second half"):
        runs.execute(item, MODEL, config={"refuse": "after a part"}, data="a.csv")
    (kept,) = runs.list_runs()
    assert kept.status == "failed" and list((kept.folder / "parts").iterdir())


@pytest.mark.parametrize("where", ["python", "cpu", "cuda"])
def test_out_of_memory_is_said_in_one_sentence(where):
    import torch

    def run(model, config, context):
        if where == "python":
            raise MemoryError
        if where == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        torch.empty(10**15)  # more than any machine can address

    item = Probe("greedy", "S.", run, TextsConfig, {}, "@misc{x}")
    with pytest.raises(RunFailed, match="^The probe 'greedy' ran out of memory; use a smaller batch, model or dtype.$"):
        runs.execute(item, MODEL)


def test_a_generator_depends_on_seed_and_name_and_on_nothing_drawn_before():
    context = Context(seed=5)
    first = context.rng("a").normal(size=3)
    context.rng("b").normal(size=100)
    assert np.array_equal(context.rng("a").normal(size=3), first)
    assert not np.array_equal(context.rng("b").normal(size=3), first)
    assert not np.array_equal(Context(seed=6).rng("a").normal(size=3), first)
    assert 0 <= context.torch_seed("a") < 2**63 and context.torch_seed("a") != context.torch_seed("b")


@pytest.mark.parametrize("kind", ["event", "function", "keyboard"])
def test_a_cancelled_run_keeps_its_parts_and_resumes_to_the_same_result(tmp_path, kind):
    whole = runs.execute("parts", MODEL, config={"log": str(tmp_path / "log")}, out=tmp_path / "whole")
    (tmp_path / "log").unlink()
    event = threading.Event()

    def stop(done, total, label):
        if label == "parts: 3 of 6":
            if kind == "keyboard":
                raise KeyboardInterrupt
            event.set()

    options = {"config": {"log": str(tmp_path / "log")}, "out": tmp_path / "run"}
    with pytest.raises(Cancelled, match="the same command resumes"):
        runs.execute("parts", MODEL, progress=stop, cancel=event if kind == "event" else event.is_set, **options)
    stopped = runs.open_run(tmp_path / "run")
    assert stopped.status == "cancelled" and stopped.tables == [] and stopped.info["counters"]["prompts"] == 6
    assert len(list((stopped.folder / "parts").iterdir())) == 3
    run = runs.execute("parts", MODEL, **options)
    assert (tmp_path / "log").read_text().split() == ["0", "1", "2", "3", "4", "5"]
    assert contents(run.folder) == contents(whole.folder)
    assert (
        run.info["resumed"] == 1
        and run.info["started"] == stopped.info["started"]
        and run.info["counters"] == whole.info["counters"]
    )
    assert not (run.folder / "parts").exists()


def test_a_run_that_fails_says_so_in_one_sentence_and_resumes_after_the_cause_is_gone(tmp_path, monkeypatch):
    with pytest.raises(RunFailed) as caught:
        runs.execute("parts", MODEL, config={"fail_at": 4}, out=tmp_path / "run")
    assert str(caught.value) == "The probe 'parts' failed with ZeroDivisionError: the part that fails."
    failed = runs.open_run(tmp_path / "run")
    assert failed.status == "failed" and failed.info["error"]["type"] == "ZeroDivisionError"
    assert "Traceback" in failed.info["error"]["traceback"]
    assert len(list((tmp_path / "run" / "parts").iterdir())) == 4


def _with_result(monkeypatch, make):
    import dataclasses

    from workbench.core import registry

    return dataclasses.replace(registry.get("parts"), run=lambda model, config, context: make())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: None, "returned NoneType"),
        (lambda: Result(tables={}), "did not return its table 'rows'"),
        (lambda: Result(tables={"rows": pl.DataFrame({"part": [1], "draw": [1]})}), "lacks the column x"),
        (lambda: Result(tables={"rows": [1]}), "not a polars DataFrame"),
        (lambda: Result(tables={"../rows": pl.DataFrame()}), "use a-z, 0-9 and _"),
        (
            lambda: Result(
                tables={"rows": pl.DataFrame({"part": [1], "draw": [1], "x": [1]})}, arrays={"a": np.array(["b"])}
            ),
            "does not hold numbers",
        ),
        (
            lambda: Result(
                tables={"rows": pl.DataFrame({"part": [1], "draw": [1], "x": [1]})}, summary={"a": object()}
            ),
            "is not JSON",
        ),
    ],
)
def test_a_result_that_is_not_what_the_probe_declares_is_refused(monkeypatch, make, words):
    with pytest.raises(WorkbenchError, match=words):
        runs.execute(_with_result(monkeypatch, make), MODEL)


def test_summaries_are_strict_json_even_with_numbers_that_json_does_not_have(monkeypatch):
    frame = pl.DataFrame({"part": [1], "draw": [1], "x": [1.0]})
    probe = _with_result(
        monkeypatch,
        lambda: Result(
            {"rows": frame}, summary={"a": np.float64("nan"), "b": {"value": np.int64(3)}, "c": (1, float("inf"))}
        ),
    )
    assert runs.execute(probe, MODEL).summary == {"a": None, "b": {"value": 3}, "c": [1, None]}


def test_a_full_disk_is_named_and_nothing_half_written_stays(tmp_path, monkeypatch):
    usual = contexts.write_bytes
    written = []

    def full(path, data):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        usual(path, data)

    monkeypatch.setattr(contexts, "write_bytes", full)
    with pytest.raises(RunFailed, match="disk of .* is full; free some space, and the same command resumes"):
        runs.execute("parts", MODEL, out=tmp_path / "run")
    assert len(list((tmp_path / "run" / "parts").iterdir())) == 3
    monkeypatch.setattr(contexts, "write_bytes", usual)
    assert runs.execute("parts", MODEL, out=tmp_path / "run").status == "complete"


def test_a_disk_that_is_full_from_the_start_is_named_too(tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "write_json", full)
    with pytest.raises(RunFailed, match="is full"):
        runs.execute("parts", MODEL, out=tmp_path / "run")


def test_an_error_while_writing_leaves_the_old_file_and_no_temporary_one(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file"
    files.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(folder.iterdir()) == [path]


def test_bad_input_is_refused_before_a_model_is_loaded(tmp_path):
    def refused(match, probe="parts", **options):
        with pytest.raises(InputError, match=match):
            runs.execute(probe, "a model that is never looked for", **options)

    refused("no probe 'part'", probe="part")
    refused("no key 'partz'", config={"partz": 1})
    refused("takes no data file", data=tmp_path / "x.csv")
    refused("no texts file", probe="next-token-entropy", data=tmp_path / "x.csv")
    refused("needs a texts file", probe="next-token-entropy")
    refused("no engine 'vllm'", engine="vllm")
    refused("both run on this machine; hosted models are not reached", engine="ndif")
    refused("seed must be", seed=-1)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and holds no run"):
        runs.execute("parts", MODEL, out=folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    runs.execute("parts", MODEL, out=tmp_path / "run")
    with pytest.raises(InputError, match="already holds another run"):
        runs.execute("parts", MODEL, seed=1, out=tmp_path / "run")


def test_runs_are_found_by_folder_id_and_beginning_and_by_nothing_outside_the_root(tmp_path):
    one, two = (runs.execute("parts", MODEL, seed=seed, config={"parts": 1}) for seed in (0, 1))
    for reference in (one.id, one.id[:-2], one.folder, str(one.folder), one.folder / "run.json", one):
        assert runs.open_run(reference).id == one.id
    assert [run.id for run in runs.list_runs()] == [two.id, one.id]
    with pytest.raises(InputError, match="beginning of 2 runs"):
        runs.open_run("parts-")
    with pytest.raises(InputError, match="no run 'parts-zzz'"):
        runs.open_run("parts-zzz")
    outside = runs.execute("parts", MODEL, out=tmp_path / "outside")
    for reference in ("../../outside", str(outside.folder), "..", "", "*", "parts-*", "a/../b"):
        with pytest.raises(InputError):
            runs.run_by_id(reference)


def test_a_damaged_run_json_is_named_and_does_not_hide_the_other_runs():
    one, two = (runs.execute("parts", MODEL, seed=seed, config={"parts": 1}) for seed in (0, 1))
    (one.folder / "run.json").write_text("{")
    with pytest.raises(InputError, match="run.json cannot be read"):
        runs.open_run(one.folder)
    assert [run.id for run in runs.list_runs()] == [two.id]


def test_a_run_of_a_process_that_is_gone_is_interrupted():
    run = runs.execute("parts", MODEL)
    dead = subprocess.Popen(["true"])
    dead.wait()
    assert runs.Run(run.folder, {**run.info, "status": "running", "pid": dead.pid}).status == "interrupted"
    assert runs.Run(run.folder, {**run.info, "status": "running", "pid": os.getpid()}).status == "running"


def test_python_use_is_three_lines_and_nothing_is_imported_before_it_is_asked_for():
    import workbench

    run = workbench.probe("parts", parts=2).run(MODEL)
    assert run.status == "complete" and workbench.open_run(run.id).id == run.id
    with pytest.raises(InputError, match="no key 'part'"):
        workbench.probe("parts", part=2)
    code = (
        "import sys, workbench; assert 'torch' not in sys.modules and 'polars' not in sys.modules; "
        "workbench.no_such_name"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "AttributeError: module 'workbench' has no attribute 'no_such_name'" in found.stderr


def test_the_copied_command_gives_the_same_run(tmp_path):
    from workbench.cli.main import run as command_line

    (tmp_path / "a b.txt").write_text("x")
    config = {"parts": 2, "log": str(tmp_path / "a b.txt"), "seconds": 0.001, "fail_at": 17}
    run = runs.execute("parts", MODEL, config=config, seed=4)
    import shlex
    import types

    words = shlex.split(run.info["command"])
    fake = types.SimpleNamespace(load=lambda name, revision=None, **_: tiny_probes.fake_model(name))
    sys_modules_before = sys.modules.get("workbench.models.loading")
    sys.modules["workbench.models.loading"] = fake
    try:
        assert words[0] == "workbench" and command_line([*words[1:], "--out", str(tmp_path / "again")]) == 0
    finally:
        if sys_modules_before is None:
            del sys.modules["workbench.models.loading"]
        else:
            sys.modules["workbench.models.loading"] = sys_modules_before
    assert runs.open_run(tmp_path / "again").id == run.id


def test_peak_memory_is_that_of_this_run_not_of_the_process(tmp_path):
    from workbench.runs import provenance as measure

    block = np.ones(40_000_000)  # 320 MB that are gone before the peak is counted anew
    before = measure.peak_memory_bytes()
    assert before > block.nbytes
    del block
    measure.reset_peak_memory()
    assert measure.peak_memory_bytes() < before - 200_000_000
