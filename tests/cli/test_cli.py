"""The command line: exit codes, one-sentence errors, JSON and nothing else, stopping and resuming."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from workbench.cli.main import _spread_set
from workbench.cli.main import run as command_line

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402

CHILD = [sys.executable, tiny_probes.__file__, "workbench"]


@pytest.fixture
def fake(monkeypatch):
    """Models that need no torch."""
    from workbench.core.errors import InputError

    def load(name, revision=None, **options):
        if name == "absent":
            raise InputError("There is no model 'absent'.")
        return tiny_probes.fake_model(name)

    monkeypatch.setitem(sys.modules, "workbench.models.loading", types.SimpleNamespace(load=load))


def sentence(captured: str) -> str:
    """The one line on stderr that an error leaves, after the lines of progress."""
    lines = [line for line in captured.strip().splitlines() if not line.startswith("loading ")]
    assert len(lines) == 1 and lines[0].startswith("workbench: ") and lines[0].endswith("."), captured
    return lines[0]


def test_help_answers_at_once_and_without_torch_polars_or_any_probe():
    code = (
        "import sys, time; start = time.process_time()\n"
        "from workbench.cli.main import run\n"
        "assert run(['--help']) == 0 and run(['run', '--help']) == 0\n"
        "seconds = time.process_time() - start\n"  # of this process, whatever else the machine does
        "heavy = [m for m in ('torch', 'polars', 'numpy', 'plotly', 'transformers', 'probes') if m in sys.modules]\n"
        "print(seconds, heavy, file=sys.stderr)"
    )
    found = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert "Usage: workbench" in found[0].stdout
    seconds = min(float(item.stderr.split()[0]) for item in found)
    assert seconds < 0.5 and all(item.stderr.split(maxsplit=1)[1].strip() == "[]" for item in found)


def test_every_command_of_the_design_is_there(capsys):
    assert command_line(["--help"]) == 0
    text = capsys.readouterr().out
    for name in "run sweep probes models runs show compare figures cache app demo doctor train-organism".split():
        assert f"  {name} " in text, name
        assert command_line([name, "--help"]) == 0
    for name in "ls verify gc clear".split():
        assert command_line(["cache", name, "--help"]) == 0


def test_a_run_prints_its_summary_and_folder_and_with_json_nothing_but_json(fake, capsys):
    assert command_line(["run", "parts", "--model", "a", "--set", "parts=2"]) == 0
    first = capsys.readouterr()
    assert "parts on a: complete" in first.out and "n = 8" in first.out and "folder: " in first.out
    assert "parts: 1 of 2 (45%)" in first.err and "complete (100%)" in first.err
    assert command_line(["run", "parts", "--model", "a", "--set", "parts=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "complete" and found["config"]["parts"] == 2 and found["summary"]["mean"]["n"] == 8
    assert Path(found["folder"]).name == found["id"]
    assert command_line(["run", "parts", "--model", "a", "--set", "parts=3", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_the_command_is_recorded_as_it_was_given(fake, capsys, tmp_path):
    words = [
        "run",
        "parts",
        "--model",
        "a",
        "--set",
        "parts=2",
        "--seed",
        "3",
        "--dtype",
        "bfloat16",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "r"),
    ]
    assert command_line([*words, "--json"]) == 0
    import shlex

    assert json.loads(capsys.readouterr().out)["command"] == shlex.join(["workbench", *words])


def test_what_a_library_prints_does_not_get_into_the_json(fake, capsys, monkeypatch):
    from workbench.core import registry

    usual = registry.get("parts")

    def chatty(model, config, context):
        print("hello from a library")
        return usual.run(model, config, context)

    registry.register(dataclasses.replace(usual, run=functools.wraps(usual.run)(chatty)))
    try:
        assert command_line(["run", "parts", "--model", "a", "--json"]) == 0
    finally:
        registry.register(usual)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] == "complete" and "hello from a library" in captured.err


def test_no_command_at_all_prints_the_help(capsys):
    for words in ([], ["cache"]):
        assert command_line(words) == 2
        assert "Usage: workbench" in capsys.readouterr().err


def test_set_takes_several_pairs_and_goes_before_the_config_file(fake, capsys, tmp_path):
    (tmp_path / "c.toml").write_text("parts = 5\nseconds = 0.001\n")
    assert (
        command_line(
            ["run", "parts", "--model", "a", "--config", str(tmp_path / "c.toml"), "--set", "parts=2", "log=", "--json"]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["config"] == {"parts": 2, "seconds": 0.001, "fail_at": None, "log": ""}
    (tmp_path / "c.toml").write_text('data = "x.csv"\n')
    assert command_line(["run", "parts", "--model", "a", "--config", str(tmp_path / "c.toml")]) == 2
    assert "'data' is no key of the config of parts but an option of the run: --data on the command line" in sentence(
        capsys.readouterr().err
    )
    assert (
        _spread_set("run p --set a=1 b=2,3 --seed 4 --set c= d=x=y".split())
        == "run p --set a=1 --set b=2,3 --seed 4 --set c= --set d=x=y".split()
    )
    assert _spread_set("run --set a=1 p --model x=y".split()) == "run --set a=1 p --model x=y".split()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("run prts --model a", ["no probe 'prts'", "did you mean 'parts'?"]),
        ("run parts --model a --set partz=1", ["no key 'partz'", "did you mean 'parts'?"]),
        ("run parts --model a --set parts=x", ["parts = 'x'", "whole number"]),
        ("run parts --model a --set parts", ["key=value", "'parts'"]),
        ("run parts --model a --set parts=1 --set parts=2", ["'parts' twice"]),
        ("run parts --model a --config none.toml", ["no file none.toml"]),
        (
            "run parts --model a --set data=x.csv",
            ["'data' is no key of the config of parts but an option of the run", "--data"],
        ),
        ("run parts --model a --set seed=3", ["'seed' is no key", "--seed"]),
        ("run parts --model a --data none.csv", ["takes no data file"]),
        ("run next-token-entropy --model a --data none.csv", ["no texts file none.csv"]),
        ("run parts --model a --engine vllm", ["no engine 'vllm'"]),
        ("run parts --model a --edit none.json", ["no edits file none.json"]),
        ("run parts --model absent", ["no model 'absent'"]),
        ("run parts", ["--model"]),
        ("run parts --model a --seed x", ["--seed"]),
        ("run parts --model a --sed 3", ["--sed"]),
        ("rnu parts", ["rnu"]),
        ("show nothing", ["no run 'nothing'"]),
        ("show ../x", ["not a run folder"]),
        ("compare a b", ["no run 'a'"]),
        ("figures nothing", ["no run 'nothing'"]),
        ("probes prts", ["did you mean 'parts'?"]),
        ("sweep none.toml", ["no file none.toml"]),
        ("cache gc --budget lots", ["'lots' is not a size"]),
    ],
)
def test_bad_input_is_one_sentence_on_stderr_and_exit_code_2(fake, capsys, arguments, words):
    assert command_line(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and all(word in sentence(captured.err) for word in words)


def test_models_and_devices_that_cannot_be_used_are_exit_code_2(tiny_llama, tmp_path, capsys):
    for index in ("{}", "not json"):
        folder = tmp_path / "model"
        shutil.copytree(tiny_llama, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
        (folder / "model.safetensors.index.json").write_text(index)
        assert command_line(["run", "parts", "--model", str(folder), "-q"]) == 2
        assert "model.safetensors.index.json" in sentence(capsys.readouterr().err)
    assert command_line(["run", "parts", "--model", str(tiny_llama), "--device", "foo", "-q"]) == 2
    assert "'foo' is not a device" in sentence(capsys.readouterr().err)


def test_the_store_can_be_given_a_budget(monkeypatch, capsys):
    assert command_line(["cache", "--help"]) == 0 and "WORKBENCH_STORE_BUDGET" in capsys.readouterr().out
    monkeypatch.setenv("WORKBENCH_STORE_BUDGET", "a lot")
    assert command_line(["cache", "ls"]) == 2 and "WORKBENCH_STORE_BUDGET: 'a lot' is not a size" in sentence(
        capsys.readouterr().err
    )


def test_a_failed_run_is_exit_code_3_and_debug_adds_the_traceback(fake, capsys):
    arguments = ["run", "parts", "--model", "a", "--set", "fail_at=1", "-q"]
    assert command_line(arguments) == 3
    captured = capsys.readouterr()
    assert "failed with ZeroDivisionError: the part that fails." in sentence(captured.err) and captured.out == ""
    for place in (0, len(arguments)):
        assert command_line([*arguments[:place], "--debug", *arguments[place:]]) == 3
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.load_sensitive("a limit of two seconds")
def test_a_signal_leaves_a_run_that_the_same_command_resumes_and_exit_code_130(tmp_path, number):
    log = tmp_path / "log"
    command = [
        *CHILD,
        "run",
        "parts",
        "--model",
        "fake",
        "--set",
        f"log={log}",
        "parts=8",
        "seconds=0.1",
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not log.exists() or len(log.read_text().split()) < 3:
        time.sleep(0.01)
        assert child.poll() is None
    start = time.monotonic()
    child.send_signal(number)
    out, err = child.communicate(timeout=10)
    assert child.returncode == 130 and time.monotonic() - start < 2
    assert out == "" and err.strip().splitlines()[-1].startswith(
        "workbench: Cancelled; the same command resumes the run parts-"
    )
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "cancelled"
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and json.loads(again.stdout)["status"] == "complete"
    begun = log.read_text().split()
    assert sorted(set(begun)) == list("01234567") and len(begun) <= 9  # only the open part is computed again


def test_runs_and_show_list_what_there_is(fake, capsys):
    assert command_line(["runs"]) == 0 and "No runs in" in capsys.readouterr().out
    command_line(["run", "parts", "--model", "a", "--set", "parts=2", "-q"])
    command_line(["run", "parts", "--model", "a", "--set", "fail_at=1", "-q"])
    capsys.readouterr()
    assert command_line(["runs"]) == 0
    text = capsys.readouterr().out.splitlines()
    assert len(text) == 3 and "failed" in text[1] and "complete" in text[2]
    assert command_line(["runs", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [item["status"] for item in listed] == ["failed", "complete"]
    name = listed[1]["id"]
    assert command_line(["show", name]) == 0
    text = capsys.readouterr().out
    assert "table rows: 8 rows, part, draw, x" in text and "workbench run parts --model a --set parts=2" in text
    assert command_line(["show", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tables"] == {"rows": {"rows": 8, "columns": ["part", "draw", "x"]}}
    assert command_line(["show", name, "--table", "rows"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "part,draw,x"
    assert command_line(["show", listed[0]["id"]]) == 0 and "the part that fails" in capsys.readouterr().out


def test_compare_prints_differences_and_correlations(fake, capsys):
    for seed in ("0", "1"):
        command_line(["run", "parts", "--model", "a", "--set", "parts=2", "--seed", seed, "-q"])
    command_line(["runs", "--json"])
    capsys.readouterr()
    from workbench.runs.execution import list_runs

    two, one = (run.id for run in list_runs())
    # `draw` alone, the column that the workbench knows as a key, does not tell the rows apart: the probe's own `part`
    # joins it
    assert command_line(["compare", one, two]) == 0 and "8 rows matched on part, draw" in capsys.readouterr().out
    assert command_line(["compare", one, two, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] == {"seed": [0, 1]}


def test_probes_are_described_with_every_key(capsys):
    assert command_line(["probes", "next-token-entropy", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [key["name"] for key in found["config"]] == ["most", "unit"]
    assert found["config"][1] == {
        "name": "unit",
        "type": "str",
        "required": False,
        "default": "nats",
        "help": "unit of the entropy",
        "choices": ["nats", "bits"],
        "low": None,
        "high": None,
        "file": False,
    }
    assert found["tables"]["texts"] == ["row", "tokens", "entropy"] and found["data"]["required"] == ["text"]
    assert command_line(["probes", "parts"]) == 0
    text = capsys.readouterr().out
    assert "how many parts" in text and "int or none" in text and "table rows: part, draw, x" in text


def test_a_sweep_reports_each_run_and_fails_if_one_failed(fake, capsys, tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('model = "organism"\n[[probes]]\nname = "parts"\ngrid = { fail_at = ["none", 0] }\n')
    assert command_line(["sweep", str(path), "--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert command_line(["sweep", str(path), "--json", "-q"]) == 3
    captured = capsys.readouterr()
    assert [item["status"] for item in json.loads(captured.out)] == [
        "complete",
        "failed",
    ] and "1 of 2 runs failed" in sentence(captured.err)


def test_the_cache_commands_work_on_a_store_with_an_entry(capsys):
    import torch

    from workbench.store.activation_store import Store, fingerprint

    store, key = Store(), fingerprint({"a": 1})
    assert command_line(["cache", "ls"]) == 0 and "empty" in capsys.readouterr().out
    with store.writer(key, {"site": "resid_post.0"}, n_shards=1, expected_bytes=400) as writer:
        writer.write(0, {"x": torch.arange(100.0)})
    assert command_line(["cache", "ls"]) == 0 and key in capsys.readouterr().out
    assert command_line(["cache", "ls", "--json"]) == 0 and json.loads(capsys.readouterr().out)[0]["key"] == key
    assert command_line(["cache", "verify"]) == 0 and "ok" in capsys.readouterr().out
    (shard,) = store.root.rglob("*.safetensors")
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(bytes(raw))
    assert command_line(["cache", "verify"]) == 3
    captured = capsys.readouterr()
    assert "damaged" in captured.out and shard.name in captured.err
    assert command_line(["cache", "gc", "--budget", "1GB"]) == 0 and "Nothing had to go" in capsys.readouterr().out
    assert command_line(["cache", "clear", "--yes"]) == 0 and key in capsys.readouterr().out
    assert command_line(["cache", "ls"]) == 0 and "empty" in capsys.readouterr().out


def test_doctor_is_exit_code_3_when_something_is_broken(capsys, monkeypatch):
    from workbench.cli import doctor

    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("disk", "ok", "much")])
    assert command_line(["doctor"]) == 0 and capsys.readouterr().out == "ok    disk: much\n"
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("disk", "fail", "none", "buy one")])
    assert command_line(["doctor", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == [
        {"name": "disk", "status": "fail", "detail": "none", "remedy": "buy one"}
    ]


def test_the_app_is_opened_on_this_machine_only(monkeypatch):
    from workbench.cli import upkeep

    seen = []
    monkeypatch.setattr(
        upkeep.subprocess, "run", lambda command, **_: seen.append(command) or types.SimpleNamespace(returncode=0)
    )
    assert command_line(["app", "--port", "8600", "--no-browser"]) == 0
    (words,) = seen
    assert (
        words[words.index("--server.address") + 1] == "localhost" and words[words.index("--server.port") + 1] == "8600"
    )
    assert (
        Path(words[words.index("run") + 1]).name == "app.py" and words[words.index("--server.headless") + 1] == "true"
    )


def test_a_reader_that_leaves_early_is_no_error():
    child = subprocess.Popen(
        [*CHILD, "probes", "parts", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    child.stdout.close()  # long before there is anything to read
    said = child.stderr.read()
    child.stderr.close()
    assert child.wait(60) == 0
    assert "Traceback" not in said and "Broken" not in said


def test_a_probe_runs_on_a_real_model_and_equals_plain_hugging_face(tiny_llama, tmp_path, capsys):
    import torch
    from transformers import AutoModelForCausalLM

    texts = ["Once upon a time", "The big dog", "A"]
    (tmp_path / "t.csv").write_text("text\n" + "\n".join(texts) + "\n")
    arguments = ["run", "next-token-entropy", "--model", str(tiny_llama), "--data", str(tmp_path / "t.csv"), "--json"]
    assert command_line(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"] == {"path": str(tmp_path / "t.csv"), "fingerprint": found["data"]["fingerprint"], "rows": 3}
    assert (
        found["model"]["architecture"] == "LlamaForCausalLM"
        and found["model"]["layers"] == 5
        and found["model"]["dtype"] == "float32"
    )
    from workbench import open_run

    run = open_run(found["id"])
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64, attn_implementation="eager").eval()
    for row, ids in zip(run.table("texts").to_dicts(), run.table("inputs")["ids"].to_list()):
        with torch.no_grad():
            p = torch.softmax(hf(torch.tensor([ids])).logits[0, -1], -1)
        assert row["entropy"] == pytest.approx(-(p * p.log()).sum().item(), abs=1e-5)
