"""A host's state as two files, from which it goes on bit for bit: `host.safetensors` and `host.json`.

Weights and optimizer by name, random generators (torch's, numpy's, Python's), and what the host counts.
Never pickle: a reader trusts no folder.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asys_bench.sae.checkpoint.checkpoint_files import (
    CheckpointError,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)

TENSORS, NUMBERS = "host.safetensors", "host.json"
FORMAT = "asys.host/1"


def save_state(
    folder: Path,
    numbers: Mapping[str, Any],
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Write both files into `folder`.

    numbers: JSON values of the host's own. model, optimizer: None where they do not change.

    Raises:
        CheckpointError: a value is not finite, or the disk refuses.
    """
    tensors: dict[str, torch.Tensor] = {"rng.torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states = torch.cuda.get_rng_state_all()
        tensors |= {f"rng.cuda.{index}": state for index, state in enumerate(states)}
    if model is not None:
        tensors |= {f"model.{name}": value for name, value in model.state_dict().items()}
    groups: list[dict[str, Any]] = []
    scalars: dict[str, Any] = {}
    if optimizer is not None:
        state = optimizer.state_dict()
        groups = state["param_groups"]
        for index, entries in state["state"].items():
            for name, value in entries.items():
                held = tensors if isinstance(value, torch.Tensor) else scalars
                held[f"optimizer.{index}.{name}"] = value
    # Copies: a safetensors file holds no two tensors of one memory, as tied weights are.
    write_tensors(folder / TENSORS, {name: value.clone() for name, value in tensors.items()})
    write_json(
        folder / NUMBERS,
        {
            "format": FORMAT,
            "numbers": dict(numbers),
            "optimizer": {"groups": groups, "scalars": scalars},
            "random": {"python": _plain(random.getstate()), "numpy": _numpy_state()},
        },
    )


def load_state(
    folder: Path,
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, Any]:
    """Put back what `save_state` wrote, random generators included; returns the numbers.

    Raises:
        CheckpointError: a file is damaged, or the state is of another model or optimizer.
    """
    document = read_json(folder / NUMBERS)
    if document.get("format") != FORMAT:
        raise CheckpointError(folder / NUMBERS, f"format {document.get('format')!r}")
    tensors = read_tensors(folder / TENSORS)
    try:
        numbers = dict(document["numbers"])
        if model is not None:
            model.load_state_dict(_part(tensors, "model."))
        if optimizer is not None:
            optimizer.load_state_dict(_optimizer_state(document["optimizer"], tensors))
        _put_back_random(document["random"], tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            folder, f"is of another model, or damaged: {str(error).splitlines()[0][:300]}"
        ) from error
    return numbers


def _part(tensors: Mapping[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(start): value for n, value in tensors.items() if n.startswith(start)}


def _optimizer_state(
    document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    entries = {**_part(tensors, "optimizer."), **_scalars(document["scalars"])}
    for path, value in entries.items():
        index, _, name = path.partition(".")
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": document["groups"]}


def _scalars(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("optimizer."): value for name, value in entries.items()}


def _numpy_state() -> dict[str, Any]:
    state: Any = np.random.get_state(legacy=False)
    return {
        "key": state["state"]["key"].tolist(),
        "pos": int(state["state"]["pos"]),
        "has_gauss": int(state["has_gauss"]),
        "gauss": float(state["gauss"]),
    }


def _put_back_random(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    version, internal, gauss = document["python"]
    random.setstate((version, tuple(internal), gauss))
    ours = document["numpy"]
    key = np.array(ours["key"], dtype=np.uint32)
    np.random.set_state(("MT19937", key, ours["pos"], ours["has_gauss"], ours["gauss"]))
    torch.set_rng_state(tensors["rng.torch"])
    for name, state in _part(tensors, "rng.cuda.").items():
        if torch.cuda.is_available() and int(name) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name))


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


# What an environment has in its attributes: numbers and arrays, of its wrappers too.

_SKIPPED = ("episode_returns", "episode_lengths", "episode_times", "t_start")
"""Statistics of a stable-baselines3 Monitor, which grow and which nothing depends on."""


def environment_state(environment: Any) -> list[dict[str, Any]]:
    """Of each wrapper, outermost first, and of the environment itself, as JSON."""
    found = []
    for layer in _layers(environment):
        entries = {
            name: as_json(value)
            for name, value in vars(layer).items()
            if name not in _SKIPPED and _is_plain(value)
        }
        generator = getattr(layer, "_np_random", None)
        state = (
            generator.bit_generator.state if isinstance(generator, np.random.Generator) else None
        )
        found.append({"attributes": entries, "random": state})
    return found


def put_back_environment(environment: Any, saved: list[dict[str, Any]]) -> None:
    """Raises ValueError: it has other wrappers than the one that was saved."""
    layers = _layers(environment)
    if len(layers) != len(saved):
        raise ValueError(f"{len(layers)} layers of an environment, {len(saved)} were saved")
    environment.reset()  # makes what is no number
    for layer, entries in zip(layers, saved, strict=True):
        for name, value in entries["attributes"].items():
            setattr(layer, name, from_json(value))
        if entries["random"] is not None:
            layer._np_random.bit_generator.state = entries["random"]


def _layers(environment: Any) -> list[Any]:
    found = [environment]
    while (inner := vars(found[-1]).get("env")) is not None:
        found.append(inner)
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf" and value.size <= 4096
    if isinstance(value, list | tuple):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, bool | int | float | str | np.generic)


def as_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        scalar = isinstance(value, np.generic)
        # As bits: JSON has no infinity.
        return {
            "dtype": array.dtype.str, "shape": list(array.shape), "hex": array.tobytes().hex(),
            "scalar": scalar,
        }  # fmt: skip
    if isinstance(value, list | tuple):
        return {"tuple": isinstance(value, tuple), "of": [as_json(one) for one in value]}
    if isinstance(value, float):
        return {"float": value.hex()}
    return value


def from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float.fromhex(value["float"])
    if "of" in value:
        held = [from_json(one) for one in value["of"]]
        return tuple(held) if value["tuple"] else held
    array = np.frombuffer(bytes.fromhex(value["hex"]), dtype=np.dtype(value["dtype"]))
    array = array.reshape(value["shape"]).copy()
    return array[()] if value["scalar"] else array
