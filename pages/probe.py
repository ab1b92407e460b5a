"""The screen of a probe, any probe: a finished run on the left, on the right what to run next. All of it from the
registry."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from pages.widgets import cached, form, queue_panel, run_view, styling, url_state
from workbench.core import config as configs
from workbench.core import registry
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.registry import Probe
from workbench.core.wording import duration, human_bytes, two_digits
from workbench.models.precision import CHOICES
from workbench.runs import cost, demo, execution, queue
from workbench.runs.folder import Run

LOOK = 4.0  # seconds that the form may wait for a look at the texts


def screen(name: str) -> None:
    """Draw the screen of the probe ``name``; a probe that cannot be imported says why."""
    reason = registry.problem(name)
    if reason is not None:
        st.title(name.replace("-", " ").capitalize())
        st.info(styling.md(f"This probe cannot be used here. {reason}"))
        return
    probe = registry.get(name)
    with styling.guard():
        cached.look_again()
    left, right = st.columns([12, 5], gap="large")
    with left:
        st.title(probe.title)
        st.caption(styling.md(probe.summary))
        with styling.guard():
            result(probe)
    with right:
        with styling.guard():
            setup(probe)


# ---- what has been found


def result(probe: Probe) -> None:
    found = demo.shown_first(probe, [run for run in cached.run_list() if run.probe == probe.name])
    wanted = url_state.get(probe.name, "run")
    if wanted and wanted not in [run.id for run in found]:
        found.insert(0, execution.run_by_id(wanted))  # says what is wrong with an id from the URL
    if not found:
        st.info(
            styling.md(
                "No run of this probe yet. Choose a model on the right and start one; 'Demo' fills in the "
                "settings of a short one. `workbench demo` makes an example of every probe."
            )
        )
        return
    ids = [run.id for run in found]
    at = ids.index(wanted) if wanted in ids else 0
    labels = {
        run.id: f"{styling.short(styling.model_of(run))} · {styling.when(run)} · {run.status} · {run.id[-12:]}"
        for run in found
    }
    key = f"{probe.name} run"
    if st.session_state.get(key) not in ids:
        st.session_state[key] = ids[at]
    elif wanted in ids and st.session_state.get(f"{key} url") != wanted:
        st.session_state[key] = wanted
    if len(ids) > 1:
        st.selectbox(
            "Run",
            ids,
            key=key,
            format_func=labels.get,
            help="Runs of this probe, finished ones first, also those made on the command line.",
            on_change=lambda: url_state.put(probe.name, "run", st.session_state[key]),
        )
    st.session_state[f"{key} url"] = wanted
    chosen = st.session_state[key]
    run_view.show(next(run for run in found if run.id == chosen))


# ---- what to run next


def setup(probe: Probe) -> None:
    st.header("Run")
    queue_panel.show(probe)
    newest = [run for run in cached.run_list() if run.probe == probe.name]
    model = st.selectbox(
        "Model",
        cached.model_names(),
        key=f"{probe.name}.model",
        bind="query-params",
        accept_new_options=True,
        help="An organism, a local folder in Hugging Face format, or a hub id. Type to enter another.",
    )
    go = st.container()  # above the settings, so that it is in sight; filled once they are known
    row = st.container(horizontal=True, gap="small")  # as wide as their words, below each other where room is short
    no_demo = cached.demo_problem(probe, model)
    row.button("Defaults", on_click=form.fill, args=(probe, {}), help="The settings of the paper.")
    row.button(
        "Demo",
        on_click=lambda: form.fill(probe, form.example(probe, model)),
        disabled=no_demo is not None,
        help="The settings of a short run." if no_demo is None else "There is no short run on this model.",
    )
    shown = next((run for run in newest if run.id == st.session_state.get(f"{probe.name} run")), None)
    row.button(
        "As shown",
        on_click=form.fill,
        args=(probe, ((shown.info.get("config") or {}) if shown else {})),
        disabled=shown is None,
        help="The settings of the run on the left.",
    )
    if no_demo is not None:
        st.caption(styling.md(f"No demo: {no_demo}"))
    data = data_of(probe)
    values = form.form(probe)
    with st.expander("Seed, precision, device"):
        seed = st.number_input(
            "seed", 0, 2**31 - 1, 0, key=f"{probe.name}.seed", bind="query-params", help="Seed of everything random."
        )
        dtype = st.selectbox(
            "dtype",
            CHOICES,
            key=f"{probe.name}.dtype",
            bind="query-params",
            help="Precision of the weights. Automatic: float32 on a CPU, as stored on an accelerator.",
        )
        device = st.selectbox(
            "device",
            queue.devices(),
            key=f"{probe.name}.device",
            bind="query-params",
            help="Each device has one worker and one queue.",
        )
    try:
        config = configs.build(probe.config, values)
        ready = execution.prepare(probe, config, data, model=model)
        with go, st.spinner("Holding the data against the model …", show_time=False):
            problem, note = looked_at(
                probe.name, configs.to_dict(config), model, int(seed), execution.stamps(ready, model), ready
            )
        if problem is not None:
            raise InputError(problem)
    except (WorkbenchError, OSError) as error:
        with go:
            st.button("Run", type="primary", disabled=True, width="stretch", help="Once the settings are right.")
            styling.problem(form.explained(probe, values, error))
        return
    pressed = go.button(
        "Run",
        type="primary",
        width="stretch",
        shortcut="ctrl+enter",
        help="In the background: this page may be closed.",
    )
    go.caption(styling.md(price(probe, config, ready, model, device, newest)))
    if note is not None:
        go.caption(styling.md(note))
    if pressed:
        job = queue.submit(
            probe.name, model, config=configs.to_dict(config), data=data, seed=int(seed), dtype=dtype, device=device
        )
        st.session_state[f"{probe.name} job"] = job.id
        st.rerun()
    follow(probe)
    with st.expander("Copy command"):
        st.code(
            execution.command_for(
                ready, model, seed=int(seed), dtype=dtype, device=device if device != "cpu" else None
            ),
            language="bash",
            wrap_lines=True,
        )
    with st.expander("Copy Python"):
        st.code(
            run_view.python_code(
                probe.name, model, configs.changed(config), data=data, seed=int(seed), dtype=dtype, device=device
            ),
            language="python",
            wrap_lines=True,
        )


def follow(probe: Probe) -> None:
    """Once the job that was started here has ended, show its run."""
    identifier = st.session_state.get(f"{probe.name} job")
    job = next((job for job in queue.listing() if job.id == identifier), None)
    if job is not None and job.ended:
        del st.session_state[f"{probe.name} job"]
        if job.status == "complete" and job.run:
            url_state.put(probe.name, "run", job.run)
            st.rerun()


def data_of(probe: Probe) -> Path | None:
    """The data file: the one that ships, a path, or an upload."""
    spec = probe.data
    if spec is None:
        return None
    needs = f"Columns: {', '.join(spec.required)}." if spec.required else "Text."
    typed = st.text_input(
        f"{spec.what.capitalize()} file",
        key=f"{probe.name}.data",
        bind="query-params",
        placeholder="the file that ships" if spec.default or spec.optional else "path of a file",
        help=f"csv, tsv, jsonl, parquet or txt. {needs} Empty: what ships with the project.",
    )
    with st.popover("Upload a file", width="stretch", help="In place of a path: a file from where the browser is."):
        sent = st.file_uploader(
            "Data file",
            type=[s[1:] for s in queue.SUFFIXES],
            key=f"{probe.name} upload",
            help=f"{needs} At most {human_bytes(queue.MOST_BYTES)}.",
        )
    if sent is not None:
        path = kept(sent.name, sent.file_id, sent)
        st.caption(styling.md(f"Uses the uploaded {path.name}."))
        return path
    return Path(typed).expanduser() if typed.strip() else None


@st.cache_resource(max_entries=8, show_spinner=False)
def kept(name: str, identifier: str, _sent) -> Path:
    """An upload as a file, written once."""
    return queue.keep_upload(name, _sent.getvalue())


def price(probe: Probe, config, ready, model: str, device: str, found: list[Run]) -> str:
    """What the run of the form will take."""
    path = ready.data
    if probe.data is not None and (path is None or ready.data_name):  # none was given
        path = probe.data.default_path(model)
    now = planned(probe.name, configs.to_dict(config), path, cached.stamp(path) if path else (), model, config)
    if now is None:
        return "No estimate: the model is not on this machine yet, or nothing is known of what this asks for."
    last, same = cost.last_like(found, probe.name, model, device)
    then = before(probe, last) if last is not None else None
    guess = cost.estimate(now, then=then, run=last, same_machine=same)
    text = f"About {two_digits(now.prompts)} prompts, {two_digits(guess.tokens)} tokens, "
    text += f"{human_bytes(guess.stored)} of activations kept" if guess.stored else "no activations kept"
    if now.scored:
        text += f", {now.scored:.0e} multiply-adds for scores over the vocabulary ({now.without} leaves them out)"
    return text + (
        f", {duration(guess.seconds)} at the pace of the last run here."
        if guess.seconds is not None
        else "; no speed measured yet on this model and device."
    )


@st.cache_data(max_entries=64, show_spinner=False)
def looked_at(name: str, values: dict, model: str, seed: int, stamps: tuple, _ready) -> tuple[str | None, str | None]:
    """(What is wrong with the run of the form, what could not be looked at) without the weights of its model."""
    try:
        return None, execution.check_unloaded(_ready, model, seed=seed, seconds=LOOK)
    except InputError as error:
        return str(error), None


@st.cache_data(max_entries=64, show_spinner=False)
def planned(name: str, values: dict, data: Path | None, stamp: tuple, model: str, _config) -> cost.Plan | None:
    try:
        return cost.plan(name, _config, data, model)
    except (WorkbenchError, OSError):
        return None  # what is wrong with the data is said where the run is started


def before(probe: Probe, run: Run) -> cost.Plan | None:
    """The plan of a run that is there."""
    about, model = run.info.get("data") or {}, styling.model_of(run)
    try:
        config = configs.build(probe.config, run.info.get("config"), literal=True)
        ready = execution.prepare(probe, config, model=model)
    except WorkbenchError:
        return None
    default = probe.data.default_path(model) if probe.data is not None else None
    path = Path(about["path"]) if about.get("path") else default or ready.data
    return planned(probe.name, run.info["config"], path, cached.stamp(path) if path else (), model, config)
