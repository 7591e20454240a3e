"""A copy in S3 (moto's server): what refuses is said by type, and nothing is lost or half there."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import fs

from asys_bench.cli import run as asys_run
from asys_bench.cli.commands import run_upload
from asys_bench.monitors.upload.uploader import Uploader
from asys_bench.store.objects import ObjectStore, Reason, StoreError
from asys_bench.store.uri import parse_uri

HERE = Path(__file__).parent
_RUNS = runpy.run_path(str(HERE / "conftest.py"))
files_of, write_run, SECRET = _RUNS["files_of"], _RUNS["write_run"], _RUNS["SECRET"]
REFUSALS = {
    Reason.THROTTLED: (503, "SlowDown"),
    Reason.FORBIDDEN: (403, "AccessDenied"),
    Reason.FULL: (507, "QuotaExceeded"),
    Reason.UNREACHABLE: (500, "InternalError"),
}


def stored_files(bucket) -> dict[str, bytes]:
    """Every file that the manifest of `<bucket>/runs/run-1` names; each is whole, or this fails."""

    def read(key):
        return bucket.Object(f"runs/run-1/{key}").get()["Body"].read()

    found = {}
    for name, stored in json.loads(read("manifest.json"))["files"].items():
        found[name] = read(stored["object"])
        assert len(found[name]) == stored["bytes"]
        assert hashlib.sha256(found[name]).hexdigest() == stored["sha256"]
    return found


def store_of(bucket) -> ObjectStore:
    return ObjectStore(parse_uri(f"s3://{bucket.name}/runs/run-1"))


def upload(run, bucket, *more) -> int:
    return asys_run.main(
        ["upload", str(run), "--uri", f"s3://{bucket.name}/runs/{{run_id}}", *more]
    )


def test_upload_sends_a_run_by_the_environments_credentials_and_writes_them_nowhere(
    run, bucket, capfd
):
    large = run / "archive" / "policy.mlp" / "archive-0-0-1.arrows"
    large.write_bytes(bytes(range(256)) * 50_000)  # of several parts
    assert upload(run, bucket) == 0
    assert stored_files(bucket) == files_of(run)
    assert upload(run, bucket) == 0
    said = "".join(capfd.readouterr())
    assert said.count("has everything of") == 2
    assert said.count("sent;") == 1
    written = [*files_of(run).values(), *stored_files(bucket).values(), said.encode()]
    assert not any(SECRET.encode() in data or b"AKIANOBODY" in data for data in written)


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refusal_has_a_type_and_what_was_there_stays(reason, run, bucket, s3):
    assert Uploader(run, store_of(bucket)).send(final=True)
    before = stored_files(bucket)
    (run / "plan.json").write_text("{}")
    s3.refuse = REFUSALS[reason]
    with pytest.raises(StoreError) as error:
        Uploader(run, store_of(bucket)).send(final=True)
    assert error.value.reason is reason
    s3.refuse = None
    assert stored_files(bucket) == before
    assert Uploader(run, store_of(bucket)).send(final=True)
    assert stored_files(bucket) == files_of(run)


class Clock:
    """The time of `asys-run upload`: it goes on while it sleeps, and by `step_s` each time it is read."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def monotonic(self) -> float:
        self.now_s += self.step_s
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_no_shard_is_half_there_when_the_store_fills_up_in_the_middle(
    run, bucket, s3, capfd, monkeypatch
):
    s3.refuse, s3.refuse_keys = (507, "QuotaExceeded"), "archive-0-0-1"
    monkeypatch.setattr(run_upload, "time", Clock())
    assert upload(run, bucket, "--within", "3") == 1
    said = capfd.readouterr().out
    assert "it is full, or over its quota" in said
    assert f"go on with: asys-run upload {run}" in said
    assert files_of(run).keys() > stored_files(bucket).keys()
    s3.refuse = None
    assert upload(run, bucket) == 0
    assert stored_files(bucket) == files_of(run)


