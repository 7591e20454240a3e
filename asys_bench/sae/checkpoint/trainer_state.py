"""The trainer's own files beside the SAE: what a resumed run needs to go on bit for bit.

trainer_state.json         version, config, numbers
trainer_state.safetensors  unfolded weights, Adam moments, reservoir, held-out rows, RNG states
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from asys_bench.config.document import REMOVED_SAE_OPTIONS
from asys_bench.sae.checkpoint.checkpoint_files import (
    CheckpointError,
    CheckpointVersionError,
    StateDict,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from asys_bench.sae.config import SAEConfig
from asys_bench.system.files.below import MAX_MODEL_BYTES

STATE_JSON = "trainer_state.json"
STATE_TENSORS = "trainer_state.safetensors"
STATE_VERSION = 2


@dataclass(frozen=True, slots=True)
class TrainerState:
    """Everything read from, or to be written to, the two files."""

    config: SAEConfig
    d_in: int
    state: StateDict
    d_out: int | None = None
    """Width of a transcoder's target; None for autoencoders."""
    hook_name: str = ""
    """Of the rows that it was trained on; "" where nobody wrote it down."""


def write_state(folder: Path, saved: TrainerState) -> None:
    """Write both files into `folder`.

    Raises:
        CheckpointError: something is not finite.
    """
    tensors = {k: v for k, v in saved.state.items() if not isinstance(v, int | float)}
    numbers = {k: v for k, v in saved.state.items() if isinstance(v, int | float)}
    write_tensors(folder / STATE_TENSORS, tensors)
    write_json(
        folder / STATE_JSON,
        {
            "version": STATE_VERSION,
            "d_in": saved.d_in,
            "d_out": saved.d_out,
            "hook_name": saved.hook_name,
            "config": saved.config.model_dump(mode="json"),
            "numbers": numbers,
        },
    )


def read_state(folder: Path) -> TrainerState:
    """Read both files.

    Raises:
        CheckpointError: missing, damaged, or of another version.
    """
    path = folder / STATE_JSON
    data = _read_json(path)
    d_in, d_out, numbers = data.get("d_in"), data.get("d_out"), data.get("numbers")
    if not isinstance(d_in, int) or d_in < 1 or not isinstance(numbers, dict):
        raise CheckpointError(path, "d_in or numbers are missing")
    if d_out is not None and (not isinstance(d_out, int) or d_out < 1):
        raise CheckpointError(path, f"d_out is {d_out!r}")
    hook_name = data.get("hook_name", "")
    if not isinstance(hook_name, str):
        raise CheckpointError(path, f"hook_name is {hook_name!r}")
    config = _config(path, data)
    state: StateDict = {name: _number(path, name, value) for name, value in numbers.items()}
    state.update(read_tensors(folder / STATE_TENSORS))
    _check_sizes(path, config, d_in, d_out, state)
    return TrainerState(config, d_in, state, d_out, hook_name)


def read_config(folder: Path) -> SAEConfig:
    """How the SAE of a checkpoint was trained, without its tensors.

    Raises:
        CheckpointError: as `read_state`.
    """
    path = folder / STATE_JSON
    return _config(path, _read_json(path))


def _read_json(path: Path) -> dict[str, Any]:
    data = read_json(path, MAX_MODEL_BYTES)
    if data.get("version") != STATE_VERSION:
        raise CheckpointVersionError(
            path, f"version {data.get('version')!r} is not supported; valid: {STATE_VERSION}"
        )
    return data


def _config(path: Path, data: dict[str, Any]) -> SAEConfig:
    config = data.get("config")
    if isinstance(config, dict):
        config = {name: value for name, value in config.items() if name not in REMOVED_SAE_OPTIONS}
    try:
        return SAEConfig.model_validate(config)
    except ValidationError as error:
        raise CheckpointError(path, f"config: {error}") from None


def _check_sizes(
    path: Path, config: SAEConfig, d_in: int, d_out: int | None, state: StateDict
) -> None:
    """Refuse sizes that the tensors do not have, before any memory is taken for them."""
    W_enc, W_dec = state.get("learner.sae.W_enc"), state.get("learner.sae.W_dec")
    if not isinstance(W_enc, torch.Tensor) or not isinstance(W_dec, torch.Tensor):
        raise CheckpointError(path.with_name(STATE_TENSORS), "W_enc or W_dec is missing")
    try:
        d_sae = config.features(d_in)
    except (ValueError, OverflowError) as error:
        raise CheckpointError(path, f"config: {error}") from None
    wanted = (d_in, d_sae), (d_sae, d_out or d_in)
    if (tuple(W_enc.shape), tuple(W_dec.shape)) != wanted:
        raise CheckpointError(
            path,
            f"its sizes make W_enc {wanted[0]} and W_dec {wanted[1]}, the tensors are "
            f"{tuple(W_enc.shape)} and {tuple(W_dec.shape)}",
        )


def _number(path: Path, name: str, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise CheckpointError(path, f"number {name!r} is {value!r}")
    return value


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is no float
        return False
