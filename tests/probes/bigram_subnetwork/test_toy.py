"""On the model whose first MLP holds the bigrams: the search keeps these weights and no other, and what is measured of
them is what is known."""

import json
import pickle

import numpy as np
import polars as pl
import pytest
import torch

from tests.probes.bigram_subnetwork.conftest import SHORT
from tests.support import bigram_toy
from workbench.cli.main import run as command_line
from workbench.core.errors import Cancelled, InputError
from workbench.core.files import read_json
from workbench.engine.weight_masks import read_masks, save_masks
from workbench.models.loading import load
from workbench.runs.execution import execute

QUICK = {"steps": 20, "batch": 8, "length": 24, "attempts": 1, "random_draws": 2, "draws": 100}
QUICK |= {"layer_draws": 1}


def of(run, kind: str) -> dict:
    return run.table("evaluation").row(by_predicate=pl.col("model") == kind, named=True)


@pytest.fixture
def judged(toy, tmp_path):
    """judged(masks, **config) → a run that judges masks in place of a search."""
    model, texts, pairs = toy

    def run(masks, **config):
        path = tmp_path / "mask.safetensors"
        if isinstance(masks, dict):
            save_masks(path, masks)
        mask = str(path if isinstance(masks, dict) else masks)
        return execute(
            "bigram-subnetwork", model, data=texts, config=SHORT | {"reference": str(pairs), "mask": mask} | config
        )

    return run


def test_the_search_keeps_exactly_the_weights_that_hold_the_bigrams(toy, found):
    kept, known = read_masks(found.folder / "subnetwork.safetensors").masks, bigram_toy.oracle(toy[0])
    assert {name: int(mask.sum()) for name, mask in kept.items()} == {name: int(m.sum()) for name, m in known.items()}
    assert all(torch.equal(kept[name], known[name]) for name in known)
    rows = found.table("parameters").filter(pl.col("kept") > 0)
    assert set(rows["layer"]) == {0} and set(rows["module"]) == {"mlp gate", "mlp in", "mlp out"}
    assert found.summary["share of it in first MLP"] == 1 and found.summary["settled"] is True


def test_the_subnetwork_has_r_one_and_its_complement_knows_nothing(found):
    assert of(found, "subnetwork")["correlation"] > 0.99999
    assert abs(of(found, "random")["correlation"]) < 0.1
    even = np.log(len(bigram_toy.WORDS))
    complement = of(found, "complement")
    assert complement["correlation"] == pytest.approx(0, abs=0.02)
    assert complement["surprisal"] == pytest.approx(even, abs=1e-3)
    assert of(found, "random complement")["surprisal"] != pytest.approx(even, abs=1e-3)
    ablated = found.table("contrasts").row(by_predicate=pl.col("measure") == "surprisal", named=True)
    assert ablated["contrast"] == "complement - random complement"


def test_without_the_first_layer_nothing_is_left_and_other_layers_hold_no_part(found):
    layers = found.table("layers")
    assert layers["kept"].to_list()[1:] == [0, 0] and layers["of_subnetwork"][0] == 1
    first = layers.row(0, named=True)
    assert first["drop"] == pytest.approx(1, abs=0.02) and first["drop_low"] <= first["drop"] <= first["drop_high"]


def test_an_oracle_mask_has_r_one_and_the_search_is_left_out(toy, judged):
    run = judged(bigram_toy.oracle(toy[0]))
    assert of(run, "subnetwork")["correlation"] > 0.99999 and run.table("search").height == 0
    assert "steps" not in run.summary


def test_a_random_mask_of_the_same_size_has_r_near_zero(toy, judged):
    rng, known = np.random.default_rng(0), bigram_toy.oracle(toy[0])
    masks = {
        name: torch.from_numpy(rng.permutation(mask.numpy().ravel()).reshape(mask.shape))
        for name, mask in known.items()
    }
    assert abs(of(judged(masks), "subnetwork")["correlation"]) < 0.15


def test_a_released_mask_is_read_and_gives_the_same_tables(toy, judged, tmp_path):
    known = bigram_toy.oracle(toy[0])
    released = {name: mask.numpy() for name, mask in known.items()} | {"orig_model_name": "someone/toy"}
    for protocol in (2, 4, 5):
        path = tmp_path / f"subnetwork_dict_lambda1e{protocol}.pickle"
        path.write_bytes(pickle.dumps(released, protocol=protocol))
        run = judged(path, layer_ablation=False)
        assert of(run, "subnetwork")["correlation"] > 0.99999 and of(run, "subnetwork")["active"] == sum(
            int(mask.sum()) for mask in known.values()
        )


def test_a_mask_of_another_model_is_refused(toy, judged):
    known = bigram_toy.oracle(toy[0])
    name = next(iter(known))
    with pytest.raises(InputError, match=rf"mask.safetensors has none for {name}"):
        judged({key: mask for key, mask in known.items() if key != name})
    with pytest.raises(InputError, match=r"is 4 × 4, and in .*toy that is 24 × 24"):
        judged(known | {name: torch.ones(4, 4).bool()})
    with pytest.raises(InputError, match=r"also has one for lm_head.weight, which is no matrix of a block"):
        judged(known | {"lm_head.weight": torch.ones(12, 24).bool()})


