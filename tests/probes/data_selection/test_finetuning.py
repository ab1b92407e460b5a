"""Fine-tuning on a selection: the training is that of a slow loop, the budget is the same for all, the shared model
stays as it was, what is held out is seen by nobody, and the selection beats random rows where it must."""

import hashlib
import importlib.util
import re
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.data_selection import config as configs
from probes.data_selection import finetuning, held_out
from probes.data_selection.samples import tokenize
from tests.support.selection_pool import execute, read, sentence, write
from workbench.core.context import Context
from workbench.core.errors import Cancelled, InputError
from workbench.engine import finetuning as training
from workbench.runs import cost
from workbench.runs import execution as runs

QUICK = {"finetune": True, "finetune_seeds": 3, "finetune_rate": 1e-3, "finetune_batch": 4, "ratio": 0.1}
QUICK |= {"baselines": ("bm25",), "features": 0, "explain": 0, "resamples": 0}


def bits(model):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.hf.state_dict().values())).hexdigest()


@pytest.fixture(scope="module")
def samples(model, material):
    return tokenize(model, pl.DataFrame(read(material / "pool.jsonl")), what="pool", tokens="response", specials=True)


def slow_copy(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


def slow_loss(hf, ids, mask):
    """Σ −ln p of the tokens that count, one text at a time."""
    logp = hf(input_ids=torch.tensor([ids.tolist()])).logits[0, :-1].log_softmax(-1)
    own = [-logp[at, int(ids[at + 1])] for at in range(len(ids) - 1) if mask[at + 1]]
    return torch.stack(own).sum(), len(own)


def slow_training(hf, samples, steps, rate):
    """AdamW written out, in float64, a text at a time."""
    weights = [p for p in hf.parameters()]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in weights]
    for number, rows in enumerate(steps):
        lr = rate * (1 + np.cos(np.pi * number / len(steps))) / 2
        found = [slow_loss(hf, samples.ids[row], samples.masks[row]) for row in rows]
        loss = sum(total for total, _ in found) / sum(count for _, count in found)
        gradients = torch.autograd.grad(loss, weights)
        norm = float(torch.sqrt(sum((g**2).sum() for g in gradients)))
        with torch.no_grad():
            for p, g, (m, v) in zip(weights, gradients, moments):
                g = g * min(1.0, 1.0 / (norm + 1e-6))
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p.mul_(1 - lr * (0.1 if p.ndim >= 2 else 0.0))
                up, down = m / (1 - 0.9 ** (number + 1)), v / (1 - 0.999 ** (number + 1))
                p.sub_(lr * up / (down.sqrt() + 1e-8))
    return hf


def test_training_and_losses_are_those_of_a_slow_loop_in_float64(model, tiny_llama, samples):
    before, steps = bits(model), [[0, 7, 11], [3], [20, 21, 22, 23, 5], [7, 0]]
    fast = training.trainable_copy(model, "all", 0)
    fed = training.train(fast, model, samples, steps, rate=2e-3)
    assert fed == sum(len(samples.ids[row]) for rows in steps for row in rows)
    slow = slow_training(slow_copy(tiny_llama), samples, steps, 2e-3)
    asked = [1, 2, 30, 41, 7]
    found = training.text_losses(fast, model, samples, asked, check=lambda: None)
    untrained = slow_copy(tiny_llama)
    with torch.no_grad():
        expected, at_first = (
            [float(a / b) for a, b in (slow_loss(hf, samples.ids[row], samples.masks[row]) for row in asked)]
            for hf in (slow, untrained)
        )
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    assert np.abs(np.subtract(expected, at_first)).min() > 20 * np.abs(found - expected).max(), "it learned something"
    assert bits(model) == before and all(p.grad is None and not p.requires_grad for p in model.hf.parameters())


