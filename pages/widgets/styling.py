"""How the screens look: one style sheet, escaped text, small tables with bars, numbers with intervals, errors as
sentences."""

from __future__ import annotations

import functools
import html
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from pages.widgets import figure_box
from workbench.core import registry
from workbench.core.errors import WorkbenchError, is_panic
from workbench.core.wording import cut, duration, number
from workbench.explorer.head_sets import model_info
from workbench.figures import style as theme

# Nothing jumps while a screen loads. Streamlit fetches the code of each kind of element when it first meets one, this
# style sheet too: the page has one pixel of height until the sheet has come, and for its first seconds a page (and the
# view of a model, which comes when the model is loaded) stays unseen while a widget in it is a grey placeholder or a
# component is not drawn. Figures have their height before they have their code. The side bar's width
# is left free until it is there (the first visit to a server opens it before it hears of its width), and what stands
# below the list of screens waits for that list.
CSS = """
header[data-testid='stHeader'] {height: 2.5rem; min-height: 2.5rem}
.stMainBlockContainer {padding: 2.9rem 1.6rem 2rem; max-width: 1680px}
[data-testid="stSidebarContent"] {font-size: .93rem}
.st-key-page {height: auto !important; overflow: visible !important}
.st-key-page, .st-key-view {animation: wb-opens 5s}
:is(.st-key-page, .st-key-view):has([data-testid="stSkeleton"]:not([class*="st-key-figure-"] *)),
:is(.st-key-page, .st-key-view):has(.st-key-grid):not(:has([data-drawn="grid"])),
:is(.st-key-page, .st-key-view):has(.st-key-tokens):not(:has([data-drawn="tokens"])) {visibility: var(--wb-opening, visible)}
@keyframes wb-opens {from {--wb-opening: hidden} to {--wb-opening: hidden}}
@media (min-width: 769px) {[data-testid="stAppViewContainer"]:not(:has([data-testid="stSidebar"])) [data-testid="stMain"] {margin-left: 230px}}
section[data-testid="stSidebar"] {width: 230px !important}
[data-testid="stSidebarContent"]:not(:has([data-testid="stSidebarNav"])) [data-testid="stSidebarUserContent"] {visibility: hidden}
h1, h2, h3 {padding: 0 !important} [data-testid="stHeading"] {margin-bottom: .35rem}
[data-testid="stVerticalBlock"] {gap: .55rem}
.wb-unseen {position: absolute !important; width: 1px; height: 1px; margin: 0 !important; overflow: hidden; clip-path: inset(50%); white-space: nowrap}
[data-testid="stElementContainer"]:has(> [data-testid="stHtml"] > .wb-unseen) {position: absolute; width: 1px !important; height: 1px; overflow: hidden}
[data-testid="stCaptionContainer"] {opacity: 1 !important}
[data-testid="stSliderThumbValue"], [data-testid="stSliderThumbValue"] p {color: inherit}
[data-testid="stCaptionContainer"] p {color: color-mix(in srgb, currentColor 76%, transparent)}
[data-testid="stWidgetLabel"][disabled] p {color: light-dark(#5B6270, #A6ADBB)}
[data-testid="stMain"] button[data-selected="true"] p {color: light-dark(#1E54C0, #A9B8FA)}
[data-testid="stMain"] button kbd {color: inherit !important; opacity: 1 !important}
[data-testid="stCode"] .token {color: inherit !important}
[data-testid="stCode"] .token:is(.keyword, .builtin, .boolean, .number) {color: color-mix(in srgb, currentColor 45%, #2E6FE8) !important}
[data-testid="stCode"] .token.string {color: color-mix(in srgb, currentColor 45%, #1F9D4D) !important}
[data-testid="stCode"] .token.comment {color: color-mix(in srgb, currentColor 76%, transparent) !important}
.wb-dim {opacity: .72}
.wb-work > div {font-size: .82rem; line-height: 1.25; margin-bottom: .45rem; overflow-wrap: anywhere}
table.wb {border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums}
table.wb td, table.wb th {padding: .12rem .4rem .12rem 0; text-align: left; vertical-align: middle; border: 0; font-weight: 400}
table.wb th {opacity: .72; font-size: .8rem; white-space: nowrap}
table.wb td.num, table.wb th.num {text-align: right; white-space: nowrap}
table.wb td.tok {font-family: ui-monospace, "Source Code Pro", monospace; white-space: pre; max-width: 13rem; overflow: hidden; text-overflow: ellipsis}
table.wb td.bar {width: 50%; min-width: 3rem} table.wb.two td.bar {width: 26%}
table.wb td.bar i {display: block; height: .7rem; border-radius: 2px; min-width: 1px}
table.wb tr.on td {font-weight: 600}
.wb-scroll {overflow-x: auto; max-width: 100%}
.wb-tall {max-height: 330px; overflow-y: auto}
.wb-text {font-family: ui-monospace, "Source Code Pro", monospace; font-size: .86rem; white-space: pre-wrap; overflow-wrap: anywhere;
  border-left: 2px solid; padding: .1rem 0 .1rem .6rem; margin: .15rem 0}
.wb-grows {min-height: 2.7rem}
.st-key-prompt textarea {field-sizing: content; height: auto !important; min-height: 0 !important; max-height: 7.5rem; line-height: 1.3; padding-block: .58rem}
.st-key-prompt [data-testid="stTextAreaRootElement"] {height: auto !important; min-height: 0 !important}
:is(.wb-facts, table.wb) a {color: inherit; text-decoration: underline}
.wb-head {font-size: .8rem !important; font-weight: 400 !important; line-height: 1.4; opacity: .72; margin: .3rem 0 .05rem !important}
.wb-facts {font-size: .86rem; line-height: 1.45; overflow-wrap: anywhere}
@media (hover: none) {.modebar-container {display: none}}
@media (max-width: 640px) {.stMainBlockContainer {padding: 2.9rem .7rem 1rem}}
"""  # noqa: E501


