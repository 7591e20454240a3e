"""A-Sys-I: a telescope for the inside of running PyTorch models.

`observe(model)` in a training loop of your own; `open_run(path)` and `subscribe(run)` to read what it
sees. The rest of the package is the framework behind them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asys_bench.run.observation import Observation as Observation
    from asys_bench.run.observation import observe as observe
    from asys_bench.rundir.open_run import Run as Run
    from asys_bench.rundir.open_run import open_run as open_run
    from asys_bench.rundir.subscribe import subscribe as subscribe

__version__ = "0.1.0"
_WHERE = {
    "Observation": "asys_bench.run.observation",
    "observe": "asys_bench.run.observation",
    "Run": "asys_bench.rundir.open_run",
    "open_run": "asys_bench.rundir.open_run",
    "subscribe": "asys_bench.rundir.subscribe",
}
"""Imported when first used: `import asys_bench` does not wait for torch."""


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
