"""The site of the documents, opened from a disk in a real browser: nothing is fetched, the search works."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .browser import CHROMIUM, Chromium

ROOT = Path(__file__).parents[2]
OWN = ROOT / ".venv-site/bin/zensical"
ZENSICAL = str(OWN) if OWN.exists() else shutil.which("zensical")
DIALOG = "[...document.querySelectorAll('*')].find(e => e.shadowRoot).shadowRoot"
"""The theme draws its search in a shadow tree."""

pytestmark = [
    pytest.mark.rest,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
    pytest.mark.skipif(ZENSICAL is None, reason="no zensical: make site"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, "docs/site/build.py", "--zensical", ZENSICAL, "--out", out]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


def test_a_page_fetches_nothing_from_elsewhere_and_finds_what_is_searched(site, tmp_path):
    with Chromium(tmp_path) as browser:
        page = browser.page()
        page.open(f"file://{site}/examples/index.html")
        page.wait(f"{DIALOG}.querySelector('dialog')")
        page.wait("document.querySelector('iframe')?.contentWindow.document.scripts.length")
        page.key("/")
        page.wait(f"{DIALOG}.activeElement?.tagName === 'INPUT'")
        page.type("quarantined")
        found = f"[...{DIALOG}.querySelectorAll('[role=option]')].map(a => a.href)"
        page.wait(f"{found}.length")
        assert any("/guarantees.html" in address for address in page.value(found))
        assert {address.partition(":")[0] for address in page.asked()} == {"file", "data"}
        assert page.errors() == []


def test_every_page_opens_without_an_error(site, tmp_path):
    with Chromium(tmp_path) as browser:
        page = browser.page()
        for path in sorted(site.rglob("*.html")):
            page.open(path.as_uri())
            page.wait("document.readyState === 'complete'")
        assert {address.partition(":")[0] for address in page.asked()} == {"file", "data"}
        assert page.errors() == []
