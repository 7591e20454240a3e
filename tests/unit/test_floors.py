"""No import runs up: the floors are those of README.md's picture of the folders, which is so kept true.
No folder and no function grows beyond its size."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKED = ("backends", "kernels", "reports")
PICTURE = re.compile(r"^## Where things are\n.*?^```\n(.*?)^```\n", re.MULTILINE | re.DOTALL)

KNOWN_UP: dict[tuple[str, str], str] = {}
"""(module, what it imports from above) -> why it is still so. An entry that nobody needs fails."""

KNOWN_CIRCLES: dict[frozenset[str], str] = {}
"""Modules that import each other -> why it is still so."""


class Tree:
    """The modules of a checkout and what each of them imports, inside functions too."""

    def __init__(self, root: Path) -> None:
        self.root = root
        folders = (root / "asys_bench", *(root / name for name in LINKED))
        self.files = {
            self.name(path): path
            for folder in folders
            for path in sorted(folder.rglob("*.py"))
            if not any(link in path.relative_to(root).parts[1:2] for link in ("_data", *LINKED))
        }
        self.folders = {
            name.rsplit(".", depth)[0]
            for name in self.files
            for depth in range(1, name.count(".") + 1)
        }
        self.doors = self._doors()
        self.imports = {name: set(self._imports(name)) for name in self.files}

    def name(self, path: Path) -> str:
        parts = path.relative_to(self.root).with_suffix("").parts
        parts = ("asys_bench", *parts) if parts[0] in LINKED else parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def _doors(self) -> dict[str, str]:
        """What `asys_bench` itself gives out when it is asked for: name -> module."""
        door = self.files.get("asys_bench")
        text = door.read_text() if door is not None else ""
        return dict(re.findall(r'^    "(\w+)": "(asys_bench[\w.]+)"', text, re.MULTILINE))

    def _imports(self, name: str) -> Iterator[str]:
        path = self.files[name]
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if self._is_ours(alias.name))
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    above = package.split(".")[: package.count(".") + 2 - node.level]
                    base = ".".join([*above, *([base] if base else [])])
                if self._is_ours(base):
                    yield from (self._of(base, alias.name) for alias in node.names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant) and self._is_ours(str(first.value)):
                    yield str(first.value)

    def _of(self, base: str, name: str) -> str:
        if base == "asys_bench" and name in self.doors:
            return self.doors[name]
        full = f"{base}.{name}"
        return full if full in self.files or full in self.folders else base

    @staticmethod
    def _is_ours(name: str) -> bool:
        return name.partition(".")[0] == "asys_bench"


def floors_of(readme: str) -> list[list[str]]:
    """README.md's picture, from the ground up: what stands on each floor."""
    (picture,) = PICTURE.findall(readme)
    cells = [line.split("│")[1] for line in picture.splitlines() if line.startswith("│")]
    return [cell.split() for cell in reversed(cells)]


class Floors:
    def __init__(self, floors: Iterable[Iterable[str]]) -> None:
        self._level = {name: level for level, names in enumerate(floors) for name in names}

    def standing(self, module: str) -> str:
        """The entry of the picture that a module belongs to: its folder, or its own file.

        Raises:
            KeyError: the picture does not show it.
        """
        parts = module.split(".")[1:]
        paths = ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
        if len(parts) < 2:
            paths.insert(0, f"{parts[0] if parts else '__init__'}.py")
        for path in paths:
            for entry in self._level:
                if fnmatchcase(path, entry):
                    return entry
        raise KeyError(module)

    def up(self, tree: Tree) -> set[tuple[str, str]]:
        """Imports from a higher floor."""
        return {
            (name, other)
            for name, others in tree.imports.items()
            for other in others
            if other != "asys_bench" and name != "asys_bench"
            if self._level[self.standing(other)] > self._level[self.standing(name)]
        }

    def neighbours(self, tree: Tree) -> dict[str, set[str]]:
        """Who imports whom on one floor."""
        found: dict[str, set[str]] = defaultdict(set)
        for name, others in tree.imports.items():
            for other in others:
                here, there = self.standing(name), self.standing(other)
                if here != there and self._level[here] == self._level[there]:
                    found[here].add(there)
        return found


