"""What a sink's workers compute on: the options for it, and the device itself in a worker."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from pydantic import Field

from asys_bench.contracts.run_files import RUN_FILE
from asys_bench.contracts.sink import Misfit, SinkContext, SinkOptions
from asys_bench.contracts.text_form import TextForm
from asys_bench.sae.training.device import (
    CPU,
    DeviceUnavailableError,
    TrainingDevice,
    open_device,
)

log = logging.getLogger(__name__)
Device = Annotated[
    str,
    TextForm(
        r"^(auto|cpu|cuda|cuda:[0-9]{1,2})$",
        "a device",
        "write cpu, auto, cuda, or cuda:0, a GPU as torch counts them",
    ),
]
DEVICE_MEANING = (
    "cpu; cuda:N, a GPU as torch counts them; cuda, one that is chosen; auto, a GPU that the host does "
    "not use, else the host's where host_gpu_gib allows it, else the CPU"
)


class DeviceOptions(SinkOptions):
    """Options of a sink whose workers can compute on a GPU."""

    device: Device = Field(
        default="cpu",
        description=f"where SAEs are: {DEVICE_MEANING}. Each worker has one, and `workers` are spread "
        f"over the GPUs; {RUN_FILE} says which and why",
    )
    host_gpu_gib: float | None = Field(
        default=None,
        gt=0,
        description="GiB that a worker may take of a GPU that the host uses too, its CUDA context of "
        "about 0.5 GiB not counted; null: `auto` never takes the host's",
    )

    @property
    def device_wish(self) -> tuple[str, bool]:
        return self.device, self.host_gpu_gib is not None

    def most_bytes(self, shared: bool) -> int | None:
        """What a worker may take of its GPU; None: all. shared: the host uses that GPU too."""
        if self.host_gpu_gib is None or not shared:
            return None
        return int(self.host_gpu_gib * (1 << 30))

    def misfits(self, workers: int, hooks: Sequence[str]) -> Iterator[Misfit]:
        """A GPU that this torch cannot use."""
        if self.device.startswith("cuda") and torch.version.cuda is None:
            yield Misfit(
                ("options", "device"),
                f"torch {torch.__version__} is built without CUDA",
                self.device,
                "set it to auto or cpu, or install a CUDA build of torch",
            )


def device_of(options: DeviceOptions, context: SinkContext) -> TrainingDevice:
    """This worker's device, as planned; says which and why.

    Raises:
        DeviceUnavailableError: it cannot be had, and `auto` was not asked for.
    """
    wish = context.device or options.device
    try:
        device = open_device(wish, options.most_bytes(context.device_shared))
    except DeviceUnavailableError as error:
        if options.device != "auto":
            raise
        log.warning("computes on the CPU: %s", error)
        return CPU
    if options.device != "cpu":
        reason = context.device_why or "as this process finds them"
        log.info("computes on %s (device: %s): %s", device.name, options.device, reason)
    return device
