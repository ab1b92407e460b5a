"""Questions as they are fed: token ids, and the positions that are looked into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.hopping.config import WORD, Config
from probes.hopping.questions import TwoHopQuestion, check_aliases, phrase_end, read_questions, relation_ends
from workbench.core.context import Context
from workbench.core.errors import InputError

if TYPE_CHECKING:
    from workbench.models.text_side import TextSide

# Prompts end in the middle of a sentence: a chat model is asked to go on where they end.
TURN = "Continue this text. Reply with its next words only.\n\n{prompt}"


@dataclass(frozen=True, eq=False)
class FedQuestion:
    """A question as it is fed. `ids`: prompt by name -> token ids; `t1`: the position of the last token of its first
    hop in the two-hop prompt, `r1`, `r2`: of the words of its relations; None where that is not known."""

    question: TwoHopQuestion
    ids: dict[str, list[int]]
    t1: int | None
    r1: int | None = None
    r2: int | None = None

    @property
    def prompt(self) -> list[int]:
        return self.ids["two_hop"]

    @property
    def t2(self) -> int:
        return len(self.prompt) - 1

    def position(self, name: str) -> int | None:
        """The position called t1, t2, r1 or r2."""
        return {"t1": self.t1, "t2": self.t2, "r1": self.r1, "r2": self.r2}[name]


def ask(model: TextSide, config: Config, context: Context) -> list[FedQuestion]:
    """The questions of the run as this model is fed them. Raises InputError for none that fits its context."""
    questions = read_questions(config, context.data, context.read_as)
    if 0 < config.limit < len(questions):
        drawn = context.rng("limit").permutation(len(questions))[: config.limit]
        questions = [questions[i] for i in sorted(drawn.tolist())]
        context.rows_used = len(questions)
    found, long = [], 0
    for question in questions:
        context.check()
        one = _asked(model, config, question)
        if any(model.too_long(len(ids) + config.max_new_tokens) for ids in one.ids.values()):
            long += 1
        else:
            found.append(one)
    if not found:
        raise InputError(f"{context.data}: no question fits the context of {model.name} ({model.context_length}).")
    if long:
        context.counters["rows_skipped_too_long"] = long
        context.warn(f"{long} questions were left out: they do not fit the context of {model.name}.")
    _say(found, context)
    return found


def _say(found: Sequence[FedQuestion], context: Context) -> None:
    """Warn of what the file leaves open."""
    unplaced = sum(one.t1 is None for one in found)
    if unplaced:
        context.warn(
            f"Of {unplaced} of {len(found)} questions it is not known where the first hop ends (no e1 with templates, "
            f"no hop1, no phrase): they have no position t1, and no knock-out."
        )
    unasked = sum(not {"hop1", "hop2"} <= set(one.ids) for one in found)
    if unasked:
        context.warn(
            f"{unasked} of {len(found)} questions come without the prompts of their single hops, so whether the model "
            f"knows these is not asked; they count as known."
        )
    shared = check_aliases([one.question for one in found])
    if shared:
        context.warn(
            f"{shared} of {len(found)} questions have an answer whose name is a part of the bridge's, so that naming "
            f"the bridge counts as answering."
        )


def _asked(model: TextSide, config: Config, question: TwoHopQuestion) -> FedQuestion:
    from workbench.models.prompt_style import style_of, write_prompt

    style, ids = style_of(config), {}
    for name, text in question.prompts.items():
        ids[name] = write_prompt(model, {"prompt": text}, style=style, turn=TURN).ids
    ends = {"t1": phrase_end(question), **relation_ends(question)}
    return FedQuestion(question, ids, **_tokens_before(model, config, question, ends))


def _tokens_before(
    model: TextSide, config: Config, question: TwoHopQuestion, ends: dict[str, int | None]
) -> dict[str, int | None]:
    """The positions, in the two-hop prompt as it is fed, of the tokens that hold the last character before each of
    `ends`. Raises InputError where tokens and text do not fit each other."""
    from workbench.models.prompt_style import style_of, write_prompt
    from workbench.models.prompt_templates import chat_ids_with_offsets, raw_ids_with_offsets

    if all(end is None for end in ends.values()):
        return dict.fromkeys(ends)
    written = write_prompt(model, {"prompt": question.prompt}, style=style_of(config), turn=TURN)
    ids, offsets = (chat_ids_with_offsets if written.way == "chat" else raw_ids_with_offsets)(model, written.text)
    start, places = written.spans["prompt"][0], {}  # the prompt has no white space at its ends: nothing was cut off
    for name, end in ends.items():
        found = [k for k, (a, b) in enumerate(offsets) if end is not None and a <= start + end - 1 < b]
        if end is not None and (ids != written.ids or not found):
            raise InputError(
                f"The tokenizer of {model.name} cannot say which token ends '{question.prompt[:end]}' in "
                f"'{question.prompt}'."
            )
        places[name] = found[-1] if found else None
    return places


def describing(model: TextSide, text: str) -> list[int]:
    """The token ids of a describing prompt, whose last one is the word that a state takes the place of. Raises
    InputError where that word is no token of its own."""
    from workbench.models.prompt_templates import raw_ids_with_offsets

    text = text.rstrip()
    ids, offsets = raw_ids_with_offsets(model, text)
    start = offsets[-1][0] if offsets else 0
    if text[start:].strip() != WORD or text.split()[-1] != WORD:
        raise InputError(
            f"The describing prompt must end with the word {WORD} as one token; {model.name} ends it with "
            f"'{text[start:]}'; give another describe_prompt."
        )
    return ids
