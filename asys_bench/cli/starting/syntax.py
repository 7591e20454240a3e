"""Names, classes and calls of a Python script, from its syntax tree alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

MODULE_BASES = ("Module", "LightningModule", "PreTrainedModel")
"""Last names of the classes from which models are derived."""


class UnreadableScriptError(ValueError):
    """The script is not there or is no Python; says where."""


class Script:
    """A parsed script.

    names: what a name at the top of a dotted one stands for (`nn` -> `torch.nn`).
    imports: first names of everything that is imported.
    models: classes that are derived from a module class, in order.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.names: dict[str, str] = {}
        for node in ast.walk(tree):
            self.names.update(_imported(node))
        self.imports = {name.partition(".")[0] for name in self.names.values()}
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        self.models: dict[str, ast.ClassDef] = {}
        for node in classes:
            if any(self._is_model_base(base) for base in node.bases):
                self.models[node.name] = node
        inside = {id(node) for model in self.models.values() for node in ast.walk(model)}
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        calls.sort(key=lambda call: (call.lineno, call.col_offset))
        self.calls = [call for call in calls if id(call) not in inside]
        """Outside of models, in order."""

    def dotted(self, node: ast.expr) -> str:
        """The full name of what is called or derived from, such as `torch.nn.Linear`; "" without one."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Subscript):  # a generic class
            return self.dotted(node.value)
        if not isinstance(node, ast.Name):
            return ""
        return ".".join([self.names.get(node.id, node.id), *reversed(parts)])

    def callee(self, call: ast.Call) -> str:
        return self.dotted(call.func)

    def _is_model_base(self, base: ast.expr) -> bool:
        name = self.dotted(base)
        return name in self.models or name.rpartition(".")[2] in MODULE_BASES


def read_script(path: Path) -> Script:
    """Parse the file; nothing in it is run.

    Raises:
        UnreadableScriptError: see there.
    """
    if path.suffix == ".ipynb":
        raise UnreadableScriptError(
            f"{path}: a notebook is not read; call asys_bench.observe in it"
        )
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UnreadableScriptError(f"{path}: {error.strerror}; name a training script") from None
    try:
        return Script(ast.parse(source, str(path)))
    except SyntaxError as error:
        place = f"{path}:{error.lineno}" if error.lineno else str(path)
        raise UnreadableScriptError(f"{place}: {error.msg}; name a Python script") from None
    except (ValueError, RecursionError) as error:
        raise UnreadableScriptError(f"{path}: no Python script: {error}") from None


def text_of(node: ast.expr | None) -> str | None:
    """The text of a literal, else None."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None


def number_of(node: ast.expr | None) -> int | None:
    """The number of a literal, else None."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    return None


def keyword_of(call: ast.Call, *names: str) -> ast.expr | None:
    """The value that is given under the first of these names."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    return next((given[name] for name in names if name in given), None)


def _imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            first = alias.name.partition(".")[0]
            yield (alias.asname, alias.name) if alias.asname else (first, first)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        for alias in node.names:
            yield alias.asname or alias.name, f"{node.module}.{alias.name}"
