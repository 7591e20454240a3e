"""Types of the compiled module (bindings.cpp). Pointers are integers; 0 is null."""

def roughen(
    source: int, width: int, first: int, last: int, out: int, norm: int, miss: int
) -> None: ...
def top_k(
    exact: int, rough: int, bias: int, rows: int, features: int, input: int, weight: int, width: int,
    input_norm: int, input_miss: int, weight_norm: int, weight_miss: int, k: int, feature: int, value: int,
) -> None: ...  # fmt: skip
def above(
    exact: int, rough: int, bias: int, rows: int, features: int, input: int, weight: int, width: int,
    input_norm: int, input_miss: int, weight_norm: int, weight_miss: int,
    floor: int, count: int, feature: int, value: int,
) -> int: ...  # fmt: skip
def reconstruct(
    offset: int, feature: int, value: int, weight: int, target: int, scale: int,
    width: int, first: int, last: int, error: int, gradient: int, code_gradient: int,
) -> None: ...  # fmt: skip
def reconstruct_nested(
    offset: int, feature: int, value: int, weight: int, target: int, scale: int,
    width: int, widths: int, levels: int, batch: int, first: int, last: int, error: int,
    gradient: int, code_gradient: int,
) -> None: ...  # fmt: skip
def group(
    offset: int, feature: int, batch: int, features: int, offset_F: int, order: int, row: int
) -> None: ...
def accumulate(
    offset: int, order: int, row: int, shift: int, coefficient: int, rows: int, width: int,
    first: int, last: int, out: int, sum: int,
) -> None: ...  # fmt: skip
def take(
    table: int, slot: int, center: int, scale: int, width: int, first: int, last: int, out: int
) -> None: ...
def project(weight: int, width: int, first: int, last: int, gradient: int, square: int) -> None: ...
def adam(
    beta1: float, beta2: float, epsilon: float, clip: float, unit_rows: bool, width: int,
    first: int, last: int, rate: int, root: int, gradient: int, weight: int, mean: int, square: int,
) -> bool: ...  # fmt: skip
