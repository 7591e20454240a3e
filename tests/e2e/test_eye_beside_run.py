"""`observe(..., eye=True)`: the run in a browser while it goes on, and nothing that stays."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest
import torch

import asys_bench
from asys_bench.eye.beside_run import LINGER_S
from asys_bench.run.eyepiece import MODULE
from asys_bench.system.liveness import all_pids

pytestmark = pytest.mark.rest
PATIENCE_S = 240.0


def wait_for(asked: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := asked()):
        assert time.monotonic() < deadline, f"no {what} within {PATIENCE_S:g} s"
        time.sleep(0.05)
    return found


def eyes_of(run_dir: Path) -> list[int]:
    """Processes of the eyepiece of this run."""
    found = []
    for pid in all_pids():
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if MODULE.encode() in arguments and os.fsencode(run_dir) in arguments:
            found.append(pid)
    return found


def observed(tmp_path: Path, **more: Any) -> asys_bench.Observation:
    model = torch.nn.Sequential(torch.nn.Linear(16, 16))
    observation = asys_bench.observe(
        model, hooks="0", sae=False, eye=True, run__dir=tmp_path, **more
    )
    model(torch.randn(8, 16))
    observation.step()
    return observation


def test_its_address_is_a_line_it_shows_the_run_live_and_stays_for_an_open_page(tmp_path, capfd):
    observation = observed(tmp_path)
    try:
        address = wait_for(lambda: observation.eye, "address")
        (pid,) = wait_for(lambda: eyes_of(observation.run_dir), "eyepiece")
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        assert str(pid) not in children, "a host that waits for its children would wait for it"
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        browser.open(address, timeout=PATIENCE_S).close()
        root = address[: address.index("/?")]
        with browser.open(f"{root}/api/events", timeout=PATIENCE_S) as events:
            first = json.loads(events.readline().removeprefix(b"data: "))
            assert (first["run_id"], first["live"]) == (observation.run_dir.name, True)
            observation.close()
            figures = first
            while figures.get("state") != "finished":
                line = events.readline()
                figures = json.loads(line[6:]) if line.startswith(b"data: ") else figures
            assert not figures["live"]
            assert eyes_of(observation.run_dir) == [pid]
            looked_at = time.monotonic()
        wait_for(lambda: not eyes_of(observation.run_dir), "end of the eyepiece")
        assert time.monotonic() - looked_at > LINGER_S / 2
    finally:
        observation.close()
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("asys: eye:")]
    assert lines == [f"asys: eye: {address}"]


def test_nothing_stays_of_one_that_nobody_looked_at(tmp_path):
    with observed(tmp_path, quiet=True) as observation:
        wait_for(lambda: observation.eye, "address")
        wait_for(lambda: eyes_of(observation.run_dir), "eyepiece")
    wait_for(lambda: not eyes_of(observation.run_dir), "end of the eyepiece")
    log = observation.run_dir / "logs" / "eye.log"
    assert log.read_text() == ""
    assert observation.run.summary["warnings"] == []


def test_without_the_extra_the_run_goes_on_and_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("asys_bench.eye.address.find_spec", lambda name: None)
    with observed(tmp_path) as observation:
        pass
    message = "no eyepiece: starlette and uvicorn not installed: pip install 'asys-i[eye]'"
    assert observation.eye is None
    assert observation.steps == 1
    assert observation.run.summary["warnings"] == [message]
    assert f"asys: ! {message}" in capfd.readouterr().err
