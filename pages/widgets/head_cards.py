"""The cards of the Explorer: the answer before and after, a head, a layer, scores. Each asks the package and draws."""

from __future__ import annotations

import polars as pl
import streamlit as st

from pages.widgets import cached, pattern_map, styling, url_state
from pages.widgets.continuation import Written, follow, kept
from workbench.core.errors import WorkbenchError
from workbench.core.wording import number
from workbench.explorer import beside_control, head_sets, readings
from workbench.explorer.opened_model import Opened, encode
from workbench.explorer.readings import Reading
from workbench.explorer.switches import Switches

LONGEST = 24  # tokens of generated text
NEWEST = 12  # runs that a head is looked up in
WHOLE = 1024  # tokens up to which a whole pattern is sent to the browser, a byte a cell
ROWS = 6  # next tokens, so that they are in sight without scrolling on a small screen


def answer(name: str, opened: Opened, ids: tuple[int, ...], switches: Switches, reading: Reading) -> None:
    """Next tokens, beside them those with the heads switched, where some are; then the text that follows, as it is
    written."""
    before = cached.reading(name, ids, Switches(), opened)
    texts = [Written("greedy continuation", kept(name, ids, Switches(), opened), styling.accent())]
    if not switches.any:
        frame = readings.next_tokens(opened, before, k=ROWS)
        rows = [(text, p, p) for text, p in frame.select("text", "probability").iter_rows()]
        shown = styling.heading("next token") + styling.table(
            rows, [("token", "tok"), ("probability", "num"), ("", "bar")]
        )
    else:
        texts.append(Written(with_switched(switches), kept(name, ids, switches, opened), styling.contrast()))
        frame = readings.next_tokens(opened, before, reading, k=ROWS)
        rows = [
            (t, p, (p, styling.accent()), q, (q, styling.contrast()))
            for t, p, q in frame.select("text", "probability", "after").iter_rows()
        ]
        moved = readings.shift(before, reading)
        how = f" ({switches.how})" if switches.heads or switches.mlps else ""
        say = (
            f"{named(switches)} switched{how}: KL {moved['kl']:.3g} nats, total variation "
            f"{moved['total_variation']:.3f}"
        )
        columns = [("next token", "tok"), ("before", "num"), ("", "bar"), ("after", "num"), ("", "bar")]
        shown = styling.heading(say) + styling.table(rows, columns)
    st.html(shown)
    follow(texts, LONGEST, key="continuation")


def with_switched(switches: Switches) -> str:
    """What heads the answer under the switches."""
    return f"with the {switched_kinds(switches)} switched"


def switched_kinds(switches: Switches) -> str:
    """``heads``, ``MLPs`` or ``heads, MLPs and features``."""
    kinds = {"heads": switches.heads, "MLPs": switches.mlps, "features": switches.features}
    *first, last = [kind for kind, items in kinds.items() if items]
    return f"{', '.join(first)} and {last}" if first else last


def named(switches: Switches, most: int = 8) -> str:
    """``heads 1.0, 1.1 and 3 more, MLPs 2``."""
    parts = []
    for what, items in (
        ("heads", [f"{a}.{b}" for a, b in switches.heads]),
        ("MLPs", [str(layer) for layer in switches.mlps]),
        ("features", [str(change) for change in switches.features]),
    ):
        more = f" and {len(items) - most} more" if len(items) > most else ""
        if items:
            parts.append(f"{what} {', '.join(items[:most])}{more}")
    return ", ".join(parts)


