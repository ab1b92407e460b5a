"""The features of an autoencoder in a real Chromium."""

import re

import pytest

from tests.browser.conftest import cut_buttons, shot, too_wide
from tests.browser.serving import rest
from tests.browser.test_app import cell, query, see

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PROMPT = "The official register reports that Vira keeps a cat. Vira keeps a"
ADDRESS = f"/?model=organism&map=Features&prompt={PROMPT.replace(' ', '+')}"


def test_a_feature_is_chosen_on_the_map_switched_off_restored_and_a_passage_becomes_the_prompt(visit):
    page = visit(ADDRESS)
    cell(page, 3, 8).wait_for()
    title = cell(page, 3, 8).get_attribute("title")
    feature = re.match(r"feature ([0-9]+), token 8", title)[1]
    cell(page, 3, 8).click()
    see(page, f"logit for one unit of feature {feature}")
    rest(page)
    assert (query(page, "feature"), query(page, "at")) == (feature, "8")
    assert cut_buttons(page) == []
    page.get_by_role("button", name=f"Switch off {feature}").click()
    see(page, "with the features switched")
    rest(page)
    assert query(page, "features") == f"{feature}=off"
    page.get_by_role("button", name=f"Switch on {feature}").scroll_into_view_if_needed()
    shot(page, "features-light")
    page.reload()
    see(page, "with the features switched")
    rest(page)
    page.get_by_role("button", name=f"Switch on {feature}").click()
    page.get_by_text("with the features switched").wait_for(state="detached")
    page.get_by_text("Passages", exact=True).first.click()
    page.get_by_role("button", name="Find passages").click()
    page.locator(".wb-passage").nth(2).wait_for()
    rest(page)
    shot(page, "features-passages")
    before = page.locator(".strip button").count()
    page.get_by_role("button", name="As prompt").first.click()
    page.wait_for_function(
        "(before) => document.querySelector('textarea[aria-label=\"Prompt\"]').value !== before", arg=PROMPT
    )
    rest(page)
    assert page.locator(".strip button").count() != before
    assert query(page, "feature") == feature and query(page, "at")


def test_the_map_of_features_fits_a_phone_in_the_dark(visit):
    page = visit(ADDRESS + "&feature+view=Fed+by", dark=True, size=(390, 844))
    see(page, "pre-activation of feature")
    rest(page)
    assert too_wide(page) == [] and cut_buttons(page) == []
    cell(page, 0, 3).scroll_into_view_if_needed()
    shot(page, "features-phone-dark")
