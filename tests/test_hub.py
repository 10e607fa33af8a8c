"""Agents on the Hub: against a server of this test that speaks huggingface_hub's requests."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from agent_cases import small

from dxmi_rl.utils.checks import CheckpointError
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.zoo import from_hub, pretrained, push_to_hub

huggingface_hub = pytest.importorskip("huggingface_hub")


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: made, written by commits, listed and read."""

    files: ClassVar[dict[str, dict[str, bytes]]] = {}
    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.chunks()
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.files.setdefault(name, {})
            return self.answer({"url": f"http://{self.headers['Host']}/{name}"})
        if self.path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\nlibrary_name: dxmi_rl\n")
            return self.answer({"errors": [], "warnings": []})
        found = re.fullmatch(r"/api/models/(\w+/[\w-]+)/(preupload|commit)/main", self.path)
        assert found, self.path
        if found[2] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            listed = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.answer({"files": listed})
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                self.files[found[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        address = f"http://{self.headers['Host']}/{found[1]}/commit/{'0' * 40}"
        return self.answer({"commitUrl": address, "commitOid": "0" * 40, "pullRequestUrl": None})

    def do_GET(self) -> None:
        self.read(send=True)

    def do_HEAD(self) -> None:
        self.read(send=False)

    def read(self, *, send: bool) -> None:
        self.asked.append(self.path)
        if found := re.fullmatch(r"/api/models/(\w+/[\w-]+)(/revision/\w+)?(\?.*)?", self.path):
            if found[1] not in self.files:
                return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": name} for name in self.files[found[1]]]
            return self.answer({"id": found[1], "sha": "0" * 40, "siblings": siblings, "tags": [], "downloads": 0})
        if found := re.fullmatch(r"/api/models/(\w+/[\w-]+)/tree/\w+(\?.*)?", self.path):
            entries = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                       for name, content in self.files[found[1]].items()]  # fmt: skip
            return self.answer(entries)
        found = re.fullmatch(r"/(\w+/[\w-]+)/resolve/\w+/(.+)", self.path)
        assert found, self.path
        content = self.files.get(found[1], {}).get(found[2])
        if content is None:
            return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"}, send=send)
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": "0" * 40}
        return self.answer(content, 200, etag, send=send)

    def answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None, *, send: bool = True) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if send:
            self.wfile.write(content)

    def chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Where and how to reach it."""
    monkeypatch.setattr(pretrained, "SIZES", {"samples": 200, "draws": 1, "trajectories": 200, "fit": False})
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    Hub.files, Hub.asked = {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield {"endpoint": f"http://127.0.0.1:{server.server_port}", "token": "hf_of_nobody"}
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_what_is_pushed_comes_back(hub: dict[str, Any], tmp_path: Path) -> None:
    agent = small("ppo").learn(500)
    told = {"command": "python mine.py", "licence": "mit"}
    for _ in range(2):  # and again, in place of the first
        assert push_to_hub(agent, "me/ppo", **told, **hub) == f"{hub['endpoint']}/me/ppo"
    files = Hub.files["me/ppo"]
    assert set(files) == {"README.md", "index.json", "ppo-8gaussians.png", "ppo-8gaussians.safetensors"}
    card = files["README.md"].decode()
    assert 'agent = dxmi_rl.from_hub("me/ppo")' in card and "`python mine.py`" in card and 'license: "mit"' in card
    files["evil.pkl"] = files["pytorch_model.bin"] = b"cos\nsystem\n(S'false'\ntR."
    again = from_hub("me/ppo", cache=tmp_path, **hub)
    assert torch.equal(again.sample(5, seed=0), agent.sample(5, seed=0))
    fetched = {path.rsplit("/", 1)[1] for path in Hub.asked if "/resolve/" in path}
    assert fetched == {"index.json", "ppo-8gaussians.safetensors"}, "and no pickle"


def test_what_cannot_be_had_is_said(hub: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        from_hub("me/nothing", cache=tmp_path / "0", **hub)
    Hub.files["me/other"] = {"model.safetensors": b"", "config.json": b"{}"}
    with pytest.raises(CheckpointError, match="holds no agent that push_to_hub wrote"):
        from_hub("me/other", cache=tmp_path / "1", **hub)
    push_to_hub(small("a2c"), "me/a2c", **hub)
    with pytest.raises(UnknownNameError, match="Did you mean 'a2c-8gaussians'"):
        from_hub("me/a2c", name="a2c-8gausians", cache=tmp_path / "2", **hub)
    Hub.files["me/a2c"]["a2c-8gaussians.safetensors"] += b"x"
    with pytest.raises(CheckpointError, match="checksum"):
        from_hub("me/a2c", cache=tmp_path / "3", **hub)
    with pytest.raises(ValueError, match="name must be a plain file name"):
        push_to_hub(small("a2c"), "me/a2c", name="a/b", **hub)
    before = dict(Hub.files["me/a2c"])
    with pytest.raises(ValueError, match=r"must be a repository of its own: 'me/a2c' holds \['a2c-8gaussians'\]"):
        push_to_hub(small("ppo"), "me/a2c", **hub)
    assert Hub.files["me/a2c"] == before and "license" not in before["README.md"].decode()
