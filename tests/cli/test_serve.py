"""How the app starts: without a question, with a token, and with a browser only where somebody can see it."""

import os
import pty
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from workbench.cli import serve
from workbench.cli.main import run as command_line
from workbench.core.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
LONG = "0123456789abcdef-._~"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_a_terminal(command: list[str], tmp_path: Path) -> tuple[subprocess.Popen, int]:
    """A command as a person on a fresh account starts it: a terminal, an empty home, no display."""
    home = tmp_path / "home"
    home.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMLIT_", "WORKBENCH_APP"))}
    env |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    env = {name: value for name, value in env.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=tmp_path, start_new_session=True
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    return process, ours


def read_until(terminal: int, pattern: str, seconds: float = 60) -> str:
    said, start = "", time.monotonic()
    while not re.search(pattern, said) and time.monotonic() - start < seconds:
        try:
            said += os.read(terminal, 65536).decode("utf-8", "replace")
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:  # the other end is closed
            break
    return said


def end(process: subprocess.Popen) -> None:
    for found in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        found.kill()
    process.wait(10)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["workbench app", "streamlit run"])
def test_a_fresh_account_is_asked_nothing_and_the_server_asks_for_a_token(tmp_path, how):
    port = free_port()
    command = {
        "workbench app": [sys.executable, "-c", "from workbench.cli import main; main()", "app", "--port", str(port)],
        "streamlit run": [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), "--server.port", str(port)],
    }[how]
    process, terminal = in_a_terminal(command, tmp_path)
    try:
        said = read_until(terminal, r"token=\S+\s")
        address = re.search(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}(?=\s)", said)
        assert address and "mail" not in said.lower(), said
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert b"root" in opener.open(address[0], timeout=10).read()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)
        assert not (tmp_path / "home" / ".streamlit" / "credentials.toml").exists()
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
        process.wait(10)
    finally:
        if process.poll() is None:
            end(process)
        os.close(terminal)


def test_a_token_is_random_unless_one_is_chosen_that_can_stand_in_an_address():
    made = {serve.token_of({}) for _ in range(5)} | {serve.token_of({serve.TOKEN: ""})}
    assert len(made) == 6 and all(len(token) >= 43 for token in made if token)
    assert serve.token_of({serve.TOKEN: LONG}) == LONG
    assert serve.token_of({serve.NO_TOKEN: "1", serve.TOKEN: LONG}) is None
    for nearly in ("", "0", "no", "false"):  # only 1 leaves the door open
        assert serve.token_of({serve.NO_TOKEN: nearly}) is not None
    for bad in ("short", "with spaces in the middle", "with/slash/and?query=1", "ünï-cödë-token-long", LONG + "\n"):
        with pytest.raises(InputError, match="WORKBENCH_APP_TOKEN must be at least 16"):
            serve.token_of({serve.TOKEN: bad})


def test_the_token_goes_by_the_environment_and_no_token_is_said_aloud(monkeypatch):
    seen = []

    def started(command, *, env):
        seen.append((command, env))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", started)
    monkeypatch.setenv(serve.TOKEN, LONG)
    monkeypatch.delenv(serve.NO_TOKEN, raising=False)
    port = str(free_port())
    assert command_line(["app", "--port", port]) == 0 and command_line(["app", "--port", port, "--no-token"]) == 0
    (command, env), (_, open_env) = seen
    assert not any(LONG in word for word in command) and env[serve.TOKEN] == LONG and serve.NO_TOKEN not in env
    assert open_env[serve.NO_TOKEN] == "1"
    assert command[command.index("--server.headless") + 1] == "true"
    monkeypatch.setenv(serve.TOKEN, "short")
    assert command_line(["app", "--port", port]) == 2 and len(seen) == 2


def test_a_port_that_is_taken_is_named(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert command_line(["app", "--port", str(taken.getsockname()[1]), "--no-browser"]) == 2
    assert "choose another with --port" in capsys.readouterr().err


def test_a_browser_is_opened_only_where_somebody_sees_it():
    assert serve.has_screen({"DISPLAY": ":0"}, "linux") and serve.has_screen({"WAYLAND_DISPLAY": "w"}, "linux")
    assert not serve.has_screen({}, "linux") and serve.has_screen({}, "darwin")
    assert not serve.has_screen({"DISPLAY": ":10", "SSH_CONNECTION": "1 2 3 4"}, "linux")
    assert not serve.has_screen({"SSH_TTY": "/dev/pts/1"}, "darwin")


def test_the_browser_is_given_a_page_that_only_this_user_reads(monkeypatch):
    """The arguments of a process can be seen by every user."""
    import webbrowser

    opened = []

    def note(address):
        page = Path(address.removeprefix("file://"))
        opened.append((address, page.read_text(), stat.S_IMODE(page.stat().st_mode), page.parent.stat().st_mode & 0o77))

    monkeypatch.setattr(webbrowser, "open", note)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    serve.open_browser(f"http://127.0.0.1:1/?token={LONG}")
    ((address, text, mode, others),) = opened
    assert LONG not in address and f"?token={LONG}" in text and mode == 0o600 and others == 0
    assert not Path(address.removeprefix("file://")).exists()
