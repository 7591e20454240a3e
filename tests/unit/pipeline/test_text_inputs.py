"""Padding is left out, and every captured row has its token and position."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.contracts.stats import StatsPage
from asys_bench.kernels.identity.kernel import IdentityPreprocessor
from asys_bench.pipeline.clock import StepClock
from asys_bench.pipeline.text_inputs import RealRows, RealRowsPreprocessor, TextInputs


class Cache:
    def __init__(self, length):
        self.length = length

    def get_seq_length(self):
        return self.length


class TextModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(100, 8)
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None):
        return self.layer(self.embed(input_ids))


@pytest.fixture
def clock():
    page = StatsPage.create(["host"])
    yield StepClock(page.slot("host"))
    page.close()


class Watched:
    """A text model whose token rows are collected."""

    def __init__(self, clock):
        self.model = TextModel()
        self.text = TextInputs.of(self.model)
        assert self.text is not None
        (point,) = self.text.points
        self.rows = []
        point.module.register_forward_hook(lambda *a: self.rows.append(a[2].clone()))
        self.text.attach(clock)
        self.text.attach(clock)

    def __call__(self, *args, **kwargs):
        self.model(*args, **kwargs)
        return self.rows[-1].tolist()


@pytest.fixture
def watched(clock):
    one = Watched(clock)
    yield one
    one.text.detach()
    one.text.detach()


def test_without_padding_rows_are_tokens_in_order(watched):
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    assert watched(ids) == [[5, 0], [6, 1], [7, 2], [8, 0], [9, 1], [10, 2]]
    assert watched.text.rows.positions is None


def test_padding_on_either_side_is_left_out_and_positions_start_at_the_first_token(watched):
    ids = torch.tensor([[5, 6, 0], [0, 9, 10]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert watched(ids, attention_mask=mask) == [[5, 0], [6, 1], [9, 0], [10, 1]]
    hidden = torch.randn(2, 3, 8)
    kept = watched.text.rows.of(hidden)
    assert kept.tolist() == [0, 1, 4, 5]
    assert watched.text.rows.of(torch.randn(2, 8)) is None
    assert watched.text.rows.of(torch.randn(3, 2, 8)) is None
    watched(torch.tensor([[1, 2]]))
    assert watched.text.rows.positions is None, "the mask of an earlier call"


def test_with_a_cache_only_new_tokens_count_and_positions_go_on(watched):
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert watched(input_ids=torch.tensor([[7], [8]]), attention_mask=mask) == [[7, 2], [8, 3]]
    assert watched(torch.tensor([[7, 8]]), past_key_values=Cache(5)) == [[7, 5], [8, 6]]


def test_positions_that_are_given_are_taken(watched):
    given_positions = torch.tensor([[4, 5]])
    assert watched(torch.tensor([[7, 8], [1, 2]]), position_ids=given_positions) == [
        [7, 4], [8, 5], [1, 4], [2, 5],
    ]  # fmt: skip


def test_a_single_sequence_tells_the_clock_its_position(watched, clock):
    watched(torch.tensor([[7]]), past_key_values=Cache(12))
    assert clock.token_position == 12


def test_a_fourth_dimension_or_a_float_mask_is_not_a_padding_mask(watched):
    ids = torch.tensor([[5, 6]])
    assert watched(ids, attention_mask=torch.ones(1, 1, 2, 2)) == [[5, 0], [6, 1]]
    assert watched(ids, attention_mask=torch.zeros(1, 2)) == [[5, 0], [6, 1]]


def test_trouble_switches_it_off_and_never_reaches_the_host(watched, caplog):
    misshapen = torch.tensor([[1, 1, 0], [1, 1, 1]])
    output = watched.model(torch.tensor([[5, 6]]), attention_mask=misshapen)
    assert output.shape == (1, 2, 8)
    assert "no longer read" in caplog.text
    assert watched.text.rows.positions is None
    watched.model(torch.tensor([[5, 6]]))


def test_models_without_text_or_with_two_texts_are_left_alone():
    class Both(torch.nn.Module):
        def forward(self, input_ids, attention_mask, decoder_input_ids):
            return input_ids

    assert TextInputs.of(torch.nn.Linear(2, 2)) is None
    assert TextInputs.of(Both()) is None


def test_a_wrapper_is_what_is_watched(clock):
    model = TextModel()
    called = torch.nn.Sequential()
    called.forward = lambda *args, **kwargs: model(*args, **kwargs)
    text = TextInputs.of(model, called)
    (point,) = text.points
    rows = []
    point.module.register_forward_hook(lambda *a: rows.append(a[2].tolist()))
    text.attach(clock)
    called(input_ids=torch.tensor([[3]]))
    text.detach()
    assert rows == [[[3, 0]]]


@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 6),
    bits=st.integers(0, 2**24 - 1),
)
def test_what_is_sent_is_the_real_rows_in_order(batch, length, bits):
    mask = torch.tensor([(bits >> i) & 1 for i in range(batch * length)]).bool().view(batch, length)
    rows = RealRows()
    rows.set(mask)
    hidden = torch.randn(batch, length, 3)
    kernel = RealRowsPreprocessor(IdentityPreprocessor(), rows)
    out = memoryview(bytearray(kernel.encoded_bytes(hidden)))
    encoded = kernel.encode(hidden, out)
    expected = hidden if bool(mask.all()) else hidden[mask]
    assert encoded.shape == tuple(expected.shape)
    assert encoded.nbytes == expected.numel() * 4
    assert bytes(out[: encoded.nbytes]) == expected.contiguous().numpy().tobytes()
    assert kernel.encoding == "identity"
    assert not kernel.is_identity
