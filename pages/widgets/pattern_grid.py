"""Small attention patterns side by side, a canvas each: 8 bits for the root of a weight, only what a query can see."""

from __future__ import annotations

import base64
from collections.abc import Callable

import numpy as np
import streamlit as st

from pages.widgets import styling
from workbench.explorer.opened_model import Head
from workbench.explorer.pattern_thumbnails import Thumbnails
from workbench.figures import style as theme

_CSS = """
.patterns {color: var(--st-text-color); font-size: .74rem}
.patterns .bar {display: flex; gap: 4px; align-items: center; margin-bottom: 6px; flex-wrap: wrap}
.patterns .bar button {all: unset; cursor: pointer; padding: 2px 8px; border: 1px solid var(--st-border-color, #8886); border-radius: 4px}
.patterns .bar button[aria-pressed=true] {border-color: var(--st-primary-color); box-shadow: inset 0 0 0 1px var(--st-primary-color); font-weight: 600}
.patterns .all {display: grid; grid-template-columns: repeat(auto-fill, minmax(116px, 1fr)); gap: 8px; max-height: 560px; overflow-y: auto; padding: 3px}
.patterns .one {all: unset; cursor: pointer; border-radius: 3px; padding: 2px; font-variant-numeric: tabular-nums}
.patterns .one canvas {display: block; width: 100%; aspect-ratio: 1; image-rendering: pixelated; border-radius: 2px; margin-top: 2px}
.patterns .one.at {outline: 2px solid var(--st-primary-color)}
.patterns .one:hover {outline: 1px solid var(--st-text-color)}
.patterns button:focus-visible {outline: 2px dashed var(--st-primary-color); outline-offset: 1px}
"""  # noqa: E501
_JS = """
const SCALES = { linear: (r) => r * r, root: (r) => r, 'row maximum': (r, most) => most > 0 ? (r / most) ** 2 : 0 };
export default function({ data, parentElement, setTriggerValue }) {
  const box = parentElement.querySelector('.patterns'), before = box.dataset.scale;
  box.textContent = '';
  const make = (kind, parent, text) => { const e = document.createElement(kind); if (text !== undefined) e.textContent = text; parent.appendChild(e); return e; };
  const bar = make('div', box); bar.className = 'bar'; make('span', bar, 'colour');
  const all = make('div', box); all.className = 'all'; all.setAttribute('role', 'group'); all.setAttribute('aria-label', data.label);
  const raw = Uint8Array.from(atob(data.weights), (c) => c.charCodeAt(0)), n = data.side, size = n * (n + 1) / 2;
  const hex = (h) => [1, 3, 5].map((i) => parseInt(h.slice(i, i + 2), 16)), stops = data.scale.map(hex), grey = hex(data.grey);
  const shade = (v) => { const x = Math.min(1, Math.max(0, v)) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(x)), f = x - i; return stops[i].map((c, k) => c + (stops[i + 1][k] - c) * f); };
  const lut = Array.from({ length: 256 }, (_, i) => shade(i / 255));
  let scale = before && SCALES[before] ? before : 'root';
  const buttons = data.heads.map(([l, h], k) => {
    const b = make('button', all, l + '.' + h); b.type = 'button';
    const on = l === data.at[0] && h === data.at[1];
    b.className = 'one' + (on ? ' at' : ''); b.dataset.head = l + '.' + h; b.setAttribute('aria-pressed', String(on));
    b.setAttribute('aria-label', 'layer ' + l + ', head ' + h + ': ' + data.said[k]); b.title = data.said[k];
    const canvas = make('canvas', b); canvas.width = canvas.height = n;
    return b;
  });
  const start = Math.max(0, data.heads.findIndex(([l, h]) => l === data.at[0] && h === data.at[1]));
  const roving = (i) => buttons.forEach((b, k) => { b.tabIndex = k === i ? 0 : -1; });
  roving(start);
  const draw = () => {
    const f = SCALES[scale];
    buttons.forEach((b, k) => {
      const image = new ImageData(n, n);
      for (let i = 0, at = k * size; i < n; at += ++i) {
        let most = 0;
        for (let j = 0; j <= i; j++) most = Math.max(most, raw[at + j]);
        for (let j = 0; j < n; j++) {
          const c = j > i ? grey : lut[Math.round(255 * f(raw[at + j] / 255, most / 255))], p = 4 * (i * n + j);
          image.data[p] = c[0]; image.data[p + 1] = c[1]; image.data[p + 2] = c[2]; image.data[p + 3] = 255;
        }
      }
      b.lastChild.getContext('2d').putImageData(image, 0, 0);
    });
    box.dataset.scale = scale;
    bar.querySelectorAll('button').forEach((b) => b.setAttribute('aria-pressed', String(b.textContent === scale)));
  };
  for (const name of Object.keys(SCALES)) { const b = make('button', bar, name); b.type = 'button'; b.onclick = () => { scale = name; draw(); }; }
  all.onclick = (e) => { const b = e.target.closest('.one'); if (b) setTriggerValue('picked', b.dataset.head.split('.').map(Number)); };
  all.onkeydown = (e) => {
    const i = buttons.indexOf(e.target.closest('.one')); if (i < 0) return;
    const wide = buttons.filter((b) => b.offsetTop === buttons[0].offsetTop).length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide, ArrowUp: -wide }[e.key];
    if (!step || !buttons[i + step]) return;
    e.preventDefault(); e.stopPropagation(); roving(i + step); buttons[i + step].focus();
  };
  draw();
  parentElement.host.dataset.drawn = 'patterns';
}
"""  # noqa: E501

_component = st.components.v2.component("workbench.patterns", html="<div class='patterns'></div>", css=_CSS, js=_JS)


def show(found: Thumbnails, *, at: Head, label: str, key: str, on_pick: Callable[[int, int], None]) -> None:
    """The patterns; a click or Enter calls ``on_pick(layer, head)``. What a query cannot see is grey."""
    data = {
        "weights": packed(found.weights),
        "side": found.weights.shape[-1],
        "heads": [list(pair) for pair in found.heads],
        "said": strongest(found),
        "at": list(at),
        "label": label,
        "scale": list(styling.scale()),
        "grey": theme.MISSING_DARK if styling.mode() == "dark" else theme.MISSING,
    }

    def picked() -> None:
        state = st.session_state.get(key)
        value = None if state is None else state.get("picked")
        if value is not None:
            on_pick(int(value[0]), int(value[1]))

    _component(key=key, data=data, on_picked_change=picked)


def strongest(found: Thumbnails) -> list[str]:
    """Where each head looks most from the last block, in words."""
    last = found.weights[:, -1]
    return [
        f"from the end most to token {int(row.argmax()) * found.block}, {row.max():.2f}"
        + (f" (blocks of {found.block})" if found.block > 1 else "")
        for row in last
    ]


def packed(weights: np.ndarray) -> str:
    """Roots of the weights on and below the diagonal, head by head and row by row, as base64 of bytes."""
    rows, columns = np.tril_indices(weights.shape[-1])
    roots = np.sqrt(np.clip(weights[:, rows, columns], 0, 1))
    return base64.b64encode(np.rint(roots * 255).astype(np.uint8).tobytes()).decode("ascii")