def style() -> None:
    st.html(f"<style>{CSS}{figure_box.CSS}</style>")


def mode() -> str:
    """light or dark, as the browser shows the app now."""
    found = getattr(st.context.theme, "type", None)
    return found if found in theme.MODES else "light"


def esc(text: object) -> str:
    """Text from outside, for HTML."""
    return html.escape(str(text), quote=True)


def md(text: object) -> str:
    """Text from outside, for Markdown: every mark is only itself.

    Streamlit makes links of addresses, icons of their names and signs of arrows also where every mark of them is
    escaped; a character without width between their parts keeps it from that."""
    plain = LINKED.sub(lambda found: found[0] + JOINER, " ".join(str(text).split()))
    plain = SIGNS.sub(lambda found: found[0][0] + JOINER + found[0][1:], plain)
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~$:&^=])", r"\\\1", plain)


JOINER = "\u2060"
LINKED = re.compile(r":(?=//)|www(?=\.)|@|:material(?=/)|:streamlit(?=:)", re.IGNORECASE)
SIGNS = re.compile(r"(?<!\S)(?:<->|<-|->|--|[<>~]=)(?!\S)")


def named(name: str) -> str:
    """The name of a table, figure or column as the label of a button, which Streamlit reads as Markdown and, as it is
    here, writes into the address."""
    return name if re.fullmatch(r"[^\W_]+(?:[ _-][^\W_]+)*", name) else md(name)


def short(text: object, most: int = 34) -> str:
    """The last part of a path or hub id, cut to a length."""
    text = str(text).rstrip("/").rsplit("/", 1)[-1]
    return cut(text, most)


def model_of(run: Any) -> str:
    """The name of a run's model."""
    return str(model_info(run).get("name") or "?")


def when(run: Any) -> str:
    """The minute in which a run ended, or began."""
    return str(run.info.get("finished") or run.info.get("started") or "")[:16].replace("T", " ")


def token(text: str) -> str:
    """A token so that white space can be seen."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍") or "∅"


@contextmanager
def guard(damaged: str = "") -> Iterator[None]:
    """Errors that are meant for people become a sentence on the page instead of a traceback; where files of runs are
    drawn that may be damaged in any way, every error does, after what `damaged` says. A panic of polars would end the
    script's thread, and with it the screen, without a word: it is a sentence everywhere."""
    try:
        yield
    except WorkbenchError as error:
        problem(error)
    except Exception as error:
        if not damaged:
            raise
        problem(f"{damaged} ({said(error)}).")
    except BaseException as error:  # streamlit steers its scripts with some of these
        if not is_panic(error):
            raise
        problem(f"{damaged or 'A library failed on what this shows'} ({said(error)}).")


