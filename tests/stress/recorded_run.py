"""`asys-run` with a record beside it, for tests that kill it: `recorded_run.py RECORD HOOK,... ARGUMENTS`.

The host writes to the folder RECORD, in one file for each attempt: a line as a forward pass of a HOOK begins,
and a line as it has ended, behind our own hook, with its host step and a checksum of each row that is no
padding. A line is one `write`, so what a SIGKILL leaves is what the host did. It also says
whether the state that the host loaded is the one that was saved, by saving it once more.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch

from asys_bench.cli.run import main as asys_run
from asys_bench.contracts.run_files import STATE_DIR
from asys_bench.run.experiment import ExperimentPipeline
from asys_bench.sae.checkpoint.checkpoint_files import read_tensors


def checksums(rows_ND: torch.Tensor) -> list[int]:
    return [zlib.crc32(row) for row in rows_ND.detach().contiguous().numpy()]


class Recorder:
    """Hooks on the host's model; they are registered after ours, so they run after them."""

    def __init__(self, pipeline: ExperimentPipeline, folder: Path, hooks: str) -> None:
        assert pipeline.run_dir is not None
        self._pipeline = pipeline
        self._mask: torch.Tensor | None = None
        path = folder / f"{pipeline.run_dir.attempt}.jsonl"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        model = model_of(pipeline)
        model.register_forward_pre_hook(self._begin_text, with_kwargs=True)
        for hook in hooks.split(","):
            module = model.get_submodule(hook)
            module.register_forward_pre_hook(partial(self._begins, hook))
            module.register_forward_hook(partial(self._ended, hook))
        self._say({"loaded": same_state(pipeline)})

    @property
    def _step(self) -> int:
        return int(self._pipeline.session.clock.host_step)

    def _begin_text(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._mask = kwargs.get("attention_mask")

    def _begins(self, hook: str, module: Any, args: Any) -> None:
        self._say({"hook": hook, "begins": self._step})

    def _ended(self, hook: str, module: Any, args: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        rows_ND = output.reshape(-1, output.shape[-1])
        kept = torch.arange(len(rows_ND))
        if self._mask is not None and self._mask.numel() == len(rows_ND):
            kept = kept[self._mask.reshape(-1) != 0]
        self._say({"hook": hook, "step": self._step, "crc": checksums(rows_ND[kept])})

    def _say(self, entry: dict[str, Any]) -> None:
        os.write(self._fd, json.dumps(entry).encode() + b"\n")


def model_of(pipeline: ExperimentPipeline) -> torch.nn.Module:
    """PPO's policy, or the transformers host's model."""
    model = pipeline._host._model  # type: ignore[union-attr]
    found = getattr(model, "policy", model)
    assert isinstance(found, torch.nn.Module)
    return found


def same_state(pipeline: ExperimentPipeline) -> bool | None:
    """Whether the host, saved again, gives the files that it was loaded from; None: it began anew."""
    assert pipeline.run_dir is not None
    latest = pipeline.run_dir.path / STATE_DIR / "latest"
    if not pipeline.run_dir.attempt or not latest.exists():
        return None
    with tempfile.TemporaryDirectory() as again:
        pipeline._host.save(Path(again))  # type: ignore[union-attr]
        tensors = [read_tensors(folder / "host.safetensors") for folder in (latest, Path(again))]
        documents = [(folder / "host.json").read_text() for folder in (latest, Path(again))]
    assert tensors[0].keys() == tensors[1].keys()
    return documents[0] == documents[1] and all(
        torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0]
    )


def main(record: str, hooks: str, *arguments: str) -> int:
    setup = ExperimentPipeline.setup

    def recorded(self: ExperimentPipeline) -> None:
        setup(self)
        Recorder(self, Path(record), hooks)

    ExperimentPipeline.setup = recorded  # type: ignore[method-assign]
    return asys_run(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
