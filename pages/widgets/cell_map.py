"""A map of cells that are clicked and walked through with the arrow keys, Home and End: layers upwards, tokens or heads
to the right. Only what has changed is drawn again, and the keyboard stays where it was.

Inline and without anything from elsewhere, as the components beside it; every text goes into the page with
`textContent`. Cells keep a size at which words can be read, and the map scrolls, with the layers' names in sight."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st
import xxhash

from pages.widgets import styling
from workbench.core.wording import number

_CSS = """
.map {overflow: auto; max-height: 460px; color: var(--st-text-color); font-size: .72rem; padding: 3px 3px 3px 0}
.map table {border-collapse: separate; border-spacing: 1px}
.map th {font-weight: 400; color: color-mix(in srgb, var(--st-text-color) 78%, var(--st-background-color)); white-space: pre; padding: 0 4px; position: sticky; background: var(--st-background-color)}
.map tbody th {left: 0; z-index: 1; text-align: right}
.map th:first-child {box-shadow: -2px 0 var(--st-background-color), 2px 0 var(--st-background-color)}
.map tfoot th {bottom: 0; max-width: 84px; overflow: hidden; text-overflow: ellipsis; text-align: left;
  font-family: ui-monospace, "Source Code Pro", monospace}
.map tfoot th:first-child {left: 0; z-index: 2}
.map td {padding: 0}
.map button {all: unset; box-sizing: border-box; display: block; cursor: pointer; border-radius: 2px; height: 21px; line-height: 21px;
  overflow: hidden; white-space: pre; text-overflow: ellipsis; padding: 0 3px}
