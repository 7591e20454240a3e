"""`SAEWatchWorker`: watches a live model through SAEs that exist already; it trains nothing.

Each hook's rows go through its SAE (a folder of SAELens, ours included, of sparsify or of
dictionary_learning). Gauges tell how well the SAE fits the model now, over a window of recent rows,
and the densities of its features are written to `<run>/watch/<hook>-<incarnation>.json` at the end.
An SAE that stops fitting is a model that has moved on.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field

from asys_bench.contracts.bus import Delivery, Lease
from asys_bench.contracts.names import file_slug, matches
from asys_bench.contracts.packet import ActivationPacket
from asys_bench.contracts.run_files import WATCH_DIR, WATCH_SCHEMA
from asys_bench.contracts.sink import BaseSink, Misfit, SinkContext, SinkOptions, SinkPlugin
from asys_bench.contracts.stats import Counter, Gauge
from asys_bench.sae import CheckpointError, SparseAutoencoder
from asys_bench.sae.evaluation import ReconstructionMeter, ReconstructionReport
from asys_bench.sae.exchange import ExchangeError
from asys_bench.sinks.sae.device_options import DeviceOptions, device_of
from asys_bench.sinks.sae.start import missing, read_of_one_hook
from asys_bench.system.files.atomic import replace_file

log = logging.getLogger(__name__)


class SAEWatchOptions(DeviceOptions):
    """Options of the `sae_watch` sink."""

    saes: dict[str, str] = Field(
        min_length=1,
        description="fnmatch glob over hook names -> folder of the SAE to watch it with (SAELens, "
        "sparsify or dictionary_learning), or a run, of which the hook's SAE is taken; `hf://org/name` is "
        "fetched from the Hugging Face hub; "
        "the last glob that matches wins, hooks without one are passed over",
    )
    window_rows: int = Field(
        default=8192, ge=1, le=1 << 24, description="rows of one measurement, >= 1"
    )
    threads: int = Field(default=1, ge=1, le=1024, description="torch threads of the worker")

    def misfits(self, workers: int, hooks: Sequence[str]) -> Iterator[Misfit]:
        """A GPU that cannot be used, and folders that are not there; one of several SAEs is read when
        its hook is known."""
        yield from super().misfits(workers, hooks)
        yield from missing(self.saes, "name the folder of an SAE, or a run")

    def folder_of(self, hook: str) -> str | None:
        """The SAE's folder for `hook`; None for a hook that is not watched."""
        matching = [f for glob, f in self.saes.items() if matches(hook, glob)]
        return matching[-1] if matching else None


@dataclass
class _Watched:
    """One hook with its SAE: the window that fills up, and everything so far."""

    hook: str
    sae: SparseAutoencoder
    rows: Counter
    refused: Counter
    fvu: Gauge
    l0: Gauge
    dense: Gauge
    window: ReconstructionMeter
    total: ReconstructionMeter
    in_window: int = 0
    history: list[dict[str, float | None]] = field(default_factory=list)


