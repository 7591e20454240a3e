"""Whether a torch device that options name is there."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from asys_bench.contracts.sink import Misfit


def device_misfits(name: str) -> Iterator[Misfit]:
    """A device that torch does not know or this machine does not have; of an option `device`."""
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        yield Misfit(("device",), f"torch knows no such device: {reason}", name, "choose cpu")
        return
    if kind == "cuda" and not torch.cuda.is_available():
        yield Misfit(("device",), "torch finds no CUDA device here", name, "choose cpu")
