"""A head is named for a score only where the score is above its control: hand-built circuits whose heads are known, the
organism, models that have no such head, and noise."""

from __future__ import annotations

import copy

import numpy as np
import polars as pl
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.support import real_tokenizers
from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.explorer import beside_control, head_sets, opened_model, readings, repeated_words
from workbench.explorer.opened_model import Opened
from workbench.models.loading import load, wrap
from workbench.stats.clusters import cluster_mean


@pytest.fixture(scope="module")
def story(tiny_llama):
    return Opened(load(str(tiny_llama)))


def named(opened: Opened, **how) -> dict[str, list[tuple[int, int]]]:
    found = readings.head_scores(opened, readings.repeated_tokens(opened, **how))
    return {score: sorted(head_sets.top_heads(found, score, 999)) for score in readings.CONTROLS}


@pytest.mark.parametrize(
    ("circuit", "truth"),
    [
        (
            "circuit-copy-gqa",  # 1.3 copies every other token; 0.0 and 0.2 are twins; 0.1 and 1.0 rest on BOS
            {
                "induction": [(1, 1), (1, 3)],
                "previous_token": [(0, 0), (0, 2)],
                "duplicate_token": [(1, 2)],
                "first_token": [(0, 1), (1, 0), (1, 3)],
                "copying": [(1, 1)],
            },
        ),
        (
            "circuit-copy",  # absolute positions, no BOS
            {
                "induction": [(1, 0), (1, 3)],
                "previous_token": [(0, 0), (0, 1)],
                "duplicate_token": [(1, 2)],
                "copying": [(1, 0)],
            },
        ),
    ],
)
def test_the_heads_of_a_circuit_are_found_exactly(_circuits, circuit, truth):
    found = named(Opened(load(circuit)))
    assert {score: found[score] for score in truth} == truth


def test_the_copy_heads_of_the_organism_and_its_local_heads_are_found():
    found = named(Opened(load("organism")))
    assert found["induction"] == [(1, 0), (1, 1)] == found["copying"]
    assert set(found["previous_token"]) == {(0, 0), (0, 1), (1, 4), (1, 5)}  # those that began as local heads
    assert found["duplicate_token"] == []


