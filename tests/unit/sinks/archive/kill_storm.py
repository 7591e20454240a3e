"""Archive writers killed by SIGKILL at random moments: creating, writing, rotating, repairing.

`python kill_storm.py CONFTEST FOLDER KILLS SEED VALUES` prints what was found as JSON. Two members of one
group take turns at random, so that what a dead one had not acknowledged is archived again by the other. After
every kill each open shard is read as it lies there; after `PER_RUN` kills the run is ended and checked as
a whole.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from asys_bench.rundir.verify import State, verify_run
from asys_bench.sinks.archive import ArchiveError, open_archive, read_shard, verify_archive

PER_RUN, LEASE, ROWS, WIDTH = 50, 8, 64, 256
OPEN_BATCH_ROWS = LEASE * ROWS
SHARD_MIB = 2
LEASES_PER_SHARD = 2 * (SHARD_MIB << 20) // (LEASE * ROWS * WIDTH * 4)
"""Of two hooks, in turns."""
HOOKS = ("policy.mlp", "value/net:0")
Rig: Any = runpy.run_path(sys.argv[1])["Rig"]


def write(run_dir: Path, name: str, incarnation: int, seq: int, out: int) -> None:
    """Consume lease after lease from packet `seq` on, and say how far it is acknowledged."""
    rig = Rig(run_dir)
    worker = rig.start(
        incarnation, name, shard_rotate_mib=SHARD_MIB, fsync="never", values=sys.argv[5]
    )
    os.write(out, b"-1\n")
    ones_ND = torch.ones(ROWS, WIDTH)
    while True:
        packets = (rig.packet(ones_ND * s, s, 1 + s % 2) for s in range(seq, seq + LEASE))
        rig.feed(worker, *packets)
        seq += LEASE
        os.write(out, b"%d\n" % seq)


def kill_one(run_dir: Path, name: str, incarnation: int, seq: int, draw: random.Random) -> int:
    """Returns the packets that are acknowledged afterwards.

    The moment is so many leases after the start, and some time: on a machine that is busy elsewhere time
    alone would always kill before the first lease.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            write(run_dir, name, incarnation, seq, writer)
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader) as lines:
        if draw.random() < 0.6:
            assert lines.readline() == "-1\n", "the writer failed"
            for _ in range(draw.randrange(3 * LEASES_PER_SHARD)):
                seq = int(lines.readline())
        time.sleep(draw.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        said = [int(line) for line in lines.read().splitlines(keepends=True) if line.endswith("\n")]
        return max([seq, *said])


def look(run_dir: Path, found: Counter[str]) -> None:
    """Every shard that was not closed opens up to its tear; at most the open batch is missing."""
    torn = Counter[str]()
    for path in (run_dir / "archive").glob("*/[!.]*.arrows"):
        if path.with_suffix(".json").exists():
            continue
        batches, report = read_shard(path)
        rows = sum(batch.num_rows for batch in batches)
        assert rows == report.rows > 0, path
        if report.torn_bytes:
            torn[path.name.rsplit("-", 2)[0]] += 1
            assert (report.torn_rows or 0) <= OPEN_BATCH_ROWS // len(HOOKS), path
            found["torn rows"] += report.torn_rows or 0
            found["torn bytes"] += report.torn_bytes
    assert set(torn.values()) <= {1}, (
        "a killed writer was in one batch, which its successor repairs"
    )
    found["torn files seen"] += sum(torn.values())


def end(run_dir: Path, acknowledged: int, found: Counter[str]) -> None:
    """Close the run as its next incarnation would, and compare it with what was acknowledged."""
    for name in ("archiver-0", "archiver-1"):
        rig = Rig(run_dir)
        rig.start(1000, name).close()
        rig.page.close()
    reports = verify_archive(run_dir)
    assert all(report.ok and report.closed for report in reports)
    done = verify_run(run_dir)
    shards = [one for one in done.findings if one.kind == "shard"]
    assert {one.state for one in shards} <= {State.OK, State.LEFTOVER}
    found["shards"] += len(reports)
    found["rows twice"] += done.to_plain()["archive_rows_twice"]
    archive = open_archive(run_dir)
    for parity, hook in enumerate(HOOKS if acknowledged else ()):
        table = pa.Table.from_batches(archive.batches(hook))
        seq, row = table["seq"].to_numpy(), table["row"].to_numpy()
        keys = set(zip(seq.tolist(), row.tolist(), strict=True))
        assert len(keys) == len(seq), "a duplicate was not removed by its key"
        wanted = {(s, r) for s in range(parity, acknowledged, 2) for r in range(ROWS)}
        assert wanted <= keys, "an acknowledged row is missing"
        found["rows"] += len(keys)
        found["rows beyond the acknowledged"] += len(keys - wanted)
        values = table["values"].combine_chunks().values.to_numpy()[::WIDTH]
        assert (values == seq).all(), "a row holds another one's values"


def warm_up(run_dir: Path) -> None:
    """What is imported at the first batch is imported here, once, and not in every child."""
    run_dir.mkdir()
    rig = Rig(run_dir)
    worker = rig.start()
    rig.feed(worker, rig.packet(torch.ones(ROWS, WIDTH), 0))
    worker.close()
    rig.page.close()
    shutil.rmtree(run_dir)


def main(folder: Path, kills: int, seed: int) -> dict[str, int]:
    draw, found = random.Random(seed), Counter({"kills": kills})
    warm_up(folder / "warm")
    for first in range(0, kills, PER_RUN):
        run_dir = folder / f"run-{first}"
        run_dir.mkdir()
        acknowledged, incarnations = 0, Counter[str]()
        for _ in range(min(PER_RUN, kills - first)):
            name = draw.choice(("archiver-0", "archiver-1"))
            acknowledged = kill_one(run_dir, name, incarnations[name], acknowledged, draw)
            incarnations[name] += 1
            look(run_dir, found)
        found["acknowledged packets"] += acknowledged
        end(run_dir, acknowledged, found)
        shutil.rmtree(run_dir)
    return dict(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        print(json.dumps(main(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
    except ArchiveError as error:
        raise SystemExit(f"a file did not open: {error}") from error
