"""The probe through its whole pipeline: known distributions give known branching factors, and every number can be
recomputed with plain Hugging Face from the run's own tables."""

import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from probes.branching_factor import figures as drawn
from tests.engine.test_scoring import slow
from workbench import organisms
from workbench.core.errors import InputError
from workbench.core.registry import get
from workbench.engine.sampling import Rule
from workbench.models.loading import load
from workbench.runs.checks import check_probe


def truth(name):
    return json.loads((organisms.folder(name) / "truth.json").read_text())["expected"]


# ---- ground truth, as docs/methods/branching-factor.md has it


@pytest.mark.parametrize(
    "name, full, cut, kept",
    [("zipf", 24.4621, 17.7421, 32), ("geometric", 3.9999, 3.1171, 4), ("uniform", 10.0, 9.0, 9)],
)
def test_independent_draws_give_the_branching_factor_of_their_distribution(run, name, full, cut, kept):
    for top_p, value in ((1.0, full), (0.9, cut)):
        found = run(f"circuit-{name}", top_p=top_p, samples=50, max_new_tokens=60)
        table = found.table("prompts")
        np.testing.assert_allclose(table["bf_entropy"], value, rtol=1e-4)
        np.testing.assert_allclose(table["bf"], value, rtol=1e-4)
        np.testing.assert_allclose(table["exp_entropy_untruncated"], full, rtol=1e-4)
        samples = found.table("samples")
        assert set(samples["length"]) == {60}
        # the likelihood estimator is unbiased with the variance of the log-probability
        p = np.exp(-np.concatenate(samples["step_nll"].to_list()))
        spread = np.log(table["bf_nll"].to_numpy()) - math.log(value)
        assert np.abs(spread).max() < 4.5 * np.log(p).std() / math.sqrt(50 * 60) + 1e-6
        if top_p < 1:
            assert len({i for ids in samples["generated_ids"] for i in ids}) == kept
        np.testing.assert_allclose(found.table("positions")["bf_prefix"], value, rtol=1e-4)
        np.testing.assert_allclose(found.table("positions")["bf_window"], value, rtol=1e-4)
        # three prompts: no cohort, and no interval
        assert found.table("positions")["bf_cohort"].is_null().all() and "low" not in str(found.summary["course"])
        assert found.summary["bf"]["low"] is None and found.summary["bf"]["n"] == 3
        if name != "zipf" or top_p < 1:  # the official estimator sees 50 tokens and, past 50 positions, the likelihood
            assert abs(np.log(table["bf_compat"].to_numpy()) - math.log(value)).max() < 0.1


def test_a_markov_chain_gives_its_entropy_rate(run):
    expected = truth("circuit-markov")["full"]
    steps = 120
    found = run("circuit-markov", top_p=1.0, samples=50, max_new_tokens=steps)
    rate = expected["entropy_rate"]
    mean = (expected["entropy_after"]["start"] + (steps - 1) * rate) / steps
    assert rate == pytest.approx(0.386427, abs=1e-6)
    conditions = found.table("conditions")
    for column in ("bf_entropy", "bf_nll"):
        assert math.log(conditions[column][0]) == pytest.approx(mean, abs=0.02)
    table = found.table("prompts")
    assert ((table["ci_low"] < math.exp(mean)) & (math.exp(mean) < table["ci_high"])).sum() >= table.height - 1
    assert found.summary["bf"]["value"] == pytest.approx(1.4717, abs=0.03)
    # each step's entropy is exactly that of the row of the state before it
    rows = {0.3250829733914482, 0.6931471805599453}
    seen = {round(float(x), 5) for ids in found.table("samples")["step_entropy"] for x in ids[1:]}
    assert seen == {round(x, 5) for x in rows}


def many_prompts(model, n, folder):
    """A file of n different prompts, each made of those that come with a circuit."""
    lines = (organisms.folder(model) / "prompts.jsonl").read_text().splitlines()
    rows = [json.loads(line)["prompt"] for line in lines]
    path = folder / "many.jsonl"
    path.write_text("".join(json.dumps({"prompt": " ".join([rows[i % len(rows)]] * (1 + i))}) + "\n" for i in range(n)))
    return path


