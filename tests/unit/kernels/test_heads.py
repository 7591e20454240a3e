"""heads: rows of a projection as rows of its heads, and what a reader makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from asys_bench.config.assembly import build_preprocessor
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.encodings.padding import write_count
from asys_bench.contracts.labels import rows_per_label
from asys_bench.contracts.packet import ActivationPacket, Kind, PacketError
from asys_bench.kernels.heads.kernel import HeadsOptions, HeadsPreprocessor, plugin
from asys_bench.sinks.decoding import decoder_of, rows_each


def chain(*steps):
    return build_preprocessor(HookConfig.model_validate({"match": "*", "preprocess": list(steps)}))


def sent(encoder, tensor, behind=b""):
    """(packet, decoder) of what the encoder makes of the tensor."""
    room = bytearray(encoder.encoded_bytes(tensor))
    encoded = encoder.encode(tensor, memoryview(room))
    payload = memoryview(bytearray(bytes(room[: encoded.nbytes]) + behind))
    name = f"padded+{encoder.encoding}" if behind else encoder.encoding
    packet = ActivationPacket(
        0, 0, 0, 1, Kind.ACTIVATION, encoded.dtype, tuple(encoded.shape), 0, 1, 0, 2, encoded.params,
        1.0, 0, 0, -1, None, payload,
    )  # fmt: skip
    return packet, decoder_of(name)


def numbered(*shape):
    return torch.arange(float(np.prod(shape))).reshape(shape)


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 5, 12), (2, 3, 4, 12)])
def test_each_head_is_a_row(shape):
    tensor = numbered(*shape)
    packet, decoder = sent(HeadsPreprocessor(4), tensor)
    assert torch.equal(decoder.decode(packet), tensor.reshape(*shape[:-1], 4, 3))
    assert decoder.grid(packet) == (*shape[:-1], 4)
    assert decoder.rows_each == 4


@pytest.mark.parametrize("keep", [(1, 2), (0, 3), (3, 0, 1)])
def test_some_heads_in_ascending_order(keep):
    tensor = numbered(5, 12)
    packet, decoder = sent(HeadsPreprocessor(4, keep), tensor)
    expected = tensor.reshape(5, 4, 3)[:, sorted(keep)]
    assert torch.equal(decoder.decode(packet), expected)
    assert decoder.rows_each == len(keep)


def test_with_one_head_a_row_stays_a_token():
    tensor = numbered(2, 5, 12)
    packet, decoder = sent(HeadsPreprocessor(4, (2,)), tensor)
    assert torch.equal(decoder.decode(packet), tensor[..., 6:9])
    assert decoder.grid(packet) == (2, 5)
    assert decoder.rows_each == 1


def test_a_width_that_does_not_divide_is_an_error_that_names_both():
    with pytest.raises(PacketError, match=r"rows of 64 do not divide into 12 heads"):
        HeadsPreprocessor(12).encoded_bytes(torch.ones(3, 64))


def test_options_that_name_no_head_are_refused():
    with pytest.raises(ValidationError, match="no head 4 among 4, 0 to 3"):
        HeadsOptions(count=4, keep=(1, 4))
    with pytest.raises(ValidationError, match="once"):
        HeadsOptions(count=4, keep=(1, 1))


@pytest.mark.parametrize(
    ("options", "encoding"),
    [
        ({"count": 12}, "heads.12"),
        ({"count": 12, "keep": [3]}, "heads.12.keep8"),
        ({"count": 256, "keep": [0, 255]}, f"heads.256.keep{(1 << 255) + 1:x}"),
    ],
)
def test_the_name_says_which_heads(options, encoding):
    built = plugin.build(HeadsOptions.model_validate(options))
    assert built.encoding == encoding
    assert decoder_of(encoding).rows_each == built.rows_each
    assert rows_each(encoding) == built.rows_each


@pytest.mark.parametrize(
    "name", ["heads.0", "heads.257", "heads.4.keep10", "heads.4.keep", "heads.04"]
)
def test_names_of_no_heads_are_not_decoded(name):
    assert plugin.decoder(name) is None


def test_an_encoder_behind_it_works_on_the_heads_own_rows():
    tensor = torch.randn(5, 12)
    packet, decoder = sent(chain({"heads": {"count": 4}}, "int8"), tensor)
    decoded = decoder.decode(packet)
    scale = tensor.reshape(5, 4, 3).abs().amax(-1, keepdim=True) / 127
    assert bool(((decoded - tensor.reshape(5, 4, 3)).abs() <= scale).all())
    assert decoder.rows_each == 4


@pytest.mark.parametrize("order", ["heads first", "sample first"])
def test_sampled_rows_say_which_token_and_head_they_are(order):
    tensor = numbered(2, 5, 12)
    steps = [{"heads": {"count": 4}}, {"token_sample": {"rows": 3}}]
    packet, decoder = sent(chain(*(steps if order == "heads first" else steps[::-1])), tensor)
    rows, decoded = decoder.rows(packet), decoder.decode(packet).reshape(-1, 3)
    assert decoder.grid(packet) == (2, 5, 4)
    assert len(rows) == (3 if order == "heads first" else 12)
    assert torch.equal(decoded, tensor.reshape(-1, 3)[torch.from_numpy(rows)])
    assert decoder.rows_each == 4


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("keep", [None, (1,), (0, 2)])
def test_padding_is_left_out_head_by_head(keep, sampled):
    tensor = numbered(2, 3, 12)
    real = np.array([1, 1, 0, 1, 0, 0], np.uint8)
    steps = [{"heads": {"count": 4, "keep": keep}}]
    steps = [{"token_sample": {"every": 1}}, *steps] if sampled else steps
    end = bytearray(bytes(real) + bytes(4))
    write_count(memoryview(end), 6)
    packet, decoder = sent(chain(*steps), tensor, bytes(end))
    heads = tensor.reshape(6, 4, 3)[:, list(keep or range(4))]
    expected = heads[torch.from_numpy(real == 1)].reshape(-1, 3)
    assert torch.equal(decoder.decode(packet).reshape(-1, 3), expected)
    each = heads.shape[1]
    assert decoder.grid(packet) == ((3, each) if each > 1 else (3,))
    rows = decoder.rows(packet)
    assert rows is None or rows.tolist() == list(range(3 * each))


def test_a_label_of_tokens_holds_for_each_of_their_heads():
    packet, decoder = sent(HeadsPreprocessor(4), numbered(2, 5, 12))
    assert rows_per_label((2, 5), decoder.grid(packet)) == 4
    assert rows_per_label((2,), decoder.grid(packet)) == 20


def test_a_scalar_and_no_rows_are_legal():
    assert sent(HeadsPreprocessor(1), torch.tensor(3.0))[0].shape == (1,)
    packet, decoder = sent(HeadsPreprocessor(4), torch.ones(0, 12))
    assert decoder.decode(packet).shape == (0, 4, 3)