.map.words button {width: 64px; font-family: ui-monospace, "Source Code Pro", monospace}
.map.bare button {width: 100%; min-width: 26px}
.map button:hover {outline: 1px solid var(--st-text-color)}
.map button.at {outline: 2px solid var(--st-primary-color)}
.map button:focus-visible {outline: 3px solid var(--st-text-color)}
.foot {display: flex; align-items: center; gap: 8px; margin-top: 7px; flex-wrap: wrap; font-size: .74rem; color: var(--st-text-color)}
.foot i {display: inline-block; width: 120px; height: 9px; border-radius: 2px}
.foot .dim {opacity: .72}
.foot i.kind {width: 12px; height: 12px}
"""  # noqa: E501
_JS = """
export default function({ data, parentElement, setTriggerValue }) {
  const frame = parentElement.querySelector('.map'), foot = parentElement.querySelector('.foot');
  const active = parentElement.getRootNode().activeElement, within = active !== null && frame.contains(active);
  const columns = data.columns.length, rows = data.rows.length;
  const make = (kind, parent, text, role) => {
    const e = document.createElement(kind);
    if (text !== undefined) e.textContent = text;
    if (role) e.setAttribute('role', role);
    parent.appendChild(e);
    return e;
  };
  const draw = () => {
    const seen = [frame.scrollLeft, frame.scrollTop];
    frame.textContent = ''; foot.textContent = '';
    frame.className = 'map ' + (data.texts ? 'words' : 'bare');
    const table = make('table', frame, undefined, 'grid'), body = make('tbody', table, undefined, 'rowgroup');
    table.setAttribute('aria-label', data.name);
    for (let r = rows - 1; r >= 0; r--) {
      const row = make('tr', body, undefined, 'row');
      make('th', row, data.rows[r], 'rowheader');
      for (let c = 0; c < columns; c++) {
        const i = r * columns + c, b = make('button', make('td', row, undefined, 'presentation'), data.texts ? data.texts[i] : '', 'gridcell');
        b.type = 'button'; b.tabIndex = -1; b.dataset.cell = r + '.' + c; b.title = data.titles[i];
        b.setAttribute('aria-label', data.titles[i].replaceAll('\\n', ', ')); b.setAttribute('aria-selected', 'false');
        b.style.background = data.colours[i]; b.style.color = data.inks[i];
      }
    }
    const last = make('tr', make('tfoot', table, undefined, 'rowgroup'), undefined, 'row');
    make('th', last, data.corner, 'columnheader');
    for (const name of data.columns) make('th', last, name, 'columnheader').title = name;
    for (const [name, colour] of data.kinds) {
      const box = make('i', foot);
      box.className = 'kind'; box.style.background = colour; make('span', foot, name);
    }
    if (!data.kinds.length) {
      make('span', foot, data.low);
      make('i', foot).style.background = 'linear-gradient(to right,' + data.scale.join(',') + ')';
      make('span', foot, data.high);
    }
    make('span', foot, data.say).className = 'dim';
    frame.scrollLeft = seen[0]; frame.scrollTop = seen[1];
  };
  if (frame.dataset.stamp !== data.stamp) { draw(); frame.dataset.stamp = data.stamp; }
  const cell = (r, c) => frame.querySelector(`button[data-cell="${r}.${c}"]`);
  const mark = (b) => {
    const before = frame.querySelector('button.at');
    if (before) { before.classList.remove('at'); before.tabIndex = -1; before.setAttribute('aria-selected', 'false'); }
    b.classList.add('at'); b.tabIndex = 0; b.setAttribute('aria-selected', 'true');
  };
  const at = cell(...data.at) || cell(0, 0);
  if (at) mark(at);
  if (at && within) at.focus({ preventScroll: true });
  else if (at && !frame.scrollLeft) {  // the cell is in sight
    const over = at.getBoundingClientRect().right - frame.getBoundingClientRect().right + 8;
    if (over > 0) frame.scrollLeft = over;
  }
  const pick = (r, c) => {
    const b = cell(r, c); if (!b) return;
    mark(b); b.focus();
    setTriggerValue('picked', [r, c]);
  };
  frame.onclick = (e) => { const b = e.target.closest('button'); if (b) pick(...b.dataset.cell.split('.').map(Number)); };
  frame.onkeydown = (e) => {
    const b = e.target.closest('button'); if (!b || e.altKey || e.metaKey) return;
    const [r, c] = b.dataset.cell.split('.').map(Number), all = e.ctrlKey;
    const to = { ArrowRight: [r, c + 1], ArrowLeft: [r, c - 1], ArrowUp: [r + 1, c], ArrowDown: [r - 1, c],
      Home: [all ? rows - 1 : r, 0], End: [all ? 0 : r, columns - 1] }[e.key];
    if (to) { e.preventDefault(); pick(...to); }
  };
  parentElement.host.dataset.drawn = 'map';
}
"""  # noqa: E501

_component = st.components.v2.component(
    "workbench.map", html="<div class='map'></div><div class='foot'></div>", css=_CSS, js=_JS
)


@dataclass(frozen=True)
class CellMap:
    """What a map shows: rows (from the bottom) and columns by name, and row by row values (None: no value), a title
    each (what hovering says and a screen reader reads, the lines one after the other), and words or None."""

    name: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[float | None]
    titles: Sequence[str]
    words: Sequence[str] | None = None
    corner: str = ""
    say: str = ""
    kinds: Sequence[int] | None = None  # of each cell, the number of its name in `kind_names`, which gives its hue
    kind_names: Sequence[str] = ()


def show(
    shown: CellMap,
    *,
    key: str,
    at: tuple[int, int],
    on_pick: Callable[[int, int], None],
    diverging: bool = False,
    ends: tuple[float, float] | None = None,
) -> None:
    """Draw a map; a click or an arrow key calls ``on_pick(row, column)``."""
    known = [v for v in shown.values if v is not None and v == v]
    ends = ends or styling.limits(known, diverging=diverging)
    if shown.kinds is None:
        shades = styling.shades(shown.values, diverging=diverging, ends=ends)
    else:
        shades = styling.shades_of_kinds(shown.kinds, shown.values)
    data: dict[str, Any] = {
        "name": shown.name,
        "rows": list(shown.rows),
        "columns": list(shown.columns),
        "texts": None if shown.words is None else list(shown.words),
        "titles": list(shown.titles),
        "colours": [colour for colour, _ in shades],
        "inks": [ink for _, ink in shades],
        "corner": shown.corner,
        "low": number(ends[0]),
        "high": number(ends[1]),
        "scale": list(styling.scale(diverging=diverging)),
        "kinds": [[name, styling.hue_of_kind(k)] for k, name in enumerate(shown.kind_names)],
        "say": shown.say,
    }
    data |= {"stamp": xxhash.xxh3_64_hexdigest(json.dumps(data).encode()), "at": list(at)}

    def picked() -> None:
        found = st.session_state.get(key)
        value = None if found is None else found.get("picked")
        if value is not None:
            on_pick(int(value[0]), int(value[1]))

    _component(key=key, data=data, on_picked_change=picked)
