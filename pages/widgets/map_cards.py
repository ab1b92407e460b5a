"""The Explorer's maps below the head grid: logit lens, waterfall of the target, patching and paths between heads."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import streamlit as st

from pages.widgets import (
    cached,
    cell_map,
    export_panel,
    feature_cards,
    lens_cells,
    pattern_cards,
    prompt_box,
    steps_card,
    styling,
    url_state,
)
from workbench.core.errors import InputError
from workbench.core.wording import number
from workbench.explorer import drawn, parts_drawn, patch_maps, targets
from workbench.explorer.autoencoders import open_autoencoder
from workbench.explorer.opened_model import Opened, encode
from workbench.explorer.readings import Reading
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target
from workbench.explorer.token_groups import TokenGroups

SCREEN = "explorer"
MAPS = ("Lens", "Waterfall", "Patching", "Paths", "Patterns", "Features", "Steps")
# as they are named on the screen and in the URL
READ_OFF = {
    "stream after each layer": "stream",
    "stream between attention and MLP": "between",
    "what attention adds": "attention",
    "what the MLP adds": "mlp",
}
KIND = {
    "stream before a layer": "resid_pre",
    "stream after a layer": "resid_post",
    "attention": "attn_out",
    "MLP": "mlp_out",
    "heads": patch_maps.HEADS,
}


@dataclass(frozen=True)
class Looking:
    """What the maps are of: the model under its name, the prompt, what is switched, the target, and what is chosen."""

    name: str
    opened: Opened
    ids: tuple[int, ...]
    switches: Switches
    target: Target
    layer: int
    head: int
    at: int

    @property
    def tokens(self) -> list[str]:
        """The tokens of the prompt as they are shown."""
        return [styling.token(text) for text in self.opened.model.token_strings(self.ids)]

    @property
    def said(self) -> str:
        """The target in words."""
        return self.target.in_words(self.opened.model)


def show(looking: Looking) -> None:
    """The map that is chosen."""
    chosen = st.segmented_control(
        "Map",
        MAPS,
        default=MAPS[0],
        key="map",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
        help="Lens: what every layer would say at every token. Waterfall: where the target's logit comes from. "
        "Patching: which activations of a second prompt change it. Paths: which heads the chosen one listens to. "
        "Patterns: where the heads of a layer look. Features: those of an autoencoder. "
        "Steps: the text that follows, token by token.",
    )
    styling.unseen_heading(f"{chosen} map")
    with styling.guard():
        draw = {"Lens": lens, "Waterfall": waterfall, "Patching": patching, "Paths": paths}
        others = {"Patterns": pattern_cards.show, "Features": feature_cards.features, "Steps": steps_card.show}
        (draw | others)[chosen](looking)


# ---- logit lens


def lens(looking: Looking) -> None:
    """Layers × tokens, the top token in the cell."""
    left, right, more = st.columns([3, 3, 4], vertical_alignment="bottom")
    read = left.selectbox(
        "Read off",
        list(READ_OFF),
        key="lens of",
        bind="query-params",
        help="Through the final norm and the unembedding.",
    )
    by_name = {name: colour for colour, name in drawn.LENS_COLOURS.items()}
    in_runs = {groups.name: groups for groups in cached.groups_in_runs(looking.opened.model.fingerprint)}
    chosen = right.selectbox(
        "Colour of the cells",
        [*by_name, *in_runs],
        key="lens colour",
        bind="query-params",
        help="KL: from the model's own next tokens at that token to the read-out's. Groups of tokens that finished "
        "runs declare (languages, say) stand last: which of them has most of what is said next.",
    )
    if chosen in in_runs:
        of, first = READ_OFF[read], lens_cells.stretch(len(looking.ids), looking.at)
        return lens_of_groups(looking, of, read, first, in_runs[chosen], more)
    colour = by_name[chosen]
    of, first = READ_OFF[read], lens_cells.stretch(len(looking.ids), looking.at)
    shown = lens_cells.lens_cells(
        looking.name, looking.ids, looking.switches, of, read, colour, looking.target, first, looking.opened
    )
    lens_drawn(looking, shown, read, first)
    with more:  # after the cells, which are then on their way: the figure takes as long as they do
        fig = lens_cells.lens_figure(
            looking.name, looking.ids, looking.switches, of, colour, looking.target, first, looking.opened
        )
        export_panel.show(looking.name, fig, shown.frame, "lens", f"lens(of={of!r}, colour={colour!r})", looking)


def lens_of_groups(looking: Looking, of: str, read: str, first: int, groups: TokenGroups, more) -> None:
    """Layers × tokens, the leading group of tokens in the cell."""
    shown, fig = lens_cells.group_cells(
        looking.name, looking.ids, looking.switches, of, read, groups.name, first, groups, looking.opened
    )
    lens_drawn(looking, shown, read, first)
    with more:
        call = f"token_groups(run={groups.run.id!r}, of={of!r})"
        export_panel.show(looking.name, fig, shown.frame, "token_groups", call, looking)


def lens_drawn(looking: Looking, shown: lens_cells.LensCells, read: str, first: int) -> None:
    """The cells, and what they are of in words."""
    layers = shown.layers
    cell_map.show(
        shown.cells,
        key="lens map",
        at=(min(looking.layer - layers[0], len(layers) - 1), looking.at - first),
        on_pick=lambda row, position: go_to(looking, layers[row], first + position),
        diverging=shown.diverging,
        ends=shown.ends,
    )
    where, last = f"{len(looking.ids)} tokens", first + lens_cells.WIDE - 1
    if len(looking.ids) > lens_cells.WIDE:
        where = f"tokens {first} to {last} of {len(looking.ids)}, around the chosen one (the CSV has all)"
    st.caption(f"{read[0].upper()}{read[1:]}, read off at {where}; “in” is the embedding.")


def go_to(looking: Looking, layer: int, position: int | None = None, head: int | None = None) -> None:
    """Choose a layer, a token, a head."""
    chosen = looking.head if head is None else head
    url_state.put(SCREEN, "head", f"{max(0, layer)}.{chosen}")
    if position is not None:
        url_state.put(SCREEN, "at", str(position))


# ---- waterfall


def waterfall(looking: Looking) -> None:
    """Where the target's logit at the chosen token comes from."""
    left, right, more = st.columns([4, 3, 4], vertical_alignment="bottom")
    heads = left.slider(
        "Heads by themselves",
        0,
        min(24, looking.opened.model.n_layers * looking.opened.model.n_heads),
        6,
        key="waterfall heads",
        help="How many heads stand apart from their layer's attention: those that add or take most.",
    )
    source = feature_cards.source_of(looking.opened)
    split = right.toggle(
        "In features",
        key="in features",
        bind="query-params",
        disabled=source is None,
        help="The stream at the autoencoder's site as its features, its decoder's bias and its error, in place of "
        "everything up to there. The autoencoder is chosen on the map of features.",
    )
    of = (looking.name, looking.ids, looking.switches, looking.target, looking.at)
    call = f"waterfall(position={looking.at}, heads={heads})"
    if split and source is not None:
        found = feature_cards.split_waterfall(*of, open_autoencoder(looking.opened, source), looking.opened)
        call = f"waterfall(position={looking.at}, heads={heads}, autoencoder={source!r})"
    else:
        found = cached.waterfall(*of, looking.opened)
    said = looking.target.tokens_in_words(looking.opened.model)
    fig = parts_drawn.waterfall_figure(found, said=said, heads=heads)
    with more:
        export_panel.show(looking.name, fig, found.parts, "waterfall", call, looking)
    bias = found.parts.filter(pl.col("part") == "bias").row(0, named=True)
    say = (
        f"At token {looking.at}, the parts sum to {number(found.total)}. The final norm multiplies each by "
        f"{number(found.scale)} (held fixed) and adds {number(bias['share_of_norm'])} by itself."
    )
    if split and source is not None:
        say += " Up to the autoencoder's site they are its features, its decoder's bias and its error."
    if found.capped is not None:
        say += f" The model then caps its logits at ±{found.capped:g}."
    st.caption(styling.md(say))
    export_panel.chart(fig, key="figure waterfall", height=max(320, 24 * len(fig.data[0].y) + 70))


