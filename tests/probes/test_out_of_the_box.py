"""A stranger's first command, `workbench run PROBE --model M` on a model of her own, raw or in chat: it ends with
tables or with one sentence about what the model cannot do, and reads nothing of the organism."""

from __future__ import annotations

import re

import pytest

from tests.support import real_tokenizers
from tests.support.default_runs import check, takes_chat
from tests.support.short_runs import PROBES
from workbench.cli.main import run as command_line
from workbench.core import registry
from workbench.core.files import read_json
from workbench.models import loading
from workbench.runs.folder import open_run

CHAT = tuple(probe for probe in PROBES if takes_chat(probe))
AUTO = ("retrieval-heads", "branching-factor", "token-filter")  # in chat by default where the tokenizer has a template
# What bounds the time of the two probes whose defaults are long on any model ...
LONG = {
    "retrieval-heads": ("lengths=450", "max_new_tokens=3", "depths=50", "draws=100"),
    "branching-factor": ("samples=2", "max_new_tokens=3", "max_prompts=5"),
    "token-filter": ("lengths=450", "max_new_tokens=3", "depths=50", "draws=100", "random_draws=1"),
    "bigram-subnetwork": ("steps=3", "batch=2", "attempts=1", "random_draws=1", "layer_ablation=false", "limit=60"),
}
# ... and of the others where the vocabulary is large; without any they run on the tiny trained model below.
LARGE = {
    "concept-depth": ("limit=12", "shuffles=1", "draws=100", "random_draws=1"),
    "knowledge-conflict": ("limit=24", "max_new_tokens=2"),
    "data-selection": ("resamples=0", "features=1", "explain=1", "target=code"),
    "representation-geometry": ("limit=30", "loss_rows=1", "draws=20", "random_draws=1"),
    "layer-redundancy": ("limit=8", "random_draws=1", "timing_rounds=0", "drop_n=1", "components=block,joint"),
    "hopping": ("limit=12", "items=2", "max_new_tokens=3", "shuffles=3"),
    "latent-language": ("limit=8", "draws=100", "random_draws=2", "steer_rows=2"),
    "talking-heads": ("limit=4", "random_draws=1", "ablate=1", "receivers_each=1", "scales=0"),
    "bigram-subnetwork": ("steps=1", "batch=2", "attempts=1", "random_draws=1", "layer_ablation=false", "limit=4")
    + ("length=32",),
}
# What a model that was never taught facts cannot do.
CANNOT = {"knowledge-conflict": r"the model knows none of the \d+ items"}


def sentence_of(stderr: str) -> str:
    """The one sentence that a command which gave nothing ended on."""
    said = [line for line in stderr.splitlines() if line.startswith("workbench: ")]
    assert len(said) == 1 and said[0].endswith(".") and stderr.strip().endswith(said[0]), stderr
    assert not re.search(r"\. [A-Z]", said[0].removeprefix("workbench: ")) and "Traceback" not in stderr
    return said[0]


def ask(probe: str, model: str, options, out, capsys) -> tuple[int, str]:
    """Exit code and stderr of the command."""
    capsys.readouterr()
    words = [word for option in options for word in ("--set", option)]
    code = command_line(["run", probe, "--model", model, "--out", str(out), *words])
    return code, capsys.readouterr().err


def ends_well(probe: str, model, options, out, capsys, template: str = "raw") -> None:
    code, stderr = ask(probe, model.name, options, out, capsys)
    if code == 0:
        run = open_run(out)
        assert run.table(next(iter(registry.get(probe).tables))).height
        check(run, model, probe, template)
        assert "chat template" not in stderr or template == "chat"
        return
    assert code in (2, 3) and probe in CANNOT and re.search(CANNOT[probe], sentence_of(stderr)), stderr
    if (out / "run.json").exists():
        assert "organism" not in str(read_json(out / "run.json"))


@pytest.fixture
def loaded_once(monkeypatch):
    """Commands find the models of this list loaded, as in a session of one process."""
    models: dict = {}
    load = loading.load
    monkeypatch.setattr(
        loading, "load", lambda name, *more, **options: models.get(str(name)) or load(name, *more, **options)
    )
    return lambda model: models.setdefault(model.name, model)


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_runs_with_no_options_on_a_tiny_trained_model(probe, stories260k, tmp_path, capsys):
    ends_well(probe, loading.load(str(stories260k)), LONG.get(probe, ()), tmp_path / "run", capsys)


def on_tokenizers() -> list[tuple[str, str]]:
    """Probes that choose the template themselves on every tokenizer; of the others each on two, and each tokenizer
    under one or two of them."""
    found = [(probe, tokenizer) for probe in AUTO for tokenizer in real_tokenizers.NAMES]
    for i, probe in enumerate(probe for probe in PROBES if probe not in AUTO):
        found += [(probe, real_tokenizers.NAMES[(i + k) % len(real_tokenizers.NAMES)]) for k in (0, 2)]
    return found


@pytest.mark.shared_data
@pytest.mark.parametrize("probe,tokenizer", on_tokenizers())
def test_a_probe_runs_with_its_own_defaults_on_a_real_tokenizer(
    probe, tokenizer, real_model, shared, loaded_once, tmp_path, capsys
):
    """In the chat template where a probe uses one by default and the tokenizer has one."""
    model = loaded_once(real_model(shared(f"tokenizers/{tokenizer}")))
    auto = probe in AUTO and model.tokenizer.chat_template is not None
    ends_well(probe, model, (LONG | LARGE)[probe], tmp_path / "run", capsys, template="chat" if auto else "raw")


@pytest.mark.shared_data
@pytest.mark.parametrize("probe", [probe for probe in CHAT if probe not in AUTO])
@pytest.mark.parametrize("tokenizer", ["qwen3", "llama3_1"])
def test_a_probe_runs_in_chat_on_a_real_tokenizer(probe, tokenizer, real_model, shared, loaded_once, tmp_path, capsys):
    model = loaded_once(real_model(shared(f"tokenizers/{tokenizer}")))
    ends_well(probe, model, (*(LONG | LARGE)[probe], "template=chat"), tmp_path / "run", capsys, template="chat")


@pytest.mark.shared_data
@pytest.mark.parametrize("probe", CHAT)
def test_chat_is_refused_in_one_sentence_where_the_tokenizer_has_no_template(
    probe, real_model, shared, loaded_once, tmp_path, capsys
):
    model = loaded_once(real_model(shared("tokenizers/llama2")))
    code, stderr = ask(probe, model.name, (*LONG.get(probe, ()), "template=chat"), tmp_path / "run", capsys)
    assert code == 2 and "has no chat template" in sentence_of(stderr) and not (tmp_path / "run" / "tables").exists()
