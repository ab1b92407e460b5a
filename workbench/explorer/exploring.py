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
from workbench.explorer import (
    differences,
    drawn,
    feature_paths,
    features_drawn,
    head_list,
    head_sets,
    layer_curves,
    layer_curves_drawn,
    lens_maps,
    parts_drawn,
    passages,
    patch_maps,
    pattern_thumbnails,
    token_groups,
)
from workbench.explorer.autoencoders import DEFAULT, open_autoencoder
from workbench.explorer.continuation import MOST, Continuation
from workbench.explorer.differences import difference_figure
from workbench.explorer.feature_readings import FeatureReading, read_features
from workbench.explorer.head_score_passes import SCORES
from workbench.explorer.opened_model import Head, Opened, encode, open_model
from workbench.explorer.readings import Reading, direct_effects, head_scores, pattern, read
from workbench.explorer.steps import read_steps, steps_figure
from workbench.explorer.sub_blocks import sub_blocks
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target, target_of
from workbench.explorer.waterfall import waterfall
from workbench.figures.heads import head_map
from workbench.models.load_options import AUTOMATIC
from workbench.models.model import Model
from workbench.runs.folder import Run, list_runs
from workbench.sae.feature_edits import feature_changes

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
        features: str = "",
        autoencoder: str = DEFAULT,
    ) -> Exploration:
        """The same with these heads and MLPs switched instead, by zero, mean, uniform or patch (from `donor`), and
        features of an autoencoder: ``"12=off,7=2.5,9=add-1"`` switches one off, sets one, adds to one."""
        theirs = () if not donor else self._ids(donor)
        changes = feature_changes(features)
        changed = (changes, autoencoder) if changes else ()
        return replace(self, switches=Switches(tuple(sorted(heads)), how, theirs, tuple(sorted(mlps)), *changed))

    def lens(self, *, of: str = "stream", colour: str = "probability", k: int = 5) -> Panel:
        """The logit lens over layers and tokens (`lens_map`)."""
        parts = None if of == "stream" else sub_blocks(self.opened, self.ids, None, self.switches)
        table = lens_maps.lens_map(self.opened, self.reading, of=of, parts=parts, target=self.target, k=k)
        return table, drawn.lens_figure(table, self.tokens, colour=colour, said=self.said)

    def waterfall(
        self, *, position: int = -1, heads: int = 5, autoencoder: str | None = None, features: int = 8
    ) -> Panel:
        """The parts of the target's logit at one token; in the figure the `heads` largest heads by themselves, and with
        an autoencoder the `features` largest of its features."""
        split = None if autoencoder is None else self._read_features(autoencoder)
        found = waterfall(self.opened, self.ids, self.target, position=position, switches=self.switches, features=split)
        said = self.target.tokens_in_words(self.opened.model)
        return found.parts, parts_drawn.waterfall_figure(found, said=said, heads=heads, features=features)

    def features(self, *, autoencoder: str = DEFAULT, position: int | None = None, most: int = 24) -> Panel:
        """The active features of every token (`read_features`); in the figure the `most` that are most active at one
        token, or on the whole prompt."""
        found = self._read_features(autoencoder)
        chosen, site = found.most_active(position, most=most), str(found.autoencoder.sae.site)
        return found.table, features_drawn.feature_map_figure(found.table, chosen, self.tokens, site=site)

    def feature_writes(self, feature: int, *, autoencoder: str = DEFAULT, position: int = -1, k: int = 8) -> Panel:
        """The tokens that a feature raises and lowers most at one token, along the direct path."""
        table = feature_paths.feature_writes(self.opened, self._read_features(autoencoder), feature, position, k=k)
        return table, features_drawn.writes_figure(table, feature=feature)

    def feature_effects(self, *, autoencoder: str = DEFAULT, position: int = -1, most: int = 16) -> Panel:
        """The direct effect of every active feature on the target at one token."""
        table = feature_paths.feature_effects(self.opened, self._read_features(autoencoder), self.target, position)
        return table, features_drawn.effects_figure(table, said=self.said, most=most)

    def feature_sources(self, feature: int, *, autoencoder: str = DEFAULT, position: int = -1, heads: int = 8) -> Panel:
        """What a feature's pre-activation at one token is made of; in the figure the `heads` largest heads apart."""
        found = self._read_features(autoencoder)
        blocks = sub_blocks(self.opened, self.ids, None, self.switches)
        table = feature_paths.feature_sources(self.opened, found, blocks, feature, position)
        return table, parts_drawn.sources_figure(table, feature=feature, heads=heads)

    def head_features(self, head: Head, *, autoencoder: str = DEFAULT, position: int = -1, most: int = 16) -> Panel:
        """Which of the active features one head feeds at one token."""
        found = self._read_features(autoencoder)
        blocks = sub_blocks(self.opened, self.ids, None, self.switches)
        table = feature_paths.head_features(self.opened, found, blocks, head, position)
        return table, features_drawn.fed_figure(table, head=head, most=most)

    def passages(
        self, feature: int, *, autoencoder: str = DEFAULT, texts: str | Sequence[str] = "", most: int = 8
    ) -> Panel:
        """The passages of the model's own texts, of a file or of a list in which a feature is most active."""
        given = passages.texts_of(self.opened, texts) if isinstance(texts, str) else texts
        table = passages.top_passages(
            self.opened, open_autoencoder(self.opened, autoencoder), feature, given, most=most
        )
        return table, features_drawn.passages_figure(table, feature=feature)

    def direct_effects(self, *, position: int = -1) -> Panel:
        """Every head's direct effect on the target at one token."""
        table = direct_effects(self.opened, self.reading, self.target, position)
        return table, head_map(table, value="direct_effect", label=f"direct effect on {self.said}", diverging=True)

    def heads(
        self, *, position: int = -1, value: str = "attention", where: str = "", runs: Sequence[Run] | None = None
    ) -> Panel:
        """Every head with its scores on this prompt and in the finished runs of this model (`runs`: these; all unless
        given), the rows that `where` asks for (`filter_heads`); in the figure all heads, coloured by `value`."""
        given = list_runs() if runs is None else runs
        model = self.opened.model
        tables = head_sets.head_tables(given, fingerprint=model.fingerprint, name=str(model.name))
        live, _ = head_list.live_columns(
            self.opened, self.reading, self.target, position=position, switches=self.switches
        )
        table = head_list.with_runs(live, tables)
        return head_list.filter_heads(table, where), head_list.list_figure(table, value, said=self.said)

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
        if self.switches.any or other.switches.any:
            raise InputError("Scores of heads are of models with nothing switched; take the difference of those.")
        mine, theirs = (head_scores(side.opened, [side.ids]) for side in (self, other))
        table = differences.heads_apart(mine, theirs, of)
        return table, difference_figure(table, "layer", "head", label=of.replace("_", " "))

    def patterns(self, *, layer: int | None = None, heads: Iterable[Head] = (), side: int = 24) -> Panel:
        """Attention patterns of the heads of a layer (the last unless given), or of these heads, in at most `side`
        blocks of tokens to a side, each with the largest weight in it."""
        model = self.opened.model
        of = model.n_layers - 1 if layer is None else layer
        chosen = tuple(heads) or tuple((of, head) for head in range(model.n_heads))
        found = pattern_thumbnails.thumbnails(self.opened, self.ids, chosen, switches=self.switches, side=side)
        return pattern_thumbnails.table(found), pattern_thumbnails.patterns_figure(found)

    def layer_curves(self, *, layer: int | None = None, runs: Sequence[Run] | None = None) -> Panel:
        """What finished runs of this very model found over its layers, the newest first; `layer`: one that is marked.
        `runs`: those that are looked at, all of the runs folder unless given."""
        fingerprint = self.opened.model.fingerprint
        found = layer_curves.curves(list_runs() if runs is None else runs, fingerprint=fingerprint)
        return layer_curves.as_table(found), layer_curves_drawn.layer_curves_figure(found, layer=layer)

    def token_groups(self, *, run: str = "", of: str = "stream", runs: Sequence[Run] | None = None) -> Panel:
        """Groups of tokens that a finished run of this very model declares (languages, say) over the logit lens:
        `group_map`. `run`: its id, the newest that has groups unless given; `runs`: as in `layer_curves`."""
        known = token_groups.token_groups(
            list_runs() if runs is None else runs, fingerprint=self.opened.model.fingerprint
        )
        found = next((one for one in known if run in ("", one.run.id)), None)
        if found is None:
            named = f"The run '{run}' has" if run else "No finished run of this model has"
            raise InputError(f"{named} no groups of tokens.")
        parts = None if of == "stream" else sub_blocks(self.opened, self.ids, None, self.switches)
        table = token_groups.group_map(self.opened, self.reading, found.groups, of=of, parts=parts)
        return table, token_groups.group_figure(table, self.tokens, kind=found.kind)

    def _read_features(self, autoencoder: str) -> FeatureReading:
        return read_features(self.opened, self.ids, open_autoencoder(self.opened, autoencoder), self.switches)

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
