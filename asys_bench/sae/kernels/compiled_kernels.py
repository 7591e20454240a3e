"""The products of a sparse training step in C++: float32 on the CPU.

The object owns the threads and the buffers, which are reused, so that a step neither allocates nor
zeroes megabytes. Other dtypes, and an install without a compiler, take torch's operators.

The encoder's product is the one dense part. It runs block by block, so that a block's
pre-activations are still in the cache when features are picked from them and [B, F] never exists.
In bfloat16 (`rough`) it only proposes candidates, all that the choice by float32 values may fall on
(select.cpp has the bound); values, and the choice between candidates, are
float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import torch

from asys_bench.sae.kernels import native
from asys_bench.sae.kernels.sparse_codes import (
    FeatureMajor,
    Reconstruction,
    SparseCodes,
    T,
    WorkThreads,
)
from asys_bench.sae.kernels.sparse_kernels import Settings, SparseKernels

BLOCK_BYTES = 8 << 20
"""Pre-activations of one block of rows: what stays in a cache. Encoding in bfloat16 takes 4 to 6 % less CPU
time than with 4 MiB (F 4,608 with 512 and 1,024 rows, F 2,048 with 4,096; 32 MiB of L3, busy), in float32
as much."""
BLOCK_ROWS = 256
"""Rows of a block at least: with fewer the product waits for weights (d 768, F 24,576, float32: 42 rows
740 us a row, 256 rows 444 us, of which a pass over pre-activations beyond the cache takes 10)."""
LEAST_ROWS = 32
"""Rows below which a range is not split further."""


class CompiledKernels(SparseKernels):
    """See the module docstring.

    threads: how many share a call.
    """

    name = "compiled"

    def __init__(self, threads: int = 1, *, rough: bool = False) -> None:
        super().__init__(rough=rough)
        self._threads = WorkThreads(threads)
        self._native: ModuleType | None = native.kernels()
        self._buffers: dict[str, torch.Tensor] = {}

    # Encoding.

    def top_k(
        self, x_BD: torch.Tensor, W_enc_FD: torch.Tensor, b_F: torch.Tensor, k: int
    ) -> SparseCodes:
        module = self._compiled(x_BD, W_enc_FD, b_F)
        if module is None:
            return super().top_k(x_BD, W_enc_FD, b_F, k)
        rows, d_sae = len(x_BD), len(b_F)
        feature_N = self.buffer("feature", (rows * k,), torch.int32)
        value_N = self.buffer("value", (rows * k,))

        def pick(first: int, last: int, product: tuple[int, ...], slot: int) -> None:
            at = first * k * 4
            module.top_k(*product, k, feature_N.data_ptr() + at, value_N.data_ptr() + at)

        for _ in self._encode(x_BD, W_enc_FD, b_F, pick):
            pass
        offset_B = torch.arange(0, (rows + 1) * k, k, dtype=torch.int32)
        return SparseCodes(offset_B, feature_N, value_N, d_sae)

    def above(
        self,
        x_BD: torch.Tensor,
        W_enc_FD: torch.Tensor,
        b_F: torch.Tensor,
        floor_F: torch.Tensor,
        most: int | None = None,
    ) -> SparseCodes | None:
        module = self._compiled(x_BD, W_enc_FD, b_F, floor_F)
        if module is None:
            return super().above(x_BD, W_enc_FD, b_F, floor_F, most)
        rows, d_sae = len(x_BD), len(b_F)
        count_B = self.buffer("count", (rows,), torch.int32)
        parts: list[tuple[int, torch.Tensor, torch.Tensor]] = []

        def pick(first: int, last: int, product: tuple[int, ...], slot: int) -> int:
            room = (last - first) * d_sae
            feature = self.buffer(f"found{slot}", (room,), torch.int32)
            value = self.buffer(f"found_value{slot}", (room,))
            found: int = module.above(
                *product,
                floor_F.data_ptr(),
                count_B.data_ptr() + first * 4,
                feature.data_ptr(),
                value.data_ptr(),
            )
            parts.append((first, feature[:found].clone(), value[:found].clone()))
            return found

        total = 0
        for found in self._encode(x_BD, W_enc_FD, b_F, pick):
            total += found
            if most is not None and total > most:
                return None
        parts.sort(key=lambda part: part[0])
        offset_B = torch.zeros(rows + 1, dtype=torch.int32)
        torch.cumsum(count_B, 0, dtype=torch.int32, out=offset_B[1:])
        feature_N = torch.cat([feature for _, feature, _ in parts])
        return SparseCodes(offset_B, feature_N, torch.cat([value for *_, value in parts]), d_sae)

    def _encode(
        self,
        x_BD: torch.Tensor,
        W_enc_FD: torch.Tensor,
        b_F: torch.Tensor,
        pick: Callable[[int, int, tuple[int, ...], int], int | None],
    ) -> Iterator[int]:
        """Run `pick(first, last, product, thread)` on every block; yields its results per wave."""
        rows, width = x_BD.shape
        d_sae = len(b_F)
        itemsize = 2 if self.rough else 4
        per_block = max(BLOCK_ROWS, BLOCK_BYTES // (d_sae * itemsize))
        waves = -(-rows // (per_block * self._threads.count))
        parts = waves * self._threads.count
        edges = sorted({rows * index // parts for index in range(parts + 1)})
        blocks = list(itertools.pairwise(edges))
        left_BD, table_FD = x_BD, W_enc_FD
        input_2B = weight_2F = None
        if self.rough:
            left_BD, input_2B = self._roughened(x_BD, "rows")
            table_FD, weight_2F = self._roughened(W_enc_FD, "table")

        def work(slot: int, first: int, last: int) -> int:
            out = self.buffer(f"product{slot}", (last - first, d_sae), left_BD.dtype)
            torch.mm(left_BD[first:last], table_FD.t(), out=out)
            exact, rough = (0, out.data_ptr()) if self.rough else (out.data_ptr(), 0)
            source = x_BD.data_ptr() + first * width * 4
            product = (
                exact, rough, b_F.data_ptr(), last - first, d_sae, source, W_enc_FD.data_ptr(), width,
                *_pointers(input_2B, first), *_pointers(weight_2F, 0),
            )  # fmt: skip
            return pick(first, last, product, slot) or 0

        for wave in range(0, len(blocks), self._threads.count):
            tasks = [
                _bound(work, slot, first, last)
                for slot, (first, last) in enumerate(blocks[wave : wave + self._threads.count])
            ]
            yield sum(self._threads.run(tasks))

    def _roughened(self, rows_RD: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(the rows in bfloat16, bounds on their norms and on the norms of what rounding took,
        float32[2, R])."""
        module = self._native
        assert module is not None
        rows, width = rows_RD.shape
        out_RD = self.buffer(f"rough_{name}", rows_RD.shape, torch.bfloat16)
        bounds_2R = self.buffer(f"rough_{name}_bounds", (2, rows))
        outputs = [t.data_ptr() for t in (out_RD, *bounds_2R)]
        source = rows_RD.data_ptr()
        self._share(rows, lambda first, last: module.roughen(source, width, first, last, *outputs))
        return out_RD, bounds_2R

    # Decoding and its gradients.

    def reconstruct(
        self,
        codes: SparseCodes,
        value_N: torch.Tensor,
        W_dec_FD: torch.Tensor,
        target_BD: torch.Tensor,
        scale_B: torch.Tensor,
        *,
        name: str = "main",
    ) -> Reconstruction:
        module = self._compiled(value_N, W_dec_FD, target_BD, scale_B)
        if module is None:
            return super().reconstruct(codes, value_N, W_dec_FD, target_BD, scale_B)
        rows, width = target_BD.shape
        error_B = self.buffer(f"{name}_error", (rows,))
        gradient_BD = self.buffer(f"{name}_gradient", (rows, width))
        code_gradient_N = self.buffer(f"{name}_code_gradient", (len(value_N),))
        decoder = _decoder(codes, value_N, W_dec_FD, target_BD, scale_B)
        outputs = [t.data_ptr() for t in (error_B, gradient_BD, code_gradient_N)]
        self._share(rows, lambda first, last: module.reconstruct(*decoder, first, last, *outputs))
        return Reconstruction(error_B, gradient_BD, code_gradient_N)

    def reconstruct_nested(
        self,
        codes: SparseCodes,
        value_N: torch.Tensor,
        W_dec_FD: torch.Tensor,
        target_BD: torch.Tensor,
        scale_B: torch.Tensor,
        widths: Sequence[int],
    ) -> Reconstruction:
        module = self._compiled(value_N, W_dec_FD, target_BD, scale_B)
        if module is None:
            return super().reconstruct_nested(codes, value_N, W_dec_FD, target_BD, scale_B, widths)
        rows, width = target_BD.shape
        levels = len(widths)
        error_MB = self.buffer("nested_error", (levels, rows))
        gradient_MBD = self.buffer("nested_gradient", (levels, rows, width))
        code_gradient_N = self.buffer("nested_code_gradient", (len(value_N),))
        decoder = _decoder(codes, value_N, W_dec_FD, target_BD, scale_B)
        edges_M = torch.tensor(widths, dtype=torch.int32)
        outputs = [t.data_ptr() for t in (error_MB, gradient_MBD, code_gradient_N)]
        self._share(
            rows,
            lambda first, last: module.reconstruct_nested(
                *decoder, edges_M.data_ptr(), levels, rows, first, last, *outputs
            ),
        )
        return Reconstruction(error_MB, gradient_MBD, code_gradient_N)

    # From rows to features.

    def group(self, codes: SparseCodes) -> FeatureMajor:
        module = self._native
        if module is None:
            return super().group(codes)
        pairs, d_sae = len(codes.feature_N), codes.d_sae
        offset_F = self.buffer("group_offset", (d_sae + 1,), torch.int32)
        order_N = self.buffer("group_order", (pairs,), torch.int32)
        row_N = self.buffer("group_row", (pairs,), torch.int32)
        module.group(
            codes.offset_B.data_ptr(), codes.feature_N.data_ptr(), codes.rows, d_sae,
            offset_F.data_ptr(), order_N.data_ptr(), row_N.data_ptr(),
        )  # fmt: skip
        return FeatureMajor(offset_F, order_N, row_N)

    def accumulate(
        self,
        groups: FeatureMajor,
        coefficient_N: torch.Tensor,
        rows_BD: torch.Tensor,
        out_FD: torch.Tensor,
        shift_F: torch.Tensor | None = None,
    ) -> torch.Tensor:
        module = self._compiled(coefficient_N, rows_BD, out_FD)
        if module is None:
            return super().accumulate(groups, coefficient_N, rows_BD, out_FD, shift_F)
        d_sae, width = out_FD.shape
        sum_F = torch.empty(d_sae)
        arguments = (
            groups.offset_F.data_ptr(), groups.order_N.data_ptr(), groups.row_N.data_ptr(),
            0 if shift_F is None else shift_F.data_ptr(), coefficient_N.data_ptr(),
            rows_BD.data_ptr(), width,
        )  # fmt: skip
        outputs = (out_FD.data_ptr(), sum_F.data_ptr())
        self._threads.run(
            [
                _bound(module.accumulate, *arguments, first, last, *outputs)
                for first, last in self._equal_pairs(groups)
            ]
        )
        return sum_F

    def sum_by_feature(
        self, codes: SparseCodes, groups: FeatureMajor, quantity_N: torch.Tensor
    ) -> torch.Tensor:
        if self._compiled(quantity_N) is None:
            return super().sum_by_feature(codes, groups, quantity_N)
        return torch.zeros(codes.d_sae).index_add_(0, codes.feature_N, quantity_N)

    def _equal_pairs(self, groups: FeatureMajor) -> list[tuple[int, int]]:
        """Ranges of features with about the same number of pairs, one per thread."""
        count, d_sae = self._threads.count, len(groups.offset_F) - 1
        if count == 1:
            return [(0, d_sae)]
        pairs = len(groups.order_N)
        wanted = torch.tensor([pairs * i // count for i in range(1, count)], dtype=torch.int32)
        inner = torch.searchsorted(groups.offset_F[:-1].contiguous(), wanted).tolist()
        edges = sorted({0, *inner, d_sae})
        return list(itertools.pairwise(edges))

    # Rows and weights.

    def affine(
        self,
        rows_BD: torch.Tensor,
        center_D: torch.Tensor,
        scale_D: torch.Tensor,
        *,
        name: str,
    ) -> torch.Tensor:
        module = self._compiled(rows_BD, center_D, scale_D)
        if module is None:
            return super().affine(rows_BD, center_D, scale_D, name=name)
        out_BD = self.buffer(name, rows_BD.shape)
        width = rows_BD.shape[1]
        source = (rows_BD.data_ptr(), 0, center_D.data_ptr(), scale_D.data_ptr(), width)
        target = out_BD.data_ptr()
        self._share(len(rows_BD), lambda first, last: module.take(*source, first, last, target))
        return out_BD

    def project(self, gradient_FD: torch.Tensor, W_FD: torch.Tensor | None) -> torch.Tensor:
        rows, width = gradient_FD.shape
        tensors = [gradient_FD] if W_FD is None else [gradient_FD, W_FD]
        module = self._compiled(*tensors)
        if module is None:
            return super().project(gradient_FD, W_FD)
        square_F = torch.empty(rows, dtype=torch.float64)
        weight = 0 if W_FD is None else W_FD.data_ptr()
        outputs = (gradient_FD.data_ptr(), square_F.data_ptr())
        self._share(rows, lambda first, last: module.project(weight, width, first, last, *outputs))
        return square_F

    def adam(
        self,
        weight_FD: torch.Tensor,
        gradient_FD: torch.Tensor,
        mean_FD: torch.Tensor,
        square_FD: torch.Tensor,
        rate_F: torch.Tensor,
        root_F: torch.Tensor,
        settings: Settings,
        *,
        unit_rows: bool,
    ) -> bool:
        rows, width = weight_FD.shape
        tensors = (rate_F, root_F, gradient_FD, weight_FD, mean_FD, square_FD)
        module = self._compiled(*tensors)
        if module is None:
            return super().adam(
                weight_FD, gradient_FD, mean_FD, square_FD, rate_F, root_F, settings,
                unit_rows=unit_rows,
            )  # fmt: skip
        pointers = [tensor.data_ptr() for tensor in tensors]
        results = self._share(
            rows,
            lambda first, last: module.adam(*settings, unit_rows, width, first, last, *pointers),
        )
        return all(results)

    # Threads and memory.

    def buffer(
        self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Uninitialised memory that the next call with this name gets again."""
        numel = 1
        for extent in shape:
            numel *= extent
        flat = self._buffers.get(name)
        if flat is None or flat.dtype != dtype or flat.numel() < numel:
            flat = self._buffers[name] = torch.empty(numel, dtype=dtype)
        return flat[:numel].view(*shape)

    def _share(self, count: int, work: Callable[[int, int], T]) -> list[T]:
        ranges = self._threads.split(count, LEAST_ROWS)
        return self._threads.run([_bound(work, first, last) for first, last in ranges])

    def _compiled(self, *tensors: torch.Tensor) -> ModuleType | None:
        """The compiled kernels if these tensors are what they take."""
        if self._native is None or any(t.dtype != torch.float32 or not t.is_cpu for t in tensors):
            return None
        for tensor in tensors:
            if not tensor.is_contiguous():
                raise ValueError(
                    f"a tensor of shape {tuple(tensor.shape)} and strides {tensor.stride()} is not "
                    "contiguous; weights are feature-major, rows row-major"
                )
        return self._native


def _decoder(
    codes: SparseCodes,
    value_N: torch.Tensor,
    W_dec_FD: torch.Tensor,
    target_BD: torch.Tensor,
    scale_B: torch.Tensor,
) -> tuple[int, ...]:
    tensors = (codes.offset_B, codes.feature_N, value_N, W_dec_FD, target_BD, scale_B)
    return (*(tensor.data_ptr() for tensor in tensors), target_BD.shape[1])


def _pointers(bounds_2R: torch.Tensor | None, first: int) -> tuple[int, int]:
    """Of the two rows of bounds from row `first` on; null where there are none."""
    if bounds_2R is None:
        return 0, 0
    norm, miss = (bound_R.data_ptr() + first * 4 for bound_R in bounds_2R)
    return norm, miss


def _bound(function: Callable[..., T], *arguments: int) -> Callable[[], T]:
    return lambda: function(*arguments)
