"""Every metric that the exporter knows: its name, type, labels and meaning. Plain data.

The names of the stats page (`hook_calls`) become Prometheus's (`asys_hook_calls_total`): base units,
`_total` for counters, shares as `_ratio`. What is not in these tables is not exported, so that a
plugin's metric cannot surprise anyone's time-series database; labels take values that are fixed when
a run starts (hooks, workers, groups, reasons, states).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from asys_bench.contracts.stats import bucket_of


class Kind(StrEnum):
    """The Prometheus type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric family. `name` has no `_total`; `factor` turns the source's unit into the base unit."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    factor: float = 1.0

    @property
    def exposed(self) -> str:
        """The name in PromQL (of a histogram: without `_bucket`, `_sum`, `_count`)."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name

    @property
    def series(self) -> tuple[str, ...]:
        """Every name that PromQL can ask for."""
        if self.kind is Kind.HISTOGRAM:
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.exposed,)


def _counter(name: str, text: str, *labels: str, factor: float = 1.0) -> MetricSpec:
    return MetricSpec(name, Kind.COUNTER, text, labels, factor)


def _gauge(name: str, text: str, *labels: str) -> MetricSpec:
    return MetricSpec(name, Kind.GAUGE, text, labels)


PAGE: dict[str, MetricSpec] = {
    # host
    "host_steps": _counter("asys_host_steps", "Steps that the host has made."),
    "weights_version": _counter("asys_host_weight_updates", "Optimizer steps of the host."),
    "labels_unsent": _counter(
        "asys_labels_unsent", "Labels that came too late, or could not be read or named."
    ),
    # hooks
    "hook_calls": _counter("asys_hook_calls", "Calls of a hooked module.", "hook"),
    "hook_captured": _counter("asys_hook_captured", "Calls whose tensor went on the bus.", "hook"),
    "hook_sampled_out": _counter(
        "asys_hook_sampled_out", "Calls not captured because the sampling rate is below 1.", "hook"
    ),
    "hook_dropped": _counter("asys_hook_dropped", "Captures that the bus refused.", "hook"),
    "hook_skipped": _counter(
        "asys_hook_skipped",
        "Calls of another phase, in a pause, or without a tensor to capture.",
        "hook",
    ),
    "hook_recomputed": _counter(
        "asys_hook_recomputed", "Calls repeated by activation checkpointing, not captured.", "hook"
    ),
    "hook_failed": _counter(
        "asys_hook_failed", "Hooks that switched themselves off: all their calls failed.", "hook"
    ),
    "hook_bytes": _counter("asys_hook_captured_bytes", "Bytes of captured tensors.", "hook"),
    "hook_sampling_rate": _gauge(
        "asys_hook_sampling_ratio", "Probability with which a call is captured now.", "hook"
    ),
    "hook_latency_ns": MetricSpec(
        "asys_hook_latency_seconds",
        Kind.HISTOGRAM,
        "Time that a capture held up the host.",
        ("hook",),
        1e-9,
    ),
    # SAEs
    "sae_rows": _counter("asys_sae_rows", "Rows that reached the SAE.", "hook", "worker"),
    "sae_rows_trained": _counter(
        "asys_sae_rows_trained", "Rows that the SAE was trained on.", "hook", "worker"
    ),
    "sae_steps": _counter("asys_sae_steps", "Optimizer steps of the SAE.", "hook", "worker"),
    "sae_checkpoints": _counter(
        "asys_sae_checkpoints", "Checkpoints written by this incarnation.", "hook", "worker"
    ),
    "sae_nonfinite_rows": _counter(
        "asys_sae_nonfinite_rows", "Rows refused because of a NaN or infinity.", "hook", "worker"
    ),
    "sae_rejected_packets": _counter(
        "asys_sae_rejected_packets", "Packets that do not fit the SAE.", "hook", "worker"
    ),
    "sae_loss": _gauge("asys_sae_loss", "Training loss, smoothed.", "hook", "worker"),
    "sae_fvu": _gauge(
        "asys_sae_fvu_ratio",
        "Fraction of variance unexplained on held-out rows, outliers left out.",
        "hook",
        "worker",
    ),
    "sae_fvu_all": _gauge(
        "asys_sae_fvu_all_ratio",
        "The same over all held-out rows; outliers pass through the SAE unchanged.",
        "hook",
        "worker",
    ),
    "sae_ce_recovered": _gauge(
        "asys_sae_ce_recovered_ratio",
        "Cross entropy recovered with the SAE in the model: 1 no damage, 0 as bad as zeros.",
        "hook",
        "worker",
    ),
    "sae_return_recovered": _gauge(
        "asys_sae_return_recovered_ratio",
        "An agent's return recovered with the SAE in it: 1 no damage, 0 as bad as zeros.",
        "hook",
        "worker",
    ),
    "sae_kl_nats": _gauge(
        "asys_sae_kl_nats",
        "KL of the model's predictions (an agent's actions) with the SAE in it from those without.",
        "hook",
        "worker",
    ),
    "sae_outlier_rows": _counter(
        "asys_sae_outlier_rows",
        "Rows not trained on because of their norm (attention sinks).",
        "hook",
        "worker",
    ),
    "sae_outlier_norm": _gauge(
        "asys_sae_outlier_norm", "Norm above which a row is an outlier.", "hook", "worker"
    ),
    "sae_l0": _gauge("asys_sae_l0_features", "Active features per row.", "hook", "worker"),
    "sae_dead_ratio": _gauge(
        "asys_sae_dead_ratio", "Share of features that have not fired for long.", "hook", "worker"
    ),
    "sae_dense_ratio": _gauge(
        "asys_sae_dense_ratio",
        "Share of features active in over 10 % of the rows.",
        "hook",
        "worker",
    ),
    "sae_skipped_packets": _counter(
        "asys_sae_skipped_packets", "Packets not read to catch up.", "hook", "worker"
    ),
    "sae_unpaired_packets": _counter(
        "asys_sae_unpaired_packets", "Packets whose other half never came.", "hook", "worker"
    ),
    "sae_checkpoint_failures": _counter(
        "asys_sae_checkpoint_failures", "Checkpoints that the disk refused.", "hook", "worker"
    ),
    "sae_rollbacks": _counter(
        "asys_sae_rollbacks", "Times the SAE went back to its last good state.", "hook", "worker"
    ),
    "sae_over_budget_rows": _counter(
        "asys_sae_over_budget_rows", "Rows given up because training lags.", "hook", "worker"
    ),
    "sae_window_fvu": _gauge(
        "asys_sae_window_fvu_ratio", "FVU over the newest window of rows.", "hook", "worker"
    ),
    "sae_feature_survival_ratio": _gauge(
        "asys_sae_feature_survival_ratio",
        "Share of features that kept their direction since the last window.",
        "hook",
        "worker",
    ),
    "sae_lives": _counter(
        "asys_sae_lives",
        "Lives of features begun, at the start or by resampling.",
        "hook",
        "worker",
    ),
    "sae_new_lives_ratio": _gauge(
        "asys_sae_new_lives_ratio", "Share of features whose life is young.", "hook", "worker"
    ),
    "sae_turned_features": _gauge(
        "asys_sae_turned_features",
        "Features past cosine 0.5 from the begin of their life.",
        "hook",
        "worker",
    ),
    "sae_input_drift": _gauge(
        "asys_sae_input_drift_ratio", "How far the input's statistics have moved.", "hook", "worker"
    ),
    "sae_mixing_autocorrelation": _gauge(
        "asys_sae_mixing_autocorrelation_ratio",
        "Similarity of rows that are trained on one after the other.",
        "hook",
        "worker",
    ),
    "sae_row_age_versions": _gauge(
        "asys_sae_row_age_versions", "Age of trained rows in host weight updates.", "hook", "worker"
    ),
    "reservoir_rows": _counter(
        "asys_reservoir_rows", "Rows that a reservoir was offered.", "hook", "worker"
    ),
    "reservoir_kept_rows": _gauge(
        "asys_reservoir_kept_rows", "Rows that a reservoir holds.", "hook", "worker"
    ),
    "reservoir_refused_packets": _counter(
        "asys_reservoir_refused_packets", "Packets that a reservoir cannot take.", "hook", "worker"
    ),
    "feature_index_rows": _counter(
        "asys_feature_index_rows", "Rows that a feature index has read.", "hook", "worker"
    ),
    "feature_index_left_out_rows": _counter(
        "asys_feature_index_left_out_rows",
        "Rows that a feature index leaves out: beyond its share of a core, or without an SAE.",
        "hook",
        "worker",
    ),
    "feature_index_refused_rows": _counter(
        "asys_feature_index_refused_rows",
        "Rows that a feature index cannot read: they are not finite.",
        "hook",
        "worker",
    ),
    "sae_watch_rows": _counter(
        "asys_sae_watch_rows", "Rows that a watched SAE was applied to.", "hook", "worker"
    ),
    "sae_watch_refused_rows": _counter(
        "asys_sae_watch_refused_rows", "Rows that a watched SAE cannot take.", "hook", "worker"
    ),
    "sae_watch_fvu": _gauge(
        "asys_sae_watch_fvu_ratio", "FVU of the watched SAE, of late.", "hook", "worker"
    ),
    "sae_watch_l0": _gauge(
        "asys_sae_watch_l0_features",
        "Active features per row of the watched SAE.",
        "hook",
        "worker",
    ),
    "sae_watch_dense_ratio": _gauge(
        "asys_sae_watch_dense_ratio",
        "Share of dense features of the watched SAE.",
        "hook",
        "worker",
    ),
    # probes
    "probe_rows": _counter("asys_probe_rows", "Rows that reached the probes.", "hook", "worker"),
    "probe_labelled_rows": _counter(
        "asys_probe_labelled_rows", "Rows with a label that went into a window.", "hook", "worker"
    ),
    "probe_unjoined_rows": _counter(
        "asys_probe_unjoined_rows", "Rows that no label came for.", "worker"
    ),
    "probe_unjoined_labels": _counter(
        "asys_probe_unjoined_labels",
        "Labels of rows that never came, had left or were not let in.",
        "worker",
    ),
    "probe_auc": _gauge(
        "asys_probe_auc_ratio", "Held-out AUC of a label's probe.", "hook", "label", "worker"
    ),
    "probe_r2": _gauge(
        "asys_probe_r2_ratio", "Held-out R2 of a label's probe.", "hook", "label", "worker"
    ),
    "probe_low": _gauge(
        "asys_probe_low_ratio", "Lower end of its interval at 95 %.", "hook", "label", "worker"
    ),
    "probe_high": _gauge(
        "asys_probe_high_ratio", "Upper end of its interval at 95 %.", "hook", "label", "worker"
    ),
    # alarms
    "alarms": _counter("asys_alarms", "Alarms over all watchers.", "worker"),
    "alarm_watchers": _gauge("asys_alarm_watchers", "Figures that are watched.", "worker"),
    "alarm_intervals": _counter(
        "asys_alarm_intervals", "Intervals in which watchers were asked for a value.", "worker"
    ),
    "alarm_full_leases": _counter(
        "asys_alarm_full_leases",
        "Full leases, of which the newest packets alone were looked at.",
        "worker",
    ),
    "alarm_refused_rows": _counter(
        "asys_alarm_refused_rows", "Rows that no watcher of the hook can take.", "hook", "worker"
    ),
    "alarm_latency_ns": MetricSpec(
        "asys_alarm_latency_seconds",
        Kind.HISTOGRAM,
        "Time from the capture of an alarm's newest rows to its flag.",
        ("worker",),
        1e-9,
    ),
    "alarm_pinned_shards": _counter(
        "asys_alarm_pinned_shards", "Archive shards that the flight recorder pinned.", "worker"
    ),
    "alarm_webhooks_sent": _counter(
        "asys_alarm_webhooks_sent", "Alarms that a webhook took.", "worker"
    ),
    "alarm_webhooks_failed": _counter(
        "asys_alarm_webhooks_failed", "Alarms that a webhook did not take.", "worker"
    ),
    "sampling_raised": _counter(
        "asys_sampling_raised", "Times that hooks sampled at their highest rate for an alarm."
    ),
    "sampling_is_raised": _gauge(
        "asys_sampling_raised_now", "1 while hooks sample at their highest rate for an alarm."
    ),
    # device path
    "device_committed": _counter("asys_device_committed_packets", "Packets copied off a device."),
    "device_committed_bytes": _counter("asys_device_committed_bytes", "Bytes copied off a device."),
    "device_dropped": _counter(
        "asys_device_dropped_packets", "Captures on a device that were given up.", "reason"
    ),
    "device_pin_failed": _counter(
        "asys_device_pin_failures", "Times that memory could not be pinned: copies are slow."
    ),
    "device_in_flight": _gauge("asys_device_in_flight_packets", "Copies under way."),
    "device_latency_ns": MetricSpec(
        "asys_device_latency_seconds",
        Kind.HISTOGRAM,
        "Time from capture to commit of a device tensor.",
        (),
        1e-9,
    ),
    "device_copy_gbps": MetricSpec(
        "asys_device_copy_bytes_per_second",
        Kind.GAUGE,
        "Copy bandwidth measured at the start.",
        ("device", "memory"),
        1e9,
    ),
    # archive
    "archive_rows": _counter("asys_archive_rows", "Rows written.", "hook", "worker"),
    "archive_packets": _counter("asys_archive_packets", "Packets written.", "hook", "worker"),
    "archive_bytes": _counter("asys_archive_bytes", "Bytes written to shards.", "hook", "worker"),
    "archive_shards": _counter("asys_archive_shards", "Shards begun.", "hook", "worker"),
    "archive_duplicates_skipped": _counter(
        "asys_archive_duplicates_skipped", "Redelivered packets that were already there.", "worker"
    ),
    "archive_deleted_shards": _counter(
        "asys_archive_deleted_shards",
        "Oldest shards deleted (budget, age, free_space).",
        "reason",
        "worker",
    ),
    "archive_deleted_rows": _counter(
        "asys_archive_deleted_rows", "Archived rows deleted with their shards.", "reason", "worker"
    ),
    "archive_deleted_packets": _counter(
        "asys_archive_deleted_packets",
        "Archived packets deleted with their shards.",
        "reason",
        "worker",
    ),
    "archive_deleted_bytes": _counter(
        "asys_archive_deleted_bytes", "Bytes of deleted shards.", "reason", "worker"
    ),
    "archive_dropped_packets": _counter(
        "asys_archive_dropped_packets",
        "Packets not archived because the disk refused.",
        "reason",
        "worker",
    ),
    "archive_dropped_rows": _counter(
        "asys_archive_dropped_rows",
        "Rows not archived because the disk refused.",
        "reason",
        "worker",
    ),
    "archive_write_errors": _counter("asys_archive_write_errors", "Failed writes.", "worker"),
    "archive_damaged_packets": _counter(
        "asys_archive_damaged_packets", "Packets that did not decode or verify.", "worker"
    ),
    "archive_paused_ns": _counter(
        "asys_archive_paused_seconds", "Time spent waiting for disk space.", "worker", factor=1e-9
    ),
    # store
    "storage_files": _counter("asys_storage_files", "Files sent and read back.", "worker"),
    "storage_bytes": _counter("asys_storage_bytes", "Bytes sent and read back.", "worker"),
    "storage_errors": _counter(
        "asys_storage_errors", "Times that the store refused.", "reason", "worker"
    ),
    "storage_deleted_shards": _counter(
        "asys_storage_deleted_shards", "Shards deleted here because the store has them.", "worker"
    ),
    "storage_pending_files": _gauge(
        "asys_storage_pending_files", "Files (whole checkpoints) that wait to be sent.", "worker"
    ),
    "storage_pending_bytes": _gauge(
        "asys_storage_pending_bytes", "Bytes that wait to be sent.", "worker"
    ),
    "storage_missed_shards": _gauge(
        "asys_storage_missed_shards", "Shards deleted here before they were sent.", "worker"
    ),
    # trackers of experiments
    "tracker_points": _counter(
        "asys_tracker_points", "Readings that the tracker has taken.", "tracker", "worker"
    ),
    "tracker_dropped_points": _counter(
        "asys_tracker_dropped_points", "Readings given up: too many waited.", "tracker", "worker"
    ),
    "tracker_errors": _counter(
        "asys_tracker_errors", "Calls of the tracker that failed.", "tracker", "worker"
    ),
    "tracker_waiting_points": _gauge(
        "asys_tracker_waiting_points", "Readings that are not sent yet.", "tracker", "worker"
    ),
    # past this machine: forwarders
    "remote_taken": _counter(
        "asys_remote_taken_packets", "Packets that the forwarder took off the bus.", "worker"
    ),
    "remote_acked": _counter(
        "asys_remote_acked_packets", "Packets that a receiver has acknowledged.", "worker"
    ),
    "remote_dropped": _counter(
        "asys_remote_dropped_packets", "Packets that were not sent on.", "reason", "worker"
    ),
    "remote_sent_bytes": _counter("asys_remote_sent_bytes", "Bytes sent.", "worker"),
    "remote_resent": _counter(
        "asys_remote_resent_packets", "Packets sent again after a lost connection.", "worker"
    ),
    "remote_connections": _counter(
        "asys_remote_connections", "Connections to a receiver that came about.", "worker"
    ),
    "remote_refused": _counter(
        "asys_remote_refused", "Times that a receiver refused the forwarder.", "reason", "worker"
    ),
    "remote_in_flight": _gauge(
        "asys_remote_in_flight_packets", "Packets held, sent or not, unacknowledged.", "worker"
    ),
    "remote_in_flight_bytes": _gauge(
        "asys_remote_in_flight_bytes", "Their bytes; max_mib_in_flight bounds them.", "worker"
    ),
    "remote_credit_bytes": _gauge(
        "asys_remote_credit_bytes", "Bytes that the receiver still takes.", "worker"
    ),
    "remote_connected": _gauge(
        "asys_remote_connected", "1 while a receiver takes packets, else 0.", "worker"
    ),
    "remote_ack_s": _gauge(
        "asys_remote_unacknowledged_seconds", "Age of the oldest unacknowledged batch.", "worker"
    ),
    # past this machine: the receiver, which is the host of its run
    "receiver_accepted": _counter(
        "asys_receiver_accepted_packets", "Packets taken from forwarders and pushed on the bus."
    ),
    "receiver_accepted_bytes": _counter(
        "asys_receiver_accepted_bytes", "Payload bytes of accepted packets."
    ),
    "receiver_duplicates": _counter(
        "asys_receiver_duplicate_packets", "Packets that came again and were not pushed again."
    ),
    "receiver_in_doubt": _counter(
        "asys_receiver_in_doubt_packets",
        "Packets that a receiver was pushing when it was killed: on the bus or not.",
    ),
    "receiver_expired": _counter(
        "asys_receiver_expired_packets", "Packets older than what the ledger can still tell apart."
    ),
    "receiver_refused": _counter(
        "asys_receiver_refused", "Connections and messages that were refused.", "reason"
    ),
    "receiver_connections_total": _counter(
        "asys_receiver_connections", "Connections of forwarders that came about."
    ),
    "receiver_connections": _gauge(
        "asys_receiver_connected_forwarders", "Forwarders that are connected now."
    ),
    "receiver_credit_bytes": _gauge(
        "asys_receiver_credit_bytes", "Bytes granted to forwarders and not used yet."
    ),
    "receiver_window": _gauge(
        "asys_receiver_window_packets", "Packets accepted and not yet acknowledged."
    ),
    "receiver_lag_s": _gauge(
        "asys_receiver_lag_seconds", "From the capture of a packet to its arrival here."
    ),
}
"""Metric of the stats page -> what it becomes."""

RUN_INFO = _gauge("asys_run_info", "Always 1; its labels name the run.", "run_id", "version")
RUN_STATE = _gauge("asys_run_state", "1 for the state that the run is in.", "state")
RUN_START = _gauge("asys_run_start_time_seconds", "When the run started, since the epoch.")
HOST_FIGURE = _gauge(
    "asys_host_figure", "What the host reports of itself, e.g. reward_mean, in its own unit.", "figure"
)  # fmt: skip
OFFERED = _counter("asys_bus_offered_packets", "Packets offered to the bus, accepted or not.")
ACCEPTED_BYTES = _counter("asys_bus_accepted_bytes", "Payload bytes of accepted packets.")
DROPPED = _counter("asys_bus_dropped_packets", "Packets that the bus refused.", "reason")
DELIVERED = _counter("asys_group_delivered_packets", "Packets acknowledged by the group.", "group")
LOST = _counter("asys_group_lost_packets", "Packets lost with a dead reader.", "group")
DEAD_LETTERED = _counter(
    "asys_group_dead_lettered_packets", "Packets given up on after repeated deliveries.", "group"
)
REDELIVERED = _counter(
    "asys_group_redelivered_packets", "Deliveries of a packet that had been delivered before.", "group"
)  # fmt: skip
MISSED = _counter(
    "asys_group_missed_packets", "Packets not selected, or offered before the group joined.", "group"
)  # fmt: skip
READY = _gauge(
    "asys_group_ready_packets", "Packets waiting for the group, claimed ones too.", "group"
)
FILL = _gauge("asys_group_fill_ratio", "Waiting packets over the bus's capacity.", "group")
WORKER_STATE = _gauge("asys_worker_state", "1 for the state of the worker.", "worker", "state")
RESTARTS = _counter("asys_worker_restarts", "Restarts of the worker.", "worker")
HEARTBEAT_AGE = _gauge(
    "asys_worker_heartbeat_age_seconds", "Time since its last heartbeat, while it runs.", "worker"
)
CPU = _counter("asys_process_cpu_seconds", "CPU time of the process, all threads.", "worker")
RESIDENT = _gauge(
    "asys_process_resident_memory_bytes", "Memory in RAM, shared pages too.", "worker"
)
SCRAPES = _counter("asys_exporter_scrapes", "Times that this exporter was read.")
SCRAPE_SECONDS = _gauge(
    "asys_exporter_last_scrape_duration_seconds", "Time that the previous scrape took to collect."
)
OMITTED = _gauge(
    "asys_exporter_omitted_label_values", "Label values left out because there were too many."
)

DERIVED: tuple[MetricSpec, ...] = (
    *(RUN_INFO, RUN_STATE, RUN_START, HOST_FIGURE),
    *(OFFERED, ACCEPTED_BYTES, DROPPED),
    *(DELIVERED, LOST, DEAD_LETTERED, REDELIVERED, MISSED, READY, FILL),
    *(WORKER_STATE, RESTARTS, HEARTBEAT_AGE, CPU, RESIDENT),
    *(SCRAPES, SCRAPE_SECONDS, OMITTED),
)
"""What is not a single metric of the page."""


def all_metrics() -> tuple[MetricSpec, ...]:
    """Everything that can be exported, each name once."""
    return (*PAGE.values(), *DERIVED)


def _edges() -> Iterator[int]:
    for power in range(10, 31):
        yield 1 << power
        if 12 <= power < 20:
            yield 3 << (power - 1)


@dataclass(frozen=True, slots=True)
class Edge:
    """A histogram boundary: the first bucket of the page's histogram that is above it."""

    le: str
    """Seconds, as Prometheus writes them; the largest value that is still counted."""
    index: int


LATENCY_EDGES: tuple[Edge, ...] = tuple(
    Edge(repr((edge - 1) / 1e9), bucket_of(edge)) for edge in _edges()
)
"""From 1 us to 1.07 s: an octave each, half of one from 4 us to 1 ms, where hooks are. Each lies on an
edge of the page's own buckets (its last nanosecond), so that cumulative counts are exact."""
