"""What a run is said to take, against counting by hand and against what runs really took."""

import json
from types import SimpleNamespace as Simple

import polars as pl
import pytest
from transformers import AutoTokenizer

from workbench import organisms
from workbench.core import config as configs
from workbench.core import registry
from workbench.runs import cost, demo
from workbench.runs import execution as runs


def plan(name, model, values=None, data=None):
    probe = registry.get(name)
    config = configs.build(probe.config, values or {})
    ready = runs.prepare(probe, config, data)
    return cost.plan(name, config, ready.data if data is not None else probe.data.default_path(model), model), config


def counted(model, texts):
    tokenizer = AutoTokenizer.from_pretrained(organisms.folder(model))
    return sum(len(tokenizer(text)["input_ids"]) for text in texts)


def fed(found: cost.Plan) -> cost.Plan:
    """What a run feeds and keeps, whatever its largest batch is."""
    return cost.Plan(found.prompts, found.tokens, found.stored, found.scored, found.without)


def test_the_shape_of_a_model_is_read_without_loading_it():
    about = cost.facts("organism")
    config = json.loads((organisms.folder("organism") / "config.json").read_text())
    assert (about.layers, about.width, about.heads) == (
        config["num_hidden_layers"],
        config["hidden_size"],
        config["num_attention_heads"],
    )
    assert cost.facts("circuit-copy").layers == 2  # GPT-2 has other names for it
    assert cost.facts("nobody/has-this") is None and cost.facts("no-such-organism") is None


def test_tokens_are_those_of_the_models_own_tokenizer():
    texts = pl.read_ndjson(organisms.data("texts"))["text"].to_list()[:150]  # few enough to be counted in full
    assert cost.facts("organism").tokens(texts) == counted("organism", texts)
    assert cost.Facts(None, 1, 1, 1, 10).tokens(["abcd" * 5, "abcd"]) == 6


def test_the_plan_of_retrieval_is_the_grid_its_answers_and_its_masking():
    values = {
        "lengths": (100, 200),
        "depths": (0, 50, 100),
        "needles": 2,
        "max_new_tokens": 6,
        "mask_k": (1, 900),
        "random_draws": 3,
        "mask_trials": 5,
    }
    found, _ = plan("retrieval-heads", "circuit-copy", values)
    # two needles at two lengths: at three depths, and once without the needle
    assert fed(found) == cost.Plan(prompts=12 + 4, tokens=2 * (3 + 1) * 300 + (12 + 4 + 5 * (1 + 1 * 4)) * 6, stored=0)


def test_the_plan_of_branching_is_its_samples_at_their_longest_for_every_condition(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("The\nThe secret\n")
    found, _ = plan("branching-factor", "organism", {"samples": 3, "max_new_tokens": 7}, file)
    prompts = counted("organism", ["The", "The secret"])
    assert fed(found) == cost.Plan(2, prompts + 2 * 3 * 7)
    longest = counted("organism", ["The secret"]) + 7
    assert (found.longest, found.generated, found.samples, found.rows) == (longest, 7, 3, 256)
    found, config = plan("branching-factor", "organism", {"samples": 3, "max_new_tokens": 7, "study": "decoding"}, file)
    times = len(config.settings)
    assert fed(found) == cost.Plan(2 * times, times * (prompts + 2 * 3 * 7))


def test_the_plans_of_depth_and_geometry_keep_every_layer_of_every_text(tmp_path):
    file = tmp_path / "c.csv"
    texts = ["The secret", "The lantern"] * 4
    file.write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(texts)))
    about = cost.facts("organism")
    found, _ = plan("concept-depth", "organism", {"noise": True, "split": "paper"}, file)
    assert fed(found) == cost.Plan(16, 2 * counted("organism", texts), 16 * about.layers * about.width * 4)
    values = {"layers": "all", "checkpoints": ("organism@*",), "loss_rows": 0}
    found, _ = plan("representation-geometry", "organism", values, file)
    steps = sum("@step-" in name for name in organisms.names())
    assert steps > 3 and fed(found) == cost.Plan(
        8 * steps, counted("organism", texts) * steps, 8 * steps * about.layers * about.width * 4
    )


def test_the_plan_of_geometry_names_what_losses_over_the_vocabulary_take_and_what_leaves_them_out(tmp_path):
    file = tmp_path / "c.csv"
    texts = ["The secret", "The lantern", "The"]
    file.write_text("text\n" + "".join(f"{text}\n" for text in texts))
    about = cost.facts("organism")
    assert about.vocabulary == json.loads((organisms.folder("organism") / "config.json").read_text())["vocab_size"]
    values = {"loss_rows": 2, "ablate": (3, 4), "random_draws": 5}
    found, _ = plan("representation-geometry", "organism", values, file)
    tokens, all_tokens = counted("organism", texts[:2]), counted("organism", texts)
    variants = 1 + 2 * 2 * (1 + 5)
    assert found.scored == tokens * about.vocabulary * (about.width + 6 * 3 + 6 * 4 + variants)
    assert found.tokens == all_tokens + tokens and found.without == "loss_rows=0"
    found, _ = plan("representation-geometry", "organism", values | {"loss_rows": 0}, file)
    assert (found.scored, found.without, found.tokens) == (0, "", all_tokens)


MORE = {
    "retrieval-heads": {"needles": 16},
    "concept-depth": {"noise": False},
    "knowledge-conflict": {"limit": 240},
    "data-selection": {},
    "branching-factor": {"samples": 80},
    "representation-geometry": {"limit": 1200},
    "token-filter": {"answer_trials": 48},
    "bigram-subnetwork": {"steps": 400},
}


@pytest.mark.parametrize("name", sorted(MORE))
def test_every_probe_has_a_plan_of_its_example_and_asking_for_more_costs_more(name):
    example = demo.settings(registry.get(name), "organism")
    small, _ = plan(name, "organism", example)
    assert small.prompts > 0 and small.tokens > small.prompts
    other, _ = plan(name, "organism", {**example, **MORE[name]})
    assert (
        (other.tokens < small.tokens)
        if name == "concept-depth"
        else (other.tokens > small.tokens or name == "data-selection")
    )


def test_a_finished_run_scales_the_plan_and_its_seconds_count_only_where_they_were_measured():
    run = Simple(info={"counters": {"tokens": 500}, "seconds": {"compute": 4.0}})
    now, then = cost.Plan(10, 3000, 7), cost.Plan(5, 1000)
    assert cost.estimate(now) == cost.CostEstimate(3000, 7, None)
    assert cost.estimate(now, then=then, run=run) == cost.CostEstimate(1500, 7, None)
    assert cost.estimate(now, then=then, run=run, same_machine=True) == cost.CostEstimate(1500, 7, 12.0)


def test_the_estimate_of_a_run_from_another_one_is_near_what_it_takes():
    values = {"samples": 4, "max_new_tokens": 8, "max_prompts": 4}
    first = runs.execute(
        "branching-factor", "circuit-zipf", config=values, data=organisms.folder("circuit-zipf") / "prompts.jsonl"
    )
    second = runs.execute(
        "branching-factor",
        "circuit-zipf",
        config={**values, "samples": 16},
        data=organisms.folder("circuit-zipf") / "prompts.jsonl",
    )
    plans = [
        plan(
            "branching-factor", "circuit-zipf", run.info["config"], organisms.folder("circuit-zipf") / "prompts.jsonl"
        )[0]
        for run in (first, second)
    ]
    guess = cost.estimate(plans[1], then=plans[0], run=first).tokens
    assert 0.6 < guess / second.info["counters"]["tokens"] < 1.6
