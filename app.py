"""The app: ``workbench app`` or ``streamlit run app.py``. One page per screen; what they compute is in the package."""

import streamlit as st

st.set_page_config(
    page_title="Interpretability workbench", layout="wide", initial_sidebar_state=230
)  # pixels, where there is room

from pages.widgets import navigation  # noqa: E402  (streamlit wants the page configured first)

navigation.main()
