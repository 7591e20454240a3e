"""Base of the kernels' Triton encoders, and the object that each `gpu.py` exports as `plugin`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from asys_bench.contracts.preprocessor import Encoded, Positions
from asys_bench.kernels.triton_runtime.row_view import RowView, row_view


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of the contiguous CPU tensor `host`, issued to the current stream.

    Through page-locked memory of torch's caching allocator: a copy from pageable memory would make
    this thread, the host's, wait until its stream gets there.
    """
    if device.type == "cpu":
        return host.clone()
    return host.pin_memory().to(device, non_blocking=True)


EXACT: dict[str, Any] = {"enable_fp_fusion": False}
"""Launch options of every kernel: a product and a sum stay two rounded operations."""


class TritonEncoder(ABC):
    """Writes on a device the bytes that the kernel's torch reference would have written."""

    @abstractmethod
    def plan(self, shape: tuple[int, ...], dtype: torch.dtype) -> Encoded:
        """What `launch` writes for a tensor of `shape` (with positions: of the rows chosen).

        Raises:
            PacketError: a dtype this encoding cannot carry.
        """

    def launch(self, tensor: torch.Tensor, out: torch.Tensor, positions: Positions | None) -> None:
        """Issue the encoding of `tensor`, or of its rows at `positions`, to the current stream.

        tensor: any strides. out: uint8[nbytes] on its device, contiguous, 256-byte aligned,
        nbytes >= 1.
        """
        rows = None
        if positions is not None:
            rows = to_device(torch.from_numpy(positions), tensor.device)
        self.launch_kernel(row_view(tensor), out, rows)

    @abstractmethod
    def launch_kernel(
        self, view: RowView, out: torch.Tensor, positions: torch.Tensor | None
    ) -> None:
        """As `launch`, with `positions` on the device."""

    def warm_up(self, device: torch.device, dtypes: Sequence[torch.dtype]) -> None:
        """Compile for tensors of `dtypes`: narrow and wide rows, whole and by positions."""
        for dtype in dtypes:
            for width in (128, 4096):
                tensor = torch.zeros(16, width, dtype=dtype, device=device)
                plan = self.plan(tuple(tensor.shape), dtype)
                out = torch.empty(plan.nbytes, dtype=torch.uint8, device=device)
                self.launch(tensor, out, None)
                self.launch(tensor, out, np.arange(16))


@dataclass(frozen=True)
class GpuPlugin:
    """Entry point `asys.device_encoder`: see `asys_bench.capture.gpu.route`."""

    name: str
    summary: str
    build: Callable[[str], Any]
    """From an interned encoding name (without "+"); None when it is not this kernel's."""

    def unavailable(self) -> str | None:
        """Why it cannot run here, with the fix; None when it can."""
        if torch.cuda.is_available() or interpreted():
            return None
        return "no CUDA device; set TRITON_INTERPRET=1 to run it on the CPU, slowly, as tests do"


def interpreted() -> bool:
    """Triton's interpreter was asked for: kernels run on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"
