"""`@pytest.mark.soak(HOW_LONG)`: a test, or one case of it, that `make soak` alone runs."""

from __future__ import annotations

import os

import pytest

SOAK = os.environ.get("ASYS_SOAK") == "1"


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("soak")
        if mark is not None:
            item.add_marker(pytest.mark.stress)
            if not SOAK:
                item.add_marker(pytest.mark.skip(reason=f"{mark.args[0]}: make soak"))
