"""The `synthetic` host: a model of exactly known size that trains (or only runs) on random data.

It makes one forward hook cost one known payload: `linear` gives [rows, width] per layer,
`transformer` is the six-layer, 384-wide model that host slowdown is promised on.
"""

from __future__ import annotations

import time
from typing import Literal

import torch
from pydantic import Field

from asys_bench.contracts.host import (
    BaseHost,
    HostClock,
    HostError,
    HostOptions,
    HostPlugin,
    HostResult,
)


class SyntheticOptions(HostOptions):
    """Options of the `synthetic` host."""

    model: Literal["linear", "transformer"] = Field(
        default="linear", description="stack of Linear layers, or of transformer encoder layers"
    )
    layers: int = Field(default=1, ge=1, le=64, description="number of layers, `layers.0` and on")
    width: int = Field(default=1024, ge=8, le=16384, description="features per row")
    rows: int = Field(default=1, ge=1, le=65536, description="rows (tokens) per sequence")
    batch: int = Field(default=1, ge=1, le=4096, description="sequences per step")
    train: bool = Field(default=False, description="backward pass and SGD step as well")
    steps: int = Field(default=1_000_000_000, ge=1, description="steps before it ends by itself")
    pause_ms: float = Field(default=0.0, ge=0, le=1000, description="sleep between steps")


class SyntheticHost(BaseHost):
    """Steps are batches."""

    step_unit = "batch"

    def __init__(self, options: SyntheticOptions, seed: int) -> None:
        self._options, self._seed = options, seed
        self._model: torch.nn.Module | None = None

    def build(self) -> torch.nn.Module:
        """`layers` (a ModuleList-like Sequential) inside one module; hooks match `layers.*`."""
        options = self._options
        generator_state = torch.random.get_rng_state()
        torch.manual_seed(self._seed)
        try:
            self._model = _Stack(options)
        finally:
            torch.random.set_rng_state(generator_state)
        return self._model

    def run(self, clock: HostClock) -> HostResult:
        """Forward (and, if asked, backward and SGD) until `steps` or a stop."""
        model, options = self._model, self._options
        if model is None:
            raise HostError("run() before build()")
        generator = torch.Generator().manual_seed(self._seed)
        shape = (options.batch, options.rows, options.width)
        inputs = [torch.randn(shape, generator=generator) for _ in range(4)]
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4) if options.train else None
        started, done = time.monotonic(), 0
        while done < options.steps and not clock.should_stop:
            batch = inputs[done % len(inputs)]
            if optimizer is None:
                with torch.no_grad():
                    model(batch)
            else:
                optimizer.zero_grad(set_to_none=True)
                model(batch).square().mean().backward()
                optimizer.step()
                clock.weights_updated()
            done += 1
            clock.step(1)
            if options.pause_ms:
                time.sleep(options.pause_ms / 1e3)
        return HostResult(done, time.monotonic() - started, stopped_early=done < options.steps)


class _Stack(torch.nn.Module):
    def __init__(self, options: SyntheticOptions) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*(_layer(options) for _ in range(options.layers)))

    def forward(self, rows_BTD: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(rows_BTD)
        return out


def _layer(options: SyntheticOptions) -> torch.nn.Module:
    width = options.width
    if options.model == "linear":
        return torch.nn.Linear(width, width)
    heads = next(heads for heads in (6, 8, 4, 2, 1) if width % heads == 0)
    return torch.nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
    )


def _build(options: HostOptions, seed: int) -> BaseHost:
    assert isinstance(options, SyntheticOptions)
    return SyntheticHost(options, seed)


plugin = HostPlugin(
    name="synthetic",
    summary="a model of known size on random data, for benchmarks",
    options=SyntheticOptions,
    build=_build,
)
