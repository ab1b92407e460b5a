"""Forking tokens: the steps of highest entropy, counted step by step from the samples of the run."""

import math

import numpy as np
import polars as pl
import pytest

from probes.branching_factor import figures as drawn
from probes.branching_factor.forking import forking_row, forking_steps, token_table
from tests.probes.branching_factor.test_branching_factor import many_prompts
from workbench.core.errors import InputError
from workbench.core.registry import get

WORDS = ("dog", "girl", "boy", "man", "cat", "mom", "bird")


@pytest.fixture
def seven(tmp_path):
    path = tmp_path / "seven.txt"
    path.write_text("".join(f"The {word} went to the park and\n" for word in WORDS))
    return path


def slow_forks(steps, share):
    """The threshold, tried value by value: the lowest that at most a share of the steps reach."""
    values = sorted({round(h, 5) for _, h, _ in steps if round(h, 5) > 0}, reverse=True)
    threshold = math.inf
    for value in values:
        if sum(round(h, 5) >= value for _, h, _ in steps) > share * len(steps):
            break
        threshold = value
    return threshold


@pytest.mark.parametrize("share", [0.2, 0.05])
def test_the_tables_are_those_of_a_loop_over_the_samples(run, stories, seven, share):
    found = run(stories, data=seven, forking=share)
    steps = [
        (token, h, r["prompt"])
        for r in found.table("samples").iter_rows(named=True)
        for token, h in zip(r["generated_ids"], r["step_entropy"])
    ]
    threshold = slow_forks(steps, share)
    forks = [round(h, 5) >= threshold for _, h, _ in steps]
    row = found.table("forking").row(0, named=True)
    assert row["steps"] == len(steps) and row["threshold"] == pytest.approx(threshold, abs=1e-5)
    assert row["forking"] == pytest.approx(sum(forks) / len(steps)) and share / 2 < row["forking"] <= share
    held = []
    for prompt in range(7):
        own = [(h, f) for (_, h, p), f in zip(steps, forks) if p == prompt]
        held.append(sum(h for h, f in own if f) / sum(h for h, _ in own))
    assert row["entropy_held"] == pytest.approx(np.mean(held), rel=1e-4) and row["prompts"] == 7
    assert row["held_low"] < row["entropy_held"] < row["held_high"] < 1
    table = found.table("forking_tokens")
    assert table["count"].sum() == len(steps) and table["forks"].sum() == sum(forks)
    of_prompt = {p: np.mean([f for (_, _, q), f in zip(steps, forks) if q == p]) for p in range(7)}
    for r in table.iter_rows(named=True):
        own = [(h, f, p) for (token, h, p), f in zip(steps, forks) if token == r["id"]]
        assert r["token"] == stories.token_strings([r["id"]])[0]
        assert (r["count"], r["forks"], r["prompts"]) == (
            len(own),
            sum(f for _, f, _ in own),
            len({p for *_, p in own}),
        )
        assert r["share"] == pytest.approx(r["forks"] / r["count"])
        assert r["mean_entropy"] == pytest.approx(np.mean([h for h, _, _ in own]), abs=1e-5)
        assert r["expected"] == pytest.approx(np.mean([of_prompt[p] for *_, p in own]))
        assert (r["p"] is None) == (r["ci_low"] is None) == (r["prompts"] < 5)
        assert r["p"] is None or (r["ci_high"] > r["ci_low"] and r["p"] <= r["p_adjusted"])
        assert not r["forking"] or (r["ci_low"] > r["expected"] and r["share"] >= r["expected"] + 0.1)
    assert row["tokens_tested"] == table["p"].count() and row["tokens_forking"] == table["forking"].sum()
    said = found.summary["share of the entropy that they hold"]
    assert said["value"] == row["entropy_held"] and said["n"] == 7
    assert "forking_tokens" in drawn.figures(found)
    with pytest.raises(InputError, match="no condition 'other'"):
        drawn.forking_tokens(found, condition="other")


def test_the_expected_share_is_that_of_shuffled_places():
    rng = np.random.default_rng(0)
    prompt = np.repeat([0, 1, 2], [30, 50, 40])
    token, entropy = rng.integers(0, 4, 120), rng.exponential(1 + prompt)
    steps = forking_steps(token, entropy, prompt, 0.2)
    shuffled = []
    for _ in range(3000):
        moved = token.copy()
        for name in range(3):
            moved[prompt == name] = rng.permutation(token[prompt == name])
        shuffled.append([steps.forks[moved == i].mean() for i in range(4)])
    table = token_table(steps).sort("id")
    np.testing.assert_allclose(table["expected"], np.mean(shuffled, 0), atol=0.005)
    assert table["expected"].n_unique() == 4  # prompts differ in entropy, tokens in their prompts