def head(name, opened: Opened, ids, switches: Switches, rows, layer: int, head: int, at: int, tables) -> None:
    """One head: where it looks from the chosen token, what it writes there, its scores in every run. Of a head that is
    switched, what it would write if no head were."""
    model = opened.model
    token = styling.token(model.token_strings([ids[at]])[0])
    group = f", key/value group {model.kv_group(head)}" if model.n_kv_heads < model.n_heads else ""
    off = " (switched)" if (layer, head) in switches.heads else ""
    st.html(
        f"<b>Layer {layer}, head {head}</b><span class='wb-dim'>{group}{off}; at token {at}, "
        f"<code>{styling.esc(token)}</code></span>"
    )
    found = readings.strongest(opened, ids, rows[layer, head])
    left, right = st.columns(2)
    with left:
        destinations = [(i, text, w, w) for i, text, w in found.iter_rows()]
        st.html(
            styling.heading("attends to")
            + styling.table(destinations, [("at", "num"), ("token", "tok"), ("weight", "num"), ("", "bar")])
        )
    with right:
        wrote = cached.writes(
            name, ids, Switches() if (layer, head) in switches.heads else switches, layer, head, at, opened
        )
        most = max((abs(v) for v in wrote["logit"]), default=1.0) or 1.0
        columns = [("token", "tok"), ("logit", "num"), ("", "bar")]
        shown = ""
        for side, title, colour in (
            ("up", "writes towards", styling.accent()),
            ("down", "writes against", styling.contrast()),
        ):
            mine = wrote.filter(pl.col("side") == side).select("text", "logit")
            rows_shown = [(text, logit, (abs(logit) / most, colour)) for text, logit in mine.iter_rows()]
            shown += styling.heading(title) + styling.table(rows_shown, columns)
        st.html(shown)
    whole = st.toggle(
        "Whole pattern",
        key="pattern",
        bind="query-params",
        help="Attention of this head from every token (rows) to every token (columns).",
    )
    if whole and len(ids) > WHOLE:
        st.info(f"The whole pattern is shown up to {WHOLE:,} tokens; the list above is of all {len(ids):,}.")
    elif whole:
        pattern_map.show(
            cached.pattern(name, ids, layer, head, switches, opened),
            [styling.token(text) for text in model.token_strings(ids)],
            at=at,
            label=f"attention of head {layer}.{head}, from each token downwards to each token to the right",
            key="whole pattern",
            on_pick=lambda i: url_state.put("explorer", "at", str(i)),
        )
    head_in_runs(tables, layer, head)


def head_in_runs(tables, layer: int, head: int) -> None:
    """The head in the newest runs: what a click shows does not grow with the number of runs."""
    rows, newest = [], tables[:NEWEST]
    for run, frame in newest:
        main = head_sets.main_score(run)
        mine = frame.filter((pl.col("layer") == layer) & (pl.col("head") == head))
        for record in mine.head(1).iter_rows(named=True):
            interval = f"[{number(record['ci_low'])}, {number(record['ci_high'])}]" if "ci_low" in record else ""
            for column, value in record.items():
                if column in ("layer", "head", *head_sets.INTERVAL):
                    continue
                ranked = frame[column].dtype.is_numeric() and value is not None
                rank = int((frame[column] > value).sum()) + 1 if ranked else None
                rows.append(
                    (
                        column.replace("_", " "),
                        value,
                        interval if column == main else "",
                        f"{rank} of {frame.height}" if rank else "",
                        run,
                    )
                )
    if rows:
        st.html(
            styling.heading("in finished runs")
            + styling.table(
                rows, [("", "text"), ("value", "num"), ("95 % interval", "text"), ("rank", "text"), ("run", "run")]
            )
        )
        if len(tables) > len(newest):
            st.caption(
                f"The newest {len(newest)} of {len(tables)} runs; the others are among the colours of the heads."
            )
    else:
        st.caption("No finished run has scores of this model's heads yet: start one on a probe's screen.")


