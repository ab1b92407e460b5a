"""The app: ``workbench app`` or ``streamlit run app.py``. One page per screen, one screen for all probes.

Streamlit reads this file twice: as a module when the server starts, and as a script each time a screen is drawn."""

import streamlit as st

if __name__ == "__main__":
    st.set_page_config(
        page_title="Interpretability workbench", layout="wide", initial_sidebar_state=230
    )  # pixels, where there is room

    from pages.widgets import navigation  # streamlit wants the page configured first

    def screen(name: str) -> None:
        from pages import probe  # when one is first opened: the first paint does not wait for it

        probe.screen(name)

    navigation.main(screen)
else:
    from workbench.cli import serve

    app = st.App(__file__, **serve.parts())
