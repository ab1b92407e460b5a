"""Streamlit as `workbench app` starts it: ``python -m workbench.cli.serve run app.py …``.

A folder called pages is streamlit's old way to declare screens. Until the first call of st.navigation it would take
each file there for a screen and no other address for one: a link to a probe would not be found if it came first."""

if __name__ == "__main__":
    from streamlit.runtime.pages_manager import PagesManager
    from streamlit.web.cli import main

    PagesManager.uses_pages_directory = False  # what st.navigation does
    main()
