"""Options that every scenario over a bus shares."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from asys_bench.contracts.bus import Delivery
from asys_bench.contracts.scenario import ScenarioOptions
from asys_bench.harness.measuring.consumers import ConsumerSpec
from asys_bench.harness.measuring.transport import TransportSpec


class TransportOptions(ScenarioOptions):
    """The bus, its readers and the payload."""

    payload_bytes: int = Field(default=65536, ge=16, le=1 << 30, description="bytes per packet")
    groups: int = Field(default=1, ge=1, le=16, description="consumer groups; each sees everything")
    members: int = Field(default=1, ge=1, le=16, description="processes sharing a group's packets")
    delivery: Delivery = Field(default=Delivery.AT_MOST_ONCE, description="of every group")
    max_packets: int = Field(default=256, ge=1, le=65536, description="most packets of one lease")
    capacity_packets: int = Field(default=4096, ge=1, description="of the bus")
    capacity_mib: int = Field(default=64, ge=1, description="of the bus, MiB")
    checksum: bool = Field(default=False, description="the bus's own CRC-32C")
    bus: dict[str, Any] = Field(default_factory=dict, description="the backend's own options")

    def transport(self, most_packets: int, latency_from: int = -1) -> TransportSpec:
        """The transport with `groups` x `members` consumers; the first group tells latencies."""
        consumers = [
            ConsumerSpec(
                f"group-{group}",
                f"reader-{group}-{member}",
                max_packets=self.max_packets,
                latency_from=latency_from if group == 0 else -1,
            )
            for group in range(self.groups)
            for member in range(self.members)
        ]
        return self.transport_of(consumers, most_packets)

    def transport_of(self, consumers: list[ConsumerSpec], most_packets: int) -> TransportSpec:
        """The transport with these consumers."""
        return TransportSpec(
            payload_bytes=self.payload_bytes,
            most_packets=most_packets,
            consumers=consumers,
            delivery={consumer.group: self.delivery for consumer in consumers},
            capacity_packets=self.capacity_packets,
            capacity_mib=self.capacity_mib,
            checksum=self.checksum,
            options=self.bus,
        )
