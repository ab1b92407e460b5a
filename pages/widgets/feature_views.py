"""What there is to know of the chosen feature: what it writes, what feeds it, what the target loses without the active
ones, what the chosen head feeds, and the passages in which it is active."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import streamlit as st

from pages.widgets import cached, export_panel, prompt_box, styling, url_state
from workbench.core.wording import number
from workbench.explorer import autoencoders, feature_paths, features_drawn, parts_drawn, passages
from workbench.explorer.autoencoders import Autoencoder
from workbench.explorer.feature_readings import FeatureReading
from workbench.explorer.opened_model import Head, Opened
from workbench.explorer.sub_blocks import sub_blocks
from workbench.explorer.switches import Switches

if TYPE_CHECKING:
    from pages.widgets.map_cards import Looking

SCREEN = "explorer"
VIEWS = ("Writes", "Fed by", "Effects", "Of the head", "Passages")
BY_BOTH = {**cached.BY_MODEL, Autoencoder: lambda found: found.key}


@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=cached.BY_MODEL)
def blocks(who: str, ids: tuple[int, ...], switches: Switches, opened: Opened):
    return sub_blocks(opened, ids, None, switches)


@st.cache_resource(max_entries=16, show_spinner="Reading the texts", hash_funcs=BY_BOTH)
def found_passages(who: str, autoencoder: Autoencoder, feature: int, texts: str, opened: Opened) -> pl.DataFrame:
    """The passages in which a feature is most active."""
    return passages.top_passages(opened, autoencoder, feature, passages.texts_of(opened, texts))


def given(source: str) -> str:
    """The autoencoder as an argument of a call; nothing for the one that ships with the model."""
    return "" if source == autoencoders.DEFAULT else f"autoencoder={source!r}"


def call(name: str, *parts: str) -> str:
    """A call in Python, of the arguments that there are."""
    return f"{name}({', '.join(filter(None, parts))})"


def show(looking: Looking, found: FeatureReading, feature: int, source: str) -> None:
    """What it writes, what feeds it, effects, what the chosen head feeds, passages."""
    left, more = st.columns([8, 3], vertical_alignment="bottom")
    chosen = left.segmented_control(
        "Of the feature",
        VIEWS,
        default=VIEWS[0],
        key="feature view",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
        help="Writes: tokens it raises and lowers. Fed by: what its pre-activation is made of. Effects: of all active "
        "features on the target. Of the head: features that the chosen head feeds. Passages: texts in which it is "
        "active.",
    )
    with styling.guard():
        draw = {"Writes": writes, "Fed by": fed_by, "Effects": effects, "Of the head": of_head, "Passages": strips}
        draw[chosen](looking, found, feature, source, more)


def panel(looking: Looking, fig, table: pl.DataFrame, name: str, code: str, more, say: str) -> None:
    """A figure with what it says and its files."""
    with more:
        export_panel.show(looking.name, fig, table, name, code, looking)
    st.caption(styling.md(say))
    export_panel.chart(fig, key=f"figure {name}", height=max(240, 24 * len(fig.data[0].y) + 70))


def where(looking: Looking) -> str:
    return f"position={looking.at}"


def writes(looking: Looking, found: FeatureReading, feature: int, source: str, more) -> None:
    table = feature_paths.feature_writes(looking.opened, found, feature, looking.at)
    code = call("feature_writes", str(feature), given(source), where(looking))
    say = (
        "Logits for one unit of its activation, along the direct path: decoder, final norm at its scale at the token, "
        "unembedding; less the mean over the vocabulary."
    )
    panel(looking, features_drawn.writes_figure(table, feature=feature), table, "feature-writes", code, more, say)


def fed_by(looking: Looking, found: FeatureReading, feature: int, source: str, more) -> None:
    inside = blocks(looking.name, looking.ids, looking.switches, looking.opened)
    table = feature_paths.feature_sources(looking.opened, found, inside, feature, looking.at)
    code = call("feature_sources", str(feature), given(source), where(looking))
    kept = "" if found.autoencoder.sae.k is None else f" The {found.autoencoder.sae.k} largest are active."
    say = f"Parts of the pre-activation at token {looking.at}: they sum to it, biases included.{kept}"
    fig = parts_drawn.sources_figure(table, feature=feature)
    panel(looking, fig, table, "feature-sources", code, more, say)


def effects(looking: Looking, found: FeatureReading, feature: int, source: str, more) -> None:
    table = feature_paths.feature_effects(looking.opened, found, looking.target, looking.at)
    if table.is_empty():
        st.info("No feature is active at this token.")
        return
    code = call("feature_effects", given(source), where(looking))
    say = f"{looking.said} less its value without what each feature writes at token {looking.at}, all else as it is."
    fig = features_drawn.effects_figure(table, said=looking.said)
    panel(looking, fig, table, "feature-effects", code, more, say)


def of_head(looking: Looking, found: FeatureReading, feature: int, source: str, more) -> None:
    head: Head = (looking.layer, looking.head)
    inside = blocks(looking.name, looking.ids, looking.switches, looking.opened)
    table = feature_paths.head_features(looking.opened, found, inside, head, looking.at)
    if table.is_empty():
        st.info("No feature is active at this token.")
        return
    code = call("head_features", str(head), given(source), where(looking))
    say = f"What head {head[0]}.{head[1]} puts into the pre-activations of the features that are active at the token."
    fig = features_drawn.fed_figure(table, head=head)
    panel(looking, fig, table, "head-features", code, more, say)


def strips(looking: Looking, found: FeatureReading, feature: int, source: str, more) -> None:
    """Passages with the strongest token in the middle, on demand."""
    left, right = st.columns([8, 3], vertical_alignment="bottom")
    texts = left.text_input(
        "Texts",
        key="texts",
        placeholder="a few that ship with the model, or with the workbench",
        help="A file: csv, tsv, JSON Lines or Parquet with a column text, or txt with a text a line.",
    ).strip()
    asked = right.button(
        "Find passages", width="stretch", help=f"Reads up to {passages.TOKENS:,} tokens of the texts, once a feature."
    )
    wanted = (looking.name, found.autoencoder.key, feature, texts)
    if asked:
        st.session_state["passages of"] = wanted
    if st.session_state.get("passages of") != wanted:
        return
    table = found_passages(looking.name, found.autoencoder, feature, texts, looking.opened)
    if table.is_empty():
        st.info(f"Feature {feature} is active in none of these texts.")
        return
    with more:
        fig = features_drawn.passages_figure(table, feature=feature)
        code = call("passages", str(feature), given(source), f"texts={texts!r}" if texts else "")
        export_panel.show(looking.name, fig, table, "passages", code, looking)
    most = float(table["activation"].max())  # pyright: ignore[reportArgumentType]
    for one in table.iter_rows(named=True):
        passage, opens = st.columns([11, 2], vertical_alignment="center")
        passage.html(strip(one, most))
        opens.button(
            "As prompt",
            key=f"passage {one['row']}",
            on_click=open_passage,
            args=(one["text"], one["opens_at"], feature),
            width="stretch",
            help="Its text up to the end of the passage becomes the prompt.",
        )


def strip(one: dict, most: float) -> str:
    """A passage as HTML, tokens coloured by the activation."""
    shades = styling.shades(one["activations"], ends=(0.0, most))
    out = []
    for i, (text, value, (colour, ink)) in enumerate(zip(one["tokens"], one["activations"], shades)):
        look = f"background:{colour};color:{ink};" if value > 0 else ""
        edge = f"outline:2px solid {styling.contrast()};" if one["start"] + i == one["peak"] else ""
        title = f"position {one['start'] + i}, activation {number(value)}"
        out.append(
            f"<span style='{look}{edge}border-radius:3px;padding:0 1px' title='{styling.esc(title)}'>"
            f"{styling.esc(styling.token(text))}</span>"
        )
    before = "… " if one["start"] else ""
    label = f"<span class='wb-dim'>{number(one['activation'])} · text {one['row']} </span>"
    return f"{label}<span class='wb-passage'>{before}{''.join(out)}</span>"


def open_passage(text: str, position: int | None, feature: int) -> None:
    """The passage becomes the prompt, its strongest token the chosen one."""
    prompt_box.put_prompt(text)
    url_state.put(SCREEN, "at", "" if position is None else str(position))
    url_state.put(SCREEN, "feature", str(feature))
    st.session_state["passage opened"] = True
