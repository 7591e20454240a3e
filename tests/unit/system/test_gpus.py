"""GPUs as the driver lists them, in a copy of its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from asys_bench.system.gpus import GpuCard, read_gpus


def driver(root: Path, *gpus: tuple[str, str, int]) -> Path:
    """(bus, UUID, NUMA node) of each H100."""
    for bus, uuid, node in gpus:
        folder = root / "proc/driver/nvidia/gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 64\nGPU UUID: \t {uuid}\nVideo BIOS: \t 96.00\n"
        )
        device = root / "sys/bus/pci/devices" / bus
        device.mkdir(parents=True)
        (device / "numa_node").write_text(f"{node}\n")
    return root


THREE = (
    ("0000:c1:00.0", "GPU-cc11", 1),
    ("0000:1b:00.0", "GPU-1b00", 0),
    ("0000:43:00.0", "GPU-4300", -1),
)


def test_gpus_are_counted_along_the_bus(tmp_path: Path) -> None:
    model = "NVIDIA H100 80GB HBM3"
    assert read_gpus(driver(tmp_path, *THREE), {}) == (
        GpuCard(0, model, "0000:1b:00.0", 0),
        GpuCard(1, model, "0000:43:00.0", None),
        GpuCard(2, model, "0000:c1:00.0", 1),
    )


@pytest.mark.parametrize(
    ("named", "buses"),
    [
        ("2,0", ["0000:c1:00.0", "0000:1b:00.0"]),
        ("GPU-43", ["0000:43:00.0"]),
        ("0,7,1", ["0000:1b:00.0"]),  # CUDA sees none from the first that is not there on
        ("-1", []),
        ("", []),
        ("GPU-none", []),
    ],
)
def test_the_environment_leaves_some_of_them_in_its_own_order(
    tmp_path: Path, named: str, buses: list[str]
) -> None:
    found = read_gpus(driver(tmp_path, *THREE), {"CUDA_VISIBLE_DEVICES": named})
    assert [gpu.bus for gpu in found] == buses
    assert [gpu.index for gpu in found] == list(range(len(buses)))


def test_without_a_driver_there_are_none(tmp_path: Path) -> None:
    assert read_gpus(tmp_path, {}) == ()
