"""What is wrong with words, settings or a model is said in one sentence; the conformance battery passes; a translator
is the least-squares one."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch

from probes.latent_language.config import Config
from probes.latent_language.layer_tables import _crossing, _Leads, crossing_of
from probes.latent_language.translators import RIDGES, Translators, ridge_maps
from tests.probes.latent_language.hand_made import write_rows
from workbench.core import config as configs
from workbench.core.errors import InputError
from workbench.core.registry import get
from workbench.models.loading import load
from workbench.runs.checks import CHECKS, check_probe
from workbench.runs.execution import execute, prepare

SHORT = {"draws": 100, "random_draws": 2, "steer_rows": 3}
SHIPPED = get("latent-language").data.default_path()
GOOD = [{"concept": f"c{i}", "a": f"a{i}", "b": f"b{i}"} for i in range(6)]


@pytest.fixture(scope="module")
def bilingual():
    return load("circuit-bilingual")


@pytest.fixture(scope="module")
def organism():
    return load("organism")


def test_the_conformance_battery_passes(bilingual):
    config = SHORT | {"limit": 10, "steer_layers": (1,), "tasks": ("translation",)}
    assert check_probe("latent-language", bilingual, config=config) == list(CHECKS)


BAD = [
    ([{"concept": "x", "a": "y"}], {}, "needs two languages, each in a column of its own"),
    ([{"word": "x", "a": "y", "b": "z"}], {}, "no column 'concept'"),
    (GOOD[:3], {}, "has 3 concepts; at least 4"),
    ([*GOOD, GOOD[0]], {}, "row 7: the concept 'c0' stands there twice"),
    ([{**row, "b": 3} for row in GOOD], {}, "the column 'b' must hold text"),
    (GOOD, {"languages": ("a", "c")}, "has no language 'c'"),
    (GOOD, {"pairs": ("a:c",)}, "names 'c', and the languages that can be read here are a, b"),
    (GOOD, {"tasks": ("cloze",)}, "the words have no clues in b"),
]


@pytest.mark.parametrize("rows, config, said", BAD, ids=[said for *_, said in BAD])
def test_a_word_list_that_cannot_be_used_is_named_before_a_model_is_loaded(rows, config, said, tmp_path):
    data = write_rows(tmp_path / "words.jsonl", rows)
    with pytest.raises(InputError) as error:
        prepare("latent-language", config, data=data, model="no-model")
    assert said in str(error.value) and str(error.value).count("\n") == 0 and str(error.value).endswith(".")


SETTINGS = [
    ({"tasks": ("translate",)}, "'translate' is none of the tasks"),
    ({"pairs": ("a",)}, "takes source:target"),
    ({"pairs": ("a:a",)}, "two languages"),
    ({"labels": ("a",)}, "'labels' takes column:name"),
    ({"pair_form": "{word} is {answer}"}, "'pair_form' needs {source}, {word}, {target}, {answer}, once each"),
    ({"cloze_form": "{answer} is {clue}"}, "'cloze_form' needs"),
    ({"cloze_form": "say {answer} for {clue}"}, "comes last"),
    ({"translator_texts": "some.txt"}, "lens=tuned or lens=both only"),
    ({"template": "chatt"}, "'template' needs {prompt}"),
]


@pytest.mark.parametrize("values, said", SETTINGS, ids=[said for _, said in SETTINGS])
def test_settings_that_do_not_go_together_are_refused(values, said):
    with pytest.raises(InputError) as error:
        configs.build(Config, values)
    assert said in str(error.value)


def test_a_model_that_cannot_write_the_languages_says_so(bilingual, organism, tmp_path):
    with pytest.raises(InputError, match=r"writes the words of 0 of 6 languages, and a comparison needs two"):
        execute("latent-language", bilingual, data=SHIPPED)
    rows = [row | {"c": "ζωή" + "ωψ" * i} for i, row in enumerate(_circuit_rows())]
    data = write_rows(tmp_path / "three.jsonl", rows)
    run = execute("latent-language", bilingual, data=data, config=SHORT | {"steer_layers": "none"})
    assert set(run.table("words")["language"]) == {"aru", "bel"}
    assert any(
        w.startswith("c is left out: the tokenizer of circuit-bilingual writes 0 of") for w in run.info["warnings"]
    )
    with pytest.raises(InputError, match="leave it out of 'languages' and 'pairs'"):
        execute("latent-language", bilingual, data=data, config=SHORT | {"languages": ("aru", "bel", "c")})


def _circuit_rows() -> list[dict]:
    lines = get("latent-language").data.default_path("circuit-bilingual").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "cor"} for line in lines]


@pytest.mark.parametrize(
    "values, said",
    [
        ({"steer_layers": (4,)}, "steer_layers names layer 4, and the model has 4 layers"),
        ({"steer_to": "english"}, "steer_to is 'english', and the languages"),
        ({"shots": 40}, "more than the context of"),
    ],
)
def test_what_the_model_does_not_have_is_said_before_its_weights_are_read(values, said, tmp_path):
    from workbench.runs.preparation import prepare as ready

    config = {"fit_share": 0.9} | values if "shots" in values else values
    rows = [
        {"concept": f"{row['concept']}{k}", "group": row["concept"], **{g: row[g] for g in ("aru", "bel")}}
        for row in _circuit_rows()
        for k in range(3)
    ]
    data = write_rows(tmp_path / "w.jsonl", rows)
    with pytest.raises(InputError, match=said):
        execute("latent-language", "circuit-bilingual", config=config, data=data)
    assert ready is not None


def test_a_crossing_is_the_layer_from_which_on_the_target_is_ahead_to_the_end():
    rng = np.random.default_rng(0)
    above = rng.random((200, 6)) < 0.6
    slow = [next((l for l in range(7) if row[l:].all()), 6) for row in above]
    assert crossing_of(above).tolist() == slow and len(set(slow)) > 4


def test_resamples_without_a_crossing_count_as_later_than_every_layer():
    rng = np.random.default_rng(0)
    gap = np.array([1.0] * 12 + [-1.0] * 8)  # of each concept: the target ahead at the end, or behind
    log_p = np.log(0.2 + 0.1 * np.stack([gap, -gap], 1))[..., None].repeat(3, -1)  # [concepts, languages, layers]
    leads = _Leads(log_p, np.arange(20), 500, rng)
    found = _crossing(leads, 0, 1)
    assert found["crossing"] == 0 and found["crossing_low"] == 0.0
    assert 0.6 < found["crossing_share"] < 0.97 and "crossing_high" not in found
    behind = _crossing(leads, 1, 0)
    assert behind["crossing"] is None and "crossing_high" not in behind


def test_fewer_examples_than_asked_for_are_said(bilingual, tmp_path):
    data = write_rows(tmp_path / "few.jsonl", _circuit_rows()[:8])
    config = SHORT | {"shots": 4, "steer_layers": "none", "tasks": ("translation",)}
    run = execute("latent-language", bilingual, data=data, config=config)
    assert any("have 2 of 4 examples" in said for said in run.info["warnings"])
    enough = execute("latent-language", bilingual, data=data, config=config | {"shots": 2})
    assert not any("examples" in said for said in enough.info["warnings"])


def test_no_example_gives_the_word_that_is_asked_for(bilingual, tmp_path):
    rows = _circuit_rows()[:12]
    rows += [row | {"concept": f"again {row['concept']}"} for row in rows]  # the same words under another name
    data = write_rows(tmp_path / "twice.jsonl", rows)
    config = SHORT | {"shots": 3, "steer_layers": "none", "tasks": ("translation",)}
    run = execute("latent-language", bilingual, data=data, config=config)
    word = {row["concept"]: row for row in rows}
    for row in run.table("inputs").iter_rows(named=True):
        *examples, _ = row["text"].split("\n")
        assert len(examples) == 3
        assert not [line for line in examples if word[row["concept"]][row["target"]] in line]


def test_a_ridge_map_solves_the_normal_equations():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, 6, generator=generator).double() for _ in range(2))
    centred = x - x.mean(0)
    scale = float((centred**2).sum() / 6)
    for ridge, weight, shift in ridge_maps(x, y):
        left = centred.T @ centred + ridge * scale * torch.eye(6).double()
        assert torch.allclose(left @ weight, centred.T @ (y - y.mean(0)), atol=1e-8)
        assert torch.allclose(x.mean(0) @ weight + shift, y.mean(0))
    assert len(RIDGES) == 7 and float(ridge_maps(x, y)[-1][1].abs().max()) < 1e-5  # the logit lens with a shift


def test_translators_bring_layers_closer_to_the_end_on_texts_that_they_were_not_fitted_on(organism, tmp_path):
    config = SHORT | {"tasks": ("cloze",), "cloze_form": "{clue} {answer}", "shots": 0, "lens": "both"}
    run = execute("latent-language", organism, config=config | {"limit": 120, "steer_layers": "none"})
    fitted = run.table("translators")
    assert fitted["layer"].to_list() == list(range(5)) and (fitted["held_out_tokens"] >= 32).all()
    assert (fitted["kl_tuned"] < fitted["kl_logit"]).all() and (fitted["r2"] <= 1).all()
    words = run.table("words")
    ends = words.filter(layer=5).pivot("lens", index=("row", "language"), values="log_probability")
    assert (ends["logit"] - ends["tuned"]).abs().max() < 1e-4  # the last layer is the model's own
    other = words.filter(layer=1).pivot("lens", index=("row", "language"), values="log_probability")
    assert (other["logit"] - other["tuned"]).abs().max() > 0.1


def test_a_translator_reads_a_layer_as_its_map_says():
    maps, shifts = torch.randn(2, 3, 3), torch.randn(2, 3)
    lens, states = Translators(maps, shifts), torch.randn(5, 3)
    assert torch.allclose(lens(1, states), states + states @ maps[1] + shifts[1])
    assert torch.equal(lens(2, states), states)


def test_too_little_text_for_translators_is_refused(bilingual, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("kalana kalatel kalamush")
    with pytest.raises(InputError, match="Translators need at least 32 tokens"):
        execute("latent-language", bilingual, config=SHORT | {"lens": "tuned", "translator_texts": str(text)})


def test_below_five_concepts_there_is_no_interval(bilingual, tmp_path):
    data = write_rows(tmp_path / "few.jsonl", _circuit_rows()[:6])
    run = execute("latent-language", bilingual, data=data, config=SHORT | {"fit_share": 0.4})
    layers, courses = run.table("layers"), run.table("courses")
    assert (layers["n"] == 4).all() and layers["ci_low"].null_count() == layers.height
    assert layers["p_adjusted"].null_count() == layers.height and not layers["above_null"].fill_null(False).any()
    assert courses["crossing_low"].null_count() == courses.height and courses["crossing"].drop_nulls().to_list()
    assert pl.Series(run.table("steering")["excess_low"]).null_count() == run.table("steering").height