def scores(name, opened: Opened, ids, layer: int, head: int) -> None:
    """Every live score of the chosen head beside its control, and the heads that are above theirs."""
    on_prompt, on_words, missing = cached.scores(name, ids, opened), None, ""
    try:
        on_words = cached.scores(name, (), opened)
    except WorkbenchError as error:
        missing = str(error)
    pick = (pl.col("layer") == layer) & (pl.col("head") == head)
    mine = on_prompt.filter(pick).row(0, named=True)
    there = on_words.filter(pick).row(0, named=True) if on_words is not None else {}
    rows, said = [], []
    for column in readings.SCORES:
        named, interval = "", ""
        if on_words is not None and beside_control.has_control(on_words, column):
            best = head_sets.top_heads(on_words, column, 3)
            named = ", ".join(f"{a}.{b}" for a, b in best) or "none"
            said.append(beside_control.in_words(on_words, column))
            ends = there[f"{column}_low"], there[f"{column}_high"]
            interval = "" if None in ends else "[{}, {}]".format(*map(number, ends))
        parts = (there.get(f"{column}_{part}") for part in ("control", "difference"))
        control, difference = (number(part) for part in parts)
        rows.append(
            (column.replace("_", " "), mine[column], there.get(column), control, f"{difference} {interval}", named)
        )
    titles = ("prompt", "repeated", "its control")
    st.html(
        f"<b>Layer {layer}, head {head}</b>"
        + styling.table(
            rows,
            [
                ("score", "text"),
                *((title, "num") for title in titles),
                ("difference", "text"),
                ("above it", "text"),
            ],
        )
    )
    control = {name: f"; control: {what}" for name, what in readings.CONTROLS.items()}
    what = [f"{k.replace('_', ' ')}: {v}{control.get(k, '')}" for k, v in readings.SCORES.items()]
    columns = (
        "prompt: on the prompt; repeated: on repeated tokens, likely words said twice; its control: of these; "
        "difference: repeated less its control, with its 95 % interval over sequences; above it: the heads that are "
        "above their control"
    )
    lines = [columns, *filter(None, [missing, *said]), *what]
    st.html("<div class='wb-facts wb-dim'>" + "<br>".join(styling.esc(line) for line in lines) + "</div>")
    both = on_prompt if on_words is None else on_words.join(on_prompt, on=["layer", "head"], suffix="_prompt")
    st.download_button(
        "Scores as CSV",
        both.write_csv(),
        "head-scores.csv",
        "text/csv",
        on_click="ignore",
        help="Both tables, all heads, with controls and intervals.",
    )


def beside(
    name, opened: Opened, ids, switches: Switches, known: list[str], layer: int, head: int
) -> tuple[str, Opened, tuple[int, ...], Switches, str] | None:
    """A second prompt, a second model, or both, next to the first: the answer, and where the same head looks from the
    last token. Gives the second side (model by name and opened, tokens, switches, prompt) where both are asked for as
    whole views."""
    a, b = st.columns([1, 2])
    other = a.selectbox(
        "Second model",
        known,
        index=known.index(name) if name in known else 0,
        key="model2",
        bind="query-params",
        accept_new_options=True,
        help="The same prompt in another model.",
    )
    text = b.text_input(
        "Second prompt",
        key="prompt2",
        bind="query-params",
        placeholder="empty: the same prompt",
        help="Another prompt in the same model, or in the second one.",
    )
    text = text.replace("\\n", "\n") or st.session_state.get("prompt", "")
    second = cached.model(other)
    theirs = encode(second, text)
    if other == name and theirs == ids:
        st.info("Choose a second model or type a second prompt: its answer is shown beside this one.")
        return None
    sides = [
        (name, opened, ids, switches),
        (other, second, theirs, switches if other == name and switches.how != "patch" else Switches()),
    ]
    whole = st.toggle(
        "Side by side",
        key="side",
        bind="query-params",
        help="Below: heads, logit lens, next tokens and attention of both in three columns, with their differences.",
    )
    for side, (place, (who, model, tokens, off)) in enumerate(zip(st.columns(2), sides)):
        with place:
            reading = cached.reading(who, tokens, off, model)
            what = f", {switched_kinds(off)} switched" if off.any else ""
            shown = (
                f"<div class='wb-facts'><b>{styling.esc(styling.short(who))}</b> <span "
                f"class='wb-dim'>{len(tokens)} tokens{what}</span></div>"
            )
            frame = readings.next_tokens(model, reading, k=8)
            rows = [(t, p, p) for t, p in frame.select("text", "probability").iter_rows()]
            shown += styling.heading("next token") + styling.table(rows, [("token", "tok"), ("p", "num"), ("", "bar")])
            if layer < model.model.n_layers and head < model.model.n_heads:
                row = cached.rows(who, tokens, len(tokens) - 1, off, model)[layer, head]
                found = readings.strongest(model, tokens, row, k=6)
                shown += styling.heading(f"head {layer}.{head} attends, from the last token, to") + styling.table(
                    [(i, t, w, w) for i, t, w in found.iter_rows()],
                    [("at", "num"), ("token", "tok"), ("weight", "num"), ("", "bar")],
                )
            else:
                shown += styling.heading(f"there is no head {layer}.{head} in this model")
            st.html(shown)
            written = Written("greedy continuation", kept(who, tokens, off, model), styling.accent())
            follow([written], LONGEST, key=f"beside {side}")
    return (*sides[1], text) if whole else None
