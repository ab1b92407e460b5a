"""What the screens keep between clicks belongs to the weights it was computed on."""

import shutil

import streamlit as st

from pages.widgets import cached, run_view
from tests.models.test_files import other_weights
from workbench.explorer.switches import Switches


def test_a_model_whose_files_changed_is_opened_again_and_its_readings_are_read_again(tiny_llama, tmp_path):
    st.cache_resource.clear()
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    name, ids = str(folder), (1, 5, 9)
    first = cached.model(name)
    assert cached.model(name) is first
    before = cached.reading(name, ids, Switches(), first)
    assert cached.reading(name, ids, Switches(), first) is before
    other_weights(folder)
    second = cached.model(name)
    assert second is not first and second.model.fingerprint != first.model.fingerprint
    after = cached.reading(name, ids, Switches(), second)
    assert after is not before and not (after.logits == before.logits).all()


def test_the_python_of_a_run_loads_the_model_that_it_was_made_on():
    code = run_view.python_code("p", "m", {}, revision="step100", adapter="/a/lora", date=None)
    assert "load('m', revision='step100', adapter='/a/lora')" in code
    assert "load('m')" in run_view.python_code("p", "m", {}, revision=None)
