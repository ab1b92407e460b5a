"""What holds for the options of every probe: numbers have an end, lists can be empty, and every entrance says so before
a model is loaded."""

from __future__ import annotations

import json

import pytest

from workbench.core import config as configs
from workbench.core import registry
from workbench.core.errors import InputError
from workbench.runs import execution, queue, sweep

PROBES = ("retrieval-heads", "concept-depth", "knowledge-conflict", "data-selection", "branching-factor")
PROBES += ("representation-geometry",)
PROBES += ("talking-heads",)
LARGE = 10**20


def options(kind: str) -> list[tuple[str, dict]]:
    return [
        (name, field)
        for name in PROBES
        for field in configs.describe(registry.get(name).config)
        if kind in field["type"].replace("list of", "").replace("or", "").replace(",", " ").replace("(", " ").split()
    ]


@pytest.mark.parametrize("number", [LARGE, -LARGE, "1e300", "9" * 6000], ids=["1e20", "-1e20", "1e300", "6000 digits"])
def test_no_option_takes_a_number_without_end(number):
    found = options("int") + options("float")
    assert len(found) > 60
    for name, field in found:
        if "str" in field["type"] and isinstance(number, str) and field["choices"] is None:
            continue  # a text is a name there
        size = 2 if "list of 2" in field["type"] else 1
        value = [number] * size if isinstance(number, int) else ",".join([number] * size)
        value = value if "list" in field["type"] or isinstance(value, str) else number
        with pytest.raises(InputError) as caught:
            configs.build(registry.get(name).config, {field["name"]: value})
        assert field["name"] in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_every_list_can_be_written_as_none_and_read_back(tmp_path):
    for name in PROBES:
        config = registry.get(name).config
        for field in configs.describe(config):
            if "list of" not in field["type"] or "list of 2" in field["type"]:
                continue
            assert configs.format_value(()) == "none"
            written = {field["name"]: "none"}
            (tmp_path / "a.toml").write_text(f"{field['name']} = 'none'\n")
            for values in (written, configs.read_toml(tmp_path / "a.toml"), {field["name"]: None}, {field["name"]: []}):
                try:
                    found = configs.build(config, values)
                except InputError as error:  # the probe needs one there, and says so in words of its own
                    assert "is wrong" not in str(error), error
                else:
                    assert getattr(found, field["name"]) == ()


@pytest.mark.parametrize("seed", [-1, 2**32, LARGE, True, 1.5, "3"])
def test_a_seed_that_some_generator_cannot_take_is_refused_at_every_entrance(tmp_path, seed):
    with pytest.raises(InputError, match="seed must be"):
        execution.execute("branching-factor", "no-such-model", seed=seed)
    with pytest.raises(InputError, match="seed must be"):
        queue.submit("branching-factor", "organism", seed=seed, start=False)
    file = tmp_path / "sweep.toml"
    file.write_text(f'model = "organism"\nseed = {json.dumps(seed)}\n[[probes]]\nname = "branching-factor"\n')
    with pytest.raises(InputError, match="seed.*must be"):
        sweep.read(file)


def test_a_config_made_by_hand_is_held_to_what_its_options_say():
    config = registry.get("branching-factor").config
    with pytest.raises(InputError, match="samples = -5 is wrong: it must be at least 1"):
        execution.prepare("branching-factor", config(samples=-5))
    with pytest.raises(InputError, match="thinking = 'odd' is wrong"):
        execution.prepare("branching-factor", config(thinking="odd"))
    assert execution.prepare("branching-factor", config(samples=5)).config.samples == 5


def test_samples_that_no_machine_holds_are_refused_before_a_model_is_loaded():
    with pytest.raises(InputError, match="whose statistics no machine holds"):
        execution.execute("branching-factor", "no-such-model", config={"samples": 100_000, "max_new_tokens": 1_000_000})
