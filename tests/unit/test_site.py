"""The documents as a site: every page is listed, every link leads somewhere, nothing is fetched."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_RENDERED = re.compile(r"^```.*?^```$|`[^`\n]*`|<!--.*?-->", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("site_build", ROOT / "docs/site/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "pages"
    build.stage(ROOT, folder)
    return folder


def entries(nav):
    for entry in nav:
        for inner in entry.values():
            yield from [inner] if isinstance(inner, str) else entries(inner)


def test_the_navigation_has_every_page_once(pages):
    config = tomllib.loads((ROOT / "docs/site/zensical.toml").read_text())["project"]
    listed = list(entries(config["nav"]))
    assert len(listed) == len(set(listed))
    there = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    assert there - set(listed) == {"examples/cluster/index.md"}, "pages that nothing leads to"
    assert set(listed) - there == set()


def anchors(text):
    """Those that headings have: lower case, words joined with dashes."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(pages):
    for page in sorted(pages.rglob("*.md")):
        for target in LINK.findall(NOT_RENDERED.sub("", page.read_text())):
            if re.match(r"\w+:", target):
                continue
            path, _, anchor = target.partition("#")
            leads = page.parent / path if path else page
            if not leads.is_file() or (anchor and anchor not in anchors(leads.read_text())):
                yield f"{page.relative_to(pages)}: {target}"


def test_every_link_between_pages_leads_to_a_file(pages):
    assert list(broken(pages)) == []


def test_every_link_of_the_documents_leads_to_a_file_of_the_checkout():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    missing = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in documents
        for target in LINK.findall(NOT_RENDERED.sub("", path.read_text()))
        if not re.match(r"\w+:|#", target) and not (path.parent / target.partition("#")[0]).exists()
    ]
    assert missing == []


def test_a_broken_link_is_seen(tmp_path):
    (tmp_path / "a.md").write_text(
        "# One two\n[b](b.md) [c](a.md#one-two) [d](a.md#three) `[e](f.md)`\n"
    )
    assert list(broken(tmp_path)) == ["a.md: b.md", "a.md: a.md#three"]


def test_what_is_in_fences_stays(build, pages):
    text = "[a](docs/faq.md)\n```md\n[a](docs/faq.md)\n```\n"
    assert build.rewritten(text, Path("index.md"), pages) == text.replace("docs/faq", "faq", 1)


def test_links_out_of_the_documents_become_names(build, pages):
    text = build.rewritten("see [it](../suites/asv/README.md)", Path("benchmarks.md"), pages)
    assert text == "see it (`suites/asv/README.md`)"


@pytest.mark.parametrize(
    ("name", "text", "address"),
    [
        ("a.html", '<script src="https://x.org/a.js"></script>', "https://x.org/a.js"),
        ("a.html", '<link rel="stylesheet" href="//fonts.x.org/css">', "//fonts.x.org/css"),
        ("a.html", '<link rel="preconnect" href="https://x.org">', "https://x.org"),
        ("a.html", '<style>@import "https://x.org/a.css";</style>', "https://x.org/a.css"),
        ("a.html", '<p style="background: url(https://x.org/a.png)">', "https://x.org/a.png"),
        ("a.css", "a { background: url('https://x.org/a.png') }", "https://x.org/a.png"),
    ],
)
def test_what_a_page_would_fetch_is_found(build, tmp_path, name, text, address):
    (tmp_path / name).write_text(text)
    assert list(build.external_loads(tmp_path)) == [f"{name}: {address}"]


def test_links_to_click_and_own_files_are_fine(build, tmp_path):
    own = '<a href="https://x.org">x</a><script src="a.js"></script><link rel="canonical" href="https://x.org">'
    (tmp_path / "a.html").write_text(own)
    assert list(build.external_loads(tmp_path)) == []


def test_the_themes_one_script_from_elsewhere_is_ours(build, tmp_path):
    for name in ("a.html", "deep/er/b.html"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'<script src="{build.SHIM}"></script>')
    (tmp_path / "assets").mkdir()
    build.use_own_worker(tmp_path, ROOT / "docs/site/worker.js")
    assert list(build.external_loads(tmp_path)) == []
    assert (tmp_path / "deep/er/../../assets/worker.js").is_file()
    assert '"../../assets/worker.js"' in (tmp_path / "deep/er/b.html").read_text()
