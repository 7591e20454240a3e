"""The exporter over a small run: what it serves, where it listens, and what it never does."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

prometheus_client = pytest.importorskip("prometheus_client")

from prometheus_client.openmetrics.parser import (  # noqa: E402
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

import asys_bench  # noqa: E402
from asys_bench.contracts.monitor import MonitorContext  # noqa: E402
from asys_bench.contracts.stats import (  # noqa: E402
    RunState,
    SlotField,
    StatsPage,
    WorkerState,
    bucket_of,
    bucket_upper,
)
from asys_bench.monitors.prometheus import PrometheusMonitor, PrometheusOptions, plugin  # noqa: E402
from asys_bench.monitors.prometheus_metrics import (  # noqa: E402
    DERIVED,
    LATENCY_EDGES,
    PAGE,
    Kind,
    all_metrics,
)

CONFIG = {"bus": {"capacity_packets": 1000}}


def context(run: Any, run_dir: Path) -> MonitorContext:
    return MonitorContext(run_dir, "a-run", run.page, run.account, CONFIG, "env step", False)


@pytest.fixture
def monitor(run: Any, tmp_path: Path) -> Iterator[PrometheusMonitor]:
    made = PrometheusMonitor(PrometheusOptions(port=0))
    made.open(context(run, tmp_path))
    yield made
    made.close()


def get(monitor: PrometheusMonitor, path: str, **headers: str) -> str:
    request = urllib.request.Request(f"http://{monitor.target}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        body: bytes = reply.read()
    return body.decode()


def refused(request: urllib.request.Request | str) -> tuple[int, str]:
    """Status and body of a request that must be refused."""
    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.urlopen(request, timeout=60)
    with found.value as reply:
        return reply.code, reply.read().decode()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labelled(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def test_a_scrape_says_what_the_page_says(run: Any, monitor: PrometheusMonitor) -> None:
    run.host_steps(100, latency_ns=20_000)
    run.train(fvu=0.125)
    run.dropped["full"] = 7
    run.set_worker("trainer-0", WorkerState.READY, restarts=2)
    found = samples(get(monitor, "/metrics"))
    hook, sae = labelled(hook="policy.net.0"), labelled(hook="policy.net.0", worker="trainer-0")
    assert found["asys_host_steps_total", ()] == 100
    assert found["asys_hook_captured_total", hook] == 100
    assert found["asys_hook_captured_bytes_total", hook] == 6400
    assert found["asys_hook_latency_seconds_count", hook] == 100
    assert found["asys_hook_latency_seconds_sum", hook] == pytest.approx(100 * 20e-6)
    assert found["asys_sae_fvu_ratio", sae] == 0.125
    assert found["asys_bus_offered_packets_total", ()] == 107
    assert found["asys_bus_dropped_packets_total", labelled(reason="full")] == 7
    assert found["asys_group_fill_ratio", labelled(group="train")] == 0.002
    assert found["asys_worker_restarts_total", labelled(worker="trainer-0")] == 2
    assert found["asys_worker_state", labelled(worker="trainer-0", state="ready")] == 1
    assert found["asys_worker_state", labelled(worker="trainer-0", state="failed")] == 0
    assert found["asys_host_figure", labelled(figure="reward_mean")] == 150.5
    assert found["asys_run_state", labelled(state="running")] == 1


def test_every_name_that_is_served_is_in_the_tables(run: Any, monitor: PrometheusMonitor) -> None:
    run.host_steps(10)
    run.train()
    run.page.slot("host").counter("some_plugins_own").add(1)
    known = {name for spec in all_metrics() for name in spec.series}
    served = {name for name, _ in samples(get(monitor, "/metrics"))}
    assert served <= known
    assert not any("plugin" in name for name in served)


def test_all_metrics_are_served_once_the_page_has_them(
    run: Any, monitor: PrometheusMonitor
) -> None:
    slot = run.page.slot("host")
    slot.set(SlotField.PID, 1)
    run.set_worker("host", WorkerState.READY)
    run.set_worker("trainer-0", WorkerState.READY)
    run.page.slot("trainer-0").set(SlotField.PID, 1)
    slot.gauge("host_reward_mean").set(1.0)
    for name, spec in PAGE.items():
        make = {Kind.COUNTER: slot.counter, Kind.GAUGE: slot.gauge, Kind.HISTOGRAM: slot.histogram}
        metric = make[spec.kind](name, **{k: "x" for k in spec.labels if k != "worker"})
        if spec.kind is Kind.GAUGE:
            metric.set(0.5)
    get(monitor, "/metrics")
    served = {name for name, _ in samples(get(monitor, "/metrics"))}
    assert {name for spec in all_metrics() for name in spec.series} == served


def test_names_end_in_their_base_unit() -> None:
    endings = ("_total", "_seconds", "_bytes", "_ratio", "_info", "_packets", "_per_second",
               "_files", "_shards", "_rows")  # fmt: skip
    free = {  # no unit exists for these
        "asys_run_state", "asys_worker_state", "asys_host_figure", "asys_sae_loss",
        "asys_sae_l0_features", "asys_sae_watch_l0_features", "asys_sae_row_age_versions",
        "asys_sae_outlier_norm", "asys_sae_kl_nats", "asys_exporter_omitted_label_values",
        "asys_sae_turned_features", "asys_alarm_watchers", "asys_sampling_raised_now",
        "asys_remote_connected", "asys_receiver_connected_forwarders", "asys_tracker_waiting_points",
    }  # fmt: skip
    for spec in all_metrics():
        assert spec.exposed.endswith(endings) or spec.exposed in free
        assert re.fullmatch(r"asys_[a-z0-9_]+", spec.exposed)
        assert spec.help.endswith(".")
    names = [spec.name for spec in all_metrics()]
    assert len(set(names)) == len(names)


def test_every_metric_that_our_own_code_publishes_is_exported() -> None:
    root = Path(asys_bench.__file__).parent
    made: set[str] = set()
    for path in [*root.rglob("*.py")]:
        if "monitors" in path.parts or "harness" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func).split(".")[-1] in ("counter", "gauge", "histogram")
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                made.add(str(node.args[0].value))
    assert made - PAGE.keys() == set(), "add them to monitors/prometheus_metrics.py"


def test_latency_buckets_are_cumulative_and_exact(run: Any, monitor: PrometheusMonitor) -> None:
    histogram = run.page.slot("host").histogram("hook_latency_ns", hook="h")
    values = [1, 1023, 1024, 1535, 1536, 20_000, 67_108_863, 67_108_864, 2_000_000_000]
    for value in values:
        histogram.record(value)
    buckets = {
        dict(labels)["le"]: count
        for (name, labels), count in samples(get(monitor, "/metrics")).items()
        if name == "asys_hook_latency_seconds_bucket"
    }
    assert len(buckets) == len(LATENCY_EDGES) + 1
    for edge in LATENCY_EDGES:
        upper_ns = round(float(edge.le) * 1e9)
        assert buckets[edge.le] == sum(value <= upper_ns for value in values)
        assert bucket_upper(bucket_of(upper_ns)) == upper_ns
    assert buckets["+Inf"] == len(values)


def test_what_is_unknown_is_absent_not_nan(run: Any, monitor: PrometheusMonitor) -> None:
    run.page.slot("trainer-0").gauge("sae_fvu", hook="h").set(float("nan"))
    text = get(monitor, "/metrics")
    assert "NaN" not in text.replace("asys_exporter_last_scrape_duration_seconds NaN", "")
    assert "asys_sae_fvu_ratio{" not in text


def test_a_run_with_a_thousand_hooks_exports_the_first_and_counts_the_rest(
    run: Any, tmp_path: Path
) -> None:
    for number in range(40):
        run.page.slot("host").counter("hook_calls", hook=f"layer.{number}").add(1)
    made = PrometheusMonitor(PrometheusOptions(port=0, max_label_values=10))
    made.open(context(run, tmp_path))
    try:
        found = samples(get(made, "/metrics"))
        assert sum(name == "asys_hook_calls_total" for name, _ in found) == 10
        assert found["asys_exporter_omitted_label_values", ()] >= 30
    finally:
        made.close()


def test_openmetrics_is_served_to_who_asks_for_it(run: Any, monitor: PrometheusMonitor) -> None:
    run.host_steps(10)
    text = get(monitor, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    names = {family.name for family in parse_openmetrics(text)}
    assert "asys_host_steps" in names
    assert text.endswith("# EOF\n")


def test_health_is_good_until_a_worker_is_quarantined(run: Any, monitor: PrometheusMonitor) -> None:
    run.set_worker("trainer-0", WorkerState.READY)
    report = json.loads(get(monitor, "/healthz"))
    assert report["status"] == "ok"
    assert report["workers"]["trainer-0"]["state"] == "ready"
    assert report["workers"]["archive-0"]["heartbeat_age_s"] is None
    run.set_worker("trainer-0", WorkerState.QUARANTINED)
    code, body = refused(f"http://{monitor.target}/healthz")
    assert code == 503
    assert "trainer-0" in body


@pytest.mark.parametrize(("path", "code"), [("/", 200), ("/nowhere", 404), ("/metrics?x=1", 200)])
def test_other_paths(monitor: PrometheusMonitor, path: str, code: int) -> None:
    if code == 200:
        assert get(monitor, path)
        return
    assert refused(f"http://{monitor.target}{path}")[0] == code


def test_writing_methods_are_refused(monitor: PrometheusMonitor) -> None:
    request = urllib.request.Request(f"http://{monitor.target}/metrics", data=b"x", method="POST")
    assert refused(request)[0] == 501


def test_it_listens_on_the_loopback_and_says_where_for_service_discovery(
    monitor: PrometheusMonitor, tmp_path: Path
) -> None:
    assert PrometheusOptions().address == "127.0.0.1"
    (entry,) = json.loads((tmp_path / "prometheus.json").read_text())
    assert entry == {"targets": [monitor.target], "labels": {"run_id": "a-run"}}
    assert monitor.target.startswith("127.0.0.1:")
    monitor.close()
    assert not (tmp_path / "prometheus.json").exists()


def test_a_port_that_is_taken_is_no_reason_to_fail(
    run: Any, monitor: PrometheusMonitor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = int(monitor.target.rpartition(":")[2])
    folder = tmp_path / "second"
    folder.mkdir()
    second = PrometheusMonitor(PrometheusOptions(port=port))
    second.open(context(run, folder))
    try:
        assert second.target != monitor.target
        assert f"port {port} is taken" in caplog.text
        assert second.target in (folder / "prometheus.json").read_text()
    finally:
        second.close()


def test_a_restarted_exporter_says_the_same_start(run: Any, tmp_path: Path) -> None:
    document = {"schema": "asys.run/1", "run_id": "r", "hooks": [], "host_pid": 1}
    started = {"started_unix_ns": 1700000000500000000}
    (tmp_path / "run.json").write_text(json.dumps(document | started))
    for _ in range(2):
        made = PrometheusMonitor(PrometheusOptions(port=0))
        made.open(context(run, tmp_path))
        try:
            found = samples(get(made, "/metrics"))
            assert found["asys_run_start_time_seconds", ()] == 1700000000.5
        finally:
            made.close()


def test_a_scrape_after_the_end_is_refused_and_reads_no_closed_page(
    run: Any, tmp_path: Path
) -> None:
    made = PrometheusMonitor(PrometheusOptions(port=0))
    made.open(context(run, tmp_path))
    made.tick(RunState.STOPPED)
    made.close()
    made.close()
    assert made._metrics("").status == 503
    assert made._health()[0] is False
    assert made.target == ""


def test_processes_are_measured_by_their_pid(run: Any, monitor: PrometheusMonitor) -> None:
    import os

    run.set_worker("trainer-0", WorkerState.READY)
    run.page.slot("trainer-0").set(SlotField.PID, os.getpid())
    found = samples(get(monitor, "/metrics"))
    assert found["asys_process_cpu_seconds_total", labelled(worker="trainer-0")] > 0
    assert found["asys_process_resident_memory_bytes", labelled(worker="trainer-0")] > 1 << 20
    assert ("asys_process_cpu_seconds_total", labelled(worker="archive-0")) not in found


def test_many_scrapes_at_once_are_all_answered(run: Any, monitor: PrometheusMonitor) -> None:
    from concurrent.futures import ThreadPoolExecutor

    run.host_steps(10)
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: get(monitor, "/metrics"), range(24)))
    assert all(samples(text)["asys_host_steps_total", ()] == 10 for text in texts)


def test_a_client_that_says_nothing_holds_nobody_up(run: Any, monitor: PrometheusMonitor) -> None:
    import socket

    host, _, port = monitor.target.rpartition(":")
    with socket.create_connection((host, int(port))):
        assert "asys_run_info" in get(monitor, "/metrics")


def test_the_plugin_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugin.unavailable() is None
    monkeypatch.setattr("asys_bench.monitors.prometheus.find_spec", lambda _: None)
    assert "asys-i[prometheus]" in (plugin.unavailable() or "")
    assert DERIVED


def test_promtool_finds_nothing_to_remark(run: Any, monitor: PrometheusMonitor) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    run.host_steps(100)
    run.train()
    run.set_worker("trainer-0", WorkerState.READY)
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=get(monitor, "/metrics"),
        text=True,
        capture_output=True,
        timeout=240,
    )
    assert (checked.returncode, checked.stderr, checked.stdout) == (0, "", "")


def test_heartbeats_are_those_of_the_page(run: Any, monitor: PrometheusMonitor) -> None:
    run.set_worker("trainer-0", WorkerState.READY)
    time.sleep(0.01)
    assert 0 < monitor.get_heartbeats()["trainer-0"] < 60


def test_a_published_account_is_what_the_bus_said(run: Any) -> None:
    from asys_bench.monitors.snapshot import publish_account, published_account

    page: StatsPage = run.page
    assert published_account(page) is None
    run.host_steps(50)
    run.dropped["full"] = 3
    publish_account(page.slot("monitor-log"), run)
    assert published_account(page) == run.account()
