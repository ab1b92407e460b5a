"""Several runs from one file."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from workbench.core.errors import Cancelled, InputError
from workbench.runs import sweep

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402


@pytest.fixture
def loads(monkeypatch):
    """Names of the models loaded, in order; none of them needs torch."""
    names = []

    def load(name, revision=None, **options):
        if name == "absent":
            raise InputError("There is no model 'absent'.")
        names.append((name, options))
        return tiny_probes.fake_model(name)

    monkeypatch.setitem(sys.modules, "workbench.models.loading", types.SimpleNamespace(load=load))
    return names


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


SWEEP = """
models = ["a", "b"]
seeds = [0, 1]
dtype = "bfloat16"
[[probes]]
name = "parts"
config = { seconds = 0.0 }
grid = { parts = [1, 2] }
[[probes]]
name = "parts"
models = "a"
seeds = 5
config = { parts = 3 }
"""


def test_a_sweep_is_every_model_seed_and_combination_grouped_by_model(tmp_path):
    jobs = sweep.read(write(tmp_path, SWEEP))
    found = [(job.model, job.seed, job.config["parts"]) for job in jobs]
    assert sorted(found) == sorted([(m, s, p) for m in "ab" for s in (0, 1) for p in (1, 2)] + [("a", 5, 3)])
    assert [name for name, *_ in found] == ["a"] * 5 + ["b"] * 4
    assert all(job.options == {"dtype": "bfloat16"} for job in jobs)


def test_each_model_is_loaded_once_and_every_run_has_its_folder(tmp_path, loads):
    from workbench.runs.execution import open_run

    outcomes = sweep.run(sweep.read(write(tmp_path, SWEEP)))
    assert loads == [("a", {"dtype": "bfloat16"}), ("b", {"dtype": "bfloat16"})]
    assert [outcome["status"] for outcome in outcomes] == ["complete"] * 9 and len(
        {outcome["run"] for outcome in outcomes}
    ) == 9
    for outcome in outcomes:
        run = open_run(outcome["run"])
        assert (
            run.info["seed"] == outcome["seed"]
            and run.info["config"] == outcome["config"]
            and run.info["model"]["name"] == outcome["model"]
        )


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, loads):
    text = 'models = ["absent", "a"]\n[[probes]]\nname = "parts"\ngrid = { fail_at = [0, 17] }\n'
    outcomes = sweep.run(sweep.read(write(tmp_path, text)))
    assert [outcome["status"] for outcome in outcomes] == ["failed", "failed", "failed", "complete"]
    assert "no model 'absent'" in outcomes[0]["error"] and "ZeroDivisionError" in outcomes[2]["error"]


def test_a_cancelled_sweep_says_how_far_it_came(tmp_path, loads):
    def progress(done, total, label):
        if label.startswith("run 3 of 9") and done:
            raise KeyboardInterrupt

    with pytest.raises(Cancelled, match="after 2 of 9 runs"):
        sweep.run(sweep.read(write(tmp_path, SWEEP)), progress=progress)


def test_data_is_looked_for_beside_the_sweep_file(tmp_path):
    (tmp_path / "texts.csv").write_text("text\nhello\n")
    (job,) = sweep.read(write(tmp_path, 'model = "a"\n[[probes]]\nname = "next-token-entropy"\ndata = "texts.csv"\n'))
    assert job.data == tmp_path / "texts.csv"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["at least one [[probes]]"]),
        ('model = "a"\nprobes = ["parts"]\n', ["at least one [[probes]]"]),
        ('[[probes]]\nname = "parts"\n', ["names no model"]),
        ('modles = ["a"]\n[[probes]]\nname = "parts"\n', ["no key 'modles'", "did you mean 'models'?"]),
        ('model = "a"\n[[probes]]\nname = "parts"\nconfg = {}\n', ["number 1", "'confg'", "did you mean 'config'?"]),
        ('model = "a"\n[[probes]]\ndata = "x"\n', ["number 1", "no name"]),
        ('model = "a"\n[[probes]]\nname = "parts"\n[[probes]]\nname = "prts"\n', ["number 2", "did you mean 'parts'?"]),
        ('model = "a"\n[[probes]]\nname = "parts"\ngrid = { parts = 3 }\n', ["grid.parts must be a list"]),
        ('model = "a"\n[[probes]]\nname = "parts"\ngrid = { parts = [3, 0] }\n', ["parts = 0", "at least 1"]),
        (
            'model = "a"\n[[probes]]\nname = "parts"\nconfig = { parts = 1 }\ngrid = { parts = [3] }\n',
            ["in config and in grid"],
        ),
        ('model = "a"\nseeds = ["x"]\n[[probes]]\nname = "parts"\n', ["'seeds' must be a whole number"]),
        ('model = "a"\nmodels = ["a"]\n[[probes]]\nname = "parts"\n', ["both 'model' and 'models'"]),
        ('model = "a"\ndtype = 3\n[[probes]]\nname = "parts"\n', ["'dtype' must be text"]),
        ("model = [", ["not valid TOML"]),
    ],
)
def test_a_mistake_in_a_sweep_file_is_found_before_anything_runs(tmp_path, text, words):
    with pytest.raises(InputError) as caught:
        sweep.read(write(tmp_path, text))
    sentence = str(caught.value)
    assert "sweep.toml" in sentence and "\n" not in sentence and all(word in sentence for word in words), sentence