def test_a_lora_is_weights_plus_b_times_a_and_touches_nothing_else(model, tiny_llama, samples):
    before = bits(model)
    tuned = training.trainable_copy(model, "lora", 7)
    assert all("lora_" in name for name, p in tuned.named_parameters() if p.requires_grad)
    training.train(tuned, model, samples, [[0, 7, 11], [3, 4]], rate=1e-2)
    slow = slow_copy(tiny_llama)
    state, by_hand = tuned.state_dict(), 0
    with torch.no_grad():
        for name, module in slow.named_modules():
            key = f"base_model.model.{name}"
            if f"{key}.lora_A.default.weight" in state:
                a, b = (state[f"{key}.lora_{x}.default.weight"].double() for x in "AB")
                module.weight.add_(2.0 * b @ a)  # alpha over rank
                by_hand += 1
        expected = [float(x / n) for x, n in (slow_loss(slow, samples.ids[r], samples.masks[r]) for r in (1, 2, 30))]
    assert by_hand == 7 * model.n_layers
    found = training.text_losses(tuned, model, samples, [1, 2, 30], check=lambda: None)
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    same = training.trainable_copy(model, "lora", 7).state_dict()
    other = training.trainable_copy(model, "lora", 8).state_dict()
    first = next(name for name in same if "lora_A" in name)
    assert not torch.equal(same[first], other[first]) and bits(model) == before


@pytest.mark.parametrize("rows", [3, 40, 400])
def test_every_condition_is_fed_the_same_number_of_tokens_in_the_same_number_of_steps(rows):
    rng = np.random.default_rng(rows)
    lengths = rng.integers(5, 60, 500)
    steps = training.steps_of(np.arange(rows), lengths, steps=20, tokens=300.0, rng=rng)
    fed = np.cumsum([lengths[step].sum() for step in steps])
    assert len(steps) == 20 and np.abs(fed - 300 * np.arange(1, 21)).max() <= 30
    order = [row for step in steps for row in step]
    for start in range(0, len(order) - rows + 1, rows):
        assert sorted(order[start : start + rows]) == list(range(rows)), "every row once before any comes again"


def test_the_run_measures_held_out_examples_and_leaves_the_model_as_it_was(model, tiny_llama, material, tmp_path):
    before = bits(model)
    run = execute(model, material, tmp_path / "run", **QUICK)
    assert bits(model) == before
    table, inputs = run.table("finetuning"), run.table("inputs")
    assert table.height == 2 * 3 * 3 and table["steps"].n_unique() == 1
    assert table["tokens"].max() - table["tokens"].min() <= 0.15 * table["tokens"].mean()
    slow = slow_copy(tiny_llama)
    for name, many in (("sea", 6), ("park", 4)):
        building, held = (inputs.filter(role=role, target=name) for role in ("target", "held_out"))
        assert held.height >= 1 and building.height + held.height == many
        assert not {tuple(x) for x in building["ids"]} & {tuple(x) for x in held["ids"]}
        with torch.no_grad():
            losses = [slow_loss(slow, np.array(i), m) for i, m in held.select("ids", "mask").iter_rows()]
        own = table.filter(target=name)
        assert own["loss_before"].unique().to_list() == pytest.approx([np.mean([float(a / b) for a, b in losses])])
        assert (own["rows"] == held.height).all() and (own["loss_after"] < own["loss_before"]).all()
        gain = run.table("finetuning_gain").filter(target=name, against="random").row(0, named=True)
        mean = {c: own.filter(condition=c)["loss_after"].mean() for c in ("selected", "random")}
        assert gain["difference"] == pytest.approx(mean["selected"] - mean["random"])
        assert gain["ci_low"] is None or gain["n"] >= 5
    assert own.filter(condition="selected")["trained_rows"].max() <= 6
    again = execute(model, material, tmp_path / "again", **QUICK)
    assert again.table("finetuning").equals(table)


