"""The map of an autoencoder's features below the head grid: one is chosen, switched off, set or raised."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import polars as pl
import streamlit as st

from pages.widgets import cell_map, export_panel, feature_views, styling, url_state
from pages.widgets.feature_views import BY_BOTH, call, given
from workbench.core.errors import InputError
from workbench.core.wording import number
from workbench.explorer import autoencoders, features_drawn
from workbench.explorer.autoencoders import Autoencoder, open_autoencoder
from workbench.explorer.feature_readings import FeatureReading, read_features
from workbench.explorer.opened_model import Opened
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target
from workbench.explorer.waterfall import Waterfall
from workbench.explorer.waterfall import waterfall as parts_of_logit
from workbench.sae.feature_edits import FeatureChange, FeatureEdit, check_feature, feature_changes

if TYPE_CHECKING:
    from pages.widgets.map_cards import Looking

SCREEN = "explorer"
LITTLE = 0.5  # explained variance below which a sentence stands above the map
HERE, EVERYWHERE = "the chosen token", "the whole prompt"


@st.cache_resource(max_entries=8, show_spinner="Reading features", hash_funcs=BY_BOTH)
def reading(who: str, ids: tuple[int, ...], switches: Switches, autoencoder: Autoencoder, opened: Opened):
    return read_features(opened, ids, autoencoder, switches)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=BY_BOTH)
def split_waterfall(
    who: str,
    ids: tuple[int, ...],
    switches: Switches,
    target: Target,
    position: int,
    autoencoder: Autoencoder,
    opened: Opened,
) -> Waterfall:
    """The parts of the target's logit with the stream at the autoencoder's site in features."""
    found = reading(who, ids, switches, autoencoder, opened)
    return parts_of_logit(opened, ids, target, position=position, switches=switches, features=found)


# ---- what is chosen


def source_of(opened: Opened) -> str | None:
    """The autoencoder that is named in the URL, else the one that ships with the model; None where there is neither."""
    named = url_state.get(SCREEN, "sae")
    return named or (autoencoders.DEFAULT if autoencoders.shipped(opened) else None)


def switched(opened: Opened) -> tuple[tuple[FeatureChange, ...], str]:
    """The features that the URL changes and the autoencoder they are of; nothing where they are none of its features
    (the map of features says so)."""
    text, source = url_state.get(SCREEN, "features"), source_of(opened)
    if not text or source is None:
        return (), ""
    try:
        return checked(opened, text, source), source
    except InputError:
        return (), ""


def checked(opened: Opened, text: str, source: str) -> tuple[FeatureChange, ...]:
    """Changes that fit the autoencoder. Raises InputError for others."""
    changes = feature_changes(text)
    FeatureEdit(open_autoencoder(opened, source).sae, changes).check(opened.model)
    return changes


def choose_source() -> None:
    """Another autoencoder has other features."""
    url_state.put(SCREEN, "sae", st.session_state["autoencoder"].strip())
    for key in ("feature", "features"):
        url_state.put(SCREEN, key, "")


def chosen_feature(found: FeatureReading, at: int) -> int | None:
    """The feature of the URL, else the most active one at the token, else on the prompt."""
    text = url_state.get(SCREEN, "feature")
    if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        try:
            check_feature(found.autoencoder.sae, int(text))
            return int(text)
        except InputError:
            pass
    best = found.most_active(at, most=1) or found.most_active(most=1)
    return best[0] if best else None


# ---- the map


def features(looking: Looking) -> None:
    """Features × tokens, and below the chosen feature."""
    if st.session_state.pop("passage opened", False):
        st.rerun()  # the prompt is above what a click here draws again
    left, right, more = st.columns([5, 3, 3], vertical_alignment="bottom")
    st.session_state["autoencoder"] = url_state.get(SCREEN, "sae")
    left.text_input(
        "Autoencoder",
        key="autoencoder",
        on_change=choose_source,
        placeholder="the one that ships with the model" if autoencoders.shipped(looking.opened) else "a folder",
        help="A folder or file of any published format, owner/repository:path on the hub, or release:id of sae-lens. "
        "@resid_post.3 at the end says where it belongs, if its files do not.",
    )
    of = right.selectbox(
        "Most active",
        [HERE, EVERYWHERE],
        key="features of",
        bind="query-params",
        help="The features that are shown: those most active at the chosen token, or anywhere in the prompt.",
    )
    source = source_of(looking.opened)
    if source is None:
        st.info(
            f"No autoencoder ships with {styling.md(styling.short(looking.name))}: name a folder, "
            f"owner/repository:path or release:id, and its features are shown here."
        )
        return
    autoencoder = open_autoencoder(looking.opened, source)
    for sentence in autoencoder.warnings:
        styling.left_out(sentence)
    found = reading(looking.name, looking.ids, looking.switches, autoencoder, looking.opened)
    show_map(looking, found, of, source, more)
    feature = chosen_feature(found, looking.at)
    if feature is None:
        st.info("No feature is active on this prompt.")
        return
    about(looking, found, feature)
    switchboard(looking, found, feature, source)
    feature_views.show(looking, found, feature, source)


def show_map(looking: Looking, found: FeatureReading, of: str, source: str, more) -> None:
    here = looking.at if of == HERE else None
    chosen, sae = found.most_active(here), found.autoencoder.sae
    share = found.explained
    explained = "" if share is None else f"; on this prompt they explain {share:.1%} of its variance"
    if share is not None and share < LITTLE:
        styling.left_out(
            f"The autoencoder explains {share:.1%} of the variance on this prompt: it has seen few such texts, and "
            f"much of what the model does here is in its error."
        )
    st.caption(
        styling.md(f"{sae.d_sae:,} features of {sae.site}{explained}. Click a cell to choose its feature and token.")
    )
    if not chosen:
        st.info("No feature is active at this token: choose another, or look at the whole prompt.")
        return
    with more:
        fig = features_drawn.feature_map_figure(found.table, chosen, looking.tokens, site=str(sae.site))
        where = f"position={looking.at}" if here is not None else ""
        export_panel.show(looking.name, fig, found.table, "features", call("features", given(source), where), looking)
    now = chosen_feature(found, looking.at)
    rows = [*chosen, *([now] if now is not None and now not in chosen else [])][::-1]  # rows go upwards
    values = features_drawn.grid_of(found.table, rows, len(looking.ids))
    titles = [
        f"feature {feature}, token {i} {token}\nactivation: {number(values[row, i]) if values[row, i] else 'off'}"
        for row, feature in enumerate(rows)
        for i, token in enumerate(looking.tokens)
    ]
    cell_map.show(
        cell_map.CellMap(
            "features of the autoencoder over the tokens",
            [str(feature) for feature in rows],
            looking.tokens,
            values.ravel().tolist(),
            titles,
            corner="feature",
            say="activation",
        ),
        key="feature map",
        at=(rows.index(now) if now in rows else 0, looking.at),
        on_pick=lambda row, position: pick(rows[row], position),
    )


def pick(feature: int, position: int) -> None:
    """Choose a feature and a token."""
    url_state.put(SCREEN, "feature", str(feature))
    url_state.put(SCREEN, "at", str(position))


def about(looking: Looking, found: FeatureReading, feature: int) -> None:
    """One line about the chosen feature."""
    here = found.table.filter(pl.col("position") == looking.at)
    mine = here.filter(pl.col("feature") == feature)
    active = f"activation {number(mine['activation'][0])}" if not mine.is_empty() else "off"
    if not mine.is_empty() and mine["share"][0] is not None:
        active += f", {mine['share'][0]:.1%} of what the features rebuild"
    error = here["error"][0]
    left = "" if error is None else f"; not rebuilt: {number(error)} of a length of {number(here['norm'][0])}"
    link = found.autoencoder.sae.neuronpedia(feature)
    st.html(
        f"<b>Feature {feature}</b><span class='wb-dim'>: {styling.esc(active)} at token {looking.at}, "
        f"<code>{styling.esc(looking.tokens[looking.at])}</code>{styling.esc(left)}</span>"
        + (f" <a href='{styling.esc(link)}' target='_blank' rel='noopener'>on Neuronpedia</a>" if link else "")
    )


# ---- switches


def put_changes(changes: dict[int, FeatureChange]) -> None:
    url_state.put(SCREEN, "features", ",".join(map(str, sorted(changes.values()))))


def change(now: dict[int, FeatureChange], feature: int, how: str) -> None:
    """Switch a feature, or on again where it is changed like this already."""
    value = 0.0 if how == "off" else float(st.session_state.get("feature value") or 0.0)
    if how == "set" and value < 0:
        st.session_state["feature problem"] = f"Feature {feature} cannot be set to {value:g}: add it instead."
        return
    made = FeatureChange(feature, how, value)
    rest = {f: one for f, one in now.items() if f != feature}
    put_changes(rest if now.get(feature) == made else rest | {feature: made})


def switchboard(looking: Looking, found: FeatureReading, feature: int, source: str) -> None:
    """Switch the chosen feature off, set it, add to it."""
    sae = found.autoencoder.sae
    if sae.site_out is not None:
        st.caption("The features of a transcoder can be looked at, not switched.")
        return
    try:
        now = {one.feature: one for one in checked(looking.opened, url_state.get(SCREEN, "features"), source)}
    except InputError as error:
        styling.problem(error)
        now = {}
    largest = float(found.activation(feature).max())
    a, b, c, d, e = st.columns([3, 2, 2, 2, 3], vertical_alignment="bottom")
    off = now.get(feature) == FeatureChange(feature)
    a.button(
        f"Switch {'on' if off else 'off'} {feature}",
        key="switch feature",
        on_click=change,
        args=(now, feature, "off"),
        width="stretch",
        help="Takes what it adds out of the activation, and leaves all that the autoencoder does not rebuild.",
    )
    b.number_input(
        "Activation",
        value=float(f"{2 * largest:.3g}") if largest else 1.0,
        key="feature value",
        help=f"To set or to add. The largest on this prompt is {number(largest)}.",
    )
    for place, how, said in ((c, "set", "Set"), (d, "add", "Add")):
        place.button(
            said,
            key=f"{how} feature",
            on_click=change,
            args=(now, feature, how),
            width="stretch",
            help="At every token, whether it is active there or not; BOS is left alone.",
        )
    e.button(
        "All features on",
        on_click=put_changes,
        args=({},),
        disabled=not now,
        width="stretch",
        help="Leave every feature as the model has it.",
    )
    if "feature problem" in st.session_state:
        st.caption(styling.md(st.session_state.pop("feature problem")))
    if now:
        st.caption(styling.md(f"Changed: {in_words(now.values())}. The map shows the activations with these changes."))


def in_words(changes) -> str:
    """``12 off, 7 set to 2.5, 9 raised by 1``."""
    said = {"off": "off", "set": "set to {:g}", "add": "raised by {:g}"}
    return ", ".join(f"{one.feature} {said[one.how].format(one.value)}" for one in sorted(changes))
