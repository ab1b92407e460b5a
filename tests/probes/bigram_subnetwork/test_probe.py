"""The contract: the battery of every probe, bad input in a sentence, the estimate, the search of the organism."""

import json
from types import SimpleNamespace

import pytest
import torch

from probes.bigram_subnetwork.config import Config
from tests.probes.bigram_subnetwork.test_toy import QUICK
from tests.support import bigram_toy
from workbench import organisms
from workbench.core import registry
from workbench.core.errors import InputError, RunFailed
from workbench.engine.weight_masks import save_masks
from workbench.models.loading import load
from workbench.runs import cost, execution
from workbench.runs.checks import check_probe
from workbench.runs.memory_plan import plan_memory


def test_the_battery_of_a_search_in_double_precision(toy):
    """In float32 a batch that is summed in another order turns the sign of gradients that are rounding, and AdamW makes
    whole steps of them; in float64 one prompt at a time gives the same weights."""
    model, texts, pairs = toy
    exact = load(str(model.folder), dtype="float64")
    config = QUICK | {"steps": 8, "reference": str(pairs), "rotation": True, "rotation_tokens": 200}
    assert len(check_probe("bigram-subnetwork", exact, config=config, data=texts)) == 9


def test_the_battery_of_a_given_mask(toy, tmp_path):
    model, texts, pairs = toy
    save_masks(tmp_path / "mask.safetensors", bigram_toy.oracle(model), model=model)
    config = QUICK | {"reference": str(pairs), "mask": str(tmp_path / "mask.safetensors"), "layer_ablation": False}
    assert len(check_probe("bigram-subnetwork", model, config=config, data=texts)) == 9


def test_rate_and_sharpening_are_the_papers_at_its_steps_and_go_as_far_in_fewer():
    paper = Config()
    assert paper.step_size == pytest.approx(5e-5) and paper.factor == pytest.approx(1.001)
    short = Config(steps=300)
    assert short.step_size * 300 == pytest.approx(0.75) and short.factor**300 == pytest.approx(1.001**15000)
    assert Config(rate=1e-3, sharpening=1.5).step_size == 1e-3 and Config(rate=1e-3, sharpening=1.5).factor == 1.5


@pytest.mark.parametrize(
    ("rows", "config", "said"),
    [
        (["one"], {}, "has 1 text; one is searched on and another judged on"),
        (["a", "b"], {}, "0 different texts have the two tokens that a bigram needs"),
        (["a b c", "b c a"], {"mask": "no.safetensors"}, "cannot be read"),
        (["a b c", "b c a"], {"mask": "{data}"}, "is no weight mask"),
        (["a b c", "b c a"], {"reference": "no.jsonl"}, "no.jsonl"),
        (["a b c", "b c a"], {"sharpening": 0.5}, "would make the masks softer"),
        (["a b c", "b c a"], {"unseen": "guess"}, "unseen"),
    ],
)
def test_bad_input_is_said_in_a_sentence(toy, tmp_path, rows, config, said):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    config = {key: value.format(data=data) if isinstance(value, str) else value for key, value in config.items()}
    with pytest.raises(InputError, match=said):
        execution.execute("bigram-subnetwork", toy[0], data=data, config=QUICK | config)


def test_what_is_wrong_is_said_before_a_model_is_loaded(toy, tmp_path):
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "a"}\n{"text": "b"}\n')
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in toy[0].folder.iterdir():
        (broken / file.name).write_bytes(b"no weights" if file.suffix == ".safetensors" else file.read_bytes())
    with pytest.raises(InputError, match="0 different texts have the two tokens"):
        execution.execute("bigram-subnetwork", str(broken), data=data, config=QUICK)
    with pytest.raises(InputError, match="run it with --engine hf"):
        execution.execute("bigram-subnetwork", str(broken), data=toy[1], config=QUICK, engine="nnsight")
    texts, odd = toy[1], tmp_path / "odd.pickle"
    odd.write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="no pickle of numpy arrays alone"):
        execution.execute("bigram-subnetwork", str(broken), data=texts, config=QUICK | {"mask": str(odd)})


