"""`FeatureSource`: what a probe reads of a row, the row itself or the features of an SAE."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import torch

from asys_bench.change.probe.fit import Dense, Features, Sparse
from asys_bench.change.sae_choice import OF_RUN
from asys_bench.sae import CheckpointError, SparseAutoencoder
from asys_bench.sae.config import OF_SEVERAL_HOOKS
from asys_bench.sae.exchange import ExchangeError
from asys_bench.sae.exchange.hub import is_hub
from asys_bench.sinks.sae.start import StartFrom

log = logging.getLogger(__name__)

SAE_RELOADED_S = 300.0
MOST_FEATURES = 64
"""Of a row that are kept: its largest."""


class FeatureSource:
    """Of one hook.

    hook, width: its name, and how many numbers a row has.
    folder: of the SAE, as `ProbeOptions.saes` names it; None: rows are read as they are.
    run_dir: of the run whose own SAE it is, where `folder` says so.
    """

    def __init__(self, hook: str, width: int, folder: str | None, run_dir: Path) -> None:
        self._hook, self._width = hook, width
        self.folder, self._run_dir = folder, run_dir
        self.sae_path: Path | None = None
        """Where the SAE that is there was found."""
        self._sae: SparseAutoencoder | None = None
        self._looked_at = -math.inf
        self._failed = False

    @property
    def numbers(self) -> int:
        """float32 values that a row takes, at most."""
        return self._width if self.folder is None else min(self._width, MOST_FEATURES) * 3

    @property
    def missing(self) -> bool:
        """Whether an SAE is asked for and not there."""
        return self.folder is not None and self._sae is None

    def of(self, x_ND: torch.Tensor) -> Features:
        """Features of rows [N, width] of float32."""
        if self._sae is None:
            return Dense(x_ND)
        with torch.no_grad():
            acts_NF = self._sae.encode(x_ND)
            value_NK, index_NK = acts_NF.topk(min(MOST_FEATURES, acts_NF.shape[1]), dim=1)
        return Sparse(index_NK, value_NK.clamp(min=0), acts_NF.shape[1])

    def renew(self) -> bool:
        """Look for a newer SAE, now and then; True: there is one, and what was made before is of another."""
        now = time.monotonic()
        if self.folder is None or now < self._looked_at + (1.0 if self.missing else SAE_RELOADED_S):
            return False
        self._looked_at = now
        if self._sae is not None and self.folder != OF_RUN:
            return False
        try:
            start = StartFrom(path=str(self._run_dir) if self.folder == OF_RUN else self.folder)
            path = start.folder_for(self._hook).resolve()
            if path == self.sae_path:
                return False
            sae = start.read(self._hook)
        except (CheckpointError, ExchangeError, OSError) as error:
            if self.folder != OF_RUN and not self._failed:
                self._failed = True
                log.error("%s has no probes: %s", self._hook, str(error))
            if is_hub(self.folder):  # was there when the run began; not asked again and again
                self._looked_at = math.inf
            return False
        if sae.name in OF_SEVERAL_HOOKS or sae.d_in != self._width:
            log.error("%s has no probes: an SAE of other rows is in %s", self._hook, path)
            self._looked_at = math.inf
            return False
        self._sae, self.sae_path = sae.eval().requires_grad_(False), path
        return True
