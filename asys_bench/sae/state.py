"""State of the trainer's parts: tensors and JSON scalars, never pickles."""

from __future__ import annotations

import torch

StateDict = dict[str, torch.Tensor | int | float]
"""What a part's `state_dict` returns. Tensors go to safetensors, numbers to JSON."""


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


def pick(state: StateDict, part: str) -> StateDict:
    """The entries under `part.`, without the prefix."""
    prefix = part + "."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def put(state: StateDict, part: str, entries: StateDict) -> None:
    """Add `entries` under `part.`."""
    state.update({f"{part}.{key}": value for key, value in entries.items()})
