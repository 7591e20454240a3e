"""The unobserved twin of a run's host: the same steps with nothing of ours around them.

It says what the weights should be, and what the archive should hold: every row of every module whose
output, or the gradient of it, is archived as it is. A row is kept as a sum of 64 bits that no change of
one 32-bit word leaves as it was, so that a run of a million packets fits into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.capture.points.untrained_networks import unwrap
from asys_bench.config import MasterConfig

TWIN_FOLDER, NAMES = "twin", "names.json"
GRADIENT = ":gradient"
"""What a module's name ends in where its stream is the gradient of what it returns."""
Sums = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Twin:
    """weights: their digest. rows: by hook, the sums of its rows, [steps, rows of a step]."""

    weights: str
    rows: Mapping[str, Sums]

    def save(self, folder: Path) -> None:
        twin = folder / TWIN_FOLDER
        twin.mkdir()
        (twin / NAMES).write_text(json.dumps(list(self.rows)))
        for number, rows in enumerate(self.rows.values()):  # no .npz: ZIP knows no time before 1980
            np.save(twin / f"{number}.npy", rows)


def read_rows(folder: Path) -> dict[str, Sums]:
    """What `Twin.save` wrote; empty where there was no twin."""
    twin = folder / TWIN_FOLDER
    if not twin.is_dir():
        return {}
    names = json.loads((twin / NAMES).read_text())
    return {name: np.load(twin / f"{number}.npy") for number, name in enumerate(names)}


def digest(model: torch.nn.Module) -> str:
    """SHA-256 of every parameter and buffer, bit by bit."""
    whole = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(name.encode())
        whole.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def row_sums(rows_NW: npt.NDArray[Any]) -> Sums:
    """One sum per row of its 32-bit words, each times an odd number of its own (modulo 2**64)."""
    words = np.ascontiguousarray(rows_NW).view(np.uint32).astype(np.uint64)
    return np.asarray(words @ _odd_numbers(words.shape[1]), np.uint64)


@cache
def _odd_numbers(count: int) -> Sums:
    drawn = np.random.default_rng(0).integers(0, 1 << 63, count, np.uint64)
    return np.asarray(drawn * np.uint64(2) + np.uint64(1), np.uint64)


def train_twin(config: MasterConfig, steps: int, hooks: Sequence[str]) -> Twin:
    """Train the host of `config` for `steps` steps without any observer; keep the rows of `hooks`."""
    options = config.host.plugin_options()
    if "pause_ms" in type(options).model_fields:
        options = options.model_copy(update={"pause_ms": 0.0})
    host = config.host.plugin().build(options, config.run.seed)
    model = host.build()
    assert model is not None
    inner = unwrap(model)
    found = {hook: _Calls() for hook in hooks}
    handles = [
        module.register_forward_hook(_Recorder(found.get(name), found.get(name + GRADIENT)))
        for name, module in inner.named_modules()
    ]
    host.run(_Counted(steps))
    for handle in handles:
        handle.remove()
    weights = digest(inner)
    host.close()
    # One call a step, of one shape: the call's number is the step's.
    return Twin(
        weights,
        {
            name: np.frombuffer(calls.sums, np.uint64).reshape(steps, -1)
            for name, calls in found.items()
            if calls.count == steps > 0 and len(calls.sizes) == 1
        },
    )


class _Calls:
    """The sums of what came out of a module, call after call."""

    def __init__(self) -> None:
        self.sums, self.sizes, self.count = bytearray(), set[int](), 0

    def add(self, tensor: torch.Tensor) -> None:
        sums = row_sums(tensor.detach().reshape(-1, tensor.shape[-1]).numpy())
        self.sums += sums.tobytes()
        self.sizes.add(len(sums))
        self.count += 1


class _Recorder:
    """A forward hook that keeps the sums of what comes out, and of its gradient."""

    def __init__(self, outputs: _Calls | None, gradients: _Calls | None) -> None:
        self._outputs, self._gradients = outputs, gradients

    def __call__(self, module: torch.nn.Module, args: object, output: object) -> None:
        if not isinstance(output, torch.Tensor) or output.dtype is not torch.float32:
            return
        if self._outputs is not None:
            self._outputs.add(output)
        if self._gradients is not None and output.requires_grad:
            output.register_hook(self._gradients.add)  # type: ignore[no-untyped-call]


class _Counted:
    """A clock that nobody watches, which ends after `steps`."""

    def __init__(self, steps: int) -> None:
        self._left = steps
        self.should_stop = steps <= 0

    def step(self, n: int = 1) -> None:
        self._left -= n
        self.should_stop = self._left <= 0

    def weights_updated(self) -> None:
        return None

    def report(self, name: str, value: float) -> None:
        return None
