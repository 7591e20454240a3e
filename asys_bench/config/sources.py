"""Finding configuration files, and following `extends`."""

from __future__ import annotations

import os
from pathlib import Path

from asys_bench.config.document import read_document
from asys_bench.config.node import Node, merge
from asys_bench.config.problems import ConfigError, Origin, Problem, did_you_mean

DATA = Path(__file__).parent.parent / "_data"
"""What comes with the package: `configs`, `suites`, `conformance` (in a checkout: links to those folders)."""
SHIPPED = DATA / "configs"
MAX_FILES = 64


def shipped_names() -> list[str]:
    """Names of the shipped configurations, as `--config` takes them."""
    found = (path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*.yaml"))
    return sorted(name for name in found if name != "benchmark.yaml")  # that one is a bench's


def find_config(name: str | os.PathLike[str], folder: Path | None = None) -> Path | None:
    """`find_file` among the shipped configurations, which a bare word names too: `demo`, `smollm2`."""
    found, word = find_file(name, SHIPPED, folder), os.fspath(name)
    if word.isidentifier() and (found is None or found.is_dir()):
        named = [path for path in shipped_names() if Path(path).stem == word]
        return SHIPPED / named[0] if len(named) == 1 else found
    return found


def find_file(
    name: str | os.PathLike[str], shipped: Path, folder: Path | None = None
) -> Path | None:
    """The file `name`, relative to `folder` (default: the working directory), or one of `shipped`.

    The name of the folder `shipped` is dropped from the front of shipped ones, so that a command written
    for a checkout works anywhere.
    """
    path = Path(name)
    local = path if folder is None else folder / path
    if _exists(local):
        return local
    if path.is_absolute() or ".." in path.parts:
        return None
    parts = path.parts[1:] if path.parts[:1] == (shipped.name,) else path.parts
    found = shipped.joinpath(*parts)
    return found if parts and _exists(found) else None


def read_layers(name: str | os.PathLike[str]) -> tuple[Node, list[Path]]:
    """The file with everything it extends merged under it, and the files read, base first.

    Raises:
        ConfigError: see `read_document`; a missing file; a cycle.
    """
    found = find_config(name)
    if found is None:
        raise ConfigError([_missing(Origin(str(name)), str(name))])
    files: list[Path] = []
    return _read(found, [], files), files


def _read(path: Path, chain: list[Path], files: list[Path]) -> Node:
    shown = _shown(path)
    tree = read_document(path, shown)
    chain = [*chain, path.resolve()]
    extends = tree.content.pop("extends", None)
    base: Node | None = None
    for entry in _entries(extends):
        name, origin = entry.content, entry.origin
        parent = find_config(name, path.parent)
        if parent is None:
            raise ConfigError([_missing(origin, name, "extends")])
        if parent.resolve() in chain:
            loop = [*chain[chain.index(parent.resolve()) :], parent.resolve()]
            message = f"extends itself: {' -> '.join(_shown(file) for file in loop)}"
            raise ConfigError([Problem.at(origin, message, path="extends", fix="break the cycle")])
        if len(files) >= MAX_FILES:
            raise ConfigError([Problem.at(origin, f"extends more than {MAX_FILES} files")])
        layer = _read(parent, chain, files)
        base = layer if base is None else merge(base, layer)
    if path not in files:
        files.append(path)
    return tree if base is None else merge(base, tree)


def _entries(extends: Node | None) -> list[Node]:
    if extends is None:
        return []
    entries = extends.content if isinstance(extends.content, list) else [extends]
    for entry in entries:
        if not isinstance(entry.content, str) or not entry.content:
            raise ConfigError(
                [
                    Problem.at(
                        entry.origin,
                        "must be a file name or a list of them",
                        path="extends",
                        value=entry.to_data(),
                        fix="write `extends: base.yaml`",
                    )
                ]
            )
    return list(entries)


def _missing(origin: Origin, name: str, path: str = "") -> Problem:
    names = shipped_names()
    return Problem.at(
        origin,
        f"no such file{'' if not path else f' {name!r}'}, here or among the shipped configurations",
        path=path,
        fix=did_you_mean(name.removeprefix("configs/"), names) or "use one of the shipped ones",
        valid=names,
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _shown(path: Path) -> str:
    """As short as it still leads there from the working directory."""
    resolved = path.resolve()
    try:
        return resolved.relative_to(Path.cwd()).as_posix()
    except (ValueError, OSError):
        return str(path if not path.is_relative_to(SHIPPED) else resolved)
