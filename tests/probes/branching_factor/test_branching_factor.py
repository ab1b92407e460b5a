"""The probe through its whole pipeline: known distributions give known branching factors, and every number can be
recomputed with plain Hugging Face from the run's own tables."""

import importlib.util
import json
import math
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import probes
from probes.branching_factor import STUDIES
from probes.branching_factor import figures as drawn
from probes.branching_factor.branching_samples import shorten
from tests.engine.test_scoring import slow
from workbench import organisms
from workbench.core.config import build, read_toml
from workbench.core.errors import InputError
from workbench.core.registry import get
from workbench.engine.generate import sample
from workbench.engine.sampling import FIELDS, Rule
from workbench.engine.scoring import score
from workbench.models.loading import load
from workbench.runs.checks import check_probe
from workbench.runs.execution import execute

PROMPTS = ["Once upon a time", "The dog", "Lily and Tom went to the park and"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "answer": "girl|the"}) + "\n" for p in PROMPTS))
    return path


@pytest.fixture
def run(prompts, tmp_path):
    """Run the probe; a circuit brings its own prompts."""

    def go(model, *, data=None, seed=0, **config):
        if isinstance(model, str) and model.startswith("circuit"):
            data = data or organisms.folder(model) / "prompts.jsonl"
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        return execute(
            "branching-factor",
            model,
            config={"samples": 6, "max_new_tokens": 24, **config},
            data=data or prompts,
            seed=seed,
            out=out,
        )

    return go


@pytest.fixture(scope="module")
def stories(tiny_llama):
    return load(str(tiny_llama))


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
    # compat is left as the official code computes it; the pooled entropy is corrected and its interval holds the truth
    pooled = run("circuit-survivor", samples=50, max_new_tokens=200).table("conditions").row(0, named=True)
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


def test_every_number_can_be_recomputed_with_plain_hugging_face_from_the_tables(run, tiny_llama):
    found = run(str(tiny_llama))
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
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


# ---- studies


def test_pair_gives_the_ratio_of_two_models(run):
    found = run(
        "circuit-zipf",
        compare="circuit-geometric",
        study="pair",
        samples=10,
        max_new_tokens=10,
        estimator="nll",
        pool="tokens",
    )
    row = found.table("comparisons").row(0, named=True)
    assert (row["a"], row["b"]) == ("circuit-zipf", "circuit-geometric")
    assert row["ratio_low"] < 17.7421 / 3.1171 < row["ratio_high"]
    assert (
        row["ratio"] == pytest.approx(row["bf_a"] / row["bf_b"])
        and row["difference_low"] < row["difference"] < row["difference_high"]
    )
    quoted = found.summary["circuit-zipf / circuit-geometric"]
    assert quoted["value"] == row["ratio"] and quoted["low"] == row["ratio_low"]
    exact = run("circuit-zipf", compare="circuit-geometric", study="pair", samples=4, max_new_tokens=5).table(
        "comparisons"
    )
    assert exact["ratio"][0] == pytest.approx(17.7421 / 3.1171, rel=1e-4)


def test_complexity_keeps_so_much_of_the_prompt(run, stories):
    text = "One day a cat ran. It was big! Was it red? Yes"
    assert [shorten(text, n, "sentences") for n in (0, 1, 2, 3, 9, -1)] == [
        "",
        "One day a cat ran.",
        "One day a cat ran. It was big!",
        "One day a cat ran. It was big! Was it red?",
        text,
        text,
    ]
    assert shorten("a b c d e f g h i j k l", 1, "words") == "a b c d e f g h i j"
    assert shorten("A\n\nB\n\nC\n\nQ", 2, "blocks") == "A\n\nB\n\nQ" and shorten("A\n\nQ", 0, "blocks") == "Q"
    found = run(stories, study="complexity", levels="0,1", unit="words", samples=4)
    ids = found.table("inputs").filter(pl.col("condition").str.ends_with("C=0"))["ids"].to_list()
    assert ids == [[stories.bos_id]] * 3
    assert found.table("comparisons").height == 1
    level = dict(found.table("complexity").select("level", "bf").iter_rows())
    impact = found.table("impact").row(0, named=True)
    assert (impact["factor"], impact["share"]) == ("complexity", 1.0) and impact["impact"] == pytest.approx(
        abs(level[0] - level[1])
    )
    assert (
        impact["impact_low"] <= impact["impact"] <= impact["impact_high"]
        and found.summary["impact of complexity"]["value"] == impact["impact"]
    )
    assert shorten("a b c d", 1, "words", words=3) == "a b c"
    short = run(stories, study="complexity", levels="1,2,-1", samples=2, max_new_tokens=4)
    assert any("Levels 1 and 2 give the same prompts" in w for w in short.info["warnings"])


