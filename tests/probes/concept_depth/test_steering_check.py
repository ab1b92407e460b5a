"""Adding the probe's direction: by hand in plain Hugging Face, and against random directions with a known truth."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes import concept_depth
from probes.concept_depth import Config, linear_probe
from probes.concept_depth.causal import p_of_one_more
from probes.concept_depth.estimate import estimate
from probes.concept_depth.steering_check import beside_random
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.models.model_outline import outline
from workbench.runs import execution as runs
from workbench.stats.clusters import clusters_of, crossed_interval, crossed_p_above

SHORT = {"split": "paper", "draws": 100, "shuffles": 0, "control_tasks": 0, "site": "resid_post", "causal": "all"}


@pytest.fixture(scope="module")
def stories(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture
def pronouns(tmp_path):
    rows = [
        {
            "text": f"{'Lily' if i % 2 else 'Tom'} went to the park {i // 2} times because",
            "label": i % 2,
            "answer": "girl" if i % 2 else "ball",
        }
        for i in range(60)
    ]
    path = tmp_path / "pronoun.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_steering_is_an_addition_done_by_hand(stories, tiny_llama, pronouns):
    config = Config(**SHORT, steer=(0.5, 3.0), random_draws=5)
    result = concept_depth.run(stories, config, Context(data=pronouns))
    steering, inputs = result.tables["steering"], result.tables["inputs"]
    assert steering.height == 2 * 6 * stories.n_layers
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    words = [stories.encode(f"because {w}")[-1] for w in ("ball", "girl")]
    train, test, layer = inputs.filter(split="train"), inputs.filter(split="test"), 1

    def state(ids):
        with torch.no_grad():
            return hf(torch.tensor([ids.to_list()]), output_hidden_states=True).hidden_states[layer + 1][0, -1].double()

    x = torch.stack([state(ids) for ids in train["ids"]])
    direction = linear_probe.fit([x], train["label"].to_numpy()).coef[0]
    direction = direction / direction.norm()
    deviation = float((x @ direction).std(correction=0))

    def odds(added):
        def hook(_module, _args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[:, -1] += added.float()

        handle = hf.model.layers[layer].register_forward_hook(hook)
        with torch.no_grad():
            scores = torch.stack([hf(torch.tensor([ids.to_list()])).logits[0, -1].double() for ids in test["ids"]])
        handle.remove()
        chosen = scores[:, words].log_softmax(1)
        return (chosen[:, 1] - chosen[:, 0]).numpy(), chosen[:, 1].exp().numpy()

    base = odds(0 * direction)[0]
    for strength in (0.5, 3.0):
        up, p_up = odds(strength * deviation * direction)
        down, p_down = odds(-strength * deviation * direction)
        row = steering.filter(layer=layer, strength=strength, direction="probe").row(0, named=True)
        assert row["deviation"] == pytest.approx(deviation, rel=1e-4)
        assert row["log_odds"] == pytest.approx((up - down).mean(), abs=2e-4) and abs(row["log_odds"]) > 1e-3
        assert row["up"] == pytest.approx((up - base).mean(), abs=2e-4)
        assert row["down"] == pytest.approx((down - base).mean(), abs=2e-4)
        assert row["probability"] == pytest.approx((p_up - p_down).mean(), abs=1e-4)
        assert row["log_odds_low"] < row["log_odds"] < row["log_odds_high"] and row["rows"] == test.height
        random = steering.filter(layer=layer, strength=strength, direction="random")
        assert random.height == 5 and random["excess"].null_count() == random["p"].null_count() == 5
        assert random["deviation"].unique().to_list() == [row["deviation"]]
        assert row["of_random"] == pytest.approx(random["log_odds"].abs().mean())
        assert row["excess"] == pytest.approx(row["log_odds"] - row["of_random"])
        assert row["excess_low"] < row["excess"] < row["excess_high"] and 0 <= row["p"] <= row["p_adjusted"] <= 1


def test_the_summary_says_in_how_many_layers_and_over_how_many_tests_it_is_adjusted(stories, pronouns):
    every = concept_depth.run(stories, Config(**SHORT, steer=(1.0, 2.0), random_draws=5), Context(data=pronouns))
    (lost,) = [v for k, v in every.summary.items() if "lose more without than" in k]
    steered = [v for k, v in every.summary.items() if "moves the answers more" in k]
    d = stories.n_layers
    assert f"of {d}" in lost and f"adjusted over {d} tests (Benjamini and Hochberg)" in lost
    assert len(steered) == 2 and all(f"adjusted over {2 * d} tests" in said for said in steered)
    causal = every.tables["causal"]
    assert causal.filter(direction="probe")["p"].null_count() == 0
    assert (causal.filter(direction="probe")["p_adjusted"] >= causal.filter(direction="probe")["p"]).all()
    one = concept_depth.run(
        stories, Config(**SHORT | {"causal": "peak"}, steer=(2.0,), random_draws=5), Context(data=pronouns)
    )
    said = one.summary["pronoun: steered by ±2 deviations, beyond random directions"]
    assert said["low"] < said["value"] < said["high"] and said["rows"] >= said["n"] >= 5
    row = one.tables["steering"].filter(direction="probe").row(0, named=True)
    assert one.summary["pronoun: steered by ±2 deviations, the same of random directions"] == row["of_random"]


def test_without_it_nothing_is_steered_and_the_projection_is_the_same(stories, pronouns):
    off, on = (
        concept_depth.run(stories, Config(**SHORT, random_draws=2, **more), Context(data=pronouns))
        for more in ({}, {"steer": (1.0,)})
    )
    assert off.tables["steering"].is_empty() and off.tables["causal"].equals(on.tables["causal"])
    assert not [key for key in off.summary if "steered" in key]


def test_what_cannot_be_steered_is_refused_and_what_it_takes_is_counted(pronouns):
    with pytest.raises(InputError, match="Steering is a part of the causal check"):
        runs.prepare("concept-depth", {"steer": "2", "causal": "off"}, pronouns)
    with pytest.raises(InputError, match="stands twice"):
        runs.prepare("concept-depth", {"steer": "2,2"}, pronouns)
    facts = outline("organism")
    plain, more = (estimate(Config(steer=s, split="paper"), pronouns, facts) for s in ((), (1.0, 2.0)))
    assert more.prompts - plain.prompts == round(60 * 0.2 * 2 * 2 * 21) and more.tokens > plain.tokens


# against random directions


def effects(rng, *, of_probe, spread, clusters=12, each=3, draws=20):
    """Effects of the probe's direction [n] and of random ones [draws, n], on texts in clusters."""
    names = np.repeat(np.arange(clusters), each)

    def noise(*shape):
        return (
            rng.standard_normal((*shape, clusters))[..., names] * 0.5 + rng.standard_normal((*shape, len(names))) * 0.5
        )

    own = np.where(np.isnan(of_probe), rng.standard_normal() * spread, of_probe)
    return own + noise(), spread * rng.standard_normal((draws, 1)) + noise(draws), clusters_of(names)


