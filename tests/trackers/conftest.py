"""Real runs, as tests/e2e starts them."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

start_run = runpy.run_path(str(Path(__file__).parents[1] / "e2e" / "conftest.py"))["start_run"]


@pytest.fixture
def needs() -> Callable[[str], None]:
    """A tracker's package, or a skip that says where it comes from."""

    def skip(service: str) -> None:
        if find_spec(service) is None:
            pytest.skip(f"{service} is not installed (make test-trackers)")

    return skip
