"""Every number of a run again, from its table `inputs` with plain Hugging Face: one forward per candidate, eager
attention, float64, a full softmax at every layer, sets of tokens by going through the whole vocabulary."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.latent_language.config import Config
from probes.latent_language.word_lists import read_words
from workbench import organisms
from workbench.core.registry import get
from workbench.models.loading import load
from workbench.runs.execution import execute

SHIPPED = get("latent-language").data.default_path()
LANGUAGES = ("english", "french", "german", "chinese")
SMALL = {
    "limit": 14,
    "fit_share": 0.4,
    "shots": 1,
    "draws": 100,
    "random_draws": 2,
    "steer_rows": 4,
    "steer_layers": (1,),
}


class Plain:
    """A Llama of plain Hugging Face in float64."""

    def __init__(self, folder: Path):
        self.hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()

    @torch.no_grad()
    def states(self, ids: list[int]) -> list[torch.Tensor]:
        """[T, width] after every layer."""
        last: list[torch.Tensor] = []
        handle = self.hf.model.norm.register_forward_pre_hook(lambda _m, args: last.append(args[0]))
        out = self.hf(input_ids=torch.tensor([ids]), output_hidden_states=True)
        handle.remove()
        return [x[0] for x in (*out.hidden_states[1:-1], last[0])]

    @torch.no_grad()
    def log_p(self, ids: list[int]) -> np.ndarray:
        """[layers, T, V]."""
        read = [self.hf.lm_head(self.hf.model.norm(x)).log_softmax(-1) for x in self.states(ids)]
        return torch.stack(read).numpy()


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return Plain(tiny_llama)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    config = SMALL | {"languages": LANGUAGES, "shared": "report", "pairs": ("french:german", "french:chinese")}
    return execute("latent-language", model, config=config, out=tmp_path_factory.mktemp("run") / "run")


def spoken(concept: str) -> dict[str, str]:
    words = read_words(Config(languages=LANGUAGES), SHIPPED)
    at = words.concepts.index(concept)
    return {g: words.words[g][at][0] for g in LANGUAGES}


def begins(model, word: str) -> set[int]:
    """All tokens of the vocabulary that read as the beginning of a word, or a space and that."""
    special = model.special_ids
    out = set()
    for i, text in enumerate(model.token_strings(range(len(model.tokenizer)))):
        read = text.removeprefix(" ")
        if i not in special and read and not read.startswith(" ") and word.startswith(read):
            out.add(i)
    return out


def after(model, text: str, word: str) -> list[int]:
    prompt, whole = model.encode(text), model.encode(text + word)
    assert whole[: len(prompt)] == prompt
    return whole[len(prompt) :]


def test_every_log_probability_is_that_of_one_plain_forward_per_candidate(run, model, plain):
    inputs = run.table("inputs").filter(split="measured")
    words, checked, alone = run.table("words"), 0, 0
    assert set(inputs["task"]) == {"translation", "repetition", "cloze"}
    for row in inputs.gather_every(5).iter_rows(named=True):
        assert model.encode(row["text"]) == row["ids"]
        own, null = spoken(row["concept"]), spoken(row["unrelated"])
        sets = {g: begins(model, own[g]) for g in LANGUAGES}
        times = Counter(i for ids in sets.values() for i in ids)
        begun = Counter(after(model, row["text"], word)[0] for word in own.values())
        for g in LANGUAGES:
            tokens = after(model, row["text"], own[g])
            log_p = plain.log_p([*row["ids"], *tokens])
            n = len(row["ids"])
            at = words.filter(row=row["row"], language=g).sort("layer")
            assert at["tokens"][0].to_list() == tokens
            product = sum(log_p[:, n - 1 + k, token] for k, token in enumerate(tokens))
            np.testing.assert_allclose(at["log_probability"].to_numpy(), product, rtol=1e-4, atol=1e-4)
            if begun[tokens[0]] == 1:
                first = log_p[:, n - 1, tokens[0]]
                np.testing.assert_allclose(at["log_p_first"].to_numpy(), first, rtol=1e-4, atol=1e-4)
                alone += 1
            else:
                assert at["log_p_first"].null_count() == at.height
            kept = sorted(i for i in sets[g] if times[i] == 1)
            if kept:
                mass = np.logaddexp.reduce(log_p[:, n - 1, kept], -1)
                np.testing.assert_allclose(at["log_p_set"].to_numpy(), mass, rtol=1e-4, atol=1e-4)
            else:
                assert at["log_p_set"].null_count() == at.height
            other = after(model, row["text"], null[g])
            log_p = plain.log_p([*row["ids"], *other])
            product = sum(log_p[:, n - 1 + k, token] for k, token in enumerate(other))
            np.testing.assert_allclose(at["null_log_probability"].to_numpy(), product, rtol=1e-4, atol=1e-4)
            checked += 1
    assert checked >= 16 and 0 < alone < checked


def test_the_tables_of_layers_are_means_over_the_prompts_of_the_words(run, model, plain):
    inputs, words = run.table("inputs").filter(split="measured"), run.table("words")
    rows = words.join(inputs.select("row", "task", "source", "target"), on="row")
    columns = {"word": "log_probability", "first": "log_p_first", "set": "log_p_set"}
    layers = run.table("layers").filter(pl.col("language").is_in(LANGUAGES))
    for row in layers.gather_every(7).iter_rows(named=True):
        keys = {name: row[name] for name in ("task", "source", "target", "layer", "language")}
        own = rows.filter(**keys)
        both = own.select(columns[row["readout"]], f"null_{columns[row['readout']]}").drop_nulls()
        assert row["probability"] == pytest.approx(own[columns[row["readout"]]].drop_nulls().exp().mean(), rel=1e-4)
        if both.height:
            assert row["null_probability"] == pytest.approx(both.to_series(1).exp().mean(), rel=1e-4)
            difference = both.to_series(0).exp() - both.to_series(1).exp()
            assert row["excess"] == pytest.approx(difference.mean(), rel=1e-3, abs=1e-12)
    some = inputs.filter(task="repetition", target="german")
    entropies = []
    for ids in some["ids"].to_list():
        log_p = plain.log_p(ids)[:, -1]
        entropies.append(-(np.exp(log_p) * log_p).sum(-1))
    told = layers.filter(task="repetition", target="german", readout="word", language="french").sort("layer")
    np.testing.assert_allclose(told["entropy"].to_numpy(), np.mean(entropies, 0), rtol=1e-3)


def test_a_steered_answer_is_that_of_plain_hugging_face_with_the_direction_added(run, model, plain):
    inputs = run.table("inputs")
    row = run.table("steering").row(
        by_predicate=(pl.col("direction") == "language")
        & (pl.col("target") == "chinese")
        & (pl.col("task") == "translation"),
        named=True,
    )
    assert (row["towards"], row["layer"]) == ("english", 1)
    fit = inputs.filter(split="fit", task="translation", source="french")
    means = [
        torch.stack([plain.states(ids)[1][-1] for ids in fit.filter(target=g)["ids"].to_list()]).mean(0)
        for g in ("english", "chinese")
    ]
    direction = means[0] - means[1]
    assert row["norm"] == pytest.approx(float(direction.norm()), rel=1e-4)

    def steered(_module, _args, output):
        states = (output[0] if isinstance(output, tuple) else output).clone()
        states[:, -1] += direction
        return (states, *output[1:]) if isinstance(output, tuple) else states

    effects = []
    asked = inputs.filter(split="measured", task="translation", target="chinese").head(SMALL["steer_rows"])
    for each in asked.iter_rows(named=True):
        own = spoken(each["concept"])
        sets = {g: begins(model, own[g]) for g in LANGUAGES}
        times = Counter(i for ids in sets.values() for i in ids)
        stands = {}
        for g in ("chinese", "english"):
            stands[g] = sorted(i for i in sets[g] if times[i] == 1) or after(model, each["text"], own[g])[:1]
        odds = []
        for hook in (steered, None):
            handle = None if hook is None else plain.hf.model.layers[1].register_forward_hook(hook)
            last = plain.log_p(each["ids"])[-1, -1]
            if handle is not None:
                handle.remove()
            odds.append(np.logaddexp.reduce(last[stands["english"]]) - np.logaddexp.reduce(last[stands["chinese"]]))
        effects.append(odds[0] - odds[1])
    assert row["rows"] == len(effects)
    assert row["log_odds"] == pytest.approx(np.mean(effects), rel=1e-3, abs=1e-4)


def test_no_measured_concept_gives_an_example_or_a_direction(run):
    inputs = run.table("inputs")
    measured, fit = (set(inputs.filter(split=name)["concept"]) for name in ("measured", "fit"))
    assert measured and fit and not measured & fit
    for text, concept in inputs.filter(split="measured", task="translation").select("text", "concept").iter_rows():
        shots = text.split("\n")[:-1]
        assert len(shots) == SMALL["shots"] and not any(
            f'"{spoken(c)["french"]}"' in s for s in shots for c in measured
        )
        assert f'"{spoken(concept)["french"]}"' in text.split("\n")[-1]


def test_the_tokens_of_a_language_belong_to_words_of_no_other(run):
    groups = run.table("groups")
    assert groups["language"].to_list() == list(LANGUAGES)
    together = groups.explode("ids")["ids"].drop_nulls()
    assert len(together) == together.n_unique()


def test_japanese_and_chinese_names_are_nfc_and_every_cell_that_ships_is_filled():
    words = read_words(Config(), SHIPPED)
    assert len(words.concepts) == 100 and words.languages == (*LANGUAGES[:3], "spanish", "chinese", "japanese")
    for g in words.languages:
        assert all(len(own) == 1 and own[0] == unicodedata.normalize("NFC", own[0]) for own in words.words[g])
        assert sum(map(bool, words.clues[g])) == 32
        twice = [w for w, n in Counter(own[0] for own in words.words[g]).items() if n > 1]
        assert not twice, (g, twice)
        for own, clue in zip(words.words[g], words.clues[g]):
            assert own[0].casefold() not in clue.casefold(), (g, own, clue)


def test_the_organism_reads_its_own_cities_and_countries():
    ready = get("latent-language").data.default_path("organism")
    words = read_words(Config(), ready)
    assert words.languages == ("city", "country") and len(set(words.groups)) < len(words.concepts)
    facts = [row for row in read_facts() if row["relation"] == "home"]
    homes = {row["subject"]: row["answer"] for row in facts}
    assert all(homes[c] == own[0] for c, own in zip(words.concepts, words.words["city"]) if c in homes)


def read_facts() -> list[dict]:
    import json

    return [json.loads(line) for line in organisms.data("facts").read_text(encoding="utf-8").splitlines()]
