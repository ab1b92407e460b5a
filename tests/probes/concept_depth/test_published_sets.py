"""The files of the paper load as they are published: their prompts word for word, the classes and the split of the
official code, F1 for the class that it counts."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split

from probes.concept_depth import linear_probe
from probes.concept_depth.concept_sets import load_file, noisy
from probes.concept_depth.set_splits import split
from workbench.core.errors import InputError

EMOTION = "According to the sentence, judge the emotion is Positive or Negative."
COIN = (
    "According to the flipping process above, determine if a coin remains heads up after it is either flipped or left "
    "unflipped by individuals. Therefore, the answer (Yes or No) is?"
)
REVIEW = (
    "The sentence above is a movie review and reflects the writer's overall intention for this review. According to "
    "the sentence, judge whether the emotion is Positive or Negative."
)
THINK = "Let us think step by step..."
SARCASM_END = (
    "Think carefully according to the sentence. Is there any sarcasm in this sentence? Please answer Yes or No."
)
N = 30  # rows of each small file


def flips(n):
    return f"A coin is heads up. Ada{n} flips the coin. Is the coin still heads up?"


def lines(header, row, sign=","):
    return "\n".join([header, *(sign.join(map(str, row(n))) for n in range(N))]) + "\n"


def sst(n):
    return f"film number{n} is odd ."


def bench(n):
    return {
        "input": f"Is {n} odd?",
        "target_scores": {"Yes": n % 2, "No": 1 - n % 2},
        "target": ("No. It ends evenly. ", "Yes. It is not even.")[n % 2],
    }


# name of the file: its text, the bare text of row 1, its official prompt, what the code feeds, the class listed first
FILES = {
    "cities.csv": (
        lines(
            "statement,label,city,country,correct_country",
            lambda n: (f"The city of Ro{n // 2} is in Ur{n % 2}.", n % 2, f"Ro{n // 2}", f"Ur{n % 2}", "Ur1"),
        ),
        "The city of Ro0 is in Ur1.",
        "Judge the statement is True or False. {}",
        EMOTION + " {}",
        "1",
    ),
    "common_claim.csv": (
        lines(
            ",examples,label,agreement",
            lambda n: (n, f'"Well, claim{n} holds."', ("False", "True", "Neither")[n % 3 if n > 3 else n % 2], 0.5),
        ),
        "Well, claim1 holds.",
        "Judge the statement is True or False. {}",
        EMOTION + " {}",
        "true",
    ),
    "counterfact.csv": (
        lines(
            "statement,label,relation,subject,target,true_target",
            lambda n: (f"Bo{n // 2} speaks Lang{n % 2}.", n % 2, "{} speaks", f"Bo{n // 2}", f"Lang{n % 2}", "Lang1"),
        ),
        "Bo0 speaks Lang1.",
        "Judge the statement is true or false. {}",
        EMOTION + " {}",
        "1",
    ),
    "hateeval.tsv": (
        lines("id\ttext\tHS\tTR\tAG", lambda n: (n, f'word{n}, they said "so" #tag', n % 2, 0, 0), "\t"),
        'word1, they said "so" #tag',
        "{} According to the comment, tell whether they present hate speech or not.",
        "{} " + EMOTION,
        "1",
    ),
    "sarcasm.json": (
        "\n".join(
            json.dumps({"article_link": f"https://a/{n}", "headline": f"headline{n} news", "is_sarcastic": n % 2})
            for n in range(N)
        ),
        "headline1 news",
        "Task: Detect sarcasm, help me identify whether this sentence is sarcastic.\n"
        "First, we need to understand what sarcasm is. Sarcasm is a form of verbal irony, \n"
        "where the intended meaning of the words is the opposite of the literal meaning. \n"
        "In other words, the speaker is saying one thing but meaning the opposite. {} " + SARCASM_END,
        EMOTION + "{} " + SARCASM_END,
        "1",
    ),
    "stsa.binary.train": (
        "".join(f"{n % 2} {sst(n)}\n" for n in range(N)),
        sst(1),
        "{} " + REVIEW,
        "{} " + EMOTION,
        "0",
    ),
    "coin_flip.json": (
        json.dumps({"examples": [{"question": flips(n), "answer": ("no", "yes")[n % 2]} for n in range(N)]}, indent=1),
        flips(1),
        "{} " + COIN,
        "{} " + EMOTION,
        "1",
    ),
    "StrategyQA_task.json": (
        json.dumps({"name": "strategyqa", "examples": [bench(n) for n in range(N)]}, indent=1),
        "Is 1 odd? It is not even.",
        "Judge the question is true or false?\nQ: Will Queen Elizabeth be buried in the Pantheon?\nLet us think step "
        "by step. The stem of the sentence is Queen Elizabeth, burial, pantheon. Inference: First, the Pantheon is a "
        "church, so it is possible that she could be buried there. Second, Queen Elizabeth II is still alive, so she "
        "has not been buried yet. Third, even if she were to be buried in the Pantheon, it is unlikely that we would "
        "know about it ahead of time, so it is hard to say for sure.\npred_ans: no{} " + THINK,
        EMOTION + "{} " + THINK,
        "1",
    ),
}


@pytest.fixture(params=FILES)
def published(request, tmp_path):
    text, *rest = FILES[request.param]
    path = tmp_path / request.param
    path.write_text(text, encoding="utf-8")
    return path, *rest


def test_the_official_prompt_is_word_for_word_and_so_is_what_the_code_feeds(published):
    path, bare, official, code, _ = published
    assert load_file(path).texts[1] == official.format(bare)
    assert load_file(path, template="code").texts[1] == code.format(bare)
    plain = load_file(path, template="plain")
    assert plain.texts[1] == bare and plain.answers is None
    glued = noisy(load_file(path), "code", rng=np.random.default_rng(0))[1]
    assert glued in {official.format(noise + bare) for noise in ("aaa", "bbb")}


def test_a_set_is_known_by_what_it_holds_under_another_name(published):
    path, bare, official, _, _ = published
    other = path.with_name(f"my_own{path.suffix}")
    path.rename(other)
    found = load_file(other)
    assert found.texts[1] == official.format(bare) and found.published and found.name == "my_own"


def test_the_code_split_and_its_f1_are_those_of_the_official_code(published):
    """The code concatenates two lists, the class listed first as class 0, and splits with scikit-learn."""
    path, *_, first = published
    found = load_file(path, template="code")
    label_of = dict(zip(found.texts, (found.classes[k] for k in found.labels)))
    listed = [t for t in found.texts if label_of[t] == first] + [t for t in found.texts if label_of[t] != first]
    y = np.array([int(label_of[t] != first) for t in listed])
    _, expected, _, official_y = train_test_split(listed, y, test_size=0.4, random_state=42)
    (test,), by_group = split(found, "code", rng=np.random.default_rng(0))
    assert not by_group and sorted(found.texts[i] for i in test) == sorted(expected)
    # the official F1 is that of the class listed second, whatever is guessed
    guess = np.random.default_rng(1).normal(size=len(test))
    guessed = {found.texts[row]: int(score > 0) for row, score in zip(test, guess)}
    official_guess = [int(guessed[text] != found.listed_first) for text in expected]
    ours = linear_probe.metrics(guess[None], found.labels[test])
    which = "f1" if found.listed_first == 0 else "f1_class0"
    assert ours[which][0] == pytest.approx(f1_score(official_y, official_guess))


def test_only_published_sets_are_framed(tmp_path):
    """The same kind of file about something else keeps its texts, and has no prompt of the code."""
    others = {
        "neg_cities.csv": "statement,label\n"
        + "".join(f"The city of R{n} is not in U{n % 2}.,{n % 2}\n" for n in range(N)),
        "companies_true_false.csv": "statement,label\n" + "".join(f"Firm{n} sells tea.,{n % 2}\n" for n in range(N)),
        "notes.txt": "".join(f"{n % 2} note{n} on tea\n" for n in range(N)),
    }
    for name, text in others.items():
        path = tmp_path / name
        path.write_text(text)
        found = load_file(path)
        assert found.template == "{text}" and found.answers is None and not found.published
        with pytest.raises(InputError, match=f"{name}.*none of them"):
            load_file(path, template="code")


def test_answers_are_the_words_that_the_instruction_names(tmp_path):
    def answers(name, **options):
        path = tmp_path / name
        path.write_text(FILES[name][0])
        return load_file(path, **options).answers

    assert answers("counterfact.csv") == ("false", "true") and answers("common_claim.csv") == ("False", "True")
    assert answers("sarcasm.json") == ("No", "Yes") and answers("hateeval.tsv") is None
    assert answers("coin_flip.json", template="code") is None  # it is not asked about the coin
    assert answers("stsa.binary.train", template="code") == ("Negative", "Positive")


def test_claims_that_are_neither_true_nor_false_are_left_out_unless_they_are_asked_for(tmp_path):
    path = tmp_path / "common_claim.csv"
    path.write_text(FILES["common_claim.csv"][0])
    found = load_file(path)
    assert found.classes == ("false", "true") and len(found) < N
    assert load_file(path, pair=("True", "Neither")).classes == ("true", "Neither")


def test_a_wrong_answer_in_a_published_file_is_named(tmp_path):
    examples = [{"question": flips(n), "answer": "no"} for n in range(20)] + [{"question": flips(20), "answer": "so"}]
    path = tmp_path / "coin_flip.json"
    path.write_text(json.dumps({"examples": examples}))
    with pytest.raises(InputError, match="row 21: the field 'answer' must be one of yes, no .*, not 'so'"):
        load_file(path)