def test_a_direction_that_is_one_more_random_one_is_found_in_fewer_than_one_case_in_twenty():
    rng = np.random.default_rng(0)
    p = np.array([beside_random(*effects(rng, of_probe=np.nan, spread=1.0))["p"] for _ in range(600)])
    assert (p < 0.05).mean() < 0.077, (p < 0.05).mean()  # 0.05 and three standard errors
    assert (p < 0.05).mean() > 0.01
    alone = np.array([p_of_one_more(rng.standard_normal(), rng.standard_normal(20), about=0.0) for _ in range(3000)])
    about_their_mean = [p_of_one_more(3 + rng.standard_normal(), 3 + rng.standard_normal(20)) for _ in range(3000)]
    for found in (alone, np.array(about_their_mean)):
        assert 0.035 < (found < 0.05).mean() < 0.065


def test_a_direction_that_moves_answers_is_found_and_its_excess_held():
    """The truth: 2 minus the mean size of a normal effect with the spread 0.4."""
    rng, inside, found = np.random.default_rng(1), 0, 0
    truth = 2 - 0.4 * np.sqrt(2 / np.pi)
    for _ in range(500):
        row = beside_random(*effects(rng, of_probe=2.0, spread=0.4))
        inside += row["excess_low"] <= truth <= row["excess_high"]
        found += row["p"] < 0.05
    assert 0.90 < inside / 500 < 0.985 and found > 475, (inside, found)


def test_the_p_of_a_crossed_mean_says_what_its_interval_says():
    rng = np.random.default_rng(2)
    for shift in (0.0, 0.2, 0.4):
        values = shift + rng.standard_normal((20, 30)) + rng.standard_normal((20, 1)) * 0.3
        clusters = clusters_of(np.repeat(np.arange(10), 3))
        p = crossed_p_above(values, clusters)
        low, _ = crossed_interval(values, clusters, level=1 - 2 * p)
        assert low == pytest.approx(0, abs=1e-9) if p < 0.5 else low == low
    assert np.isnan(crossed_p_above(values, clusters_of(np.repeat(np.arange(3), 10))))