def test_the_official_estimator_reports_the_survivors_and_the_pooled_one_does_not(run, tmp_path):
    expected = truth("circuit-survivor")
    found = run("circuit-survivor", samples=50, max_new_tokens=200, estimator="compat")
    table = found.table("prompts")
    long = found.table("samples").group_by("row", maintain_order=True).agg((pl.col("length") > 50).sum())["length"]
    assert long.min() >= 4
    np.testing.assert_allclose(table["bf_compat"], expected["compat_nll"]["bf"], rtol=1e-4)
    np.testing.assert_allclose(table["bf"], table["bf_compat"])
    # compat is left as the official code computes it; the pooled entropy is corrected and its interval holds the truth
    many = many_prompts("circuit-survivor", 8, tmp_path)
    pooled = run("circuit-survivor", data=many, samples=50, max_new_tokens=200).table("conditions").row(0, named=True)
    truth_bf = expected["pooled"]["with_eos"]["bf"]
    assert pooled["ci_low"] < truth_bf < pooled["ci_high"] and pooled["ci_low"] < pooled["bf"] < pooled["ci_high"]
    assert pooled["bf"] == pytest.approx(truth_bf, rel=0.04) and pooled["bf"] < pooled["bf_entropy"]
    assert table["bf_entropy"].min() > 1.3
    assert (found.table("prompts")["ended"] == 1).all()
    # weighing samples alike gives the mean over samples of their own rates
    alike = run("circuit-survivor", samples=50, max_new_tokens=200, pool="samples")
    own = alike.table("samples").group_by("row", maintain_order=True).agg(pl.col("entropy").mean())["entropy"]
    np.testing.assert_allclose(alike.table("prompts")["bf_entropy"], np.exp(own), rtol=1e-6)
    share = alike.table("samples")["length"].to_numpy() > 50
    entropy = np.where(
        share, expected["mean_entropy"]["long"]["with_eos"], expected["mean_entropy"]["short"]["with_eos"]
    )
    np.testing.assert_allclose(alike.table("samples")["entropy"], entropy, atol=1e-4)


@pytest.mark.parametrize("estimator", ["entropy", "nll", "compat"])
def test_a_declining_distribution_gives_its_prefix_curve(run, estimator):
    expected = truth("circuit-decline")["full"]["prefix_bf"]
    found = run("circuit-decline", top_p=1.0, samples=20, max_new_tokens=64, estimator=estimator)
    curve = found.table("positions")
    np.testing.assert_allclose(curve["bf_prefix"], expected, rtol=1e-4)
    np.testing.assert_allclose(np.exp(curve["entropy"]), [max(1, 16 - t) for t in range(64)], rtol=1e-4)
    np.testing.assert_allclose(curve["bf_window"][0], math.exp(np.mean(np.log([16, 15, 14, 13, 12]))), rtol=1e-4)
    np.testing.assert_allclose(found.table("prompts")["bf"], expected[-1], rtol=1e-4)


def test_intervals_over_samples_hold_the_true_value_as_often_as_they_say(run):
    """The likelihood estimator on i.i.d. Zipf: the interval over samples covers exp H in about 95 % of the runs."""
    value, covered, n = truth("circuit-zipf")["top_p_0.9"]["bf"], 0, 0
    data = organisms.folder("circuit-zipf") / "prompts.jsonl"
    for seed in range(8):
        table = run("circuit-zipf", data=data, seed=seed, samples=40, max_new_tokens=12, estimator="nll").table(
            "prompts"
        )
        covered += int(((table["ci_low"] <= value) & (value <= table["ci_high"])).sum())
        n += table.height
    assert n == 24 and covered >= 19


# ---- audit from outside


