"""The prompt box of the Explorer and the ways into it: links old and new, rows of a run's tables."""

import pytest

from tests.support.app_screens import open_page, words

MODEL = "circuit-copy-gqa"


def query(at, key: str) -> str:
    """What the address says, which streamlit's driver gives as a word or a list of one."""
    found = at.query_params.get(key, "")
    return found[0] if isinstance(found, list) else found


@pytest.mark.parametrize(
    "address, prompt",
    [
        ({"prompt": "lantern\\nvelvet"}, "lantern\nvelvet"),  # a link of before
        ({"prompt": "lantern\nvelvet"}, "lantern\nvelvet"),
        ({"prompt": "lantern\\nvelvet", "literal": "1"}, "lantern\\nvelvet"),
    ],
)
def test_a_line_break_in_a_link_is_one_in_the_box_and_two_signs_stay_two_signs(address, prompt):
    at = open_page("explorer", model=MODEL, **address)
    assert at.text_area(key="prompt").value == prompt


def test_a_typed_backslash_is_itself_and_its_link_says_so():
    at = open_page("explorer", model=MODEL)
    at.text_area(key="prompt").set_value("lantern\\nvelvet").run()
    assert at.text_area(key="prompt").value == "lantern\\nvelvet" and query(at, "literal") == "1"
    at.text_area(key="prompt").set_value("lantern\nvelvet").run()
    assert at.text_area(key="prompt").value == "lantern\nvelvet" and "literal" not in at.query_params


def test_the_chosen_position_goes_with_its_prompt_however_that_is_changed():
    at = open_page("explorer", model=MODEL, prompt="lantern velvet harbor lantern", at="2")
    assert "at token 2" in words(at)  # a link has both
    at.text_area(key="prompt").set_value("lantern velvet harbor velvet harbor").run()
    assert "at" not in at.query_params and "at token 5" in words(at)
    at.query_params["at"] = "1"
    at.run()
    assert "at token 1" in words(at)
    next(b for b in at.button if b.key == "example 0").click().run()
    assert "at" not in at.query_params and "at token 1<" not in words(at)


def test_a_prompt_from_the_history_has_the_position_of_its_own_address():
    at = open_page("explorer", model=MODEL, prompt="lantern velvet harbor lantern", at="2")
    at.query_params["prompt"] = "velvet harbor velvet"  # back, to an address without a position
    at.session_state["prompt"] = "velvet harbor velvet"
    at.run()
    assert "at" not in at.query_params and "at token 3" in words(at)
    at.query_params["at"] = "1"
    at.session_state["prompt"] = "harbor harbor"
    at.run()
    assert query(at, "at") == "1" and "at token 1" in words(at)


def test_a_view_is_saved_listed_opened_by_its_link_changed_and_deleted():
    from dataclasses import replace
    from urllib.parse import parse_qsl

    from workbench.explorer import saved_views

    at = open_page("explorer", model=MODEL, prompt="lantern\nvelvet", head="1.2", off="0.1")
    next(b for b in at.button if b.key == "view save").click().run()
    assert "needs a name" in at.error[0].value and saved_views.views() == ([], [])
    at.text_input(key="view name").set_value("<b>two heads</b>")
    at.text_area(key="view note").set_value("seen")
    next(b for b in at.button if b.key == "view save").click().run()
    (view,), _ = saved_views.views()
    assert "&lt;b&gt;two heads&lt;/b&gt;" in words(at) and "<b>two" not in words(at)
    assert at.text_input(key="view name").value == ""
    again = open_page("explorer", **dict(parse_qsl(view.address)))
    assert "Layer 1, head 2" in words(again) and again.text_area(key="prompt").value == "lantern\nvelvet"
    assert query(again, "off") == "0.1" and not again.warning
    saved_views._write(replace(view, fingerprint="0" * 64))
    again.run()
    assert "was saved on other weights" in again.warning[0].value
    at.selectbox(key="view chosen").set_value(f"{view.name} · {view.id}").run()
    at.text_input(key=f"view name {view.id}").set_value("renamed")
    next(b for b in at.button if b.key == "view change").click().run()
    assert saved_views.views()[0][0].name == "renamed"
    at.selectbox(key="view chosen").set_value(f"renamed · {view.id}").run()
    next(b for b in at.button if b.key == "view delete").click().run()
    assert saved_views.views() == ([], []) and not at.exception


@pytest.mark.parametrize("chosen", ["Lens", "Waterfall", "Patching", "Paths"])
def test_every_panel_gives_caption_python_command_and_bibtex_to_take_home(chosen):
    second = {"from": "lantern harbor velvet lantern"} if chosen in ("Patching", "Paths") else {}
    at = open_page("explorer", model=MODEL, prompt="lantern velvet harbor lantern", head="1.1", map=chosen, **second)
    code = [item.value for item in at.code]
    assert any(text.startswith("from workbench import explore\n") for text in code)
    assert any(text.startswith("workbench explore --panel ") for text in code)
    assert any(text.startswith("@") for text in code) and any("weights" in text for text in code)
    assert "Notebook" in [item.proto.label for item in at.get("download_button")]