class SAEWatchWorker(BaseSink):
    """See the module docstring."""

    def __init__(self, options: SAEWatchOptions) -> None:
        self._options = options
        self._watched: dict[int, _Watched | None] = {}

    def open(self, context: SinkContext) -> None:
        self._context = context
        torch.set_num_threads(self._options.threads)
        self._device = device_of(self._options, context)

    def consume(self, lease: Lease) -> None:
        for packet in lease:
            if packet.hook_id not in self._watched:
                self._watched[packet.hook_id] = self._load(self._context.name_of(packet.hook_id))
            watched = self._watched[packet.hook_id]
            if watched is not None and not packet.is_constant:
                self._measure(watched, packet)

    def close(self) -> None:
        """Write each hook's report."""
        for watched in self._watched.values():
            if watched is None or not watched.rows.value:
                continue
            if watched.in_window:
                self._publish(watched)
            self._write(watched)
            self._context.heartbeat()

    def _load(self, hook: str) -> _Watched | None:
        folder = self._options.folder_of(hook)
        if folder is None:
            return None
        try:
            sae = read_of_one_hook(folder, hook)
        except (CheckpointError, ExchangeError) as error:
            log.error("%s is not watched: %s", hook, error)
            return None
        slot = self._context.slot
        return _Watched(
            hook,
            sae.moved(self._device.tensors),
            rows=slot.counter("sae_watch_rows", hook=hook),
            refused=slot.counter("sae_watch_refused_rows", hook=hook),
            fvu=slot.gauge("sae_watch_fvu", hook=hook),
            l0=slot.gauge("sae_watch_l0", hook=hook),
            dense=slot.gauge("sae_watch_dense_ratio", hook=hook),
            window=ReconstructionMeter(sae.d_in, sae.d_sae),
            total=ReconstructionMeter(sae.d_in, sae.d_sae),
        )

    @torch.no_grad()
    def _measure(self, watched: _Watched, packet: ActivationPacket) -> None:
        tensor = self._context.decode(packet)
        if tensor.numel() == 0 or tensor.ndim == 0 or tensor.is_complex():
            return
        rows_ND = tensor.reshape(-1, tensor.shape[-1]).to(torch.float32, copy=True)
        sae = watched.sae
        if rows_ND.shape[1] != sae.d_in:
            watched.refused.add(len(rows_ND))
            return
        finite_N = torch.isfinite(rows_ND).all(1)
        watched.refused.add(int((~finite_N).sum()))
        rows_ND = rows_ND[finite_N]
        weight_N = torch.full((len(rows_ND),), 1.0 / packet.sampling_rate)
        there_ND = rows_ND.to(self._device.tensors)
        acts_NF, outlying_N = sae.encode(there_ND), sae.outlying(rows_ND)
        x_hat_ND = sae.reconstruct(there_ND, acts_NF).cpu()
        acts_NF = acts_NF.cpu()
        for meter in (watched.window, watched.total):
            meter.update(rows_ND, x_hat_ND, acts_NF, weight_N, outlying_N)
        watched.rows.add(len(rows_ND))
        watched.in_window += len(rows_ND)
        if watched.in_window >= self._options.window_rows:
            self._publish(watched)

    def _publish(self, watched: _Watched) -> None:
        report = watched.window.report()
        watched.fvu.set(report.fvu)
        watched.l0.set(report.l0)
        watched.dense.set(report.dense_fraction)
        watched.history.append(
            {"unix_s": round(time.time(), 3), "rows": report.rows, **_figures(report)}
        )
        watched.window = ReconstructionMeter(watched.sae.d_in, watched.sae.d_sae)
        watched.in_window = 0

    def _write(self, watched: _Watched) -> None:
        report = watched.total.report()
        document: dict[str, Any] = {
            "schema": WATCH_SCHEMA,
            "hook": watched.hook,
            "sae": self._options.folder_of(watched.hook),
            "rows": report.rows,
            **_figures(report),
            "density": report.density.to_plain(),
            "windows": watched.history,
        }
        folder = self._context.run_dir / WATCH_DIR
        folder.mkdir(mode=0o700, exist_ok=True)
        # A restarted worker begins anew: what an earlier one saw stays in its own file.
        attempt = f"{self._context.attempt}." if self._context.attempt else ""
        name = f"{file_slug(watched.hook)}-{attempt}{self._context.incarnation}.json"
        try:
            replace_file(
                folder / name, (json.dumps(document, indent=2) + "\n").encode(), sync=False
            )
        except OSError as error:
            log.error("%s: report not written: %s", watched.hook, error)


def _figures(report: ReconstructionReport) -> dict[str, float | None]:
    """Plain figures; JSON has no infinity."""
    finite = report.fvu if report.fvu != float("inf") else None
    return {
        "fvu": finite,
        "fvu_all": report.fvu_all if report.fvu_all != float("inf") else None,
        "outlier_share": report.outlier_share,
        "mse": report.mse,
        "l0": report.l0,
        "dead_fraction": report.dead_fraction,
        "dense_fraction": report.dense_fraction,
    }


def _build(options: SinkOptions) -> BaseSink:
    assert isinstance(options, SAEWatchOptions)
    return SAEWatchWorker(options)


plugin = SinkPlugin(
    name="sae_watch",
    summary="watches a live model through SAEs that exist already",
    options=SAEWatchOptions,
    build=_build,
    default_delivery=Delivery.AT_MOST_ONCE,
    preload=("asys_bench.sae",),
    partition=True,
)
