"""Data files by their address on the hub, fetched by the hub's own client from a small server on this machine that
answers as the hub does (no other network is reached)."""

from __future__ import annotations

import hashlib
import json
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from workbench.core.errors import InputError
from workbench.core.hub_files import fetched, is_address, parse_address
from workbench.runs.description import command_for, describe_data
from workbench.runs.preparation import prepare

ROWS = [{"text": f"text {number}"} for number in range(4)]
LINES = "\n".join(json.dumps(row) for row in ROWS).encode()
FILES = {
    "/datasets/lab/set/resolve/main/data/a.jsonl": LINES,
    "/datasets/lab/set/resolve/v2/data/a.jsonl": LINES + b'\n{"text": "more"}',
    "/datasets/lab/set/resolve/refs/convert/parquet/a.csv": b"text\none\ntwo\n",
}


@pytest.fixture
def hub(monkeypatch):
    """The requests that a hub with FILES has answered."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(self.path.partition("?")[0])
            asked.append(f"{self.command} {path}")
            body = FILES.get(path)
            self.send_response(200 if body is not None else 404)
            if body is None:
                self.send_header("X-Error-Code", "EntryNotFound")
                body = b""
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format, *args):
            pass

    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    yield asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("text", "repo", "revision", "inside"),
    [
        ("hf://datasets/lab/set/a.csv", "lab/set", None, "a.csv"),
        ("hf:/datasets/lab/set/data/a.parquet", "lab/set", None, "data/a.parquet"),  # as a Path writes it
        ("hf://datasets/lab/set@v2/a.jsonl.gz", "lab/set", "v2", "a.jsonl.gz"),
        ("hf://datasets/lab/set@refs%2Fpr%2F1/a.csv", "lab/set", "refs/pr/1", "a.csv"),
        ("hf://datasets/lab/set@~parquet/all/0.parquet", "lab/set", "refs/convert/parquet", "all/0.parquet"),
    ],
)
def test_an_address_names_data_set_revision_and_path(text, repo, revision, inside):
    found = parse_address(text)
    assert is_address(text) and (found.repo, found.revision, found.inside) == (repo, revision, inside)
    assert parse_address(found.address) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf://lab/set/a.csv", "no address of a file on the hub"),
        ("hf://datasets/lab/a.csv", "no address of a file on the hub"),
        ("hf://datasets/lab/set", "no address of a file on the hub"),
        ("hf://models/lab/set/a.csv", "no address of a file on the hub"),
        ("hf://datasets/lab/set/**/*.parquet", "several files"),
        ("hf://datasets/lab/set/../../x.csv", "leads out of the data set"),
        ("hf://datasets/lab/set@../x.csv", "leads out of the data set"),
        ("hf://datasets/../set/x.csv", "leads out of the data set"),
    ],
)
def test_what_is_no_address_is_one_sentence(text, words):
    with pytest.raises(InputError, match=words):
        parse_address(text)


def test_a_file_is_fetched_once_and_kept_for_its_owner_by_address_and_revision(hub):
    address = "hf://datasets/lab/set/data/a.jsonl"
    path = fetched(parse_address(address))
    assert path.read_bytes() == LINES and path.name == "a.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = list(hub)
    assert before and fetched(parse_address(address)) == path and hub == before
    other = fetched(parse_address("hf://datasets/lab/set@v2/data/a.jsonl"))
    assert other != path and other.read_bytes() != LINES and len(hub) > len(before)
    assert fetched(parse_address("hf://datasets/lab/set@~parquet/a.csv")).read_bytes() == b"text\none\ntwo\n"


def test_a_run_reads_a_file_by_its_address_and_says_so(hub):
    address = "hf://datasets/lab/set/data/a.jsonl"
    ready = prepare("representation-geometry", {}, address)
    asked = list(hub)
    again = prepare("representation-geometry", {}, ready.address)  # as the estimate, the queue and the command do
    assert again == ready and hub == asked and ready.data is not None and ready.data_name is None
    about = describe_data(ready)
    assert about is not None and about["address"] == address and about["rows"] == 4
    assert about["fingerprint"] == hashlib.sha256(LINES).hexdigest()
    assert f"--data {address}" in command_for(ready, "organism")


def test_what_cannot_be_fetched_is_said_before_a_model_is_loaded(hub, monkeypatch):
    with pytest.raises(InputError, match=r"The hub has no file hf://datasets/lab/set/none\.csv"):
        prepare("representation-geometry", {}, "hf://datasets/lab/set/none.csv")
    path = fetched(parse_address("hf://datasets/lab/set/data/a.jsonl"))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="has not been fetched yet and the hub cannot be reached"):
        prepare("representation-geometry", {}, "hf://datasets/lab/set@v2/data/a.jsonl")
    assert prepare("representation-geometry", {}, "hf://datasets/lab/set/data/a.jsonl").data == path
