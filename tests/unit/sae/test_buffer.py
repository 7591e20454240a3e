"""The shuffle reservoir."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.sae.training.buffer import ShuffleBuffer
from asys_bench.sae.training.intake import RowBlock


def _numbered(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count, dtype=torch.float32).unsqueeze(1)


def _add(buffer: ShuffleBuffer, first: int, count: int) -> None:
    buffer.add(RowBlock.uniform(_numbered(first, count)))


def _draw(buffer: ShuffleBuffer, count: int) -> torch.Tensor:
    return buffer.sample(count).rows_ND.squeeze(1)


def test_no_row_is_drawn_twice_within_a_pass() -> None:
    buffer = ShuffleBuffer(100, 1, seed=0)
    _add(buffer, 0, 100)
    drawn = torch.cat([_draw(buffer, 10) for _ in range(10)])
    assert sorted(drawn.tolist()) == list(range(100))
    assert drawn.tolist() != list(range(100))


def test_new_rows_replace_used_ones_first() -> None:
    buffer = ShuffleBuffer(100, 1, seed=0)
    _add(buffer, 0, 100)
    used = set(_draw(buffer, 30).tolist())
    _add(buffer, 1000, 30)
    present = set(buffer.rows.squeeze(1).tolist())
    assert present == (set(range(100)) - used) | set(range(1000, 1030))


def test_with_one_pass_of_budget_nearly_every_row_is_used_once() -> None:
    buffer = ShuffleBuffer(512, 1, seed=0)
    _add(buffer, 0, 512)
    drawn: list[float] = []
    for block in range(1, 60):
        drawn += _draw(buffer, 64).tolist()
        _add(buffer, block * 1000, 64)
    assert len(set(drawn)) > 0.85 * len(drawn)


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 20),
    actions=st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=12),
)
def test_it_always_holds_distinct_known_rows_and_the_newest_chunk(
    capacity: int, actions: list[tuple[bool, int]]
) -> None:
    buffer, count = ShuffleBuffer(capacity, 1, seed=1), 0
    for is_add, size in actions:
        if is_add:
            _add(buffer, count, size)
            count += size
            newest = set(range(max(count - size, count - capacity), count))
            assert newest <= {int(v) for v in buffer.rows.squeeze(1)}
        elif len(buffer):
            drawn = _draw(buffer, min(size, len(buffer)))
            assert all(0 <= v < count for v in drawn.tolist())
        values = buffer.rows.squeeze(1).tolist()
        assert len(set(values)) == len(values) == min(count, capacity)


def test_a_restored_buffer_draws_what_the_original_would_have_drawn() -> None:
    original = ShuffleBuffer(50, 1, seed=4)
    _add(original, 0, 40)
    original.sample(17)
    state = {
        k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in original.state_dict().items()
    }
    restored = ShuffleBuffer(50, 1, seed=99)
    restored.load_state_dict(state)
    for first in (100, 200, 300):
        for buffer in (original, restored):
            _add(buffer, first, 23)
        for _ in range(3):
            assert torch.equal(_draw(original, 13), _draw(restored, 13))


def test_what_is_known_of_a_row_travels_with_it() -> None:
    buffer = ShuffleBuffer(64, 1, seed=0)
    for first in (0, 40, 80):
        rows = _numbered(first, 40)
        number = rows.squeeze(1)
        buffer.add(RowBlock(rows, number + 0.5, number.long() + 1, number.long() * 2))
        drawn = buffer.sample(20)
        number = drawn.rows_ND.squeeze(1)
        assert torch.equal(number + 0.5, drawn.weight_N)
        assert torch.equal(number.long() + 1, drawn.step_N)
        assert torch.equal(number.long() * 2, drawn.version_N)


def test_rows_of_too_old_weights_are_not_drawn_and_are_replaced_first() -> None:
    buffer = ShuffleBuffer(100, 1, seed=0, max_age=2)
    for version in range(10):
        buffer.add(RowBlock.uniform(_numbered(10 * version, 10), version=version))
    assert buffer.newest_version == 9
    assert buffer.drawable == 30
    drawn = torch.cat([_draw(buffer, 15) for _ in range(4)])
    assert set(drawn.tolist()) == set(range(70, 100))
    buffer.add(RowBlock.uniform(_numbered(1000, 60), version=9))
    assert set(range(70, 100)) <= set(buffer.rows.squeeze(1).tolist()) | set(drawn.tolist())
    assert buffer.drawable > 30
    with pytest.raises(ValueError, match="cannot draw 101"):
        buffer.sample(101)


def test_drawing_more_than_there_is_and_foreign_state_are_refused() -> None:
    buffer = ShuffleBuffer(8, 2, seed=0)
    with pytest.raises(ValueError, match="cannot draw 1 of 0"):
        buffer.sample(1)
    with pytest.raises(ValueError, match="do not fit"):
        buffer.load_state_dict(
            ShuffleBuffer(8, 3, seed=0).state_dict() | {"rows": torch.zeros(1, 3)}
        )
