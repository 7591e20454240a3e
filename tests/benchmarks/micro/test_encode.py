"""Encode into reserved memory, and decode, per preprocessor."""

import pytest
import torch
from plugins import KERNELS, encoder_of

from asys_bench.contracts.packet import ActivationPacket, Kind

SHAPES = {"4KiB": (1, 1024), "1MiB": (256, 1024)}


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", KERNELS)
def test_encode(benchmark, name, size):
    encoder, _ = encoder_of(name)
    tensor = torch.randn(SHAPES[size])
    out = memoryview(bytearray(encoder.encoded_bytes(tensor)))
    benchmark.extra_info["bytes_read"] = tensor.nbytes
    benchmark(encoder.encode, tensor, out)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", KERNELS)
def test_decode(benchmark, name, size):
    encoder, plugin = encoder_of(name)
    tensor = torch.randn(SHAPES[size])
    out = memoryview(bytearray(encoder.encoded_bytes(tensor)))
    encoded = encoder.encode(tensor, out)
    decoder = plugin.decoder(encoder.encoding)
    assert decoder is not None
    packet = ActivationPacket(
        0, 0, 0, 0, Kind.ACTIVATION, encoded.dtype, encoded.shape, 0, 0, 0, 0, encoded.params,
        1.0, 0, 0, -1, None, out[: encoded.nbytes],
    )  # fmt: skip
    benchmark(decoder.decode, packet)