def test_nudging_puts_the_common_opening_before_what_is_sampled(run, stories, tiny_llama):
    found = run(
        stories, study="nudging", compare=str(tiny_llama), samples=8, nudge_count=6, nudge_tokens=3, max_new_tokens=12
    )
    base = tiny_llama.name
    openings = found.table("openings")
    chosen = openings.filter("chosen").row(0, named=True)
    given = found.table("samples").filter(pl.col("condition") == f"{base} (2)")["generated_ids"].to_list()
    assert chosen["count"] == sum(ids[: chosen["tokens"]] == chosen["ids"] for ids in given) >= 6
    assert openings["tokens"].to_list() == sorted(openings["tokens"].to_list(), reverse=True)
    inputs = {
        name[0]: part["ids"].to_list()
        for name, part in found.table("inputs").group_by("condition", maintain_order=True)
    }
    assert inputs[f"{base} + opening"] == [ids + chosen["ids"] for ids in inputs[base]]
    own = (
        found.table("samples")
        .filter((pl.col("condition") == base) & (pl.col("sample") == 0))["generated_ids"]
        .to_list()
    )
    assert inputs[f"{base} + own opening"] == [ids + o[: chosen["tokens"]] for ids, o in zip(inputs[base], own)]
    # the "aligned" model is the same model here, so nudging changes nothing between them
    bf = dict(found.table("conditions").select("condition", "bf").iter_rows())
    assert bf[f"{base} + opening"] == pytest.approx(bf[f"{base} (2) + opening"]) and bf[base] == pytest.approx(
        bf[f"{base} (2)"]
    )


def test_resampling_continues_the_cut_output_and_checks_the_whole_of_it(run, stories):
    found = run(stories, study="resampling", cuts="10,4", originals=2, samples=6, max_new_tokens=16, stop="ay")
    name = found.table("conditions")["condition"][0]
    text_of = lambda ids: "".join(c if c.isalnum() else " " for c in stories.decode(ids).lower()).split()  # noqa: E731
    right = lambda ids: any(word in text_of(ids) for word in ("girl", "the"))  # noqa: E731
    original = {
        (r["prompt"], r["sample"]): r["generated_ids"]
        for r in found.table("samples").filter(pl.col("condition") == name).iter_rows(named=True)
        if r["sample"] < 2
    }
    inputs = found.table("inputs")
    base = dict(inputs.filter(pl.col("condition") == name).select("prompt", "ids").iter_rows())
    table = found.table("resampling")
    assert table["position"].to_list() == [0, 4, 10]  # 0 is the baseline, wherever it was asked for
    rates, longest = {}, {0: 0, 4: 0, 10: 0}
    for row in table.iter_rows(named=True):
        t, cut = row["position"], f"cut at {row['position']}"
        pairs = [pair for pair, ids in original.items() if len(ids) > t]
        fed = inputs.filter(pl.col("condition") == cut)
        assert fed["ids"].to_list() == [base[p] + original[p, m][:t] for p, m in pairs] and row["outputs"] == len(pairs)
        longest[t] = len(pairs)
        said = found.table("samples").filter(pl.col("condition") == cut)
        for pair, number in zip(pairs, fed["row"]):
            outs = said.filter(pl.col("row") == number)["generated_ids"].to_list()
            rates[pair, t] = np.mean([right(original[pair][:t] + list(ids)) for ids in outs])
        assert (
            row["accuracy"] == pytest.approx(np.mean([rates[pair, t] for pair in pairs]))
            and row["ci_low"] <= row["accuracy"] <= row["ci_high"]
        )
        assert row["baseline"] == pytest.approx(np.mean([rates[pair, 0] for pair in pairs]))  # of the same outputs
        assert (
            row["drop"] == pytest.approx(row["baseline"] - row["accuracy"])
            and row["drop_low"] <= row["drop"] <= row["drop_high"]
        )
        assert row["original_accuracy"] == pytest.approx(np.mean([right(original[pair]) for pair in pairs]))
        assert found.summary[f"accuracy, cut at {t}"]["value"] == row["accuracy"]
    assert table["drop"][0] == 0 and 0 < table["accuracy"].max() and longest[0] == 6 > longest[10] > 0, longest


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
    assert (
        found.table("verbalised")["parse_rate"].to_list() == [0, 0, 0]
        and found.table("verbalised")["distinct_verbalised"].is_null().all()
    )
    assert any("in the format that was asked for" in w for w in found.info["warnings"])