def test_a_fine_tuning_that_was_stopped_goes_on_and_ends_the_same(model, material, tmp_path):
    config = QUICK | {"target": (str(material / "sea.jsonl"),), "sae": str(material / "sae")}
    how = {"data": material / "pool.jsonl", "config": config}
    told = []

    def stop():
        return any(at >= 14 for at in steps())

    def steps():
        return [int(found[1]) for label in told if (found := re.search(r"fine-tuning steps: (\d+) of", label))]

    with pytest.raises(Cancelled):
        runs.execute(
            "data-selection", model, out=tmp_path / "run", cancel=stop, **how,
            progress=lambda done, total, label: told.append(label),
        )  # fmt: skip
    done = steps()[-1]
    told.clear()
    whole = runs.execute("data-selection", model, out=tmp_path / "whole", **how)
    resumed = runs.execute(
        "data-selection", model, out=tmp_path / "run", **how,
        progress=lambda done, total, label: told.append(label),
    )  # fmt: skip
    assert min(steps()) > done - 6, "finished ones are not done again"
    assert resumed.table("finetuning").equals(whole.table("finetuning"))


def test_pool_rows_that_give_a_held_out_example_away_are_not_trained_on(model, material, tmp_path):
    examples = read(material / "sea.jsonl")
    pool = read(material / "pool.jsonl") + examples[:5]
    target = {"sea": pl.DataFrame(examples)}
    _, held = held_out.split_examples(target, 0.5, Context(seed=3))
    about = finetuning.material_of(model, configs.Config(), pl.DataFrame(pool), held, Context())
    own = {row["response"] for row in held.tables["sea"].iter_rows(named=True)}
    exact = [row for row, sample in enumerate(pool) if sample["response"] in own]
    assert len(exact) >= 2 and not set(exact) & set(about.usable.tolist())
    assert set(about.usable.tolist()) <= set(range(len(pool))) and len(about.usable) > 40


def test_examples_that_say_almost_the_same_stay_on_one_side():
    rng = np.random.default_rng(1)
    rows = [sentence(rng, "sea") | {"group": f"g{i // 3}"} for i in range(30)]
    for seed in range(20):
        building, held = held_out.split_examples({"sea": pl.DataFrame(rows)}, 0.5, Context(seed=seed))
        assert not set(building["sea"]["group"]) & set(held.tables["sea"]["group"])
        assert 15 <= held.tables["sea"].height <= 17 and len(np.unique(held.groups["sea"])) >= 5
    same = pl.DataFrame([rows[0]] * 4)
    with pytest.raises(InputError, match="no two examples that say different things"):
        held_out.split_examples({"sea": same}, 0.5, Context())


def test_the_selection_beats_random_rows_where_only_some_rows_can_teach(model, tmp_path, material):
    """Off-topic rows hold none of the target's words: only what is on topic lowers the loss much."""
    rng = np.random.default_rng(5)
    pool = [sentence(rng, "sea") for _ in range(20)] + [sentence(rng, "kitchen") for _ in range(160)]
    pool = write(tmp_path / "pool.jsonl", [pool[i] for i in rng.permutation(180)])
    target = write(tmp_path / "sea.jsonl", [sentence(rng, "sea") for _ in range(24)])
    config = QUICK | {"target": (str(target),), "sae": "none", "baselines": ("bm25",), "k": 18, "finetune_seeds": 4}
    found = runs.execute("data-selection", model, data=pool, config=config, out=tmp_path / "run").summary
    assert found["finetuned_selected_minus_random"]["high"] < 0 and found["finetuned_selected_minus_full"]["high"] < 0
    assert found["finetuned_better_than"] == "random, full"
    chance = runs.execute(
        "data-selection", model, data=pool, config=config | {"baselines": ("random",)}, out=tmp_path / "chance"
    ).summary
    assert "random" not in chance.get("finetuned_better_than", ""), "a random selection is not found to be better"


