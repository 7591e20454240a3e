"""What a worker would give to a sink."""

from asys_bench.contracts.packet import ActivationPacket
from asys_bench.contracts.sink import SinkContext

NAMES = ("identity", "policy.mlp", "value/net:0", "encoder")


def context_of(slot, run_dir, **fields):
    return SinkContext(
        **{
            "name": "alarm-0", "run_dir": run_dir, "run_id": "run-1", "seed": 0, "slot": slot,
            "wall_offset_ns": 0, "incarnation": 0, "name_of": NAMES.__getitem__,
            "decode": ActivationPacket.raw_tensor, "heartbeat": lambda: None,
            "time_left_s": lambda: float("inf"), **fields,
        }
    )  # fmt: skip
