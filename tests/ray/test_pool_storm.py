"""Receivers of a pool come back wherever Ray puts them, hosts do not notice, and every packet counts.

`make test-ray` strikes once in each way; `make soak` (ASYS_SOAK=1) 20 actors, 20 raylets and 5 control stores
(ASYS_STORM="20 20 5").
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOAK = os.environ.get("ASYS_SOAK") == "1"
LONG = os.environ.get("ASYS_STORM", "20 20 5")


def storm(folder: Path, blows: str, within_s: float) -> dict[str, Any]:
    command = [sys.executable, "-P", str(Path(__file__).with_name("pool_storm.py"))]
    done = subprocess.run(
        [*command, *blows.split(), str(folder)],
        capture_output=True, text=True, timeout=within_s, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def check(end: dict[str, Any]) -> None:
    assert end["host_exit"] == 143, "SIGTERM, in order"
    assert end["final"] == [True, True]
    assert end["taken"] == end["acked"] + sum(end["dropped"].values())
    assert end["in_flight"] == 0
    assert end["accepted"] == end["acked"]
    assert end["archived_twice"] == 0
    assert end["archived_of_nobody"] == 0
    assert end["archived"] == end["accepted"] - end["in_doubt"]
    assert end["sae_resumed"]
    assert end["entries_left"] == 0


@pytest.mark.timeout(600)
@pytest.mark.skipif(SOAK, reason="make soak strikes more often")
def test_actor_raylet_and_store_are_killed_once_each(tmp_path):
    check(storm(tmp_path, "1 1 1", 580))


@pytest.mark.timeout(3 * 3600)
@pytest.mark.soak("an hour")
def test_actors_raylets_and_stores_are_killed_again_and_again(tmp_path):
    check(storm(tmp_path, LONG, 3 * 3600 - 60))
