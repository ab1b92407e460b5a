"""The app in a real Chromium: what a person does on each screen, in the order of a first visit."""

import io
import re
import shutil
import socket
import time

import polars as pl
import pytest

from tests.browser.conftest import RUNS, cut_buttons, jumps, shot, too_wide
from tests.browser.serving import rest, serve
from tests.support import figure_runs

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MODEL = "circuit-copy-gqa"
PROMPT = "lantern velvet harbor quartz meadow lantern velvet"
EXPLORER = f"/?model={MODEL}&prompt={PROMPT.replace(' ', '+')}"


def head(page, name: str):
    return page.locator(f'button[data-key="{name}"]')


def see(page, text: str):
    page.get_by_text(text).first.wait_for()


def query(page, key: str) -> str:
    return page.evaluate(f"new URLSearchParams(location.search).get('{key}') || ''")


def test_a_head_is_clicked_walked_to_and_switched_off_and_a_reload_restores_it(visit, record_property):
    page = visit(EXPLORER)
    see(page, "greedy continuation")
    assert page.locator(".strip button").count() == len(PROMPT.split()) + 1  # BOS is shown
    answer = page.locator("table.wb tr").nth(1).bounding_box()
    assert answer["y"] + answer["height"] < 720  # the answer is in sight without scrolling
    assert cut_buttons(page) == []
    page.keyboard.press("j")  # without a click into the grid
    see(page, "Layer 0, head 1")
    page.keyboard.press("l")
    see(page, "Layer 0, head 2")
    page.keyboard.press("k")
    see(page, "Layer 1, head 2")
    page.keyboard.press("h")
    see(page, "Layer 1, head 1")
    rest(page)
    before = page.locator(".wb-text").first.inner_text()
    head(page, "0.1").click()
    see(page, "Layer 0, head 1")
    start = time.perf_counter()
    head(page, "1.1").click()
    see(page, "Layer 1, head 1")
    record_property("head_click_ms", round(1000 * (time.perf_counter() - start)))
    page.keyboard.press("ArrowRight")
    see(page, "Layer 1, head 2")
    page.keyboard.press("ArrowLeft")
    see(page, "Layer 1, head 1")
    start = time.perf_counter()
    page.keyboard.press("x")  # the shortcut of the switch
    see(page, "with the heads switched")
    record_property("ablation_ms", round(1000 * (time.perf_counter() - start)))
    rest(page)
    assert (query(page, "head"), query(page, "off")) == ("1.1", "1.1")
    after = page.locator(".wb-text").nth(1).inner_text()
    assert (
        page.locator(".wb-text").first.inner_text() == before != after
    )  # without its copying head the circuit cannot go on
    shot(page, "explorer-light")
    page.reload()
    see(page, "with the heads switched")
    rest(page)
    assert "off" in head(page, "1.1").get_attribute("class") and page.locator(".wb-text").nth(1).inner_text() == after
    page.locator(".strip button").nth(2).click()
    see(page, "at token 2")
    head(page, "1.1").click(modifiers=["Shift"])
    page.get_by_text("with the heads switched").wait_for(state="detached")
    assert query(page, "off") == "" and query(page, "at") == "2"


def cell(page, row: int, column: int):
    return page.locator(f'.map button[data-cell="{row}.{column}"]')


def test_a_cell_of_the_lens_map_is_clicked_and_walked_from_and_leads_to_its_layer_and_token(visit):
    page = visit(EXPLORER)
    see(page, "greedy continuation")
    cell(page, 1, 3).wait_for()
    cell(page, 1, 3).click()
    see(page, "at token 3")
    rest(page)
    assert query(page, "at") == "3" and query(page, "head").startswith("0.")  # row 0 is the embedding
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    see(page, "at token 4")
    rest(page)
    assert query(page, "head").startswith("1.") and cell(page, 2, 4).get_attribute("aria-selected") == "true"
    shot(page, "lens-map")


def test_an_mlp_is_switched_with_a_click_and_the_target_stays_the_one_of_the_plain_model(visit):
    page = visit("/?model=organism&map=Waterfall")
    see(page, "greedy continuation")
    see(page, "Effects are of")
    said = page.get_by_text("Effects are of").first.inner_text()
    page.locator('button[data-mlp="2"]').click()
    see(page, "with the MLPs switched")
    rest(page)
    assert query(page, "mlps") == "2" and page.get_by_text("Effects are of").first.inner_text() == said
    page.locator(".js-plotly-plot").first.wait_for()
    shot(page, "waterfall")
    page.reload()
    see(page, "with the MLPs switched")
    rest(page)
    assert "off" in page.locator('button[data-mlp="2"]').get_attribute("class")
    page.get_by_role("button", name="All on").click()
    page.get_by_text("with the MLPs switched").wait_for(state="detached")


