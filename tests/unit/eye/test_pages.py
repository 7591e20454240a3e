"""The files that a browser gets: nothing inline, nothing from elsewhere, no text made into markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from asys_bench.eye.app import page_files
from asys_bench.eye.pictures import tree
from asys_bench.reports.page.markup import Markup, tag

FILES = {name: contents.decode() for name, (contents, _) in page_files().items()}
SCRIPTS = sorted(name for name in FILES if name.endswith(".js"))
FORBIDDEN = (
    *(
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "DOMParser",
        "eval(",
        "Function(",
    ),
    *(
        "srcdoc",
        "setTimeout('",
        'setTimeout("',
        "javascript:",
        "import(",
        "cssText",
        "localStorage",
    ),
)


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style"):
            self.scripts += data.strip()


def test_the_page_has_no_inline_script_or_style() -> None:
    seen = Seen()
    seen.feed(FILES["index.html"])
    assert seen.scripts == ""
    names = {name for _, attributes in seen.found for name in attributes}
    assert not {name for name in names if name.startswith("on") or name == "style"}
    asked = {a.get("src") or a.get("href") for name, a in seen.found if name in ("script", "link")}
    assert asked == {"/static/main.js", "/static/eye.css", "/static/eye.svg"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_make_no_markup_of_text(name: str) -> None:
    assert [word for word in FORBIDDEN if word in FILES[name]] == []
    assert not re.search(r"style:\s*[`'\"]|setAttribute\('style'", FILES[name])


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_module_that_is_imported_and_every_name_in_it_is_there(name: str) -> None:
    for names, path in re.findall(r"^import \{([^}]+)\} from '\./([\w.]+)';$", FILES[name], re.M):
        exported = re.findall(
            r"^export (?:async )?(?:function|const|class) (\w+)", FILES[path], re.M
        )
        assert {one.strip() for one in names.split(",")} <= set(exported)
    imported = re.findall(r"\bimport\b", FILES[name])
    assert len(imported) == len(
        re.findall(r"^import \{[^}]+\} from '\./[\w.]+';$", FILES[name], re.M)
    )


def test_nothing_is_loaded_from_elsewhere() -> None:
    for name, text in FILES.items():
        told = text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//\w+\.|url\(|@import", told), name


def test_a_picture_becomes_a_tree_of_what_pictures_have() -> None:
    inside = tag("rect", tag("title", "a < b & <script>"), x=1.5, class_="bar")
    drawn = tag("svg", inside, viewBox="0 0 4 4", text_anchor="end")
    assert tree(drawn) == [
        "svg",
        {"viewBox": "0 0 4 4", "text-anchor": "end"},
        [["rect", {"x": "1.5", "class": "bar"}, [["title", {}, ["a < b & <script>"]]]]],
    ]


def test_what_no_picture_has_is_left_out() -> None:
    hostile = Markup(
        '<svg onload="x()"><script>x()</script><a href="javascript:x()"><path d="M0 0" style="x"/></a>'
        '<image href="http://evil.example"/></svg>'
    )
    assert tree(hostile) == ["svg", {}, []]
    assert tree(Markup("nothing")) == ["span", {}, []]
