"""Which kernels an SAE on a GPU takes: torch's operators, or Triton's where they are right and faster.

Both do the parts that Triton has, on made-up codes of the SAE's own width and batch and at most
`FEATURES` features, a few times each. A Triton that is not installed, does not compile or does not give
torch's results is not taken; the log says so. In the same way the k largest of a row are found in one stage
or in two (`torch_kernels.largest`). What was chosen is kept in checkpoints, so that a resumed training goes
on with the same bits.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from asys_bench.sae.kernels.sparse_codes import SparseCodes
from asys_bench.sae.kernels.sparse_kernels import SparseKernels, rows_at_once
from asys_bench.sae.kernels.torch_kernels import CANDIDATES_BEYOND_K, largest

log = logging.getLogger(__name__)
FEATURES = 8192
TIMES = 5
TOLERANCE = 1e-4
Clock = Callable[[Callable[[], Any]], float]
"""Seconds that a call keeps the device busy."""
_SETTINGS = (0.9, 0.999, 1e-8, 1.0)


def named_kernels(name: str, *, rough: bool) -> SparseKernels:
    """`torch` or `triton`."""
    if name == "torch":
        return SparseKernels(rough=rough)
    from asys_bench.sae.kernels.triton_kernels import TritonKernels

    return TritonKernels(rough=rough)


def faster_kernels(
    rows: int,
    width: int,
    features: int,
    k: int,
    device: torch.device,
    clock: Clock,
    *,
    rough: bool,
) -> SparseKernels:
    """See the module docstring."""
    kernels = _faster_products(rows, width, features, k, device, clock, rough=rough)
    wanted = min(features, k + CANDIDATES_BEYOND_K if rough else k)
    kernels.staged = _two_stages_are_faster(rows, features, wanted, device, clock)
    return kernels


def _two_stages_are_faster(
    rows: int, features: int, k: int, device: torch.device, clock: Clock
) -> bool:
    """On as many random pre-activations as a step has at once."""
    generator = torch.Generator(device).manual_seed(0)
    shape = min(rows, rows_at_once(features)), features
    pre_BF = torch.randn(*shape, generator=generator, device=device)

    def seconds(staged: bool) -> float:
        largest(pre_BF, k, staged=staged)
        return statistics.median(
            clock(lambda: largest(pre_BF, k, staged=staged)) for _ in range(TIMES)
        )

    one, two = seconds(False), seconds(True)
    log.info(
        "the k largest of a row take %.2f ms in one stage, %.2f ms in two", 1e3 * one, 1e3 * two
    )
    return two < one


def _faster_products(
    rows: int,
    width: int,
    features: int,
    k: int,
    device: torch.device,
    clock: Clock,
    *,
    rough: bool,
) -> SparseKernels:
    torchs = named_kernels("torch", rough=rough)
    torchs.measured = True
    if find_spec("triton") is None:
        return torchs
    try:
        tritons = named_kernels("triton", rough=rough)
        work = _work(rows, width, min(features, FEATURES), k, device)
        results = [work(kernels) for kernels in (torchs, tritons)]
        for mine, theirs in zip(*results, strict=True):
            scale = float(theirs.abs().max()) or 1.0
            if not float((mine - theirs).abs().max()) <= TOLERANCE * scale:
                raise ValueError("its results are not those of torch's operators")
        took = [
            statistics.median(clock(lambda k=kernels: work(k)) for _ in range(TIMES))  # type: ignore[misc]
            for kernels in (torchs, tritons)
        ]
    except Exception as error:  # noqa: BLE001 - whatever a compiler raises, torch's operators do the same
        log.warning("Triton's kernels are not used: %s: %s", type(error).__name__, error)
        return torchs
    log.info(
        "sparse products take %.2f ms with torch's operators, %.2f ms with Triton's",
        *(1e3 * t for t in took),
    )
    tritons.measured = True
    return tritons if took[1] < took[0] else torchs


def _work(
    rows: int, width: int, features: int, k: int, device: torch.device
) -> Callable[[SparseKernels], list[torch.Tensor]]:
    """The parts that differ, once; returns what they made."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    k = min(k, features)
    feature_BK = torch.rand(rows, features, generator=generator).topk(k, 1).indices.sort(1).values
    offset_B = torch.arange(0, (rows + 1) * k, k, dtype=torch.int32)
    codes = SparseCodes(
        offset_B.to(device), feature_BK.reshape(-1).int().to(device), some(rows * k).abs(), features
    )
    table_FD, target_BD, scale_B = some(features, width), some(rows, width), some(rows).abs()
    weights = [some(features, width) for _ in range(2)]
    weights[0] /= torch.linalg.vector_norm(weights[0], dim=1, keepdim=True)

    def once(kernels: SparseKernels) -> list[torch.Tensor]:
        found = kernels.reconstruct(codes, codes.value_N, table_FD, target_BD, scale_B)
        out_FD = torch.empty_like(table_FD)
        sum_F = kernels.accumulate(kernels.group(codes), codes.value_N, found.gradient_BD, out_FD)
        weight_FD, gradient_FD = weights[0].clone(), weights[1].clone()
        mean_FD, square_FD = torch.zeros_like(weight_FD), torch.zeros_like(weight_FD)
        kernels.project(gradient_FD, weight_FD)
        rate_F, root_F = (torch.full((features,), value, device=device) for value in (1e-3, 1.0))
        rate_F[::4] = 0.0  # rows that take no step
        kernels.adam(
            weight_FD, gradient_FD, mean_FD, square_FD, rate_F, root_F, _SETTINGS, unit_rows=True
        )
        return [found.error_B, found.gradient_BD, found.code_gradient_N, out_FD, sum_F, weight_FD]

    return once