@pytest.mark.parametrize(("targets", "texts"), [(1, 8), (3, 10), (8, 6)])
def test_intervals_hold_the_difference_where_seeds_and_texts_vary(targets, texts):
    """Truth 0.1 with effects of texts, of seeds (shared by all texts) and of both."""
    rng, held, false = np.random.default_rng([targets, texts]), [], []
    names = [f"t{t}" for t in range(targets)]
    own = {name: np.arange(t * texts, (t + 1) * texts) for t, name in enumerate(names)}
    groups = {name: np.arange(texts) for name in names}
    about = SimpleNamespace(held=own, clusters=groups)
    for _ in range(400):
        base, many = rng.normal(2, 0.5, targets * texts), targets * texts
        effect = (
            rng.normal(0.0, 0.1, targets).repeat(texts) if targets >= 5 else 0.0
        )  # targets are a sample from five on
        effect = effect + rng.normal(0, 0.1, many)
        after = {
            condition: base + rng.normal(0, 0.05, (5, 1)) + rng.normal(0, 0.05, (5, many))
            for condition in finetuning.CONDITIONS
        }
        after["selected"] = after["selected"] + effect + 0.1
        found = finetuning.verdict_of(about, base, after)
        apart = found["finetuned_selected_minus_random"]
        held.append(apart["low"] <= 0.1 <= apart["high"])
        after["selected"] = after["selected"] - 0.1
        false.append("random" in finetuning.verdict_of(about, base, after).get("finetuned_better_than", ""))
    assert 0.92 <= np.mean(held) and np.mean(false) <= 0.05


def test_the_estimate_counts_what_the_fine_tunings_are_fed(model, tiny_llama, material, tmp_path):
    run = execute(model, material, tmp_path / "run", **QUICK)
    config = configs.Config(
        target=(str(material / "sea.jsonl"), str(material / "park.jsonl")), sae=str(material / "sae"), **QUICK
    )
    planned = cost.plan("data-selection", config, material / "pool.jsonl", str(tiny_llama))
    assert planned.tokens == pytest.approx(run.info["counters"]["tokens"], rel=0.25)
    off = cost.plan("data-selection", configs.Config(target=config.target), material / "pool.jsonl", str(tiny_llama))
    assert planned.tokens > 3 * off.tokens


def test_what_cannot_be_fine_tuned_is_refused_in_a_sentence(model, material, tmp_path, monkeypatch):
    target = write(tmp_path / "one.jsonl", read(material / "sea.jsonl")[:1])
    with pytest.raises(InputError, match="'one' has one example, and finetune=true holds some out"):
        execute(model, material, tmp_path / "a", **QUICK | {"target": (str(target),)})
    with pytest.raises(InputError, match="finetune_rate of 0 trains nothing"):
        execute(model, material, tmp_path / "b", **QUICK | {"finetune_rate": 0})
    monkeypatch.setattr(training, "memory", lambda _: (1000, 1000))
    with pytest.raises(InputError, match=r"train a LoRA \(lora\) instead"):
        execute(model, material, tmp_path / "c", **QUICK)
    monkeypatch.setattr(configs, "find_spec", lambda name: None if name == "peft" else importlib.util.find_spec(name))
    with pytest.raises(InputError, match="peft is not installed here, which finetune_weights=lora needs"):
        execute(model, material, tmp_path / "d", **QUICK | {"finetune_weights": "lora"})
    monkeypatch.undo()
    monkeypatch.setattr(model.hf, "is_quantized", True, raising=False)
    with pytest.raises(InputError, match="is quantised, and fine-tuning trains a copy"):
        execute(model, material, tmp_path / "e", **QUICK)


def test_a_model_with_edits_is_not_fine_tuned(model, material, tmp_path):
    from workbench.engine.edits import HeadAblation

    values = QUICK | {"target": (str(material / "sea.jsonl"),), "sae": str(material / "sae")}
    edits = (HeadAblation(((0, 0),)),)
    with pytest.raises(InputError, match="trains the model as it is, without edits"):
        runs.execute(
            "data-selection", model, data=material / "pool.jsonl", config=values, out=tmp_path / "r", edits=edits
        )
