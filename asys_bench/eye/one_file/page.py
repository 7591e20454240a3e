"""The pages as one HTML document: the front end's modules in one inline script, which the document's own
policy allows by its hash, and answers as data blocks.

Nothing else runs and nothing is loaded: there is no other script, style or address that the policy allows. A
data block is base64 of gzip, so that what a run holds can close no tag.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping

from asys_bench.eye.page_files import page_files

INSTEAD = {"api.js": "file_api.js", "address.js": "file_address.js"}
"""Modules that ask a server, and those that take their place."""
_IMPORT = re.compile(r"^import \{([^}]+)\} from '\./([\w.]+)';$", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) (\w+))", re.MULTILINE)
_BODY = re.compile(r"<body>\n(.*)</body>", re.DOTALL)


def packed(document: object) -> str:
    """JSON as a data block holds it."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def render(title: str, index: object, parts: Mapping[str, str]) -> Iterator[str]:
    """The document, piece by piece. index: JSON that `file_api.js` reads first; parts: name -> data block."""
    files = {name: contents.decode() for name, (contents, _) in page_files().items()}
    script, style = f"\n{joined(files)}", f"\n{files['eye.css']}"
    found = _BODY.search(files["index.html"])
    assert found is not None
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script, style)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{found[1]}"
    )
    told = json.dumps(index).replace("<", "\\u003c")
    yield f'<script type="application/json" id="index">{told}</script>\n'
    for name, block in parts.items():
        yield f'<script type="text/plain" id="{name}">{block}</script>\n'
    yield f'<script type="module">{script}</script>\n</body>\n</html>\n'


def joined(files: Mapping[str, str]) -> str:
    """The modules as one script: each a function that returns what it exports, in the order of imports."""
    made: dict[str, str] = {}

    def add(name: str) -> None:
        if name in made:
            return
        text = files[INSTEAD.get(name, name)]
        for _, other in _IMPORT.findall(text):
            add(other)
        text = _IMPORT.sub(r"const {\1} = modules['\2'];", text)
        names = ", ".join(_EXPORT.findall(text))
        body = _EXPORT.sub("", text)
        made[name] = f"modules['{name}'] = (() => {{\n{body}return {{ {names} }};\n}})();\n"

    add("main.js")
    return "const modules = {};\n" + "".join(made.values())


def _policy(script: str, style: str) -> str:
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