def test_rows_of_the_evaluation_are_those_of_plain_hugging_face(toy, found):
    """From the table of inputs alone: ids, a copy of the model with zeroed weights, and counting by hand."""
    model, _, pairs = toy
    words = {word: i for i, word in enumerate(bigram_toy.WORDS)}
    counts = np.zeros((12, 12))
    for line in pairs.read_text().splitlines():
        one, two = (words[word] for word in json.loads(line)["text"].split())
        counts[one, two] += 1
    plain = load(str(model.folder)).hf
    masks = read_masks(found.folder / "subnetwork.safetensors").masks
    known, full, sub = [], [], []
    rows = found.table("inputs").filter(pl.col("split") == "held out")
    for zeroed in (False, True):
        for name, weight in plain.named_parameters():
            if zeroed and name in masks:
                weight.data *= masks[name]
        for row in rows.iter_rows(named=True):
            with torch.no_grad():
                scores = plain(torch.tensor([row["ids"]])).logits[0].double().log_softmax(-1)
            for i in range(row["first"], len(row["ids"])):
                one, two = row["ids"][i - 1], row["ids"][i]
                (sub if zeroed else full).append(-scores[i - 1, two].item())
                known += [] if zeroed else [-np.log(counts[one, two] / counts[one].sum())]
    assert np.isfinite(known).all()
    for kind, said in (("full", full), ("subnetwork", sub)):
        assert of(found, kind)["correlation"] == pytest.approx(np.corrcoef(said, known)[0, 1], abs=1e-6)
        assert of(found, kind)["surprisal"] == pytest.approx(np.mean(said), abs=1e-5)
    tokens = found.table("tokens")
    np.testing.assert_allclose(tokens["bigram"], np.array(known)[tokens["token"]], atol=1e-9)
    np.testing.assert_allclose(tokens["subnetwork"], np.array(sub)[tokens["token"]], atol=1e-4)


def test_held_out_texts_are_read_by_nothing_but_the_evaluation(found):
    inputs = found.table("inputs")
    search, held = (set(inputs.filter(pl.col("split") == split)["row"]) for split in ("search", "held out"))
    assert search and held and not search & held
    assert len(held) == round(0.2 * 60) and of(found, "subnetwork")["n"] == len(held)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_search_that_is_stopped_goes_on_where_it_was(toy, tmp_path, share):
    model, texts, pairs = toy
    config = QUICK | {"reference": str(pairs), "steps": 50, "sharpening": 1.01, "random_draws": 1}
    whole = execute("bigram-subnetwork", model, data=texts, config=config, out=tmp_path / "whole")
    tokens = []

    def stop(done, total, label):
        if "step" in label:
            tokens.append(label)

    asked = lambda: len(tokens) >= 50 * share  # noqa: E731
    with pytest.raises(Cancelled):
        execute(
            "bigram-subnetwork", model, data=texts, config=config, out=tmp_path / "two", progress=stop, cancel=asked
        )
    before = len(tokens)
    run = execute("bigram-subnetwork", model, data=texts, config=config, out=tmp_path / "two", progress=stop)
    assert run.status == "complete"
    again = len(tokens) - before
    assert again <= 50 * (1 - share) + 50 / 25  # less than one round of twenty-five is done twice
    for table in whole.tables:
        assert run.table(table).equals(whole.table(table), null_equal=True), table
    assert not (run.folder / "parts").exists()


def test_the_mask_of_a_run_is_an_edit_of_another(toy, found, tmp_path):
    """`--edit subnetwork.safetensors`: what the full model says under it is what the subnetwork said."""
    from workbench.engine.edit_files import parse_edit

    model, texts, pairs = toy
    path = found.folder / "subnetwork.safetensors"
    saved = parse_edit(path.read_bytes(), path)
    assert saved.mismatch_warning(model) is None
    config = SHORT | {"reference": str(pairs), "mask": str(path), "layer_ablation": False, "random_draws": 1}
    edited = execute("bigram-subnetwork", model, data=texts, config=config, edits=(saved,), out=tmp_path / "edited")
    for measure in ("correlation", "loss", "surprisal"):
        assert of(edited, "full")[measure] == pytest.approx(of(found, "subnetwork")[measure], abs=1e-6)
    assert read_json(edited.folder / "run.json")["status"] == "complete"


def test_the_command_line_takes_the_mask_as_an_edit(toy, found, tmp_path, capsys):
    model, texts, pairs = toy
    options = QUICK | {"reference": pairs, "mask": found.folder / "subnetwork.safetensors", "layer_ablation": "false"}
    words = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    edit = ["--edit", str(found.folder / "subnetwork.safetensors"), "--out", str(tmp_path / "out"), "--json"]
    assert (
        command_line(["run", "bigram-subnetwork", "--model", str(model.folder), "--data", str(texts), *words, *edit])
        == 0
    )
    told = json.loads(capsys.readouterr().out)["summary"]
    whole = found.summary["correlation with bigrams"]["value"]
    assert told["correlation, full model"]["value"] == pytest.approx(whole, abs=1e-6)


def test_the_bar_only_grows_and_is_full_at_the_end(toy, tmp_path):
    model, texts, pairs = toy
    told = []
    config = QUICK | {"reference": str(pairs), "rotation": True, "rotation_tokens": 100}
    progress = lambda done, total, label: told.append((done / total if total else 0.0, label))  # noqa: E731
    execute("bigram-subnetwork", model, data=texts, config=config, out=tmp_path / "run", progress=progress)
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[0] < 0.05 and shares[-1] == 1 and shares.count(1.0) == 1
    assert {"search", "evaluation", "rotation"} <= {label.partition(",")[0] for _, label in told}
