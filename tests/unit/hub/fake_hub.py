"""The part of the Hugging Face hub's HTTP API that huggingface_hub 2.4 speaks without Xet: repositories, the
LFS upload, commits, the tree, files. It keeps every request.

Read off huggingface_hub's own client, which leaves Xet alone with `HF_HUB_DISABLE_XET=1`: tests set it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class FakeHub:
    """files: repository -> path -> bytes, as of its newest commit."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def commit_of(self, repo: str) -> str:
        """40 hex digits that change with the files."""
        digest = hashlib.sha1(repo.encode())
        for path, data in sorted(self.files[repo].items()):
            digest.update(path.encode() + hashlib.sha256(data).digest())
        return digest.hexdigest()

    # What a client asks for: (status, JSON or bytes, headers).

    def create(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.files:
            told = {"error": "You already created this model repo"}
            return 409, told | {"url": f"{self.url}/{repo}"}, {}
        self.files[repo] = {}
        self.private[repo] = asked.get("visibility", "")
        return 200, {"url": f"{self.url}/{repo}", "id": repo}, {}

    def preupload(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        modes = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for one in json.loads(body)["files"]
        ]
        return 200, {"files": modes}, {}

    def batch(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}", "header": {}}},
            }
            for one in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}, {}

    def commit(self, repo: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[repo][value["path"]] = self.blobs[value["oid"]]
            else:
                assert entry["key"] == "header", entry["key"]
        oid = self.commit_of(repo)
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid}, {}

    def tree(self, repo: str) -> tuple[int, Any, dict[str, str]]:
        found = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in self.files[repo].items()
        ]
        return 200, found, {}

    def file(self, repo: str, path: str) -> tuple[int, Any, dict[str, str]]:
        commit = {"X-Repo-Commit": self.commit_of(repo)}
        data = self.files[repo].get(path)
        if data is None:
            return 404, {"error": "Entry not found"}, {**commit, "X-Error-Code": "EntryNotFound"}
        return 200, data, {**commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}

    def answer(self, request: Request) -> tuple[int, Any, dict[str, str]]:
        path, body = unquote(urlsplit(request.path).path), request.body
        if path == "/api/repos/create":
            return self.create(body)
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}, {}
        if found := re.fullmatch(r"/lfs/(\w{64})", path):
            assert hashlib.sha256(body).hexdigest() == found[1]
            self.blobs[found[1]] = body
            return 200, b"", {}
        for pattern, answer in (
            (f"/{REPO}.git/info/lfs/objects/batch", lambda _, __: self.batch(body)),
            (f"/api/models/{REPO}/preupload/main", lambda _, __: self.preupload(body)),
            (f"/api/models/{REPO}/commit/main", lambda repo, _: self.commit(repo, body)),
            (f"/api/models/{REPO}/tree/(?P<rest>.*)", lambda repo, _: self.tree(repo)),
            (f"/api/models/{REPO}/revision/(?P<rest>.*)", lambda repo, _: self.info(repo)),
            (f"/api/models/{REPO}", lambda repo, _: self.info(repo)),
            (f"/{REPO}/resolve/[^/]+/(?P<rest>.*)", self.file),
        ):
            if found := re.fullmatch(pattern, path):
                repo = found["repo"]
                if repo not in self.files:
                    return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
                return answer(repo, found.groupdict().get("rest", ""))
        return 404, {"error": f"the fake hub has no {request.method} {path}"}, {}

    def info(self, repo: str) -> tuple[int, Any, dict[str, str]]:
        siblings = [{"rfilename": path} for path in self.files[repo]]
        return 200, {"id": repo, "sha": self.commit_of(repo), "siblings": siblings}, {}


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub on a port of its own."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            request = Request(self.command, self.path, dict(self.headers), body)
            hub.requests.append(request)
            status, answer, headers = hub.answer(request)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = _handle

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