def test_a_bucket_that_is_not_there_and_a_key_that_may_not_are_said_at_once(run, bucket, s3, capfd):
    assert asys_run.main(["upload", str(run), "--uri", "s3://never-made/a"]) == 1
    assert "there is no such bucket" in capfd.readouterr().out
    s3.refuse = REFUSALS[Reason.FORBIDDEN]
    assert upload(run, bucket) == 1
    assert "access is denied: check the credentials in the environment" in capfd.readouterr().out


def test_a_server_that_is_away_is_waited_for(run, bucket, s3, monkeypatch):
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            s3.refuse = None

    s3.refuse = (503, "ServiceUnavailable")
    monkeypatch.setattr(run_upload.time, "sleep", pause)
    assert upload(run, bucket) == 0
    assert len(pauses) == 3
    assert stored_files(bucket) == files_of(run)


def test_time_that_ends_while_a_store_is_asked_again_does_not_hide_why_it_refused(
    run, bucket, s3, capfd, monkeypatch
):
    s3.refuse = (503, "ServiceUnavailable")
    clock = Clock()
    monkeypatch.setattr(run_upload, "time", clock)
    sleep, clock.sleep = clock.sleep, lambda seconds: sleep(1000)  # the machine was away
    assert upload(run, bucket, "--within", "60") == 1
    assert "it asks to slow down" in capfd.readouterr().out


def test_nobody_at_the_address_is_unreachable(run, bucket, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(StoreError) as error:
            Uploader(run, store_of(bucket)).send()
    assert error.value.reason is Reason.UNREACHABLE
    assert SECRET not in str(error.value)


def test_another_run_of_the_same_place_is_refused(run, bucket, tmp_path, capfd):
    assert upload(run, bucket) == 0
    before = stored_files(bucket)
    other = write_run(tmp_path / "other", "run-2")
    assert asys_run.main(["upload", str(other), "--uri", f"s3://{bucket.name}/runs/run-1"]) == 2
    assert "holds the run 'run-1'" in capfd.readouterr().out
    assert stored_files(bucket) == before


KILLED = """
import os, runpy, signal, sys
from pathlib import Path
from asys_bench.monitors.upload.uploader import Uploader
from asys_bench.store.objects import ObjectStore
from asys_bench.store.uri import parse_uri

Steps = runpy.run_path(sys.argv[1])["Steps"]
run, uri = Path(sys.argv[2]), sys.argv[3]
at = 0
while True:
    at += 1
    pid = os.fork()  # before any client of S3 is in this process
    if pid == 0:
        store = Steps(ObjectStore(parse_uri(f"{uri}/{at}")),
                      lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == at else None)
        Uploader(run, store).send(final=True)
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    pid = os.fork()
    if pid == 0:
        assert Uploader(run, ObjectStore(parse_uri(f"{uri}/{at}"))).send(final=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    print(at, flush=True)
    if not killed:
        break
"""


@pytest.mark.rest
def test_killed_at_every_step_a_copy_in_s3_is_finished_by_the_next_one(run, bucket):
    command = [sys.executable, "-c", KILLED, str(HERE / "test_uploader.py"), str(run)]
    done = subprocess.run(
        [*command, f"s3://{bucket.name}/k"], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    last = int(done.stdout.split()[-1])
    assert last > 50
    for at in range(1, last + 1):
        listed = {o.key: o.get()["Body"].read() for o in bucket.objects.filter(Prefix=f"k/{at}/")}
        manifest = json.loads(listed[f"k/{at}/manifest.json"])
        whole = {name: listed[f"k/{at}/{one['object']}"] for name, one in manifest["files"].items()}
        assert whole == files_of(run)


@pytest.mark.parametrize("own", [None, "when_supported"])
def test_a_client_is_made_to_compute_no_checksum_of_what_it_reads_and_the_environment_stays(
    bucket, monkeypatch, own
):
    name = "AWS_RESPONSE_CHECKSUM_VALIDATION"
    monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv(name, own)
    seen = []
    make = fs.S3FileSystem
    monkeypatch.setattr(
        fs, "S3FileSystem", lambda **options: seen.append(os.environ[name]) or make(**options)
    )
    store = store_of(bucket)
    assert seen == [own or "when_required"], "a user's own value stays"
    assert os.environ.get(name) == own
    store.put("object", [b"what was sent"])
    assert b"".join(store.pieces("object")) == b"what was sent"
