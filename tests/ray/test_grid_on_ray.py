"""`asys-run train --grid --ray`: the same SAEs as without Ray, and what is said where nodes cannot train."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from asys_bench.monitors.upload.uploader import Uploader
from asys_bench.store.objects import ObjectStore
from asys_bench.store.uri import parse_uri

SETS = ["sae.d_sae=24", "sae.buffer_rows=2048", "epochs=1"]
WEIGHTS = "latest/sae_weights.safetensors"
ROWS = int(os.environ.get("ASYS_GRID_ROWS", "3000"))
"""Of a hook of the archive of the first test, which prints how long both ways took."""


def train(archive: str | Path, out: Path, *more: str) -> list[str]:
    sets = [word for text in SETS for word in ("--set", text)]
    command = [sys.executable, "-P", "-m", "asys_bench.cli.run", "train", "--archive", str(archive)]
    return [*command, "--out", str(out), *sets, *more]


def run(words: list[str], **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=500, check=False, **more)


def results(out: Path) -> list[dict]:
    return json.loads((out / "grid.json").read_text())["results"]


def weights(out: Path) -> dict[str, bytes]:
    return {one["folder"]: (out / one["folder"] / WEIGHTS).read_bytes() for one in results(out)}


def test_six_saes_over_two_nodes_are_bit_for_bit_those_of_one_process(
    two_nodes, make_run, tmp_path
):
    archive = make_run(rows=ROWS, hooks=(1, 3))
    grid = ["--grid", "sae.k=2,3,4", "--set", "sae.threads=1"]
    began = time.monotonic()
    alone = run(train(archive, tmp_path / "alone", *grid))
    alone_s = time.monotonic() - began
    assert alone.returncode == 0, alone.stdout + alone.stderr
    ours = run(train(archive, tmp_path / "ray", *grid, "--ray", two_nodes.address))
    ours_s = time.monotonic() - began - alone_s
    assert ours.returncode == 0, ours.stdout + ours.stderr
    print(f"{ROWS} rows a hook: {alone_s:.1f} s alone, {ours_s:.1f} s on two nodes of one CPU each")
    assert len(weights(tmp_path / "ray")) == 6
    assert weights(tmp_path / "ray") == weights(tmp_path / "alone")
    told = [[one[name] for name in ("folder", "fvu", "l0", "steps", "best", "front")]
            for out in ("ray", "alone") for one in results(tmp_path / out)]  # fmt: skip
    assert told[:6] == told[6:]
    rows = list(csv.DictReader((tmp_path / "ray" / "grid.csv").read_text().splitlines()))
    assert [row["sae.k"] for row in rows] == ["2", "2", "3", "3", "4", "4"]
    again = run(train(archive, tmp_path / "ray", *grid, "--ray", two_nodes.address))
    assert again.returncode == 0
    assert "6 of 6 SAEs are done" in again.stdout
    assert not [path.name for path in (tmp_path / "ray").iterdir() if path.name.startswith(".")]


def test_a_copy_is_fetched_once_by_each_node_however_many_saes_read_it(
    s3, bucket, two_nodes, make_run, tmp_path
):
    archive = make_run(rows=3_000)
    (archive / "run.json").write_text(
        json.dumps(
            {
                "schema": "asys.run/1",
                "run_id": "run",
                "hooks": [],
                "host_pid": 1,
                "started_unix_ns": 1,
            }
        )
    )
    uri, out = f"s3://{bucket.name}/run", tmp_path / "out"
    assert Uploader(archive, ObjectStore(parse_uri(uri))).send(final=True)
    s3.read.clear()
    read_once = train(uri, tmp_path / "alone", "--grid", "sae.k=2")
    assert run(read_once).returncode == 0
    once = Counter(path for path in s3.read if path.endswith(".arrows"))
    assert len(once) >= 1
    s3.read.clear()
    done = run(train(uri, out, "--grid", "sae.k=2,3,4,5,6", "--ray", two_nodes.address))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(weights(out)) == 5
    assert {one["threads"] for one in results(out)} == {1}
    read = Counter(path for path in s3.read if path.endswith(".arrows"))
    assert read.keys() == once.keys()
    # By the command and by each node that trained one: the second may come too late for any.
    assert all(number < read[path] <= 3 * number for path, number in once.items()), read


def test_a_grid_on_ray_that_is_stopped_writes_checkpoints_and_goes_on(
    two_nodes, make_run, tmp_path
):
    archive, out = make_run(rows=20_000), tmp_path / "out"
    grid = ["--grid", "sae.k=2,3,4", "--set", "sae.threads=1", "--set", "epochs=6"]
    started = subprocess.Popen(
        train(archive, out, *grid, "--ray", two_nodes.address),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until = time.monotonic() + 240
    while not list(out.glob("k-*")) and time.monotonic() < until and started.poll() is None:
        time.sleep(0.1)
    time.sleep(1.0)
    os.kill(started.pid, signal.SIGINT)
    said, _ = started.communicate(timeout=240)
    assert started.returncode == 130, said
    assert "the same command goes on from here" in said
    done = run(train(archive, out, *grid, "--ray", two_nodes.address))
    assert done.returncode == 0, done.stdout
    alone = run(train(archive, tmp_path / "alone", *grid))
    assert alone.returncode == 0, alone.stdout
    assert weights(out) == weights(tmp_path / "alone")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001"])
def test_where_there_is_no_cluster_it_is_said_what_to_do(make_run, tmp_path, address):
    done = run(train(make_run(rows=200), tmp_path / "out", "--grid", "sae.k=2", "--ray", address))
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"--ray {address}" in done.stdout
    assert "node of" in done.stdout
