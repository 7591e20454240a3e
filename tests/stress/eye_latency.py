"""How soon the eyepiece shows things: `python tests/stress/eye_latency.py FOLDER` prints one JSON line.

    first_card_s        from the first captured packet until a feature of the learning SAE has examples
    firing_s            from the forward pass in which a feature of a frozen SAE of 24,576 fires until a page
                        says so: the page of a headless Chromium where there is one, else the address it asks
    search_ms           over 24,576 features, as the server tells it, and as the asking process waits
    search_unindexed    the first search of a run without an index, from the first look on, and the longest
                        that any single question waited meanwhile
    scroll_ms           the longest task of the main thread while a table of 24,576 rows scrolls

Run it on a machine that does nothing else.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from browser import CHROMIUM, Chromium, Page
from eye_host import RARE
from eye_rig import Client, Eyepiece, Host, wait

FEATURES, PAUSE_S, FIRINGS, SEARCHES = 24_576, 0.3, 12, 200
TEXTS = ("word1", "word", "40", "9", "word4094", "nothing at all", "d2", " word77 ", "WORD12", "e")
LONG_TASKS = """
new PerformanceObserver((list) => (globalThis.tasks ??= []).push(...list.getEntries().map((e) => e.duration)))
  .observe({ type: 'longtask', buffered: true })
"""
SCROLL = """
(async () => {
  globalThis.tasks = [];
  const table = document.querySelector('.virtual'), most = table.scrollHeight;
  const frame = () => new Promise((go) => requestAnimationFrame(go));
  for (let n = 0; n < 200; n += 1) {
    table.scrollTop = n < 100 ? n * 90 : (n * 7919 * 34) % most;
    const begun = performance.now();
    await frame();
    await frame();
    globalThis.slowest = Math.max(globalThis.slowest ?? 0, performance.now() - begun);
  }
  await new Promise((go) => setTimeout(go, 300));
  const { tasks, slowest } = globalThis;
  return { longest: Math.max(0, ...tasks), tasks: tasks.length, two_frames: slowest };
})()
"""


def first_card(host: Host, client: Client) -> float:
    """Seconds from the first captured packet; a page looks as soon as the eyepiece is there."""
    stream = client.events()
    while True:
        line = stream.readline()
        if line.startswith(b"data: ") and "mid" in json.loads(line[6:]).get("checkpoints", {}):
            break
    while True:
        table = client.ask("/api/table", sae="mid")
        density = table["columns"].get("density") or [0.0]
        found = client.ask("/api/feature", sae="mid", feature=int(np.argmax(density)))
        if found.get("top"):
            break
        time.sleep(0.2)
    seconds = time.monotonic() - float((host.folder / "first").read_text())
    stream.close()
    return seconds


def firings(host: Host, client: Client, page: Page | None) -> list[float]:
    client.ask("/api/feature", sae="late", feature=RARE)
    found = []
    for _ in range(FIRINGS):
        fired = host.fire()
        step = f"{fired['step']:,}"
        if page is not None:
            page.wait(f"document.body.innerText.includes('Fired last at host step {step},')")
        else:
            asked = lambda: client.ask("/api/latest", sae="late", feature=RARE)["latest"]  # noqa: E731
            wait(lambda: (told := asked()) and told["step"] == fired["step"], 0.1)  # noqa: B023
        found.append(time.monotonic() - fired["at"])
        time.sleep(2.3)
    return found


def searches(client: Client) -> dict[str, float]:
    client.ask("/api/table", sae="late")
    server, wall = [], []
    for n in range(SEARCHES):
        begun_s = time.monotonic()
        told = client.ask("/api/search", text=TEXTS[n % len(TEXTS)])
        wall.append(1e3 * (time.monotonic() - begun_s))
        server.append(told["took_ms"])
        assert told["features"] >= FEATURES
    return {"server_p95": p95(server), "wall_p95": p95(wall), "wall_most": round(max(wall), 1)}


def unindexed(run_dir: Path, folder: Path) -> dict[str, float]:
    """Of a copy without an index, whose own SAE the frozen one is."""
    copy = folder / "unindexed"
    shutil.copytree(run_dir, copy, symlinks=True)
    shutil.rmtree(copy / "feature_index")
    of_late = copy / "sae" / "late" / "step_000000001"
    of_late.parent.mkdir(parents=True)
    shutil.copytree(folder / "known", of_late)
    (of_late.parent / "latest").symlink_to(of_late.name)
    waits: list[float] = []
    with Eyepiece(copy) as eyepiece:
        client = Client(eyepiece.address)
        begun_s = time.monotonic()
        client.events().readline()

        def ask() -> bool:
            asked_s = time.monotonic()
            told = json.loads(client.get("/api/search", text="word1")[1])
            waits.append(time.monotonic() - asked_s)
            return not told["waiting"] and told["features"] >= FEATURES

        wait(ask, 0.5)
        seconds = time.monotonic() - begun_s
    return {"until_found_s": round(seconds, 2), "longest_wait_s": round(max(waits), 3)}


def scrolling(page: Page, eyepiece: Eyepiece) -> dict[str, float]:
    enter(page, eyepiece, "/hook?sae=late&fired=0")
    page.wait("document.querySelectorAll('.virtual .space .line').length > 20")
    time.sleep(2)
    page.value(LONG_TASKS)
    told = page.value(SCROLL)
    return {name: round(value, 1) for name, value in told.items()}


def enter(page: Page, eyepiece: Eyepiece, path: str) -> None:
    page.open(eyepiece.address)
    page.wait(
        "location.pathname === '/' && !location.search && document.getElementById('views')?.children.length"
    )
    page.open(eyepiece.address[: eyepiece.address.index("/?")] + path)


def p95(values: Sequence[float]) -> float:
    return round(float(np.quantile(values, 0.95)), 2)


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    told: dict[str, object] = {}
    with ExitStack() as stack:
        stack.callback(lambda: print(json.dumps(told), flush=True))
        page = None
        if CHROMIUM is not None:
            browser = stack.enter_context(Chromium(Path(tempfile.mkdtemp(dir=folder))))
            page = browser.page()
        host = Host(folder, FEATURES, PAUSE_S)
        stack.callback(host.process.kill)
        with Eyepiece(host.run_dir) as eyepiece:
            client = Client(eyepiece.address)
            told["first_card_s"] = round(first_card(host, client), 2)
            client.ask("/api/table", sae="late")
            if page is not None:
                enter(page, eyepiece, f"/feature?sae=late&feature={RARE}")
                page.wait("document.querySelector('h1')?.textContent.startsWith('Feature')")
            seconds = firings(host, client, page)
            told["firing_s"] = {
                "p95": p95(seconds),
                "most": round(max(seconds), 2),
                "times": len(seconds),
            }
        host.end()
        with Eyepiece(host.run_dir) as eyepiece:
            told["search_ms"] = searches(Client(eyepiece.address))
            if page is not None:
                told["scroll_ms"] = scrolling(page, eyepiece)
        told["search_unindexed"] = unindexed(host.run_dir, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
