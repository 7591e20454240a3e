"""`ShardOfBus`: one shard of another process's bus, as a bus of its own. A rank's hooks push to it."""

from __future__ import annotations

from collections.abc import Sequence

from asys_bench.contracts.bus import (
    AttachedProducer,
    BaseDataBus,
    BusAccount,
    BusClient,
    BusError,
    BusHandle,
    BusPlugin,
    BusProducer,
    BusSubscription,
    GroupSpec,
)
from asys_bench.contracts.launch import LaunchSpec
from asys_bench.contracts.run_files import RUN_FILE
from asys_bench.registry import registry


class ShardOfBus(BaseDataBus):
    """`producer(0)` is the shard's; names are those that the owner interned."""

    def __init__(self, client: BusClient, shard: int, source: int) -> None:
        """Take the producer of `shard`; packets carry `source`. Raises BusError when it is taken."""
        super().__init__()
        self._client = client
        self._ids = interned_names(client)
        self._producer: AttachedProducer = client.attach_producer(shard, source)

    def producer(self, shard: int = 0) -> BusProducer:
        if shard != 0:
            raise BusError(f"no shard {shard}: this process has one shard of the bus, 0 here")
        return self._producer

    def intern(self, name: str) -> int:
        if name not in self._ids:  # the owner may have named it meanwhile (labels)
            interned_names(self._client, self._ids)
        try:
            return self._ids[name]
        except KeyError:
            raise BusError(
                f"{name!r} was not interned by the bus's owner, local rank 0 (it knows "
                f"{sorted(self._ids)}): every rank must observe the same modules with the same settings"
            ) from None

    def handle(self) -> BusHandle:
        raise BusError(f"the bus belongs to local rank 0: its handle is in that run's {RUN_FILE}")

    def fill_ratio(self) -> float:
        return self._producer.fill_ratio()

    def finish(self) -> None:
        """No more packets from this shard; the bus itself goes on."""
        self._producer.close()

    def subscribe(self, group: str, member: str, spec: GroupSpec | None = None) -> BusSubscription:
        return self._client.subscribe(group, member, spec)

    def account(self) -> BusAccount:
        return self._client.account()

    def name_of(self, name_id: int) -> str:
        return self._client.name_of(name_id)

    def retire(self, group: str) -> None:
        self._client.retire(group)

    def close(self) -> None:
        self._producer.close()


def interned_names(client: BusClient, known: dict[str, int] | None = None) -> dict[str, int]:
    """Every name in the segment's table with its id; `known` ones are added to and not read again."""
    names: dict[str, int] = {} if known is None else known
    for name_id in range(len(names), 1 << 16):
        try:
            names[client.name_of(name_id)] = name_id
        except BusError:
            break
    return names


def attach_bus(launch: LaunchSpec, fds: Sequence[int]) -> BusClient:
    """The run's bus in a process that was handed a `LaunchSpec`; `fds` are the handle's descriptors in
    this process.

    Raises:
        BusError, PluginError: the bus is gone, or its backend does not load here.
    """
    handle = BusHandle.from_dict(launch.bus, fds)
    return registry("backend").get(handle.backend, BusPlugin).attach(handle)