def test_a_patching_map_names_the_token_that_differs_and_a_head_map_leads_to_the_head(visit):
    prompt = "The secret of the lantern is {} walrus cactus. Question: What is the secret of the lantern? Answer:"
    one, two = (prompt.format(word).replace(" ", "+").replace("?", "%3F") for word in ("insect", "panther"))
    page = visit(f"/?model=organism&prompt={one}&from={two}&map=Patching")
    see(page, "greedy continuation")
    cell(page, 0, 7).wait_for()
    titles = [cell(page, 0, i).get_attribute("title") for i in range(23)]
    gaps = [float(re.search(r"(-?[0-9]+)% of the gap", title)[1]) for title in titles]
    assert gaps[7] == 100 and all(abs(gap) < 5 for i, gap in enumerate(gaps) if i != 7)  # only “insect” differs
    shot(page, "patching-map")
    page.get_by_role("button", name="Swap").click()
    see(page, "log p(“ panther”)")
    page = visit(f"/?model=organism&prompt={one}&from={two}&map=Patching&patched=heads")
    cell(page, 1, 1).click()
    see(page, "Layer 1, head 1")


def test_a_head_in_a_runs_map_opens_the_explorer_there_in_the_colours_of_the_run_and_the_run_is_linked_back(
    visit, cache, monkeypatch
):
    from tests.support.app_screens import keep
    from workbench.models.loading import load
    from workbench.runs.execution import runs_root

    monkeypatch.setenv("WORKBENCH_CACHE", str(cache))
    fake = figure_runs.retrieval(layers=2, heads=4, kv_heads=2, name=MODEL, seed=4)
    identifier = keep(
        fake, "retrieval-heads-000000000004", model={**fake.info["model"], "fingerprint": load(MODEL).fingerprint}
    )
    try:
        page = visit(f"/retrieval_heads?run={identifier}")
        see(page, "Click a head to look at it in the Explorer")
        bars = page.locator(".js-plotly-plot .barlayer .point path")
        bars.nth(5).wait_for()
        rest(page)
        bars.nth(5).click(force=True)
        page.wait_for_url("**/*head=*")
        see(page, "in finished runs")
        rest(page)
        assert query(page, "head") == "1.1" and query(page, "model") == MODEL
        assert query(page, "colour") == f"score · seed {fake.info['seed']} · 2026-01-01 · {identifier}"
        page.locator(f'a[href*="run={identifier}"]').first.click()
        see(page, "Click a head to look at it in the Explorer")
    finally:  # the other tests of this server know which runs of this model there are
        shutil.rmtree(runs_root() / identifier)


def test_the_whole_pattern_is_small_and_its_scales_change_without_the_server(visit):
    page = visit("/?model=organism&pattern=true")
    page.locator(".pattern canvas").wait_for()
    rest(page)
    canvas = page.locator(".pattern canvas")
    before = canvas.evaluate("c => c.toDataURL()")
    page.get_by_role("button", name="root").click()
    assert canvas.evaluate("c => c.toDataURL()") != before
    page.locator(".pattern canvas").hover(position={"x": 20, "y": 200})
    assert page.locator(".pattern .say").inner_text().startswith("from ")
    page.locator(".pattern canvas").click(position={"x": 20, "y": 200})
    see(page, "at token 1")
    assert int(query(page, "at")) < 22


def test_a_link_to_a_probe_may_be_the_first_thing_that_a_server_serves(browser, tmp_path, monkeypatch):
    from tests.support.app_screens import keep

    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    keep(RUNS["retrieval-heads-000000000001"], "retrieval-heads-000000000001")
    with serve(tmp_path) as address:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{address}/retrieval_heads?run=retrieval-heads-000000000001")
        page.locator(".js-plotly-plot").first.wait_for()
        rest(page)
        assert page.get_by_role("dialog").count() == 0 and page.url.endswith("000000000001")
        page.close()


STILL = 0.1  # up to here a page counts as good: web.dev/cls


def test_nothing_jumps_while_a_screen_loads_or_a_head_is_clicked(visit):
    for when in ("while the model is loaded", "later"):
        page = visit("/?model=organism")
        see(page, "greedy continuation")
        assert jumps(page) < STILL, when
    for name in ("1.1", "0.2", "1.3"):
        before = page.evaluate("performance.now()")
        head(page, name).click()
        see(page, "Layer {}, head {}".format(*name.split(".")))
        rest(page)
        assert jumps(page, before) < STILL, name
    before = page.evaluate("performance.now()")
    page.evaluate("document.querySelector('.st-key-page').style.marginTop = '200px'")  # what a jump would give
    page.wait_for_timeout(100)
    assert jumps(page, before) > STILL
    for path in (
        "/retrieval_heads?run=retrieval-heads-000000000001",
        "/compare?a=retrieval-heads-000000000001&b=retrieval-heads-000000000002",
    ):
        page = visit(path)
        page.locator(".js-plotly-plot").first.wait_for()
        rest(page)
        assert jumps(page) < STILL, path