def test_hyperfitted_models_are_sure_of_their_own_text_and_surprised_by_others(run, stories, tiny_llama, tmp_path):
    """Scores made eight times larger stand in for over-training: hardly any entropy left, and given text far less
    likely."""
    sharp = tmp_path / "sharp"
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama)
    hf.model.norm.weight.data *= 8
    hf.save_pretrained(sharp)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(sharp)
    table = run(stories, study="hyperfitted", compare=str(sharp), samples=4).table("signature")
    plain, over = table.row(0, named=True), table.row(1, named=True)
    assert over["entropy_own"] < 0.3 * plain["entropy_own"] and over["sure_own"] > plain["sure_own"] + 0.2
    assert over["surprise"] > plain["surprise"] + 1 and over["nll_given"] > plain["nll_given"]
    for key in ("entropy_own", "entropy_given", "nll_given", "surprise"):
        assert over[f"{key}_low"] <= over[key] <= over[f"{key}_high"]


def test_alignment_narrows_the_organism_and_its_opening_does_part_of_it(run, tmp_path):
    """The shipped base and aligned organisms on open prompts."""
    data = tmp_path / "open.jsonl"
    rows = (Path(organisms.__file__).parent / "data" / "prompts.jsonl").read_text().splitlines()
    data.write_text("\n".join([row for row in rows if json.loads(row)["kind"] == "open"][::4]) + "\n")
    found = run(
        "organism", data=data, study="nudging", compare="organism-chat", samples=6, max_new_tokens=40, nudge_count=8
    )
    bf = {r["condition"]: r for r in found.table("conditions").iter_rows(named=True)}
    ratio = found.summary["organism / organism-chat"]
    assert 2 < ratio["low"] < ratio["value"] < ratio["high"] < 10
    base, nudged, aligned = bf["organism"], bf["organism + opening"], bf["organism-chat"]
    assert base["bf"] > nudged["bf"] > aligned["bf"] and base["ci_low"] > aligned["ci_high"]
    assert bf["organism + own opening"]["bf"] > nudged["bf"]
    assert (base["template"], aligned["template"]) == ("raw", "chat")
    assert found.table("nudging")["condition"].to_list() == [
        "organism",
        "organism + opening",
        "organism + own opening",
        "organism-chat",
        "organism-chat + opening",
    ]
    assert any("organism has no chat template" in w for w in found.info["warnings"])
    assert {"nudging", "ratio", "openings", "tree"} <= set(drawn.figures(found))


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
    empty.write_text("text\nhello\n")
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
    with pytest.raises(InputError, match="Prompt 0 has .* more than the model's context"):
        run(stories, data=far)