def test_steps_of_one_entropy_fork_together_and_one_without_entropy_never():
    token, prompt = np.arange(10), np.zeros(10, int)
    entropy = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3.0])
    assert forking_steps(token, entropy, prompt, 0.2).forks.sum() == 1  # three reach 2.0, which is more than a fifth
    assert forking_steps(token, entropy, prompt, 0.3).forks.sum() == 3
    assert forking_steps(token, entropy, prompt, 1.0).forks.sum() == 6
    none = forking_steps(token, np.full(10, 0.7), prompt, 0.5)
    assert not none.forks.any() and none.threshold == math.inf
    assert forking_row(none, token_table(none))["entropy_held"] == 0


def test_a_chain_forks_where_its_table_says(run, tmp_path):
    """circuit-markov: after B a step has 0.69 nats, after A 0.33; so B's successors fork, whichever they are, and the
    prompts' first steps do not."""
    data = many_prompts("circuit-markov", 8, tmp_path)
    found = run("circuit-markov", data=data, top_p=1.0, samples=20, max_new_tokens=30, forking=0.175)
    row = found.table("forking").row(0, named=True)
    assert row["threshold"] == pytest.approx(math.log(2), abs=1e-4)
    a, b = 0.32508, math.log(2)  # a sixth of the steps follows B
    assert row["forking"] == pytest.approx(1 / 6, abs=0.03)
    assert row["entropy_held"] == pytest.approx(b / (5 * a + b), abs=0.05)
    shares = dict(found.table("forking_tokens").select("token", "share").iter_rows())
    # P(last was B | now A) = π(B) 0.5 / π(A), P(last was B | now B) = 0.5
    assert [shares[k] for k in sorted(shares)] == pytest.approx([0.1, 0.5], abs=0.06)
    assert found.table("forking_tokens").filter("forking")["token"].to_list() == ["B"]
    assert found.summary["tokens that fork"] == "'B'"


def test_tokens_that_have_nothing_to_do_with_entropies_are_not_marked():
    """Samples of a prompt that are all the same, so that what is independent is the prompt: p below 0.05 in no more
    than that share of tokens, a mark in no more than that share of runs; and the interval holds the true share."""
    rng = np.random.default_rng(1)
    small, marked, covered, tested = 0, 0, 0, 0
    for _ in range(150):
        token = rng.choice(6, (12, 25), p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05]).repeat(4, 0)  # 12 prompts × 4 samples × 25
        entropy, prompt = rng.exponential(1.0, (12, 25)).repeat(4, 0), np.repeat(np.arange(12), 4)[:, None] + 0 * token
        table = token_table(forking_steps(token.ravel(), entropy.ravel(), prompt.ravel(), 0.2)).drop_nulls("p")
        small += int((table["p"] < 0.05).sum())
        tested += table.height
        marked += int(table["forking"].any())
        covered += int(((table["ci_low"] <= 0.2) & (0.2 <= table["ci_high"])).sum())
    assert tested > 800 and small / tested < 0.06 and marked / 150 < 0.05 and 0.92 < covered / tested <= 1.0


def test_a_token_that_forks_is_found_whatever_the_others_do():
    rng, found = np.random.default_rng(2), 0
    for _ in range(30):
        token = rng.choice(5, (12, 40), p=[0.4, 0.2, 0.2, 0.1, 0.1])
        entropy = rng.exponential(1.0, (12, 40)) + 1.5 * (token == 3)
        prompt = np.arange(12)[:, None] + 0 * token
        table = token_table(forking_steps(token.ravel(), entropy.ravel(), prompt.ravel(), 0.2))
        found += table.filter(pl.col("forking"))["id"].to_list() == [3]
    assert found >= 27


def test_without_the_key_a_run_has_no_such_tables(run, stories):
    assert get("branching-factor").config.__dataclass_fields__["forking"].metadata["later"]
    found = run(stories, samples=2, max_new_tokens=4)
    assert not {"forking", "forking_tokens"} & set(found.tables)
    few = run(stories, samples=2, max_new_tokens=4, forking=0.2)
    assert few.table("forking")["tokens_tested"][0] == 0 and few.table("forking")["held_low"].is_null().all()
    assert few.table("prompts").equals(found.table("prompts"))
    assert few.summary["tokens that fork"].startswith("—, none")
