"""`asys-run eye` as a person starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

pytestmark = pytest.mark.rest


def test_the_address_that_it_prints_opens_the_run_and_nothing_else_does(tmp_path: Path) -> None:
    run_dir = tmp_path / "a-run"
    run_dir.mkdir()
    document = {"schema": "asys.run/1", "run_id": "<i>a run</i>", "hooks": ["h"], "host_pid": 1}
    (run_dir / "run.json").write_text(json.dumps(document))
    command = [sys.executable, "-P", "-m", "asys_bench.cli.run", "eye", str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            told = re.search(
                rb"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", process.stdout.readline()
            )
            assert told
            address = told[0].decode()
            root = address[: address.index("/?")]
            stranger = urllib.request.build_opener()
            with pytest.raises(urllib.error.HTTPError, match="403"):
                stranger.open(f"{root}/run", timeout=60)
            cookies = urllib.request.HTTPCookieProcessor(CookieJar())
            browser = urllib.request.build_opener(cookies)
            browser.open(address, timeout=60).close()
            with browser.open(f"{root}/run", timeout=60) as page:
                assert re.search(rb'type="module" src="/static/[0-9a-f]{16}/main.js">', page.read())
                assert "default-src 'none'" in page.headers["content-security-policy"]
            with browser.open(f"{root}/api/events", timeout=60) as events:
                figures = json.loads(events.readline().removeprefix(b"data: "))
            assert (figures["run_id"], figures["live"]) == ("<i>a run</i>", False)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stderr is not None
            assert process.stderr.read() == b""
        finally:
            process.kill()
    assert sorted(os.listdir(run_dir)) == ["run.json"]


@pytest.mark.parametrize("display", ["", ":7"])
def test_open_leads_the_browser_there_and_keeps_the_token_out_of_its_arguments(
    tmp_path: Path, display: str
) -> None:
    run_dir, told = tmp_path / "a-run", tmp_path / "told"
    run_dir.mkdir()
    document = {"schema": "asys.run/1", "run_id": "r", "hooks": ["h"], "host_pid": 1}
    (run_dir / "run.json").write_text(json.dumps(document))
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\n{{ echo "$1"; cat "${{1#file://}}"; }} > {told}.part\n'
                       f"mv {told}.part {told}\n")  # fmt: skip
    browser.chmod(0o700)
    environment = {**os.environ, "BROWSER": f"{browser} %s", "DISPLAY": display}
    environment.pop("WAYLAND_DISPLAY", None)
    command = [sys.executable, "-P", "-m", "asys_bench.cli.run", "eye", str(run_dir), "--open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().decode().removeprefix("open ").strip()
            urllib.request.build_opener().open(address, timeout=60).close()
            deadline = time.monotonic() + 60
            while display and not told.exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert told.exists() == bool(display)
    if display:
        argument, page = told.read_text().split("\n", 1)
        assert argument == (run_dir / "eye-open.html").as_uri()
        assert f'content="0;url={address}"' in page
    assert os.listdir(run_dir) == ["run.json"]
