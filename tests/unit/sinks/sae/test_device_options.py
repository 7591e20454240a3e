"""A trainer worker's device: as planned, with a reason, and an end that the others do not share."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asys_bench.contracts.packet import ActivationPacket
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import StatsPage
from asys_bench.sae.training.device import CPU, DeviceUnavailableError
from asys_bench.sinks.sae import device_options
from asys_bench.sinks.sae.device_options import DeviceOptions, device_of
from asys_bench.sinks.sae_trainer import SAETrainerOptions, SAETrainerWorker

from ...sae.simulated_gpu import SimulatedGpu


@pytest.fixture
def context(tmp_path: Path) -> Any:
    page = StatsPage.create(["trainer-0"])
    yield SinkContext(
        name="trainer-0",
        run_dir=tmp_path,
        run_id="run-1",
        seed=0,
        slot=page.slot("trainer-0"),
        wall_offset_ns=0,
        incarnation=0,
        name_of=("identity", "layer.0", "layer.1").__getitem__,
        decode=ActivationPacket.raw_tensor,
        heartbeat=lambda: None,
        time_left_s=lambda: float("inf"),
    )
    page.close()


def test_a_gpu_that_torch_cannot_use_is_a_misfit_and_auto_is_none() -> None:
    assert torch.version.cuda is None, "this test is of a CPU build of torch"
    (misfit,) = SAETrainerOptions(device="cuda:1").misfits(1, ["*"])
    assert (misfit.path, misfit.value) == (("options", "device"), "cuda:1")
    assert misfit.message.endswith("is built without CUDA")
    assert list(SAETrainerOptions(device="auto").misfits(1, ["*"])) == []
    with pytest.raises(ValueError, match="device"):
        SAETrainerOptions(device="cuda:one")


def test_what_the_plan_chose_is_opened_with_its_cap_and_said(
    context: SinkContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[str, int | None]] = []

    def opened(wish: str, most_bytes: int | None = None) -> Any:
        asked.append((wish, most_bytes))
        return SimulatedGpu()

    monkeypatch.setattr(device_options, "open_device", opened)
    options = DeviceOptions(device="auto", host_gpu_gib=2.5)
    shared = replace(context, device="cuda:0", device_why="so it is", device_shared=True)
    with caplog.at_level(logging.INFO):
        device_of(options, shared)
        device_of(options, replace(shared, device="cuda:1", device_shared=False))
    assert asked == [("cuda:0", 5 << 29), ("cuda:1", None)]
    assert "computes on cuda:7 (device: auto): so it is" in caplog.text


def test_auto_goes_on_on_the_cpu_where_the_planned_gpu_cannot_be_had(
    context: SinkContext, caplog: pytest.LogCaptureFixture
) -> None:
    planned = replace(context, device="cuda:3")
    assert device_of(DeviceOptions(device="auto"), planned) is CPU
    assert "computes on the CPU: device cuda:3: torch" in caplog.text
    with pytest.raises(DeviceUnavailableError, match="finds no CUDA device here"):
        device_of(DeviceOptions(device="cuda"), planned)


def _worker(context: SinkContext, **options: Any) -> SAETrainerWorker:
    sae = {"d_sae": 32, "k": 2, "batch_rows": 64, "buffer_rows": 512, "held_out_fraction": 0.1}
    worker = SAETrainerWorker(SAETrainerOptions.model_validate({"sae": sae, **options}))
    worker.open(context)
    return worker


def _figure(context: SinkContext, name: str, hook: str) -> float:
    return context.slot.metrics()[f"{name}{{hook={hook}}}"].value


def test_a_worker_without_its_gpu_trains_nothing_counts_its_packets_and_says_why(
    context: SinkContext, rig: Any, caplog: pytest.LogCaptureFixture
) -> None:
    worker = _worker(replace(context, device="cuda:0"), device="cuda:0")
    rig.feed(worker, *(rig.packet(rig.rows(i), i) for i in range(10)))
    worker.idle()
    assert _figure(context, "sae_steps", "layer.0") == 0
    assert _figure(context, "sae_rejected_packets", "layer.0") == 10
    assert "layer.0: not trained any more: device cuda:0: torch" in caplog.text


@pytest.mark.rest
@pytest.mark.rest
def test_an_sae_that_its_gpu_has_no_memory_for_ends_and_the_others_go_on(
    context: SinkContext,
    rig: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with SimulatedGpu() as gpu:
        monkeypatch.setattr(device_options, "open_device", lambda *_: gpu)
        worker = _worker(context, device="auto")
        rig.feed(worker, *(rig.packet(rig.rows(i), i, hook=1) for i in range(8)))
        worker.idle()
        assert _figure(context, "sae_steps", "layer.0") > 0
        gpu.is_full = True
        rig.feed(worker, *(rig.packet(rig.rows(i), i, hook=1) for i in range(8, 16)))
        worker.idle()
        gpu.is_full = False
        rig.feed(worker, *(rig.packet(rig.rows(i), i, hook=2) for i in range(8)))
        rig.feed(worker, rig.packet(rig.rows(99), 99, hook=1))
        worker.idle()
        assert "layer.0: not trained any more: layer.0: cuda:7 is out of memory" in caplog.text
        assert _figure(context, "sae_rejected_packets", "layer.0") == 1
        assert _figure(context, "sae_steps", "layer.1") > 0
        worker.close()
    assert (context.run_dir / "sae" / "layer.0" / "latest").exists()
