"""The head grid, a component that is inline and has nothing from elsewhere: one button a head, layers upwards.

It gets plain data and reports what is done in it as triggers. Heat maps of Plotly report no clicks; a grid of buttons
can be walked through with the arrow keys, is one stop of the tab key, and says what is selected and what is switched.
Its buttons are made once per model: what changes with a click are colours, marks and names. Cells are never smaller
than can be hit; where they need more room than there is, the grid scrolls, and layers and heads stay named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

WIDEST, TALLEST, LEAST = 38, 26, 14  # pixels of a cell
ROOM = 420, 300  # pixels that cells share before the grid scrolls
READABLE = 28, 16  # pixels from which a cell has its value written in it

_CSS = """
.frame {overflow: auto; max-height: 352px; color: var(--st-text-color); font-size: .74rem; font-variant-numeric: tabular-nums;
  width: fit-content; max-width: 100%; overscroll-behavior: contain; user-select: none}
.grid {display: grid; gap: 2px; align-items: center; justify-content: start; width: max-content; padding: 3px 3px 0 0}
.grid [role=row] {display: contents}
.grid button {all: unset; box-sizing: border-box; cursor: pointer; border-radius: 2px; text-align: center; position: relative; display: block;
  overflow: hidden; font-size: .68rem; line-height: 1; width: 100%}
.grid button.cell:hover {outline: 1px solid var(--st-text-color)}
.grid button.selected {box-shadow: 0 0 0 2px var(--st-text-color)}
.grid button.at {outline: 2px solid var(--st-primary-color) !important; outline-offset: 1px; z-index: 1; overflow: visible}
.grid button:focus-visible {outline: 2px dashed var(--st-primary-color); outline-offset: 1px}
.grid button.off::after {content: ''; position: absolute; inset: 0; background: linear-gradient(to top right, transparent calc(50% - 1.5px),
  var(--st-text-color) calc(50% - 1.5px), var(--st-text-color) calc(50% + 1.5px), transparent calc(50% + 1.5px)), var(--st-secondary-background-color); opacity: .82}
.grid [role=rowheader], .grid [role=columnheader], .grid .corner {position: sticky; z-index: 2; background: var(--st-background-color)}
.grid [role=rowheader] {left: 0; box-shadow: 0 3px var(--st-background-color), 0 -3px var(--st-background-color)}
.grid [role=columnheader] {bottom: 0; box-shadow: 2px 0 var(--st-background-color)}
.grid [role=columnheader].gap {box-shadow: 2px 0 var(--st-background-color), -5px 0 var(--st-background-color)}
.grid .corner {left: 0; z-index: 3; align-self: stretch}
.grid [role=rowheader] button {padding: 0 6px 0 2px; text-align: right; font-size: .74rem; white-space: pre}
.grid [role=rowheader] button.on {font-weight: 700; text-decoration: underline; text-underline-offset: 3px}
.grid [role=columnheader] button {font-size: .74rem; line-height: 17px; height: 17px; overflow: visible; white-space: pre}
.grid [role=rowheader] button:hover, .grid [role=columnheader] button:hover {text-decoration: underline; text-underline-offset: 3px}
.grid button.mlp {margin-left: 6px; width: 34px; background: var(--st-secondary-background-color)}
.grid button.mlp:hover {outline: 1px solid var(--st-text-color)}
.grid .gap {margin-left: 5px}
.grid {position: relative}
.grid svg.links {position: absolute; left: 0; top: 0; z-index: 1; pointer-events: none; overflow: visible}
.grid svg.links line {stroke: var(--st-background-color); stroke-width: 2.6; stroke-linecap: round; opacity: .45}
.grid svg.links line.ink {stroke: var(--st-text-color); stroke-width: 1.1; opacity: 1}
.grid svg.links path {fill: var(--st-text-color)}
.foot {display: flex; align-items: center; gap: 3px 8px; margin-top: 5px; flex-wrap: wrap; color: var(--st-text-color); font-size: .74rem;
  font-variant-numeric: tabular-nums}
