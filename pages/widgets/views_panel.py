"""Saved views of the Explorer: keep the present one, open, rename, annotate and delete those that are kept."""

from __future__ import annotations

import streamlit as st

from pages.widgets import cached, styling
from workbench.core.errors import WorkbenchError
from workbench.core.wording import cut
from workbench.explorer import saved_views

MOST = 200  # in the list


def show(model: str, prompt: str) -> None:
    """The popover."""
    with st.popover("Views", width="stretch", help="Keep this view with a name and a note; open those kept before."):
        with styling.guard():
            keep(model, prompt)
            listed(*saved_views.views())


def keep(model: str, prompt: str) -> None:
    """A name, a note, and the button that keeps the present view."""
    st.text_input("Name of this view", key="view name", placeholder="what it shows", help="To find it in the list.")
    st.text_area("Note", key="view note", height=68, help="What was seen. It stands beside the view in the list.")
    st.button(
        "Save this view",
        key="view save",
        on_click=save,
        args=(model, prompt),
        width="stretch",
        help="The model, the prompt and all that is chosen on this screen, as the address has it.",
    )
    if "view problem" in st.session_state:
        styling.problem(st.session_state.pop("view problem"))


def save(model: str, prompt: str) -> None:
    """Keep the present view."""
    state = {**st.query_params.to_dict(), "model": model, "prompt": prompt}
    try:
        mark = cached.model(model).model.fingerprint
        saved_views.save(
            st.session_state["view name"], state, model=model, fingerprint=mark, note=st.session_state["view note"]
        )
    except (WorkbenchError, OSError) as error:
        st.session_state["view problem"] = str(error)
        return
    st.session_state["view name"] = st.session_state["view note"] = ""


def listed(views: list[saved_views.SavedView], problems: list[str]) -> None:
    """Every view as a link with its note; one chosen to be changed."""
    for problem in problems:
        st.caption(styling.md(problem))
    if not views:
        st.caption("No view has been saved yet.")
        return
    lines = [
        f"<div style='margin-bottom:.35rem'><a href='./?{styling.esc(view.address)}' target='_self'>"
        f"{styling.esc(view.name)}</a> <span class='wb-dim'>{styling.esc(styling.short(view.model))}, "
        f"{styling.esc(view.saved[:16].replace('T', ' '))}</span>"
        + (f"<br>{styling.esc(cut(view.note, 200))}" if view.note else "")
        + "</div>"
        for view in views[:MOST]
    ]
    more = f"<div class='wb-dim'>and {len(views) - MOST} more</div>" if len(views) > MOST else ""
    st.html(
        styling.heading("saved views")
        + f"<div class='wb-facts' style='max-height:240px;overflow-y:auto'>{''.join(lines)}{more}</div>"
    )
    by_label = {f"{view.name} · {view.id}": view for view in views}
    chosen = by_label.get(
        st.selectbox(
            "Change a view",
            list(by_label),
            index=None,
            placeholder="choose one",
            key="view chosen",
            help="Its name, its note, or delete it.",
        )
        or ""
    )
    if chosen is not None:
        change(chosen)


def change(view: saved_views.SavedView) -> None:
    """Rename, annotate or delete a view."""
    name = st.text_input("Its name", value=view.name, key=f"view name {view.id}", help="As the list shows it.")
    note = st.text_area("Its note", value=view.note, key=f"view note {view.id}", height=68, help="What was seen.")
    left, right = st.columns(2)
    if left.button("Keep changes", key="view change", width="stretch", help="Its name and its note."):
        saved_views.change(view, name=name, note=note)
        st.rerun()
    if right.button("Delete the view", key="view delete", width="stretch", help="Remove it from the list for good."):
        saved_views.delete(view)
        st.rerun()


def opened_from(model: str, fingerprint: str) -> None:
    """What has changed since the view was saved that the address names."""
    view = saved_views.get(st.query_params.get("view", ""))
    if view is not None and view.model == model and (said := saved_views.changed_since(view, fingerprint)):
        st.warning(styling.md(said))
