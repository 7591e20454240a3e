"""`make site`: the documents as pages that open from a disk, with search, and load nothing from elsewhere.

The pages are made from a copy of README*.md, CHANGELOG.md and docs/ in build/site: there README.md is the
first page, folders that are linked to have a page that lists them, and files outside of docs/ are named
without a link. The build is strict: a link that leads nowhere fails it, and so does a page that would fetch
anything.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "zensical.toml"
SHIM, OWN_SHIM = "https://unpkg.com/iframe-worker/shim", "worker.js"
"""What the theme fetches so that the search works from a disk, and what takes its place."""
TOP = {
    "README.md": "index.md",
    "README.zh-CN.md": "README.zh-CN.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
LISTED = ("examples", "examples/cluster")
"""Folders that documents link to."""
OWN = "site"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
IMAGE = re.compile(r"(!\[[^\]]*\]\()docs/")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LOADING = {
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src",
    "embed": "src", "object": "data",
}  # fmt: skip
FETCHED = {
    "stylesheet",
    "preload",
    "modulepreload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "icon",
    "manifest",
}
IN_STYLE = re.compile(r"""(?:@import\s+|url\()\s*["']?((?:https?:)?//[^"')\s]+)""")


def stage(root: Path, pages: Path) -> None:
    """Copy the documents of a checkout into `pages`, with links that hold there."""
    shutil.copytree(root / "docs", pages, ignore=shutil.ignore_patterns(OWN, "__pycache__"))
    for name, as_name in TOP.items():
        (pages / as_name).write_text((root / name).read_text())
    for folder in LISTED:
        entries = sorted(
            path.name for path in (pages / folder).iterdir() if path.name != "index.md"
        )
        lines = [
            f"- [{name}]({name}{'/index.md' if (pages / folder / name).is_dir() else ''})"
            for name in entries
        ]
        (pages / folder / "index.md").write_text(f"# {folder}\n\n" + "\n".join(lines) + "\n")
    for page in pages.rglob("*.md"):
        page.write_text(rewritten(page.read_text(), page.relative_to(pages), pages))


def rewritten(text: str, page: Path, pages: Path) -> str:
    """The text of a page with its links as they are among `pages`; what is in fences stays."""
    parts = FENCE.split(text)
    parts[::2] = [_links(part, page, pages) for part in parts[::2]]
    return "".join(parts)


def _links(text: str, page: Path, pages: Path) -> str:
    def link(found: re.Match[str]) -> str:
        shown, target = found.groups()
        if re.match(r"\w+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        path = TOP.get(path, path.removeprefix("docs/")) if str(page) in TOP.values() else path
        if path.startswith("../"):
            return f"{shown} (`{path.removeprefix('../')}`)"
        if (pages / page.parent / path).is_dir():
            path = f"{path.rstrip('/')}/index.md"
        return f"[{shown}]({path}{'#' if anchor else ''}{anchor})"

    return LINK.sub(link, IMAGE.sub(r"\1", text))


def use_own_worker(site: Path, shim: Path) -> None:
    """Put our file in the place of the one script that the theme would fetch."""
    shutil.copy(shim, site / "assets" / OWN_SHIM)
    for path in site.rglob("*.html"):
        up = "../" * (len(path.relative_to(site).parts) - 1)
        path.write_text(path.read_text().replace(SHIM, f"{up}assets/{OWN_SHIM}"))


class _Loads(HTMLParser):
    """Addresses that a browser fetches when it opens a page; links to click are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        if tag in LOADING:
            self.found += [given.get(LOADING[tag], ""), *given.get("srcset", "").split()]
        if tag == "link" and FETCHED & set(given.get("rel", "").split()):
            self.found.append(given.get("href", ""))
        self.found += IN_STYLE.findall(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.found += IN_STYLE.findall(data)


def external_loads(site: Path) -> Iterator[str]:
    """`file: address` of everything that pages and styles of a site would fetch from elsewhere."""
    for path in sorted(site.rglob("*.html")):
        page = _Loads()
        page.feed(path.read_text(encoding="utf-8"))
        for address in page.found:
            if re.match(r"(?:https?:)?//", address):
                yield f"{path.relative_to(site)}: {address}"
    for path in sorted(site.rglob("*.css")):
        for address in IN_STYLE.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: {address}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python docs/site/build.py", description=__doc__)
    parser.add_argument("--zensical", default="zensical", metavar="FILE", help="the program")
    parser.add_argument("--out", default=ROOT / "build/site", type=Path, metavar="DIR")
    given = parser.parse_args(arguments)
    folder: Path = given.out
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stage(ROOT, folder / "pages")
    shutil.copy(Path(__file__).parent / CONFIG, folder)
    command = [given.zensical, "build", "--strict", "--config-file", CONFIG]
    if (code := subprocess.run(command, cwd=folder, check=False).returncode) != 0:
        return code
    (folder / "html/404.html").unlink()  # it takes the site to be at the root of a server
    use_own_worker(folder / "html", Path(__file__).parent / OWN_SHIM)
    found = list(external_loads(folder / "html"))
    for line in found:
        print(f"would be fetched from elsewhere: {line}", file=sys.stderr)
    if found:
        return 1
    count = sum(1 for _ in (folder / "html").rglob("*.html"))
    print(f"{count} pages: {folder / 'html/index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
