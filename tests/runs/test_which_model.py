"""Which model a run was made on: revision, adapter and day are refused where they mean nothing and recorded where they
do, at every entrance."""

import copy
import datetime
import json
import shlex
import sys
import types
from pathlib import Path

import pytest

from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.runs import execution, queue, sweep, worker

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402

TURN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("Lily saw a dog.", "The sun was warm.")))
    return file


@pytest.fixture(scope="module")
def lora(tiny_llama, tmp_path_factory) -> Path:
    from tests.models.test_adapters import make

    return make(tmp_path_factory.mktemp("adapters") / "lora", tiny_llama)


@pytest.fixture
def dated(tiny_llama, tmp_path) -> Path:
    """A model whose chat template prints the date."""
    import shutil

    folder = shutil.copytree(tiny_llama, tmp_path / "dated")
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}" + TURN)
    return folder


def command_line(words: list[str]) -> int:
    from workbench.cli.main import run

    return run(words)


def test_a_revision_of_a_folder_or_an_organism_is_refused_at_every_entrance(tiny_llama, texts, tmp_path, capsys):
    for name in (str(tiny_llama), "organism"):
        words = ["run", "next-token-entropy", "--model", name, "--data", str(texts), "--revision", "step-100"]
        assert command_line(words) == 2 and "no revision 'step-100'" in capsys.readouterr().err
        with pytest.raises(InputError, match="no revision"):
            execution.execute("next-token-entropy", name, data=texts, revision="step-100")
        with pytest.raises(InputError, match="no revision"):
            queue.submit("next-token-entropy", name, data=texts, revision="step-100", start=False)
        file = tmp_path / "sweep.toml"
        file.write_text(
            f'model = {json.dumps(name)}\nrevision = "step-100"\n[[probes]]\nname = "next-token-entropy"\n'
            f"data = {json.dumps(str(texts))}\n"
        )
        (problem,) = sweep.check(sweep.read(file))
        assert "no revision 'step-100'" in problem
        (outcome,) = sweep.run(sweep.read(file))
        assert outcome["status"] == "failed" and "no revision 'step-100'" in outcome["error"]
    assert queue.listing() == []


def test_what_a_loaded_model_was_not_loaded_with_is_refused(tiny_llama, texts, lora):
    model = load(str(tiny_llama))
    for options in ({"revision": "main"}, {"adapter": lora}, {"date": "2030-01-01"}):
        with pytest.raises(InputError, match="loaded already"):
            execution.execute("next-token-entropy", model, data=texts, **options)


def test_an_adapter_is_part_of_the_run_its_record_its_command_and_its_caption(tiny_llama, texts, lora):
    import plotly.graph_objects as go

    from workbench.figures.export import caption

    plain = execution.execute("next-token-entropy", str(tiny_llama), data=texts)
    run = execution.execute("next-token-entropy", str(tiny_llama), data=texts, adapter=lora)
    model = load(str(tiny_llama), adapter=lora)
    assert run.info["model"]["adapter"] == {"path": str(lora.resolve()), "fingerprint": model.adapter.fingerprint}
    assert run.info["model"]["fingerprint"] == model.fingerprint != plain.info["model"]["fingerprint"]
    assert run.id != plain.id and "adapter" not in plain.info["model"]
    assert run.table("texts")["entropy"].to_list() != plain.table("texts")["entropy"].to_list()
    words = shlex.split(run.info["command"])
    assert words[words.index("--adapter") + 1] == str(lora.resolve())
    assert execution.execute("next-token-entropy", model, data=texts).id == run.id
    assert "with the adapter lora merged" in caption(run, go.Figure()) and "adapter" not in caption(plain, go.Figure())


def test_the_command_of_a_run_with_an_adapter_gives_the_same_run(tiny_llama, texts, lora, capsys):
    run = execution.execute("next-token-entropy", str(tiny_llama), data=texts, adapter=lora)
    assert command_line([*shlex.split(run.info["command"])[1:], "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == run.id
    assert command_line(["run", "next-token-entropy", "--model", "organism", "--adapter", "./absent"]) == 2


def test_a_warning_of_the_model_is_a_warning_of_the_run(tiny_llama, texts, lora, tmp_path):
    import shutil

    other = shutil.copytree(lora, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "lab/other"}))
    run = execution.execute("next-token-entropy", str(tiny_llama), data=texts, adapter=other)
    assert any("lab/other" in warning for warning in run.info["warnings"])


