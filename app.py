"""The app: ``workbench app`` or ``streamlit run app.py``. One page per screen, one screen for all probes."""

import streamlit as st

st.set_page_config(
    page_title="Interpretability workbench", layout="wide", initial_sidebar_state=230
)  # pixels, where there is room

from pages.widgets import navigation  # noqa: E402  (streamlit wants the page configured first)


def screen(name: str) -> None:
    from pages import probe  # when one is first opened: the first paint does not wait for it

    probe.screen(name)


navigation.main(screen)
