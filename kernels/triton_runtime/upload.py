"""Small arrays from the host to the device without waiting for it."""

from __future__ import annotations

import torch


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of the contiguous CPU tensor `host`, issued to the current stream.

    Through page-locked memory of torch's caching allocator: a copy from pageable memory would make
    this thread, the host's, wait until its stream gets there.
    """
    if device.type == "cpu":
        return host.clone()
    return host.pin_memory().to(device, non_blocking=True)
