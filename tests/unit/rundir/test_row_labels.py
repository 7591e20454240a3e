"""Labels as columns of archived rows: joined by the call that they are of, whatever came late or twice."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from asys_bench.contracts.labels import (
    LABEL_TEXT,
    is_of_several,
    label_encoding,
    label_names,
    rows_per_label,
    text_bytes,
    text_code,
    text_of,
)
from asys_bench.contracts.names import LABELS
from asys_bench.rundir.archive_view import ArchiveView
from asys_bench.rundir.live_run import ReadingError

RIG = runpy.run_path(str(Path(__file__).parent.parent / "sinks" / "archive" / "conftest.py"))["Rig"]
HOOK, WIDE = "policy.mlp", "encoder"
NAMES = ("identity", HOOK, WIDE, LABELS, LABEL_TEXT)


class Written:
    """An archive of hooks and labels; `close` ends its shards."""

    def __init__(self, run_dir, attempt=0, **options):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        self.rig = RIG(run_dir)
        self.rig.names = NAMES
        self.worker = self.rig.start(attempt=attempt, **options)
        self.seq = 0

    def _add(self, tensor, hook, **fields):
        fields = {"weights_version": 0, "microbatch": 0, "call_index": 0, "host_step": 0, **fields}
        self.rig.feed(self.worker, self.rig.packet(tensor, self.seq, hook, **fields))
        self.seq += 1

    def rows(self, tensor, step, hook=1, **fields):
        self._add(tensor, hook, host_step=step, **fields)

    def label(self, step, *, text=0, version=0, source=7, microbatch=0, **labels):
        """[*rows, K]"""
        encoding = label_encoding(list(labels))
        if encoding not in self.rig.names:
            self.rig.names = (*self.rig.names, encoding)
        columns = [torch.as_tensor(value, dtype=torch.float32) for value in labels.values()]
        self._add(
            torch.stack(columns, -1), 3, host_step=step, encoding_id=self.rig.names.index(encoding),
            text=text, weights_version=version, source=source, microbatch=microbatch,
        )  # fmt: skip

    def label_several(self, calls, *, step=0, version=0, **labels):
        """labels: [C, *rows] each. calls: [(step, version, microbatch)], of which the packet has offsets."""
        encoding = label_encoding(list(labels), several=True)
        if encoding not in self.rig.names:
            self.rig.names = (*self.rig.names, encoding)
        columns = [torch.as_tensor(value, dtype=torch.float32) for value in labels.values()]
        off_C3 = torch.tensor(calls) - torch.tensor([step, version, 0])
        for number in (2, 1, 0):
            one = off_C3[:, number].view(-1, *(1 for _ in columns[0].shape[1:]))
            columns.insert(0, one.expand(columns[-1].shape).float())
        self._add(
            torch.stack(columns, -1), 3, host_step=step, weights_version=version, source=7,
            encoding_id=self.rig.names.index(encoding),
        )  # fmt: skip

    def close(self):
        self.worker.close()
        self.rig.page.close()
        return ArchiveView(self.run_dir)


def steps(count, rows=2):
    return [torch.full((rows, 3), float(step)) for step in range(count)]


def numbered(*shape):
    return torch.arange(math.prod(shape), dtype=torch.float32).view(shape)


def same(found, expected):
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float64))


def test_labels_are_columns_of_the_rows_that_they_are_of(tmp_path):
    archive = Written(tmp_path)
    for step, values in enumerate(steps(3)):
        archive.rows(values, step)
        if step != 1:
            archive.label(step, reward=[10.0 * step, 10.0 * step + 1], done=[0, step == 2])
    for step in (2, 0):  # later, and in another order
        archive.label(step, advantage=[-step, step])
    view = archive.close()
    assert view.labels == ("advantage", "done", "reward")
    found = view.numpy(HOOK, ("values", "label.reward", "label.done", "label.advantage"))
    same(found["values"][:, 0], [0, 0, 1, 1, 2, 2])
    nan = math.nan
    same(found["label.reward"], [0, 1, nan, nan, 20, 21])
    same(found["label.done"], [0, 0, nan, nan, 0, 1])
    same(found["label.advantage"], [0, 0, nan, nan, -2, 2])
    assert view.label_rows(HOOK) == {"advantage": 4, "done": 4, "reward": 4}


def test_labels_of_several_calls_in_one_packet_are_columns_of_the_rows_that_they_are_of(tmp_path):
    archive = Written(tmp_path)
    for step, values in enumerate(steps(4)):
        archive.rows(values, step, weights_version=int(step > 2))
    calls = [(3, 1, 0), (0, 0, 0), (2, 0, 0), (1, 7, 0)]  # the last is of no row
    archive.label_several(calls, step=3, version=1, reward=numbered(4, 2), done=numbered(4, 2) > 4)
    archive.label_several(calls[:2], step=3, version=1, loss=[0.5, 0.25])
    archive.label(0, loss=0.75)  # of two for one row the later counts
    archive.label_several([(2, 0, 0), (2, 0, 0)], step=2, reward=[[9, 9], [8, math.nan]])
    view = archive.close()
    assert view.labels == ("done", "loss", "reward")
    found = view.numpy(HOOK, ("label.reward", "label.done", "label.loss"))
    nan = math.nan
    same(found["label.reward"], [2, 3, nan, nan, 8, 9, 0, 1])
    same(found["label.done"], [0, 0, nan, nan, 0, 1, 0, 0])
    same(found["label.loss"], [0.75, 0.75, nan, nan, nan, nan, 0.5, 0.5])
    assert view.label_rows(HOOK) == {"done": 6, "loss": 4, "reward": 6}


@pytest.mark.parametrize("split", [1, 3, 5])
def test_a_packet_of_several_calls_may_lie_in_several_record_batches(tmp_path, split):
    archive = Written(tmp_path, rows_per_batch=split)
    for step in range(3):
        archive.rows(numbered(2, 2, 4), step)
    archive.label_several([(step, 0, 0) for step in range(3)], loss=numbered(3, 2, 2))
    view = archive.close()
    same(view.numpy(HOOK, ("label.loss",))["label.loss"], range(12))


def test_one_value_holds_for_all_rows_of_the_call_and_one_of_a_sequence_for_its_tokens(tmp_path):
    archive = Written(tmp_path)
    archive.rows(numbered(2, 3, 4), 5)
    archive.rows(numbered(2, 4), 5, hook=2)  # a row per sequence
    archive.label(5, loss=0.5)
    archive.label(5, sample=[7, 9])
    archive.label(5, per_token=numbered(2, 3))
    view = archive.close()
    columns = ("label.loss", "label.sample", "label.per_token")
    tokens, sequences = view.numpy(HOOK, columns), view.numpy(WIDE, columns)
    same(tokens["label.loss"], [0.5] * 6)
    same(tokens["label.sample"], [7, 7, 7, 9, 9, 9])
    same(tokens["label.per_token"], range(6))
    same(sequences["label.sample"], [7, 9])
    same(sequences["label.per_token"], [math.nan] * 2)


def test_tokens_of_a_padded_text_find_their_labels_by_its_number(tmp_path):
    archive = Written(tmp_path)
    archive.rows(numbered(5, 4), 1, text=2)
    archive.rows(numbered(5, 4), 1, text=1, hook=2)
    archive.label(1, text=2, loss=numbered(5))
    view = archive.close()
    same(view.numpy(HOOK, ("label.loss",))["label.loss"], range(5))
    same(view.numpy(WIDE, ("label.loss",))["label.loss"], [math.nan] * 5)


@pytest.mark.parametrize("other", ["version", "microbatch", "source", "step", "rows"])
def test_a_label_of_another_call_is_joined_to_nothing(tmp_path, other):
    archive = Written(tmp_path)
    archive.rows(numbered(2, 4), 1)
    rows = [1.0, 2.0, 3.0] if other == "rows" else [1.0, 2.0]
    moved = {other: 1} if other not in ("step", "rows") else {}
    archive.label(1 + (other == "step"), reward=rows, **moved)
    view = archive.close()
    same(view.numpy(HOOK, ("label.reward",))["label.reward"], [math.nan] * 2)


def test_of_two_labels_for_one_row_the_later_counts_and_nan_says_nothing(tmp_path):
    archive = Written(tmp_path)
    archive.rows(numbered(2, 4), 1)
    archive.label(1, reward=[1.0, 2.0])
    archive.label(1, reward=[5.0, math.nan], done=[1, 0])
    view = archive.close()
    same(view.numpy(HOOK, ("label.reward",))["label.reward"], [5.0, 2.0])


def test_labels_of_one_attempt_are_not_those_of_another(tmp_path):
    for attempt in range(2):
        archive = Written(tmp_path, attempt)
        archive.rows(numbered(2, 4), 1)
        archive.label(1, reward=[attempt, attempt])
        view = archive.close()
    found = view.numpy(HOOK, ("attempt", "label.reward"))
    same(found["label.reward"], found["attempt"])


def test_a_text_is_read_as_it_was_said(tmp_path):
    archive = Written(tmp_path)
    for step, text in enumerate(("code", "Prosa äöü")):
        archive.rows(numbered(2, 4), step)
        payload = torch.frombuffer(bytearray(text_bytes(text)), dtype=torch.uint8)
        archive._add(payload[None], 3, encoding_id=4)
        codes = torch.tensor([text_code(text), math.nan], dtype=torch.float64)
        archive.rig.names = (*NAMES, "label(domain)")
        archive._add(codes[:, None], 3, host_step=step, encoding_id=5)
    view = archive.close()
    assert view.numpy(HOOK, ("label.domain",))["label.domain"].tolist() == [
        "code",
        "",
        "Prosa äöü",
        "",
    ]
    assert view.label_rows(HOOK) == {"domain": 2}


@pytest.mark.parametrize("values", ["keep", "float16", "encoded"])
def test_numbers_of_labels_are_kept_however_values_are_stored(tmp_path, values):
    archive = Written(tmp_path, values=values)
    archive.rows(numbered(2, 4), 1)
    archive.label(1, episode=[100_001.0, 100_003.0])
    view = archive.close()
    same(view.numpy(HOOK, ("label.episode",))["label.episode"], [100_001, 100_003])


def test_a_column_of_a_label_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    archive = Written(tmp_path)
    archive.rows(numbered(2, 4), 1)
    archive.label(1, reward=[1.0, 2.0])
    view = archive.close()
    with pytest.raises(ReadingError, match=r"label\.reward"):
        view.numpy(HOOK, ("label.rewards",))
    with pytest.raises(ReadingError, match="labels are columns"):
        view.torch([HOOK, LABELS])


@pytest.mark.parametrize("window", [0, 7])
def test_batches_for_a_training_bring_their_labels(tmp_path, window):
    archive = Written(tmp_path)
    for step, values in enumerate(steps(20)):
        archive.rows(values, step)
        archive.label(step, reward=[step, step + 0.5])
    view = archive.close()
    rows = view.torch(HOOK, ("values", "label.reward"), 4, shuffle_window=window)
    seen = []
    for batch in DataLoader(rows, batch_size=None):
        assert batch.keys() == {"values", "label.reward"}
        assert torch.equal(batch["label.reward"].floor(), batch["values"][:, 0].double())
        seen += batch["label.reward"].tolist()
    assert (
        sorted(seen) == [n / 2 for n in range(40)] if window else seen == [n / 2 for n in range(40)]
    )


@pytest.mark.interop
@pytest.mark.parametrize("restarted", [False, True])
def test_a_dataset_has_every_label_as_a_column(tmp_path, restarted):
    archive = Written(tmp_path)
    for step, values in enumerate(steps(4)):
        if restarted and step == 2:
            archive.worker.close()
            archive.worker = archive.rig.start(incarnation=1)
        archive.rows(values, step)
        archive.label(step, reward=[step, -step])
    view = archive.close()
    dataset = view.datasets(HOOK)
    assert dataset["label.reward"][:] == [0, 0, 1, -1, 2, -2, 3, -3]
    assert [row[0] for row in dataset["values"][:]] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert "label.reward" not in view.datasets(LABELS).column_names


def test_names_and_texts_survive_their_way():
    assert label_names(label_encoding(["reward", "done"])) == ("reward", "done")
    assert label_names("padded+label(loss)") == ("loss",)
    assert label_names(label_encoding(["reward", "done"], several=True)) == ("reward", "done")
    assert is_of_several("labels(reward)")
    assert not any(map(is_of_several, ("label(reward)", "padded+label(loss)", LABEL_TEXT)))
    assert [label_names(other) for other in ("identity", "label()", "label(a b)", "label(1a)")] == [
        None
    ] * 4
    assert text_of(text_bytes("\u00e4" * 100)) == "\u00e4" * 64, "cut between two letters"
    assert text_code("\u00e4" * 100) == text_code("\u00e4" * 64)


def test_a_label_is_of_rows_whose_first_dimensions_it_has():
    assert rows_per_label((4,), (4,)) == 1
    assert rows_per_label((4,), (4, 3)) == 3
    assert rows_per_label((4, 3), (12,)) == 1, "flattened"
    assert rows_per_label((3,), (4, 3)) is None
    assert rows_per_label((4,), None) is None
    assert (rows_per_label((), None) or 0) > 2**40
    assert rows_per_label((4,), (4,), label_text=1) is None
    assert rows_per_label((4,), (4,), rows_text=1) == 1
    assert rows_per_label((0,), (0, 5)) == 1
