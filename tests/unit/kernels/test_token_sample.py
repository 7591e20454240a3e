"""token_sample: which rows, with what probability, and that a consumer finds them again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from asys_bench.contracts.encodings.leading import pack_leading
from asys_bench.contracts.packet import ActivationPacket, Kind, PacketError
from asys_bench.kernels.simd import native
from asys_bench.kernels.simd.splitmix import draw_key, hash32, hashes32, mix
from asys_bench.kernels.token_sample.kernel import (
    Rule,
    TokenSampleOptions,
    TokenSamplePreprocessor,
    plugin,
    rule_of,
    rule_of_name,
    stratified,
    stratified_numpy,
)


def packet_of(encoder, tensor):
    out = bytearray(encoder.encoded_bytes(tensor))
    said = encoder.encode(tensor, memoryview(out))
    return ActivationPacket(
        0, 0, 0, 0, Kind.ACTIVATION, said.dtype, tuple(said.shape), 0, 0, 0, 0, said.params, 1.0,
        0, 0, -1, None, memoryview(out)[: said.nbytes],
    )  # fmt: skip


def test_the_hash_is_splitmix64():
    # The first outputs of Vigna's reference implementation seeded with 1234567.
    state, outputs = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        outputs.append(mix(state))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_one_hash_and_many_agree():
    key = draw_key(3, 9)
    index = np.array([0, 1, 5, 1 << 40], dtype=np.uint64)
    assert hashes32(key, index).tolist() == [hash32(key, int(i)) for i in index]


@given(total=st.integers(0, 3000), share=st.floats(0, 1), key=st.integers(0, 2**64 - 1))
def test_rows_ascend_without_repeats_in_both_implementations(total, share, key):
    count = int(share * total)
    rows = stratified_numpy(total, count, key)
    assert len(rows) == count
    assert bool((np.diff(rows) > 0).all())
    assert count == 0 or (rows[0] >= 0 and rows[-1] < total)
    assert np.array_equal(stratified(total, count, key), rows)


@pytest.mark.parametrize(("total", "count"), [(2**31 - 1, 5), (2**31 - 1, 1), (1, 1), (7, 7)])
def test_the_extremes_agree_too(total, count):
    for key in (0, 1, 2**63, 2**64 - 1):
        rows = stratified_numpy(total, count, key)
        assert np.array_equal(stratified(total, count, key), rows)
        assert len(np.unique(rows)) == count


def test_the_compiled_draw_refuses_what_is_out_of_range():
    module = native.load()
    if module is None:
        pytest.skip("no compiled module")
    for arguments in ((2**31, 1, 0), (5, 6, 0), (-1, 0, 0), (5, 1, 2**64)):
        with pytest.raises((ValueError, OverflowError)):
            module.sample(*arguments)


@pytest.mark.parametrize("rule", [Rule(1, fraction=0.3), Rule(1, count=7), Rule(2, fraction=0.013)])
def test_every_row_is_kept_with_the_stated_probability(rule):
    total, draws = 23, 8000
    kept = np.zeros(total)
    for draw in range(draws):
        kept[rule.positions(total, draw)] += 1
    rate = rule.rate(total)
    # 5 standard deviations of a binomial count, over 23 rows: one false alarm in 100,000 seeds.
    assert np.abs(kept - draws * rate).max() < 5 * np.sqrt(draws * rate * (1 - rate))


@given(
    rule=st.one_of(
        st.floats(1e-6, 1).map(lambda f: Rule(0, fraction=f)),
        st.integers(1, 40).map(lambda n: Rule(2**62, count=n)),
        st.integers(1, 40).map(lambda n: Rule(3, every=n)),
    ),
    total=st.integers(0, 200),
    draw=st.integers(0, 2**64 - 1),
)
def test_a_draw_never_exceeds_its_bound_and_its_name_says_all(rule, total, draw):
    positions = rule.positions(total, draw)
    assert rule.most(total) - 1 <= len(positions) <= rule.most(total) <= total
    assert rule_of_name(rule.name) == rule
    encoding = TokenSamplePreprocessor(rule).encoding
    assert plugin.decoder(encoding).encoding == encoding


@pytest.mark.parametrize(
    "name", ["every0.seed0", "every2", "fraction2.0.seed0", "rows1.seed-1", "fraction.5.seed0", ""]
)
def test_a_name_that_no_rule_has_is_not_decoded(name):
    assert rule_of_name(name) is None


def test_two_hooks_with_one_seed_keep_the_same_rows_draw_by_draw():
    one, other = (TokenSamplePreprocessor(Rule(4, count=3)) for _ in range(2))
    wide, narrow = torch.randn(2, 10, 8), torch.randn(20, 5)
    draws = [
        (one.rows(packet_of(one, wide)), other.rows(packet_of(other, narrow))) for _ in range(5)
    ]
    assert all(np.array_equal(a, b) for a, b in draws)
    assert len({a.tobytes() for a, _ in draws}) > 1, "each packet is a new draw"


def test_tensors_without_rows_to_choose_from_travel_whole():
    encoder = TokenSamplePreprocessor(Rule(0, count=1))
    for tensor in (torch.tensor(3.0), torch.arange(6.0)):
        packet = packet_of(encoder, tensor)
        assert torch.equal(encoder.decode(packet), tensor)
        assert encoder.rows(packet) is None


@pytest.mark.parametrize(
    "leading", [(9,), (2, 300), (2, 70_000), (3, 20, 24), (2, 3, 4, 5), (0, 4), (2, 70_000, 2)]
)
def test_a_packet_says_the_leading_dimensions_that_its_rows_were_chosen_from(leading):
    encoder = TokenSamplePreprocessor(Rule(0, every=3))
    packet = packet_of(encoder, torch.zeros(*leading, 2))
    known = leading if max(leading[1:], default=0) < 1 << 16 or len(leading) == 2 else ()
    assert encoder.grid(packet) == known


@pytest.mark.parametrize(
    "params", [pack_leading((7,), 7, 0), pack_leading((7,), 2**31, 0), b"\xff" * 16]
)
def test_parameters_that_do_not_fit_the_packet_are_refused(params):
    encoder = TokenSamplePreprocessor(Rule(0, count=9))
    packet = packet_of(encoder, torch.randn(20, 4))
    with pytest.raises(PacketError):
        encoder.rows(replace(packet, params=params))


def test_more_than_one_way_to_choose_is_refused_with_the_choice():
    with pytest.raises(ValidationError, match=r"fraction and every are set; keep one"):
        TokenSampleOptions(fraction=0.5, every=2)
    assert rule_of(TokenSampleOptions()) == Rule(0, fraction=0.25)
    resolved = TokenSampleOptions(every=3).model_dump()
    assert rule_of(TokenSampleOptions(**resolved)) == Rule(0, every=3)
