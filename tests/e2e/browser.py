"""A headless Chromium by its debugging pipe (Chrome DevTools Protocol): no driver and no further package."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--disable-extensions", "--mute-audio", "--remote-debugging-pipe"),
)
PATIENCE_S = 60.0
KEYS = {"Enter": 13, "Tab": 9, "ArrowDown": 40, "ArrowUp": 38, " ": 32, "/": 191}


class BrowserError(RuntimeError):
    """It answered with an error, or not in time."""


class Chromium:
    """profile: an empty folder."""

    def __init__(self, profile: Path) -> None:
        ours_out, theirs_in = (_high(fd) for fd in reversed(os.pipe()))
        theirs_out, ours_in = (_high(fd) for fd in reversed(os.pipe()))
        self._out, self._in = ours_out, ours_in

        def place() -> None:
            os.dup2(theirs_in, 3)
            os.dup2(theirs_out, 4)

        assert CHROMIUM is not None
        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            close_fds=False, preexec_fn=place, start_new_session=True,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._number = b"", 0
        self.events: list[dict] = []

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *error: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._out)
        os.close(self._in)

    def ask(self, method: str, session: str | None = None, **params: object) -> dict:
        """The result of one command. Raises BrowserError."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE_S
        while True:
            found = self._next(until)
            if found is None:
                raise BrowserError(f"no answer to {method} in {PATIENCE_S:g} s")
            if found.get("id") == self._number:
                if "error" in found:
                    raise BrowserError(f"{method}: {found['error']}")
                return found["result"]
            self.events.append(found)

    def look(self, seconds: float) -> None:
        """Take in what it says of itself."""
        until = time.monotonic() + seconds
        while (found := self._next(until)) is not None:
            self.events.append(found)

    def _next(self, until: float) -> dict | None:
        while b"\0" not in self._rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._in], [], [], left)[0]:
                return None
            data = os.read(self._in, 1 << 16)
            if not data:
                raise BrowserError("it has ended")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def page(self, width: int = 1280, height: int = 900) -> Page:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, width, height)


def _high(fd: int) -> int:
    """The same out of the way of 3 and 4."""
    found = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)
    os.close(fd)
    return found


class Page:
    """One tab."""

    def __init__(self, browser: Chromium, session: str, width: int, height: int) -> None:
        self.browser, self.session = browser, session
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility", "Performance"):
            self.ask(f"{domain}.enable")
        self.size(width, height)

    def ask(self, method: str, **params: object) -> dict:
        return self.browser.ask(method, self.session, **params)

    def size(self, width: int, height: int, *, mobile: bool = False, scale: float = 1.0) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=mobile,
        )  # fmt: skip

    def scheme(self, name: str) -> None:
        """light or dark."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.ask("Emulation.setEmulatedMedia", features=features)

    def open(self, address: str) -> None:
        """Go to another document."""
        self.value("globalThis.before = true")
        self.ask("Page.navigate", url=address)
        self.wait("!globalThis.before")

    def value(self, expression: str):
        """What an expression comes to, or the promise that it is. Raises BrowserError."""
        found = self.ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise BrowserError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression: str, patience_s: float = PATIENCE_S):
        """Until it is true; its value."""
        until = time.monotonic() + patience_s
        while True:
            try:
                found = self.value(expression)
            except BrowserError as error:  # the page is just changing
                found, last = None, error
            else:
                last = None
            if found or found == {}:  # a node
                return found
            if time.monotonic() > until:
                said = self.value("document.body?.innerText.slice(0, 500)")
                raise BrowserError(
                    f"not in {patience_s:g} s: {expression} ({last}); it shows {said!r}"
                )
            time.sleep(0.05)

    def key(self, key: str) -> None:
        text = {"text": "\r" if key == "Enter" else key} if key in ("Enter", " ", "/") else {}
        for kind in ("keyDown", "keyUp"):
            self.ask(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=KEYS[key],
                **(text if kind == "keyDown" else {}),
            )  # fmt: skip

    def type(self, text: str) -> None:
        self.ask("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        found = self.ask("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    def errors(self) -> list[str]:
        """What it has complained of until now."""
        self.browser.look(0.05)
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"])[:500])
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in (
                "error",
                "warning",
            ):
                found.append(json.dumps(params["args"])[:500])
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                entry = params["entry"]
                found.append(f"{entry['text']} {entry.get('url', '')}")
        return found

    def asked(self) -> list[str]:
        """Every address that it has asked for."""
        self.browser.look(0.05)
        return [
            event["params"]["request"]["url"]
            for event in self.browser.events
            if event.get("sessionId") == self.session
            and event["method"] == "Network.requestWillBeSent"
        ]
