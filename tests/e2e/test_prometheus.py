"""A real Prometheus reads a real run: every metric arrives, and an alert fires and resolves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("prometheus_client")

from asys_bench.contracts.stats import SlotField, WorkerState
from asys_bench.monitors.prometheus_metrics import all_metrics
from tests.e2e.ports import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_S = 180.0
ELSEWHERE = (
    *("asys_device_", "asys_sae_watch_", "asys_sae_unpaired_"),
    *("asys_remote_", "asys_receiver_", "asys_storage_", "asys_archive_deleted_"),
    *("asys_alarm", "asys_sampling_raised", "asys_probe_", "asys_labels_", "asys_reservoir_"),
    *("asys_feature_index_", "asys_tracker_"),
    *(
        "asys_sae_ce_recovered_",
        "asys_sae_return_recovered_",
        "asys_sae_kl_",
        "asys_sae_outlier_norm",
    ),
)
"""Only with a device, a watched SAE, a transcoder; with SAEs on another machine, a store, an archive at its
limit; with alarms, probes, labels, reservoirs, an index of features; with evaluations, and rows that are
outliers."""
LATE = {
    "asys_sae_feature_survival_ratio",
    "asys_sae_input_drift_ratio",
    "asys_sae_mixing_autocorrelation_ratio",
    "asys_sae_row_age_versions",
    "asys_sae_window_fvu_ratio",
}
"""Known after a whole window of rows."""


class Prometheus:
    """A server of our own over one run, for as long as the test lasts."""

    def __init__(self, folder: Path, targets: Path) -> None:
        port = free_port()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ROOT / "docker/prometheus/alerts.yml")],
            "scrape_configs": [
                {
                    "job_name": "asys",
                    "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{port}"
        with open(folder / "prometheus.log", "wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )

    def get(self, path: str, **query: str) -> Any:
        url = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as reply:
            return json.load(reply)["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/api/v1/query", query=expr)["result"]
        return found

    def firing(self, name: str) -> list[dict[str, Any]]:
        alerts = self.get("/api/v1/alerts")["alerts"]
        return [a for a in alerts if a["labels"]["alertname"] == name and a["state"] == "firing"]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError:  # it is not up yet
            pass
        time.sleep(0.3)
    pytest.fail(f"{what} did not happen in {PATIENCE_S:g} s")


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[Path], Prometheus]]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (apt-get install prometheus)")
    made: list[Prometheus] = []

    def start(targets: Path) -> Prometheus:
        folder = tmp_path / "prometheus"
        folder.mkdir()
        made.append(Prometheus(folder, targets))
        return made[-1]

    yield start
    for server in made:
        server.end()


@pytest.mark.rest
@pytest.mark.timeout(600)
def test_prometheus_reads_every_metric_and_an_alert_fires_and_resolves(
    start_run: Callable[..., Any], prometheus: Callable[[Path], Prometheus]
) -> None:
    run = start_run(
        "monitors.prometheus.kind=prometheus",
        "monitors.prometheus.options.port=0",
        "host.options.ppo.total_timesteps=10000000",
        "watchdog.heartbeat_timeout_s=15",
        "watchdog.startup_timeout_s=180",
    )
    run.wait_rows(2000)
    targets = run.path / "prometheus.json"
    run.wait_for(targets.exists, "the exporter's address")
    server = prometheus(targets)
    until(lambda: bool(server.query("asys_sae_fvu_ratio")), "the first metrics")
    (told,) = server.query("asys_run_info")
    assert told["metric"]["run_id"] == run.path.name

    wanted = {
        name
        for spec in all_metrics()
        for name in spec.series
        if not name.startswith(ELSEWHERE) and name not in LATE
    }

    def missing() -> set[str]:
        found = server.get("/api/v1/label/__name__/values")
        return wanted - set(found)

    try:
        until(lambda: not missing(), "every metric")
    finally:
        assert not missing()
    assert missing() == set()
    steps = float(server.query("asys_host_steps_total")[0]["value"][1])
    assert 0 < steps <= run.metric("host", "host_steps")

    trainer = run.pid("trainer-0")
    os.kill(trainer, signal.SIGSTOP)
    until(lambda: bool(server.firing("AsysWorkerSilent")), "the alert")
    (alert,) = server.firing("AsysWorkerSilent")
    assert alert["labels"]["worker"] == "trainer-0"
    run.wait_for(
        lambda: (
            run.slot("trainer-0").state is WorkerState.READY
            and run.slot("trainer-0").get(SlotField.PID) != trainer
        ),
        "the restart",
    )
    until(lambda: not server.firing("AsysWorkerSilent"), "the alert's end")
    until(
        lambda: (
            server.query('asys_worker_restarts_total{worker="trainer-0"}')[0]["value"][1] == "1"
        ),
        "the restart's count",
    )
    run.process.send_signal(signal.SIGINT)
    run.finish()
    assert not targets.exists()
