"""A form made of a probe's config: one control per documented key, types and ranges from the registry, the URL keeps
what differs."""

from __future__ import annotations

from typing import Any

import streamlit as st

from workbench.core import config as configs
from workbench.core.registry import Probe
from workbench.runs import demo, queue

FIRST = 8  # keys that are shown at once; the rest fold away


def key_of(probe: Probe, field: str) -> str:
    return f"{probe.name}.{field}"


def form(probe: Probe) -> dict[str, Any]:
    """Draw the controls; returns the values that differ from the defaults, as `workbench.core.config.build` takes
    them."""
    fields = configs.describe(probe.config)
    values: dict[str, Any] = {}
    for field in fields[:FIRST]:
        values |= control(probe, field)
    if fields[FIRST:]:
        with st.expander(f"{len(fields) - FIRST} more settings"):
            for field in fields[FIRST:]:
                values |= control(probe, field)
    return values


def control(probe: Probe, field: dict[str, Any]) -> dict[str, Any]:
    """One control; its value if it is not the default. What is not simply a number, a choice or a switch is typed as on
    the command line."""
    name, default, key = field["name"], field["default"], key_of(probe, field["name"])
    label = name.replace("_", " ")
    notes = {"key": key, "bind": "query-params", "help": field["help"] + f". `--set {name}=…`"}
    kind = field["type"]
    if kind == "bool":
        value = st.toggle(label, value=bool(default), **notes)
        return {} if value == default else {name: value}
    if field["choices"] and kind == "str":
        options = field["choices"]
        value = st.selectbox(label, options, index=options.index(default) if default in options else 0, **notes)
        return {} if value == default else {name: value}
    if kind in ("int", "float") and default is not None:
        number = int if kind == "int" else float
        low, high = (None if field[k] is None else number(field[k]) for k in ("low", "high"))
        step = 1 if kind == "int" else None
        value = st.number_input(
            label,
            min_value=low,
            max_value=high,
            value=number(default),
            step=step,
            format=None if kind == "int" else "%g",
            **notes,
        )
        return {} if value == default or value is None else {name: value}
    shown = "" if field["required"] else configs.format_value(tuple(default) if isinstance(default, list) else default)
    hint = kind.replace(" or ", ", or ") + (f"; {', '.join(map(str, field['choices']))}" if field["choices"] else "")
    value = st.text_input(label, value=shown, placeholder=hint, **{**notes, "help": f"{notes['help']} ({hint})"})
    return {} if value == shown else {name: value}


def explained(probe: Probe, values: dict[str, Any], error: Exception) -> str:
    """What is wrong with the form, and what the control that it is about takes."""
    text = str(error)
    for field in configs.describe(probe.config):
        if field["name"] in values and f" {field['name']} = " in text and " or " in field["type"]:
            return f"{text} It takes {field['type'].replace('str', 'text')}: {field['help']}."
    return text


def example(probe: Probe, model: str) -> dict[str, Any]:
    """The settings of a short run on this model."""
    return configs.to_dict(configs.build(probe.config, demo.settings(probe, model)))


def fill(probe: Probe, values: dict[str, Any]) -> None:
    """Set every control to these values, and to the defaults where there is none (call it from a callback)."""
    for field in configs.describe(probe.config):
        value = values.get(field["name"], field["default"])
        simple = (
            field["type"] == "bool"
            or (field["choices"] and field["type"] == "str")
            or (field["type"] in ("int", "float") and field["default"] is not None)
        )
        if not simple:
            value = configs.format_value(tuple(value) if isinstance(value, list) else value)
        elif field["type"] == "float":
            value = float(value)
        st.session_state[key_of(probe, field["name"])] = value


def fill_from(probe: Probe, job: queue.Job) -> None:
    """Set the whole form to what a job was asked for (call it from a callback)."""
    fill(probe, job.config)
    asked = {"model": job.model, "data": job.data or "", "seed": job.seed, "dtype": job.dtype, "device": job.device}
    for name, value in asked.items():
        if name != "data" or probe.data is not None:
            st.session_state[key_of(probe, name)] = value
