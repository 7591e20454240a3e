"""A GPU without a GPU: tensors that only say that they are elsewhere, copies that come late.

Within `with SimulatedGpu() as gpu` torch's operators refuse to mix tensors of the CPU and of the device
(single numbers excepted), as they do with a real one; what moves between the two, and what makes the
thread wait for a value, is counted. A copy to the device begins when it is asked for and is done when
somebody waits for it, not before: whoever reads its target without waiting finds NaN, and whoever writes
its source too early changes what arrives. Every operator runs on the CPU, so that a training here gives
the bits of the same kernels on the CPU.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from asys_bench.sae import SAEConfig, SparseAutoencoder, SparseKernels
from asys_bench.sae.training.device import Gpu

DEVICE = torch.device("meta")
"""A device that torch knows and that has no memory: what is not caught here fails."""
_GIB = 1 << 30


class FarTensor(torch.Tensor):
    """A tensor of the device. `held`: its values, which only operators see."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> FarTensor:
        made: FarTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def _value(self) -> torch.Tensor:
        COUNTS["waits"] += 1
        return self.held

    def item(self) -> Any:
        return self._value().item()

    def tolist(self) -> Any:
        return self._value().tolist()

    def __float__(self) -> float:
        return float(self._value())

    def __int__(self) -> int:
        return int(self._value())

    def __bool__(self) -> bool:
        return bool(self._value())

    def __repr__(self, **_: Any) -> str:
        return f"FarTensor({self.held})"

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


COUNTS: Counter[str] = Counter()
"""waits: values that a thread had to wait for. to_device, to_host: tensors that were moved."""


def _near(value: torch.Tensor) -> torch.Tensor:
    return value.held if isinstance(value, FarTensor) else value


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, device = function._schema.name, kwargs.get("device")
    if name == "aten::_to_copy":
        return _moved(args[0], kwargs)
    if name == "aten::copy_":
        target, source = args[:2]
        if isinstance(target, FarTensor) is not isinstance(source, FarTensor):
            COUNTS["to_device" if isinstance(target, FarTensor) else "to_host"] += 1
        function(_near(target), _near(source), *args[2:])
        return target
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    far = [t for t in tensors if isinstance(t, FarTensor)]
    if name == "aten::_local_scalar_dense":
        return function(_near(args[0]))
    if far and any(t.dim() and not isinstance(t, FarTensor) for t in tensors):
        raise RuntimeError(f"{name}: tensors of the CPU and of the device in one call")
    made_there = device is not None and torch.device(device).type == DEVICE.type
    if made_there:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map_only(FarTensor, _near, (args, kwargs))
    out = function(*args, **kwargs)
    if not far and not made_there:
        return out
    own = {id(t.held): t for t in far}  # in place: the argument itself comes back
    return tree_map_only(torch.Tensor, lambda t: own[id(t)] if id(t) in own else FarTensor(t), out)


def _moved(source: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    device = kwargs.get("device")
    there = isinstance(source, FarTensor)
    to_there = there if device is None else device.type == DEVICE.type
    if there is not to_there:
        COUNTS["to_device" if to_there else "to_host"] += 1
    plain = {n: v for n, v in kwargs.items() if n in ("dtype", "layout", "memory_format")}
    made = torch.ops.aten._to_copy(_near(source), **plain)
    return FarTensor(made) if to_there else made


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


class Copy:
    """One on its way; also what it ends with."""

    def __init__(self, source: torch.Tensor, target: FarTensor) -> None:
        self._source, self._target, self.done = source, target, False
        target.held.fill_(float("nan"))

    def arrive(self) -> None:
        if not self.done:
            self._target.held.copy_(self._source)
            self.done = True


class Kernels(SparseKernels):
    """Torch's operators; `top_k` fails as a full GPU does when the device is told to."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def top_k(self, *arguments: Any) -> Any:
        if self._gpu.is_full:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return super().top_k(*arguments)


class SimulatedGpu(Gpu):
    """See the module docstring. free_gib: what is free of its 80 GiB."""

    def __init__(self, free_gib: float = 80.0) -> None:
        super().__init__(DEVICE, "cuda:7")
        self.free_gib, self.is_full = free_gib, False
        self.copies: list[Copy] = []
        self._operators = _Operators()

    def __enter__(self) -> Self:
        COUNTS.clear()
        self._operators.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._operators.__exit__(*raised)
        self.gathering.shutdown()

    def kernels(self, config: SAEConfig, sae: SparseAutoencoder) -> SparseKernels:
        return Kernels(self)

    def memory(self) -> tuple[int, int]:
        return int(self.free_gib * _GIB), 80 * _GIB

    def pinned(self, rows: int, width: int) -> torch.Tensor:
        return torch.empty(rows, width)

    def copy(self, source: torch.Tensor, target: torch.Tensor, after: Any) -> Copy:
        assert isinstance(target, FarTensor)
        self.copies.append(Copy(source, target))
        return self.copies[-1]

    def reached(self) -> None:
        """Operators are done when they return."""

    def wait(self, event: Copy) -> None:
        event.arrive()

    def finish(self, event: Copy) -> None:
        event.arrive()
