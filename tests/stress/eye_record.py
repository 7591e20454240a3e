"""Records the session that `eye_viewer.py` replays: `python tests/stress/eye_record.py FOLDER`.

A headless Chromium goes through the views of a live run as a person would, with time to read; every request
that reaches the server is written to `tests/fixtures/eye_session.json`, with the name of the SAE left open.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from browser import Chromium, Page
from eye_latency import enter
from eye_rig import Eyepiece, Host, wait
from eye_viewer import SESSION

from asys_bench.rundir.feature_index import indexed_hooks

FEATURES, PAUSE_S = 24_576, 0.1
VISITS = (
    ("/run", 8),
    ("/hook?sae=late", 12),
    ("/feature?sae=late&feature=12", 10),
    ("/feature?sae=late&feature=13", 6),
    ("/search", 2),
    ("type:word40", 4),
    ("type:77", 4),
    ("/feature?sae=late&feature=77", 8),
    ("/timeline?sae=late", 5),
    ("/run", 5),
)
"""Where to, and for how many seconds."""


def go_through(page: Page, root: str) -> float:
    begun_s = time.monotonic()
    for where, seconds in VISITS:
        if where.startswith("type:"):
            page.value(
                "(f => { f.value = ''; f.focus(); })(document.querySelector('input[type=search]'))"
            )
            page.type(where[5:])
        else:
            page.open(root + where)
        page.browser.look(seconds)
    return time.monotonic() - begun_s


def ids(browser: Chromium, method: str) -> set[str]:
    """Of the requests that had this event."""
    return {e["params"]["requestId"] for e in browser.events if e["method"] == method}


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    host = Host(folder, FEATURES, PAUSE_S)
    try:
        wait(lambda: len(indexed_hooks(host.run_dir)) == 2, 0.5)
        with (
            Eyepiece(host.run_dir) as eyepiece,
            Chromium(Path(tempfile.mkdtemp(dir=folder))) as browser,
        ):
            page = browser.page()
            enter(page, eyepiece, "/hook?sae=late")
            page.wait("document.querySelectorAll('.virtual .space .line').length > 20")
            browser.events.clear()
            root = eyepiece.address[: eyepiece.address.index("/?")]
            seconds = go_through(page, root)
            kept = ids(browser, "Network.requestServedFromCache")
            sent = [
                e["params"]
                for e in browser.events
                if e["method"] == "Network.requestWillBeSent"
                and e["params"]["requestId"] not in kept
            ]
            first_s = sent[0]["timestamp"]
            requests = [
                [round(one["timestamp"] - first_s, 2), one["request"]["url"].removeprefix(root)]
                for one in sent
                if one["request"]["url"].startswith(root)
            ]
    finally:
        host.end()
    lines = ",\n  ".join(
        json.dumps([at, path.replace("sae=late", "sae={sae}")]) for at, path in requests
    )
    SESSION.write_text(f'{{"seconds": {seconds:.0f}, "requests": [\n  {lines}\n]}}\n')
    print(f"{len(requests)} requests in {seconds:.0f} s; {quote(str(SESSION))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
