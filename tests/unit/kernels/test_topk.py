"""topk: which elements are kept, and what a consumer may not be fooled into."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from asys_bench.contracts.packet import ActivationPacket, Kind, PacketError
from asys_bench.kernels.topk.kernel import IMPLEMENTATIONS, TopKPreprocessor

NAMES = IMPLEMENTATIONS.names()


def packet_of(encoder, tensor):
    out = bytearray(encoder.encoded_bytes(tensor))
    said = encoder.encode(tensor, memoryview(out))
    return ActivationPacket(
        0, 0, 0, 0, Kind.ACTIVATION, said.dtype, tuple(said.shape), 0, 0, 0, 0, said.params, 1.0,
        0, 0, -1, None, memoryview(out)[: said.nbytes],
    )  # fmt: skip


def decoded(tensor, k, name, values="float32"):
    encoder = TopKPreprocessor(k, values, name)
    return encoder.decode(packet_of(encoder, tensor))


@pytest.mark.parametrize("name", NAMES)
def test_of_equal_magnitudes_the_first_are_kept(name):
    row = torch.tensor([[1.0, -2.0, 2.0, -2.0, 1.0, 2.0]])
    assert decoded(row, 2, name).tolist() == [[0.0, -2.0, 2.0, 0.0, 0.0, 0.0]]
    assert decoded(row, 5, name).tolist() == [[1.0, -2.0, 2.0, -2.0, 0.0, 2.0]]


@pytest.mark.parametrize("name", NAMES)
def test_nan_beats_infinity_beats_numbers(name):
    row = torch.tensor([[3e38, float("inf"), float("nan"), -float("inf")]])
    assert decoded(row, 1, name).isnan().tolist() == [[False, False, True, False]]
    assert decoded(row, 2, name)[0, 1] == float("inf")
    assert decoded(row, 2, name)[0, 3] == 0.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [65535, 65536, 65537])
def test_wide_rows_have_wide_indices(name, width):
    row = torch.zeros(1, width)
    row[0, -1] = 5.0
    row[0, 40000] = -7.0
    encoder = TopKPreprocessor(2, "bfloat16", name)
    packet = packet_of(encoder, row)
    assert packet.payload.nbytes == 64 + 2 * (4 if width > 65536 else 2)
    assert torch.equal(encoder.decode(packet), row)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", ["ascending", "descending", "constant"])
@pytest.mark.parametrize("k", [1, 100, 1000, 2999])
def test_orders_that_fill_the_candidates_again_and_again(name, shape, k):
    row = {
        "ascending": torch.arange(3000.0),
        "descending": torch.arange(3000.0, 0, -1),
        "constant": torch.ones(3000),
    }[shape][None]
    kept = decoded(row, k, name)[0].nonzero().flatten()
    by_size = np.argsort(-row[0].numpy(), kind="stable")[:k]
    expected = np.sort(by_size[row[0].numpy()[by_size] != 0])
    assert np.array_equal(kept.numpy(), expected)


def test_an_index_past_the_row_is_refused():
    encoder = TopKPreprocessor(2, "float32")
    packet = packet_of(encoder, torch.randn(3, 10))
    damaged = bytearray(packet.payload)
    damaged[-2:] = (10).to_bytes(2, "little")
    with pytest.raises(PacketError, match="past the 10 elements"):
        encoder.decode(replace(packet, payload=memoryview(damaged)))


def test_a_few_bytes_do_not_become_gigabytes():
    encoder = TopKPreprocessor(2, "float32")
    packet = packet_of(encoder, torch.randn(1, 70000))
    with pytest.raises(PacketError, match="more than"):
        encoder.decode(replace(packet, shape=(1, 2**32 - 1)))


def test_the_bound_is_the_element_itself_where_it_is_dropped():
    bound = TopKPreprocessor(1, "float32").max_error(torch.tensor([3.0, -4.0]))
    assert bound[0] == 3.0
    assert bound[1] < 1e-6
