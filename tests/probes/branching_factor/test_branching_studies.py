"""What is compared: each study on a model whose answer is known or can be computed, and its prepared config."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import probes
from probes.branching_factor import figures as drawn
from probes.branching_factor.branching_samples import shorten
from probes.branching_factor.config import STUDIES
from tests.probes.branching_factor.test_branching_factor import many_prompts
from workbench import organisms
from workbench.core.config import build, read_toml
from workbench.core.errors import InputError
from workbench.core.registry import get


def test_pair_gives_the_ratio_of_two_models(run, tmp_path):
    data = many_prompts("circuit-zipf", 6, tmp_path)
    models = {"compare": "circuit-geometric", "study": "pair", "data": data}
    found = run("circuit-zipf", **models, samples=10, max_new_tokens=10, estimator="nll", pool="tokens")
    row = found.table("comparisons").row(0, named=True)
    assert (row["a"], row["b"]) == ("circuit-zipf", "circuit-geometric") and row["prompts"] == 6
    assert row["ratio_low"] < 17.7421 / 3.1171 < row["ratio_high"]
    assert (
        row["ratio"] == pytest.approx(row["bf_a"] / row["bf_b"])
        and row["difference_low"] < row["difference"] < row["difference_high"]
    )
    exact = run("circuit-zipf", **models, samples=4, max_new_tokens=5).table("comparisons")
    assert exact["ratio"][0] == pytest.approx(17.7421 / 3.1171, rel=1e-4)


def test_across_tokenizers_nats_per_byte_come_first_and_what_is_per_token_says_so(run, stories, tiny_llama):
    """The same model twice is one tokenizer; circuits whose vocabularies differ are two."""
    found = run("circuit-zipf", compare="circuit-geometric", study="pair", samples=6, max_new_tokens=8)
    row = found.table("comparisons").row(0, named=True)
    keys = list(found.summary)
    assert not row["same_tokenizer"] and keys[0] == "circuit-zipf / circuit-geometric, nats per byte"
    assert found.summary[keys[0]]["value"] == row["per_byte_ratio"]
    assert "circuit-zipf / circuit-geometric" not in keys
    assert {
        "circuit-zipf / circuit-geometric (per token, other tokenizer)",
        "nats_per_byte of circuit-geometric",
    } <= set(keys)
    assert any("cut text into different tokens" in w and "nats per byte" in w for w in found.info["warnings"])
    # nats over bytes, by hand, prompt by prompt
    samples = found.table("samples").with_columns(
        nats=pl.col("step_entropy").list.sum(), bytes=pl.col("text").str.len_bytes()
    )
    by_hand = samples.group_by("condition", "prompt", maintain_order=True).agg(
        pl.col("nats").sum() / pl.col("bytes").sum()
    )
    table = found.table("prompts")
    assert found.table("samples")["text"].str.starts_with(" ").sum() == 0
    np.testing.assert_allclose(table["nats_per_byte"], by_hand["nats"], rtol=1e-4)
    a, b = (table.filter(condition=name)["nats_per_byte"].mean() for name in ("circuit-zipf", "circuit-geometric"))
    assert row["per_byte_ratio"] == pytest.approx(a / b) and row["per_byte_difference"] == pytest.approx(a - b)
    made = drawn.figures(found)
    assert "nats per byte" in made["ratio"].layout.xaxis.title.text
    assert "nats per byte" in made["conditions"].layout.xaxis.title.text
    for name in ("positions", "prompts", "ratio", "conditions", "enough", "entropy"):
        assert "cut text into different tokens" in made[name].layout.meta["note"], name
    same = run(stories, compare=str(tiny_llama), study="pair", samples=2, max_new_tokens=4)
    name = tiny_llama.name
    assert same.table("comparisons")["same_tokenizer"][0] and f"{name} / {name} (2)" in same.summary
    assert not any("different tokens" in w for w in same.info["warnings"])
    assert same.table("conditions")["tokenizer"].n_unique() == 1


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
    assert found.summary["impact of complexity, as the paper has it"] == impact["impact"]
    assert found.summary["impact of complexity"]["value"] == impact["impact_held_out"] <= impact["impact"] + 1e-12
    assert impact["impact_low"] is None and impact["prompts"] == 3
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
            and row["ci_low"] is None  # of three prompts
            and row["prompts"] == len({p for p, _ in pairs})
        )
        assert row["baseline"] == pytest.approx(np.mean([rates[pair, 0] for pair in pairs]))  # of the same outputs
        assert row["drop"] == pytest.approx(row["baseline"] - row["accuracy"]) and row["drop_low"] is None
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


def test_verbalised_prompts_ask_for_several_responses(run, prompts, stories):
    found = run(stories, study="verbalised", samples=3, responses=4)
    texts = found.table("prompts").filter(pl.col("condition") == "verbalised")["text"].to_list()
    asked = pl.read_ndjson(prompts)["prompt"]
    assert all("Generate 4 responses" in text and prompt in text for text, prompt in zip(texts, asked))
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
        assert over[f"{key}_low"] is None and over["prompts"] == 3
        assert 0 < over[f"{key}_per_byte"] < over[key]


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
    longest = 24 if study == "sentences" else 6
    smaller = {"samples": 5, "max_new_tokens": longest, "max_prompts": 3, "nudge_count": 4} | (
        {"complexity": {"levels": [0, 2, 5]}, "random_prefix": {"offsets": [0, 1], "inserted": 3}}.get(study, {})
    )
    model = "organism-chat" if "--model organism-chat" in text or study == "verbalised" else "organism"
    found = run(model, data=data, **read_toml(folder / f"{study}.toml") | smaller)
    assert found.status == "complete" and found.table("conditions").height >= 2
    assert not any("same prompts" in w for w in found.info["warnings"])
    if study == "resampling":
        assert found.table("resampling").height > 1


def test_the_prepared_questions_are_ones_that_the_chat_organism_answers(run):
    """As users type them, without the base model's frame (Question: … Answer:), which the chat model never saw."""
    folder = Path(probes.__file__).parent / "branching_factor" / "material"
    smaller = {"cuts": [8], "originals": 1, "samples": 3, "max_prompts": 15}
    found = run("organism-chat", data=folder / "facts.jsonl", **read_toml(folder / "resampling.toml") | smaller)
    assert found.table("conditions")["accuracy"][0] > 0.8
    assert found.table("resampling").filter(position=0)["accuracy"][0] > 0.8
