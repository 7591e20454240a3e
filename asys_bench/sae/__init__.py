"""Sparse autoencoders trained online: architectures, trainer, metrics and checkpoint formats.

Read in this order: `config` (what can be set), `base` (what an architecture is), `topk` (one
architecture), `sparse_kernels` (where the time goes), `trainer` (one hook's training), `checkpoint`
(what is written).

A new architecture is one file with one subclass of `SparseAutoencoder` and one line in
`architectures`.
"""

from asys_bench.sae.architectures import ARCHITECTURES, AUTOENCODERS, build_sae
from asys_bench.sae.base import SparseAutoencoder
from asys_bench.sae.checkpoint import load_sae, save_sae
from asys_bench.sae.checkpoint_files import CheckpointError
from asys_bench.sae.checkpoint_store import CheckpointStore
from asys_bench.sae.config import SAEConfig
from asys_bench.sae.metrics import SAEMetrics
from asys_bench.sae.running_metrics import RunningMetrics
from asys_bench.sae.sparse_kernels import SparseKernels
from asys_bench.sae.step import StepContext, StepResult
from asys_bench.sae.trainer import SAETrainer

__all__ = [
    "ARCHITECTURES",
    "AUTOENCODERS",
    "CheckpointError",
    "CheckpointStore",
    "RunningMetrics",
    "SAEConfig",
    "SAEMetrics",
    "SAETrainer",
    "SparseAutoencoder",
    "SparseKernels",
    "StepContext",
    "StepResult",
    "build_sae",
    "load_sae",
    "save_sae",
]
