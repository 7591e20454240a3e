"""Reading and writing single checkpoint files: safetensors and JSON, never pickle.

A reader's every failure is a `CheckpointError` that names the file and the reason. Nothing is forced to
the device here: `CheckpointStore` does that for a whole folder, as the run's policy says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from asys_bench.system.files import below
from asys_bench.system.files.atomic import FILE_MODE, open_private

MAX_HEADER_BYTES = 1 << 20
"""Of a safetensors file: a JSON object with one entry per tensor."""

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_NAMES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.float16: "F16",
}  # fmt: skip


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or must not be written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class CheckpointVersionError(CheckpointError):
    """A checkpoint of another version of this software: whole, and not to be resumed from here."""


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write one JSON object.

    Raises:
        CheckpointError: a NaN or infinity, which JSON has no literal for.
    """
    try:
        text = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise CheckpointError(path, f"not written: {error}") from None
    fd = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text + "\n")


def read_json(path: Path, most_bytes: int = below.MAX_DOCUMENT_BYTES) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        CheckpointError: unreadable, not JSON, or not an object.
    """
    try:
        data = below.read_json(path, most_bytes)
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(path, f"holds a {type(data).__name__}, not an object")
    return data


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write contiguous copies.

    Raises:
        CheckpointError: a tensor is not finite, or the disk refuses.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise CheckpointError(path, f"not written: tensor {name!r} is not finite")
    owned = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(owned, path)
    except SafetensorError as error:  # its way to say that the disk refused
        raise CheckpointError(path, f"not written: {error}") from error
    path.chmod(FILE_MODE)


def tensor_parts(tensors: Mapping[str, torch.Tensor]) -> list[bytes | memoryview]:
    """A safetensors file of contiguous tensors on the CPU, of the types in `_NAMES`, as buffers that follow
    each other: the bytes of `safetensors.torch.save`, which copies each tensor twice."""
    header: dict[str, Any] = {}
    data: list[bytes | memoryview] = []
    at = 0
    order = list(_NAMES)
    for name in sorted(tensors, key=lambda one: (order.index(tensors[one].dtype), one)):
        tensor = tensors[name]
        span = [at, at + tensor.nbytes]
        header[name] = {
            "dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span,
        }  # fmt: skip
        if span[1] > at:
            data.append(tensor.numpy().data.cast("B"))
        at = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *data]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor in `path`, on the CPU.

    Raises:
        CheckpointError: unreadable, truncated, not safetensors, or not finite.
    """
    try:
        _check_header(path)
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, MemoryError) as error:
        raise CheckpointError(path, f"cannot be read as safetensors: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
            raise CheckpointError(path, f"tensor {name!r} is {tensor.dtype}, which no SAE has")
        if not is_finite(tensor):
            raise CheckpointError(path, f"tensor {name!r} is not finite")
    return tensors


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number of it is infinite or NaN (which the smallest and the largest then are: of float16 a
    twentieth of the time of `torch.isfinite`)."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach()))


def _check_header(path: Path) -> None:
    """Raises OSError or ValueError: it is no regular file, or its header is no SAE's."""
    fd = below.open_file(path)
    try:
        length = int.from_bytes(os.pread(fd, 8, 0), "little")
    finally:
        os.close(fd)
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes; an SAE's has at most {MAX_HEADER_BYTES}")


# State of the trainer's parts: tensors and JSON scalars, never pickles.

StateDict = dict[str, torch.Tensor | int | float]
"""What a part's `state_dict` returns. Tensors go to safetensors, numbers to JSON."""

MOST, MOST_COUNTED = 1e36, 10**18
"""No number of a state is larger: squares of the largest rows stay below float32's end, counts in int64."""
_SQUARES, MOST_SQUARED = ("chunks",), 1e75
"""Moments in float64: squares of differences of what `MOST` bounds, so that a state that was accepted
stays acceptable when training has gone on from it."""
_NONE_YET = ("best", "tracker.best", "last", "limit")
"""Numbers for which -1 stands for infinity or NaN."""
_NEVER_NEGATIVE = ("exp_avg_sq", "row_steps", "weight", "counts", "chunks")


def tensor_of(state: StateDict, key: str) -> torch.Tensor:
    """The tensor `key`.

    Raises:
        ValueError: it is missing or a number.
    """
    value = state.get(key)
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"state has no tensor {key!r}")
    return value


def number_of(state: StateDict, key: str) -> float:
    """The finite number `key`.

    Raises:
        ValueError: it is missing or a tensor.
    """
    value = state.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"state has no number {key!r}")
    return value


def check_like(state: StateDict, like: StateDict) -> None:
    """Compare what was read with what a part of this kind writes (`like`).

    Raises:
        ValueError: a tensor of another dtype or with values that no training has, a count that is none, a
            number out of range.
    """
    for name in like.keys() & state.keys():
        value, wanted = state[name], like[name]
        if isinstance(wanted, torch.Tensor):
            dtype = tensor_of(state, name).dtype
            if dtype != wanted.dtype:
                raise ValueError(f"{name!r} is {dtype}, not {wanted.dtype}")
            continue
        number, most = number_of(state, name), MOST_COUNTED if isinstance(wanted, int) else MOST
        if isinstance(wanted, int) and not isinstance(number, int):
            raise ValueError(f"{name!r} is {value!r}, not a whole number")
        if not (0 <= number <= most or (number == -1 and name in _NONE_YET)):
            raise ValueError(f"{name!r} is {value!r}, and no training has that")
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            lowest, highest = (float(bound) for bound in torch.aminmax(value))
            most = MOST_SQUARED if name.endswith(_SQUARES) else MOST
            least = 0.0 if name.endswith(_NEVER_NEGATIVE) else -MOST
            if lowest < least or highest > most:
                raise ValueError(
                    f"{name!r} holds {lowest:g} to {highest:g}, and no training has that"
                )


def pick(state: StateDict, part: str) -> StateDict:
    """The entries under `part.`, without the prefix."""
    prefix = part + "."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def put(state: StateDict, part: str, entries: StateDict) -> None:
    """Add `entries` under `part.`."""
    state.update({f"{part}.{key}": value for key, value in entries.items()})