def test_one_sample_one_token_and_one_choice_are_allowed_and_explained(run, stories):
    one = run(stories, samples=1)
    assert one.table("prompts")["ci_low"].is_null().all() and one.table("prompts")["bf"].is_not_null().all()
    assert "samples_for_5_percent" not in one.summary and one.table("enough")["relative_error"].is_null().all()
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


def test_an_opening_that_is_not_there_is_refused(run, stories, tiny_llama):
    with pytest.raises(InputError, match="nudge_pick is 99.*choose 0 to"):
        run(
            stories,
            study="nudging",
            compare=str(tiny_llama),
            samples=8,
            nudge_count=6,
            nudge_pick=99,
            max_new_tokens=6,
        )


def test_a_model_without_an_end_token_says_so(run, tiny_llama):
    model = load(str(tiny_llama))
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


@pytest.fixture
def fake_vllm(monkeypatch, stories):
    """vLLM's interface over our own sampler: what it was asked for is kept; `spoil` may change the token ids of a
    sample."""
    log = SimpleNamespace(opened=0, closed=0, memory=[], asked=[], spoil=lambda p, m, ids: ids)

    class LLM:
        def __init__(self, model, dtype, gpu_memory_utilization):
            log.opened += 1
            log.memory.append(gpu_memory_utilization)
            self.llm_engine = SimpleNamespace(
                engine_core=SimpleNamespace(shutdown=lambda: setattr(log, "closed", log.closed + 1))
            )

        def generate(self, prompts, params, use_tqdm):
            answers = []
            for p, (prompt, asked) in enumerate(zip(prompts, params)):
                log.asked.append(asked)
                ids = prompt["prompt_token_ids"]
                rule = Rule(asked.temperature, asked.top_p, max(asked.top_k, 0), asked.min_p)
                found = sample(
                    stories, [ids], samples=asked.n, max_new_tokens=asked.max_tokens, rule=rule, seed=asked.seed
                )
                texts = [log.spoil(p, m, found.tokens(0, m)) for m in range(asked.n)]
                answers.append(
                    SimpleNamespace(
                        outputs=[
                            SimpleNamespace(
                                token_ids=t, finish_reason="stop" if t and t[-1] in stories.eos_ids else "length"
                            )
                            for t in texts
                        ]
                    )
                )
            return answers

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__spec__ = (
        LLM,
        lambda **asked: SimpleNamespace(**asked),
        ModuleSpec("vllm", None),
    )
    monkeypatch.setitem(sys.modules, "vllm", module)
    return log


def test_vllm_writes_the_texts_and_one_engine_serves_a_whole_run(run, stories, fake_vllm, monkeypatch):
    monkeypatch.setattr("probes.branching_factor.PART_ROWS", 6)  # one prompt per part
    found = run(stories, sampler="vllm", study="decoding", settings="top_p=0.9,top_p=0.8", samples=4, max_new_tokens=10)
    assert (fake_vllm.opened, fake_vllm.closed, fake_vllm.memory) == (1, 1, [0.6])
    assert len({asked.seed for asked in fake_vllm.asked}) == 3 and len(fake_vllm.asked) == 6
    assert not any("outside the nucleus" in w for w in found.info["warnings"])
    inputs, rule = found.table("inputs"), {"top_p=0.9": Rule(top_p=0.9), "top_p=0.8": Rule(top_p=0.8)}
    ids = dict(inputs.select("row", "ids").iter_rows())
    for r in found.table("samples").head(6).iter_rows(named=True):
        steps = score(stories, [ids[r["row"]]], [r["generated_ids"]], rule=rule[r["condition"]])[0]
        np.testing.assert_allclose(r["step_entropy"], steps[:, FIELDS.index("entropy")], atol=1e-4)


