"""What names do to a run: a file or model of another name never gives the old run with the other name in its tables."""

from __future__ import annotations

import shutil
import types

import pytest

from workbench import organisms
from workbench.core import registry
from workbench.core.errors import InputError, RunFailed
from workbench.runs import execution as runs
from workbench.runs.identity import by_content, check_unchanged, model_name

NAMES = (
    "my [v2].jsonl",
    "a*b?.jsonl",
    "ü %.jsonl",
    "{x}.jsonl",
    "one, two.jsonl",
    "a:b.jsonl",
    "~home.jsonl",
    "[v2].jsonl",
)


def model(name="organism"):
    return types.SimpleNamespace(
        adapter=None, name=name, revision=None, fingerprint="f", tokenizer_fingerprint="t", dtype="float32"
    )


def identity(probe, config=None, data=None, on="organism"):
    return runs.identify(runs.prepare(probe, config or {}, data), model(on), seed=0)


@pytest.mark.parametrize(
    ("probe", "shipped", "given"),
    [
        ("concept-depth", "concepts/coin.jsonl", lambda path: ({}, path)),
        ("concept-depth", "concepts/coin.jsonl", lambda path: ({"sets": (str(path),)}, None)),
        ("data-selection", "targets/sea.jsonl", lambda path: ({"target": (str(path),)}, None)),
        ("retrieval-heads", "needles.jsonl", lambda path: ({}, path)),
        ("retrieval-heads", "needles.jsonl", lambda path: ({"needles": str(path)}, None)),
        ("representation-geometry", "texts.jsonl", lambda path: ({}, path)),
        ("knowledge-conflict", "texts.jsonl", lambda path: ({"neutral": str(path)}, None)),
    ],
)
def test_equal_bytes_under_another_name_are_another_run(tmp_path, probe, shipped, given):
    first, second, elsewhere = tmp_path / "first.jsonl", tmp_path / "second.jsonl", tmp_path / "folder" / "first.jsonl"
    elsewhere.parent.mkdir()
    for path in (first, second, elsewhere):
        shutil.copyfile(organisms.DATA / shipped, path)
    assert identity(probe, *given(first)) == identity(probe, *given(elsewhere))
    assert identity(probe, *given(first)) != identity(probe, *given(second))


def test_a_file_that_ships_is_the_same_run_whether_it_is_the_default_or_given_by_its_path():
    item = registry.get("branching-factor")
    assert identity("branching-factor") == identity("branching-factor", data=item.data.default_path())
    assert "data_name" not in identity("branching-factor") and "model_name" not in identity("branching-factor")


