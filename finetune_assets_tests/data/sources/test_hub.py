"""Rows of datasets of the Hugging Face library: saved to disk, or on a hub."""

import datetime
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune_assets.data.sources.hub import is_saved_dataset
from finetune_assets.data.sources.spool import spool_saved
from finetune_assets.errors import UserError
from finetune_assets_tests.data.sources.spooling import WHERE
from finetune_assets_tests.stores.postgres import free_port


def saved(folder: Path) -> Path:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict(
        {
            "text": ["a", "b"],
            "more": [{"x": [1.5]}, {"x": []}],
            "at": [datetime.date(2024, 1, 2)] * 2,
        }
    )
    DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(folder / "both")
    rows.save_to_disk(folder / "one")
    return folder


def test_saved_datasets(tmp_path: Path) -> None:
    folder, target = saved(tmp_path), tmp_path / "out.jsonl"
    first, second = (
        {"text": "a", "more": {"x": [1.5]}, "at": "2024-01-02"},
        {"text": "b", "more": {"x": []}, "at": "2024-01-02"},
    )
    for name, parts, expected in (
        ("one", [], [first, second]),
        ("both", [], [first, second, second]),
        ("both", ["test"], [second]),
    ):
        assert is_saved_dataset(folder / name)
        spool_saved(folder / name, parts, target, WHERE)
        assert [json.loads(line) for line in target.read_text().splitlines()] == expected
    assert not is_saved_dataset(tmp_path)


def test_wrong_saved_dataset(tmp_path: Path) -> None:
    folder, target = saved(tmp_path), tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r"no split \['dev'\] among \['train', 'test'\]"):
        spool_saved(folder / "both", ["dev"], target, WHERE)
    next((folder / "one").glob("*.arrow")).write_bytes(b"broken")
    with pytest.raises(UserError, match="again with save_to_disk"):
        spool_saved(folder / "one", [], target, WHERE)
    assert not target.exists()


HUB_FILES = {
    "README.md": b"---\nconfigs:\n- config_name: all\n  default: true\n  data_files:\n"
    b"  - {split: train, path: a.jsonl}\n  - {split: test, path: b.jsonl}\n"
    b"- config_name: small\n  data_files: b.jsonl\n---\n",
    "a.jsonl": b'{"text": "a"}\n{"text": "b"}\n',
    "b.jsonl": b'{"text": "c"}\n',
}
COMMIT = "c" * 40
HUB_CALL = """
import json, sys
from pathlib import Path
from finetune_assets.catalog.sources import Source
from finetune_assets.data.sources.spool import cheap_version, spool
source, target = Source(**json.loads(sys.argv[1])), Path(sys.argv[2])
spool(source, target, sys.argv[3])
print(cheap_version(source, sys.argv[3]), *target.read_text().split())
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a dataset of files at one tag, org/rows@v1, needs."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0].removeprefix("/api")
        name = path.rpartition("/")[2]
        if not path.startswith("/datasets/org/rows"):
            self.answer(404, code="RepoNotFound")
        elif "/resolve/" in path and name in HUB_FILES:
            self.answer(200, HUB_FILES[name])
        elif "/resolve/" in path:
            self.answer(404, code="EntryNotFound")
        elif "/tree/" in path:
            files = [{"path": p, "size": len(body)} for p, body in HUB_FILES.items()]
            self.json([{"type": "file", "oid": "1", **file} for file in files])
        elif name in ("v1", COMMIT):
            self.json({"id": "org/rows", "sha": COMMIT, "siblings": [], "private": False})
        else:
            self.answer(404, code="RevisionNotFound")

    do_HEAD = do_GET

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode())

    def answer(self, status: int, body: bytes = b"", code: str = "") -> None:
        self.send_response(status)
        headers = {"X-Error-Code": code, "X-Repo-Commit": COMMIT, "ETag": '"1"'}
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def spool_hub(endpoint: str, tmp_path: Path, **settings: Any) -> tuple[str, str]:
    """Output and errors of a process of its own: the hub's address is read at import."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}
    arguments = [json.dumps(settings), str(tmp_path / "out.jsonl"), WHERE]
    command = [sys.executable, "-c", HUB_CALL, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("settings", "rows"),
    [({}, "abc"), ({"parts": ["test"]}, "c"), ({"subset": "small"}, "c")],
)
def test_hub(hub: str, tmp_path: Path, settings: dict[str, Any], rows: str) -> None:
    output, errors = spool_hub(hub, tmp_path, hub="org/rows@v1", **settings)
    assert output.split() == [COMMIT, *(f'{{"text":"{row}"}}' for row in rows)], errors


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hub": "org/rows@v9"}, "org/rows has no revision v9"),
        ({"hub": "org/none@v1"}, "the hub shows no dataset org/none"),
        ({"hub": "org/rows@v1", "parts": ["dev"]}, "no split ['dev'] among ['train', 'test']"),
        ({"hub": "org/rows@v1", "subset": "large"}, "'large' not found. Available: ['all', 's"),
    ],
)
def test_wrong_hub_dataset(hub: str, tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    output, errors = spool_hub(hub, tmp_path, **settings)
    assert f"UserError: {WHERE}: " in errors
    assert said in errors
    assert output == ""


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [("http://127.0.0.1:{port}", "Connection refused"), ("http://hub.invalid", "not known")],
)
def test_hub_out_of_reach(tmp_path: Path, endpoint: str, said: str) -> None:
    _, errors = spool_hub(endpoint.format(port=free_port()), tmp_path, hub="org/rows@main")
    assert f"UserError: {WHERE}: " in errors
    assert said in errors
    assert "remedy: check the network" in errors
