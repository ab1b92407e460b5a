"""Saved views: kept whole, listed, changed, deleted; bad files cost a sentence and no more."""

import json
from dataclasses import replace
from urllib.parse import parse_qsl

import pytest

from workbench.core.errors import InputError
from workbench.explorer import saved_views

STATE = {"model": "organism", "prompt": "a\nb & c=é", "head": "1.2", "off": "0.0,1.1"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save(name: str = "copying", **more):
    return saved_views.save(name, {**STATE, **more}, model="organism", fingerprint="f" * 64, note=" seen\nhere ")


def test_a_view_is_read_as_it_was_saved_and_its_address_restores_all_of_its_state():
    view = save(token="secret", view="000000000000")
    assert saved_views.views() == ([view], []) and saved_views.get(view.id) == view
    assert (view.name, view.note, dict(view.state)) == ("copying", "seen\nhere", STATE)
    assert dict(parse_qsl(view.address)) == {**STATE, "view": view.id}


def test_views_are_listed_the_latest_first_and_changed_in_place():
    one, two = save("one"), save("two")
    older = replace(one, saved="2020-01-01T00:00:00+00:00")
    saved_views._write(older)
    assert [view.name for view in saved_views.views()[0]] == ["two", "one"]
    changed = saved_views.change(older, name="  a  better name ", note="n")
    assert changed.id == one.id and saved_views.get(one.id) == changed and changed.name == "a better name"
    saved_views.delete(two)
    saved_views.delete(two)
    assert saved_views.views() == ([changed], [])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"\xff", json.dumps({"name": 1}).encode(), b'{"name": "x", "note": "", "state": []}'],
)
def test_a_file_that_is_no_view_is_left_out_with_a_sentence_and_the_others_are_shown(content):
    view = save()
    (saved_views.folder() / "0123456789ab.json").write_bytes(content)
    found, problems = saved_views.views()
    assert found == [view] and len(problems) == 1
    assert problems[0].startswith("The saved view 0123456789ab.json is left out: ") and problems[0].count("\n") == 0
    assert saved_views.get("0123456789ab") is None


@pytest.mark.parametrize("identifier", ["", "../../etc/passwd", "..", "ABCDEFABCDEF", "0123456789ab\n", "é"])
def test_an_id_from_an_address_cannot_leave_the_folder(identifier, cache):
    save()
    (cache / "0123456789ab.json").write_text("{}")
    assert saved_views.get(identifier) is None


@pytest.mark.parametrize("name", ["", "  \n", "x" * 121])
def test_a_view_without_a_name_is_not_saved(name):
    with pytest.raises(InputError):
        save(name)
    assert saved_views.views() == ([], [])
    with pytest.raises(InputError):
        save(prompt="x" * 100_001)


def test_a_view_of_other_weights_says_so_and_one_of_the_same_says_nothing():
    view = save()
    assert saved_views.changed_since(view, "f" * 64) == ""
    said = saved_views.changed_since(view, "e" * 64)
    assert "ffffffffffff" in said and "eeeeeeeeeeee" in said and said.endswith("its numbers differ.")
