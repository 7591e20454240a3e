"""Click through the five views of the eyepiece of a run that goes on, in headless Chromium:

    python -P tests/stress/eye_clicks.py FOLDER asys-run --config configs/pipelines/smollm2_features.yaml

Starts the command with `run.eye`, waits for its page, opens each view as soon as it has something to show,
goes from a line of the table to its feature and back, searches, and looks once more in a phone's width and in
the dark scheme. Prints one JSON line: seconds until each view, whether the run was live then, and what the
console complained of. Pictures, and what the command said, are written to FOLDER.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.e2e.browser import Chromium, Page  # noqa: E402

PATIENCE_S = 400.0
SHOWN = {
    "run": ".tiles",
    "hook": ".virtual .space .line:not([hidden]) a",
    "feature": ".sentences",
    "search": "form",
    "timeline": "main",
}


def address_of(process: subprocess.Popen[bytes], log: Path) -> str:
    """Of the line `eye: http://...`."""
    until = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        found = re.search(r"^eye: (http://\S+)", log.read_text(), re.M)
        if found:
            return found[1]
        time.sleep(0.2)
    raise SystemExit(f"no page: see {log}")


class Clicks:
    def __init__(
        self, page: Page, address: str, folder: Path, process: subprocess.Popen[bytes]
    ) -> None:
        self.page, self.folder, self.process = page, folder, process
        self.home, self.began = address[: address.index("/?")], time.monotonic()
        self.seen: dict[str, Any] = {}

    def note(self, what: str) -> None:
        self.page.picture(self.folder / f"{what}.png")
        is_live = self.process.poll() is None
        self.seen[what] = {"s": round(time.monotonic() - self.began, 1), "live": is_live}
        print(what, self.seen[what], file=sys.stderr, flush=True)

    def view(self, name: str, shown: str = "", called: str = "", **query: str) -> None:
        self.page.open(f"{self.home}/{name}?{urlencode(query)}")
        self.page.wait(f"!!document.querySelector({json.dumps(shown or SHOWN[name])})", PATIENCE_S)
        self.note(called or name)


def look(clicks: Clicks) -> None:
    page = clicks.page
    clicks.view("run")
    clicks.view("hook")
    page.value(f"document.querySelector({json.dumps(SHOWN['hook'])}).click()")
    page.wait(f"!!document.querySelector({json.dumps(SHOWN['feature'])})", PATIENCE_S)
    clicks.note("feature")
    page.value("history.back()")
    page.wait(f"!!document.querySelector({json.dumps(SHOWN['hook'])})", 60)
    clicks.note("hook again")
    clicks.view("search", ".found li", text="license")
    clicks.view("timeline")
    page.size(390, 844, mobile=True, scale=2.0)
    clicks.view("hook", called="hook, phone")
    page.size(1280, 900)
    page.scheme("dark")
    clicks.view("run", called="run, dark")


def main() -> int:
    place, command = Path(sys.argv[1]), [*sys.argv[2:], "--set", "run.eye=true"]
    place.mkdir(parents=True, exist_ok=True)
    log = place / "command.log"
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            address = address_of(process, log)
            with Chromium(place / "profile") as browser:
                page = browser.page()
                page.open(address)
                clicks = Clicks(page, address, place, process)
                look(clicks)
                errors = page.errors()
                print(json.dumps({"views": clicks.seen, "errors": errors}))
                return 1 if errors else 0
        finally:
            process.send_signal(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