def test_the_day_is_recorded_where_it_is_printed_and_counts_where_it_is_another_one(dated, tiny_llama, texts, capsys):
    model, without = load(str(dated)), load(str(tiny_llama))
    default = execution.execute("next-token-entropy", model, data=texts)
    assert default.info["model"]["date"] == "2024-07-26" and "--date" not in default.info["command"]
    other = execution.execute("next-token-entropy", str(dated), data=texts, date="2031-05-01")
    assert other.info["model"]["date"] == "2031-05-01" and other.id != default.id
    words = shlex.split(other.info["command"])
    assert words[words.index("--date") + 1] == "2031-05-01"
    assert (
        execution.execute("next-token-entropy", str(dated), data=texts, date=datetime.date(2031, 5, 1)).id == other.id
    )
    assert execution.execute("next-token-entropy", str(dated), data=texts, date="2024-07-26").id == default.id
    assert "date" not in execution.execute("next-token-entropy", without, data=texts).info["model"]


def test_the_default_day_changes_no_run_id(dated, tiny_llama, texts):
    ready = execution.prepare("next-token-entropy", None, texts)
    for folder in (dated, tiny_llama):
        assert "date" not in execution.identify(ready, load(str(folder)), seed=0)


@pytest.mark.parametrize("date", ["yesterday", "2025-13-01", "20250131", "", "2025-1-1", "2025-02-30"])
def test_what_is_no_day_is_refused(texts, date, tmp_path, capsys):
    words = ["run", "next-token-entropy", "--model", "organism", "--data", str(texts), "--date", date]
    assert command_line(words) == 2 and "is not a day" in capsys.readouterr().err
    (tmp_path / "s.toml").write_text(f'model = "a"\ndate = "{date}"\n[[probes]]\nname = "parts"\n')
    with pytest.raises(InputError, match="is not a day"):
        sweep.read(tmp_path / "s.toml")


def test_a_day_for_a_template_that_prints_none_is_refused(tiny_llama):
    with pytest.raises(InputError, match="prints no date"):
        load(str(tiny_llama), date="2025-01-31")


# ---- sweeps

SWEEP = """
models = ["a", "b"]
[[probes]]
name = "parts"
grid = { parts = [1, 2, 3] }
"""


def fake_loading(monkeypatch, load):
    monkeypatch.setitem(sys.modules, "workbench.models.loading", types.SimpleNamespace(load=load))


def planned(folder: Path, text: str = SWEEP) -> list[sweep.PlannedRun]:
    (folder / "sweep.toml").write_text(text)
    return sweep.read(folder / "sweep.toml")


PANIC = type("PanicException", (BaseException,), {})("a Rust panic\nin two lines")
RAISED = [ImportError("no bitsandbytes"), PANIC, SystemExit(1), MemoryError(), RecursionError("deep"), AssertionError()]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_a_model_that_cannot_be_loaded_fails_its_runs_once_and_no_others(tmp_path, monkeypatch, error):
    tried = []

    def load(name, revision=None, **_):
        tried.append(name)
        if name == "a":
            raise error
        return tiny_probes.fake_model(name)

    fake_loading(monkeypatch, load)
    outcomes = sweep.run(planned(tmp_path))
    assert tried == ["a", "b"]
    assert [outcome["status"] for outcome in outcomes] == ["failed"] * 3 + ["complete"] * 3
    assert len({outcome["error"] for outcome in outcomes[:3]}) == 1
    assert type(error).__name__ in outcomes[0]["error"] and "\n" not in outcomes[0]["error"]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_a_run_that_raises_anything_does_not_stop_the_others(tmp_path, monkeypatch, error):
    fake_loading(monkeypatch, lambda name, revision=None, **_: tiny_probes.fake_model(name))
    plain, seen = execution.execute, []

    def execute(*args, **options):
        seen.append(options["config"]["parts"])
        if len(seen) == 2:
            raise error
        return plain(*args, **options)

    monkeypatch.setattr(execution, "execute", execute)
    outcomes = sweep.run(planned(tmp_path))
    assert [outcome["status"] for outcome in outcomes] == ["complete", "failed"] + ["complete"] * 4


@pytest.mark.parametrize("place", ["load", "execute"])
def test_being_stopped_stops_the_sweep(tmp_path, monkeypatch, place):
    from workbench.core.errors import Cancelled

    def stopped(*_args, **_options):
        raise KeyboardInterrupt

    fake_loading(monkeypatch, stopped if place == "load" else lambda name, *_, **__: tiny_probes.fake_model(name))
    if place == "execute":
        monkeypatch.setattr(execution, "execute", stopped)
    with pytest.raises(Cancelled, match="after 0 of 6 runs"):
        sweep.run(planned(tmp_path))


