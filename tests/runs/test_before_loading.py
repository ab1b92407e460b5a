"""What tokenizer, config, autoencoder and checkpoints say against a run is said before a weight is read: by the
library, the command line, the queue and the form."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.app_screens import open_page
from tests.support.short_runs import PROBES
from workbench import organisms
from workbench.core import registry
from workbench.core.errors import InputError
from workbench.models.unloaded_model import open_unloaded
from workbench.runs import execution, queue
from workbench.sae.before_loading import recorded_width

LONG = "the girl liked to play in the park with her friend and a big dog " * 60


@pytest.fixture
def unread(tiny_llama, tmp_path) -> Path:
    """A model whose config and tokenizer are whole and whose weights nobody can read."""
    folder = shutil.copytree(tiny_llama, tmp_path / "unread")
    (folder / "model.safetensors").write_bytes(b"these are no weights")
    return folder


def lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def autoencoder(folder: Path, *, width: int, hook: str) -> Path:
    folder.mkdir()
    config = {"d_in": width, "d_sae": 8, "architecture": "standard", "metadata": {"hook_name": hook}}
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({"W_enc": np.zeros((width, 8), np.float32)}, folder / "sae_weights.safetensors")
    return folder


def long_text(tmp_path: Path, *, columns: dict) -> Path:
    good = [{name: f"{word} {row} big dog" for name, word in columns.items()} for row in range(30)]
    return lines(tmp_path / "rows.jsonl", *good, dict.fromkeys(columns, LONG))


def needle_that_does_not_fit(tmp_path):
    return "retrieval-heads", {"lengths": (20,)}, None, "cannot hold needle and question"


def needle_that_does_not_fit_a_filter(tmp_path):
    return "token-filter", {"lengths": (20,)}, None, "cannot hold needle and question"


def more_forced_than_kept(tmp_path):
    return "token-filter", {"lengths": (300,), "k": (2,), "force_keep": ("question",)}, None, "more than k=2"


def task_beyond_the_context(tmp_path):
    rows = lines(tmp_path / "tasks.jsonl", {"question": LONG, "answer": "dog"})
    return "retrieval-heads", {"lengths": (300,), "needles": 2, "tasks": str(rows)}, None, "row 1: a prompt of"


def passages_beyond_the_context(tmp_path):
    rows = [{"question": f"who {n}?", "passages": [f"{LONG} {n}", "a cat"], "gold": 0} for n in range(2)]
    config = {"score": "attention", "passages": str(lines(tmp_path / "passages.jsonl", *rows))}
    return "retrieval-heads", config, None, "goes beyond the context of 512"


def concept_text_beyond_the_context(tmp_path):
    rows = [{"text": f"a dog {n}" if n else LONG, "label": str(n % 2)} for n in range(20)]
    return "concept-depth", {}, lines(tmp_path / "set.jsonl", *rows), "'set', row 1: the text has"


def concept_text_that_lacks_the_token(tmp_path):
    rows = [{"text": f"a dog {n}", "label": str(n % 2)} for n in range(20)]
    return "concept-depth", {"token": 80}, lines(tmp_path / "set.jsonl", *rows), "token=80 is beyond them"


def folds_beyond_the_rows(tmp_path):
    rows = [{"text": f"a dog {n}", "label": str(n % 2)} for n in range(6)]
    return "concept-depth", {"split": "kfold", "folds": 5}, lines(tmp_path / "s.jsonl", *rows), "too few for 5 folds"


def answers_that_begin_alike(tmp_path):
    row = {"subject": "Lily", "answer": "park", "distractor": "parking"}
    prompts = {"clean_prompt": "Lily plays in the", "conflict_prompt": "Lily was in the parking. Lily plays in the"}
    return "knowledge-conflict", {}, lines(tmp_path / "c.jsonl", row | prompts), "none of the 1 items can be measured"


def conflict_beyond_the_context(tmp_path):
    row = {"subject": "Lily", "answer": "park", "distractor": "river"}
    prompts = {"clean_prompt": "Lily plays in the", "conflict_prompt": f"{LONG} river. Lily plays in the"}
    return (
        "knowledge-conflict",
        {},
        lines(tmp_path / "c.jsonl", row | prompts),
        "the field 'conflict_prompt' has",
    )


def no_item_for_a_split(tmp_path):
    row = {"subject": "Lily", "answer": "park", "distractor": "ball"}
    prompts = {"clean_prompt": "Lily plays in the", "conflict_prompt": "Lily saw the ball. Lily plays in the"}
    prompts["corrupt_prompt"] = prompts["conflict_prompt"].replace("ball", "wall")
    return "knowledge-conflict", {"keep": "all"}, lines(tmp_path / "c.jsonl", row | prompts), "no item is left for the"


def autoencoder_of_another_width(tmp_path):
    sae = autoencoder(tmp_path / "sae", width=48, hook="blocks.3.hook_resid_post")
    return "data-selection", {"sae": str(sae)}, None, "reads 48 numbers, but resid_post.3 of .* has 64"


def autoencoder_of_another_layer(tmp_path):
    sae = autoencoder(tmp_path / "sae", width=64, hook="blocks.7.hook_resid_post")
    return "data-selection", {"sae": str(sae)}, None, "resid_post.7 is beyond the model: its layers are 0 to 4"


def site_beyond_the_model(tmp_path):
    return "data-selection", {"sae": "none", "site": "resid_post.9"}, None, "its layers are 0 to 4"


def sample_beyond_the_context(tmp_path):
    pool = long_text(tmp_path, columns={"text": "the"})
    return "data-selection", {"sae": "none", "long": "refuse"}, pool, "The pool, row 31: the text has"


def features_without_an_autoencoder(tmp_path):
    return "data-selection", {"diversity": "features"}, None, "diversity=features needs an autoencoder"


def prompt_beyond_the_context(tmp_path):
    return "branching-factor", {}, long_text(tmp_path, columns={"prompt": "the"}), "row 31: the prompt has"


def second_model_that_is_not_there(tmp_path):
    return "branching-factor", {"study": "pair", "compare": str(tmp_path / "none")}, None, "does not exist"


def system_message_without_a_template(tmp_path):
    return "branching-factor", {"system": "Be brief."}, None, "A system message needs a chat template"


def texts_that_are_all_short(tmp_path):
    rows = lines(tmp_path / "t.jsonl", *({"text": "a"} for _ in range(9)))
    return "representation-geometry", {"min_length": 20}, rows, "0 texts have at least 20 tokens"


def checkpoint_that_is_not_there(tmp_path):
    return "representation-geometry", {"checkpoints": (str(tmp_path / "step5"),)}, None, "cannot be loaded"


def checkpoint_with_another_tokenizer(tmp_path):
    return "representation-geometry", {"checkpoints": ("organism",)}, None, "organism has another tokenizer than"


CASES = [
    needle_that_does_not_fit,
    needle_that_does_not_fit_a_filter,
    more_forced_than_kept,
    task_beyond_the_context,
    passages_beyond_the_context,
    concept_text_beyond_the_context,
    concept_text_that_lacks_the_token,
    folds_beyond_the_rows,
    answers_that_begin_alike,
    conflict_beyond_the_context,
    no_item_for_a_split,
    autoencoder_of_another_width,
    autoencoder_of_another_layer,
    site_beyond_the_model,
    sample_beyond_the_context,
    features_without_an_autoencoder,
    prompt_beyond_the_context,
    second_model_that_is_not_there,
    system_message_without_a_template,
    texts_that_are_all_short,
    checkpoint_that_is_not_there,
    checkpoint_with_another_tokenizer,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_run_that_cannot_work_is_refused_without_the_weights(unread, tmp_path, case):
    probe, config, data, said = case(tmp_path)
    with pytest.raises(InputError, match=said):
        execution.execute(probe, str(unread), config=config, data=data)
    assert not execution.list_runs()
    with pytest.raises(InputError, match=said):
        queue.submit(probe, str(unread), config=config, data=data, start=False)
    assert queue.listing() == []


@pytest.mark.parametrize("name", PROBES)
def test_what_is_right_gets_as_far_as_the_weights(unread, name):
    probe = registry.get(name)
    assert probe.before_loading is not None
    found = execution.prepare(probe, probe.example(open_unloaded(str(unread)).about), model=str(unread))
    assert execution.check_unloaded(found, str(unread)) is None
    with pytest.raises(InputError, match="The weight file .* is damaged"):
        execution.execute(found, str(unread))


def test_a_checkpoint_of_another_shape_is_refused_without_its_weights(unread, tmp_path):
    other = shutil.copytree(unread, tmp_path / "step7")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    with pytest.raises(InputError, match="step7 has 6 layers of width 64, .* 5 of 64"):
        execution.execute("representation-geometry", str(unread), config={"checkpoints": (str(other),)})


def test_a_day_that_no_template_prints_is_refused_without_the_weights(unread):
    with pytest.raises(InputError, match="The day 2025-01-31 means nothing"):
        execution.execute("branching-factor", str(unread), date="2025-01-31")


def test_of_a_model_of_the_hub_that_is_not_here_nothing_is_looked_at_and_that_is_said():
    ready = execution.prepare("branching-factor", {}, model="nobody/nothing")
    assert "is not on this machine yet" in execution.check_unloaded(ready, "nobody/nothing")


def test_a_look_at_many_texts_ends_in_time(unread, tmp_path):
    data = lines(tmp_path / "pool.jsonl", *({"text": f"a dog {n}"} for n in range(600)), {"text": LONG})
    ready = execution.prepare("data-selection", {"sae": "none", "long": "refuse"}, data, model=str(unread))
    assert "checked by the run" in execution.check_unloaded(ready, str(unread), seconds=0.0)
    with pytest.raises(InputError, match="row 601"):
        execution.check_unloaded(ready, str(unread))


@pytest.mark.parametrize("name", ["organism", "tiny"])
def test_a_model_without_its_weights_reads_texts_as_the_loaded_one_does(name, tiny_llama):
    from workbench.models.loading import load

    name = str(tiny_llama) if name == "tiny" else name
    bare, whole = open_unloaded(name), load(name)
    assert bare is not None
    for text in ("", "the girl saw a dog", "Lily! 7", "<s>a"):
        assert bare.encode(text) == whole.encode(text)
    for fact in ("n_layers", "width", "context_length", "eos_ids", "bos_id", "special_ids", "tokenizer_fingerprint"):
        assert getattr(bare, fact) == getattr(whole, fact), fact


def test_the_width_of_an_autoencoder_is_read_without_its_weights(tmp_path):
    from workbench.sae.load import load

    shipped = organisms.autoencoder("organism")
    assert recorded_width(shipped) == load(shipped).d_in
    (tmp_path / "gemma").mkdir()
    shapes = {"W_enc": (24, 40), "W_dec": (40, 24), "b_enc": (40,), "b_dec": (24,), "threshold": (40,)}
    np.savez(tmp_path / "gemma" / "params.npz", **{key: np.zeros(shape, np.float32) for key, shape in shapes.items()})
    assert recorded_width(tmp_path / "gemma") == 24
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "params.npz").write_bytes(b"PK")
    assert recorded_width(tmp_path / "cut") is None


def test_the_form_says_it_before_run_can_be_pressed(unread, tmp_path):
    data = long_text(tmp_path, columns={"prompt": "the"})
    params = {"branching-factor.model": str(unread), "branching-factor.data": str(data)}
    at = open_page("branching_factor", **params)
    run = next(button for button in at.button if button.label == "Run")
    assert run.disabled and any("the prompt has 962 tokens" in error.value for error in at.error)
    lines(data, {"prompt": "the dog"}, {"prompt": "the cat"})
    at = open_page("branching_factor", **params)
    assert not at.error and not next(button for button in at.button if button.label == "Run").disabled


def test_the_command_line_says_it_before_the_weights_are_read(unread, tmp_path, capfd):
    from workbench.cli.main import main

    data = long_text(tmp_path, columns={"prompt": "the"})
    with pytest.raises(SystemExit) as ended:
        main(["run", "branching-factor", "--model", str(unread), "--data", str(data)])
    assert ended.value.code == 2 and "row 31: the prompt has" in capfd.readouterr().err
