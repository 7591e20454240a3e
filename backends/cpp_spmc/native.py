"""The compiled module, loaded on first use and told about the contract's classes."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from asys_bench.backends.ring_client.client import REFUSALS
from asys_bench.contracts.bus import BusError, Lease, Reservation
from asys_bench.contracts.packet import DTYPES, NO_PARAMS, ActivationPacket, Kind, PacketError
from asys_bench.contracts.torch_internals import tensor_probes

if TYPE_CHECKING:
    from asys_bench.backends.cpp_spmc import _spmc


@cache
def _load() -> ModuleType:
    from asys_bench.backends.cpp_spmc import _spmc

    _spmc.setup(
        PacketError, BusError, ActivationPacket, tuple(Kind), DTYPES, (*REFUSALS, None), NO_PARAMS,
        torch.Tensor, tensor_probes(),
    )  # fmt: skip
    # Its leases and reservations implement the contract in C++; this makes isinstance say so.
    Lease.register(_spmc.Lease)
    Reservation.register(_spmc.Reservation)
    return _spmc


def create(**request: int | bool | str) -> _spmc.Segment:
    """A new segment; see `_spmc.create`."""
    segment: _spmc.Segment = _load().create(**request)
    return segment


def attach_fd(fd: int) -> _spmc.Segment:
    """The anonymous segment behind a file descriptor."""
    segment: _spmc.Segment = _load().attach_fd(fd)
    return segment


def attach_name(name: str) -> _spmc.Segment:
    """The segment published under `name`."""
    segment: _spmc.Segment = _load().attach_name(name)
    return segment


def hook_call() -> type[_spmc.HookCall]:
    """The base of compiled hook classes."""
    base: type[_spmc.HookCall] = _load().HookCall
    return base


def layout() -> dict[str, int]:
    """The constants of layout.hpp by name: offsets in bytes, limits, word states."""
    constants: dict[str, int] = _load().layout()
    return constants


def unavailable() -> str | None:
    """Why the compiled module cannot be used here, with the fix; None when it can."""
    try:
        _load()
    except ImportError as error:
        return (
            f"the compiled module is missing ({error}): install a C++20 compiler and reinstall with "
            "ASYS_REQUIRE_CPP=1 pip install ., or use bus.backend=numba_ring"
        )
    return None