def test_another_engine_and_a_loss_that_is_no_number_are_refused(toy):
    model, texts, pairs = toy
    with pytest.raises(InputError, match="the engine 'nnsight' does not; run it with --engine hf"):
        execution.execute("bigram-subnetwork", model, data=texts, config=QUICK, engine="nnsight")
    other = load(str(model.folder))
    with torch.no_grad():
        other.hf.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(RunFailed, match=r"NaN or infinite at step 1 of the search"):
        execution.execute("bigram-subnetwork", other, data=texts, config=QUICK)


def test_few_bigrams_and_an_empty_mask_are_warned_of(toy, tmp_path):
    model, texts, _ = toy
    save_masks(
        tmp_path / "none.safetensors",
        {name: torch.zeros_like(mask) for name, mask in bigram_toy.oracle(model).items()},
    )
    few = tmp_path / "few.jsonl"
    few.write_text("".join(texts.read_text().splitlines(keepends=True)[:3]))
    config = QUICK | {"mask": str(tmp_path / "none.safetensors"), "reference": str(few)}
    run = execution.execute("bigram-subnetwork", model, data=texts, config=config)
    said = " ".join(run.info["warnings"])
    assert "few for a vocabulary of 12" in said and "keeps no weight at all" in said
    assert run.summary["active weights"] == 0 and run.summary["correlation with bigrams"]["value"] == 0


def test_a_text_that_is_there_twice_is_on_one_side_alone(toy, tmp_path):
    model, texts, pairs = toy
    rows = texts.read_text().splitlines(keepends=True)[:20]
    (tmp_path / "texts.jsonl").write_text("".join(rows * 3))
    save_masks(tmp_path / "mask.safetensors", bigram_toy.oracle(model), model=model)
    config = QUICK | {"mask": str(tmp_path / "mask.safetensors"), "reference": str(pairs), "layer_ablation": False}
    run = execution.execute("bigram-subnetwork", model, data=tmp_path / "texts.jsonl", config=config)
    assert "40 of the 60 texts in" in " ".join(run.info["warnings"])
    fed = run.table("inputs")
    sides = {split: {tuple(ids) for ids in own["ids"].to_list()} for (split,), own in fed.group_by("split")}
    assert not sides["search"] & sides["held out"] and set(fed["row"]) == set(range(20))
    assert run.table("evaluation")["n"][0] == 5


def test_a_mask_that_was_found_on_other_weights_is_warned_of(toy, tmp_path):
    model, texts, pairs = toy
    other = SimpleNamespace(name="someone/other", fingerprint="0" * 64)
    for number, (owner, expected) in enumerate(((model, False), (other, True))):
        mask = tmp_path / f"mask{number}.safetensors"
        save_masks(mask, bigram_toy.oracle(model), model=owner)  # pyright: ignore[reportArgumentType]
        config = QUICK | {"mask": str(mask), "reference": str(pairs), "layer_ablation": False}
        run = execution.execute("bigram-subnetwork", model, data=texts, config=config)
        assert ("The weight mask was found on someone/other" in " ".join(run.info["warnings"])) == expected


def test_a_full_model_that_says_nan_is_refused(toy, tmp_path):
    model, texts, pairs = toy
    broken = load(str(model.folder))
    config = QUICK | {"mask": str(tmp_path / "mask.safetensors"), "reference": str(pairs), "layer_ablation": False}
    save_masks(tmp_path / "mask.safetensors", bigram_toy.oracle(model))
    with torch.no_grad():
        broken.hf.get_input_embeddings().weight[5] = torch.nan
    with pytest.raises(RunFailed, match="on held-out texts is NaN; use another dtype"):
        execution.execute("bigram-subnetwork", broken, data=texts, config=config)


