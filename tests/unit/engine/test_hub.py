"""Downloads from a hub, against a small server of our own that speaks its protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "1" * 40
CONFIG = {
    "model_type": "llama",
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 4096,
}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": b"weights" * 999,
    "pytorch_model.bin": b"\x80pickle",
    "modeling_evil.py": b"raise SystemExit",
    "tokenizer.json": b"{}",
}
# The endpoint is read when the library is imported: a process of its own gets ours.
PROGRAM = """
import json, sys
from pathlib import Path
from engine import hub
from engine.errors import EngineError
seen, said = [], []
try:
    folder = hub.snapshot(sys.argv[1], Path(sys.argv[2]), on_message=said.append,
                          on_progress=lambda *step: seen.append(step))
    again = hub.cached_snapshot(sys.argv[1], Path(sys.argv[2]))
    print(json.dumps({"files": sorted(p.name for p in folder.iterdir()), "seen": seen[-1:],
                      "said": said, "again": again == folder}))
except EngineError as problem:
    print(json.dumps({"error": type(problem).__name__, "cause": problem.cause,
                      "next": problem.next_step}))
"""


FETCH = """
import json, sys
from pathlib import Path
from engine.errors import EngineError
from engine.hub import fetch_file
try:
    path = fetch_file(sys.argv[1], tuple(sys.argv[3:]), Path(sys.argv[2]))
    print(json.dumps({"name": path.name, "size": len(path.read_bytes())}))
except EngineError as problem:
    print(json.dumps({"error": type(problem).__name__, "cause": problem.cause,
                      "next": problem.next_step}))
"""


class Hub(BaseHTTPRequestHandler):
    """Three repositories: owner/good, owner/odd (an architecture nobody serves), owner/gated."""

    asked: list[str] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        type(self).asked.append(path)
        if "owner/gated" in path:
            return self._send(401, b"", {"X-Error-Code": "GatedRepo"})
        if "owner/good" not in path and "owner/odd" not in path:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        files = dict(FILES)
        if "owner/odd" in path:
            files["config.json"] = b'{"model_type": "rwkv9"}'
        if "/tree/" in path:
            return self._json(
                [
                    {"type": "file", "path": name, "size": len(body), "oid": _oid(body)}
                    for name, body in files.items()
                ]
            )
        if path.startswith("/api/"):
            return self._json({"id": "owner/good", "sha": COMMIT, "siblings": []})
        body = files[path.rpartition("/")[2]]
        return self._send(200, body, {"ETag": f'"{_oid(body)}"', "X-Repo-Commit": COMMIT})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


def _oid(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def download(
    endpoint: str, repo: str, folder: Path, *more: str, program: str = PROGRAM, offline: str = ""
) -> dict[str, object]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "NO_PROXY": "127.0.0.1",
    }
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        environment.pop(name, None)
    if offline:
        environment["HF_HUB_OFFLINE"] = offline
    done = subprocess.run(
        [sys.executable, "-c", program, repo, str(folder), *more],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    value: dict[str, object] = json.loads(done.stdout)
    return value


def test_a_repository_is_fetched_without_code_and_pickles(endpoint: str, tmp_path: Path) -> None:
    found = download(endpoint, "owner/good", tmp_path)
    assert found["files"] == ["config.json", "model.safetensors", "tokenizer.json"]
    size = len(FILES["model.safetensors"]) + len(FILES["tokenizer.json"])
    assert found["seen"] == [[size, size]]
    assert found["said"] == ["Downloading owner/good (0.0 GiB)."] and found["again"] is True
    assert not any(path.endswith((".bin", ".py")) for path in Hub.asked)


def test_an_architecture_is_refused_before_its_weights_are_fetched(
    endpoint: str, tmp_path: Path
) -> None:
    Hub.asked.clear()
    found = download(endpoint, "owner/odd", tmp_path)
    assert found["error"] == "UnsupportedArchitecture" and "rwkv9" in str(found["cause"])
    assert not any(path.endswith(".safetensors") for path in Hub.asked)


@pytest.mark.parametrize(
    ("repo", "cause"), [("owner/gated", "licence"), ("owner/none", "no repository owner/none")]
)
def test_a_refusal_of_the_hub_is_one_sentence(
    endpoint: str, tmp_path: Path, repo: str, cause: str
) -> None:
    found = download(endpoint, repo, tmp_path)
    assert found["error"] == "ModelDownloadFailed"
    assert cause in str(found["cause"]) and "\n" not in str(found["cause"]) and found["next"]


def test_one_file_of_a_repository_is_fetched_and_found_again_without_the_network(
    endpoint: str, tmp_path: Path
) -> None:
    expected = {"name": "pytorch_model.bin", "size": len(FILES["pytorch_model.bin"])}
    for offline in ("", "1"):
        Hub.asked.clear()
        found = download(endpoint, "owner/good", tmp_path, ".bin", program=FETCH, offline=offline)
        assert found == expected
        assert bool(Hub.asked) != bool(offline)
    assert not any("modeling_evil" in path for path in Hub.asked)


@pytest.mark.parametrize(
    ("repo", "suffix", "offline", "cause"),
    [
        ("owner/good", "", "", "has 5 files of weights, not one"),
        ("owner/good", ".gguf", "", "has 0 files of weights, not one"),
        ("owner/good", ".bin", "1", "the hub cannot be reached"),
        ("owner/gated", ".bin", "", "licence"),
        ("owner/none", ".bin", "", "no repository owner/none"),
        ("no name at all", ".bin", "", "no name at all"),
    ],
)
def test_a_file_that_cannot_be_had_is_one_sentence(
    endpoint: str, tmp_path: Path, repo: str, suffix: str, offline: str, cause: str
) -> None:
    found = download(endpoint, repo, tmp_path, suffix, program=FETCH, offline=offline)
    assert found["error"] == "ModelDownloadFailed"
    assert cause in str(found["cause"]) and "\n" not in str(found["cause"])
