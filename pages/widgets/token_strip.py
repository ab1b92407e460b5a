"""The tokens of a prompt as a list in which one is chosen: by a click, the arrow keys, Home or End.

The component is inline and has nothing from elsewhere. It gets plain data and puts every text into the page with
`textContent`, so a token can hold any character. It reports clicks as triggers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from pages.widgets import styling
from workbench.explorer import opened_model
from workbench.explorer.opened_model import Opened

_CSS = """
.strip {display: flex; flex-wrap: wrap; gap: 2px 1px; max-height: 168px; overflow-y: auto; padding: 3px; position: relative;
  font-family: ui-monospace, "Source Code Pro", monospace; font-size: .86rem; color: var(--st-text-color)}
.strip button {all: unset; white-space: pre; padding: 1px 3px; min-width: .5em; border-radius: 3px; cursor: pointer; box-sizing: border-box;
  border: 1px solid transparent; line-height: 1.35; color: inherit; background: var(--st-secondary-background-color)}
.strip button.special {font-size: .74rem; border-style: dashed; border-color: currentColor}
.strip button[aria-selected=true] {outline: 2px solid var(--st-primary-color)}
.strip button:hover {border-color: var(--st-primary-color)}
.strip button:focus-visible {outline: 3px solid var(--st-text-color); outline-offset: 0}
.strip span {flex-basis: 100%; height: 0}
"""  # noqa: E501
_JS = """
export default function({ data, parentElement, setTriggerValue }) {
  const strip = parentElement.querySelector('.strip');
  const active = parentElement.getRootNode().activeElement;
  const within = active !== null && strip.contains(active);
  strip.textContent = '';
  strip.setAttribute('aria-label', data.label);
  const tokens = data.tokens.map((token, i) => {
    const b = document.createElement('button');
    b.textContent = token.shown;
    b.title = token.title;
    b.dataset.i = i;
    b.type = 'button';
    b.setAttribute('role', 'option');
    b.setAttribute('aria-label', token.name);
    if (token.special) b.classList.add('special');
    if (token.colour) { b.style.background = token.colour; b.style.color = token.ink; }
    strip.appendChild(b);
    if (token.line) { const end = document.createElement('span'); end.setAttribute('role', 'presentation'); strip.appendChild(end); }
    return b;
  });
  let at = null;
  const mark = (b) => {
    if (at) at.setAttribute('aria-selected', 'false');
    at = b; at.setAttribute('aria-selected', 'true');
    tokens.forEach((t) => { t.tabIndex = t === at ? 0 : -1; });
  };
  tokens.forEach((b) => b.setAttribute('aria-selected', 'false'));
  mark(tokens[data.at]);
  strip.scrollTop = at.offsetTop - strip.clientHeight / 2;
  if (within) at.focus({ preventScroll: true });
  const pick = (i) => {
    const b = tokens[i];
    if (!b || b === at) return;
    mark(b); b.focus();
    setTriggerValue('picked', i);
  };
  strip.onclick = (e) => { const b = e.target.closest('button'); if (b) pick(Number(b.dataset.i)); };
  strip.onkeydown = (e) => {
    const b = e.target.closest('button'); if (!b || e.ctrlKey || e.altKey || e.metaKey) return;
    const i = Number(b.dataset.i), last = tokens.length - 1;
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: last }[e.key];
    if (to === undefined) return;
    e.preventDefault(); pick(Math.min(last, Math.max(0, to)));
  };
  parentElement.host.dataset.drawn = 'tokens';
}
"""  # noqa: E501

_component = st.components.v2.component(
    "workbench.tokens", html="<div class='strip' role='listbox' aria-orientation='horizontal'></div>", css=_CSS, js=_JS
)


def show(
    opened: Opened, ids: Sequence[int], weights: Sequence[float], *, at: int, key: str, on_pick: Callable[[int], None]
) -> None:
    """The tokens of a prompt, coloured by ``weights`` (from 0 to 1, one per token) up to the chosen one, ``at``. A
    click or a key calls ``on_pick(position)``."""
    draw(items(opened, ids, weights, at), at=at, label="Tokens of the prompt", key=key, on_pick=on_pick)


def draw(tokens: Sequence[dict[str, Any]], *, at: int, label: str, key: str, on_pick: Callable[[int], None]) -> None:
    """Any row of tokens, as `items` describes them; ``at``: the chosen one. A click or a key calls ``on_pick``."""
    _component(
        key=key,
        data={"tokens": list(tokens), "at": at, "label": label},
        on_picked_change=lambda: _picked(key, on_pick),
    )


def items(opened: Opened, ids: Sequence[int], weights: Sequence[float], at: int) -> list[dict[str, Any]]:
    """What is shown of each token, and its name: its word, then where it stands and what it gets."""
    weights = [float(w) for w in weights]
    shades = styling.shades([w if i <= at else None for i, w in enumerate(weights)], ends=(0.0, 1.0))
    found = []
    for i, token, text, special in opened_model.tokens(opened, ids).iter_rows():
        attention = f", attention {weights[i]:.3f}" if i <= at else ""
        found.append(
            {
                "shown": styling.token(text),
                "special": bool(special),
                "line": "\n" in text,
                "title": f"position {i}, id {token}{attention}",
                "name": f"{spoken(text)}, position {i}{attention}",
                "colour": shades[i][0] if i <= at else None,
                "ink": shades[i][1] if i <= at else None,
            }
        )
    return found


WHITE = {" ": "space", "\n": "line break", "\t": "tab", "\r": "carriage return"}


def spoken(text: str) -> str:
    """A token as a screen reader can say it: its word; white space by its name where there is nothing else."""
    if text.strip():
        return text.strip()
    names = [WHITE.get(character, "white space") for character in text]
    if not names:
        return "empty token"
    return names[0] if len(names) == 1 else f"{len(names)} characters, {', '.join(dict.fromkeys(names))}"


def _picked(key: str, on_pick: Callable[[int], None]) -> None:
    found = st.session_state.get(key)
    value = None if found is None else found.get("picked")
    if value is not None:
        on_pick(int(value))