def test_a_run_out_of_memory_leaves_the_model_and_its_memory_to_the_next(tmp_path, monkeypatch):
    """Nothing of the failed run may be alive when the next one begins."""
    import weakref

    class Large:
        pass

    alive, plain = [], execution.execute

    def execute(*args, **options):
        if not alive:
            large = Large()
            alive.append(weakref.ref(large))
            raise MemoryError
        assert alive[0]() is None
        return plain(*args, **options)

    fake_loading(monkeypatch, lambda name, *_, **__: tiny_probes.fake_model(name))
    monkeypatch.setattr(execution, "execute", execute)
    outcomes = sweep.run(planned(tmp_path))
    assert [outcome["status"] for outcome in outcomes] == ["failed"] + ["complete"] * 5


BAD = {
    'device = "gpu"': "is not a device",
    'device = "cuda:99"': "GPU",
    'dtype = "int3"': "is not a dtype",
    'engine = "vllm"': "no engine",
    'adapter = "absent"': "no adapter folder",
    'model = "./absent"': "does not exist",
    'model = "/absent/model"': "does not exist",
    'model = "orgnism"': "no model 'orgnism'",
    'model = "FOLDER"': "no config.json",
    'model = "organism"\nrevision = "main"': "no revision",
    'model = "lab/model"\nrevision = " "': "revision",
}


@pytest.mark.parametrize("line", BAD)
def test_a_dry_run_says_what_is_known_to_be_wrong(tmp_path, line, capsys):
    text = line.replace("FOLDER", str(tmp_path))
    model = "" if "model" in text else 'model = "organism"\n'
    (tmp_path / "s.toml").write_text(f'{model}{text}\n[[probes]]\nname = "parts"\n')
    assert command_line(["sweep", str(tmp_path / "s.toml"), "--dry-run"]) == 2
    last = capsys.readouterr().err.strip().splitlines()
    assert len(last) == 1 and BAD[line] in last[0]


def test_a_dry_run_of_what_is_right_lists_the_runs(tmp_path, tiny_llama, lora, capsys):
    (tmp_path / "s.toml").write_text(
        f'models = ["organism", {json.dumps(str(tiny_llama))}]\nadapter = {json.dumps(str(lora))}\ndate = 2025-01-31\n'
        f'device = "cpu"\ndtype = "bf16"\n[[probes]]\nname = "parts"\n'
    )
    assert command_line(["sweep", str(tmp_path / "s.toml"), "--dry-run", "--json"]) == 0
    assert [row["model"] for row in json.loads(capsys.readouterr().out)] == ["organism", str(tiny_llama)]
    assert sweep.read(tmp_path / "s.toml")[0].options["date"] == "2025-01-31"


def test_a_sweep_gives_its_models_the_adapter(tmp_path, tiny_llama, texts, lora):
    (tmp_path / "s.toml").write_text(
        f"model = {json.dumps(str(tiny_llama))}\nadapter = {json.dumps(str(lora))}\n[[probes]]\n"
        f'name = "next-token-entropy"\ndata = {json.dumps(str(texts))}\n'
    )
    (outcome,) = sweep.run(sweep.read(tmp_path / "s.toml"))
    assert execution.open_run(outcome["folder"]).info["model"]["adapter"]["path"] == str(lora.resolve())


# ---- jobs


def test_a_job_keeps_its_adapter_and_the_worker_merges_it(tiny_llama, texts, lora):
    job = queue.submit("next-token-entropy", str(tiny_llama), data=texts, adapter=lora, start=False)
    other = queue.submit("next-token-entropy", str(tiny_llama), data=texts, start=False)
    assert job.adapter == str(lora.resolve()) and other.id != job.id and other.adapter is None
    warm: dict = {}
    assert worker._model(job, warm).adapter.path == lora.resolve() and worker._model(other, warm).adapter is None
    with pytest.raises(InputError, match="no adapter folder"):
        queue.submit("next-token-entropy", str(tiny_llama), data=texts, adapter="./absent", start=False)
    with pytest.raises(InputError, match="does not exist"):
        queue.submit("next-token-entropy", "./absent", data=texts, start=False)
    with pytest.raises(InputError, match="not a dtype"):
        queue.submit("next-token-entropy", "organism", data=texts, dtype="int3", start=False)


def test_a_warm_model_is_loaded_again_when_its_weights_are_others(tiny_llama, texts, tmp_path):
    import shutil

    from tests.models.test_files import other_weights

    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    job, warm = queue.submit("next-token-entropy", str(folder), data=texts, start=False), {}
    first = worker._model(job, warm)
    assert worker._model(copy.copy(job), warm) is first
    other_weights(folder)
    second = worker._model(job, warm)
    assert second is not first and second.fingerprint != first.fingerprint