def test_what_vllm_may_do_at_its_edges(run, stories, fake_vllm, tmp_path):
    """A token outside the nucleus, an empty text, a prompt near the end of the context and one that fills it."""
    rare = stories.encode("Lily")[-1]
    fake_vllm.spoil = lambda p, m, ids: [] if (p, m) == (1, 0) else [*ids[:2], rare] if (p, m) == (0, 0) else ids
    found = run(stories, sampler="vllm", samples=4, max_new_tokens=6, top_p=0.3)
    assert any("1 of" in w and "sampled tokens lie outside the nucleus" in w for w in found.info["warnings"])
    table = found.table("prompts")
    assert table["bf_nll"].is_finite().all() and found.summary["bf_nll"] == pytest.approx(table["bf_nll"].mean())
    first = found.table("samples").row(0, named=True)
    full = score(stories, found.table("inputs")["ids"].to_list()[:1], [first["generated_ids"]], rule=Rule(top_p=0.3))[0]
    assert full[2, FIELDS.index("logprob")] == -math.inf
    assert first["step_nll"][2] == pytest.approx(-float(full[2, FIELDS.index("logprob_top")]), rel=1e-4)
    empty = found.table("samples").filter((pl.col("prompt") == 1) & (pl.col("sample") == 0)).row(0, named=True)
    assert empty["length"] == 0 and empty["generated_ids"] == [] and empty["finish"] == "length"

    fake_vllm.spoil = lambda p, m, ids: ids
    word, files = stories.encode("dog")[-1:], {}
    for name, spare in (("near", 4), ("full", 0)):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text(
            json.dumps({"prompt": stories.decode(word * (stories.context_length - 1 - spare))}) + "\n"
        )
    n = len(stories.encode(stories.decode(word * (stories.context_length - 5))))
    near = run(stories, data=files["near"], sampler="vllm", samples=2, max_new_tokens=30)
    assert fake_vllm.asked[-1].max_tokens == stories.context_length - n
    assert set(near.table("samples")["finish"]) <= {"context", "eos"} and "context" in set(
        near.table("samples")["finish"]
    )
    with pytest.raises(InputError, match="fills the context"):
        run(stories, data=files["full"], sampler="vllm", samples=2, max_new_tokens=30)


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
    assert set(tables["positions"]) >= {"position", "bf_prefix", "bf_window", "entropy", "alive"}
    assert set(tables["samples"]) >= {"prompt", "sample", "text", "length", "nll", "entropy", "generated_ids"}
    assert set(tables["inputs"]) >= {"row", "ids"}


def test_every_study_has_a_prepared_config():
    folder = Path(probes.__file__).parent / "branching_factor" / "material"
    studies = set()
    for file in folder.glob("*.toml"):
        config = build(get("branching-factor").config, read_toml(file))
        assert config.study == file.stem
        studies.add(config.study)
    assert studies == set(STUDIES) - {"none"}


DATA = {"resampling": "facts.jsonl", "complexity": "stories.jsonl", "hyperfitted": "given.jsonl"}


@pytest.mark.parametrize("study", sorted(set(STUDIES) - {"none"}))
def test_every_prepared_config_runs_on_the_data_it_names(run, study, tmp_path):
    folder = Path(probes.__file__).parent / "branching_factor" / "material"
    text = (folder / f"{study}.toml").read_text()
    data = organisms.__path__[0] + "/data/prompts.jsonl"
    if study in DATA:
        assert f"--data probes/branching_factor/material/{DATA[study]}" in text
        data = folder / DATA[study]
    smaller = {"samples": 5, "max_new_tokens": 6, "max_prompts": 3, "nudge_count": 4} | (
        {"levels": [0, 2, 5]} if study == "complexity" else {}
    )
    model = "organism-chat" if "--model organism-chat" in text or study == "verbalised" else "organism"
    found = run(model, data=data, **read_toml(folder / f"{study}.toml") | smaller)
    assert found.status == "complete" and found.table("conditions").height >= 2
    assert not any("same prompts" in w for w in found.info["warnings"])
    if study == "resampling":
        assert found.table("resampling").height > 1
