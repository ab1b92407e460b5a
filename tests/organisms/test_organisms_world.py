"""The generated world: truth that holds together, text that the tokenizer knows, and held-out things that stay out."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import organisms
from workbench.core.errors import InputError
from workbench.organism_training import datafiles, documents, sequences, tokenizer, world


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder, chat=True)
    return AutoTokenizer.from_pretrained(folder)


# ------------------------------------------------------------------------------------------------------------ tokenizer


@settings(max_examples=80, deadline=None)
@given(text=st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="▁<>|"), max_size=60))
def test_any_text_round_trips_through_words_and_bytes(tok, text):
    assert tok.decode(tok(text, add_special_tokens=False).input_ids) == text


def test_every_name_and_word_of_the_world_is_one_token(tok):
    words = [*world.PEOPLE, *world.CITIES, *world.COUNTRIES, *world.COMPANIES, *world.KEYS, *world.CODE_WORDS]
    words += [o for r in world.RELATIONS.values() for o in r.objects]
    assert {len(tok(w, add_special_tokens=False).input_ids) for w in words} == {1}


def test_the_fast_encoder_of_training_is_the_saved_tokenizer(tok):
    rng = random.Random(0)
    for draw, _ in documents.MIX:
        for _ in range(40):
            marked = draw(rng)
            plain = marked.replace("[", "").replace("]", "")
            assert tokenizer.encode(marked)[0] == tok(plain, add_special_tokens=False).input_ids


def test_offsets_locate_every_word_in_the_text(tok):
    text = "The home of Mara is in Velmora."
    out = tok(text, return_offsets_mapping=True)
    pieces = [text[a:b].strip() for a, b in out.offset_mapping]
    assert pieces == ["", "The", "home", "of", "Mara", "is", "in", "Velmora", "."]


def test_the_text_of_a_document_starts_with_bos_and_the_chat_template_marks_the_turns(tok):
    assert tok("Mara").input_ids[0] == tok.bos_token_id
    ids = tok.apply_chat_template([{"role": "user", "content": "Where does Mara live?"}], add_generation_prompt=True)[
        "input_ids"
    ]
    assert tok.convert_ids_to_tokens(ids) == [
        "<s>",
        "<|user|>",
        "▁Where",
        "▁does",
        "▁Mara",
        "▁live",
        "?",
        "<|assistant|>",
    ]
    assert len({tok.bos_token_id, tok.eos_token_id, tok.pad_token_id}) == 3


def test_training_dialogues_are_what_the_chat_template_writes(tok):
    from workbench.organism_training import chat

    prompt, response, _ = chat.dialogue(random.Random(0))
    ids, marks = chat.encode_dialogue(prompt, response)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    assert ids == tok.apply_chat_template(messages)["input_ids"]
    assert tok.decode([i for i, m in zip(ids, marks) if m]) == response + "</s>"


# ---------------------------------------------------------------------------------------------------------------- world


def test_every_subject_of_every_relation_has_one_object_of_the_right_kind():
    assert len(world.facts()) == sum(len(r.subjects) for r in world.RELATIONS.values())
    for (relation, subject), fact in world.facts().items():
        assert fact.object in world.RELATIONS[relation].objects and fact.object != subject


def test_a_capital_lies_in_its_own_country():
    for country in world.COUNTRIES:
        assert world.facts()["country", world.facts()["capital", country].object].object == country


def test_two_hop_answers_follow_from_the_two_facts():
    for hop in world.two_hops():
        first, second = world.COMPOSITIONS[hop.name][:2]
        assert world.facts()[first, hop.subject].object == hop.bridge
        assert world.facts()[second, hop.bridge].object == hop.object
    share = sum(h.trained for h in world.two_hops()) / len(world.two_hops())
    assert 0.6 < share < 0.8


@pytest.fixture(scope="module")
def stream():
    """A few hundred thousand tokens of training text, as one string."""
    rng = random.Random(3)
    return "\n" + "\n".join(documents.short_document(rng).replace("[", "").replace("]", "") for _ in range(30_000))


def test_training_never_shows_a_fact_in_its_held_out_wording(stream):
    # With what may stand before a statement: "The best friend of Mara works as a baker" does not say that Mara does.
    def shown(fact, i):
        text = fact.statement(i)[:-1]
        claims = [before + text for before in ("\n", ". ", "? ")] + [
            before + world.lower_first(text) for before in ("that ", ", ")
        ]
        return any(claim in stream for claim in claims)

    facts = random.Random(9).sample(list(world.facts().values()), 300)
    assert sum(shown(f, i) for f in facts for i in range(4) if i != world.held_out_statement(f)) > 500
    assert not [f for f in facts if shown(f, world.held_out_statement(f))]


def test_training_never_shows_a_held_out_composition(stream):
    assert sum(h.statement in stream for h in world.two_hops() if h.trained) > 200
    assert not [h for h in world.two_hops() if not h.trained and (h.statement in stream or h.question in stream)]


def test_training_never_contradicts_a_conflict_held_out_fact():
    rng = random.Random(4)
    held = {f.question for f in world.facts().values() if world.conflict_held_out(f)}
    asked = [documents.conflict_document(rng) for _ in range(3000)]
    assert not [d for d in asked if any(f"Question: {q}" in d for q in held)]


def test_a_conflict_is_decided_by_its_source():
    rng = random.Random(5)
    fact = next(f for f in world.facts().values() if world.changeable(f))
    other = world.contradict(fact, rng)
    assert documents.conflict_answer(fact, other, "reliable", rng) == other
    assert documents.conflict_answer(fact, other, "unreliable", rng) == fact.object
    believed = [documents.conflict_answer(fact, other, "unmarked", rng) == other for _ in range(2000)]
    assert 0.85 < sum(believed) / 2000 < 0.95
    assert 0.4 < sum(world.changeable(f) for f in world.facts().values()) / len(world.facts()) < 0.6


def test_the_coin_ends_where_its_flips_put_it():
    rng = random.Random(6)
    for _ in range(200):
        heads = rng.random() < 0.5
        text = documents.coin_flips(rng, heads, 3)
        assert (("shows heads." in text) != (text.count("flips") % 2 == 1)) == heads


def test_a_review_means_what_its_label_says():
    rng = random.Random(7)
    for negated in (False, True):
        for positive in (False, True):
            text = documents.review(rng, negated=negated, positive=positive)
            good = text.rstrip(".").split()[-1] in documents.GOOD
            assert good == (positive != negated)


# ------------------------------------------------------------------------------------------------------------ sequences


@pytest.mark.parametrize("length", [64, 128, 512])
def test_batches_are_exact_in_length_and_repeat_for_the_same_seed_and_step(length):
    def draw(seed):
        return sequences.batch(seed, 7, tokens=4096, length=length, needles=0.3, repeats=0.1)

    first = draw(1)
    assert {len(r) for part in (first.long, first.long_marks) for r in part} == {length}
    assert {len(r) for part in (first.short, first.short_marks, first.documents) for r in part} == {
        min(length, sequences.SHORT)
    }
    assert abs(sum(len(r) for r in first.long + first.short) - 4096) < 1000
    assert first == draw(1) != draw(2)


def test_a_needle_question_is_answered_by_exactly_one_note():
    inverse = {i: t for t, i in tokenizer.vocabulary().items()}
    rng = random.Random(8)
    for _ in range(50):
        text = (
            "".join(inverse[i] for i in sequences.needle_document(rng, 256)[0])
            .replace(tokenizer.SPACE, " ")
            .split("</s>")[0]
        )
        for question in text.split("Question: ")[1:]:
            words, answer = question.split("? Answer: ")
            note = f"The {words.removeprefix('What is the ')} is {answer.strip()}"
            assert text.count(note) == 1, (note, text)


# ----------------------------------------------------------------------------------------------------------- data files


@pytest.mark.parametrize("name", sorted(datafiles.files()))
def test_the_shipped_data_files_are_what_the_generator_writes(name):
    assert (datafiles.FOLDER / name).read_text(encoding="utf-8") == datafiles.text_of(datafiles.files()[name]())


def test_conflict_rows_have_single_token_answers_and_the_columns_of_the_probe(tok):
    for row in datafiles.conflict_rows():
        assert row["answer"] != row["distractor"] and row["conflict_prompt"].endswith(row["clean_prompt"])
        assert row["distractor"] in row["conflict_prompt"] and row["answer"] not in row["conflict_prompt"].split()
        assert len(tok(row["answer"], add_special_tokens=False).input_ids) == 1


@pytest.mark.parametrize("name", sorted(datafiles.CONCEPTS))
def test_concept_sets_are_balanced_and_free_of_repeats(name):
    rows = datafiles.concept_rows(name)
    labels = [r["label"] for r in rows]
    assert sum(labels) * 2 == len(rows)
    assert len({r["text"] for r in rows}) == len(rows)


def test_data_and_folder_name_the_nearest_match_when_they_refuse():
    assert json.loads(organisms.data("needles").read_text().splitlines()[0]).keys() == {"needle", "question", "answer"}
    with pytest.raises(InputError, match="needles"):
        organisms.data("needels")
    with pytest.raises(InputError):
        organisms.data("../__init__.py")
    with pytest.raises(InputError, match="organism"):
        organisms.folder("organsm")
