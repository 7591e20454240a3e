"""Live rows and their labels: whoever comes first waits, nobody for ever, and what has no partner counts."""

from __future__ import annotations

import numpy as np

from asys_bench.change.label_join import CallKey, LabelJoin


def rows(join, step, count=2, dims=None, text=0, payload=None, version=0, nbytes=8):
    key = CallKey(0, step, version, 0)
    dims = (count,) if dims is None else dims
    found = join.offer_rows(key, dims, text, np.arange(count), payload or step, nbytes)
    return shown(found)


def label(join, step, dims=None, text=0, version=0, **labels):
    values = np.stack([np.array(value, dtype=np.float64) for value in labels.values()], axis=-1)
    dims = values.shape[:-1] if dims is None else dims
    key = CallKey(0, step, version, 0)
    found = join.offer_labels(key, tuple(labels), dims, text, values.reshape(-1, values.shape[-1]))
    return shown(found)


def shown(found):
    return [
        (one.payload, {name: values.tolist() for name, values in one.labels.items()})
        for one in found
    ]


def test_rows_leave_when_every_label_that_is_known_is_there():
    join = LabelJoin(100)
    assert rows(join, 0) == []
    assert label(join, 0, reward=[1, 2]) == [(0, {"reward": [1, 2]})]
    assert label(join, 0, advantage=[0.5, 0.25]) == [], "its rows have left"
    for step in (1, 2):
        assert rows(join, step) == []
        assert label(join, step, reward=[step, step]) == [], "the advantage is missing"
    assert label(join, 1, advantage=[3, 4]) == [(1, {"reward": [1, 1], "advantage": [3, 4]})]


def test_labels_that_come_before_their_rows_wait_for_all_hooks_of_the_call():
    join = LabelJoin(100)
    assert label(join, 0, reward=[1, 2]) == []
    assert rows(join, 0, payload="mid") == [("mid", {"reward": [1, 2]})]
    assert rows(join, 0, 6, dims=(2, 3), payload="tokens") == [
        ("tokens", {"reward": [1] * 3 + [2] * 3})
    ]
    assert [*join.flush()] == []
    assert (join.unjoined_rows, join.unjoined_labels) == (0, 0)


def test_after_the_horizon_rows_leave_with_what_they_have():
    join = LabelJoin(10)
    rows(join, 0)
    label(join, 0, reward=[1, 2])
    label(join, 0, advantage=[1, 2])
    rows(join, 1)
    rows(join, 2)
    label(join, 2, reward=[5, 6])
    assert rows(join, 13) == [(1, {}), (2, {"reward": [5, 6]})]
    assert join.unjoined_rows == 2
    assert shown(join.flush()) == [(13, {})]
    assert join.unjoined_rows == 4


def test_a_name_that_came_once_holds_rows_up_no_longer_than_the_horizon():
    join = LabelJoin(10)
    label(join, 0, note=1.0)
    for step in range(1, 40):
        rows(join, step)
        left = label(join, step, reward=[1, 1])
    assert [payload for payload, _ in left] == [39]


def test_without_room_the_oldest_leave_first():
    join = LabelJoin(10_000, most_bytes=1000)
    left = []
    for step in range(100):
        left += rows(join, step, nbytes=100)
    assert [payload for payload, _ in left] == [*range(len(left))]
    assert 90 <= len(left) < 100


def test_labels_of_no_row_are_counted():
    join = LabelJoin(10)
    label(join, 0, reward=[1, 2], done=[0, 0])
    rows(join, 1, version=3)
    label(join, 1, reward=[1, 2])
    rows(join, 2, 3)
    label(join, 2, reward=[1, 2])
    assert [payload for payload, _ in shown(join.flush())] == [1, 2]
    assert join.unjoined_labels == 2 * 2 + 2 + 2
    assert join.unjoined_rows == 2 + 3


def test_of_two_labels_for_a_row_the_later_counts_and_nan_says_nothing():
    join = LabelJoin(100)
    label(join, 0, reward=[1, 2])
    label(join, 0, reward=[np.nan, 5])
    assert rows(join, 0) == [(0, {"reward": [1, 5]})]


def test_some_rows_of_a_tensor_get_their_own_labels():
    join = LabelJoin(100)
    label(join, 0, loss=np.arange(6).reshape(2, 3))
    label(join, 0, total=7.0)
    key = CallKey(0, 0, 0, 0)
    found = shown(join.offer_rows(key, (2, 3), 1, np.array([1, 4]), "some", 8))
    assert found == [("some", {"loss": [1, 4], "total": [7, 7]})]


def test_tokens_of_a_text_get_the_labels_of_that_text():
    join = LabelJoin(100)
    label(join, 0, text=2, loss=[1.0, 2.0])
    assert rows(join, 0, text=2, payload="its own") == [("its own", {"loss": [1, 2]})]
    assert rows(join, 0, text=1, payload="another's") == []
