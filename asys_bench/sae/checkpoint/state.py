"""State of the trainer's parts: tensors and JSON scalars, never pickles."""

from __future__ import annotations

import torch

StateDict = dict[str, torch.Tensor | int | float]
"""What a part's `state_dict` returns. Tensors go to safetensors, numbers to JSON."""

MOST, MOST_COUNTED = 1e36, 1e18
"""No number of a state is larger: squares of the largest rows stay below float32's end, counts in int64."""
_NONE_YET = ("best", "tracker.best", "last", "limit")
"""Numbers for which -1 stands for infinity or NaN."""
_NEVER_NEGATIVE = ("exp_avg_sq", "weight", "counts", "chunks")


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
            least = 0.0 if name.endswith(_NEVER_NEGATIVE) else -MOST
            if lowest < least or highest > MOST:
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
