"""Where a result comes from: commit, and hashes of the plugins that were measured."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import asys_bench
from asys_bench.contracts.scenario import ScenarioPlugin

_SOURCES = (".py", ".so", ".cpp", ".hpp")


def commit() -> tuple[str | None, bool | None]:
    """(commit, uncommitted changes) of the checkout this package runs from; None outside one."""
    folder = Path(asys_bench.__file__).resolve().parent
    head = _git(folder, "rev-parse", "HEAD")
    if not head:
        return None, None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return head.strip(), None if status is None else bool(status.strip())


def build_hashes(plugin: object) -> dict[str, str]:
    """File name -> SHA-256 of the sources and compiled modules beside the plugin's module."""
    target = plugin.run if isinstance(plugin, ScenarioPlugin) else getattr(plugin, "build", None)
    module = sys.modules.get(getattr(target, "__module__", "") or "")
    path = getattr(module, "__file__", None)
    if path is None:
        return {}
    folder = Path(path).parent
    files = [Path(path)] if isinstance(plugin, ScenarioPlugin) else sorted(folder.iterdir())
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.suffix in _SOURCES and file.is_file()
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
