"""The Demo button on models that no probe was made for: greyed out with its reason, or a run with its figure."""

from __future__ import annotations

import re

import pytest

from tests.browser.conftest import shot
from tests.browser.serving import rest
from tests.support.odd_models import save

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(save(tmp_path_factory.mktemp("models") / "tiny", "llama", context=128))


def opened(visit, path: str):
    """The screen, at rest. It is the first of its server: torch is loaded, and the architecture tried out, before the
    button is drawn, which takes a minute on a machine that is busy."""
    page = visit(path, resting=False)
    page.set_default_timeout(200_000)
    rest(page)
    return page


def test_a_demo_that_the_context_cannot_hold_is_greyed_out_with_its_reason(visit, tiny):
    page = opened(visit, f"/retrieval_heads?retrieval-heads.model={tiny}")
    page.get_by_text("No demo: The context of").wait_for()
    assert page.get_by_role("button", name="Demo", exact=True).is_disabled()
    assert "cannot hold the first needle" in page.get_by_text("No demo:").inner_text()
    shot(page, "no-demo")


def test_a_demo_on_a_tiny_model_ends_on_its_figure(visit, tiny):
    page = opened(visit, f"/branching_factor?branching-factor.model={tiny}")
    page.get_by_role("button", name="Demo", exact=True).click()
    rest(page)
    page.locator('[data-testid="stBaseButton-primary"]').first.click()
    page.locator('[data-testid="stMain"]').get_by_text(tiny.rsplit("/", 1)[1]).first.wait_for()
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    page.get_by_text(re.compile("[0-9]+ warnings?")).first.click()  # one line below the figure, which opens
    page.get_by_text("samples ended at the model's context limit").first.wait_for()
    shot(page, "demo-done")
