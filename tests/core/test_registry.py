"""Probes are declared, found and described; configs are read strictly."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.core import config as configs
from workbench.core import registry
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.registry import option, probe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402


@dataclass(frozen=True)
class Many:
    count: int = option(3, "a whole number", low=1, high=1000)
    rate: float = option(0.5, "a number", low=0, high=1)
    on: bool = option(False, "a switch")
    name: str = option("a b", "a text")
    limit: float | None = option(None, "a number or none")
    lengths: tuple[int, ...] = option((1, 2, 3), "a list", low=1)
    words: tuple[str, ...] = option(("x",), "a list of words")
    pair: tuple[int, float] = option((1, 2.5), "two values")
    layers: str | tuple[int, ...] = option("all", "all, last or a list", choices=("all", "last"))
    mode: Literal["set", "count"] = option("set", "one of two")
    kind: str = option("zero", "one of three", choices=("zero", "mean", "uniform"))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("count", "7", 7),
        ("rate", "1e-1", 0.1),
        ("rate", "1", 1.0),
        ("on", "yes", True),
        ("on", "0", False),
        ("name", "", ""),
        ("name", " 7 ", " 7 "),
        ("limit", "none", None),
        ("limit", "2", 2.0),
        ("lengths", "5", (5,)),
        ("lengths", "5,", (5,)),
        ("lengths", "", ()),
        ("lengths", "[5, 6]", (5, 6)),
        ("lengths", "5, 6 ,7", (5, 6, 7)),
        ("words", '["a,b", "c"]', ("a,b", "c")),
        ("words", " ", (" ",)),
        ("words", "\n", ("\n",)),
        ("words", " a , ,\n", ("a", " ", "\n")),
        ("words", "a,", ("a",)),
        ("words", "", ()),
        ("words", '["\\n", " b"]', ("\n", " b")),
        ("lengths", "5, ", (5,)),
        ("lengths", " ", ()),
        ("lengths", "none", ()),
        ("lengths", " NULL ", ()),
        ("lengths", "[]", ()),
        ("words", "none", ()),
        ("words", "none,", ("none",)),
        ("words", '["none"]', ("none",)),
        ("layers", "none", ()),
        ("pair", "3,4", (3, 4.0)),
        ("layers", "last", "last"),
        ("layers", "0,3", (0, 3)),
        ("mode", "count", "count"),
    ],
)
def test_text_is_read_as_the_type_of_its_field(key, text, value):
    found = getattr(configs.build(Many, {key: text}), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("count", "1.5", ["count", "'1.5'", "whole number"]),
        ("count", True, ["whole number"]),
        ("count", 0, ["at least 1"]),
        ("count", "1001", ["at most 1000"]),
        ("rate", "half", ["'half'", "number"]),
        ("rate", "nan", ["finite"]),
        ("on", "maybe", ["true or false"]),
        ("on", 1, ["true or false"]),
        ("name", 3, ["text"]),
        ("limit", "some", ["'some'", "a number or none"]),
        ("lengths", "1,x", ["value 2", "'x'", "whole number"]),
        ("lengths", [1, 0], ["at least 1"]),
        ("pair", "1", ["2 values", "has 1"]),
        ("pair", "none", ["2 values"]),
        ("pair", None, ["2 values"]),
        ("lengths", "1000000001", ["at most 1000000000"]),
        ("lengths", "100000000000000000000", ["at most 1000000000"]),
        ("lengths", [10**20], ["at most 1000000000"]),
        ("lengths", [10**5000], ["at most 1000000000"]),
        ("lengths", "9" * 6000, ["6,000 characters, too many"]),
        ("lengths", f"[{'9' * 6000}]", ["too many digits"]),
        ("lengths", "[" * 50_000 + "]" * 50_000, ["nested too deeply"]),
        ("limit", "1e10", ["at most 1000000000"]),
        ("limit", "-1e300", ["at least -1000000000"]),
        ("limit", "1e400", ["limit"]),
        ("pair", [1, 1e300], ["at most 1000000000"]),
        ("name", "\udcff", ["half a character"]),
        ("layers", "al", ["all or last", "'all'"]),
        ("mode", "sets", ["set or count", "'set'"]),
        ("kind", "uniforn", ["zero, mean or uniform", "'uniform'"]),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_one_sentence(key, value, words):
    with pytest.raises(InputError) as caught:
        configs.build(Many, {key: value})
    sentence = str(caught.value)
    assert all(word in sentence for word in [key, *words]), sentence
    assert "\n" not in sentence and sentence.endswith(".")


def test_an_unknown_key_is_refused_and_the_nearest_one_named():
    with pytest.raises(InputError, match=r"no key 'lenghts' \(did you mean 'lengths'\?\)"):
        configs.build(Many, {"lenghts": "1"})


@pytest.mark.parametrize("value", [(" ",), ("\n",), ("a", " "), ("", "a"), ("[", "]"), ("[a", "b]"), (" a",), ("a,b",)])
def test_a_list_of_texts_goes_through_the_command_line_unchanged(value):
    (assignment,) = configs.parse_assignments([f"words={configs.format_value(value)}"]).items()
    assert configs.build(Many, dict([assignment])).words == value


def test_the_white_space_of_a_value_is_its_own_unless_the_equals_sign_stands_apart():
    found = configs.parse_assignments(["stop= ", "name=Question: ", "keep = all", " lengths =  1, 2 "])
    assert found == {"stop": " ", "name": "Question: ", "keep": "all", "lengths": "1, 2"}


def test_a_key_may_be_written_with_hyphens():
    @dataclass(frozen=True)
    class Two:
        random_draws: int = option(5, "draws")

    assert configs.build(Two, {"random-draws": "7"}).random_draws == 7


def test_a_required_key_is_asked_for():
    @dataclass(frozen=True)
    class Needs:
        target: str = option(help="the texts to select for")

    with pytest.raises(InputError, match="needs a value for 'target': the texts to select for"):
        configs.build(Needs, {})


def test_fields_that_contradict_each_other_are_an_input_error():
    @dataclass(frozen=True)
    class Range:
        first: int = option(0, "first")
        last: int = option(1, "last")

        def __post_init__(self):
            if self.last < self.first:
                raise ValueError("last must not come before first.")

    with pytest.raises(InputError, match="last must not come before first"):
        configs.build(Range, {"first": 5})


@given(
    st.builds(
        Many,
        count=st.integers(1, 1000),
        rate=st.floats(0, 1),
        on=st.booleans(),
        name=st.text(),
        limit=st.none() | st.floats(-1e9, 1e9),
        lengths=st.lists(st.integers(1, 10**9)).map(tuple),
        words=st.lists(st.text() | st.sampled_from(["none", "null"])).map(tuple),
        pair=st.tuples(st.integers(-(10**9), 10**9), st.floats(-1e9, 1e9)),
        layers=st.sampled_from(["all", "last"]) | st.lists(st.integers(0, 10**9)).map(tuple),
        mode=st.sampled_from(["set", "count"]),
    )
)
def test_json_and_the_command_line_give_a_config_back_unchanged(config):
    import json

    assert configs.build(Many, json.loads(json.dumps(configs.to_dict(config))), literal=True) == config
    texts = {name: configs.format_value(value) for name, value in configs.changed(config).items()}
    assert configs.build(Many, texts) == config


def test_every_key_is_described():
    described = {item["name"]: item for item in configs.describe(Many)}
    assert described["lengths"] == {
        "name": "lengths",
        "type": "list of int",
        "required": False,
        "default": [1, 2, 3],
        "help": "a list",
        "choices": None,
        "low": 1,
        "high": None,
        "file": False,
    }
    assert described["limit"]["type"] == "float or none"
    assert described["kind"]["choices"] == ["zero", "mean", "uniform"]


def test_a_config_that_is_not_documented_frozen_and_well_typed_is_refused():
    @dataclass(frozen=True)
    class Bare:
        n: int = 3

    @dataclass
    class Thawed:
        n: int = option(3, "n")

    @dataclass(frozen=True)
    class Wrong:
        n: int = option("three", "n")

    for bad, words in ((Bare, "not documented"), (Thawed, "frozen"), (Wrong, "default of 'n'")):
        with pytest.raises(TypeError, match=words):
            configs.check_class(bad, where="probe 'x'")
    with pytest.raises(TypeError, match="help"):
        option(3)


def _declare(name="declared-here", **changes):
    @dataclass(frozen=True)
    class Config:
        n: int = option(3, "n")

    @probe(name, **{"summary": "S.", "tables": {"t": ("a",)}, "bibtex": "@misc{x}", **changes})
    def run(model, config: Config, context):
        return None

    return run, Config


def test_the_decorator_records_the_probe_and_leaves_the_function_alone():
    run, config = _declare()
    item = registry.get("declared-here")
    registry.unregister("declared-here")
    assert item.run is run and item.config is config and item.tables == {"t": ("a",)} and item.title == "Declared here"


def test_a_function_with_other_arguments_or_without_a_config_is_refused():
    with pytest.raises(TypeError, match="run\\(model, config, context\\)"):
        probe("x", summary="S.", tables={}, bibtex="")(lambda model: None)
    with pytest.raises(TypeError, match="annotate the argument"):
        probe("x", summary="S.", tables={}, bibtex="")(lambda model, config, context: None)
    with pytest.raises(TypeError, match="lower-case words"):
        _declare("Not A Name")
    with pytest.raises(TypeError, match="no key 'texts' that could name the data file"):
        _declare(data=registry.DataSpec(("text",), option="texts"))


def test_an_unknown_probe_is_refused_and_the_nearest_one_named():
    with pytest.raises(InputError, match=r"no probe 'retreival_heads' \(did you mean 'retrieval-heads'\?\)"):
        registry.get("retreival_heads")


def test_the_installed_probes_are_listed_without_importing_one():
    code = (
        "import sys; from workbench.core import registry; print(*registry.names()); print('torch' in sys.modules, "
        "any(m.startswith('probes.') for m in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    six = {
        "retrieval-heads",
        "concept-depth",
        "knowledge-conflict",
        "data-selection",
        "branching-factor",
        "representation-geometry",
    }
    assert six <= set(found[0].split()) and found[1] == "False False"


def _install(folder: Path, name: str, code: str) -> None:
    """A third-party distribution with one probe, as an installed package looks on the path."""
    (folder / f"{name}_module.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[workbench.probes]\n{name} = {name}_module\n")


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._entry_points.cache_clear()
    yield tmp_path
    registry._entry_points.cache_clear()
    registry.unregister("theirs")


def test_a_third_party_probe_is_found_through_its_entry_point(third_party):
    _install(
        third_party,
        "theirs",
        Path(tiny_probes.__file__)
        .read_text()
        .replace('"parts",\n', '"theirs",\n')
        .replace('"next-token-entropy",\n', '"theirs-too",\n'),
    )
    assert "theirs" in registry.names()
    assert registry.get("theirs").tables == {"rows": ("part", "draw", "x")}
    registry.unregister("theirs-too")


def test_a_broken_third_party_probe_is_named_and_does_not_take_the_others_with_it(third_party):
    _install(third_party, "broken", "import no_such_package_anywhere")
    _install(third_party, "silent", "x = 1")
    with pytest.raises(WorkbenchError, match="'broken' is in the module broken_module, which cannot be imported"):
        registry.get("broken")
    with pytest.raises(WorkbenchError, match="does not"):
        registry.get("silent")
    assert "no_such_package_anywhere" in registry.problem("broken")
    assert registry.problem("parts") is None


SMALL = """
from dataclasses import dataclass
from workbench.core.registry import option, probe

