"""Archives of known rows: value = (packet, row), over as many shards as a test wants."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

RIG = runpy.run_path(str(Path(__file__).parent.parent / "sinks" / "archive" / "conftest.py"))["Rig"]
HOOK, OTHER, TOKENS = "policy.mlp", "encoder", "identity"
"""Names that the rig knows; number 0 is renamed to the side stream's where a test asks for tokens."""


def values(packet: int, rows: int, width: int = 3) -> torch.Tensor:
    """float32[rows, width]: packet, row, and zeros."""
    found = torch.zeros(rows, width)
    found[:, 0], found[:, 1] = packet, torch.arange(rows)
    return found


def write_shards(
    run_dir: Path,
    shards: int = 20,
    packets: int = 6,
    rows: int = 7,
    hooks: Sequence[int] = (1,),
    **options: Any,
) -> set[tuple[int, int]]:
    """A run of one worker; a shard of each hook holds `packets` packets in two record batches. Returns the
    rows, (packet, row)."""
    run_dir.mkdir(parents=True, exist_ok=True)
    rig = RIG(run_dir)
    for shard in range(shards):
        worker = rig.start(attempt=shard, **options)  # a shard of its own: an attempt each
        made = [
            rig.packet(values(number, rows), seq * len(hooks) + place, hook, host_step=number,
                       call_index=0)
            for seq, number in enumerate(range(shard * packets, (shard + 1) * packets))
            for place, hook in enumerate(hooks)
        ]  # fmt: skip
        rig.feed(worker, *made[: len(made) // 2])
        rig.feed(worker, *made[len(made) // 2 :])
        worker.close()
    rig.page.close()
    return {(packet, row) for packet in range(shards * packets) for row in range(rows)}


def keys(items: Any) -> list[tuple[int, int]]:
    """(packet, row) of the rows in batches or single rows."""
    found = [item if isinstance(item, torch.Tensor) else item[HOOK] for item in items]
    return [
        (int(row[0]), int(row[1])) for part in found for row in part.reshape(-1, part.shape[-1])
    ]
