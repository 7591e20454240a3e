"""Every architecture by its name in the config."""

from __future__ import annotations

from asys_bench.sae.base import SparseAutoencoder
from asys_bench.sae.config import SAEConfig
from asys_bench.sae.relu import ReLUSAE
from asys_bench.sae.topk import TopKSAE

ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {sae.name: sae for sae in (TopKSAE, ReLUSAE)}


def build_sae(config: SAEConfig, d_in: int) -> SparseAutoencoder:
    """A freshly initialised SAE for rows of width `d_in`.

    Raises:
        ValueError: the config does not fit `d_in`.
    """
    return ARCHITECTURES[config.architecture](d_in, config)
