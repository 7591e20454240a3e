"""The NVIDIA GPUs that this process may use, as the kernel's driver lists them. CUDA is not touched.

Read from /proc/driver/nvidia/gpus/*/information and the device's folder in /sys/bus/pci: asking CUDA
would initialise it, and a process that has done so can fork no worker that uses a GPU. Where the driver
lists nothing (none installed, WSL), the answer is that there are none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class GpuCard:
    """One GPU. `index` is torch's `cuda:<index>` in this process's environment."""

    index: int
    model: str
    bus: str
    """Its address on the PCI bus, such as 0000:65:00.0."""
    node: int | None = None
    """NUMA node; None where the machine has one."""


def read_gpus(
    root: Path = Path("/"), environment: Mapping[str, str] = os.environ
) -> tuple[GpuCard, ...]:
    """The GPUs of the machine under `root` that CUDA_VISIBLE_DEVICES leaves, in torch's order: that of
    the PCI bus, as CUDA has it for GPUs of one model."""
    found: list[tuple[str, str, str]] = []
    try:
        folders = sorted((root / "proc/driver/nvidia/gpus").iterdir())
    except OSError:
        return ()
    for folder in folders:
        try:
            lines = (folder / "information").read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        told = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
        found.append((folder.name, told.get("Model", "unknown"), told.get("GPU UUID", "")))
    return tuple(
        GpuCard(index, model, bus, _node(root, bus))
        for index, (bus, model, _) in enumerate(_visible(found, environment.get(VISIBLE)))
    )


def _visible(found: list[tuple[str, str, str]], named: str | None) -> list[tuple[str, str, str]]:
    """Those that the variable names, in its order, up to the first that is not there, as CUDA does."""
    if named is None:
        return found
    chosen: list[tuple[str, str, str]] = []
    for name in (part.strip() for part in named.split(",")):
        if name.isdigit() and int(name) < len(found):
            chosen.append(found[int(name)])
            continue
        alike = [gpu for gpu in found if name.startswith("GPU-") and gpu[2].startswith(name)]
        if len(alike) != 1:
            break
        chosen.append(alike[0])
    return chosen


def _node(root: Path, bus: str) -> int | None:
    try:
        node = int((root / "sys/bus/pci/devices" / bus / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None