# ---- patching and paths


def donor(looking: Looking) -> tuple[int, ...] | None:
    """The second prompt; None until one is typed."""
    left, right = st.columns([9, 1.4], vertical_alignment="bottom")
    text = left.text_input(
        "Second prompt, the donor",
        key="from",
        bind="query-params",
        placeholder="like the prompt, but for the word that matters",
        help="Activations are taken from it and put into the prompt above.",
    )
    right.button("Swap", on_click=swap, disabled=not text, width="stretch", help="Put each in the other's place.")
    if st.session_state.pop("swapped", False):
        st.rerun()  # the prompt is above what a click here draws again
    if not text:
        st.info("Type a second prompt: the map shows which of its activations change the target on the first.")
        return None
    return encode(looking.opened, theirs_of())


def theirs_of() -> str:
    """The second prompt as it is fed."""
    return st.session_state["from"].replace("\\n", "\n")


def swap() -> None:
    """The prompt becomes the donor, the donor the prompt."""
    theirs = theirs_of()
    st.session_state["from"] = prompt_box.one_line(st.session_state["prompt"])
    prompt_box.put_prompt(theirs)
    st.session_state["swapped"] = True


def patching(looking: Looking) -> None:
    """Layer × token or layer × head, one activation at a time taken from the donor."""
    theirs = donor(looking)
    if theirs is None:
        return
    if looking.switches.any:
        st.caption("The map is of the model with nothing switched.")
    left, right, more = st.columns([3, 3, 4], vertical_alignment="bottom")
    named = left.selectbox(
        "Patched",
        list(KIND),
        key="patched",
        bind="query-params",
        help="What is taken from the donor, one cell at a time; heads at all tokens at once.",
    )
    kind = KIND[named]
    by_hand = right.text_input(
        "Alignment",
        key="align",
        bind="query-params",
        placeholder=" ".join(map(str, patch_maps.align(looking.ids, theirs)))[:60],
        help=f"For each of the {len(looking.ids)} tokens the donor's position to take from, apart by spaces; empty: "
        "equal stretches are put on each other.",
    )
    where = alignment(by_hand) if by_hand.strip() else patch_maps.align(looking.ids, theirs)
    found = cached.patch_map(looking.name, looking.ids, theirs, looking.target, kind, where, looking.opened)
    fig = drawn.patch_figure(found, looking.tokens, kind=kind, said=looking.said)
    call = f"patch_map({theirs_of()!r}, kind={kind!r}{f', alignment={where}' if by_hand.strip() else ''})"
    with more:
        export_panel.show(looking.name, fig, found.cells, "patching", call, looking)
    heads = kind == patch_maps.HEADS
    across = "head" if heads else "position"
    columns = [str(h) for h in range(looking.opened.model.n_heads)] if heads else looking.tokens
    titles = [
        f"layer {layer}, {across} {i}\nchange of {looking.said}: {number(change)}, {drawn.share(recovered)}"
        for layer, i, change, recovered in found.cells.select("layer", across, "change", "recovered").iter_rows()
    ]
    cell_map.show(
        cell_map.CellMap(
            f"patching of {named}",
            [str(layer) for layer in range(looking.opened.model.n_layers)],
            columns,
            found.cells["change"].to_list(),
            titles,
            corner="layer",
            say=f"change of {looking.said}",
        ),
        key="patch map",
        at=(looking.layer, looking.head if heads else looking.at),
        on_pick=lambda row, i: go_to(looking, row, head=i) if heads else go_to(looking, row, i),
        diverging=True,
    )
    st.caption(
        styling.md(
            f"{looking.said} at the last token: {number(found.own)} on the prompt, {number(found.donor)} on the donor."
        )
    )