def test_the_explorer_in_the_dark_with_its_layer_card(visit):
    page = visit(EXPLORER + "&card=Layer&head=1.1&off=1.3&colour=copying", dark=True)
    see(page, "logit lens at this layer")
    shot(page, "explorer-dark")
    page.locator("button.layer").last.click()
    see(page, "Layer 0")
    assert (
        page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
        == "rgb(14, 17, 23)"
    )


def test_tokens_that_look_like_markup_are_shown_as_text(visit):
    page = visit(f"/?model={MODEL}&prompt=lantern+<img+src=x+onerror=window.hit=1>+velvet")
    see(page, "next token")
    assert page.evaluate("window.hit") is None and page.locator("img[src=x]").count() == 0


def start_run(page, lengths: str, seed: int) -> None:
    """Fill the form of the retrieval probe with a short run (or a long one) and start it."""
    page.get_by_role("button", name="Demo").click()
    rest(page)
    box = page.get_by_label("lengths", exact=True)
    box.fill(lengths)
    box.press("Enter")
    rest(page)
    page.get_by_text("Seed, precision, device").click()
    box = page.get_by_label("seed", exact=True)
    box.fill(str(seed))
    box.press("Enter")
    rest(page)
    page.locator('[data-testid="stBaseButton-primary"]').first.click()


@pytest.mark.load_sensitive("a cancel is to be seen within eight seconds")
def test_a_run_survives_a_reload_shows_in_two_tabs_is_cancelled_and_the_next_one_ends_on_its_figure(visit):
    address = f"/retrieval_heads?retrieval-heads.model={MODEL}"
    page = visit(address)
    shot(page, "probe-light")
    start_run(page, ",".join(map(str, range(200, 1000))), 12)  # minutes, were it not cancelled
    page.get_by_role("button", name="Cancel").first.wait_for()
    other = visit(address, resting=False)
    other.get_by_role("button", name="Cancel").first.wait_for()  # a second tab sees the same queue
    page.reload()
    page.get_by_role("button", name="Cancel").first.wait_for()
    page.get_by_text(re.compile("[0-9]+ of [0-9]+")).first.wait_for()
    shot(page, "probe-running")
    assert cut_buttons(page) == []
    start = time.perf_counter()
    other.keyboard.press("s")  # the key that stops
    other.locator(".st-key-jobs-ended").get_by_text(re.compile("^cancelled")).first.wait_for()
    assert (
        time.perf_counter() - start < 8
    )  # two seconds for the computation, one for the page to look, on a busy machine
    page.locator(".st-key-jobs-ended").get_by_text(re.compile("^cancelled")).first.click()
    page.get_by_role("button", name="Resume").first.wait_for()
    rest(page)
    assert cut_buttons(page) == []
    shot(page, "probe-cancelled")
    page.get_by_role("button", name="Dismiss").first.click()
    page.get_by_role("button", name="Resume").first.wait_for(state="detached")
    start_run(page, "64,128", 1)
    page.locator(".wb-facts b", has_text=MODEL).first.wait_for()  # the page turns to the finished run by itself
    page.locator(".js-plotly-plot").first.wait_for()
    assert query(page, "run").startswith("retrieval-heads-")


def test_a_figure_goes_home_as_a_vector_pdf_of_one_page(visit):
    page = visit("/retrieval_heads?run=retrieval-heads-000000000001&preset=single")
    page.locator(".js-plotly-plot").first.wait_for()
    shot(page, "probe-run-light")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="PDF").click()
    content = waiting.value.path().read_bytes()
    assert content.startswith(b"%PDF-") and len(re.findall(rb"/Type\s*/Page\b", content)) == 1
    assert b"/Subtype /Image" not in content and b"/Font" in content
    assert waiting.value.suggested_filename == "retrieval-heads-000000000001-head_map.pdf"


def fetched(page, button: str) -> bytes:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=button, exact=True).click()
    return waiting.value.path().read_bytes()


