"""The token strip, a component that is inline and has nothing from elsewhere.

It gets plain data and puts every text into the page with `textContent`, so a token can hold any character. It reports
clicks as triggers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

_TOKENS_CSS = """
.strip {display: flex; flex-wrap: wrap; gap: 2px 1px; max-height: 168px; overflow-y: auto; padding: 2px;
  font-family: ui-monospace, "Source Code Pro", monospace; font-size: .86rem}
.strip button {all: unset; white-space: pre; padding: 1px 3px; min-width: .5em; border-radius: 3px; cursor: pointer; box-sizing: border-box;
  border: 1px solid transparent; line-height: 1.35; color: inherit}
.strip button.special {font-size: .74rem; border-style: dashed; border-color: currentColor}
.strip button.at {outline: 2px solid var(--st-primary-color)}
.strip button:hover, .strip button:focus-visible {border-color: var(--st-primary-color)}
.strip span {flex-basis: 100%; height: 0}
"""  # noqa: E501
_TOKENS_JS = """
export default function({ data, parentElement, setTriggerValue }) {
  let strip = parentElement.querySelector('.strip');
  strip.textContent = '';
  strip.style.color = 'var(--st-text-color)';
  data.tokens.forEach((token, i) => {
    const b = document.createElement('button');
    b.textContent = token.shown;
    b.title = token.title;
    b.dataset.i = i;
    b.type = 'button';
    b.setAttribute('aria-label', token.title);
    if (token.special) b.classList.add('special');
    if (i === data.at) b.classList.add('at');
    if (token.colour) { b.style.background = token.colour; b.style.color = token.ink; }
    else b.style.background = 'var(--st-secondary-background-color)';
    strip.appendChild(b);
    if (token.line) strip.appendChild(document.createElement('span'));
  });
  const pick = (i) => {
    strip.querySelectorAll('.at').forEach((e) => e.classList.remove('at'));
    const b = strip.querySelector(`button[data-i="${i}"]`);
    if (!b) return;
    b.classList.add('at'); b.focus();
    setTriggerValue('picked', i);
  };
  parentElement.host.dataset.drawn = 'tokens';
  const now = strip.querySelector('.at');
  if (now) strip.scrollTop = now.offsetTop - strip.offsetTop - strip.clientHeight / 2;
  strip.onclick = (e) => { const b = e.target.closest('button'); if (b) pick(Number(b.dataset.i)); };
  strip.onkeydown = (e) => {
    const b = e.target.closest('button'); if (!b) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (step) { e.preventDefault(); pick(Number(b.dataset.i) + step); }
  };
}
"""

_tokens = st.components.v2.component(
    "workbench.tokens", html="<div class='strip'></div>", css=_TOKENS_CSS, js=_TOKENS_JS
)


def tokens(items: Sequence[dict[str, Any]], *, at: int, key: str, on_pick: Callable[[int], None]) -> None:
    """The tokens of a prompt; ``items``: shown, title, special, line (a break follows), colour and ink (or None). A
    click or an arrow key calls ``on_pick(position)``."""

    def picked() -> None:
        value = _of(key, "picked")
        if value is not None:
            on_pick(int(value))

    _tokens(key=key, data={"tokens": list(items), "at": at}, on_picked_change=picked)


def _of(key: str, name: str) -> Any:
    found = st.session_state.get(key)
    return None if found is None else found.get(name)
