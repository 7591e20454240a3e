"""No reader runs what it reads: the whole package's syntax trees, with every exception named."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ("asys_bench", "backends", "kernels", "reports")
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNS = {"eval", "exec", "compile", "__import__", "builtins.exec", "entry.load"}
YAML_UNSAFE = {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}

ALLOWED = {
    ("asys_bench/sae/exchange/dictionary_learning.py", "import pickle"): (
        "the exception type that torch.load(weights_only=True) raises is named in an except clause"
    ),
    ("asys_bench/hosts/script.py", "runpy.run_path"): "the user's own script, named by the user",
    ("asys_bench/hosts/script.py", "runpy.run_module"): "the user's own script, named by the user",
    ("asys_bench/registry.py", "entry.load"): "entry points of installed packages",
    ("asys_bench/__init__.py", "import_module"): "a fixed table of this package's own modules",
    (
        "asys_bench/cli/commands/__init__.py",
        "import_module",
    ): "names of this package's own commands",
    ("asys_bench/hosts/dotted_name.py", "import_module"): (
        "hosts `callable` and `transformers`: a function of the user's, named in the user's own file"
    ),
    ("asys_bench/harness/plugins.py", "import_module"): (
        "a suite's `plugins`, off unless the suite says allow_dotted_plugins"
    ),
    ("kernels/simd/implementations.py", "import_module"): "a fixed table of numba twins",
}
"""(file, what) -> why it is no way in."""


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (p for p in sorted((ROOT / folder).rglob("*.py")) if not p.is_symlink())


def name_of(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = name_of(node.value)
        return f"{inner}.{node.attr}" if inner else node.attr
    return ""


def keyword(call: ast.Call, name: str) -> object:
    for one in call.keywords:
        if one.arg == name and isinstance(one.value, ast.Constant):
            return one.value.value
    return None


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of everything that can turn data into code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in MODULES:
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.lineno, f"import {node.module}"
        elif isinstance(node, ast.Call):
            called = name_of(node.func)
            last = called.rsplit(".", 1)[-1]
            if called in RUNS or called.startswith("runpy."):
                yield node.lineno, called
            elif last == "import_module":
                yield node.lineno, last
            elif called.startswith(("torch.load", "th.load")) and (
                keyword(node, "weights_only") is not True
            ):
                yield node.lineno, "torch.load without weights_only=True"
            elif called in ("torch.package.PackageImporter", "torch.jit.load", "torch.hub.load"):
                yield node.lineno, called
            elif keyword(node, "allow_pickle") is True:
                yield node.lineno, "allow_pickle=True"
            elif called.startswith("yaml.") and last in YAML_UNSAFE:
                yield node.lineno, called
            elif keyword(node, "trust_remote_code") is True:
                yield node.lineno, "trust_remote_code=True"


def test_nothing_that_is_read_can_run_but_what_is_named_here():
    found, used = [], set()
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        for line, what in dangers(ast.parse(path.read_text(encoding="utf-8"))):
            if (name, what) in ALLOWED:
                used.add((name, what))
            else:
                found.append(f"{name}:{line}: {what}")
    assert found == []
    stale = sorted(set(ALLOWED) - used)
    assert stale == [], "listed above and not in the code any more"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "importlib.import_module(name)",
        "runpy.run_path(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_check_itself_sees_what_it_is_for(source):
    assert list(dangers(ast.parse(source)))


@pytest.mark.parametrize(
    "source", ["torch.load(path, weights_only=True)", "yaml.safe_load(text)", "model.eval()"]
)
def test_the_check_lets_the_safe_ways_pass(source):
    assert not list(dangers(ast.parse(source)))