def test_every_number_can_be_recomputed_with_plain_hugging_face_from_the_tables(run, prompts, tiny_llama):
    found = run(str(tiny_llama))
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    inputs = {r["row"]: r["ids"] for r in found.table("inputs").iter_rows(named=True)}
    assert [inputs[row] for row in range(3)] == [tokenizer(p)["input_ids"] for p in pl.read_ndjson(prompts)["prompt"]]
    rule, total = Rule(top_p=0.9), {}
    for r in found.table("samples").iter_rows(named=True):
        ids, text = inputs[r["row"]], r["generated_ids"]
        with torch.no_grad():
            logits = hf(torch.tensor([ids + text])).logits[0, len(ids) - 1 : -1].numpy()
        steps = [slow(x, token, rule) for x, token in zip(logits, text)]
        assert r["entropy"] == pytest.approx(np.mean([s["entropy"] for s in steps]), abs=1e-3)
        assert r["entropy_full"] == pytest.approx(np.mean([s["entropy_full"] for s in steps]), abs=1e-3)
        assert r["nll"] == pytest.approx(-np.mean([s["logprob"] for s in steps]), abs=1e-3)
        assert r["length"] == len(text) and r["text"] == tokenizer.decode(
            text, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        total.setdefault(r["row"], []).append(steps)
    for r in found.table("prompts").iter_rows(named=True):
        steps = [s for one in total[r["row"]] for s in one]
        assert r["bf_entropy"] == pytest.approx(math.exp(np.mean([s["entropy"] for s in steps])), rel=1e-3)
        assert r["bf_nll"] == pytest.approx(math.exp(-np.mean([s["logprob"] for s in steps])), rel=1e-3)
        assert r["ci_low"] <= r["bf"] <= r["ci_high"]
    assert found.summary["bf"]["value"] == pytest.approx(found.table("prompts")["bf"].mean())


def test_the_probe_passes_the_conformance_battery(stories, prompts):
    passed = check_probe("branching-factor", stories, config={"samples": 4, "max_new_tokens": 10}, data=prompts)
    assert "batching" in passed


def test_other_batch_sizes_give_the_same_texts(run, stories):
    one, many = run(stories, max_rows=1), run(stories, max_rows=64)
    assert one.table("samples")["generated_ids"].to_list() == many.table("samples")["generated_ids"].to_list()
    np.testing.assert_allclose(one.table("prompts")["bf"], many.table("prompts")["bf"], rtol=1e-5)


def tree_words(found, prompt):
    """The first word of the commonest branches of a prompt's tree."""
    top = (
        found.table("tree")
        .filter((pl.col("prompt") == prompt) & (pl.col("parent") == 0))
        .sort("count", descending=True)
    )
    return [text.split()[0] for text in top["text"].head(2) if text.split()]


def test_the_tree_holds_the_samples(run, stories):
    found = run(stories)
    tree, samples = found.table("tree"), found.table("samples")
    for row in range(3):
        part = tree.filter(pl.col("row") == row)
        nodes = {r["node"]: r for r in part.iter_rows(named=True)}
        path = lambda n, nodes=nodes: [] if n < 0 else path(nodes[n]["parent"]) + nodes[n]["tokens"]  # noqa: E731, B023
        assert {tuple(ids) for ids in samples.filter(pl.col("row") == row)["generated_ids"].to_list()} <= {
            tuple(path(n)) for n in nodes
        }
        assert nodes[0]["entropy"] == pytest.approx(samples.filter(pl.col("row") == row)["step_entropy"][0][0])
    # the table as the probe writes it is what the figure draws, of the prompt that was asked for
    name = found.table("conditions")["condition"][0]
    for prompt in (0, 2):
        words = " ".join(
            t
            for trace in drawn.tree(found, prompt=prompt, condition=name).data
            for t in (trace.text or ())
            if isinstance(t, str)
        )
        first = tree_words(found, prompt)
        assert first and all(word in words for word in first)
    with pytest.raises(InputError, match="no condition 'aligned'"):
        drawn.tree(found, condition="aligned")
    with pytest.raises(InputError, match="no prompt 7"):
        drawn.tree(found, prompt=7)


# ---- bad input and edges


def test_bad_configs_are_refused_before_a_model_is_loaded(run, prompts, tmp_path):
    for config, match in (
        ({"top_p": 0}, "top_p is 0"),
        ({"estimator": "compat", "samples": 3}, "at least 4"),
        ({"study": "pair"}, "second model"),
        ({"study": "decoding", "settings": "top_p=1,heat=3"}, "heat=3"),
        ({"study": "pairs"}, "did you mean 'pair'"),
        ({"samples": 0}, "at least 1"),
        ({"study": "complexity", "levels": ""}, "levels must name"),
        ({"study": "complexity", "levels": "1,1"}, "each once"),
        ({"study": "decoding", "settings": ""}, "settings must name"),
        ({"study": "decoding", "settings": "top_p=1,temperature=1"}, "two different"),
        ({"study": "resampling", "cuts": "0"}, "cuts must name"),
        ({"compare": "organism"}, "no use for a second model"),
        ({"template": "raw", "system": "Be kind."}, "template=raw"),
        ({"stop": "a,,b"}, "stop is empty"),
    ):
        with pytest.raises(InputError, match=match):
            run("no-such-model", **config)
    empty = tmp_path / "p.csv"
    empty.write_text("colour\nred\n")
    with pytest.raises(InputError, match="no column 'prompt'"):
        run("no-such-model", data=empty)
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"prompt": "a"}\n')
    with pytest.raises(InputError, match="no column 'answer', and study=resampling"):
        run("no-such-model", data=bare, study="resampling")


