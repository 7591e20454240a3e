"""Runs that are small files, copies of them that are read without any code of ours, and an S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asys_bench.monitors.upload.uploader import Uploader
from asys_bench.store.objects import ObjectStore
from asys_bench.store.uri import parse_uri

SECRET = "s3cr3t-0f-nob0dy"


def write_run(path: Path, run_id: str = "run-1", began: int = 1_000, shards: int = 2) -> Path:
    """A run that has ended, of files that only look like those of a run."""
    shard, sae = path / "archive" / "policy.mlp", path / "sae" / "policy.mlp"
    step = sae / "step_000000004"
    for folder in (shard, step, path / "logs"):
        folder.mkdir(parents=True)
    write_document(path, run_id, began)
    (path / "config.yaml").write_text("schema: asys.config/1\n")
    (path / "metrics.csv").write_text("a,b\n" + "1,2\n" * 20)
    for number in range(shards):
        (shard / f"archive-0-0-{number}.arrows").write_bytes(bytes([number + 1]) * 5000)
        (shard / f"archive-0-0-{number}.json").write_text(json.dumps({"rows": number}))
    for name in ("cfg.json", "manifest.json", "sae_weights.safetensors"):
        (step / name).write_text(f"{name} of step 4")
    (sae / "latest").symlink_to(step.name)
    (path / ".host.lock").write_text("{}")
    return path


def write_document(path: Path, run_id: str = "run-1", began: int = 1_000, **more: Any) -> None:
    document = {
        "schema": "asys.run/1", "run_id": run_id, "hooks": ["policy.mlp"], "host_pid": 1,
        "host_start": 1, "attempts": [{"attempt": 0, "started_unix_ns": began}], "result": {"steps": 1},
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps(document | more))


def files_of(path: Path) -> dict[str, bytes]:
    """What of a run belongs to its copy."""
    found = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if file.is_file() and not file.is_symlink() and not hidden and "latest/" not in name:
            found[name] = file.read_bytes()
    return found


class Copy:
    """A copy in a folder, as its bytes say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ObjectStore(parse_uri(f"file://{folder}"))

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.read("manifest.json"))
        return found

    def files(self) -> dict[str, bytes]:
        """Every file that the manifest names; each is whole, or this fails."""
        found = {}
        for name, stored in self.manifest["files"].items():
            data = self.read(stored["object"])
            assert len(data) == stored["bytes"]
            assert hashlib.sha256(data).hexdigest() == stored["sha256"]
            found[name] = data
        shards = {name for name in found if name.endswith(".arrows")}
        assert {
            name for name in found if name.startswith("archive/") and name.endswith(".json")
        } == {name.removesuffix(".arrows") + ".json" for name in shards}
        assert sum(name.startswith("sae/") for name in found) % 3 == 0
        return found

    def objects(self) -> set[str]:
        """All but the claims of those who may write to it."""
        found = {
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file()
        }
        return {name for name in found if not name.startswith("claims/")}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run-1")


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "store" / "run-1")


@pytest.fixture
def uploader(run: Path, copy: Copy) -> Uploader:
    return Uploader(run, copy.store)


class S3Server:
    """moto's S3 on the loopback. `refuse`: (status, code) that every request gets for an answer instead;
    with `refuse_keys` those alone whose path contains it."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, type: str, message: str, *arguments: Any) -> None:
                """Nothing."""

        self.refuse: tuple[int, str] | None = None
        self.refuse_keys, self.requests = "", 0
        self.read: list[str] = []
        """Paths of every GET."""
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet
        )
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _answer(self, environ: Any, start: Any) -> Any:
        self.requests += 1
        if environ["REQUEST_METHOD"] == "GET":
            self.read.append(environ["PATH_INFO"])
        if self.refuse is None or self.refuse_keys not in environ["PATH_INFO"]:
            return self._app(environ, start)
        status, code = self.refuse
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start(f"{status} Refused", [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>as told</Message></Error>".encode()]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def resource(self) -> Any:
        import boto3

        return boto3.resource("s3", endpoint_url=self.address)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """Its address and the credentials of nobody are in the environment."""
    before = dict(os.environ)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "AKIANOBODY", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    server = S3Server()
    os.environ["AWS_ENDPOINT_URL"] = server.address
    yield server
    os.environ.clear()
    os.environ.update(before)
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[S3Server]:
    """The server, without what a test told it."""
    yield s3_server
    s3_server.refuse, s3_server.refuse_keys = None, ""


@pytest.fixture
def bucket(s3: S3Server, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A new bucket; what is in it goes with it."""
    name = f"b{zlib.crc32(request.node.nodeid.encode()):08x}"
    found = s3.resource().Bucket(name)
    found.create()
    yield found
    s3.refuse = None
    found.objects.all().delete()
    found.delete()
