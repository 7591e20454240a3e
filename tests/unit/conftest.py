"""What a process sets for itself must not reach the next test."""

import sys

import pytest


@pytest.fixture(autouse=True)
def subnormals_count():
    """Trainers flush subnormal numbers to zero, for the whole process that they run in."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
