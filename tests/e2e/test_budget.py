"""Runs that fill three times their budget, watched from outside while they go on."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import asys_bench
from asys_bench.contracts.run_files import ARCHIVE_DIR, attempts_in
from asys_bench.rundir.verify import verify_run
from asys_bench.sinks.archive.deletions import Deleted, read_deletions
from asys_bench.sinks.archive.layout import ShardName
from asys_bench.sinks.archive.pins import pin, stored_shards

MIB = 1 << 20
BUDGET_MIB, WIDTH, ROWS = 2, 256, 32
STEPS = 100
"""Of one attempt, two hooks and 32 KiB a hook and step: 6.25 MiB, 3 x the budget and more."""


class Watch:
    """What lay on the disk, sampled: closed shards that were there together, and all bytes."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self.most_closed = self.most_open = self.samples = 0

    def _sizes(self) -> tuple[dict[Path, int], dict[Path, int]]:
        """Closed and open shards with their bytes."""
        closed: dict[Path, int] = {}
        open_: dict[Path, int] = {}
        for path in self._runs.glob("*/archive/*/*"):
            if ".arrows" not in path.name:
                continue
            try:
                size = path.stat().st_size
                try:
                    closed[path] = size + path.with_suffix(".json").stat().st_size
                except FileNotFoundError:
                    open_[path] = size
            except FileNotFoundError:
                continue
        return closed, open_

    def sample(self) -> None:
        closed, open_ = self._sizes()
        still = self._sizes()
        together = {path: size for path, size in closed.items() if path in still[0]}
        self.most_closed = max(self.most_closed, sum(together.values()))
        waiting = {path: size for path, size in open_.items() if path in still[1]}
        self.most_open = max(self.most_open, sum(waiting.values()))
        self.samples += 1

    @contextmanager
    def going_on(self) -> Iterator[None]:
        over = threading.Event()

        def work() -> None:
            while not over.wait(0.002):
                self.sample()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def train(runs: Path, workers: int, steps: int) -> Path:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, WIDTH), torch.nn.Linear(WIDTH, WIDTH))
    with asys_bench.observe(
        model,
        hooks=["0", "1"],
        sae=False,
        run={"dir": str(runs), "id": "it", "resume": "auto", "drain_timeout_s": 60},
        bus={"on_full": "block", "block_timeout_s": 50},
        sinks={"archive": {"workers": workers, "options": {"max_gib": BUDGET_MIB / 1024}}},
    ) as observation:
        for _ in range(steps):
            model(torch.randn(ROWS, 8))
            time.sleep(0.001)
    return Path(observation.run_dir).resolve()


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.timeout(900)
def test_runs_that_fill_three_times_their_budget_stay_within_it(tmp_path):
    for number in range(10 if os.environ.get("ASYS_SOAK") == "1" else 2):
        runs = tmp_path / f"runs-{number}"
        runs.mkdir()
        watch = Watch(runs)
        pinned: set[str] = set()
        for attempt in (0, 1):
            # Fewer or more workers than before: their shards count all the same.
            workers = 1 + (number + attempt) % 2
            with watch.going_on():
                run = train(runs, workers, STEPS)
            if attempt == 0:
                oldest = stored_shards(run)[0].name
                pinned = {one.name for one in pin(run, [oldest])}
                assert len(pinned) == 1
        assert watch.samples > 50
        assert watch.most_closed <= BUDGET_MIB * MIB
        # A quarter for open shards; each may be a lease over, and of a killed worker's there are none.
        assert watch.most_open <= BUDGET_MIB * MIB * 3 / 4
        check(run, pinned)


def check(run: Path, pinned: set[str]) -> None:
    deletions = list(read_deletions(run).values())
    shards = stored_shards(run)
    assert pinned <= {one.name for one in shards}
    assert not pinned & {one.shard for one in deletions}

    # Counts: what was written is there or on record, and run.json says the same.
    attempts = attempts_in(run)
    written = sum(
        group["delivered"]
        for one in attempts
        for group in one["account"]["groups"]
        if group["group"] == "archive"
    )
    assert written == 2 * 2 * STEPS
    gone = Deleted.of(deletions)
    assert gone.packets + sum(one.sidecar.packets for one in shards if one.sidecar) == written
    assert gone.rows == gone.packets * ROWS
    assert gone.bytes > 2 * BUDGET_MIB * MIB
    for one in attempts:
        of = Deleted.by_reason(d for d in deletions if d.attempt == one["attempt"])
        assert one["archive_deleted"] == {
            reason: {"shards": d.shards, "rows": d.rows, "packets": d.packets, "bytes": d.bytes}
            for reason, d in of.items()
        }
        assert set(of) == {"budget"}

    # The oldest first: of each worker's stream what is left is its end, and earlier attempts went first.
    left = {one.name for one in shards} - pinned
    for series in {re.sub(r"-\d+\.arrows$", "", name) for name in left}:
        mine = [n for n in left if n.startswith(series + "-")]
        lost = [d.shard for d in deletions if d.shard.startswith(series + "-")]
        assert max(map(_number, lost), default=-1) < min(map(_number, mine))
    if any(_name(name).attempt == 0 for name in left):
        assert all(_name(one.shard).attempt == 0 for one in deletions)
    assert not verify_run(run).damaged
    assert (run / ARCHIVE_DIR / next(iter(pinned))).exists()


def _name(shard: str) -> ShardName:
    name = ShardName.parse(shard.rpartition("/")[2])
    assert name is not None
    return name


def _number(shard: str) -> int:
    return _name(shard).number
