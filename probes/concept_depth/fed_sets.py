"""The concept sets of a run as they are fed: those that fit the model, their splits, and their texts under each
condition."""

from __future__ import annotations

from collections.abc import Sequence

from probes.concept_depth.chosen_sets import read_sets
from probes.concept_depth.concept_sets import ConceptSet, noisy
from probes.concept_depth.config import Config
from probes.concept_depth.row_groups import NEAR
from probes.concept_depth.set_splits import Split, near_identical_apart, split, tested_and_fitted_on
from probes.concept_depth.written_texts import WrittenTexts, style_in, write_texts
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.long_rows import fitting
from workbench.models.prompt_style import check_style
from workbench.models.text_side import TextSide


def sets_of(model: TextSide, config: Config, context: Context) -> tuple[list[ConceptSet], dict[str, Split]]:
    """The sets without what does not fit the model, and the split of each, by its name. Raises InputError for texts
    beyond the context, for sets that cannot be split, and for a transfer without two sets of two classes."""
    if (style := style_in(config)).template != "raw":
        check_style(model, style)
    sets = [that_fit(model, concept, config, context) for concept in read_sets(config, context.data)]
    pairs = [concept for concept in sets if len(concept.classes) == 2]
    if config.transfer and len(pairs) < 2:
        raise InputError(
            f"There is one set only, '{sets[0].name}', and transfer=true needs two; set transfer=false."
            if len(sets) == 1
            else f"Transfer is between sets of two classes, and {len(pairs)} of {len(sets)} are; set transfer=false."
        )
    return sets, splits_of(sets, config, context)


def conditions_of(config: Config) -> list[tuple[str, str | None, str | None]]:
    """Names of the conditions, each with its noise and its precision: the texts and the model as they are come
    first."""
    noise = "paper" if config.noise is True else config.noise
    found = [("clean", None, None), *([("noise", noise, None)] if noise else [])]
    return found + [("int8 weights" if name == "int8" else name, None, name) for name in config.precision]


def splits_of(sets: Sequence[ConceptSet], config: Config, context: Context) -> dict[str, Split]:
    """The split of every set, by its name."""
    options = {"folds": config.folds, "groups": config.groups}
    splits = {c.name: split(c, config.split, rng=context.rng(f"split {c.name}"), **options) for c in sets}
    for concept in sets:
        if seen := tested_and_fitted_on(concept, splits[concept.name][0]):
            context.warn(
                f"{seen} texts of {concept.name} are tested on though the probe was fitted on the same text: "
                f"it may recognise them; remove the repeated rows."
            )
        if apart := near_identical_apart(concept, splits[concept.name][1]):
            like = "say almost the same" if concept.grouped_by == NEAR else f"have the same {concept.grouped_by}"
            context.warn(
                f"{apart} of the {len(concept)} texts of {concept.name} {like} as another and are split by rows: what "
                f"a probe learns of one misleads it about the other, and accuracies may fall below chance; set "
                f"groups=yes."
            )
    return splits


def that_fit(model: TextSide, concept: ConceptSet, config: Config, context: Context) -> ConceptSet:
    """The set without the texts that are too long for the model, or as it is where they are cut. Raises InputError for
    one that is too long and may not be, and for cutting where the question stands behind the text."""
    if model.context_length is None:
        return concept
    noises = ("aaa ", "bbb ") if config.noise else ("",)
    written = [write_texts(model, [f"{noise}{text}" for text in concept.texts], config) for noise in noises]
    lengths = [max(map(len, same)) for same in zip(*(texts.ids for texts in written))]
    if config.long == "cut" and max(lengths) > model.context_length:
        if written[0].prompts is not None:
            raise InputError(
                f"The chat template of {model.name} goes on behind the texts of '{concept.name}', where long=cut would "
                f"cut it off; use long=skip, or template=raw."
            )
        if concept.template.partition("{text}")[2]:
            raise InputError(
                f"The set '{concept.name}' asks its question behind the text, where long=cut would cut it off; use "
                f"long=skip, or template=plain."
            )
    kept = fitting(
        lengths,
        model.context_length,
        long=config.long,
        context=context,
        where=lambda row: f"The set '{concept.name}', row {row + 1}: the text",
        what=f"texts of {concept.name}",
    )
    return concept if len(kept) == len(concept) else concept.take(kept)


def write(model: TextSide, concept: ConceptSet, noise: str | None, config: Config, context: Context) -> WrittenTexts:
    """Every text as it is fed, with noise or without. Raises InputError for a text without tokens, and for one that
    lacks the token."""
    texts = noisy(concept, noise, rng=context.rng(f"noise {concept.name}")) if noise else concept.texts
    found, token = write_texts(model, texts, config), config.token
    found = WrittenTexts([tokens[: model.context_length] for tokens in found.ids], found.prompts)
    for row, tokens in enumerate(found.ids):
        if not tokens:
            raise InputError(f"The set '{concept.name}', row {row + 1}: the text has no tokens.")
        if isinstance(token, int) and not -len(tokens) <= token < len(tokens):
            raise InputError(
                f"The set '{concept.name}', row {row + 1}: the text has {len(tokens)} tokens, and "
                f"token={token} is beyond them; choose one that every text has."
            )
    return found