.foot i {display: inline-block; width: 120px; height: 9px; border-radius: 2px}
.foot .dim {opacity: .75}
"""  # noqa: E501
_JS = """
export default function({ data, parentElement, setTriggerValue }) {
  const frame = parentElement.querySelector('.frame'), foot = parentElement.querySelector('.foot');
  const { layers, heads, group, wide, tall } = data, root = parentElement.getRootNode();
  const gap = (h) => group > 1 && h > 0 && h % group === 0, key = (l, h) => l * heads + h;
  const make = (kind, parent, role) => { const e = document.createElement(kind); if (role) e.setAttribute('role', role); parent.appendChild(e); return e; };
  const button = (parent, place, kind) => { const b = make('button', parent); b.type = 'button'; b.tabIndex = -1; b.className = kind; b.dataset.place = place; return b; };

  // ---- the buttons, once per model
  const shape = [data.model, layers, heads, group, wide, tall].join(' ');
  if (frame.dataset.shape !== shape) {
    frame.dataset.shape = shape; frame.textContent = ''; frame.pending = null; frame.anchor = null;
    const grid = make('div', frame, 'grid'); grid.className = 'grid'; grid.setAttribute('aria-multiselectable', 'true');
    grid.style.gridTemplateColumns = 'minmax(28px, auto) ' + Array.from({ length: heads }, (_, h) => (wide + (gap(h) ? 5 : 0)) + 'px').join(' ') + ' 40px';
    frame.cells = []; frame.places = new Map(); frame.mlps = []; frame.names = [];
    const put = (b) => { frame.places.set(b.dataset.place, b); return b; };
    for (let l = layers - 1; l >= 0; l--) {
      const row = make('div', grid, 'row'), name = put(button(make('div', row, 'rowheader'), l + ' -1', 'layer'));
      name.textContent = l; name.title = 'layer ' + l + ': its card; with shift: select its heads'; name.dataset.layer = l;
      name.setAttribute('aria-label', 'layer ' + l); frame.names[l] = name;
      for (let h = 0; h < heads; h++) {
        const td = make('div', row, 'gridcell'), b = put(button(td, l + ' ' + h, 'cell'));
        if (gap(h)) td.className = 'gap';
        b.dataset.key = l + '.' + h; b.style.height = b.style.lineHeight = tall + 'px';
        frame.cells[key(l, h)] = b;
      }
      const m = put(button(make('div', row, 'gridcell'), l + ' ' + heads, 'mlp'));
      m.textContent = 'MLP'; m.dataset.mlp = l; m.style.height = m.style.lineHeight = tall + 'px'; frame.mlps[l] = m;
    }
    const row = make('div', grid, 'row'); make('div', row, 'columnheader').className = 'corner';
    row.firstChild.setAttribute('aria-label', 'layer');
    const every = wide < 18 && heads > 10 ? 2 : 1;
    for (let h = 0; h < heads; h++) {
      const th = make('div', row, 'columnheader'), b = put(button(th, '-1 ' + h, 'headno'));
      if (gap(h)) th.className = 'gap';
      b.textContent = h % every === 0 ? h : ' '; b.dataset.column = h; b.title = 'select head ' + h + ' of every layer';
      b.setAttribute('aria-label', b.title);
    }
  }
  const grid = frame.firstChild, cells = frame.cells, at = key(data.at[0], data.at[1]);
  grid.setAttribute('aria-label', data.name);

  // ---- what they say now
  const off = new Set(data.off), mlps = new Set(data.mlps);
  const chosen = frame.pending ? frame.chosen : (frame.chosen = new Set(data.selected));
  const mark = () => cells.forEach((b, i) => {
    const on = chosen.has(i);
    b.classList.toggle('selected', on); b.parentNode.setAttribute('aria-selected', String(on));
  });
  cells.forEach((b, i) => {
    const l = Math.floor(i / heads), h = i % heads, [colour, ink] = data.palette[data.shades[i]];
    const more = data.beside.map(([what, values]) => what + ' ' + values[i]);
    const said = ['layer ' + l + ', head ' + h + (group > 1 ? ', key/value group ' + Math.floor(h / group) : ''), data.label + ' ' + data.values[i], ...more];
    if (off.has(i)) said.push('switched');
    b.title = said.join('\\n'); b.setAttribute('aria-label', said.join(', '));
    b.setAttribute('aria-pressed', String(off.has(i)));
    b.style.background = colour; b.style.color = ink;
    const text = data.shown ? data.shown[i] : '';
    if (b.textContent !== text) b.textContent = text;
    b.className = 'cell' + (off.has(i) ? ' off' : '') + (i === at ? ' at' : '');
    if (i === at) b.setAttribute('aria-current', 'true'); else b.removeAttribute('aria-current');
  });
  mark();
  // arrows between heads: thin, the weak ones paler, and never in the way of a click
  grid.querySelectorAll('svg.links').forEach((e) => e.remove());
  if (data.arrows.length) {
    const vector = parentElement.querySelector('svg.vector').namespaceURI;
    const svg = (kind, parent, names) => {
      const e = document.createElementNS(vector, kind);
      Object.entries(names).forEach(([k, v]) => e.setAttribute(k, v)); parent.appendChild(e); return e;
    };
    const all = svg('svg', grid, { class: 'links', width: '1', height: '1', 'aria-hidden': 'true' });
    const tip = svg('marker', svg('defs', all, {}), { id: 'tip', viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 7, markerHeight: 7,
      markerUnits: 'userSpaceOnUse', orient: 'auto' });
    svg('path', tip, { d: 'M0 0 L8 4 L0 8 Z' });
    const middle = (i) => { const b = cells[i]; return [b.offsetLeft + b.offsetWidth / 2, b.offsetTop + b.offsetHeight / 2]; };
    data.arrows.forEach(([from, to, share, said]) => {
      const [x1, y1] = middle(from), [x2, y2] = middle(to), ends = { x1, y1, x2, y2 };
      svg('line', all, ends);
      const line = svg('line', all, { ...ends, class: 'ink', 'marker-end': 'url(#tip)', 'stroke-opacity': 0.35 + 0.65 * share });
      line.dataset.link = said;
    });
  }
  frame.mlps.forEach((m, l) => {
    m.className = 'mlp' + (mlps.has(l) ? ' off' : ''); m.setAttribute('aria-pressed', String(mlps.has(l)));
    m.title = 'MLP of layer ' + l + (mlps.has(l) ? ', switched: click to switch it on' : ': click to switch it off');
    m.setAttribute('aria-label', 'MLP of layer ' + l + (mlps.has(l) ? ', switched' : ''));
  });
  frame.names.forEach((b, l) => b.className = 'layer' + (l === data.at[0] ? ' on' : ''));
  foot.textContent = '';
  const low = make('span', foot), bar = make('i', foot), high = make('span', foot), say = make('span', foot);
  low.textContent = data.low; high.textContent = data.high; say.textContent = data.say; say.className = 'dim';
  bar.style.background = 'linear-gradient(to right,' + data.scale.join(',') + ')';

  // ---- the one stop of the tab key, and what is in sight
  const roving = (b) => {
    grid.querySelectorAll('[tabindex="0"]').forEach((e) => { e.tabIndex = -1; }); b.tabIndex = 0;
  };
  const into = (b) => {
    const box = frame.getBoundingClientRect(), r = b.getBoundingClientRect();
    const left = box.left + frame.names[0].parentNode.offsetWidth + 6, bottom = box.bottom - 24;
    if (r.left < left) frame.scrollLeft -= left - r.left; else if (r.right > box.right - 6) frame.scrollLeft += r.right - box.right + 6;
    if (r.top < box.top + 4) frame.scrollTop -= box.top + 4 - r.top; else if (r.bottom > bottom) frame.scrollTop += r.bottom - bottom;
  };
  if (!grid.contains(root.activeElement)) roving(cells[at]);
  if (frame.at !== at + shape) { frame.at = at + shape; into(cells[at]); }
  parentElement.host.dataset.drawn = 'grid';

  // ---- what is done
  const step = (b) => { roving(b); b.focus({ preventScroll: true }); into(b); };
  const pick = (l, h) => {
    const b = frame.places.get(l + ' ' + h); if (!b) return;
    grid.querySelectorAll('.at').forEach((e) => { e.classList.remove('at'); e.removeAttribute('aria-current'); });
    b.classList.add('at'); b.setAttribute('aria-current', 'true'); step(b); frame.anchor = null;
    setTriggerValue('picked', [l, h]);
  };
  const toggle = (b) => {
    b.setAttribute('aria-pressed', String(b.classList.toggle('off')));
    setTriggerValue('toggled', b.dataset.key.split('.').map(Number));
  };
  const select = (keys, wait) => {  // shown at once, told when the hand rests
    chosen.clear(); keys.forEach((i) => chosen.add(i)); mark();
    if (frame.pending) clearTimeout(frame.pending);
    frame.pending = setTimeout(() => { frame.pending = null; setTriggerValue('selected', [...chosen].sort((a, b) => a - b)); }, wait || 0);
  };
  const block = (a, b) => {
    const found = [];
    for (let l = Math.min(a[0], b[0]); l <= Math.max(a[0], b[0]); l++) for (let h = Math.min(a[1], b[1]); h <= Math.max(a[1], b[1]); h++) found.push(key(l, h));
    return found;
  };
  const whole = (keys) => select(keys.every((i) => chosen.has(i)) ? [...chosen].filter((i) => !keys.includes(i)) : [...chosen, ...keys]);
  const place = (b) => b.dataset.place.split(' ').map(Number);
  const layerOf = (l) => block([l, 0], [l, heads - 1]), columnOf = (h) => block([0, h], [layers - 1, h]);
  let from = null, dragged = false, kept = [];
  grid.onpointerdown = (e) => {
    const b = e.target.closest('button.cell'); dragged = false;
    from = b && e.button === 0 && e.pointerType !== 'touch' ? place(b) : null;
    kept = e.shiftKey || e.ctrlKey || e.metaKey ? [...chosen] : [];
  };
  grid.onpointerover = (e) => {
    const b = e.target.closest('button.cell'); if (!b || !from || !(e.buttons & 1)) return;
    const to = place(b); if (!dragged && to[0] === from[0] && to[1] === from[1]) return;
    dragged = true; into(b); select([...kept, ...block(from, to)], 250);
  };
  grid.onclick = (e) => {
    if (dragged) { dragged = false; return; }
    const b = e.target.closest('button'); if (!b) return;
    const more = e.shiftKey || e.ctrlKey || e.metaKey;
    roving(b);
    if (b.dataset.column !== undefined) whole(columnOf(Number(b.dataset.column)));
    else if (b.dataset.layer !== undefined) { if (more) whole(layerOf(Number(b.dataset.layer))); else setTriggerValue('layered', Number(b.dataset.layer)); }
    else if (b.dataset.mlp !== undefined) { b.setAttribute('aria-pressed', String(b.classList.toggle('off'))); setTriggerValue('mlp', Number(b.dataset.mlp)); }
    else if (e.ctrlKey || e.metaKey) whole([key(...place(b))]);
    else if (e.shiftKey) toggle(b);
    else pick(...place(b));
  };
  const go = (l, h) => {
    l = Math.min(layers - 1, Math.max(-1, l)); h = Math.min(l < 0 ? heads - 1 : heads, Math.max(l < 0 ? 0 : -1, h));
    if (l >= 0 && h >= 0 && h < heads) pick(l, h); else step(frame.places.get(l + ' ' + h));
  };
  grid.onkeydown = (e) => {
    const b = e.target.closest('button'); if (!b) return;
    const [l, h] = place(b), cell = b.classList.contains('cell'), ctrl = e.ctrlKey || e.metaKey;
    const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[e.key];
    const done = () => { e.preventDefault(); e.stopPropagation(); };
    if (move && e.shiftKey && cell) {
      done();
      frame.anchor = frame.anchor || [l, h];
      const to = [Math.min(layers - 1, Math.max(0, l + move[0])), Math.min(heads - 1, Math.max(0, h + move[1]))];
      step(frame.places.get(to.join(' '))); select(block(frame.anchor, to), 250);
    } else if (move) { done(); go(l + move[0], h + move[1]); }
    else if (e.key === 'Home') { done(); go(ctrl ? layers - 1 : l, 0); }
    else if (e.key === 'End') { done(); go(ctrl ? 0 : l, heads - 1); }
    else if (e.key === 'PageUp') { done(); go(layers - 1, h); }
    else if (e.key === 'PageDown') { done(); go(0, h); }
    else if (e.key === ' ' && cell) { done(); toggle(b); }
    else if (e.key === 'Enter' && cell) { done(); whole([key(l, h)]); }
    else if (e.key === 'Enter' && e.shiftKey && b.dataset.layer !== undefined) { done(); whole(layerOf(l)); }
    else if (ctrl && e.key === 'a') { done(); select(cells.map((_, i) => i)); }
    else if (e.key === 'Escape' && chosen.size) { done(); select([]); }
  };
  // h j k l walk through the heads from anywhere but a field that is typed in
  const page = parentElement.ownerDocument || document;
  const keys = (e) => {
    const typing = e.composedPath().some((n) => n.isContentEditable || ['INPUT', 'TEXTAREA', 'SELECT'].includes(n.tagName));
    const move = { h: [0, -1], l: [0, 1], j: [-1, 0], k: [1, 0] }[e.key];
    if (!move || typing || e.ctrlKey || e.altKey || e.metaKey) return;
    const b = grid.querySelector('button.cell.at'); if (!b) return;
    const [l, h] = place(b);
    if (l + move[0] >= 0 && h + move[1] >= 0 && h + move[1] < heads) pick(l + move[0], h + move[1]);
  };
  if (frame.keys) page.removeEventListener('keydown', frame.keys);  // that of the last drawing
  frame.keys = keys;
  page.addEventListener('keydown', keys);
  return () => page.removeEventListener('keydown', keys);
}
"""  # noqa: E501

_grid = st.components.v2.component(
    "workbench.heads",
    html="<div class='frame'></div><div class='foot'></div><svg class='vector' hidden></svg>",
    css=_CSS,
    js=_JS,
)


def size_of_cells(layers: int, heads: int) -> tuple[int, int]:
    """Pixels (wide, tall) of a cell: as large as the room allows, and never too small to be hit."""
    wide, tall = (room // count - 2 for room, count in zip(ROOM, (heads, layers)))
    return max(LEAST, min(WIDEST, wide)), max(LEAST, min(TALLEST, tall))


def heads(
    data: dict[str, Any],
    *,
    key: str,
    on_pick: Callable[[int, int], None],
    on_toggle: Callable[[int, int], None],
    on_layer: Callable[[int], None],
    on_mlp: Callable[[int], None],
    on_select: Callable[[Sequence[int]], None],
) -> None:
    """The head grid; `data` as `head_cells.data` makes it. A head is numbered layer · heads + head in it.

    A click or arrow key picks, shift-click or the space bar toggles; a click on an MLP toggles it. A drag, shift with
    the arrow keys, Ctrl-click, Enter, or a click on a head's number (with shift on a layer's) select: `on_select` gets
    the numbers of all that are selected then."""

    def changed(name: str, call: Callable[[Any], None]) -> Callable[[], None]:
        def told() -> None:
            found = st.session_state.get(key)
            value = None if found is None else found.get(name)
            if value is not None:
                call(value)

        return told

    _grid(
        key=key,
        data=data,
        on_picked_change=changed("picked", lambda pair: on_pick(int(pair[0]), int(pair[1]))),
        on_toggled_change=changed("toggled", lambda pair: on_toggle(int(pair[0]), int(pair[1]))),
        on_layered_change=changed("layered", lambda layer: on_layer(int(layer))),
        on_mlp_change=changed("mlp", lambda layer: on_mlp(int(layer))),
        on_selected_change=changed("selected", lambda numbers: on_select([int(i) for i in numbers])),
    )