def test_a_search_whose_masks_are_all_off_has_settled(toy):
    model, texts, pairs = toy
    config = QUICK | {"reference": str(pairs), "penalty": 1e6, "steps": 40, "layer_ablation": False}
    run = execution.execute("bigram-subnetwork", model, data=texts, config=config)
    last = run.table("search").row(-1, named=True)
    assert last["active"] == 0 and last["undecided"] == 0 and last["settled"] and last["step"] < 40
    said = " ".join(run.info["warnings"])
    assert "keeps no weight at all" in said and "had not settled" not in said


def test_unseen_pairs_are_dropped_or_take_the_largest_surprisal(toy, tmp_path):
    """Bigrams of half of the texts: some pairs of the others have no probability."""
    model, texts, _ = toy
    half = tmp_path / "half.jsonl"
    half.write_text("".join(texts.read_text().splitlines(keepends=True)[:8]))
    save_masks(tmp_path / "mask.safetensors", bigram_toy.oracle(model))
    config = QUICK | {"mask": str(tmp_path / "mask.safetensors"), "reference": str(half), "layer_ablation": False}
    found = {
        how: execution.execute("bigram-subnetwork", model, data=texts, config=config | {"unseen": how}).table(
            "evaluation"
        )
        for how in ("drop", "max")
    }
    assert found["drop"]["infinite"][0] == found["max"]["infinite"][0] > 0
    assert found["drop"]["tokens"][0] + found["drop"]["infinite"][0] == found["max"]["tokens"][0]
    assert found["drop"]["correlation"][0] > found["max"]["correlation"][0]


def test_the_estimate_counts_what_is_fed(toy):
    model, texts, pairs = toy
    facts = cost.facts(str(model.folder))
    config = Config(**QUICK, reference=str(pairs), sharpening=1.01)
    plan = registry.get("bigram-subnetwork").estimate(config, texts, facts)
    run = execution.execute(
        "bigram-subnetwork", model, data=texts, config=QUICK | {"reference": str(pairs), "sharpening": 1.01}
    )
    counted = run.info["counters"]["tokens"]  # of a step once: its gradients are no tokens
    steps = QUICK["steps"] * QUICK["batch"] * QUICK["length"]
    assert 0.5 < (plan.tokens - 2 * steps) / (counted + QUICK["steps"] * 16 * QUICK["length"]) < 2


def test_the_memory_of_a_search_holds_the_state_of_its_optimiser_and_that_of_a_given_mask_does_not(toy, tmp_path):
    model, texts, _ = toy
    save_masks(tmp_path / "mask.safetensors", bigram_toy.oracle(model))
    needs = []
    for mask in ("", str(tmp_path / "mask.safetensors")):
        plan = registry.get("bigram-subnetwork").estimate(Config(mask=mask), texts, cost.facts(str(model.folder)))
        needs.append(plan_memory(model.folder, plan, dtype="float32", device="cpu").need)
    weights = sum(weight.numel() for weight in model.hf.parameters())
    assert [need.training for need in needs] == [24 * weights, 0]
    assert needs[0].total - needs[1].total == 24 * weights


@pytest.mark.slow
def test_on_the_organism_a_subnetwork_agrees_with_the_bigrams_above_all_baselines():
    facts = cost.facts("organism")
    config = registry.get("bigram-subnetwork").example(facts)
    run = execution.execute("bigram-subnetwork", "organism", config=dict(config))
    summary = run.summary
    assert summary["correlation with bigrams"]["low"] > 0.93
    for other in ("full model", "random masks", "complement", "token frequency"):
        assert summary["correlation with bigrams"]["low"] > summary[f"correlation, {other}"]["high"] + 0.1
    assert summary["above the full model"]["low"] > 0.2 and summary["share of weights"] < 0.2
    assert summary["surprisal added by ablating it, above random sets"]["low"] > 1
    assert run.info["data"]["name"] == f"workbench:organisms/data/{organisms.data('texts').name}"
