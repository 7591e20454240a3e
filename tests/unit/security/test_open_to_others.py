"""The sweep over a run's processes sees what it is for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from asys_bench.contracts.stats import StatsPage
from asys_bench.system.files.atomic import private_memfd
from tests.conformance.open_to_others import open_to_others


@pytest.fixture
def sweep(tmp_path: Path):
    tmp_path.chmod(0o755)  # pytest's own folders are private
    before = set(open_to_others([os.getpid()], [tmp_path]))
    return lambda: sorted(set(open_to_others([os.getpid()], [tmp_path])) - before)


def test_what_is_private_and_sealed_is_no_finding(sweep, tmp_path: Path):
    page = StatsPage.create(["host"])
    secret = os.open(tmp_path / "a", os.O_CREAT | os.O_RDWR, 0o600)
    with socket.create_server(("127.0.0.1", 0)), socket.create_server(("::1", 0), family=10):
        assert sweep() == []
    os.close(secret)
    page.close()


def test_what_others_could_reach_is_one(sweep, tmp_path: Path):
    loose = os.memfd_create("asys-loose")
    unsealed = private_memfd("asys-unsealed", os.MFD_CLOEXEC)
    (tmp_path / "log").touch()
    (tmp_path / "log").chmod(0o644)
    log = os.open(tmp_path / "log", os.O_RDWR)
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0listener-{os.getpid()}")
    abstract.listen()
    named = socket.socket(socket.AF_UNIX)
    named.bind(str(tmp_path / "listener"))
    named.listen()
    with socket.create_server(("0.0.0.0", 0)), socket.create_server(("::", 0), family=10):
        found = "\n".join(sweep())
    for fd in (loose, unsealed, log):
        os.close(fd)
    abstract.close()
    named.close()
    for what in (
        "asys-loose (deleted) of the host: mode 777", "asys-loose (deleted) of the host: its size",
        "asys-unsealed (deleted) of the host: its size is not sealed", "log of the host: mode 644",
        "to every user", "listens as /", "listens on 00000000:", f"listens on {'0' * 32}:",
    ):  # fmt: skip
        assert what in found, found
