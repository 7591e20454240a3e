"""Alert rules: what a person should be told of a run that goes on for days. Plain data.

A rule says what is wrong and what to do. Thresholds that depend on taste (an SAE that does not
learn) wait long; those that lose data wait seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AlertRule:
    """One rule of the group `asys`. `summary` and `action` may use Prometheus's templates."""

    name: str
    expr: str
    wait: str
    """How long it must hold, in Prometheus's notation."""
    severity: str
    summary: str
    action: str


ALERTS: tuple[AlertRule, ...] = (
    AlertRule(
        "AsysExporterGone",
        'up{job="asys"} == 0',
        "30s",
        "warning",
        "No metrics from {{ $labels.instance }}",
        "The run has ended, or its monitor died: see logs/watchdog.log in the run directory.",
    ),
    AlertRule(
        "AsysWorkerSilent",
        "asys_worker_heartbeat_age_seconds > 5",
        "0s",
        "warning",
        "{{ $labels.worker }} has not beaten for {{ $value | humanizeDuration }}",
        "The watchdog kills and restarts it after watchdog.heartbeat_timeout_s; "
        "its log then has its stacks.",
    ),
    AlertRule(
        "AsysWorkerRestarting",
        "increase(asys_worker_restarts_total[10m]) > 2",
        "0s",
        "warning",
        "{{ $labels.worker }} keeps dying",
        "See logs/{{ $labels.worker }}.log; after watchdog.restart_limit deaths it is quarantined.",
    ),
    AlertRule(
        "AsysWorkerQuarantined",
        'asys_worker_state{state="quarantined"} == 1',
        "0s",
        "critical",
        "{{ $labels.worker }} is quarantined",
        "Nobody does its work until the run is started again: fix what its log says.",
    ),
    AlertRule(
        "AsysHookOff",
        "increase(asys_hook_failed_total[10m]) > 0",
        "0s",
        "critical",
        "Hook {{ $labels.hook }} has switched itself off",
        "The host goes on unobserved there; the reason is in its standard error.",
    ),
    AlertRule(
        "AsysHookSlow",
        "histogram_quantile(0.99, sum by (le, instance, hook) "
        "(rate(asys_hook_latency_seconds_bucket[5m]))) > 0.001",
        "5m",
        "warning",
        "Hook {{ $labels.hook }} holds the host up for {{ $value | humanizeDuration }} (p99)",
        "Is the host short of a core? asys-run plan shows who runs where.",
    ),
    AlertRule(
        "AsysPacketsDropped",
        "sum by (instance) (rate(asys_bus_dropped_packets_total[1m])) "
        "/ sum by (instance) (rate(asys_bus_offered_packets_total[1m])) > 0.01",
        "1m",
        "warning",
        "{{ $value | humanizePercentage }} of the packets are dropped",
        "Workers are too slow for the sampling rate: more workers, or a lower sampling.max_rate.",
    ),
    AlertRule(
        "AsysBusFull",
        "asys_group_fill_ratio > 0.9",
        "1m",
        "warning",
        "Group {{ $labels.group }} fills the bus to {{ $value | humanizePercentage }}",
        "Its workers are the slowest: give them a core or more processes.",
    ),
    AlertRule(
        "AsysSamplingLow",
        "asys_hook_sampling_ratio < 0.05",
        "10m",
        "info",
        "Only {{ $value | humanizePercentage }} of {{ $labels.hook }} is captured",
        "Statistics stay unbiased but noisy: more workers raise the rate.",
    ),
    AlertRule(
        "AsysPacketsLost",
        "increase(asys_group_dead_lettered_packets_total[10m]) > 0",
        "0s",
        "critical",
        "Group {{ $labels.group }} gave up on packets",
        "They failed on every delivery: see the log of its workers.",
    ),
    AlertRule(
        "AsysArchiveErrors",
        "increase(asys_archive_write_errors_total[5m]) > 0",
        "0s",
        "critical",
        "{{ $labels.worker }} cannot write",
        "Is the disk full? It goes on by itself once there is space.",
    ),
    AlertRule(
        "AsysNonfiniteRows",
        "increase(asys_sae_nonfinite_rows_total[5m]) > 0",
        "0s",
        "warning",
        "NaN or infinity in {{ $labels.hook }}",
        "The host itself may be diverging; the SAE refuses such rows.",
    ),
    AlertRule(
        "AsysSaeDead",
        "asys_sae_dead_ratio > 0.5",
        "15m",
        "info",
        "{{ $value | humanizePercentage }} of the features of {{ $labels.hook }} are dead",
        "A smaller expansion_factor or a larger k may do as well.",
    ),
    AlertRule(
        "AsysSaeNotLearning",
        "asys_sae_fvu_ratio > 0.9",
        "15m",
        "info",
        "The SAE of {{ $labels.hook }} explains almost nothing",
        "See its FVU curve: learning rate, k, or rows that do not reach it.",
    ),
)


def rule_file() -> dict[str, Any]:
    """The rule file as Prometheus reads it."""
    rules = [
        {
            "alert": rule.name,
            "expr": rule.expr,
            "for": rule.wait,
            "labels": {"severity": rule.severity},
            "annotations": {"summary": rule.summary, "action": rule.action},
        }
        for rule in ALERTS
    ]
    return {"groups": [{"name": "asys", "rules": rules}]}
