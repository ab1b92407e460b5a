"""Models whose truth is known first: the language of every layer of a hand-built circuit, the product over a word's
tokens under a bigram model, and what belongs to two languages."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch

from tests.probes.latent_language.hand_made import LAYERS, bigram_letters, fixed_words, write_rows
from workbench import organisms
from workbench.models.loading import load
from workbench.organisms.circuits import gpt2
from workbench.organisms.circuits.bilingual import LANGUAGES, STRENGTH
from workbench.runs.execution import execute

FEW = {"draws": 100, "random_draws": 2, "steer_rows": 6}


@pytest.fixture(scope="module")
def bilingual():
    return load("circuit-bilingual")


@pytest.fixture(scope="module")
def on_circuit(bilingual, tmp_path_factory):
    config = FEW | {"pairs": ("bel:cor", "cor:bel", "bel:aru"), "random_draws": 4, "steer_rows": 24}
    return execute("latent-language", bilingual, config=config, out=tmp_path_factory.mktemp("circuit") / "run")


def test_the_circuit_switches_from_the_pivot_to_the_language_asked_for_at_its_layer_and_nowhere_else(on_circuit):
    truth = organisms.truth("circuit-bilingual")
    chance = truth["probability"]
    for row in on_circuit.table("layers").filter(lens="logit").iter_rows(named=True):
        here = truth["pivot"] if row["layer"] in truth["layers"]["pivot"] else row["target"]
        spoken = row["language"] == here
        expected = chance["concept_in_the_language_of_the_layer" if spoken else "concept_in_another_language"]
        null = "another_concept_in_the_language_of_the_layer" if spoken else "another_concept_in_another_language"
        assert row["probability"] == pytest.approx(expected, rel=1e-5)
        assert row["null_probability"] == pytest.approx(chance[null], rel=1e-5)
        assert row["entropy"] == pytest.approx(truth["entropy"], rel=1e-5)
        assert row["leads"] == spoken and row["lead_share"] == float(spoken)
        assert row["above_null"] and row["n"] == 17


def test_the_target_crosses_at_the_circuits_layer_in_every_resample(on_circuit):
    truth, chance = organisms.truth("circuit-bilingual"), organisms.truth("circuit-bilingual")["probability"]
    courses = on_circuit.table("courses").filter(task="translation", target="cor", readout="word")
    pivot = courses.row(by_predicate=pl.col("language") == "aru", named=True)
    assert [pivot[c] for c in ("crossing", "crossing_low", "crossing_high")] == [truth["crossing"]] * 3
    assert pivot["crossing_relative"] == 0.5 and pivot["crossing_share"] == 1.0 and pivot["layers_led"] == 2
    high, low = (chance[f"concept_in_{x}"] for x in ("the_language_of_the_layer", "another_language"))
    assert pivot["area"] == pytest.approx((high + low) / 2, rel=1e-5)
    asked = courses.row(by_predicate=pl.col("language") == "cor", named=True)
    assert asked["crossing"] is None and asked["layers_led"] == 2
    other = courses.row(by_predicate=pl.col("language") == "bel", named=True)
    assert other["crossing"] == truth["crossing"] and other["layers_led"] == 0  # as probable as the target before it
    assert on_circuit.summary["translation_bel_cor_leads"] == "aru 0–1, cor 2–3"


def test_a_language_that_is_the_pivot_leads_everywhere(on_circuit):
    own = on_circuit.table("layers").filter(task="translation", target="aru", language="aru")
    assert own["leads"].all()


def test_a_languages_direction_turns_the_answer_by_what_the_circuit_says_and_random_ones_do_not(on_circuit):
    steering = on_circuit.table("steering").filter(target="cor")
    told = steering.filter(direction="language")
    assert told["towards"].unique().to_list() == ["aru"] and told["layer"].to_list() == [0, 1, 2, 3]
    # S comes off the language asked for and goes to the other, before the switch (as what is asked for) and after it
    assert told["log_odds"].to_list() == pytest.approx([2 * STRENGTH] * 4, rel=1e-4)
    assert (told["base_log_odds"] + STRENGTH).abs().max() < 1e-4
    assert (told["switched"] == 1).all() and (told["base_switched"] == 0).all()
    assert (told["p_adjusted"] < 0.05).all() and (told["excess_low"] > 0).all()
    drawn = steering.filter(direction="random")
    assert drawn.height == 16 and drawn["log_odds"].abs().max() < STRENGTH
    same = drawn.join(told, on="layer", suffix="_told")
    assert (same["norm"] == same["norm_told"]).all()


def test_the_direction_moves_the_concepts_own_word_into_the_other_language(on_circuit):
    chance = organisms.truth("circuit-bilingual")["probability"]
    told = on_circuit.table("steering").filter(direction="language", target="cor")
    assert told["probability"].to_list() == pytest.approx(
        [chance["concept_in_the_language_of_the_layer"]] * 4, rel=1e-4
    )
    raised = [chance["another_concept_in_the_language_of_the_layer"]] * 4
    assert told["null_probability"].to_list() == pytest.approx(raised, rel=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16"])  # float16 cannot hold the norms of the circuits
def test_a_circuit_in_few_bits_gives_the_same_languages(dtype):
    run = execute("latent-language", load("circuit-bilingual", dtype=dtype), config=FEW | {"steer_layers": "none"})
    truth = organisms.truth("circuit-bilingual")["probability"]
    led = run.table("layers").filter(pl.col("leads"), pl.col("readout") == "word", task="translation")
    assert led["language"].to_list() == ["aru", "aru", "cor", "cor"]
    expected = truth["concept_in_the_language_of_the_layer"]
    assert led["probability"].to_list() == pytest.approx([expected] * 4, rel=2e-2)


@pytest.fixture(scope="module")
def bigram(tmp_path_factory):
    folder, table = bigram_letters(tmp_path_factory.mktemp("bigram") / "model")
    return load(str(folder)), table


SPOKEN = [("tak", "solo|um"), ("ban", "xi"), ("dep", "go"), ("fir", "hux"), ("jol", "ce"), ("mun", "ra"), ("wes", "yo")]


def closed_form(model, table: torch.Tensor, text: str) -> float:
    """log P(text) after a quotation mark, in float64."""
    log_p = table.double().log_softmax(-1)
    ids = model.encode('"' + text, bos=False)
    return float(sum(log_p[a, b] for a, b in zip(ids, ids[1:])))


@pytest.mark.parametrize("alternatives", ["sum", "max"])
def test_a_words_probability_is_the_product_over_its_tokens_of_a_bigram_model(bigram, alternatives, tmp_path):
    model, table = bigram
    rows = [{"concept": f"c{i}", "a": a, "b": b} for i, (a, b) in enumerate(SPOKEN)]
    config = FEW | {"alternatives": alternatives, "steer_layers": "none", "shots": 1, "tasks": ("translation",)}
    run = execute("latent-language", model, config=config, data=write_rows(tmp_path / "w.jsonl", rows))
    concepts = dict(run.table("inputs").select("row", "concept").iter_rows())
    seen = set()
    for row in run.table("words").iter_rows(named=True):
        text = dict(zip("ab", SPOKEN[int(concepts[row["row"]][1:])]))[row["language"]]
        seen.add(text)
        each = [closed_form(model, table, word) for word in text.split("|")]
        whole = np.logaddexp.reduce(each) if alternatives == "sum" else max(each)
        assert row["log_probability"] == pytest.approx(whole, abs=1e-4)
        first = [closed_form(model, table, word[0]) for word in text.split("|")]
        begun = np.logaddexp.reduce(first) if alternatives == "sum" else max(first)
        assert row["log_p_first"] == pytest.approx(begun, abs=1e-4)
        assert row["log_p_set"] == pytest.approx(np.logaddexp.reduce(first), abs=1e-4)
    assert seen & {"solo|um"} and run.table("words")["layer"].n_unique() == LAYERS
    assert run.table("layers").filter(readout="word", language="a")["probability"].n_unique() == 1  # of every layer


def test_a_token_that_may_begin_words_of_two_languages_is_taken_from_both(bigram, tmp_path):
    model, table = bigram
    spoken = [("tak", "tom"), ("ban", "bix"), ("dep", "dgo"), ("fir", "fhux"), ("jol", "jce"), ("mun", "mra")]
    rows = [{"concept": f"c{i}", "a": a, "b": b} for i, (a, b) in enumerate(spoken)]
    rows += [{"concept": "c6", "a": "sol", "b": "sol"}]
    config = FEW | {"shared": "report", "steer_layers": "none", "shots": 1, "tasks": ("translation",), "fit_share": 0.1}
    run = execute("latent-language", model, config=config, data=write_rows(tmp_path / "w.jsonl", rows))
    words = run.table("words")
    assert words["log_p_set"].null_count() == words.height  # the only token of one letter begins both words
    assert words["log_p_first"].null_count() == words.height  # nor does the first token of both tell them apart,
    assert words["log_probability"].null_count() < words.height  # but the words do
    layers = run.table("layers")
    assert set(layers.filter(readout="set")["language"]) == {"shared"}
    concepts = run.table("inputs")["concept"].to_list()
    expected = np.mean([math.exp(closed_form(model, table, _letter(c, rows))) for c in concepts])
    assert layers.filter(readout="set")["probability"].to_list() == pytest.approx([expected] * LAYERS, rel=1e-4)
    same = run.table("inputs").filter(concept="c6")["row"]
    assert len(same) == 1 and words.filter(row=same[0])["log_probability"].null_count() == 2 * LAYERS
    assert any("are words of another language too" in w and "1 of a, 1 of b" in w for w in run.info["warnings"])


def _letter(concept: str, rows: list[dict]) -> str:
    return next(row["a"][0] for row in rows if row["concept"] == concept)


HAN = [("山", "山"), ("花", "花"), ("书", "本"), ("狗", "犬"), ("猫", "猫"), ("水", "水"), ("鱼", "魚"), ("门", "扉")]


def test_characters_that_chinese_and_japanese_share_are_no_language_and_are_reported_as_han(tmp_path):
    signs = sorted({sign for pair in HAN for sign in pair})
    logits = {sign: 1.0 + 0.1 * i for i, sign in enumerate(signs)}
    folder = fixed_words(tmp_path / "han", signs, [logits[s] for s in signs])
    rows = [{"concept": f"c{i}", "a": a, "b": b} for i, (a, b) in enumerate(HAN)]
    config = FEW | {"shared": "report", "steer_layers": "none", "shots": 1, "tasks": ("translation",), "fit_share": 0.2}
    run = execute("latent-language", load(str(folder)), config=config, data=write_rows(tmp_path / "w.jsonl", rows))
    pairs = [HAN[int(c[1:])] for c in run.table("inputs")["concept"]]
    total = sum(math.exp(x) for x in logits.values()) + len(gpt2.SPECIALS) + 5
    layers = run.table("layers").filter(layer=0)
    assert set(layers["language"]) == {"a", "b", "Han"}
    of = {row["language"]: row for row in layers.filter(readout="set").iter_rows(named=True)}
    for k, language in enumerate("ab"):
        own = [math.exp(logits[pair[k]]) / total for pair in pairs if pair[0] != pair[1]]
        assert of[language]["probability"] == pytest.approx(np.mean(own), rel=1e-5) and of[language]["n"] == len(own)
    both = [math.exp(logits[a]) / total for a, b in pairs if a == b]
    assert of["Han"]["probability"] == pytest.approx(np.mean(both), rel=1e-5) and of["Han"]["n"] == len(both) > 0
    tokens = run.table("tokens")
    assert tokens["same_in_another_language"].to_list() == [len(both)] * 2
    assert LANGUAGES[0] not in tokens["language"].to_list()
