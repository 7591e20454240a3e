"""The modules that a script's models are built from, by the names that hooks know them by."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from asys_bench.cli.starting.syntax import Script, keyword_of, number_of

MOST = 3
MIN_FEATURES = 8
"""As `capture.points.default_hooks`, which has the model itself to look at, and imports torch."""
CONTAINERS = ("torch.nn.Sequential", "torch.nn.ModuleList")
BUILDERS = ("__init__", "setup", "configure_model")
DEEPEST, MOST_BLOCKS = 6, 1000
_SPELLED = ast.List | ast.Tuple | ast.ListComp | ast.GeneratorExp


@dataclass(frozen=True)
class Part:
    """A module: its name in the model, its class as the script writes it, and where.

    features: width of its output, where it is a literal. stack: the name of the list of blocks that it is
    one of; "" elsewhere, "." for blocks of the model itself.
    """

    name: str
    kind: str
    line: int
    features: int | None = None
    stack: str = ""


class Models:
    """The models of one script."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def outermost(self) -> list[str]:
        """Models that no other model of the script holds; those that the script itself builds come first."""
        used: set[str] = set()
        for name, model in self._script.models.items():
            inner = {self._script.callee(call) for call in _calls_in(model)}
            used |= inner - {name}
        for call in self._script.calls:
            if self._script.callee(call) in CONTAINERS:
                used |= {self._script.callee(inner) for inner in _calls_in(call)}
        own = [name for name in self._script.models if name not in used]
        called = [self._script.callee(call) for call in self._script.calls]
        return sorted(own, key=lambda name: called.index(name) if name in called else len(called))

    def parts_of(self, model: str, prefix: str = "", depth: int = 0) -> Iterator[Part]:
        """The modules that this class assigns to its attributes, and what is in them, in order."""
        if depth > DEEPEST:
            return
        for attribute, call in _assigned(self._script.models[model]):
            yield from self.parts(call, f"{prefix}{attribute}", depth)

    def parts(self, call: ast.Call, name: str, depth: int = 0, stack: str = "") -> Iterator[Part]:
        """What this call makes, called `name`, and what is in it; of containers those that are blocks.

        name: "" of the model itself.
        """
        callee = self._script.callee(call)
        inside = f"{name}." if name else ""
        if callee in CONTAINERS:
            if stack:
                yield Part(name, callee, call.lineno, stack=stack)
            for index, element, repeated in _elements(call):
                of = (name or ".") if repeated else ""
                yield from self.parts(element, f"{inside}{index}", depth + 1, of)
            return
        if name and callee.rpartition(".")[2][:1].isupper():
            yield Part(name, callee, call.lineno, _features(callee, call), stack)
        if callee in self._script.models:
            yield from self.parts_of(callee, inside, depth + 1)


def chosen(parts: Sequence[Part]) -> list[Part]:
    """Up to `MOST` parts, spread over the depth: the blocks of the longest stack, or linear layers."""
    stacks: dict[str, list[Part]] = {}
    for part in parts:
        if part.stack and _is_block(part, parts):
            stacks.setdefault(part.stack, []).append(part)
    if stacks:
        return spread(max(stacks.values(), key=len))
    return spread([part for part in parts if _is_wide_linear(part)])


def spread(parts: list[Part]) -> list[Part]:
    """At most `MOST`, evenly, first and last only where there is nothing between them."""
    if len(parts) <= MOST:
        return parts
    return [parts[(index + 1) * len(parts) // (MOST + 1)] for index in range(MOST)]


def _is_block(part: Part, parts: Sequence[Part]) -> bool:
    """It has parts of its own: the script shows them, or its class is no layer of torch's."""
    inner = any(other.name.startswith(f"{part.name}.") for other in parts)
    return inner or "Transformer" in part.kind or not part.kind.startswith("torch.nn.")


def _is_wide_linear(part: Part) -> bool:
    wide = part.features is None or part.features >= MIN_FEATURES
    return part.kind == "torch.nn.Linear" and wide


def _features(callee: str, call: ast.Call) -> int | None:
    if callee != "torch.nn.Linear":
        return None
    given = keyword_of(call, "out_features") or (call.args[1] if len(call.args) > 1 else None)
    return number_of(given)


def _assigned(model: ast.ClassDef) -> Iterator[tuple[str, ast.Call]]:
    """`self.NAME = CALL(...)` where the class is built."""
    for function in model.body:
        if not isinstance(function, ast.FunctionDef) or function.name not in BUILDERS:
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Attribute) and _is_self(target.value):
                        yield target.attr, node.value


def _elements(container: ast.Call) -> Iterator[tuple[int, ast.Call, bool]]:
    """(index, call that makes it, whether several are made alike) of a Sequential or ModuleList."""
    found = list(_made(container))
    alike = len(found) > 1 and len({ast.dump(element.func) for _, element, _ in found}) == 1
    for index, element, repeated in found:
        yield index, element, repeated or alike


def _made(container: ast.Call) -> Iterator[tuple[int, ast.Call, bool]]:
    """(index, call, whether it stands in a comprehension), as far as the script spells them."""
    index = 0
    for argument in container.args:
        if isinstance(argument, ast.Starred) and not isinstance(argument.value, _SPELLED):
            return  # of unknown length
        for element, count in _inside(argument):
            for _ in range(count or 1):
                if isinstance(element, ast.Call):
                    yield index, element, count is not None
                index += 1


def _inside(argument: ast.expr) -> Iterator[tuple[ast.expr, int | None]]:
    """The expressions that one argument stands for, each with how often it is made (None: once).

    A comprehension over a number of blocks that is not a literal stands for its first block.
    """
    if isinstance(argument, ast.Starred):
        argument = argument.value
    if isinstance(argument, ast.List | ast.Tuple):
        for element in argument.elts:
            yield from _inside(element)
    elif isinstance(argument, ast.ListComp | ast.GeneratorExp):
        yield argument.elt, _times(argument.generators[0].iter)
    else:
        yield argument, None


def _times(over: ast.expr) -> int:
    """N of `range(N)`; 1 where it is anything else."""
    if isinstance(over, ast.Call) and len(over.args) == 1:
        return max(1, min(number_of(over.args[0]) or 1, MOST_BLOCKS))
    return 1


def _calls_in(node: ast.AST) -> Iterator[ast.Call]:
    return (inner for inner in ast.walk(node) if isinstance(inner, ast.Call))


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
