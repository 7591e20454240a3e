"""Every implementation that can run here writes the bytes of the torch reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.contracts.packet import PacketError
from asys_bench.kernels.int8.kernel import Int8Preprocessor
from asys_bench.kernels.simd import native
from asys_bench.kernels.simd.implementations import TORCH

from .variants import DTYPES, FAST, FILLS, LAYOUTS, VARIANTS, filled, laid_out, payload


def ids(cases):
    return [f"{variant.name}-{name}" for variant, name in cases]


IN_CHAINS = [(v, i) for v, i in FAST if not v.name.startswith("token_sample")]
STREAMING = [(v, i) for v, i in FAST if v.name.startswith(("int8", "fp8", "cast"))]


@pytest.mark.parametrize(("variant", "name"), FAST, ids=ids(FAST))
@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3).flatmap(
        lambda leading: st.sampled_from(
            [0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130]
        ).map(lambda width: [*leading, width])
    )
    | st.just([]),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    fill=st.sampled_from(FILLS),
    seed=st.integers(0, 2**31),
    offset=st.sampled_from([0, 4, 32]),
)
def test_bytes_are_those_of_the_reference(variant, name, shape, dtype, layout, fill, seed, offset):
    tensor = laid_out(shape, dtype, layout, fill, seed)
    assert payload(variant.build(name), tensor, offset) == payload(variant.build(TORCH), tensor)


@pytest.mark.parametrize(("variant", "name"), IN_CHAINS, ids=ids(IN_CHAINS))
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 12),
    width=st.sampled_from([1, 5, 16, 64, 100]),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_chosen_rows_are_encoded_as_if_they_were_a_tensor(
    variant, name, rows, width, dtype, layout, seed, data
):
    tensor = laid_out([3, rows, width], dtype, layout, "normal", seed)
    total = tensor.numel() // tensor.shape[-1]
    chosen = data.draw(st.sets(st.integers(0, total - 1)))
    positions = np.array(sorted(chosen), dtype=np.int64)
    alone = tensor.reshape(total, -1)[torch.from_numpy(positions)]
    encoder = variant.build(name)
    out = bytearray(encoder.encoded_bytes(alone))
    encoded = encoder.encode_rows(tensor, memoryview(out), positions)
    expected, said = payload(variant.build(TORCH), alone)
    assert bytes(out[: encoded.nbytes]) == expected
    assert tuple(encoded.shape) == said[2]


@pytest.mark.parametrize(("variant", "name"), FAST, ids=ids(FAST))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fill", ["normal", "any bits"])
def test_rows_with_gaps_longer_than_any_unrolled_loop(variant, name, dtype, fill):
    tensor = filled(24 * 4099, dtype, fill, 11).reshape(24, 4099)[:, :4096]
    if variant.name.startswith("random_projection"):
        tensor = tensor[:6, :700]
    assert payload(variant.build(name), tensor) == payload(variant.build(TORCH), tensor)


@pytest.mark.parametrize(("variant", "name"), STREAMING, ids=ids(STREAMING))
@pytest.mark.parametrize("width", [1024, 960, 1000])
@pytest.mark.parametrize("offset", [0, 16])
def test_payloads_large_enough_for_streaming_stores(variant, name, width, offset):
    tensor = filled(256 * width, torch.float32, "normal", 7).reshape(256, width)
    tensor[3, 5] = float("nan")
    expected = payload(variant.build(TORCH), tensor)
    assert payload(variant.build(name), tensor, offset) == expected


@pytest.mark.parametrize(("variant", "name"), FAST, ids=ids(FAST))
def test_float64_falls_back_to_the_reference(variant, name):
    tensor = torch.randn(5, 9, dtype=torch.float64)
    assert payload(variant.build(name), tensor) == payload(variant.build(TORCH), tensor)


@pytest.mark.parametrize(("variant", "name"), IN_CHAINS, ids=ids(IN_CHAINS))
@pytest.mark.parametrize("wrong", [6, -1, 1 << 40])
def test_a_row_past_the_tensor_is_refused(variant, name, wrong):
    encoder, tensor = variant.build(name), torch.ones(6, 8)
    out = memoryview(bytearray(encoder.encoded_bytes(tensor)))
    with pytest.raises(PacketError, match="past the 6 rows"):
        encoder.encode_rows(tensor, out, np.array([0, wrong], dtype=np.int64))


@pytest.mark.parametrize("name", native.instruction_sets())
@pytest.mark.parametrize("kernel", ["fp8", "random_projection.gaussian.5"])
def test_a_host_that_flushes_subnormals_changes_nothing(kernel, name):
    variant = next(variant for variant in VARIANTS if variant.name == kernel)
    tensor = torch.linspace(-1e-38, 1e-38, 200).reshape(4, 50)  # all of them subnormal
    expected = payload(variant.build(TORCH), tensor)
    assert any(expected[0]), "a test that could not fail"
    encoder = variant.build(name)
    encoder.encode(tensor, memoryview(bytearray(encoder.encoded_bytes(tensor))))  # makes its matrix
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        found = payload(encoder, tensor)
        still_flushing = float(torch.tensor([1e-40]) * 1.0) == 0.0
    finally:
        torch.set_flush_denormal(False)
    assert found == expected
    assert still_flushing, "the host's own mode must come back"


def test_the_best_implementation_comes_first_and_torch_last():
    for variant in VARIANTS:
        names = variant.implementations.names()
        assert names[-1] == TORCH
        assert names[: len(native.instruction_sets())] == list(native.instruction_sets())


def test_an_implementation_that_cannot_run_here_is_named_with_those_that_can():
    with pytest.raises(ValueError, match=r"'avx1024' cannot run here; valid: .*'torch'"):
        Int8Preprocessor("avx1024")


def test_without_the_compiled_module_another_one_stands_in(monkeypatch):
    tensor = torch.randn(3, 20)
    expected = payload(Int8Preprocessor(), tensor)
    monkeypatch.setattr(native, "instruction_sets", dict)
    assert payload(Int8Preprocessor(), tensor) == expected
    monkeypatch.setattr("asys_bench.kernels.simd.implementations.find_spec", lambda _: None)
    assert Int8Preprocessor.implementations.names() == [TORCH]
    assert payload(Int8Preprocessor(), tensor) == expected
