"""A Ray cluster of two nodes on this machine, with nothing left of it afterwards.

Ray prints, warns and replaces signal handlers, so it lives in processes of its own: the tests start its
nodes as `ray start` does and give their address to our commands.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from .nodes import TwoNodes

collect_ignore_glob = [] if find_spec("ray") is not None else ["test_*.py"]
_UNIT = Path(__file__).parents[1] / "unit"
_UPLOAD = runpy.run_path(str(_UNIT / "monitors" / "upload" / "conftest.py"))
s3_server, s3, bucket = _UPLOAD["s3_server"], _UPLOAD["s3"], _UPLOAD["bucket"]


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[TwoNodes]:
    nodes = TwoNodes(tmp_path / "ray")
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture
def make_run(tmp_path: Path):
    write_run = runpy.run_path(str(_UNIT / "offline" / "conftest.py"))["write_run"]
    return lambda name="run", **more: write_run(tmp_path / name, **more)


def pytest_report_header() -> str:
    return f"ray: {'installed' if find_spec('ray') else 'not installed: make test-ray'} ({sys.executable})"
