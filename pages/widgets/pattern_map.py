"""The whole attention pattern of one head, drawn on a canvas: up to 512 × 512 weights as 16-bit numbers, names of
tokens once. Scales change in the browser, without a pass of the model."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence

import numpy as np
import streamlit as st

from pages.widgets import styling
from workbench.figures import style as theme

STEPS = 65535  # weights are rounded to 1 / STEPS

_CSS = """
.pattern {color: var(--st-text-color); font-size: .74rem}
.pattern .bar {display: flex; gap: 4px; align-items: center; margin-bottom: 5px; flex-wrap: wrap}
.pattern .bar button {all: unset; cursor: pointer; padding: 2px 8px; border: 1px solid var(--st-border-color, #8886); border-radius: 4px}
.pattern .bar button[aria-pressed=true] {border-color: var(--st-primary-color); box-shadow: inset 0 0 0 1px var(--st-primary-color); font-weight: 600}
.pattern .bar button:focus-visible, .pattern canvas:focus-visible {outline: 2px dashed var(--st-primary-color); outline-offset: 1px}
.pattern canvas {image-rendering: pixelated; cursor: crosshair; max-width: 100%; display: block}
.pattern .say {min-height: 2.6em; margin-top: 4px; font-variant-numeric: tabular-nums; white-space: pre-wrap}
"""  # noqa: E501
_JS = """
const SCALES = { linear: (w) => w, 'root': (w) => Math.sqrt(w), 'log': (w) => w > 0 ? Math.max(0, 1 + Math.log10(w) / 4) : 0, 'row maximum': (w, most) => most > 0 ? w / most : 0 };
export default function({ data, parentElement, setTriggerValue }) {
  const box = parentElement.querySelector('.pattern');
  const before = box.dataset.scale, active = parentElement.getRootNode().activeElement;
  const within = active !== null && active.tagName === 'CANVAS' && box.contains(active);
  box.textContent = '';
  const make = (kind, parent, text) => { const e = document.createElement(kind); if (text !== undefined) e.textContent = text; parent.appendChild(e); return e; };
  const bar = make('div', box); bar.className = 'bar'; make('span', bar, 'colour');
  bar.setAttribute('role', 'group'); bar.setAttribute('aria-label', 'Colour of the pattern');
  const canvas = make('canvas', box), say = make('div', box); say.className = 'say'; say.setAttribute('aria-live', 'polite');
  const raw = Uint8Array.from(atob(data.weights), (c) => c.charCodeAt(0)), w = new Uint16Array(raw.buffer), T = data.names.length;
  const hex = (h) => [1, 3, 5].map((i) => parseInt(h.slice(i, i + 2), 16)), stops = data.scale.map(hex), grey = hex(data.grey);
  const shade = (v) => { const x = Math.min(1, Math.max(0, v)) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(x)), f = x - i; return stops[i].map((c, k) => c + (stops[i + 1][k] - c) * f); };
  const lut = Array.from({ length: 1024 }, (_, i) => shade(i / 1023));
  const side = Math.max(T, Math.floor(430 / T) * T), zoom = side / T;
  canvas.width = side; canvas.height = side; canvas.style.width = Math.max(side, 260) + 'px'; canvas.tabIndex = 0;
  canvas.setAttribute('role', 'application'); canvas.setAttribute('aria-label', data.label);
  canvas.setAttribute('aria-description', 'Arrow keys walk through the cells, Enter asks from the token of the row.');
  const small = document.createElement('canvas'); small.width = T; small.height = T;
  let scale = before && SCALES[before] && !data.most ? before : 'linear', at = [data.at, data.at];
  const most = Array.from({ length: T }, (_, i) => { let m = 0; for (let j = 0; j <= i; j++) m = Math.max(m, w[i * T + j]); return m / 65535; });
  const mark = () => {
    const ctx = canvas.getContext('2d'); ctx.imageSmoothingEnabled = false;
    ctx.drawImage(small, 0, 0, side, side);
    ctx.strokeStyle = data.mark; ctx.lineWidth = Math.max(1, zoom / 8);
    ctx.strokeRect(at[1] * zoom, at[0] * zoom, zoom, zoom);
  };
  const draw = () => {
    const image = new ImageData(T, T), f = SCALES[scale];
    for (let i = 0; i < T; i++) for (let j = 0; j < T; j++) {
      const c = j > i ? grey : lut[Math.round(1023 * Math.min(1, Math.max(0, f(w[i * T + j] / 65535, most[i]))))], k = 4 * (i * T + j);
      image.data[k] = c[0]; image.data[k + 1] = c[1]; image.data[k + 2] = c[2]; image.data[k + 3] = 255;
    }
    small.getContext('2d').putImageData(image, 0, 0); mark();
    box.dataset.scale = scale;
    bar.querySelectorAll('button').forEach((b) => b.setAttribute('aria-pressed', String(b.textContent === scale)));
  };
  for (const name of data.most ? ['linear'] : Object.keys(SCALES)) { const b = make('button', bar, name); b.type = 'button'; b.onclick = () => { scale = name; draw(); }; }
  const value = (u) => data.most ? ((2 * u / 65535 - 1) * data.most).toFixed(4) : (u / 65535).toFixed(4);
  if (data.most) make('span', bar, 'from ' + (-data.most).toFixed(3) + ' to ' + data.most.toFixed(3));
  const told = (i, j) => { say.textContent = 'from ' + i + ' ' + data.names[i] + '\\nto ' + j + ' ' + data.names[j] + ': ' + (j > i ? 'not seen' : value(w[i * T + j])); };
  const where = (e) => { const r = canvas.getBoundingClientRect(); return [e.clientY - r.top, e.clientX - r.left].map((v, k) => Math.min(T - 1, Math.max(0, Math.floor(v / (k ? r.width : r.height) * T)))); };
  canvas.onmousemove = (e) => told(...where(e));
  canvas.onclick = (e) => { at = where(e); mark(); told(...at); setTriggerValue('picked', at[0]); };
  canvas.onkeydown = (e) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -T], End: [0, T] }[e.key];
    if (step) { e.preventDefault(); e.stopPropagation(); at = at.map((v, k) => Math.min(T - 1, Math.max(0, v + step[k]))); mark(); told(...at); }
    if (e.key === 'Enter') setTriggerValue('picked', at[0]);
  };
  draw(); told(...at);
  if (within) canvas.focus({ preventScroll: true });
  parentElement.host.dataset.drawn = 'pattern';
}
"""  # noqa: E501

_component = st.components.v2.component("workbench.pattern", html="<div class='pattern'></div>", css=_CSS, js=_JS)


def show(
    weights: np.ndarray,
    names: Sequence[str],
    *,
    at: int,
    label: str,
    key: str,
    on_pick: Callable[[int], None],
    diverging: bool = False,
) -> None:
    """The pattern [T queries, T keys]; a click or Enter calls ``on_pick(query)``. What a token cannot see is grey.
    `diverging`: a difference of two patterns, on a scale symmetric about 0."""
    most = float(np.abs(weights).max()) or 1.0 if diverging else 0.0
    dark = styling.mode() == "dark"
    data = {
        "weights": packed((weights / most + 1) / 2 if diverging else weights),
        "most": most,
        "names": list(names),
        "at": at,
        "label": label,
        "scale": list(styling.scale(diverging=diverging)),
        "grey": theme.MISSING_DARK if dark else theme.MISSING,
        "mark": styling.contrast(),
    }

    def picked() -> None:
        found = st.session_state.get(key)
        value = None if found is None else found.get("picked")
        if value is not None:
            on_pick(int(value))

    _component(key=key, data=data, on_picked_change=picked)


def packed(weights: np.ndarray) -> str:
    """Weights from 0 to 1 as base64 of unsigned 16-bit numbers, row by row."""
    rounded = np.rint(np.clip(weights, 0, 1) * STEPS).astype("<u2")
    return base64.b64encode(rounded.tobytes()).decode("ascii")