def circles(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Sets of nodes that reach each other (more than one node each)."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, left = set[str](), [start]
        while left:
            for node in graph.get(left.pop(), ()):
                if node not in seen:
                    seen.add(node)
                    left.append(node)
        reached[start] = seen
    return {
        frozenset(other for other in seen if node in reached.get(other, ()))
        for node, seen in reached.items()
        if node in seen
    } - {frozenset({node}) for node in graph}


def known(found: tuple[str, str]) -> tuple[str, str] | None:
    """The entry of KNOWN_UP that allows an import."""
    name, other = found
    return next(
        (key for key in KNOWN_UP if name == key[0] and f"{other}.".startswith(f"{key[1]}.")), None
    )


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree(ROOT)


@pytest.fixture(scope="module")
def floors() -> Floors:
    return Floors(floors_of((ROOT / "README.md").read_text()))


def test_no_import_runs_up(tree, floors):
    found = floors.up(tree)
    assert {pair for pair in found if known(pair) is None} == set()
    assert KNOWN_UP.keys() == {known(pair) for pair in found}, "an exception that nobody needs"


def test_folders_of_one_floor_import_each_other_in_no_circle(tree, floors):
    assert circles(floors.neighbours(tree)) == set()


def test_no_modules_import_each_other_in_a_circle(tree):
    graph = {name: others - {"asys_bench"} for name, others in tree.imports.items()}
    found = circles({name: others for name, others in graph.items() if name != "asys_bench"})
    assert found == KNOWN_CIRCLES.keys()


def test_the_picture_shows_every_folder_and_no_other(tree, floors):
    shown = {entry for entries in floors_of((ROOT / "README.md").read_text()) for entry in entries}
    assert {floors.standing(name) for name in tree.files} == shown


@pytest.mark.parametrize("folder", [*LINKED, "asys_bench"])
def test_no_folder_has_more_than_25_files_at_one_level(folder):
    counts: dict[Path, int] = defaultdict(int)
    for path in (ROOT / folder).rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so":
            counts[path.parent.relative_to(ROOT)] += 1
    assert {path: count for path, count in counts.items() if count > 25} == {}


def long_functions(path: Path) -> dict[str, int]:
    """Those of more than 80 lines."""
    functions = (
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    spans = ((one.name, (one.end_lineno or one.lineno) - one.lineno + 1) for one in functions)
    return {name: lines for name, lines in spans if lines > 80}


def test_no_function_is_longer_than_80_lines(tree):
    found = {name: long_functions(path) for name, path in tree.files.items()}
    assert {name: long for name, long in found.items() if long} == {}


# ---- the test of the test


def test_a_long_function_is_seen(tmp_path):
    (tmp_path / "a.py").write_text("def short(): ...\ndef long():\n" + "    pass\n" * 80)
    assert long_functions(tmp_path / "a.py") == {"long": 81}


def planted(root: Path, files: Mapping[str, str]) -> Tree:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(root)


FLOORS = Floors([["system"], ["contracts", "registry.py"], ["sae", "kernels"], ["run"]])


@pytest.mark.parametrize(
    "text",
    [
        "import asys_bench.run.session",
        "from asys_bench.run import session",
        "from asys_bench.run.session import Session",
        "def f():\n    from asys_bench.run.session import Session",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from asys_bench.run import session",
        "from ..run import session",
        "from ..run.session import Session",
        "import importlib\nimportlib.import_module('asys_bench.run.session')",
        "from asys_bench import observe",
    ],
)
def test_a_planted_upward_import_is_seen(tmp_path, text):
    tree = planted(
        tmp_path,
        {
            "asys_bench/sae/x.py": text,
            "asys_bench/run/session.py": "class Session: ...",
            "asys_bench/__init__.py": '_WHERE = {\n    "observe": "asys_bench.run.session",\n}\n',
        },
    )
    (found,) = FLOORS.up(tree)
    assert found in {
        ("asys_bench.sae.x", "asys_bench.run.session"),
        ("asys_bench.sae.x", "asys_bench.run"),
    }


def test_imports_down_and_of_the_version_are_fine(tmp_path):
    tree = planted(
        tmp_path,
        {
            "asys_bench/run/session.py": "from asys_bench import __version__\nfrom asys_bench.sae import x",
            "asys_bench/sae/x.py": "import asys_bench\nfrom asys_bench.registry import registry",
            "asys_bench/registry.py": "from asys_bench.system import y",
            "asys_bench/system/y.py": "import os",
            "kernels/int8/plugin.py": "from asys_bench.contracts import z",
            "asys_bench/contracts/z.py": "",
        },
    )
    assert FLOORS.up(tree) == set()
    assert FLOORS.standing("asys_bench.registry") == "registry.py"
    with pytest.raises(KeyError):
        FLOORS.standing("asys_bench.harness.x")


def test_planted_circles_are_seen(tmp_path):
    tree = planted(
        tmp_path,
        {
            "asys_bench/sae/x.py": "from asys_bench.kernels.int8 import a",
            "kernels/int8/a.py": "def f():\n    import asys_bench.sae.y",
            "asys_bench/sae/y.py": "",
            "asys_bench/run/a.py": "from asys_bench.run import b",
            "asys_bench/run/b.py": "from asys_bench.run import c",
            "asys_bench/run/c.py": "from asys_bench.run.a import thing",
        },
    )
    assert circles(FLOORS.neighbours(tree)) == {frozenset({"sae", "kernels"})}
    assert circles(tree.imports) == {frozenset(f"asys_bench.run.{x}" for x in "abc")}


def test_a_picture_is_read_from_the_ground_up():
    drawn = "┌─┐\n│ run  x/a_* │ what │\n├─┤\n│ sae │ what │\n└─┘\n"
    readme = f"## Where things are\n\nText.\n\n```\n{drawn}```\n"
    assert floors_of(readme) == [["sae"], ["run", "x/a_*"]]
