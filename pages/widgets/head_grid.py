"""The head grid, a component that is inline and has nothing from elsewhere: one button a head, layers upwards.

It gets plain data and reports clicks as triggers. Heat maps of Plotly report no clicks, and a grid of buttons can be
walked through with the arrow keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

_CSS = """
.frame {overflow-x: auto; padding: 3px; color: var(--st-text-color); font-size: .74rem; font-variant-numeric: tabular-nums}
.grid {display: grid; gap: 2px; align-items: center; justify-content: start; width: max-content; max-width: 100%}
.grid button {all: unset; box-sizing: border-box; cursor: pointer; border-radius: 2px; text-align: center; position: relative;
  overflow: hidden; font-size: .68rem; line-height: 1}
.grid button.cell:hover {outline: 1px solid var(--st-text-color)}
.grid button.at {outline: 2px solid var(--st-primary-color) !important; outline-offset: 1px; z-index: 1}
.grid button:focus-visible {outline: 2px dashed var(--st-primary-color); outline-offset: 1px}
.grid button.off::after {content: ''; position: absolute; inset: 0; background: linear-gradient(to top right, transparent calc(50% - 1.5px),
  var(--st-text-color) calc(50% - 1.5px), var(--st-text-color) calc(50% + 1.5px), transparent calc(50% + 1.5px)), var(--st-secondary-background-color); opacity: .82}
