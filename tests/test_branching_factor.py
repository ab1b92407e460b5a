"""The probe through its whole pipeline: known distributions give known branching factors, and every number can be recomputed with
plain Hugging Face from the run's own tables."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import probes
from probes.branching_factor import STUDIES
from tests.test_scoring import slow
from workbench import organisms
from workbench.checks import check_probe
from workbench.config import build, read_toml
from workbench.continuations import shorten
from workbench.errors import InputError
from workbench.models import load
from workbench.registry import get
from workbench.runs import execute
from workbench.scoring import Rule

PROMPTS = ["Once upon a time", "The dog", "Lily and Tom went to the park and"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "answer": "girl|dog"}) + "\n" for p in PROMPTS))
    return path


@pytest.fixture
def run(prompts, tmp_path):
    """Run the probe; a circuit brings its own prompts."""

    def go(model, *, data=None, seed=0, **config):
        if isinstance(model, str) and model.startswith("circuit"):
            data = data or organisms.folder(model) / "prompts.jsonl"
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        return execute("branching-factor", model, config={"samples": 6, "max_new_tokens": 24, **config}, data=data or prompts, seed=seed, out=out)

    return go


@pytest.fixture(scope="module")
def stories(stories260k):
    return load(str(stories260k))


def truth(name):
    return json.loads((organisms.folder(name) / "truth.json").read_text())["expected"]


# ---- ground truth of the methods page, section 7


@pytest.mark.parametrize("name, full, cut, kept", [("zipf", 24.4621, 17.7421, 32), ("geometric", 3.9999, 3.1171, 4), ("uniform", 10.0, 9.0, 9)])
def test_independent_draws_give_the_branching_factor_of_their_distribution(run, name, full, cut, kept):
    for top_p, value in ((1.0, full), (0.9, cut)):
        found = run(f"circuit-{name}", top_p=top_p, samples=50, max_new_tokens=60)
        table = found.table("prompts")
        np.testing.assert_allclose(table["bf_entropy"], value, rtol=1e-4)
        np.testing.assert_allclose(table["bf"], value, rtol=1e-4)
        np.testing.assert_allclose(table["bf_full"], full, rtol=1e-4)
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
    assert conditions["ci_low"][0] < math.exp(mean) < conditions["ci_high"][0]
    assert found.summary["bf"]["value"] == pytest.approx(1.4717, abs=0.03)
    # each step's entropy is exactly that of the row of the state before it
    rows = {0.3250829733914482, 0.6931471805599453}
    seen = {round(float(x), 5) for ids in found.table("samples")["step_entropy"] for x in ids[1:]}
    assert seen == {round(x, 5) for x in rows}


def test_the_official_estimator_reports_the_survivors_and_the_pooled_one_does_not(run):
    expected = truth("circuit-survivor")
    found = run("circuit-survivor", samples=50, max_new_tokens=200, estimator="compat")
    table = found.table("prompts")
    long = found.table("samples").group_by("row", maintain_order=True).agg((pl.col("length") > 50).sum())["length"]
    assert long.min() >= 4
    np.testing.assert_allclose(table["bf_compat"], expected["compat_nll"]["bf"], rtol=1e-4)
    np.testing.assert_allclose(table["bf"], table["bf_compat"])
    assert found.table("conditions")["bf_entropy"][0] == pytest.approx(expected["pooled"]["with_eos"]["bf"], rel=0.1)
    assert table["bf_entropy"].min() > 1.3
    assert (found.table("prompts")["ended"] == 1).all()
    # weighing samples alike gives the mean over samples of their own rates
    alike = run("circuit-survivor", samples=50, max_new_tokens=200, pool="samples")
    own = alike.table("samples").group_by("row", maintain_order=True).agg(pl.col("entropy").mean())["entropy"]
    np.testing.assert_allclose(alike.table("prompts")["bf_entropy"], np.exp(own), rtol=1e-6)
    share = alike.table("samples")["length"].to_numpy() > 50
    entropy = np.where(share, expected["mean_entropy"]["long"]["with_eos"], expected["mean_entropy"]["short"]["with_eos"])
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
        table = run("circuit-zipf", data=data, seed=seed, samples=40, max_new_tokens=12, estimator="nll").table("prompts")
        covered += int(((table["ci_low"] <= value) & (value <= table["ci_high"])).sum())
        n += table.height
    assert n == 24 and covered >= 19


# ---- audit from outside


def test_every_number_can_be_recomputed_with_plain_hugging_face_from_the_tables(run, stories260k):
    found = run(str(stories260k))
    hf = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    inputs = {r["row"]: r["ids"] for r in found.table("inputs").iter_rows(named=True)}
    assert [inputs[row] for row in range(3)] == [tokenizer(p)["input_ids"] for p in PROMPTS]
    rule, total = Rule(top_p=0.9), {}
    for r in found.table("samples").iter_rows(named=True):
        ids, text = inputs[r["row"]], r["generated_ids"]
        with torch.no_grad():
            logits = hf(torch.tensor([ids + text])).logits[0, len(ids) - 1 : -1].numpy()
        steps = [slow(x, token, rule) for x, token in zip(logits, text)]
        assert r["entropy"] == pytest.approx(np.mean([s["entropy"] for s in steps]), abs=1e-3)
        assert r["entropy_full"] == pytest.approx(np.mean([s["entropy_full"] for s in steps]), abs=1e-3)
        assert r["nll"] == pytest.approx(-np.mean([s["logprob"] for s in steps]), abs=1e-3)
        assert r["length"] == len(text) and r["text"] == tokenizer.decode(text, skip_special_tokens=True, clean_up_tokenization_spaces=False)
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


def test_the_tree_holds_the_samples(run, stories):
    found = run(stories)
    tree, samples = found.table("tree"), found.table("samples")
    for row in range(3):
        part = tree.filter(pl.col("row") == row)
        nodes = {r["node"]: r for r in part.iter_rows(named=True)}
        path = lambda n, nodes=nodes: [] if n < 0 else path(nodes[n]["parent"]) + nodes[n]["tokens"]  # noqa: E731, B023
        assert {tuple(ids) for ids in samples.filter(pl.col("row") == row)["generated_ids"].to_list()} <= {tuple(path(n)) for n in nodes}
        assert nodes[0]["entropy"] == pytest.approx(samples.filter(pl.col("row") == row)["step_entropy"][0][0])


# ---- studies


def test_pair_gives_the_ratio_of_two_models(run):
    found = run("circuit-zipf", compare="circuit-geometric", study="pair", samples=10, max_new_tokens=10, estimator="nll", pool="tokens")
    row = found.table("comparisons").row(0, named=True)
    assert (row["a"], row["b"]) == ("circuit-zipf", "circuit-geometric")
    assert row["ratio_low"] < 17.7421 / 3.1171 < row["ratio_high"]
    assert row["ratio"] == pytest.approx(row["bf_a"] / row["bf_b"]) and row["difference_low"] < row["difference"] < row["difference_high"]
    quoted = found.summary["circuit-zipf / circuit-geometric"]
    assert quoted["value"] == row["ratio"] and quoted["low"] == row["ratio_low"]
    exact = run("circuit-zipf", compare="circuit-geometric", study="pair", samples=4, max_new_tokens=5).table("comparisons")
    assert exact["ratio"][0] == pytest.approx(17.7421 / 3.1171, rel=1e-4)


def test_complexity_keeps_so_much_of_the_prompt(run, stories):
    text = "One day a cat ran. It was big! Was it red? Yes"
    assert [shorten(text, n, "sentences") for n in (0, 1, 2, 3, 9, -1)] == [
        "", "One day a cat ran.", "One day a cat ran. It was big!", "One day a cat ran. It was big! Was it red?", text, text]  # fmt: skip
    assert shorten("a b c d e f g h i j k l", 1, "words") == "a b c d e f g h i j"
    assert shorten("A\n\nB\n\nC\n\nQ", 2, "blocks") == "A\n\nB\n\nQ" and shorten("A\n\nQ", 0, "blocks") == "Q"
    found = run(stories, study="complexity", levels="0,1", unit="words", samples=4)
    ids = found.table("inputs").filter(pl.col("condition").str.ends_with("C=0"))["ids"].to_list()
    assert ids == [[stories.bos_id]] * 3
    assert found.table("comparisons").height == 1
    level = dict(found.table("complexity").select("level", "bf").iter_rows())
    assert found.table("impact").row(0, named=True) == {"factor": "complexity", "impact": pytest.approx(abs(level[0] - level[1])), "share": 1.0}


def test_nudging_puts_the_common_opening_before_what_is_sampled(run, stories, stories260k):
    found = run(stories, study="nudging", compare=str(stories260k), samples=8, nudge_count=6, nudge_tokens=3, max_new_tokens=12)
    base = stories260k.name
    openings = found.table("openings")
    chosen = openings.filter("chosen").row(0, named=True)
    given = found.table("samples").filter(pl.col("condition") == f"{base} (2)")["generated_ids"].to_list()
    assert chosen["count"] == sum(ids[: chosen["tokens"]] == chosen["ids"] for ids in given) >= 6
    assert openings["tokens"].to_list() == sorted(openings["tokens"].to_list(), reverse=True)
    inputs = {name[0]: part["ids"].to_list() for name, part in found.table("inputs").group_by("condition", maintain_order=True)}
    assert inputs[f"{base} + opening"] == [ids + chosen["ids"] for ids in inputs[base]]
    own = found.table("samples").filter((pl.col("condition") == base) & (pl.col("sample") == 0))["generated_ids"].to_list()
    assert inputs[f"{base} + own opening"] == [ids + o[: chosen["tokens"]] for ids, o in zip(inputs[base], own)]
    # the "aligned" model is the same model here, so nudging changes nothing between them
    bf = dict(found.table("conditions").select("condition", "bf").iter_rows())
    assert bf[f"{base} + opening"] == pytest.approx(bf[f"{base} (2) + opening"]) and bf[base] == pytest.approx(bf[f"{base} (2)"])


def test_resampling_continues_the_cut_output_and_checks_the_whole_of_it(run, stories):
    found = run(stories, study="resampling", cuts="0,4,12", samples=6, max_new_tokens=16)
    first = found.table("samples").filter(pl.col("condition") == found.table("conditions")["condition"][0])
    original = {r["prompt"]: r["generated_ids"] for r in first.iter_rows(named=True) if r["sample"] == 0}
    inputs = found.table("inputs")
    base = dict(inputs.filter(pl.col("condition") == found.table("conditions")["condition"][0]).select("prompt", "ids").iter_rows())
    table = found.table("resampling")
    assert table["position"].to_list() == [0, 4, 12]
    for row in table.iter_rows(named=True):
        name = f"cut at {row['position']}"
        for r in inputs.filter(pl.col("condition") == name).iter_rows(named=True):
            assert r["ids"] == base[r["prompt"]] + original[r["prompt"]][: row["position"]]
        right = []
        for r in found.table("samples").filter(pl.col("condition") == name).iter_rows(named=True):
            text = stories.decode(original[r["prompt"]][: row["position"]] + r["generated_ids"]).lower()
            right.append(any(word in "".join(c if c.isalnum() else " " for c in text).split() for word in ("girl", "dog")))
        assert row["accuracy"] == pytest.approx(np.mean(right)) and row["ci_low"] <= row["accuracy"] <= row["ci_high"]
    assert table["drop"][0] == 0 and 0 < table["accuracy"].max()


def test_decoding_settings_change_what_is_kept(run, stories):
    found = run(stories, study="decoding", samples=4)
    bf = dict(found.table("conditions").select("condition", "bf").iter_rows())
    assert bf["temperature=0"] == pytest.approx(1.0)
    assert bf["temperature=0.6 top_p=0.9"] < bf["temperature=1 top_p=0.9"] < bf["temperature=1 top_p=1"]
    assert found.table("comparisons")["b"].unique().to_list() == ["temperature=1 top_p=0.9"]
    assert any("1 by construction" in w for w in found.info["warnings"])


def test_verbalised_prompts_ask_for_several_responses(run, stories):
    found = run(stories, study="verbalised", samples=3, responses=4)
    texts = found.table("prompts").filter(pl.col("condition") == "verbalised")["text"].to_list()
    assert all("Generate 4 responses" in text and prompt in text for text, prompt in zip(texts, PROMPTS))


def test_hyperfitted_models_are_sure_of_their_own_text_and_surprised_by_others(run, stories, stories260k, tmp_path):
    """Scores made eight times larger stand in for over-training: hardly any entropy left, and given text far less likely."""
    sharp = tmp_path / "sharp"
    hf = AutoModelForCausalLM.from_pretrained(stories260k)
    hf.model.norm.weight.data *= 8
    hf.save_pretrained(sharp)
    AutoTokenizer.from_pretrained(stories260k).save_pretrained(sharp)
    table = run(stories, study="hyperfitted", compare=str(sharp), samples=4).table("signature")
    plain, over = table.row(0, named=True), table.row(1, named=True)
    assert over["entropy_own"] < 0.3 * plain["entropy_own"] and over["sure_own"] > plain["sure_own"] + 0.2
    assert over["surprise"] > plain["surprise"] + 1 and over["nll_given"] > plain["nll_given"]


# ---- bad input and edges


def test_bad_configs_are_refused_before_a_model_is_loaded(run, prompts, tmp_path):
    for config, match in (
        ({"top_p": 0}, "top_p is 0"), ({"estimator": "compat", "samples": 3}, "at least 4"), ({"study": "pair"}, "second model"),
        ({"study": "decoding", "settings": "heat=3"}, "heat=3"), ({"study": "pairs"}, "did you mean 'pair'"), ({"samples": 0}, "at least 1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            run("no-such-model", **config)
    empty = tmp_path / "p.csv"
    empty.write_text("text\nhello\n")
    with pytest.raises(InputError, match="no column 'prompt'"):
        run("no-such-model", data=empty)
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"prompt": "a"}\n')
    with pytest.raises(InputError, match="no column 'answer'"):
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
    with pytest.raises(InputError, match="Prompt 0 has .* more than the model's context"):
        run(stories, data=far)


def test_one_sample_one_token_and_one_choice_are_allowed_and_explained(run, stories):
    one = run(stories, samples=1)
    assert one.table("prompts")["ci_low"].is_null().all() and one.table("prompts")["bf"].is_not_null().all()
    assert any("no width" in w for w in one.info["warnings"])
    for config in ({"temperature": 0.0}, {"top_p": 1e-9}):
        found = run(stories, max_new_tokens=8, samples=4, **config)
        assert found.table("prompts")["bf"].to_list() == pytest.approx([1, 1, 1])
        assert found.table("prompts")["bf_full"].min() > 1.05
        assert any("1 by construction" in w for w in found.info["warnings"])
    assert run(stories, max_new_tokens=1).table("positions").height == 1


def test_a_template_that_is_not_there_is_never_pretended(run, stories):
    with pytest.raises(InputError, match="no chat template.*template=raw"):
        run(stories, template="chat")
    assert run(stories, template="raw").summary["template"] == run(stories).summary["template"] == "raw"


def test_a_model_without_an_end_token_says_so(run, stories260k):
    model = load(str(stories260k))
    model.tokenizer.eos_token = None
    model.hf.generation_config.eos_token_id = None
    found = run(model)
    assert any("no end-of-text token" in w for w in found.info["warnings"])
    assert set(found.table("samples")["finish"]) == {"length"}


def test_vllm_is_refused_with_a_sentence_where_it_is_not_installed(run, stories):
    if importlib.util.find_spec("vllm") is not None:
        assert run(stories, sampler="vllm").table("prompts")["bf"].min() >= 1
        return
    with pytest.raises(InputError, match="vLLM is not installed"):
        run(stories, sampler="vllm")


def test_the_registered_tables_are_those_of_the_design():
    tables = get("branching-factor").tables
    assert set(tables["prompts"]) >= {"prompt", "bf", "bf_entropy", "bf_nll", "ci_low", "ci_high", "samples", "mean_length"}
    assert set(tables["positions"]) >= {"position", "bf_prefix", "bf_window", "entropy", "alive"}
    assert set(tables["samples"]) >= {"prompt", "sample", "text", "length", "nll", "entropy", "generated_ids"}
    assert set(tables["inputs"]) >= {"row", "ids"}


def test_every_study_has_a_prepared_config():
    folder = Path(probes.__file__).parent / "material" / "branching"
    studies = set()
    for file in folder.glob("*.toml"):
        config = build(get("branching-factor").config, read_toml(file))
        assert config.study == file.stem
        studies.add(config.study)
    assert studies == set(STUDIES) - {"none"}
