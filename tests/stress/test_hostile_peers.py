"""Hostile peers of a receiver: typed refusals, bounded memory, no crash, and the honest peer is served."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .hostile_peers import MEMORY_MIB, End, attack

SOAK = os.environ.get("ASYS_SOAK") == "1"
REASONS = {
    "protocol", "job", "key", "names", "hooks", "busy", "overlap", "malformed", "too_large", "replay",
    "stale", "credit", "full", "memory",
}  # fmt: skip


def check(end: End) -> None:
    print(end)
    assert end.exit_code == 143
    assert end.refused.keys() <= REASONS
    assert sum(end.refused.values()) > 0
    assert end.accepted >= 20
    # Twice, and what comes between two looks.
    assert end.most_own_mib - end.first_own_mib < 4 * MEMORY_MIB


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.skipif(SOAK, reason="make soak attacks for longer")
def test_hostile_peers_are_refused_by_name_and_cost_bounded_memory(tmp_path: Path) -> None:
    check(attack(tmp_path, 3.0, keyed=True))


@pytest.mark.timeout(900)
@pytest.mark.soak("two minutes")
@pytest.mark.parametrize("keyed", [False, True], ids=["no keys", "keys"])
def test_hostile_peers_for_a_minute(tmp_path: Path, keyed: bool) -> None:
    check(attack(tmp_path, float(os.environ.get("ASYS_HOSTILE_S", "60")), keyed=keyed))