def test_pictures_and_tables_go_home_in_the_formats_that_they_are_called(visit):
    page = visit("/retrieval_heads?run=retrieval-heads-000000000001")
    page.locator(".js-plotly-plot").first.wait_for()
    assert b"<svg" in fetched(page, "SVG")[:300] and fetched(page, "PNG").startswith(b"\x89PNG\r\n")
    page.get_by_text("Tables", exact=True).click()
    rest(page)
    table = pl.read_parquet(io.BytesIO(fetched(page, "Parquet")))
    assert table.equals(RUNS["retrieval-heads-000000000001"].table("heads"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_screen_opens_in_light_and_dark_with_buttons_that_can_be_read(visit, server, dark):
    page = visit("/compare?a=retrieval-heads-000000000001&b=retrieval-heads-000000000002", dark=dark)
    for name in ["compare", *dict.fromkeys(identifier.rpartition("-")[0] for identifier in RUNS), "runs"]:
        if name == "runs":
            page.goto(f"{server}/runs?run=retrieval-heads-000000000001")
        elif name != "compare":  # a probe's screen opens on a finished run
            title = name.replace("-", " ").capitalize()
            page.get_by_test_id("stSidebarNav").get_by_role("link", name=title, exact=True).click()
            page.get_by_role("heading", name=title, exact=True).wait_for()
        rest(page)
        page.locator(".js-plotly-plot").nth(3 if name == "compare" else 0).wait_for()
        rest(page)
        shot(page, f"{name}-{'dark' if dark else 'light'}")
        assert cut_buttons(page) == [] and too_wide(page) == [], name


def test_heads_are_set_to_their_mean_and_patched_and_neither_is_saved_as_zero(visit):
    page = visit(EXPLORER + "&off=1.1&how=mean")
    see(page, "heads 1.1 switched (mean)")
    page.get_by_role("button", name="Sets").click()
    box = page.get_by_label("Save the present heads as", exact=True)
    box.fill("mine")
    box.press("Enter")
    page.get_by_role("button", name="Save", exact=True).click()
    see(page, "cannot hold 'mean'")
    page = visit(EXPLORER + "&off=1.1&how=patch")
    see(page, "Type a second prompt")
    box = page.get_by_label("Second prompt, to patch from", exact=True)
    box.fill("lantern velvet harbor")
    box.press("Enter")
    see(page, "heads 1.1 switched (patch)")


def test_a_second_prompt_stands_beside_the_first(visit):
    page = visit(EXPLORER + "&card=Beside")
    see(page, "Choose a second model or type a second prompt")
    box = page.get_by_label("Second prompt", exact=True)
    box.fill("velvet harbor velvet")
    box.press("Enter")
    page.get_by_text("attends, from the last token, to").nth(1).wait_for()
    assert page.get_by_text(re.compile("^4 tokens$")).count() == 1  # as many as the second prompt has, BOS included


def test_a_file_is_uploaded_and_one_over_the_limit_is_not(visit, tmp_path):
    page = visit(f"/retrieval_heads?retrieval-heads.model={MODEL}")
    page.get_by_role("button", name="Upload a file").click()
    page.locator("input[type=file]").set_input_files(
        {"name": "<b>my needles.csv", "mimeType": "text/csv", "buffer": b"needle,question,answer\na b c .,a,b c\n"}
    )
    see(page, "Uses the uploaded b-my-needles.csv")
    large = tmp_path / "large.csv"
    with open(large, "wb") as file:
        file.truncate(200_000_000)
    page = visit(f"/retrieval_heads?retrieval-heads.model={MODEL}")
    page.get_by_role("button", name="Upload a file").click()
    page.locator("input[type=file]").set_input_files(large)
    page.get_by_text(re.compile("50(.0)? ?MB or smaller")).first.wait_for()
    assert page.get_by_text("Uses the uploaded").count() == 0


def test_a_run_is_deleted_after_it_has_been_confirmed(visit, cache):
    folder = cache / "runs" / "retrieval-heads-000000000003"
    page = visit(f"/runs?run={folder.name}")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_text("Yes, delete this run").click()
    rest(page)
    page.get_by_role("button", name="Delete it").click()
    see(page, "Select a row")
    assert not folder.exists() and (cache / "runs" / "retrieval-heads-000000000001").exists()


def test_nobody_but_this_machine_is_answered(server):
    """An address of this machine other than localhost answers only a server that listens on every interface."""
    port = int(server.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_a_phone_can_read_it_without_scrolling_sideways(visit, server):
    page = visit("/runs", size=(390, 844))
    for path, name, last in (
        ("/runs", "runs", "Select a row"),
        (EXPLORER, "explorer", "next token"),
        ("/retrieval_heads?run=retrieval-heads-000000000001", "probe", "Retrieval score of each head"),
    ):
        page.goto(server + path)
        see(page, last)
        rest(page)
        shot(page, f"phone-{name}")
        assert too_wide(page) == [], name


def test_a_run_id_from_the_address_bar_cannot_leave_the_runs_folder(visit):
    page = visit("/runs?run=../../etc")
    see(page, "There is no run")
