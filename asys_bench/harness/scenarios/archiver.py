"""archiver: bytes per second that one archiver turns into Arrow shards on disk.

Packets come through the in-process `memcpy` bus, so that the figure is the archiver's own.
"""

from __future__ import annotations

import time

import torch
from pydantic import Field

from asys_bench.config.assembly import create_data_bus
from asys_bench.config.sections.bus import BusConfig
from asys_bench.contracts.bus import Delivery, GroupSpec
from asys_bench.contracts.packet import DTYPE_CODE, PacketMeta
from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioOptions,
    ScenarioPlugin,
)
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import Counter, StatsPage
from asys_bench.sinks.archiver import ArchiverOptions, ArchiverWorker
from asys_bench.sinks.decoding import Decoder

HOOK = "bench"


class ArchiveOptions(ScenarioOptions):
    """`params` of an archiver case."""

    width: int = Field(default=1024, ge=1, le=65536, description="features per row")
    rows_per_packet: int = Field(default=64, ge=1, le=65536, description="rows of one packet")
    total_mib: float = Field(default=64, gt=0, le=1 << 16, description="MiB archived per round")
    options: ArchiverOptions = Field(
        default_factory=lambda: ArchiverOptions(fsync="never"), description="the archiver's own"
    )


def run(context: RoundContext) -> None:
    """Archive `total_mib` in leases of 32 packets; closing the shards is part of the time."""
    options = context.options
    assert isinstance(options, ArchiveOptions)
    rows_ND = torch.randn(
        options.rows_per_packet,
        options.width,
        generator=torch.Generator().manual_seed(context.seed),
    )
    nbytes = rows_ND.numel() * rows_ND.element_size()
    packets = max(1, int(options.total_mib * (1 << 20) / nbytes))
    page = StatsPage.create(["archive-0"])
    groups = [GroupSpec("archive", Delivery.AT_LEAST_ONCE)]
    config = BusConfig(backend="memcpy", capacity_mib=max(64, 40 * nbytes >> 20))
    with create_data_bus(config, groups, names=(HOOK,)) as bus:
        worker = ArchiverWorker(options.options)
        worker.open(
            SinkContext(
                name="archive-0",
                run_dir=context.scratch,
                run_id="bench",
                seed=context.seed,
                slot=page.slot("archive-0"),
                wall_offset_ns=page.wall_offset_ns,
                incarnation=0,
                name_of=bus.name_of,
                decode=Decoder(bus.name_of),
                heartbeat=page.slot("archive-0").beat,
                time_left_s=lambda: float("inf"),
            )
        )
        meta = PacketMeta(bus.intern(HOOK), 0, DTYPE_CODE[torch.float32], tuple(rows_ND.shape))

        def archive(count: int) -> None:
            left = count
            while left > 0:
                batch = min(32, left)
                accepted = sum(bus.push(meta, rows_ND) for _ in range(batch))
                context.integrity.offered += batch
                context.integrity.dropped += batch - accepted
                with bus.pull_batch("archive", batch) as lease:
                    worker.consume(lease)
                left -= batch

        def warm() -> float:
            started = time.perf_counter()
            archive(32)
            return time.perf_counter() - started

        context.warm_up(warm)
        with context.timed():
            started = time.perf_counter()
            archive(packets)
            worker.close()
            elapsed = time.perf_counter() - started
        account = bus.account()
    written = sum(
        metric.value
        for name, metric in page.slot("archive-0").metrics().items()
        if name.startswith("archive_packets{") and isinstance(metric, Counter)
    )
    context.integrity.delivered += written
    context.integrity.lost += account.produced - account.dropped_total - written
    page.close()
    context.value("archive_gbps", packets * nbytes / elapsed / 1e9)
    context.value("archive_rows_per_s", packets * options.rows_per_packet / elapsed)


plugin = ScenarioPlugin(
    name="archiver",
    summary="bytes per second from packets to Arrow shards on disk",
    options=ArchiveOptions,
    takes="nothing",
    metrics={
        "archive_gbps": MetricSpec("higher", MetricKind.ROUND, "payload archived per second"),
        "archive_rows_per_s": MetricSpec("higher", MetricKind.ROUND, "rows archived per second"),
    },
    run=run,
)
