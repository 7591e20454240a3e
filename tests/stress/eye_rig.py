"""The processes of the eyepiece's checks: a host, `asys-run eye`, and a client that is let in."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

HERE = Path(__file__).parent
PATIENCE_S = 180.0


class Host:
    """`eye_host.py`; its run's folder is `run_dir`."""

    def __init__(self, folder: Path, features: int, pause_s: float) -> None:
        self.folder = folder
        script, told = str(HERE / "eye_host.py"), [str(folder), str(features), str(pause_s)]
        command = [sys.executable, "-P", script, *told]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the host did not start"
        self.run_dir = Path(json.loads(line)["run"])

    def fire(self) -> dict[str, float]:
        """The rare token once: its step, and when."""
        path = self.folder / "fired.jsonl"
        before = len(path.read_text().splitlines())
        self.process.send_signal(signal.SIGUSR1)
        return wait(lambda: json.loads((path.read_text().splitlines()[before:] or ["null"])[0]))

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()


class Eyepiece:
    """`asys-run eye` of a run."""

    def __init__(self, run_dir: Path) -> None:
        command = [sys.executable, "-P", "-m", "asys_bench.cli.run", "eye", str(run_dir)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        found = re.search(rb"http://\S+", self.process.stdout.readline())
        assert found, "the eyepiece did not start"
        self.address = found[0].decode()

    def __enter__(self) -> Eyepiece:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(120)
        finally:
            self.process.kill()


class Client:
    """Asks as a page does, over one connection."""

    def __init__(self, address: str) -> None:
        told = urlsplit(address)
        self.host = told.netloc
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request("GET", f"/?{told.query}")
        answer = connection.getresponse()
        answer.read()
        self.cookie = answer.headers["set-cookie"].partition(";")[0]
        self._connection = connection

    def get(self, path: str, **query: Any) -> tuple[int, bytes]:
        asked = f"{path}?{urlencode(query)}" if query else path
        try:
            return self._get(asked)
        except (ConnectionError, http.client.RemoteDisconnected):
            # As a browser: the server closes a connection on which nothing was asked for some seconds.
            self._connection.close()
            return self._get(asked)

    def _get(self, asked: str) -> tuple[int, bytes]:
        self._connection.request("GET", asked, headers=self.headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    @property
    def headers(self) -> dict[str, str]:
        return {"Cookie": self.cookie, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}

    def ask(self, path: str, **query: Any) -> Any:
        """The answer; asked again while the features are being read."""
        return wait(lambda: self._ready(*self.get(path, **query)), 0.05)

    @staticmethod
    def _ready(status: int, body: bytes) -> Any:
        found = json.loads(body)
        return None if status == 202 else found

    def events(self) -> http.client.HTTPResponse:
        """The stream of figures, on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request("GET", "/api/events", headers=self.headers)
        return connection.getresponse()

    def close(self) -> None:
        self._connection.close()


def wait(look: Any, pause_s: float = 0.02, patience_s: float = PATIENCE_S) -> Any:
    """What `look` gives, once it gives something."""
    until = time.monotonic() + patience_s
    while not (found := look()):
        if time.monotonic() > until:
            raise TimeoutError(f"not in {patience_s:g} s")
        time.sleep(pause_s)
    return found
