"""int8 and fp8: the numbers that the reference itself must get right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asys_bench.contracts.packet import ActivationPacket, Kind
from asys_bench.kernels.fp8.kernel import Fp8Preprocessor
from asys_bench.kernels.int8.kernel import Int8Preprocessor
from asys_bench.kernels.simd.scaled_rows import SMALLEST, largest_scale, quantisation

CODECS = [Int8Preprocessor, Fp8Preprocessor]


def encoded(codec, tensor):
    """The scales float32[rows], the codes uint8[rows, width] and the decoded tensor."""
    encoder = codec()
    out = bytearray(encoder.encoded_bytes(tensor))
    said = encoder.encode(tensor, memoryview(out))
    packet = ActivationPacket(
        0, 0, 0, 0, Kind.ACTIVATION, said.dtype, tuple(said.shape), 0, 0, 0, 0, said.params, 1.0,
        0, 0, -1, None, memoryview(out),
    )  # fmt: skip
    rows, width = tensor.reshape(-1, tensor.shape[-1]).shape
    start = -(-rows * 4 // 64) * 64
    codes = np.frombuffer(out, np.uint8, offset=start).reshape(rows, width)
    return np.frombuffer(out, np.float32, rows), codes, encoder.decode(packet)


def test_int8_rounds_half_to_even():
    halves = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.0]])
    scales, codes, _ = encoded(Int8Preprocessor, halves)
    assert scales.tolist() == [1.0]
    assert codes.view(np.int8).tolist() == [[0, 2, 2, 0, -2, -2, 126, 127]]


def test_int8_marks_what_is_not_finite_and_scales_by_the_rest():
    row = torch.tensor([[float("nan"), 127.0, -float("inf"), 3.0, float("inf")]])
    scales, codes, decoded = encoded(Int8Preprocessor, row)
    assert scales.tolist() == [1.0]
    assert codes.view(np.int8).tolist() == [[-128, 127, -128, 3, -128]]
    assert decoded[0, 1::2].tolist() == [127.0, 3.0]
    assert bool(decoded[0, ::2].isnan().all())


@pytest.mark.parametrize("codec", CODECS)
def test_rows_do_not_touch_each_other(codec):
    tensor = torch.tensor([[1.0, 2.0], [float("nan"), float("inf")], [0.0, -0.0], [1e30, 1.0]])
    scales, _, decoded = encoded(codec, tensor)
    alone = [encoded(codec, tensor[row : row + 1]) for row in range(4)]
    assert scales.tolist() == [float(one[0][0]) for one in alone]
    for row in range(4):
        assert torch.equal(decoded[row].nan_to_num(7), alone[row][2][0].nan_to_num(7))
    assert decoded[2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_numbers_do_not_overflow_when_decoded(codec, dtype):
    top = torch.finfo(dtype).max
    _, _, decoded = encoded(codec, torch.tensor([[top, -top, 0.0]], dtype=dtype))
    assert bool(decoded.isfinite().all())
    assert float(decoded[0, 0]) == pytest.approx(top, rel=1e-6)


@pytest.mark.parametrize("codec", CODECS)
def test_every_finite_peak_is_decoded_finite_and_within_the_bound(codec):
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 0x7F800000, 20000, dtype=np.uint32)
    bits[:2000] = 0x7F7FFFFF - np.arange(2000)  # the very largest
    bits[2000:4000] = np.arange(2000)  # the very smallest
    rows = torch.from_numpy(np.stack([bits, bits >> 1], axis=1).view(np.float32))
    _, _, decoded = encoded(codec, rows)
    assert bool(decoded.isfinite().all())
    error = (decoded.double() - rows.double()).abs()
    assert bool((error <= codec().max_error(rows)).all())


@pytest.mark.parametrize("codec", CODECS)
def test_scales_are_normal_numbers_whatever_the_row(codec):
    tiny = torch.tensor([[0.0], [1e-45], [1e-38], [float(SMALLEST)], [3e38]])
    scales, _, _ = encoded(codec, tiny)
    assert bool((scales >= np.finfo(np.float32).tiny).all())
    assert bool(np.isfinite(scales).all())


@pytest.mark.parametrize("code_max", [127.0, 448.0])
def test_the_largest_scale_is_the_last_one_that_decodes_finite(code_max):
    scale = np.float32(largest_scale(code_max))
    with np.errstate(over="ignore"):
        assert np.isfinite(scale * np.float32(code_max))
        above = np.nextafter(scale, np.float32(np.inf))
        assert np.isinf(above * np.float32(code_max))


def test_fp8_codes_are_torchs_conversion_of_the_scaled_values():
    rng = np.random.default_rng(5)
    rows = torch.from_numpy(
        (rng.standard_normal((200, 500)) * 10.0 ** rng.integers(-6, 3, (200, 500))).astype(
            np.float32
        )
    )
    rows[:, 0] = 448.0  # so that the scale is 1 for rows that stay below
    _, codes, _ = encoded(Fp8Preprocessor, rows)
    _, scaled, _ = quantisation(rows, 448.0)
    expected = scaled.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    assert np.array_equal(codes, expected.numpy())


def test_fp8_converts_every_float_near_every_code_as_torch_does():
    codes = torch.arange(0, 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (codes[1:] + codes[:-1]) / 2
    centre = torch.cat([codes, middles])
    bits = centre.view(torch.int32)
    near = torch.stack([(bits + d).clamp(0).view(torch.float32) for d in (-2, -1, 0, 1, 2)], dim=1)
    rows = torch.cat([near, -near, torch.full((len(near), 1), 448.0)], dim=1).clamp(-448, 448)
    scales, found, _ = encoded(Fp8Preprocessor, rows)
    assert set(scales.tolist()) == {1.0}
    assert np.array_equal(found, rows.to(torch.float8_e4m3fn).view(torch.uint8).numpy())


def test_a_quarter_of_the_bytes_and_four_per_row():
    tensor = torch.zeros(256, 1024)
    for codec in CODECS:
        assert codec().encoded_bytes(tensor) == 256 * 1024 + 256 * 4
        assert codec().encoded_bytes(tensor[:1]) == 1024 + 64
        assert codec().encoded_bytes(tensor[:0]) == 0
