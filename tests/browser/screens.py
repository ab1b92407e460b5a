"""The screens of the app as a visitor finds them: every link of the side bar, every card and every map that the
Explorer offers. A screen, card or map that is new is walked to without a line here."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

from tests.browser.serving import rest

SECRET = "The secret of the lantern is {} walrus cactus. Question: What is the secret of the lantern? Answer:"
# The organism copies “insect” from the prompt, and “panther” from the second one: every map has something to show.
VIEW = {"model": "organism", "prompt": SECRET.format("insect"), "from": SECRET.format("panther"), "head": "1.0"}
# What a screen is opened on where it would open on a list.
OPENED_ON = {
    "runs": {"run": "retrieval-heads-000000000001"},
    "compare": {"a": "retrieval-heads-000000000001", "b": "retrieval-heads-000000000002"},
}


def explorer(**given: str) -> str:
    """The address of the Explorer on a prompt that has an effect."""
    return "/?" + urlencode(VIEW | given)


def places(page) -> list[str]:
    """The paths of the screens, as the side bar of an open page links them, without the Explorer."""
    links = page.get_by_test_id("stSidebarNav").get_by_role("link")
    paths = [href.rpartition("/")[2] for href in links.evaluate_all("all => all.map((a) => a.href)")]
    return [path for path in paths if path not in ("", "explorer")]


def choices(page, name: str) -> list[str]:
    """What a row of buttons has to choose from, from left to right."""
    return page.get_by_role("radiogroup", name=name, exact=True).get_by_role("radio").all_inner_texts()


def choose(page, name: str, choice: str) -> None:
    """Press one of a row of buttons, and wait for what comes of it."""
    page.get_by_role("radiogroup", name=name, exact=True).get_by_role("radio", name=choice, exact=True).click()
    page.wait_for_timeout(150)
    rest(page)


def walk(page, server: str, paths: list[str]) -> Iterator[str]:
    """Open the Explorer with each of its cards and each of its maps, then every screen of ``paths``; gives the name of
    what is open, at rest."""
    page.goto(server + explorer())
    page.get_by_role("radiogroup", name="Map", exact=True).wait_for()
    rest(page)
    for row in ("Card", "Map"):
        for choice in choices(page, row):
            choose(page, row, choice)
            yield f"explorer-{row.lower()}-{choice.lower()}"
        choose(page, row, choices(page, row)[0])
    for path in paths:
        page.goto(f"{server}/{path}?{urlencode(OPENED_ON.get(path, {}))}")
        page.get_by_role("heading", level=1).first.wait_for()
        rest(page)
        yield path