def alignment(text: str) -> tuple[int, ...]:
    """Positions typed by hand. Raises InputError for anything else."""
    try:
        return tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise InputError(f"The alignment is positions of the donor apart by spaces, not '{text}'.") from error


def paths(looking: Looking) -> None:
    """What each earlier head says to the chosen one."""
    if looking.layer == 0:
        st.info("A head of the first layer has no head before it: choose one of a later layer in the grid.")
        return
    theirs = donor(looking)
    if theirs is None:
        return
    receiver = looking.layer, looking.head
    frame = cached.paths(looking.name, looking.ids, theirs, receiver, looking.target, looking.opened)
    fig = drawn.paths_figure(frame, receiver, said=looking.said)
    left, more = st.columns([6, 4], vertical_alignment="bottom")
    left.caption(
        styling.md(
            f"What {looking.said} becomes when one earlier head says to head {receiver[0]}.{receiver[1]} what it says "
            f"on the donor, all else as on the prompt until that head; then everything follows."
        )
    )
    with more:
        call = f"paths({theirs_of()!r}, {receiver})"
        export_panel.show(looking.name, fig, frame, "paths", call, looking)
    export_panel.chart(fig, key="figure paths")


def target_of(opened: Opened, plain: Reading) -> Target:
    """The target that is typed, else the token that is likeliest in a reading with nothing switched."""
    token, other = (st.session_state.get(key) or st.query_params.get(key) or "" for key in ("target", "against"))
    return targets.target_of(opened.model, token or int(plain.logits.argmax()), other or None, logits=plain.logits)