def test_prompts_at_and_beyond_the_context_limit(run, stories, tmp_path):
    word = stories.encode("dog")[-1:]
    text = stories.decode(word * (stories.context_length - 6))
    near = tmp_path / "near.jsonl"
    near.write_text(json.dumps({"prompt": text}) + "\n")
    n = len(stories.encode(text))
    assert n < stories.context_length
    found = run(stories, data=near, samples=2, max_new_tokens=30)
    assert found.table("samples")["length"].max() <= stories.context_length - n + 1
    assert any("context limit" in w for w in found.info["warnings"])
    far = tmp_path / "far.jsonl"
    far.write_text(json.dumps({"prompt": text * 2}) + "\n")
    with pytest.raises(InputError, match="Prompt 1 has .* more than the model's context"):
        run(stories, data=far)


def test_one_sample_one_token_and_one_choice_are_allowed_and_explained(run, stories):
    one = run(stories, samples=1)
    assert one.table("prompts")["ci_low"].is_null().all() and one.table("prompts")["bf"].is_not_null().all()
    assert "samples_for_5_percent" not in one.summary and one.table("enough")["relative_error"].is_null().all()
    assert any("no intervals over samples" in w for w in one.info["warnings"])
    for config in ({"temperature": 0.0}, {"top_p": 1e-9}):
        found = run(stories, max_new_tokens=8, samples=4, **config)
        assert found.table("prompts")["bf"].to_list() == pytest.approx([1, 1, 1])
        assert found.table("prompts")["exp_entropy_untruncated"].min() > 1.05
        assert any("1 by construction" in w for w in found.info["warnings"])
    assert run(stories, max_new_tokens=1).table("positions").height == 1


def test_a_template_that_is_not_there_is_never_pretended(run, stories):
    with pytest.raises(InputError, match="no chat template.*template=raw"):
        run(stories, template="chat")
    meant, fallen = run(stories, template="raw"), run(stories)
    assert meant.summary["template"] == fallen.summary["template"] == "raw"
    says = [any("no chat template" in w for w in found.info["warnings"]) for found in (meant, fallen)]
    assert says == [False, True]
    with pytest.raises(InputError, match="system message needs a chat template"):
        run(stories, system="Answer in French.")


def test_compat_keeps_no_more_tokens_than_the_rule_and_warns_where_fifty_are_too_few(run):
    found = run("circuit-zipf", estimator="compat", top_k=2, top_p=1.0, samples=8, max_new_tokens=20)
    p = np.array([2 / 3, 1 / 3])
    np.testing.assert_allclose(found.table("prompts")["bf"], math.exp(-(p * np.log(p)).sum()), rtol=1e-4)
    assert not any("compat cannot see" in w for w in found.info["warnings"])
    whole = run("circuit-geometric", estimator="compat", top_p=1.0, samples=8, max_new_tokens=20)
    assert (
        not any("compat cannot see" in w for w in whole.info["warnings"])
        and whole.table("prompts")["top50_short"].max() == 0
    )


def test_a_model_without_an_end_token_says_so(run, tiny_llama):
    model = load(str(tiny_llama))
    model.tokenizer.eos_token = None
    model.hf.generation_config.eos_token_id = None
    found = run(model)
    assert any("no end-of-text token" in w for w in found.info["warnings"])
    assert set(found.table("samples")["finish"]) == {"length"}


def test_the_registered_tables_are_those_of_the_design():
    tables = get("branching-factor").tables
    assert set(tables["prompts"]) >= {
        "prompt",
        "bf",
        "bf_entropy",
        "bf_nll",
        "ci_low",
        "ci_high",
        "samples",
        "mean_length",
    }
    positions = {"position", "bf_prefix", "bf_window", "bf_cohort", "prompts", "entropy", "alive"}
    assert set(tables["positions"]) >= positions
    assert set(tables["samples"]) >= {"prompt", "sample", "text", "length", "nll", "entropy", "generated_ids"}
    assert set(tables["inputs"]) >= {"row", "ids"}
