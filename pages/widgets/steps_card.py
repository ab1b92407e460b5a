"""The map of what follows: written tokens as steps to go through, and what the model computed at each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from pages.widgets import cached, export_panel, styling, token_strip
from pages.widgets.continuation import Written, follow, kept
from workbench.core.wording import number
from workbench.explorer import drawn, readings
from workbench.explorer.continuation import MOST
from workbench.explorer.opened_model import Opened
from workbench.explorer.steps import WrittenSteps, attention_of, lens_of, read_steps, steps_figure
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target

if TYPE_CHECKING:
    from pages.widgets.map_cards import Looking

FEWEST, USUAL = 8, 24
ROWS = 6  # next tokens, destinations


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=cached.BY_MODEL)
def steps_of(
    who: str, ids: tuple[int, ...], written: tuple[int, ...], target: Target, switches: Switches, opened: Opened
) -> WrittenSteps:
    """The steps of a continuation."""
    return read_steps(opened, ids, written, target, switches)


@st.cache_resource(max_entries=32, show_spinner=False, hash_funcs=cached.BY_MODEL)
def looks_of(
    who: str, ids: tuple[int, ...], written: tuple[int, ...], switches: Switches, layer: int, head: int, opened: Opened
):
    """What a head attends to at every step."""
    target = Target(written[0])  # whatever it is: attention does not depend on it
    return attention_of(opened, steps_of(who, ids, written, target, switches, opened), (layer, head))


def show(looking: Looking) -> None:
    """The written tokens, and one step of them."""
    left, middle, right, more = st.columns([3, 2, 2, 4], vertical_alignment="bottom")
    most = left.slider(
        "Tokens to write", FEWEST, MOST, USUAL, 8, key="write", bind="query-params", help="How many tokens follow."
    )
    temperature = middle.number_input(
        "Temperature",
        0.0,
        5.0,
        0.0,
        0.1,
        key="temperature",
        bind="query-params",
        help="0: the likeliest token at every step; above it tokens are drawn.",
    )
    seed = right.number_input(
        "Seed",
        0,
        999_999,
        0,
        key="draw",
        bind="query-params",
        disabled=temperature == 0,
        help="Another seed draws other tokens; the same seed the same ones.",
    )
    seed = int(seed) if temperature else 0
    text = kept(looking.name, looking.ids, looking.switches, looking.opened, temperature=temperature, seed=seed)
    title = "greedy" if not temperature else f"drawn at temperature {temperature:g}, seed {seed}"
    if not text.finished(most):
        follow([Written(title, text, styling.accent())], most, key="steps", whole=True)
    written = tuple(text.written[:most])
    if not written or not (text.finished(most) or st.session_state.get("steps stopped")):
        return
    found = steps_of(looking.name, looking.ids, written, looking.target, looking.switches, looking.opened)
    fig = steps_figure(found.table, said=looking.said)
    drawing = f", temperature={temperature:g}, seed={seed}" if temperature else ""
    with more:
        export_panel.show(looking.name, fig, found.table, "steps", f"steps(most={len(written)}{drawing})", looking)
    step = chosen_step(len(written))
    strip(found, step)
    one_step(looking, found, step)
    export_panel.chart(fig, key="figure steps", height=520)


def chosen_step(count: int) -> int:
    """The step that is looked at, on a slider."""
    if st.session_state.get("step", 0) > count - 1:
        st.session_state["step"] = count - 1  # fewer tokens than before
    if count == 1:
        return 0
    return st.slider(
        "Step",
        0,
        count - 1,
        key="step",
        bind="query-params",
        help="The written token that is looked at. The arrow keys go from one to the next.",
    )


def strip(found: WrittenSteps, step: int) -> None:
    """The written tokens, coloured by their probability."""
    shades = styling.shades(found.table["probability"].to_list(), ends=(0.0, 1.0))
    items = [
        {
            "shown": styling.token(text if text is not None else f" {token}"),
            "special": False,
            "line": "\n" in (text or ""),
            "title": f"step {i}, id {token}, probability {p:.3f}",
            "name": f"{token_strip.spoken(text or f' {token}')}, step {i}, probability {p:.3f}",
            "colour": colour,
            "ink": ink,
        }
        for (i, token, text, p), (colour, ink) in zip(
            found.table.select("step", "id", "text", "probability").iter_rows(), shades
        )
    ]
    token_strip.draw(
        items,
        at=step,
        label="Written tokens",
        key="written tokens",
        on_pick=lambda i: st.session_state.update({"step": i}),
    )


def one_step(looking: Looking, found: WrittenSteps, step: int) -> None:
    """What the model would have said there, where the chosen head looked, and what each layer said."""
    row = found.table.row(step, named=True)
    model, place = looking.opened.model, row["position"]
    written = styling.esc(styling.token(row["text"]))
    st.html(
        f"<b>Step {step}</b><span class='wb-dim'>, token {place}: </span><code>{written}</code>"
        f"<span class='wb-dim'> had probability {row['probability']:.3g} (rank {row['rank']}), drawn from "
        f"{number(row['entropy'])} nats of entropy; {styling.esc(looking.said)} is {number(row['target'])} "
        f"(rank {row['target_rank']}). Colour: probability; ranks count from 0.</span>"
    )
    one, two, three = st.columns(3, gap="large")
    texts = model.token_strings(row["top"])
    top = [(t, p, p) for t, p in zip(texts, row["top_probability"])][:ROWS]
    one.html(
        styling.heading("next tokens at this step")
        + styling.table(top, [("token", "tok"), ("probability", "num"), ("", "bar")])
    )
    layer, head = looking.layer, looking.head
    looks = looks_of(looking.name, found.ids, found.written, found.switches, layer, head, looking.opened)[step][:place]
    seen = readings.strongest(looking.opened, found.read, looks, k=ROWS)
    two.html(
        styling.heading(f"head {layer}.{head} attends, from the token before, to")
        + styling.table(
            [(i, t, w, w) for i, t, w in seen.iter_rows()],
            [("at", "num"), ("token", "tok"), ("weight", "num"), ("", "bar")],
        )
    )
    lens = lens_of(looking.opened, found, step).sort("layer", descending=True)
    rows = [
        (drawn.layer_name(layer), text, p, str(rank), p)
        for layer, text, p, rank in lens.select("layer", "text", "probability", "target_rank").iter_rows()
    ]
    three.html(
        styling.heading("logit lens there (rank: of the written token)")
        + "<div style='max-height:330px;overflow-y:auto'>"
        + styling.table(rows, [("layer", "text"), ("top token", "tok"), ("p", "num"), ("rank", "num"), ("", "bar")])
        + "</div>"
    )
