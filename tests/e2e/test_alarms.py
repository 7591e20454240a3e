"""An alarm from end to end: a host whose rows change, its flag, its event, its webhook and its recorder."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import asys_bench
from asys_bench.sae import SAEConfig, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sinks.archive import open_archive
from asys_bench.sinks.archive.pins import stored_shards

WIDTH = 8
PATIENCE_S = 240.0


@pytest.fixture
def received():
    """(url of a webhook, the documents that it got)"""
    got: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", got
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.rest
def test_a_host_reads_the_alarm_and_everything_around_it_is_kept(tmp_path, received):
    url, got = received
    torch.manual_seed(0)
    known = tmp_path / "known"
    known.mkdir()
    save_sae(known, build_sae(SAEConfig(d_sae=32, k=4), WIDTH), InputScaling.identity(WIDTH), {})
    model = torch.nn.Sequential(torch.nn.Identity())
    alarm = {
        "watch": [{"sae": str(known), "features": [0, 1]}],
        "interval_s": 0.02, "false_alarms_per_day": 2000, "webhook": url, "before_s": 1, "after_s": 1.5,
    }  # fmt: skip
    config = {
        "run": {"dir": str(tmp_path / "runs")},
        "sinks": {
            "alarm": {"kind": "alarm", "options": alarm},
            "archive": {"options": {"max_gib": 0.004, "shard_rotate_mib": 0.05, "min_packets": 1}},
            "trainer": None,
        },
    }  # fmt: skip
    hook = {"match": ["0"], "sampling": {"max_rate": 0.5}}
    rates, shift = [], torch.zeros(WIDTH)
    with asys_bench.observe(model, config, hooks=[hook], quiet=True) as observation:
        assert not observation.alarms
        assert observation.alarms.count == 0

        def step(at):
            model(torch.randn(16, WIDTH) + shift)
            observation.step()
            rate = observation.page.slot("host").metrics()["hook_sampling_rate{hook=0}"].value
            rates.append((time.monotonic_ns(), rate))
            time.sleep(0.002)

        began = time.monotonic()
        metrics = observation.page.slot("alarm-0").metrics
        while metrics().get("alarm_intervals") is None or metrics()["alarm_intervals"].value < 300:
            step(0)
            assert time.monotonic() < began + PATIENCE_S
        before = observation.alarms.count
        shift = 6 * torch.randn(WIDTH)
        changed_ns = time.monotonic_ns()
        while observation.alarms.count == before:
            step(1)
            assert time.monotonic_ns() < changed_ns + PATIENCE_S * 1e9
        raised_ns = time.monotonic_ns()
        alarms = list(observation.alarms)
        steps_then = observation.steps
        host = observation.page.slot("host").metrics
        while host()["sampling_is_raised"].value == 0.0:
            step(2)
        while host()["sampling_is_raised"].value == 1.0:
            step(2)
            assert time.monotonic_ns() < raised_ns + PATIENCE_S * 1e9
        restored_ns = time.monotonic_ns()
        for _ in range(300):
            step(3)
        times = host()["sampling_raised"].value
        run_dir = observation.run_dir
    assert observation.alarms.count >= 1  # as it was at the end
    assert any(one.watcher.startswith("0 ") and one.step <= steps_then for one in alarms)
    # The rate: as configured, the highest while the recorder ran, as configured.
    assert {rate for at, rate in rates if at < changed_ns} == {0.5}
    middle = [rate for at, rate in rates if raised_ns + 2e8 < at < restored_ns - 2e8]
    assert max(middle) == 1.0
    assert rates[-1][1] == 0.5
    assert times >= 1
    # What is said of it.
    events = [json.loads(line) for line in (run_dir / "monitor.log").read_text().splitlines()]
    named = [event["event"] for event in events]
    assert {"alarm", "sampling_raised", "sampling_restored"} <= set(named)
    kept = [
        json.loads(line) for line in (run_dir / "alarm" / "alarms.jsonl").read_text().splitlines()
    ]
    kept = [one for one in kept if one["schema"] == "asys.alarm/1"]
    raised = [
        {key: one[key] for key in one if key != "over_host_step"} for one in observation.run.alarms
    ]
    assert raised == kept
    assert [one["number"] for one in kept] == list(range(1, len(kept) + 1))
    assert [one["watcher"] for one in got] == [one["watcher"] for one in kept]
    assert not {"values", "rows", "activations"} & set(kept[0])
    # The recorder: the window is whole, though the budget deleted what was before it.
    pinned = {shard.name for shard in stored_shards(run_dir) if shard.pinned}
    assert pinned
    seqs, stamps = [], []
    for batch in open_archive(run_dir).batches("0"):
        seqs += batch.column("seq").to_pylist()
        stamps += batch.column("timestamp").cast("int64").to_pylist()
    first_alarm_ns = min(one["unix_ns"] for one in kept)
    window = sorted(
        {
            s
            for s, t in zip(seqs, stamps, strict=True)
            if t >= first_alarm_ns - 1e9 and t <= first_alarm_ns + 1.5e9
        }
    )
    assert window
    assert window == list(range(window[0], window[-1] + 1)), "no packet of the window is missing"
    assert min(stamps) <= first_alarm_ns - 0.9e9
