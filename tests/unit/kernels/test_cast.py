"""cast: torch's own rounding, for every 16-bit pattern and around every border."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asys_bench.kernels.cast.kernel import IMPLEMENTATIONS, QUIET_NAN, TARGETS, CastPreprocessor

from .variants import payload

CASES = [(dtype, name) for dtype in TARGETS for name in IMPLEMENTATIONS.names()]


def cast(tensor, dtype, name):
    written, _ = payload(CastPreprocessor(dtype, name), tensor)
    return np.frombuffer(written, np.uint16)


def expected(tensor, dtype):
    bits = tensor.to(TARGETS[dtype]).view(torch.int16).numpy().view(np.uint16).copy()
    bits[tensor.isnan().numpy()] = QUIET_NAN[TARGETS[dtype]]
    return bits.reshape(-1)


@pytest.mark.parametrize(("dtype", "name"), CASES)
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
def test_every_16_bit_pattern(dtype, name, source):
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    tensor = bits.view(source).reshape(64, 1024)
    assert np.array_equal(cast(tensor, dtype, name), expected(tensor.float(), dtype))


@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_floats_around_every_16_bit_number_and_every_middle(dtype, name):
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(TARGETS[dtype]).float()
    finite = numbers[numbers.isfinite()].sort().values
    middles = (finite[1:].double() + finite[:-1].double()) / 2
    centre = torch.cat([finite, middles.float()]).view(torch.int32)
    for delta in (-1, 0, 1):
        tensor = (centre + delta).view(torch.float32)
        assert np.array_equal(cast(tensor, dtype, name), expected(tensor, dtype))


def test_the_bound_is_infinite_only_where_float16_overflows():
    encoder = CastPreprocessor("float16")
    bound = encoder.max_error(torch.tensor([1.0, 65504.0, 65530.0, 1e9]))
    assert bound[0] < 1e-3
    assert bound[2:].isinf().all()