@pytest.mark.shared_data
def test_a_model_without_an_induction_head_has_none(shared):
    opened = Opened(load(str(shared("models/stories260k"))))
    found = readings.head_scores(opened, readings.repeated_tokens(opened))
    for score in ("induction", "duplicate_token", "copying"):
        assert head_sets.top_heads(found, score, 3) == []
    said = head_sets.none_because(found, "induction")
    assert said == (
        "None: no head's induction is above its control by 0.1 or more (n = 20 sequences, 5% false discovery rate over "
        "40 heads)."
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_random_heads_are_named_for_nothing_that_needs_reading(name):
    for seed in range(3):
        found = named(Opened(wrap(build(name, seed=seed), None, name=name)))
        assert found["induction"] == found["duplicate_token"] == []


def test_a_head_that_looks_so_many_positions_back_is_no_induction_head():
    """Absolute positions and no content: on sequences of one length such a head scores as induction does."""
    hf, period = build("gpt2"), 8
    angle = 2 * np.pi / 16 * torch.outer(torch.arange(64), torch.tensor([1, 2, 3, 5]))
    place = torch.cat([angle.cos(), angle.sin()], dim=1)  # [positions, 8], turned by the query
    back = 2 * np.pi / 16 * (period - 1) * torch.tensor([1, 2, 3, 5])
    turn = torch.cat(
        [
            torch.cat([torch.diag(back.cos()), torch.diag(-back.sin())], 1),
            torch.cat([torch.diag(back.sin()), torch.diag(back.cos())], 1),
        ]
    )
    with torch.no_grad():
        hf.transformer.wte.weight.zero_()
        hf.transformer.wpe.weight.zero_()
        hf.transformer.wpe.weight[:, :16] = torch.cat([place, -place], dim=1)
        look = hf.transformer.h[0].attn.c_attn
        look.weight.zero_()
        look.bias.zero_()
        look.weight[:8, :8], look.weight[:8, 32:40] = 10 * turn, torch.eye(8)
    opened = Opened(wrap(hf, None, name="positions"))
    rows = [row for row in readings.repeated_tokens(opened, sequences=60) if len(row) == 2 * period]
    found = readings.head_scores(opened, rows)
    assert found["induction"][0] > 0.9 and found["induction_n"].unique().to_list() == [len(rows)]
    assert found["induction_control"][0] == pytest.approx(found["induction"][0], abs=1e-5)
    assert head_sets.top_heads(found, "induction", 1) == []


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_controls_are_the_attention_that_the_plain_model_pays_in_the_shuffled_row(name):
    opened = Opened(wrap(build(name), None, name=name))
    rows = [[5, 9, 17, 30, 41, 5, 9, 17, 30, 41], [7, 8, 9, 10, 11, 12, 7, 8, 9, 10, 11, 12]]
    found = readings.head_scores(opened, rows)
    twins = [repeated_words.shuffled(row, first=0, seed=i) for i, row in enumerate(rows)]
    hf = copy.deepcopy(opened.model.hf).double()
    hf.set_attn_implementation("eager")

    @torch.no_grad()
    def attention(ids):
        return torch.stack(hf(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False).attentions)[:, 0]

    for layer, head in opened.model.heads():
        mine = found.filter((pl.col("layer") == layer) & (pl.col("head") == head)).row(0, named=True)
        slow = {score: [] for score in ("induction", "duplicate_token", "previous_token", "first_token")}
        for row, twin in zip(rows, twins):
            half, there, here = len(row) // 2, attention(twin)[layer, head], attention(row)[layer, head]
            second = range(half, 2 * half)
            slow["induction"].append(np.mean([float(there[i, i - half + 1]) for i in second]))
            slow["duplicate_token"].append(np.mean([float(there[i, i - half]) for i in second]))
            slow["previous_token"].append(np.mean([float(here[i, i - 2]) for i in range(2, 2 * half)]))
            slow["first_token"].append(np.mean([float(here[i, 1]) for i in range(2, 2 * half)]))
        for score, each in slow.items():
            assert mine[f"{score}_control"] == pytest.approx(np.mean(each), abs=2e-6)
            assert mine[f"{score}_difference"] == pytest.approx(mine[score] - np.mean(each), abs=4e-6)
            assert not mine[f"{score}_above"] and mine[f"{score}_low"] is None  # two sequences


def test_the_control_of_copying_is_copying_of_words_that_are_not_there(story):
    ids = list(opened_model.encode(story, "Once upon a time there was a big dog"))
    found = readings.head_scores(story, [ids])
    others = repeated_words.unsaid(ids, readings.likely_words(story), seed=0)
    assert not set(others) & set(ids) and len(set(others)) == len(set(ids))
    reading = readings.read(story, ids)
    hf = story.model.hf
    for layer, head in [(0, 1), (4, 7)]:
        weights = readings.pattern(story, ids, layer, head)
        span = slice(head * story.model.d_head, (head + 1) * story.model.d_head)
        with torch.no_grad():
            wrote = reading.z[layer].flatten(1)[:, span] @ hf.model.layers[layer].self_attn.o_proj.weight.T[span]
            final, step = reading.stream[-1], 1e-2
            moved = (hf.model.norm(final + step * wrote) - hf.model.norm(final - step * wrote)) / (2 * step)
            slope = moved @ hf.lm_head.weight.T
        slope = slope - slope.mean(-1, keepdim=True)
        T = len(ids)
        expected = [sum(weights[i, j] * float(slope[i, others[j]]) for j in range(1, T)) for i in range(1, T)]
        mine = found.filter((pl.col("layer") == layer) & (pl.col("head") == head))
        assert mine["copying_control"].item() == pytest.approx(np.mean(expected), abs=2e-3)


@pytest.mark.parametrize("period", [4, 5, 8, 32])
def test_a_shuffled_row_has_the_same_tokens_and_none_follows_what_it_followed(period):
    for seed in range(30):
        half = np.random.default_rng(seed).choice(500, period, replace=False).tolist()
        row = [1000, *half, *half]
        twin = repeated_words.shuffled(row, first=1, seed=seed)
        assert twin[: period + 1] == row[: period + 1] and sorted(twin) == sorted(row)
        assert all(a != b for a, b in zip(twin[period + 1 :], half))
        assert not set(zip(twin[period:], twin[period + 1 :])) & set(zip(row, row[1:]))


def test_a_text_that_cannot_be_shuffled_has_no_control_and_names_no_head(story):
    ids = list(opened_model.encode(story, "the dog the cat"))
    assert len(set(ids)) == len(ids) - 1  # one token is said twice
    found = readings.head_scores(story, [ids])
    assert found["induction"].null_count() == 0 and found["induction_control"].null_count() == found.height
    assert found["induction_n"].max() == 0 and head_sets.top_heads(found, "induction", 1) == []
    assert "there are 0" in head_sets.none_because(found, "induction")


def test_scores_of_noise_name_as_few_heads_as_promised_and_intervals_are_the_house_ones(monkeypatch):
    monkeypatch.setitem(beside_control.LEAST, "copying", 0.0)
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(300):
        noise = rng.normal(size=(20, 4, 8)) + rng.normal(size=(20, 1, 1))
        found = beside_control.columns({"copying": noise}, {"copying": np.zeros_like(noise)})
        wrong += bool(found["copying_above"].any())
    assert wrong / 300 < 0.08  # nothing is there, so any head is a false discovery: 5 % of tables, two-sided
    one = cluster_mean(noise[:, 1, 2], np.arange(20))
    assert found["copying_low"][10] == pytest.approx(one.low) and found["copying_high"][10] == pytest.approx(one.high)


def test_an_interval_at_0_or_1_has_a_width_and_below_five_sequences_there_is_none():
    ones, zeros = np.ones((20, 1, 1)), np.zeros((20, 1, 1))
    found = beside_control.columns({"induction": ones}, {"induction": zeros})
    assert 0.6 < found["induction_low"][0] < 0.9 and found["induction_high"][0] == 1.0
    assert found["induction_above"][0]
    few = beside_control.columns({"induction": ones[:4]}, {"induction": zeros[:4]})
    assert few["induction_low"][0] is None and not few["induction_above"][0] and few["induction_n"][0] == 4


# ---- words


def test_words_are_read_as_words_and_are_no_bytes_and_no_specials(story):
    pieces = [story.model.tokenizer.convert_ids_to_tokens(i) for i in repeated_words.words(story.model)]
    assert len(pieces) >= repeated_words.ENOUGH and all(piece.startswith("▁") for piece in pieces)
    assert all(piece[1:].isalpha() for piece in pieces)
    whole = set(story.model.tokenizer.get_vocab()) - set(pieces)
    assert {"<s>", "<0x41>", "."} <= whole


def test_of_a_byte_tokenizer_nothing_but_whole_characters_is_drawn(tmp_path):
    opened = Opened(load(str(real_tokenizers.save(tmp_path / "m", real_tokenizers.byte_level()))))
    known = readings.likely_words(opened)
    texts = [opened.model.decode([i]) for i in known]
    assert len(known) >= 8 and not any("�" in text or not text.strip() for text in texts)
    rows = readings.repeated_tokens(opened)
    assert not opened.model.prepends_bos and all(row[: len(row) // 2] == row[len(row) // 2 :] for row in rows)
    assert len(rows) == repeated_words.SEQUENCES and {len(row) for row in rows} == {16, 24, 32, 48, 64}


def test_likely_words_are_those_that_the_model_expects_in_the_reference_texts(story, monkeypatch):
    monkeypatch.setattr(readings, "LIKELY", 20)
    opened = Opened(story.model)
    found = readings.likely_words(opened)
    known = repeated_words.words(story.model)
    with torch.no_grad():
        chance = [
            story.model.hf(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
            for ids in readings.reference(opened)[: readings.TEXTS]
        ]
    chance = torch.cat(chance).mean(0)
    assert found == sorted(sorted(known, key=lambda i: -chance[i])[:20])


def tiny_vocabulary(words: list[str], context: int = 64) -> Opened:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    hf = build("gpt2", vocab_size=len(words), n_positions=context, bos_token_id=None, eos_token_id=None)
    return Opened(wrap(hf, PreTrainedTokenizerFast(tokenizer_object=made), name="tiny"))


def test_a_tiny_vocabulary_is_said_twice_as_long_as_it_fits_or_refused_in_a_sentence():
    opened = tiny_vocabulary([f"w{i}" for i in range(10)])
    rows = readings.repeated_tokens(opened)
    assert len(rows) == 20 and {len(row) for row in rows} == {10}  # half of the words are left unsaid
    found = readings.head_scores(opened, rows)
    assert found["copying_n"].max() == 20 and head_sets.top_heads(found, "induction", 1) == []
    with pytest.raises(InputError, match=r"4 different ones, said twice, are needed, and its tokenizer has 3 "):
        readings.repeated_tokens(tiny_vocabulary(["A", "B", "C"]))
    short = tiny_vocabulary([f"w{i}" for i in range(90)], context=11)
    assert {len(row) for row in readings.repeated_tokens(short)} == {10}


# ---- who is named


def test_the_top_heads_of_a_score_are_those_above_the_control_and_none_is_said_in_a_sentence():
    frame = pl.DataFrame({"layer": [0, 0, 1], "head": [0, 1, 0], "x": [0.9, 0.5, 0.7]})
    frame = frame.with_columns(
        induction=pl.col("x"),
        induction_control=pl.lit(0.1),
        induction_difference=pl.col("x") - 0.1,
        induction_above=pl.Series([False, True, True]),
        induction_n=pl.lit(20),
    )
    assert head_sets.top_heads(frame, "x", 2) == [(0, 0), (1, 0)]  # has no control
    assert head_sets.top_heads(frame, "induction", 3) == [(1, 0), (0, 1)]
    assert head_sets.none_because(frame, "induction") is None
    said = beside_control.in_words(frame, "induction")
    assert said.endswith("at most 0.1 expected to be false): 1.0, 0.1.") and "n = 20 sequences" in said
    none = frame.with_columns(induction_above=pl.lit(False))
    assert head_sets.top_heads(none, "induction", 3) == []
    assert head_sets.none_because(none, "induction").startswith("None: no head's induction is above its control")
    assert head_sets.none_because(frame.with_columns(x=pl.lit(None)), "x") == (
        "None: the column 'x' has no value for any head."
    )
