"""The part of a screen's state that no widget holds: in the URL, so that a link restores the view, and in the session,
so that it is still there when one comes back from another page."""

from __future__ import annotations

import streamlit as st


def get(screen: str, key: str, default: str = "") -> str:
    """The value from the URL, else the last one of this session."""
    if key in st.query_params:
        value = st.query_params[key]
        st.session_state[f"last {screen} {key}"] = value
        return value
    value = st.session_state.get(f"last {screen} {key}", default)
    if value and value != default:
        st.query_params[key] = value
    return value


def put(screen: str, key: str, value: str) -> None:
    st.session_state[f"last {screen} {key}"] = value
    if value:
        st.query_params[key] = value
    elif key in st.query_params:
        del st.query_params[key]
