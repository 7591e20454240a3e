# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""random_projection on the device. Entry point `asys.device_encoder: random_projection`.

A kernel of our own and no matrix product of a library: the reference fixes the order of the sum and
forbids fused multiply-adds, so that every version writes the same bytes; a library chooses its own
order by shape, and may use TF32 if the host allows that.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from asys_bench.contracts.preprocessor import Encoded, rows_and_width
from asys_bench.kernels.random_projection.kernel import MatrixRule, dense
from asys_bench.kernels.simd.sections import refuse_non_float
from asys_bench.kernels.triton_runtime.encoder import EXACT, GpuPlugin, TritonEncoder, to_device
from asys_bench.kernels.triton_runtime.float_bits import QUIET_NAN, bits_of, is_nan, widened
from asys_bench.kernels.triton_runtime.row_tiles import row_start, source_row
from asys_bench.kernels.triton_runtime.row_view import RowView

ROWS = 16
COLUMNS = 64


@triton.jit(do_not_specialize=["rows", "width", "d_out", "n1", "n2"])
def _project(
    x,
    matrix,
    out,
    positions,
    rows,
    width,
    d_out,
    n1,
    n2,
    s0,
    s1,
    s2,
    HAS_POSITIONS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = row < rows
    wanted = column < d_out
    start = row_start(source_row(row, valid, positions, HAS_POSITIONS), n1, n2, s0, s1, s2)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for j in range(0, width):
        value = widened(tl.load(x + start + j, mask=valid, other=0))
        factor = tl.load(matrix + j * d_out + column, mask=wanted, other=0.0)
        total += value[:, None] * factor[None, :]
    bits = tl.where(is_nan(total), QUIET_NAN, bits_of(total))
    place = row[:, None] * d_out + column[None, :]
    tl.store(out + place, bits, mask=valid[:, None] & wanted[None, :])


class ProjectionEncoder(TritonEncoder):
    """float32 [..., d_out]. Matrices are made on the host, once per width, and kept on the device."""

    def __init__(self, encoding: str, rule: MatrixRule) -> None:
        self._encoding, self._rule = encoding, rule
        self._matrices: dict[tuple[torch.device, int, int], torch.Tensor] = {}

    def plan(self, shape: tuple[int, ...], dtype: torch.dtype) -> Encoded:
        refuse_non_float(self._encoding, dtype)
        projected = (*shape[:-1], self._rule.d_out)
        rows, width = rows_and_width(projected)
        return Encoded(rows * width * 4, torch.float32, projected)

    def launch_kernel(
        self, view: RowView, out: torch.Tensor, positions: torch.Tensor | None
    ) -> None:
        rows = view.rows if positions is None else positions.numel()
        d_out = self._rule.d_out
        _project[(triton.cdiv(rows, ROWS), triton.cdiv(d_out, COLUMNS))](
            view.tensor,
            self._matrix(view.tensor.device, view.width),
            out.view(torch.int32),
            view.tensor if positions is None else positions,
            rows,
            view.width,
            d_out,
            *view.geometry,
            HAS_POSITIONS=positions is not None,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            **EXACT,
        )

    def warm_up(self, device: torch.device, dtypes: Sequence[torch.dtype]) -> None:
        for dtype in dtypes:
            tensor = torch.zeros(ROWS, 16, dtype=dtype, device=device)  # no width is compiled in
            plan = self.plan(tuple(tensor.shape), dtype)
            out = torch.empty(plan.nbytes, dtype=torch.uint8, device=device)
            self.launch(tensor, out, None)
            self.launch(tensor, out, np.arange(ROWS))

    def _matrix(self, device: torch.device, width: int) -> torch.Tensor:
        # One per stream: another stream would not know when the upload is done.
        stream = torch.accelerator.current_stream(device).stream_id if device.type != "cpu" else 0
        key = (device, stream, width)
        matrix = self._matrices.get(key)
        if matrix is None:
            host = torch.from_numpy(dense(self._rule.panels(width), self._rule.d_out)).contiguous()
            matrix = self._matrices[key] = to_device(host, device)
        return matrix


_ENCODING = re.compile(r"random_projection\.(gaussian|achlioptas)\.d([1-9]\d*)\.seed(\d+)")


def _build(encoding: str) -> TritonEncoder | None:
    found = _ENCODING.fullmatch(encoding)
    if found is None:
        return None
    return ProjectionEncoder(encoding, MatrixRule(found[1], int(found[2]), int(found[3])))


plugin = GpuPlugin("random_projection", "rows times a random matrix, one Triton kernel", _build)
