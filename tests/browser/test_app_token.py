"""Nothing of the app is shown or done without its token, and who has it does not notice."""

import contextlib
import http.client
import urllib.parse

import psutil
import pytest

from tests.browser.conftest import RUNS
from tests.browser.serving import rest, serve

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TOKEN = "a-token-for-the-tests_0123456789"
RUN = "retrieval-heads-000000000001"
EVERYWHERE = (
    *("/", "/retrieval_heads", "/runs", "/explorer", "/no/such/place", "//", "/favicon.png", "/static/index.html"),
    *("/media/x.csv", "/component/x", "/_stcore/host-config", "/_stcore/bidi-components/x", "/_stcore/agent/x"),
)
VIEW = f"/retrieval_heads?run={RUN}&part=Summary"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that asks for TOKEN, over one finished run; gives (host and port, its cache)."""
    from tests.support.app_screens import keep

    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("guarded")
        patch.setenv("WORKBENCH_CACHE", str(cache))
        keep(RUNS[RUN], RUN)
        with serve(cache, token=TOKEN) as address:
            yield address.removeprefix("http://"), cache


def ask(host: str, path: str, method: str = "GET", *, body: bytes | None = None, **headers: str):
    """(status, headers, body) of one request, redirects not followed."""
    port = int(host.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers={"Host": host} | names)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def cookie_of(host: str) -> str:
    _, headers, _ = ask(host, f"/?token={TOKEN}")
    return headers["Set-Cookie"].split(";")[0]


def open_socket(host: str, *, origin: str | None = None, **headers: str) -> int:
    """101 where the websocket is opened, else the status of the refusal."""
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    try:
        with connect(
            f"ws://{host}/_stcore/stream", subprotocols=["streamlit"], origin=origin, additional_headers=headers
        ):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "%00", "é"])
def test_nothing_is_answered_without_the_token(guarded, token):
    host, _ = guarded
    query = "?token=" + urllib.parse.quote(token) if token else ""
    for path in EVERYWHERE:
        status, headers, body = ask(host, path + query)
        assert status == 403 and "Set-Cookie" not in headers, path
        assert "token=" in body and "streamlit" not in body.lower() and RUN not in body, path
    assert ask(host, f"/_stcore/upload_file/a/b{query}", "PUT", body=b"x")[0] == 403
    assert ask(host, "/", "POST", body=f"token={urllib.parse.quote(token)}".encode())[0] == 403
    assert open_socket(host) == 403
    assert open_socket(host, Cookie=f"workbench-{host.rpartition(':')[2]}={urllib.parse.quote(token)}") == 403
    assert ask(host, "/_stcore/health")[0] == 200  # whether it is up is no secret


def test_the_token_gives_a_cookie_and_leaves_the_address(guarded):
    host, _ = guarded
    status, headers, _ = ask(host, f"{VIEW}&token={TOKEN}&at=a%26b")
    assert status == 303 and headers["Location"] == f"{VIEW}&at=a%26b"
    assert TOKEN not in headers["Set-Cookie"] and "HttpOnly" in headers["Set-Cookie"]
    assert "samesite=lax" in headers["Set-Cookie"].lower() and headers["Cache-Control"] == "no-store"
    cookie = cookie_of(host)
    assert ask(host, "/", Cookie=cookie)[0] == 200 and open_socket(host, Cookie=cookie) == 101
    status, headers, _ = ask(host, f"{VIEW}&token=an-older-one", Cookie=cookie)  # a bookmark of an earlier start
    assert status == 303 and headers["Location"] == VIEW
    assert ask(host, "/_stcore/upload_file/a/b", "PUT", body=b"x", Cookie=cookie)[0] == 403  # XSRF protection is on
    for path in ("//evil.example", "/\\evil.example", "///evil.example/x"):
        where = ask(host, f"{path}?token={TOKEN}")[1]["Location"]
        assert where.startswith("/") and not where.startswith(("//", "/\\")), where
    status, headers, _ = ask(host, VIEW, "POST", body=f"token={TOKEN}".encode())
    assert status == 303 and headers["Location"] == VIEW and "Set-Cookie" in headers


def test_no_page_of_another_server_may_use_the_cookie(guarded):
    """Cookies do not tell ports apart, and Streamlit by itself lets every page of localhost in."""
    host, _ = guarded
    cookie = cookie_of(host)
    for origin in ("http://localhost:1", "http://127.0.0.1:9999", "https://evil.example", "null"):
        assert open_socket(host, origin=origin, Cookie=cookie) == 403, origin
        assert ask(host, "/", Origin=origin, Cookie=cookie)[0] == 403, origin
    assert open_socket(host, origin=f"http://{host}", Cookie=cookie) == 101
    status, _, body = ask(host, f"/?token={TOKEN}", Host="evil.example")  # a name that somebody made lead here
    assert status == 403 and "allowedHosts" in body


def test_explorer_is_the_address_of_the_first_screen(guarded):
    host, _ = guarded
    status, headers, _ = ask(host, "/explorer?model=organism", Cookie=cookie_of(host))
    assert status == 307 and headers["Location"] == "/?model=organism"


def test_the_token_stands_in_the_printed_address_only(guarded):
    host, cache = guarded
    ask(host, f"/runs?token={TOKEN}")
    log = (cache / "server.log").read_text()
    assert log.count(TOKEN) == 1 and f"http://127.0.0.1:{host.rpartition(':')[2]}/?token={TOKEN}" in log
    seen = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # or one that has ended and is still listed
            seen += process.cmdline()
    assert any("app.py" in word for word in seen) and not any(TOKEN in word for word in seen)


def test_who_opens_the_printed_address_does_not_meet_the_token_again(guarded, browser):
    host, _ = guarded
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    sent = []
    page.on("request", lambda request: sent.append(request.headers.get("referer", "")))
    page.goto(f"http://{host}{VIEW}&token={TOKEN}")
    page.get_by_text("value, 95 % interval").wait_for()  # the view of the link
    rest(page)
    assert TOKEN not in page.url and RUN in page.url and not any(TOKEN in referer for referer in sent)
    assert TOKEN not in page.content() and TOKEN not in page.evaluate("document.cookie")
    page.reload()
    page.get_by_text("value, 95 % interval").wait_for()
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Runs", exact=True).click()
    page.get_by_role("heading", name="Runs", exact=True).wait_for()
    other = context.new_page()
    other.goto(f"http://{host}{VIEW}")
    other.get_by_text("value, 95 % interval").wait_for()
    other.get_by_text("Tables", exact=True).click()
    rest(other)
    with other.expect_download() as waiting, other.expect_response(f"http://{host}/media/*") as answered:
        other.get_by_role("button", name="Parquet", exact=True).click()  # media files are behind the token too
    assert waiting.value.suggested_filename.endswith(".parquet")
    assert context.request.get(answered.value.url).body()[:4] == b"PAR1"
    assert answered.value.headers["cache-control"] == "no-store"  # and stay in no browser's cache
    other.get_by_role("button", name="Upload a file").click()
    other.locator("input[type=file]").set_input_files(
        {"name": "mine.csv", "mimeType": "text/csv", "buffer": b"needle,question,answer\na b c .,a,b c\n"}
    )
    other.get_by_text("Uses the uploaded mine.csv").first.wait_for()
    context.close()


def test_a_shared_link_asks_for_the_token_and_then_shows_its_view(guarded, browser):
    host, _ = guarded
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://{host}{VIEW}")
    page.get_by_role("heading", name="A token is needed").wait_for()
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Open").click()
    page.get_by_text("not the token of this server").wait_for()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Open").click()
    page.get_by_text("value, 95 % interval").wait_for(timeout=60_000)
    assert page.url == f"http://{host}{VIEW}"
    context.close()
