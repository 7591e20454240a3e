"""Types of the compiled module (module.cpp).

`isa` is an index into `levels()`. `positions` is None or a buffer of int64: rows to take, in order.
The functions write the payload into `out` and return its bytes, or None when the tensor is not theirs
(not on the CPU, another dtype, a last dimension with a stride); nothing is written then.
"""

from typing import Any

import torch

def setup(packet_error: type[Exception], tensor: type[torch.Tensor]) -> None: ...
def levels() -> tuple[str, ...]: ...
def gather(tensor: torch.Tensor, out: Any, isa: int, positions: Any) -> int | None: ...
def cast(tensor: torch.Tensor, out: Any, isa: int, positions: Any, bfloat16: int) -> int | None: ...
def int8(tensor: torch.Tensor, out: Any, isa: int, positions: Any) -> int | None: ...
def fp8(tensor: torch.Tensor, out: Any, isa: int, positions: Any) -> int | None: ...
def topk(
    tensor: torch.Tensor, out: Any, isa: int, positions: Any, k: int, bfloat16: int
) -> int | None: ...
def project(
    tensor: torch.Tensor, out: Any, isa: int, positions: Any, panels: Any, d_out: int
) -> int | None: ...
def sample(total: int, count: int, key: int) -> bytearray:
    """int64[count] as bytes; see kernels/token_sample/kernel.py."""

def read_sum(tensor: torch.Tensor, isa: int) -> float:
    """Sum of a contiguous float32 CPU tensor: the time of reading it once."""