def said(error: BaseException) -> str:
    """An error that was not foreseen, in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def problem(error: object) -> None:
    st.error(md(error))


def left_out(sentence: str) -> None:
    """What a list could not show, where there is something."""
    if sentence:
        st.warning(md(sentence))


def state(job: Any) -> str:
    """How far a job is, in one line."""
    if job.status == "queued":
        return f"waiting, number {job.position} in the queue of {job.device}"
    if job.status != "running":
        return job.status
    share = f"{job.done / job.total:.0%} · " if job.total else ""
    left = f" · {duration(job.seconds_left)} left" if job.seconds_left is not None else ""
    return f"{share}{job.label or 'starting'}{left}"


def columns_of(frame: Any) -> dict[str, Any]:
    """How the columns of a table are written: numbers to three places, however small."""
    return {
        name: st.column_config.NumberColumn(format="%.3g") for name, dtype in frame.schema.items() if dtype.is_float()
    }


def scroll_table(table: Any, *, most: int = 420, **how: Any) -> Any:
    """A table to scroll in, no taller than its rows need."""
    height = "content" if 35 * (table.height + 1) < most else most
    return st.dataframe(table, height=height, hide_index=True, column_config=columns_of(table), **how)


def scale(*, diverging: bool = False) -> Sequence[str]:
    """The colours of the house scale in the present mode, from the least to the most."""
    if mode() == "light":
        return theme.DIVERGING if diverging else theme.SEQUENTIAL
    return theme.DIVERGING_DARK if diverging else theme.SEQUENTIAL_DARK


def shades(
    values: Sequence[float | None], *, diverging: bool = False, ends: tuple[float, float] | None = None
) -> list[tuple[str, str]]:
    """(background, ink) of each value on the house scale of the present mode; grey where there is no value."""
    now = mode()
    known = [v for v in values if v is not None and math.isfinite(v)]
    low, high = ends if ends else limits(known, diverging=diverging)
    colours = scale(diverging=diverging)
    found = []
    for v in values:
        if v is None or not math.isfinite(v):
            colour = theme.MISSING if now == "light" else theme.MISSING_DARK
        else:
            colour = theme.colour_at(colours, (v - low) / (high - low))
        found.append((colour, ink_on(colour)))
    return found


def hue_of_kind(kind: int) -> str:
    """The hue of a kind of cells, by its number: that of the house in the present mode; from the eighth on grey."""
    palette = theme.PALETTE if mode() == "light" else theme.PALETTE_DARK
    return palette[kind] if kind < len(palette) else theme.NEUTRAL


def shades_of_kinds(kinds: Sequence[int], values: Sequence[float | None]) -> list[tuple[str, str]]:
    """(background, ink) of cells of several kinds: the hue of the kind, the fuller the nearer the value is to 1."""
    plain = "#FFFFFF" if mode() == "light" else "#161A21"
    found = []
    for kind, value in zip(kinds, values):
        colour = theme.colour_at((plain, hue_of_kind(kind)), min(1.0, max(0.0, value or 0.0)) ** 0.5)
        found.append((colour, ink_on(colour)))
    return found


@functools.lru_cache(maxsize=4096)
def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on a cell of this colour: a contrast of at least 4.5 on every colour."""
    return max(("#000000", "#FFFFFF"), key=lambda ink: theme.contrast(colour, ink))


def limits(values: Sequence[float], *, diverging: bool = False) -> tuple[float, float]:
    """Ends of a scale: from 0 where nothing is negative, symmetric where it diverges."""
    if not values:
        return 0.0, 1.0
    if diverging:
        most = max(abs(v) for v in values) or 1.0
        return -most, most
    low, high = min(0.0, min(values)), max(values)
    return (low, high) if high > low else (low, low + 1.0)


def accent() -> str:
    return theme.BLUE if mode() == "light" else theme.PALETTE_DARK[0]


def contrast() -> str:
    return theme.OCHRE if mode() == "light" else theme.PALETTE_DARK[1]


def run_address(run: Any) -> str:
    """Where a run is shown: on its probe's screen, or among all runs where the probe is not installed."""
    screen = run.probe.replace("-", "_") if registry.problem(run.probe) is None else "runs"
    return f"{screen}?{urlencode({'run': run.id})}"


def table(rows: Sequence[Sequence[Any]], columns: Sequence[tuple[str, str]]) -> str:
    """A small table as HTML. ``columns``: (title, kind); kinds: text, tok (a token), num, run (a link to it, nothing
    for None), image (of `sparkline`), bar (0..1; or (value, 0..1, colour))."""
    out = [
        f"<div class='wb-scroll'><table class='wb{' two' if sum(kind == 'bar' for _, kind in columns) > 1 else ''}'>"
    ]
    if any(title for title, _ in columns):
        out += [
            "<tr>",
            *(
                f"<th scope='col' class='{'num' if kind == 'num' else ''}'>{esc(title)}</th>" if title else "<td></td>"
                for title, kind in columns
            ),
            "</tr>",
        ]
    for row in rows:
        out.append("<tr>")
        for value, (_, kind) in zip(row, columns):
            if kind == "bar":
                share, colour = value if isinstance(value, tuple) else (value, accent())
                out.append(
                    f"<td class='bar'><i "
                    f"style='width:{100 * min(max(share or 0.0, 0.0), 1.0):.1f}%;background:{colour}'></i></td>"
                )
            elif kind == "tok":
                out.append(f"<td class='tok' title='{esc(repr(value))}'>{esc(token(value))}</td>")
            elif kind == "image":  # ours, made of numbers
                out.append(f"<td>{value}</td>")
            elif kind == "run" and value is None:
                out.append("<td></td>")
            elif kind == "run":
                out.append(f"<td><a href='{esc(run_address(value))}' target='_self'>{esc(value.id)}</a></td>")
            elif kind == "num":
                out.append(f"<td class='num'>{esc(number(value) if not isinstance(value, str) else value)}</td>")
            else:
                out.append(f"<td>{esc(value)}</td>")
        out.append("</tr>")
    return "".join(out) + "</table></div>"


def quote(text: str, colour: str) -> str:
    """Generated text as it reads, with a rule of this colour."""
    return f"<div class='wb-text' style='border-color:{colour}'>{esc(text)}</div>"


def heading(text: str) -> str:
    """What stands above a table or text of a card, as HTML."""
    return f"<h3 class='wb-head'>{esc(text)}</h3>"


def unseen_heading(text: str, *, level: int = 2) -> None:
    """A heading that takes no room: what a screen reader jumps to where the eye needs none."""
    st.html(f"<h{level} class='wb-unseen'>{esc(text)}</h{level}>")
