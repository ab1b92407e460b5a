"""The map of features: opens on what ships, restores a link, says what it needs, and switches what is chosen."""

import pytest

from tests.support.app_screens import open_page, words

PROMPT = "The secret of the lantern is insect walrus cactus. Question: What is the secret of the lantern? Answer:"


def button(at, label: str):
    return at.button[[b.label for b in at.button].index(label)]


def url(at, key: str) -> str:
    found = at.query_params.get(key, "")
    return found[0] if isinstance(found, list) else found


def test_a_feature_is_switched_set_and_on_again_and_the_answer_says_so():
    at = open_page("explorer", model="organism", prompt=PROMPT, map="Features", feature="7")
    text = words(at)
    assert "Feature 7" in text and "1,024 features of resid" in text and "they explain" in text
    assert any("much of what the model does" in item.value for item in at.warning)  # it knows few such texts
    button(at, "Switch off 7").click().run()
    assert url(at, "features") == "7=off" and "with the features switched" in words(at)
    at.number_input(key="feature value").set_value(3.5).run()
    button(at, "Add").click().run()
    assert url(at, "features") == "7=add3.5" and "7 raised by 3.5" in words(at).replace("\\", "")
    button(at, "All features on").click().run()
    assert url(at, "features") == "" and "with the features switched" not in words(at)
    assert not at.exception


def test_every_view_of_a_feature_draws_and_gives_its_python():
    at = open_page("explorer", model="organism", prompt=PROMPT, map="Features", head="1.1")
    calls = {
        "Writes": "feature_writes(",
        "Fed by": "feature_sources(",
        "Effects": "feature_effects(",
        "Of the head": "head_features((1, 1)",
    }
    for view, call in calls.items():
        at.segmented_control(key="feature view").set_value(view).run()
        assert call in words(at) and not at.error and not at.exception
    at.segmented_control(key="feature view").set_value("Passages").run()
    assert "passages(" not in words(at)  # on demand
    button(at, "Find passages").click().run()
    assert "passages(" in words(at) and not at.error
    opens = [b for b in at.button if b.label == "As prompt"]
    before = at.text_area(key="prompt").value
    opens[0].click().run()
    assert at.text_area(key="prompt").value != before and url(at, "at") and not at.exception


def test_a_model_without_an_autoencoder_asks_for_one_and_one_that_does_not_fit_is_a_sentence():
    at = open_page("explorer", model="circuit-copy-gqa", map="Features")
    assert any("name a folder" in item.value for item in at.info)
    shipped = "workbench/organisms/weights/sae/organism"
    at = open_page("explorer", model="circuit-copy-gqa", map="Features", sae=shipped, features="3=off")
    assert any("no sparse autoencoder" in e.value or "layer" in e.value or "reads" in e.value for e in at.error)
    assert "with the features switched" not in words(at)


@pytest.mark.parametrize("bad", ["9999=off", "x", "3=-1", "3=off,3=2"])
def test_changes_in_a_link_that_are_none_switch_nothing_and_are_said_on_the_map(bad):
    at = open_page("explorer", model="organism", prompt=PROMPT, map="Features", features=bad)
    assert len(at.error) == 1 and "with the features switched" not in words(at)


def test_the_waterfall_is_in_features_on_demand_and_gives_its_python():
    at = open_page("explorer", model="organism", prompt=PROMPT, map="Waterfall", features="7=off")
    assert "autoencoder='default'" in words(at)  # of what is switched
    before = words(at).count("autoencoder='default'")
    at.toggle(key="in features").set_value(True).run()
    assert words(at).count("autoencoder='default'") == before + 1 and not at.exception and not at.error
