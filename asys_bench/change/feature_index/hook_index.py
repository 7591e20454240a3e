"""One hook's index with its SAE, which is looked for, loaded and replaced by newer checkpoints: rows in,
files out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from asys_bench.change.feature_index.batches import Batch, Pairs, Part
from asys_bench.change.feature_index.files import IndexFiles
from asys_bench.change.feature_index.index import WORKING_BYTES, Index, most_rows
from asys_bench.change.feature_index.options import FeatureIndexOptions
from asys_bench.change.feature_index.slots import Ints
from asys_bench.change.sae_choice import OF_RUN
from asys_bench.change.timeline.firing import codes_of
from asys_bench.contracts.run_files import checkpoint_order
from asys_bench.contracts.sink import SinkContext
from asys_bench.rundir.feature_index_layout import Sizes
from asys_bench.sae import CheckpointError, SparseAutoencoder, latest_checkpoint, load_sae
from asys_bench.sae.checkpoint.lives import read_lives
from asys_bench.sae.config import OF_SEVERAL_HOOKS
from asys_bench.sae.exchange import ExchangeError, import_sae
from asys_bench.sae.exchange.hub import is_hub
from asys_bench.sae.kernels.native import kernels
from asys_bench.sae.kernels.sparse_kernels import SparseKernels
from asys_bench.sae.training.device import CPU
from asys_bench.sinks.sae.start import StartFrom
from asys_bench.system.files.atomic import Fsync

log = logging.getLogger(__name__)
LOOKED_FOR_S, RELOADED_S = 1.0, 10.0
"""How often a checkpoint is looked for while there is none, and a newer one at the most."""
RELOAD_SHARE = 1 / 20
LATEST_S = 0.5
"""How often is written when each feature fired last."""
WRITTEN_S, WRITE_SHARE, WRITE_BYTES_PER_S = 1.0, 1 / 20, 4 << 20
"""The files are written this often, or as often as takes that share of the time, or so much of the disk."""
BATCH_ROWS, BATCH_BYTES = 1024, 4 << 20
"""Packets of so many rows are indexed by themselves, others when so many are there."""
ENCODED_BYTES = 4 << 20
"""Of rows, or pre-activations, at a time."""


class HookIndex:
    """See the module docstring. folder: of the SAE, or `OF_RUN`."""

    def __init__(
        self, name: str, folder: str, options: FeatureIndexOptions, context: SinkContext
    ) -> None:
        self.name, self._folder, self._options, self._context = name, folder, options, context
        self.files = IndexFiles(context.run_dir, name, sync=context.fsync is Fsync.ALWAYS)
        self.index: Index | None = None
        self.batch: list[Part] = []
        self.batch_rows = self.batch_bytes = 0
        self.batch_since_s = 0.0
        self.changed = False
        self.written_at_s = self.write_after_s = self.latest_at_s = -math.inf
        self.fired = False
        """Rows have come since that was written."""
        slot = context.slot
        self.rows = slot.counter("feature_index_rows", hook=name)
        self.left_out = slot.counter("feature_index_left_out_rows", hook=name)
        self.refused = slot.counter("feature_index_refused_rows", hook=name)
        self._sae: SparseAutoencoder | None = None
        self._kernels: SparseKernels | None = None
        self._sae_path: Path | None = None
        self._sae_name, self._sae_step = "", 0
        self._look_at_s = -math.inf
        self._usual = 0.0
        """Features that fire in a row."""
        self._said: set[str] = set()

    def say(self, what: str, *details: object, level: int = logging.WARNING) -> None:
        """A line in the log, once of each kind."""
        if what not in self._said:
            self._said.add(what)
            log.log(level, f"%s: {what}", self.name, *details)

    # ---- its SAE

    def is_ready(self, width: int, text: bool) -> bool:
        """Whether there is an SAE for rows of this width; looks for a (newer) one now and then."""
        now_s = time.monotonic()
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + (LOOKED_FOR_S if self._sae is None else RELOADED_S)
            try:
                self._look(text)
            except (CheckpointError, ExchangeError, OSError) as error:
                if is_hub(self._folder):  # was there when the run began; not asked again and again
                    self._look_at_s = math.inf
                    self.say("has no index, its SAE cannot be read: %s", str(error))
                else:
                    self.say("its SAE cannot be read (it is tried again): %s", str(error))
        if self._sae is None or self.index is None:
            return False
        if self._sae.d_in != width:
            self.say("rows of %d numbers are not indexed: its SAE takes %d", width, self._sae.d_in)
        return self._sae.d_in == width

    def _look(self, text: bool) -> None:
        if self._sae is not None and self._folder != OF_RUN:
            return
        began_s = time.monotonic()
        if self._folder == OF_RUN:
            path = latest_checkpoint(self._context.run_dir, self.name)
        else:
            path = StartFrom(path=self._folder).folder_for(self.name).resolve()
        if path is None:
            waits = "rows are not indexed before the run has a checkpoint of its SAE"
            self.say(waits, level=logging.INFO)  # so begins every run with SAEs of its own
        if path is None or path == self._sae_path:
            return
        sae = load_sae(path)[0] if self._folder == OF_RUN else import_sae(path)[0]
        if sae.name in OF_SEVERAL_HOOKS:
            self.say("has no index: a %s needs the rows of other hooks too (%s)", sae.name, path)
            self._look_at_s = math.inf
            return
        sae = sae.eval().requires_grad_(False)
        lives = read_lives(path)
        generation_F = np.zeros(sae.d_sae, np.int64) if lives is None else lives.generation.numpy()
        if len(generation_F) != sae.d_sae:
            raise CheckpointError(path, f"has {len(generation_F)} lives of {sae.d_sae} features")
        self.settle()  # with the SAE that they came for
        self._begin(sae, path, generation_F, text)
        if self._sae is sae:
            taken_s = time.monotonic() - began_s
            self._look_at_s = time.monotonic() + max(RELOADED_S, taken_s / RELOAD_SHARE)

    def _begin(self, sae: SparseAutoencoder, path: Path, generation_F: Ints, text: bool) -> None:
        name = self._named(path)
        before = self._sae if self._sae is not None and self._sae.d_in == sae.d_in else None
        most = int(self._options.max_mib * (1 << 20)) - WORKING_BYTES
        if self.index is not None and self.index.sizes.d_sae != sae.d_sae:
            log.warning("%s: the SAE has %d features now, and had %d: its index begins anew", self.name,
                        sae.d_sae, self.index.sizes.d_sae)  # fmt: skip
            self.write()
            self.files.set_aside()
            self.index = None
        if self.index is None:
            adopted = self.files.adopt(sae.d_sae, most)
            sizes = Sizes.fitting(sae.d_sae, text, most)
            if adopted is not None:
                self.index = adopted.index
                if adopted.sae != name:
                    self.index.renew(self._before(adopted.sae, sae), sae, generation_F)
            elif sizes is None:
                least = (Sizes(sae.d_sae, 1, text).nbytes + WORKING_BYTES) / (1 << 20)
                self.say(
                    "has no index: %d features need max_mib: %.0f", sae.d_sae, math.ceil(least)
                )
                self._sae, self._look_at_s = None, math.inf
                return
            else:
                self.index = Index(sizes)
                self.index.columns["generation"][:] = generation_F
        else:
            self.index.renew(before, sae, generation_F)
        self._sae, self._sae_path, self._sae_name = sae, path, name
        order = checkpoint_order(path.name)
        self._sae_step = min(order[0], (1 << 31) - 1) if order is not None else 0
        self._kernels = CPU.kernels(sae.config, sae)
        self._usual = float(sae.config.k) if sae.name == "topk" else float(sae.d_sae)
        self.changed = True

    def _named(self, path: Path) -> str:
        """A checkpoint of the run by its place in the run's folder, which may be moved."""
        run_dir = self._context.run_dir.resolve()
        real = path.resolve()
        return real.relative_to(run_dir).as_posix() if real.is_relative_to(run_dir) else str(real)

    def _before(self, name: str, sae: SparseAutoencoder) -> SparseAutoencoder | None:
        """The SAE that an earlier worker has read rows with, if it is still there."""
        try:
            found = load_sae(self._context.run_dir / name)[0]
        except (CheckpointError, OSError):
            return None
        return found if (found.d_in, found.d_sae) == (sae.d_in, sae.d_sae) else None

    # ---- rows

    def take(self, part: Part) -> None:
        """Rows for the index. What is not indexed at once is copied."""
        if self.index is None or self._sae is None or part.x_RD.shape[1] != self._sae.d_in:
            self.left_out.add(len(part))  # they have waited, and the SAE is another now
            return
        if len(part) >= BATCH_ROWS:
            self.settle()
            self._index([part])
            return
        if not self.batch:
            self.batch_since_s = time.monotonic()
        self.batch.append(part.owned())
        self.batch_rows += len(part)
        self.batch_bytes += part.x_RD.nbytes
        if self.batch_rows >= BATCH_ROWS or self.batch_bytes >= BATCH_BYTES:
            self.settle()

    def settle(self) -> None:
        """Index the rows that wait for others."""
        batch, self.batch = self.batch, []
        self.batch_rows = self.batch_bytes = 0
        if batch:
            self._index(batch)

    def _index(self, parts: Sequence[Part]) -> None:
        gathered: list[Part] = []
        rows = 0
        for part in parts:
            left: Part | None = part
            while left is not None:
                piece, left = left.cut(most_rows(self._usual))
                if rows and rows + len(piece) > most_rows(self._usual):
                    self._add(gathered)
                    gathered, rows = [], 0
                gathered.append(piece)
                rows += len(piece)
                if left is not None:
                    self._add(gathered)
                    gathered, rows = [], 0
        self._add(gathered)

    def _add(self, parts: list[Part]) -> None:
        parts = [finite for part in parts if (finite := self._finite(part)) is not None]
        if not parts:
            return
        assert self.index is not None
        pairs = self._pairs(parts)
        batch = Batch.of(parts)
        self.index.add(batch, pairs, self._sae_step)
        self._usual = max(1.0, len(pairs.feature_N) / len(batch), 0.5 * self._usual)
        self.rows.add(len(batch))
        self.changed = self.fired = True
        self._context.heartbeat()

    def _finite(self, part: Part) -> Part | None:
        """Without rows that are not finite numbers."""
        x_RD = part.x_RD
        # A sum of finite numbers may overflow; it only sends to the closer look.
        if not x_RD.is_floating_point() or math.isfinite(float(x_RD.sum(dtype=torch.float32))):
            return part
        there_R = torch.isfinite(x_RD.to(torch.float32)).all(1).numpy()
        kept = int(there_R.sum())
        if kept == len(part):
            return part
        self.refused.add(len(part) - kept)
        self.say("rows that are not finite are left out of its index")
        return part.some(there_R) if kept else None

    @torch.no_grad()
    def _pairs(self, parts: Sequence[Part]) -> Pairs:
        """What fires in the rows of the parts, encoded some rows at a time."""
        sae = self._sae
        assert sae is not None
        assert self._kernels is not None
        # The compiled kernels take a block of pre-activations after another themselves.
        blocks = kernels() is not None and sae.encoder_bias_name == "b_enc"
        at_once = max(16, ENCODED_BYTES // (4 * (sae.d_in if blocks else max(sae.d_sae, sae.d_in))))
        sizes, features, values = [], [], []
        small = [part.x_RD.to(torch.float32) for part in parts] if len(parts) > 1 else []
        x_RD = torch.cat(small) if small else parts[0].x_RD
        for start in range(0, len(x_RD), at_once):
            x_BD = x_RD[start : start + at_once].to(torch.float32)
            codes, kept_B = codes_of(sae, x_BD, self._kernels)
            fires_N = codes.value_N > 0
            codes = codes if bool(fires_N.all()) else codes.kept(fires_N)
            size_B = np.zeros(len(x_BD), np.int64)
            size_B[kept_B.numpy()] = codes.offset_B.diff().numpy()
            sizes.append(size_B)
            features.append(codes.feature_N.numpy().astype(np.int64))
            values.append(codes.value_N.numpy().astype(np.float32))
        offset_R = np.r_[0, np.cumsum(np.concatenate(sizes))]
        return Pairs(offset_R, np.concatenate(features), np.concatenate(values))

    # ---- files

    def write_if_due(self, now_s: float) -> None:
        if self.fired and now_s >= self.latest_at_s + LATEST_S:
            self._write_latest()
        if self.changed and now_s >= self.written_at_s + max(WRITTEN_S, self.write_after_s):
            self.settle()
            self.write()

    def _write_latest(self) -> None:
        assert self.index is not None
        try:
            self.files.write_latest(self.index)
        except OSError as error:
            self.say("when features fired last is not written (it is tried again): %s", str(error))
        self.fired, self.latest_at_s = False, time.monotonic()

    def write(self) -> None:
        """Write what has changed; a disk that refuses is asked again later."""
        if self.index is None or not self.changed:
            return
        context, began_s = self._context, time.monotonic()
        about = {
            "sae": self._sae_name,
            "sae_step": self._sae_step,
            "worker": context.name,
            "attempt": context.attempt,
            "incarnation": context.incarnation,
            "unix_ns": time.time_ns(),
        }
        try:
            self.files.write(self.index, about)
            self.changed = False
        except OSError as error:
            self.say("its index is not written (it is tried again): %s", str(error))
        self.written_at_s = time.monotonic()
        taken_s, nbytes = self.written_at_s - began_s, self.index.sizes.nbytes
        self.write_after_s = max(taken_s / WRITE_SHARE, nbytes / WRITE_BYTES_PER_S)
        context.heartbeat()

    def end(self) -> None:
        """Write everything; no more rows come."""
        self.write()
        with suppress(OSError):  # it is old, then, and the index newer
            self.files.end()