def test_a_model_counts_by_the_name_that_tables_give_it(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert [model_name(model(name)) for name in ("organism", "gpt2", "org/gpt2", str(tmp_path / "a"))] == [
        None, "gpt2", "org/gpt2", "a",
    ]  # fmt: skip
    assert identity("branching-factor", on=str(tmp_path / "a")) != identity("branching-factor", on=str(tmp_path / "b"))


@pytest.mark.parametrize("name", NAMES)
def test_a_path_of_odd_characters_is_one_path_in_every_option_that_takes_one(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    decoy = tmp_path / "my 2.jsonl"  # what a pattern would match
    shutil.copyfile(organisms.DATA / "targets/sea.jsonl", decoy)
    for relative in (name, f"folder [1]/{name}"):
        path = tmp_path / relative
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(organisms.DATA / "targets/music.jsonl", path)
        for given in (relative, str(path)):
            ready = runs.prepare("data-selection", {"target": given}, None)
            assert ready.config.target == (given,)
            two = runs.prepare("data-selection", {"target": f"{given},{decoy}"}, None)
            assert two.config.target == (given, str(decoy))
            (found,) = identity("data-selection", {"target": given})["config"]["target"]
            assert found == by_content(str(path), registry.get("data-selection"))
            assert found["name"] == path.name
            text = runs.command_for(two, "organism")
            assert "--set" in text


def test_a_file_that_changes_under_a_run_fails_it(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\n")
    fingerprint = by_content(str(path), registry.get("branching-factor"))["sha256"]
    check_unchanged(path, fingerprint)
    path.write_text("two\n")
    with pytest.raises(RunFailed, match="was changed while the run read it"):
        check_unchanged(path, fingerprint)


ENTRANCES = [
    ("concept-depth", {"template": "no slot"}, "a text that holds {text}"),
    ("concept-depth", {"template": "no slot", "sets": ("coin",)}, "a text that holds {text}"),
    ("concept-depth", {"template": "no slot", "sets": ("english/sentiment",)}, "a text that holds {text}"),
    ("concept-depth", {"pair": ("a", "a"), "sets": ("coin",)}, "two different labels"),
    ("retrieval-heads", {"template": "{context}"}, "once each"),
    ("retrieval-heads", {"template": "{context}{context}{question}"}, "once each"),
    ("data-selection", {"template": "{response}"}, "needs {prompt} and then {response}"),
    ("representation-geometry", {"fit_range": (5, 5)}, "fit_range must grow"),
    ("representation-geometry", {"min_length": 9, "max_length": 8}, "min_length=9"),
    ("knowledge-conflict", {"find_share": 0.6, "validation_share": 0.5}, "nothing to test on"),
    ("knowledge-conflict", {"columns": ("subject",)}, "name:column_in_the_file"),
]


@pytest.mark.parametrize(("probe", "config", "words"), ENTRANCES)
def test_what_is_wrong_with_a_config_is_said_at_every_entrance(tmp_path, probe, config, words):
    from workbench.core.config import build
    from workbench.runs import queue, sweep

    toml = "\n".join(f"{key} = {list(value) if isinstance(value, tuple) else value!r}" for key, value in config.items())
    (tmp_path / "sweep.toml").write_text(f'model = "organism"\n[[probes]]\nname = "{probe}"\n[probes.config]\n{toml}\n')
    for entrance in (
        lambda: build(registry.get(probe).config, config),
        lambda: runs.bind(probe, **config),
        lambda: runs.execute(probe, "no-such-model", config=config),
        lambda: queue.submit(probe, "no-such-model", config=config, start=False),
        lambda: sweep.read(tmp_path / "sweep.toml"),
    ):
        with pytest.raises(InputError) as caught:
            entrance()
        assert words in str(caught.value)


@pytest.mark.parametrize("name", ["my [v2]", "a*b?", "ü %", "{x}", "one, two", "a:b"])
def test_every_other_file_that_a_run_reads_may_have_such_a_name(tmp_path, name):
    from workbench.core.config import read_toml
    from workbench.engine.head_masks import read_mask
    from workbench.models.checkpoints import find

    hay, config, mask = (tmp_path / f"{name}{suffix}" for suffix in (".txt", ".toml", ".json"))
    hay.write_text("A text of some words. And more of it.")
    config.write_text("samples = 3\n")
    mask.write_text('{"heads": [[0, 1]]}')
    needles = tmp_path / f"{name}.jsonl"
    shutil.copyfile(organisms.DATA / "needles.jsonl", needles)
    runs.prepare("retrieval-heads", {"haystack": str(hay), "needles": str(needles)})
    runs.prepare("knowledge-conflict", {"neutral": str(hay)})
    assert read_toml(config) == {"samples": 3} and read_mask(mask).heads == ((0, 1),)
    for step in (1, 2):
        (tmp_path / name / f"step-{step}").mkdir(parents=True)
        (tmp_path / name / f"step-{step}" / "config.json").write_text("{}")
    assert [found[:2] for found in find(model(), [str(tmp_path / name)])] == [("step-1", 1), ("step-2", 2)]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"heads": [[0, ' + "9" * 6000 + "]]}"])
def test_a_mask_that_cannot_be_read_is_one_sentence(tmp_path, text):
    from workbench.engine.head_masks import read_mask

    (tmp_path / "mask.json").write_text(text)
    with pytest.raises(InputError, match="is not a head mask") as caught:
        read_mask(tmp_path / "mask.json")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["x = " + "[" * 50_000 + "]" * 50_000, "x = " + "9" * 6000, "x = 1\nx = 2"])
def test_toml_that_cannot_be_read_is_one_sentence(tmp_path, text):
    from workbench.core.config import read_toml

    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(InputError, match="is not valid TOML") as caught:
        read_toml(tmp_path / "a.toml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