.grid button.layer {padding: 0 6px; opacity: .75; text-align: right; font-size: .74rem}
.grid button.layer.on {opacity: 1; font-weight: 700; text-decoration: underline; text-underline-offset: 3px}
.grid button.mlp {margin-left: 6px; opacity: .85; background: var(--st-secondary-background-color)}
.grid button.mlp:hover {outline: 1px solid var(--st-text-color)}
.grid .headno {text-align: center; opacity: .6}
.grid .gap {margin-left: 5px}
.foot {display: flex; align-items: center; gap: 8px; margin-top: 7px; flex-wrap: wrap}
.foot i {display: inline-block; width: 120px; height: 9px; border-radius: 2px}
.foot .dim {opacity: .68}
"""  # noqa: E501
_JS = """
export default function({ data, parentElement, setTriggerValue }) {
  const frame = parentElement.querySelector('.frame');
  const focused = parentElement.activeElement || (parentElement.getRootNode().activeElement);
  const had = focused && focused.dataset ? focused.dataset.key : null;
  frame.textContent = '';
  const { layers, heads, group } = data;
  const wide = Math.max(8, Math.min(38, Math.floor(560 / heads) - 2));
  const tall = Math.max(8, Math.min(26, Math.floor(300 / layers) - 2));
  const grid = document.createElement('div');
  grid.className = 'grid';
  grid.style.gridTemplateColumns = 'minmax(30px, auto) ' + Array.from({ length: heads }, (_, h) => (wide + (h && group > 1 && h % group === 0 ? 5 : 0)) + 'px').join(' ') + ' 40px';
  const gap = (h) => group > 1 && h > 0 && h % group === 0;
  const cell = (l, h) => grid.querySelector(`button[data-key="${l}.${h}"]`);
  for (let l = layers - 1; l >= 0; l--) {
    const name = document.createElement('button');
    name.type = 'button';
    name.className = 'layer' + (l === data.layer ? ' on' : '');
    name.textContent = data.names[l]; name.title = 'layer ' + l; name.dataset.layer = l;
    grid.appendChild(name);
    for (let h = 0; h < heads; h++) {
      const c = data.cells[l * heads + h];
      const b = document.createElement('button');
      b.type = 'button';
      b.className = 'cell' + (c.off ? ' off' : '') + (l === data.at[0] && h === data.at[1] ? ' at' : '') + (gap(h) ? ' gap' : '');
      b.dataset.key = l + '.' + h; b.title = c.title; b.setAttribute('aria-label', c.title);
      b.style.background = c.colour; b.style.height = tall + 'px'; b.style.color = c.ink; b.style.lineHeight = tall + 'px';
      if (wide >= 34 && tall >= 16) b.textContent = c.shown;
      grid.appendChild(b);
    }
    const m = document.createElement('button');
    m.type = 'button'; m.className = 'mlp' + (data.mlps[l] ? ' off' : ''); m.textContent = 'MLP'; m.dataset.mlp = l;
    m.title = 'MLP of layer ' + l + (data.mlps[l] ? ', switched: click to switch it on' : ': click to switch it off');
    m.setAttribute('aria-label', m.title); m.setAttribute('aria-pressed', String(data.mlps[l]));
    m.style.height = tall + 'px'; m.style.lineHeight = tall + 'px';
    grid.appendChild(m);
  }
  grid.appendChild(document.createElement('div'));
  const every = heads > 24 ? 4 : 1;
  for (let h = 0; h < heads; h++) {
    const d = document.createElement('div');
    d.className = 'headno' + (gap(h) ? ' gap' : '');
    d.textContent = h % every === 0 ? h : '';
    grid.appendChild(d);
  }
  frame.appendChild(grid);
  const foot = document.createElement('div'); foot.className = 'foot';
  const low = document.createElement('span'), bar = document.createElement('i'), high = document.createElement('span'), say = document.createElement('span');
  low.textContent = data.low; high.textContent = data.high; say.textContent = data.say; say.className = 'dim';
  bar.style.background = 'linear-gradient(to right,' + data.scale.join(',') + ')';
  foot.append(low, bar, high, say); frame.appendChild(foot);
  if (had) { const b = grid.querySelector(`button[data-key="${had}"]`); if (b) b.focus({ preventScroll: true }); }
  const pick = (l, h) => {
    const b = cell(l, h); if (!b) return;
    grid.querySelectorAll('.at').forEach((e) => e.classList.remove('at'));
    b.classList.add('at'); b.focus({ preventScroll: true });
    setTriggerValue('picked', [l, h]);
  };
  parentElement.host.dataset.drawn = 'grid';
  grid.onclick = (e) => {
    const b = e.target.closest('button'); if (!b) return;
    if (b.dataset.layer !== undefined) { setTriggerValue('layered', Number(b.dataset.layer)); return; }
    if (b.dataset.mlp !== undefined) { b.classList.toggle('off'); setTriggerValue('mlp', Number(b.dataset.mlp)); return; }
    const [l, h] = b.dataset.key.split('.').map(Number);
    if (e.shiftKey || e.ctrlKey || e.metaKey) { b.classList.toggle('off'); setTriggerValue('toggled', [l, h]); }
    else pick(l, h);
  };
  grid.onkeydown = (e) => {
    const b = e.target.closest('button.cell'); if (!b) return;
    const [l, h] = b.dataset.key.split('.').map(Number);
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[e.key];
    if (step) { e.preventDefault(); pick(l + step[0], h + step[1]); }
    if (e.key === ' ') { e.preventDefault(); b.classList.toggle('off'); setTriggerValue('toggled', [l, h]); }
  };
  // h j k l walk through the heads from anywhere but a field that is typed in
  const page = parentElement.ownerDocument || document;
  const keys = (e) => {
    const typing = e.composedPath().some((n) => n.isContentEditable || ['INPUT', 'TEXTAREA', 'SELECT'].includes(n.tagName));
    const step = { h: [0, -1], l: [0, 1], j: [-1, 0], k: [1, 0] }[e.key];
    if (!step || typing || e.ctrlKey || e.altKey || e.metaKey) return;
    const b = grid.querySelector('button.cell.at'); if (!b) return;
    const [l, h] = b.dataset.key.split('.').map(Number);
    pick(l + step[0], h + step[1]);
  };
  page.addEventListener('keydown', keys);
  return () => page.removeEventListener('keydown', keys);
}
"""  # noqa: E501

_grid = st.components.v2.component("workbench.heads", html="<div class='frame'></div>", css=_CSS, js=_JS)


def heads(
    data: dict[str, Any],
    *,
    key: str,
    on_pick: Callable[[int, int], None],
    on_toggle: Callable[[int, int], None],
    on_layer: Callable[[int], None],
    on_mlp: Callable[[int], None],
) -> None:
    """The head grid; ``data``: layers, heads, group (query heads per key/value head), at (layer, head), layer, names,
    mlps (whether each is switched), cells (colour, ink, shown, title, off; layer by layer), low, high, scale, say. A
    click or arrow key picks, shift-click or the space bar toggles; a click on an MLP toggles it."""

    def pair(name: str, call: Callable[[int, int], None]) -> Callable[[], None]:
        def changed() -> None:
            value = _of(key, name)
            if value is not None:
                call(int(value[0]), int(value[1]))

        return changed

    def one(name: str, call: Callable[[int], None]) -> Callable[[], None]:
        def changed() -> None:
            value = _of(key, name)
            if value is not None:
                call(int(value))

        return changed

    _grid(
        key=key,
        data=data,
        on_picked_change=pair("picked", on_pick),
        on_toggled_change=pair("toggled", on_toggle),
        on_layered_change=one("layered", on_layer),
        on_mlp_change=one("mlp", on_mlp),
    )


def _of(key: str, name: str) -> Any:
    found = st.session_state.get(key)
    return None if found is None else found.get(name)
