"""The Explorer from a notebook: one model, one prompt, and the same panels as on the screen.

from workbench import explore

view = explore("organism", "…", target=" word")
table, figure = view.lens(colour="entropy")
table, figure = view.switched(heads=[(1, 0)]).waterfall()
table, figure = view.patch_map("another prompt of what would be said", kind="heads")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl

from workbench.core.errors import InputError
from workbench.explorer import differences, drawn, lens_maps, patch_maps
from workbench.explorer.continuation import MOST, Continuation
from workbench.explorer.differences import difference_figure
from workbench.explorer.head_score_passes import SCORES
from workbench.explorer.opened_model import Head, Opened, encode, open_model
from workbench.explorer.readings import Reading, direct_effects, head_scores, pattern, read
from workbench.explorer.steps import read_steps, steps_figure
from workbench.explorer.sub_blocks import sub_blocks
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target, target_of
from workbench.explorer.waterfall import waterfall
from workbench.figures.heads import head_map
from workbench.models.model import Model
from workbench.models.precision import AUTOMATIC

if TYPE_CHECKING:
    import plotly.graph_objects as go

Panel = tuple[pl.DataFrame, "go.Figure"]


@dataclass(frozen=True, eq=False)
class Exploration:
    """A prompt in a model, a target that stays the same whatever is switched, and what is switched. Every panel is
    (table, figure)."""

    opened: Opened
    ids: tuple[int, ...]
    target: Target
    switches: Switches = Switches()

    def switched(
        self,
        *,
        heads: Iterable[Head] = (),
        mlps: Iterable[int] = (),
        how: str = "zero",
        donor: str | Sequence[int] = (),
    ) -> Exploration:
        """The same with these heads and MLPs switched instead, by zero, mean, uniform or patch (from `donor`)."""
        theirs = () if not donor else self._ids(donor)
        return replace(self, switches=Switches(tuple(sorted(heads)), how, theirs, tuple(sorted(mlps))))

    def lens(self, *, of: str = "stream", colour: str = "probability", k: int = 5) -> Panel:
        """The logit lens over layers and tokens (`lens_map`)."""
        parts = None if of == "stream" else sub_blocks(self.opened, self.ids, None, self.switches)
        table = lens_maps.lens_map(self.opened, self.reading, of=of, parts=parts, target=self.target, k=k)
        return table, drawn.lens_figure(table, self.tokens, colour=colour, said=self.said)

    def waterfall(self, *, position: int = -1, heads: int = 5) -> Panel:
        """The parts of the target's logit at one token; in the figure the `heads` largest heads by themselves."""
        found = waterfall(self.opened, self.ids, self.target, position=position, switches=self.switches)
        return found.parts, drawn.waterfall_figure(
            found, said=self.target.tokens_in_words(self.opened.model), heads=heads
        )

    def direct_effects(self, *, position: int = -1) -> Panel:
        """Every head's direct effect on the target at one token."""
        table = direct_effects(self.opened, self.reading, self.target, position)
        return table, head_map(table, value="direct_effect", label=f"direct effect on {self.said}", diverging=True)

    def patch_map(
        self, donor: str | Sequence[int], *, kind: str = "resid_pre", alignment: Sequence[int] | None = None
    ) -> Panel:
        """The target with one activation at a time taken from another prompt, by layer and token, or `kind="heads"`."""
        found = patch_maps.patch_map(
            self.opened, self.ids, self._ids(donor), self.target, kind=kind, alignment=alignment
        )
        return found.cells, drawn.patch_figure(found, self.tokens, kind=kind, said=self.said)

    def paths(self, donor: str | Sequence[int], receiver: Head, *, then: str = "total") -> Panel:
        """What each earlier head says to the query, key and value of one head, where it says what it says on
        another prompt."""
        table = patch_maps.paths_into(self.opened, self.ids, self._ids(donor), receiver, self.target, then=then)
        return table, drawn.paths_figure(table, receiver, said=self.said)

    def steps(self, *, most: int = 24, temperature: float = 0.0, seed: int = 0, k: int = 8) -> Panel:
        """Up to `most` (64 at most) tokens that follow, the likeliest or those that a seed draws at a temperature, and
        what the model computed at each (`read_steps`)."""
        if not 1 <= most <= MOST:
            raise InputError(f"A continuation has 1 to {MOST} tokens, not {most}.")
        text = Continuation(self.opened, self.ids, self.switches, temperature, seed)
        text.grow(most)
        table = read_steps(self.opened, self.ids, text.written, self.target, self.switches, k=k).table
        return table, steps_figure(table, said=self.said)

    def difference(self, other: Exploration, *, of: str = "lens", head: Head | None = None) -> Panel:
        """Another exploration less this one: of the "lens" (the target by layer and token), of every head's
        "direct_effects" or a score of heads by its name ("induction"), of a head's "pattern", or of "next_tokens".

        Raises InputError for an unknown `of`, a pattern without a head, and panels that do not fit on each other."""
        here, there = self.opened, other.opened
        where = differences.aligned(here, self.ids, there, other.ids)
        goal = differences.shared_target(self.target, here, there)
        if of == "lens":
            sides = (here, self.reading, self.target), (there, other.reading, goal)
            table = differences.lenses_apart(*sides, where)
            return table, difference_figure(table, "layer", "position", label=self.said, names=self.tokens)
        if of == "next_tokens":
            table = differences.next_tokens_apart((here, self.reading), (there, other.reading))
            return table, differences.next_tokens_figure(table)
        if of == "pattern":
            if head is None:
                raise InputError("The pattern of which head? Name one: head=(layer, head).")
            mine, theirs = (pattern(side.opened, side.ids, *head, side.switches) for side in (self, other))
            table = differences.patterns_apart(mine, theirs, where)
            label = f"attention of head {head[0]}.{head[1]}"
            return table, difference_figure(table, "query", "key", label=label, names=self.tokens)
        if of == "direct_effects":
            mine, theirs = (
                direct_effects(side.opened, side.reading, goal_there, -1)
                for side, goal_there in ((self, self.target), (other, goal))
            )
            table = differences.heads_apart(mine, theirs, "direct_effect")
            return table, difference_figure(table, "layer", "head", label=f"direct effect on {self.said}")
        if of not in SCORES:
            known = ["lens", "next_tokens", "pattern", "direct_effects", *SCORES]
            raise InputError(f"There is no difference of '{of}'; choose {', '.join(known)}.")
        mine, theirs = (head_scores(side.opened, [side.ids]) for side in (self, other))
        table = differences.heads_apart(mine, theirs, of)
        return table, difference_figure(table, "layer", "head", label=of.replace("_", " "))

    @cached_property
    def reading(self) -> Reading:
        """The pass over the prompt, with the switches."""
        return read(self.opened, self.ids, self.switches)

    @property
    def tokens(self) -> list[str]:
        """The tokens as they read."""
        model = self.opened.model
        return [str(i) for i in self.ids] if model.tokenizer is None else model.token_strings(self.ids)

    @property
    def said(self) -> str:
        """The target in words."""
        return self.target.in_words(self.opened.model)

    def _ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        return encode(self.opened, prompt) if isinstance(prompt, str) else tuple(prompt)


def explore(
    model: str | Model | Opened,
    prompt: str,
    *,
    target: str | int | None = None,
    other: str | int | None = None,
    dtype: str | None = None,
) -> Exploration:
    """Look at a prompt. `target`: a token by its text or id; unless given, the one that the model finds likeliest after
    the prompt, and it stays that when heads are switched. `other`: a token to hold it against.
    `dtype` of a model given by its name: float32 unless that would crowd the memory (`open_model`), or the one named.

    Raises InputError for an empty or over-long prompt, for a target that is not one token, and for a dtype of a model
    that is loaded already."""
    if dtype is not None and not isinstance(model, str):
        raise InputError(f"The model is loaded already, so dtype={dtype} comes too late: give its name, or load it so.")
    opened = model if isinstance(model, Opened) else None
    if opened is None:
        opened = open_model(model, dtype=dtype or AUTOMATIC) if isinstance(model, str) else Opened(model)
    ids = encode(opened, prompt)
    logits = read(opened, ids).logits
    chosen = int(logits.argmax()) if target is None else target
    return Exploration(opened, ids, target_of(opened.model, chosen, other, logits=logits))
