"""What stands before the app's screens: a token, asked of every request to the server, pages, uploads, downloads and
the websocket alike.

A machine may have many users, and each can reach a port of localhost. Whoever has the address that is printed at the
start gets a cookie for this server, so that links, reloads and further tabs need no token; the address bar and the
history keep none. Cookies do not tell ports apart: a server of somebody else on the same machine that one opens in the
same browser sees the cookie. It holds a digest, never the token.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from workbench.core.errors import InputError

TOKEN, NO_TOKEN, OPEN = "WORKBENCH_APP_TOKEN", "WORKBENCH_APP_NO_TOKEN", "WORKBENCH_APP_OPEN"
LEAST = 16  # characters of a token that somebody chose
MOST_FORM = 4096  # bytes

DOOR = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>A token is needed</title><style>
body {{ font: 16px/1.5 Arial, Helvetica, sans-serif; max-width: 38em; margin: 15vh auto; padding: 0 1em }}
input, button {{ font: inherit; padding: .2em .5em }} input {{ width: 22em; max-width: 100% }}
</style></head><body><h1>A token is needed</h1><p>{said}</p>
<p>Open the address that was printed where this server was started; it ends in <code>token=…</code>. Or paste the
token:</p>
<form method="post"><input type="password" name="token" autocomplete="off" autofocus aria-label="Token">
<button>Open</button></form></body></html>
"""
ASKED = "Only who has this server's token may use it."
WRONG = "That is not the token of this server: a new one is made at each start."


def token_of(environment: Mapping[str, str]) -> str | None:
    """The token that the environment asks for, a new random one where it names none, None where it asks for no token.

    Raises InputError for one that is too short or would not stand in an address as it is."""
    if environment.get(NO_TOKEN) == "1":
        return None
    chosen = environment.get(TOKEN, "")
    if not chosen:
        return secrets.token_urlsafe(32)
    if len(chosen) < LEAST or not re.fullmatch(r"[A-Za-z0-9._~-]+", chosen):
        raise InputError(
            f"{TOKEN} must be at least {LEAST} letters, digits or any of . _ ~ -; unset it and a random one is made."
        )
    return chosen


