"""Head masks outside the run that made them: in a file, in any probe (`--edit`), and as a model folder
(`export-pruned`)."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.architectures import build
from workbench import load
from workbench.cli.main import run as command_line
from workbench.core.errors import InputError
from workbench.engine.edits import HeadAblation, apply
from workbench.engine.head_masks import load_edits, read_mask, save_heads
from workbench.engine.mean_head_outputs import mean_head_outputs
from workbench.models.loading import wrap
from workbench.runs import execution as runs

HEADS = ((1, 2), (3, 5), (0, 7))
WORDS = (
    "the a dog cat ran sat on under big red tree and then they went home to play with ball one day lily was happy sad"
).split()


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory, tiny_llama):
    """A copy of tiny_llama in whose file the columns of W_O that read HEADS are zero; d_head is 8."""
    place = tmp_path_factory.mktemp("by-hand") / tiny_llama.name  # tables name the model by its folder
    shutil.copytree(tiny_llama, place)
    weights = load_file(place / "model.safetensors")
    for layer, head in HEADS:
        weights[f"model.layers.{layer}.self_attn.o_proj.weight"][:, 8 * head : 8 * head + 8] = 0
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return place


@pytest.fixture
def mask(tmp_path):
    path = tmp_path / "mask.json"
    save_heads(path, HEADS)
    return path


def sentences(n, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(6, 14))) for _ in range(n)]


def rows(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def conflict(subject, answer, distractor):
    clean = f"The pet of {subject} is a"
    return {
        "subject": subject,
        "answer": answer,
        "distractor": distractor,
        "clean_prompt": clean,
        "conflict_prompt": f"{clean} {distractor}. {clean}",
    }


PETS = [
    conflict(s, a, d)
    for s, a, d in zip(
        ("Tim", "Tom", "Sam", "Ben", "Max", "Sue", "Amy", "Mia", "Lily", "Anna"),
        ("dog", "cat", "cow", "pig", "hen") * 2,
        ("bird", "frog", "fish", "duck", "bear") * 2,
    )
]
CASES = {
    "representation-geometry": (
        {
            "layers": "all",
            "draws": "0",
            "ablate": "",
            "curve": "false",
            "map": "",
            "loss_rows": "16",
            "fit_range": "2,20",
        },
        [{"text": t} for t in sentences(90)],
    ),
    "concept-depth": (
        {"shuffles": "1", "draws": "100", "random_draws": "1"},
        [{"text": t, "label": int("dog" in t.split())} for t in sentences(60)],
    ),
    "branching-factor": ({"samples": "4", "max_new_tokens": "8"}, [{"prompt": t} for t in sentences(3)]),
    "knowledge-conflict": (
        {
            "keep": "all",
            "prune_k": "1",
            "random_draws": "1",
            "flow_items": "1",
            "draws": "100",
            "neutral": "neutral.txt",
        },
        PETS,
    ),
}


@pytest.mark.parametrize("probe", CASES)
def test_a_probe_run_with_a_mask_measures_the_model_whose_weights_were_zeroed_by_hand(
    tiny_llama, by_hand, mask, tmp_path, monkeypatch, probe
):
    """`run PROBE --edit mask.json` on the model against a plain run on the folder in which the heads are zero; and not
    the model as it is."""
    config, content = CASES[probe]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neutral.txt").write_text("\n".join(sentences(8)) + "\n")
    words = [
        "run",
        probe,
        "--data",
        str(rows(tmp_path / f"{probe}.jsonl", content)),
        "--quiet",
        *(f"--set={k}={v}" for k, v in config.items()),
    ]
    for name, more in (
        ("edited", ["--model", str(tiny_llama), "--edit", str(mask)]),
        ("hand", ["--model", str(by_hand)]),
        ("plain", ["--model", str(tiny_llama)]),
    ):
        assert command_line([*words, *more, "--out", str(tmp_path / name)]) == 0
    edited, hand, plain = (runs.open_run(tmp_path / name) for name in ("edited", "hand", "plain"))
    assert edited.info["edits"] and not hand.info["edits"]
    differs = False
    for table in edited.tables:
        a, b, c = (run.table(table).drop("model", strict=False) for run in (edited, hand, plain))
        assert a.columns == b.columns and a.height == b.height
        for column in a.columns:
            assert same(a[column], b[column]), f"{table}.{column}"
        differs |= a.height != c.height or any(not same(a[column], c[column]) for column in a.columns)
    assert differs


def same(a, b):
    if not a.dtype.is_float():
        return a.equals(b)
    return np.allclose(a.to_numpy(), b.to_numpy(), atol=2e-4, rtol=2e-4, equal_nan=True)


def test_the_command_writes_a_folder_that_plain_transformers_runs_without_the_heads(
    tiny_llama, by_hand, mask, tmp_path, capsys
):
    folder = tmp_path / "pruned"
    assert command_line(["export-pruned", str(tiny_llama), str(mask), str(folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["heads"] == ["1.2", "3.5", "0.7"] and said["folder"] == str(folder) and said["warnings"] == []
    written, expected, before = (
        AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (folder, by_hand, tiny_llama)
    )
    assert written.keys() == expected.keys() and all(torch.equal(written[key], expected[key]) for key in expected)
    assert sum(not torch.equal(written[key], before[key]) for key in before) == 3
    assert load(str(folder)).encode("Once upon a time") == load(str(tiny_llama)).encode("Once upon a time")
    assert read_mask(folder / "pruned_heads.json").heads == HEADS


@pytest.mark.parametrize(
    "content, message",
    [
        ({"heads": [[1, 2]], "ablation": "uniform"}, "attend evenly"),
        ({"heads": []}, "names no head"),
        ({"heads": [[9, 0]]}, "Head 9.0 does not exist"),
        ({"heads": [[1, 2.5]]}, "not a head mask"),
        ({"heads": [[1, 2]], "ablation": "mean"}, "can be zero, uniform or dual run"),
        ([[1, 2]], "not a head mask"),
    ],
)
def test_a_mask_that_cannot_be_exported_is_refused_in_one_sentence_and_nothing_is_written(
    tiny_llama, tmp_path, capsys, content, message
):
    (tmp_path / "mask.json").write_text(json.dumps(content))
    assert command_line(["export-pruned", str(tiny_llama), str(tmp_path / "mask.json"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said and said.endswith(".") and not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_written_into(tiny_llama, mask, tmp_path, capsys):
    assert command_line(["export-pruned", str(tiny_llama), str(mask), str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["mask.json"]


def test_a_mask_says_which_weights_it_was_found_on(tiny_llama, by_hand, tmp_path, capsys):
    model, other = load(str(tiny_llama)), load(str(by_hand))
    path = tmp_path / "mask.json"
    save_heads(path, HEADS, note="three heads", model=model)
    found = read_mask(path)
    assert (found.heads, found.how, found.note, found.model["fingerprint"]) == (
        HEADS,
        "zero",
        "three heads",
        model.fingerprint,
    )
    assert found.mismatch_warning(model) is None and "not on these weights" in found.mismatch_warning(other)
    with pytest.raises(InputError, match="Head 3.5 does not exist"):
        found.mismatch_warning(wrap(build("llama"), None, name="llama"))
    assert command_line(["export-pruned", str(by_hand), str(path), str(tmp_path / "out")]) == 0
    assert "warning: The head mask was found on" in capsys.readouterr().err
    (edit,) = load_edits(path)
    assert edit.heads == HEADS and edit.how == "zero"


def test_masks_without_a_model_are_read_and_empty_ones_are_neither_written_nor_read(tmp_path):
    path = tmp_path / "mask.json"
    path.write_text('{"heads": [[0, 1], [0, 1]]}')
    assert read_mask(path).heads == ((0, 1),) and not read_mask(path).model
    assert read_mask(path).mismatch_warning(wrap(build("llama"), None, name="llama")) is None
    path.write_text('{"heads": []}')
    with pytest.raises(InputError, match="names no head"):
        load_edits(path)
    with pytest.raises(InputError, match="at least one head"):
        save_heads(tmp_path / "other.json", [])


def test_mean_head_outputs_are_those_of_the_edited_model():
    """Against forward passes of the plain model with a hook that zeroes head 0.1: its own mean is zero, later heads'
    means shift."""
    model = wrap(build("llama"), None, name="llama")
    ids = [[5, 9, 13, 21, 7], [33, 8, 2]]
    edits = (HeadAblation(((0, 1),)),)
    found = mean_head_outputs(model, ids, edits=edits)
    total = torch.zeros(3, 32, dtype=torch.float64)
    layers = model.hf.model.layers

    def zero(_module, args):
        x = args[0].clone()
        x[..., 8:16] = 0
        return (x,)

    for row in ids:
        kept = []
        handles = [layers[0].self_attn.o_proj.register_forward_pre_hook(zero)]
        handles += [
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _m, a, kept=kept: kept.append(a[0][0].double().sum(0))
            )
            for layer in layers
        ]
        with torch.no_grad():
            model.hf(torch.tensor([row]))
        for handle in handles:
            handle.remove()
        total += torch.stack(kept)
    torch.testing.assert_close(found.double(), (total / 8).reshape(3, 4, 8), atol=1e-6, rtol=1e-5)
    assert found[0, 1].abs().max() == 0 and (found - mean_head_outputs(model, ids)).abs()[1:].max() > 1e-3
    with apply(model, edits):
        torch.testing.assert_close(mean_head_outputs(model, ids), found)


def test_tables_compare_as_they_should():
    """The comparison above sees a difference in any kind of column."""
    assert same(pl.Series([1.0, None]), pl.Series([1.0, None])) and not same(
        pl.Series([1.0, None]), pl.Series([1.0, 2.0])
    )
    assert not same(pl.Series([1.0]), pl.Series([1.01])) and not same(pl.Series(["a"]), pl.Series(["b"]))