@dataclass(frozen=True)
class Config:
    n: int = option(3, "n")

@probe("{name}", summary="S.", tables={{"t": ("a",)}}, bibtex="@misc{{x}}")
def run(model, config: Config, context):
    return None

"""


def _probes_in(folder: Path, code: str) -> list[str]:
    """What a Python of its own prints, with WORKBENCH_PROBES naming the folder."""
    import os

    environment = {**os.environ, "WORKBENCH_PROBES": f"{folder / 'absent'}{os.pathsep}{folder}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_folder_is_a_probe_and_one_that_fails_is_named_and_does_not_take_the_others_with_it(tmp_path):
    for name, code in (
        ("zero_sum", SMALL.format(name="zero-sum")),
        ("broken_one", "import no_such_package_anywhere"),
        ("half_way", SMALL.format(name="half-way") + "1 / 0\n"),
        ("not_python", "def"),
        ("silent_one", "x = 1"),
        ("_helper", "x = 1"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    (tmp_path / "no_package").mkdir()
    (tmp_path / "module.py").write_text("x = 1")
    code = """
from workbench.core import registry
print(*registry.names()[-5:])
for name in registry.names():
    print(name, registry.problem(name))
print(registry.problem("half-way"))
"""
    found = _probes_in(tmp_path, code)
    assert found[0].split() == ["broken-one", "half-way", "not-python", "silent-one", "zero-sum"]
    said = dict(line.split(" ", 1) for line in found[1:-1])
    assert said["zero-sum"] == said["retrieval-heads"] == "None"
    assert "module probes.broken_one" in said["broken-one"] and "no_such_package_anywhere" in said["broken-one"]
    assert "ZeroDivisionError" in said["half-way"] and "ZeroDivisionError" in found[-1]
    assert "SyntaxError" in said["not-python"]
    assert "probes.silent_one was to define the probe 'silent-one'" in said["silent-one"]


def test_a_probe_declares_what_is_found_by_name_only_when_it_is_used():
    assert registry.load_function("json:loads")("1") == 1
    for place, words in (
        ("json", "module:function"),
        ("json:no_such", "no function 'no_such'"),
        ("no_such_module_anywhere:f", "cannot be imported"),
    ):
        with pytest.raises(WorkbenchError, match=words):
            registry.load_function(place)


def test_the_data_file_of_a_model_goes_before_the_one_that_ships(tmp_path):
    own = tmp_path / "own.csv"
    spec = registry.DataSpec(
        default="workbench:organisms/data/texts.jsonl", for_model=lambda model: own if model == "mine" else None
    )
    assert spec.default_path("mine") == own
    assert spec.default_path("other") == spec.default_path() and spec.default_path().is_file()
    assert registry.DataSpec().default_path("mine") is None


def test_a_default_file_has_the_name_that_a_run_keeps_of_it(tmp_path):
    """A file that ships with the model is named after the model, one that ships with the project after its place."""
    shipped, world = "workbench:organisms/data/texts.jsonl", "workbench:organisms/data/conflicts.jsonl"
    own = {"mine": tmp_path / "own.csv", "ours": world}
    spec = registry.DataSpec(default=shipped, for_model=own.get)
    assert spec.default_file("mine") == (tmp_path / "own.csv", "mine:own.csv")
    path, name = spec.default_file("ours")
    assert (path, name) == (registry.DataSpec(default=world).default_path(), world) and path.is_file()
    assert spec.default_file("other")[1] == spec.default_file()[1] == shipped
    assert registry.DataSpec().default_file("mine") == (None, None)
