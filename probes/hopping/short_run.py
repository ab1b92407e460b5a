"""The settings of a short run on a model, from what is known of it before it is loaded."""

from __future__ import annotations

from probes.hopping.config import Config
from probes.hopping.english_questions import FILE
from probes.hopping.questions import read_questions
from probes.hopping.shipped import DESCRIBE
from workbench.core.errors import InputError
from workbench.models.model_outline import Facts

ASKED = 24  # questions of a short run
NEW = 8  # tokens of an answer
DEEP = 8  # layers beyond which a state is described after its own block only


def example(model: Facts) -> dict[str, object]:
    """A short run: few questions of each set; on a model that is no organism also those that it does not know, without
    descriptions where its context does not hold their prompt. Raises InputError where it holds no question."""
    if model.is_organism:
        return {"limit": 240, "items": 24, "shuffles": 10}
    questions = read_questions(Config(), FILE)[:ASKED]
    shortest = min(max(model.lengths(list(question.prompts.values()))) for question in questions) + 1  # BOS
    if not model.fits(shortest + NEW):
        raise InputError(
            f"The context of {model.name} ({model.context} tokens) cannot hold the shortest question that ships with "
            f"an answer of {NEW} tokens ({shortest + NEW} tokens); give shorter questions with --data."
        )
    described = model.fits(model.lengths([DESCRIBE])[0] + 1 + NEW)
    few = {} if not described else {"describe_layers": "same" if model.layers > DEEP else "all"}
    return {
        "limit": ASKED,
        "items": 4,
        "keep": "all",
        "shuffles": 5,
        "max_new_tokens": NEW,
        "describe": "greedy" if described else "off",
        **few,
    }