class Door:
    """ASGI middleware: lets through who has the token, and nobody through whom another site speaks."""

    def __init__(self, app: Any, *, token: str | None) -> None:
        self.app, self.token = app, token
        self.session = hmac.new((token or "").encode(), b"workbench session", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        from starlette.requests import HTTPConnection

        request = HTTPConnection(scope)
        problem = foreign(request.headers)
        if problem:
            await _refuse(scope, receive, send, problem)
        elif self.token is None or self._knows(request) or scope["path"] == f"{base()}/_stcore/health":
            if scope["type"] == "http" and self.token is not None and "token" in request.query_params:
                await self._enter(scope, receive, send, request)  # into the view, without the token in its address
            else:
                kept = scope["path"].startswith(f"{base()}/media/")
                await self.app(scope, receive, _with_headers(send, private=kept))
        else:
            await self._enter(scope, receive, send, request)

    def _knows(self, request: Any) -> bool:
        return _same(request.cookies.get(cookie_name(request.headers), ""), self.session)

    async def _enter(self, scope: Any, receive: Any, send: Any, request: Any) -> None:
        """The view that was asked for, with a cookie, to who brings the token in the address or in the form; a page
        that asks for it to everybody else."""
        from starlette.responses import HTMLResponse, RedirectResponse

        if scope["type"] == "websocket":
            await _refuse(scope, receive, send, ASKED)
            return
        brought = request.query_params.getlist("token")
        if scope["method"] == "POST":
            brought += await _posted(receive)
        assert self.token is not None
        right = any(_same(one, self.token) for one in brought)
        if right or (self._knows(request) and scope["method"] in ("GET", "HEAD")):
            rest = [(k, v) for k, v in parse_qsl(request.url.query, keep_blank_values=True) if k != "token"]
            # one slash: two would name another host
            where = "/" + quote(scope["path"].lstrip("/\\"), safe="/") + ("?" + urlencode(rest) if rest else "")
            answer = RedirectResponse(where, status_code=303)
            if right:
                answer.set_cookie(
                    cookie_name(request.headers),
                    self.session,
                    httponly=True,
                    samesite="lax",
                    secure=scope["scheme"] == "https",
                )
        else:
            answer = HTMLResponse(DOOR.format(said=WRONG if brought else ASKED), status_code=403)
        await answer(scope, receive, _with_headers(send, private=True))


def foreign(headers: Mapping[str, str]) -> str:
    """Why a request comes from a page or by a name that is not this server's; empty where it does not.

    Streamlit lets pages of every port of localhost open its websocket: on a shared machine these are other people's.
    """
    from streamlit import config

    host, origin = headers.get("host", ""), headers.get("origin")
    names = [name.lower() for name in config.get_option("server.allowedHosts")]
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        name = ""
    if names and "*" not in names and name not in names:
        return "This server is not called by that name: Streamlit's server.allowedHosts lists the names it answers to."
    if origin is not None and urlsplit(origin).netloc != host:
        if origin not in config.get_option("server.corsAllowedOrigins"):
            return "This request comes from a page of another server."
    return ""


def cookie_name(headers: Mapping[str, str]) -> str:
    """One for each port as the browser sees it, so that two servers on one machine do not put each other out."""
    return "workbench-" + re.sub(r"\D", "", headers.get("host", "").rpartition(":")[2])


def base() -> str:
    """The path that Streamlit is told to serve below; empty where it serves all."""
    from streamlit import config

    path = str(config.get_option("server.baseUrlPath") or "").strip("/")
    return f"/{path}" if path else ""


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


async def _posted(receive: Any) -> list[str]:
    body, more = b"", True
    while more and len(body) <= MOST_FORM:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    fields = parse_qsl(body[:MOST_FORM].decode("utf-8", "replace"), keep_blank_values=True)
    return [value for key, value in fields if key == "token"]


async def _refuse(scope: Any, receive: Any, send: Any, reason: str) -> None:
    from starlette.responses import PlainTextResponse

    if scope["type"] == "websocket":  # closed before it is accepted: the client sees 403
        await send({"type": "websocket.close", "code": 1008})
        return
    await PlainTextResponse(reason, status_code=403)(scope, receive, _with_headers(send, private=True))


def _with_headers(send: Any, *, private: bool = False) -> Any:
    """Nothing of an address goes to other sites, and no other site frames a screen. What is `private` (a file that was
    made for somebody) no browser keeps; so a download is not read from the half-written entry of the request by which
    Streamlit first looks whether the file is there."""
    more = [(b"referrer-policy", b"same-origin"), (b"x-frame-options", b"SAMEORIGIN")]
    more += [(b"cache-control", b"no-store")] if private else []

    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return sent


def explorer_route() -> Any:
    """/explorer is the address of the first screen, which Streamlit knows as / only."""
    from starlette.responses import RedirectResponse
    from starlette.routing import Route

    def first(request: Any) -> RedirectResponse:
        return RedirectResponse(f"{base()}/" + (f"?{request.url.query}" if request.url.query else ""), status_code=307)

    return Route(f"{base()}/explorer", first)


def parts() -> dict[str, Any]:
    """What app.py gives to `st.App`: routes, middleware, lifespan. The token is taken out of the environment, so that
    no process that the app starts has it."""
    from starlette.middleware import Middleware
    from streamlit.runtime.pages_manager import PagesManager

    # A folder called pages is Streamlit's old way to declare screens. Until the first call of st.navigation it would
    # take each file there for a screen and no other address for one: a link to a probe would not be found.
    PagesManager.uses_pages_directory = False
    try:
        token = token_of(os.environ)
    except InputError as error:  # started by hand: `workbench app` has looked before
        sys.exit(f"workbench: {error}")
    os.environ.pop(TOKEN, None)
    opening = os.environ.pop(OPEN, None) == "1"

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        address = address_of(token)
        print(f"\n  The app is at {address}\n", flush=True)
        if token is not None:
            print("  Whoever has this address can use it. Ctrl-C stops the app.\n", flush=True)
        if opening:
            threading.Thread(target=open_browser, args=(address,), daemon=True).start()
        yield None

    return {
        "routes": [explorer_route()],
        "middleware": [Middleware(Door, token=token)],
        "lifespan": lifespan,
    }


def address_of(token: str | None) -> str:
    """The address to open. By number where the server listens on this machine: the name localhost may lead to another
    user's server on the same port of ::1, which would be given the token."""
    from streamlit import config

    host = config.get_option("server.address") or "localhost"
    host = "127.0.0.1" if host in ("localhost", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    scheme = "https" if config.get_option("server.sslCertFile") else "http"
    path = f"{base()}/" + (f"?token={token}" if token else "")
    return f"{scheme}://{host}:{config.get_option('server.port')}{path}"


def has_screen(environment: Mapping[str, str], platform: str = sys.platform) -> bool:
    """Whether a browser can be opened where this person sits: not over SSH, and only where there is a display."""
    if any(environment.get(name) for name in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY")):
        return False
    if platform in ("darwin", "win32"):
        return True
    return bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def open_browser(address: str) -> None:
    """Open an address through a page that only this user can read: everybody sees the arguments of a browser."""
    import time
    import webbrowser

    with (
        contextlib.suppress(OSError, webbrowser.Error),
        tempfile.TemporaryDirectory(prefix="workbench-open-") as folder,
    ):
        page = Path(folder) / "open.html"  # the folder is 0700
        page.touch(mode=0o600)
        page.write_text(f'<!DOCTYPE html><meta http-equiv="refresh" content="0;url={address}">', encoding="utf-8")
        webbrowser.open(page.as_uri())
        time.sleep(60)  # until the browser has started and read it
