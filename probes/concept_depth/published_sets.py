"""The sets of Jin et al. as they are published: by what a file is known, and what is asked about its texts.

Instructions are word for word those of the official code (`dataset.py`), and so is where they stand. `listed_first` is
the class that its loader returns first: its class 0, on which its split depends. What that code runs (`main.py`) is
another thing: it replaces the instruction of every set by one about movie reviews, `CODE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

CODE = "According to the sentence, judge the emotion is Positive or Negative."
_MOST_ROWS = 0.9  # that must look like those of a published set; a row that is wrong is named, not passed over
_POLARITY = {"0": "Negative", "1": "Positive"}
_YES = {"0": "No", "1": "Yes"}
_EXEMPLAR = (
    "Judge the question is true or false?\n"
    "Q: Will Queen Elizabeth be buried in the Pantheon?\n"
    "Let us think step by step. The stem of the sentence is Queen Elizabeth, burial, pantheon. Inference: First, "
    "the Pantheon is a church, so it is possible that she could be buried there. Second, Queen Elizabeth II is still "
    "alive, so she has not been buried yet. Third, even if she were to be buried in the Pantheon, it is unlikely that "
    "we would know about it ahead of time, so it is hard to say for sure.\n"
    "pred_ans: no"
)
_SARCASM = (
    "Task: Detect sarcasm, help me identify whether this sentence is sarcastic.\n"
    "First, we need to understand what sarcasm is. Sarcasm is a form of verbal irony, \n"
    "where the intended meaning of the words is the opposite of the literal meaning. \n"
    "In other words, the speaker is saying one thing but meaning the opposite. "
)


@dataclass(frozen=True)
class PublishedSet:
    """text, label: the columns of the file (a part of a nested one with a dot); columns: those that it must have;
    looks_like: what the column `text` (or the one before the colon) must match in most rows; instruction: what is
    asked, `before` the text, `after` it, or `around` it, with `ending` last; answers: the word for each label, where
    the instruction names words; listed_first: the label that the official code counts as class 0; labels: how those of
    the file are called here, where they are not 0 and 1; pair: the two that are told apart where there are more;
    evidence: a column that follows the text, without the answer that it begins with."""

    name: str
    text: str
    label: str
    instruction: str
    where: str
    listed_first: str = "1"
    answers: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    looks_like: str = ""
    ending: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    pair: tuple[str, ...] = ()
    evidence: str = ""

    def template(self, instruction: str) -> str:
        """What stands around each text, with {text}."""
        if self.where == "before":
            return f"{instruction} {{text}}"
        if self.where == "after":
            return f"{{text}} {instruction}"
        return f"{instruction}{{text}} {self.ending}"  # the code puts no blank before the text

    def answers_to(self, instruction: str) -> Mapping[str, str]:
        """The word for each label that an instruction asks for."""
        return self.answers if instruction == self.instruction or self.answers == _POLARITY else {}


STSA = PublishedSet(
    "STSA",
    "text",
    "label",
    "The sentence above is a movie review and reflects the writer's overall intention for this review. According to "
    "the sentence, judge whether the emotion is Positive or Negative.",
    "after",
    listed_first="0",
    answers=_POLARITY,
)
IMDB = PublishedSet(
    "IMDb",
    "text",
    "label",
    "According to the movie review, judge whether it is Positive or Negative.",
    "after",
    listed_first="0",
    answers=_POLARITY,
)
PUBLISHED = (
    PublishedSet(
        "StrategyQA",
        "input",
        "target_scores.Yes",
        _EXEMPLAR,
        "around",
        ending="Let us think step by step...",
        answers=_YES,
        columns=("input", "target_scores", "target"),
        looks_like=r"target:^(Yes|No)\.",
        evidence="target",
    ),
    PublishedSet(
        "coinflip",
        "question",
        "answer",
        "According to the flipping process above, determine if a coin remains heads up after it is either flipped or "
        "left unflipped by individuals. Therefore, the answer (Yes or No) is?",
        "after",
        answers=_YES,
        columns=("question", "answer"),
        looks_like=r"question:^A coin is heads up\.",
        labels={"yes": "1", "no": "0"},
    ),
    PublishedSet(
        "counterfact",
        "statement",
        "label",
        "Judge the statement is true or false.",
        "before",
        answers={"0": "false", "1": "true"},
        columns=("statement", "label", "relation", "subject", "target", "true_target"),
    ),
    PublishedSet(
        "cities",
        "statement",
        "label",
        "Judge the statement is True or False.",
        "before",
        answers={"0": "False", "1": "True"},
        columns=("statement", "label"),
        looks_like=r"statement:^The city of .+ is in .+\.$",
    ),
    PublishedSet(
        "common",
        "examples",
        "label",
        "Judge the statement is True or False.",
        "before",
        listed_first="true",
        answers={"false": "False", "true": "True"},
        columns=("examples", "label", "agreement"),
        pair=("false", "true"),
    ),
    PublishedSet(
        "hateeval",
        "text",
        "HS",
        "According to the comment, tell whether they present hate speech or not.",
        "after",
        columns=("text", "HS", "TR", "AG"),
    ),
    PublishedSet(
        "sarcasm",
        "headline",
        "is_sarcastic",
        _SARCASM,
        "around",
        ending="Think carefully according to the sentence. Is there any sarcasm in this sentence? Please answer Yes or "
        "No.",
        answers=_YES,
        columns=("headline", "is_sarcastic"),
    ),
)


def recognised(path: Path, frame: pl.DataFrame) -> PublishedSet | None:
    """Which of the published sets the table of a file is, by its columns and by how its texts look."""
    if path.stem.lower().startswith("imdb") and {"text", "label"} <= set(frame.columns):
        return IMDB
    return next((one for one in PUBLISHED if set(one.columns) <= set(frame.columns) and _looks(one, frame)), None)


def _looks(published: PublishedSet, frame: pl.DataFrame) -> bool:
    import polars as pl

    column, _, pattern = published.looks_like.partition(":")
    if not column:
        return True
    if frame[column].dtype != pl.String:
        return False
    return frame[column].str.strip_chars().str.contains(pattern).fill_null(False).mean() >= _MOST_ROWS
