"""The sample of a whole run: uniform over time, bounded, the same after a restart."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asys_bench.change.reservoir.read import ReservoirError, read_reservoir
from asys_bench.change.reservoir.rows import ABOUT, ReservoirRows, moment_hash, ranks
from asys_bench.change.reservoir.sink import ReservoirOptions, ReservoirWorker
from asys_bench.change.reservoir.windows import (
    MOST_WINDOWS,
    WindowedSample,
    reservoir_folder,
    rows_per_window,
)
from asys_bench.contracts.packet import CONSTANT_MICROBATCH
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import StatsPage
from asys_bench.kernels.heads.kernel import HeadsPreprocessor
from asys_bench.kernels.token_sample.kernel import Rule, TokenSamplePreprocessor
from asys_bench.sinks.decoding import Decoder

RIG = runpy.run_path(str(Path(__file__).parents[1] / "sinks" / "sae" / "conftest.py"))
FakeLease, packet, NAMES = RIG["FakeLease"], RIG["packet"], RIG["NAMES"]


class Run:
    """Reservoir workers of one run, one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.page = StatsPage.create(["reservoir-0"])
        self.worker = self.start()

    def start(self, max_mib: float = 256.0, attempt: int = 0) -> ReservoirWorker:
        worker = ReservoirWorker(ReservoirOptions(max_mib=max_mib))
        worker.open(
            SinkContext(
                name="reservoir-0", run_dir=self.folder, run_id="run-1", seed=3,
                slot=self.page.slot("reservoir-0"), wall_offset_ns=0, incarnation=0,
                name_of=NAMES.__getitem__, decode=lambda one: one.raw_tensor(),
                heartbeat=lambda: None, time_left_s=lambda: float("inf"), attempt=attempt,
            )
        )  # fmt: skip
        return worker

    def steps(self, begin: int, end: int, rows: int = 4, each: int = 16, **fields) -> None:
        """Steps of `rows` rows, whose values are step and row."""
        for first in range(begin, end, each):
            packets = []
            for step in range(first, min(end, first + each)):
                values = torch.tensor([[step, row, 0.5] for row in range(rows)])
                packets.append(packet(values, step, host_step=step, **fields))
            lease = FakeLease(packets)
            self.worker.consume(lease)
            lease.release()  # raises if a view of it is alive

    def rows(self, **which) -> ReservoirRows:
        self.worker.close()
        found = read_reservoir(self.folder, NAMES[1], **which)
        assert found is not None
        return found


@pytest.fixture
def few_windows(monkeypatch):
    """32 of them, so that fewer steps fill them."""
    monkeypatch.setattr("asys_bench.change.reservoir.windows.MOST_WINDOWS", 32)
    return 32


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path)
    yield made
    made.page.close()


def same(one: ReservoirRows, other: ReservoirRows) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.tensors().values(), other.tensors().values(), strict=True)
    )


def test_a_short_run_is_kept_whole_with_every_row_where_it_was(run):
    run.steps(0, 50)
    rows = run.rows()
    assert len(rows) == 200
    assert rows.values.tolist() == [[step, row, 0.5] for step in range(50) for row in range(4)]
    assert rows.host_step.tolist() == [step for step in range(50) for _ in range(4)]
    assert rows.row.tolist() == [0, 1, 2, 3] * 50


def test_every_part_of_a_long_run_has_as_many_rows_as_any_other(run, few_windows):
    run.worker = run.start(max_mib=0.03)  # a few rows a window
    run.steps(0, 768, rows=6)
    rows = run.rows()
    counts = np.histogram(rows.host_step, bins=12, range=(0, 768))[0]
    assert counts.min() > 0.7 * counts.max()
    assert len(list(reservoir_folder(run.folder, NAMES[1]).glob("w-*"))) <= few_windows
    size = sum(path.stat().st_size for path in reservoir_folder(run.folder, NAMES[1]).iterdir())
    assert len(rows) * (2 * 3 + 64) <= size <= 0.03 * (1 << 20)


def test_the_bound_holds_for_wide_rows_and_narrow_ones():
    for width in (1, 64, 768, 16384, 1 << 20):
        each = rows_per_window(2 * width + 64, 256 << 20)
        assert each * MOST_WINDOWS * (2 * width + 64) <= 256 << 20 or each == 1


def test_a_worker_that_was_killed_goes_on_as_if_nothing_had_happened(run, few_windows, tmp_path):
    run.steps(0, 70)
    run.worker.idle()
    run.worker._flush()
    run.worker = run.start()  # the killed one closed nothing
    run.steps(60, 130)  # ten steps come a second time
    whole = Run(tmp_path / "whole")
    whole.steps(0, 130)
    assert same(run.rows(), whole.rows())
    whole.page.close()


def test_a_kill_between_a_joined_window_and_the_removal_of_its_parts_doubles_no_row(
    run, few_windows
):
    run.steps(0, 32)
    run.worker._flush()
    folder = reservoir_folder(run.folder, NAMES[1])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run.steps(32, 40)
    wanted = run.rows()
    for name, data in before.items():
        (folder / name).write_bytes(data)
    assert same(read_reservoir(run.folder, NAMES[1]), wanted)
    again = run.start()
    run.worker = again
    run.steps(36, 40)
    assert same(run.rows(), wanted)
    assert not any((folder / name).exists() for name in before)


def test_rows_that_stand_for_more_calls_are_likelier_to_stay():
    row = np.arange(40_000)
    weight = np.where(row < 20_000, 1.0, 4.0)
    moments = moment_hash(np.full(40_000, 5))
    kept = np.argsort(ranks(moments, row, weight))[:2000]
    assert (weight[kept] == 4.0).mean() == pytest.approx(0.8, abs=0.03)


def test_ranks_are_those_of_every_earlier_run():
    """A worker that goes on with an earlier one's windows compares its rows with theirs."""
    moments = moment_hash(np.array([3, -1]), np.array([0, 7]))
    assert moments.tolist() == [13604808898340030615, 1869568459174662326]
    found = ranks(moments, np.array([0, 5]), np.array([1.0, 2.0]))
    assert found.tolist() == pytest.approx([1.1092023287458113, 0.9707176836380378], rel=1e-15)


@pytest.mark.parametrize("share", [0.0, 4.0])
def test_which_rows_stay_does_not_depend_on_how_often_they_are_compared(
    few_windows, monkeypatch, share
):
    """The smallest ranks of each window, worked out with none in between."""
    monkeypatch.setattr("asys_bench.change.reservoir.windows.WAITING_SHARE", share)
    sample, steps, rows = WindowedSample(40, None), 1024, 6
    rank_SR = ranks(
        np.repeat(moment_hash(np.arange(steps)), rows), np.tile(np.arange(rows), steps),
        np.ones(steps * rows),
    ).reshape(steps, rows)  # fmt: skip
    for first in range(0, steps, 16):
        step_S = np.arange(first, first + 16)
        table = np.zeros((16, rows), ABOUT)
        table["host_step"], table["row"] = step_S[:, None], np.arange(rows)
        table["rank"], table["weight"] = rank_SR[step_S], 1.0
        wanted = table["rank"] < sample.limits(step_S)[:, None]
        about = table[wanted]
        sample.extend(ReservoirRows(torch.zeros(len(about), 1), about))
    assert sample.width == 32
    kept = [np.sort(rank_SR[first : first + 32].ravel())[:40] for first in range(0, steps, 32)]
    found = sample.rows()
    assert found is not None
    for first, expected in zip(range(0, steps, 32), kept, strict=True):
        inside = found.host_step // 32 * 32 == first
        assert np.sort(found.rank[inside]).tolist() == expected.tolist()


def test_hooks_of_one_moment_keep_the_same_rows(run, few_windows):
    run.worker = run.start(max_mib=0.01)
    for hook in (1, 2):
        run.steps(0, 100, hook=hook, shard=hook, call_index=0)
    run.worker.close()
    one, other = (read_reservoir(run.folder, NAMES[hook]) for hook in (1, 2))
    assert len(one) == len(other) > 40
    assert torch.equal(one.values, other.values)


def test_the_constant_batch_is_kept_apart_with_the_same_rows_at_each_moment(run):
    run.steps(0, 50, rows=1)
    for step in range(0, 50, 10):
        values = torch.tensor([[step, row, 1.0] for row in range(400)])
        lease = FakeLease([packet(values, step, host_step=step, microbatch=CONSTANT_MICROBATCH)])
        run.worker.consume(lease)
        lease.release()
    rows = run.rows(constant=True)
    moments = sorted(set(rows.host_step.tolist()))
    assert moments == list(range(0, 50, 10))
    chosen = [tuple(rows.row[rows.host_step == step].tolist()) for step in moments]
    assert len(chosen[0]) == 256
    assert len(set(chosen)) == 1
    assert (run.rows().values[:, 2] == 0.5).all()


def test_many_constant_moments_are_thinned_and_none_is_half(run, few_windows):
    for step in range(1, 50):
        values = torch.full((8, 3), float(step))
        lease = FakeLease([packet(values, step, host_step=step, microbatch=CONSTANT_MICROBATCH)])
        run.worker.consume(lease)
        lease.release()
    rows = run.rows(constant=True)
    moments, counts = np.unique(rows.host_step, return_counts=True)
    assert few_windows // 2 <= len(moments) <= few_windows
    assert set(counts) == {8}


def test_sequences_are_told_apart_and_other_rows_are_of_none(run):
    lease = FakeLease(
        [packet(torch.zeros(3, 5, 2), 0, host_step=1), packet(torch.zeros(4, 2), 1, host_step=2)]
    )
    run.worker.consume(lease)
    lease.release()
    rows = run.rows()
    assert rows.sequence[rows.host_step == 1].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert set(rows.sequence[rows.host_step == 2]) == {-1}


def test_a_row_of_a_sample_of_tokens_says_which_row_of_the_captured_tensor_it_is(run):
    kernel = TokenSamplePreprocessor(Rule(5, count=3))
    names = ("identity", *NAMES[1:], kernel.encoding)
    decoder = Decoder(names.__getitem__)
    run.worker._context = replace(
        run.worker._context, decode=decoder, rows=decoder.rows, grid=decoder.grid
    )
    captured_BTD = torch.arange(40.0).view(4, 5, 2)  # each row holds twice its number
    memory = bytearray(kernel.encoded_bytes(captured_BTD))
    encoded = kernel.encode(captured_BTD, memoryview(memory))
    sampled = packet(
        torch.zeros(1), 0, dtype=encoded.dtype, shape=tuple(encoded.shape),
        params=encoded.params.ljust(16, b"\0"), encoding_id=names.index(kernel.encoding),
        payload=memoryview(bytes(memory[: encoded.nbytes])),
    )  # fmt: skip
    lease = FakeLease([sampled])
    run.worker.consume(lease)
    lease.release()
    rows = run.rows()
    wanted = (rows.values[:, 0] / 2).int().tolist()
    assert len(wanted) == 3
    assert wanted != [0, 1, 2]
    assert rows.row.tolist() == wanted


def test_rows_that_are_no_numbers_are_left_out_and_outliers_are_kept_finite(run):
    values = torch.tensor([[1.0, float("nan")], [1e9, 0.0], [float("inf"), 1.0], [2.0, 3.0]])
    lease = FakeLease([packet(values, 0, host_step=1)])
    run.worker.consume(lease)
    lease.release()
    assert torch.isfinite(run.rows().values).all()
    assert run.rows().row.tolist() == [1, 3], (
        "1e9 is more than float16 holds, infinity is no number"
    )


def test_rows_of_another_width_are_counted_and_end_nothing(run):
    for values in (torch.zeros(4, 2), torch.zeros(4, 3), torch.ones(4, 2)):
        lease = FakeLease([packet(values, 0, host_step=0, call_index=values.shape[1])])
        run.worker.consume(lease)
        lease.release()
    refused = (
        run.page.slot("reservoir-0").metrics()["reservoir_refused_packets{hook=layer.0}"].value
    )
    assert refused == 1
    assert len(run.rows()) == 4  # the same moment twice: the same rows


def test_a_packet_with_a_number_that_no_column_holds_is_counted_and_ends_nothing(run):
    for seq in (1 << 63, 0):
        lease = FakeLease([packet(torch.ones(4, 2), seq, host_step=3, weights_version=0)])
        run.worker.consume(lease)
        lease.release()
    refused = (
        run.page.slot("reservoir-0").metrics()["reservoir_refused_packets{hook=layer.0}"].value
    )
    assert refused == 1
    assert len(run.rows()) == 4


def test_steps_that_were_made_again_have_the_rows_of_the_last_attempt(run):
    import json

    run.steps(0, 25)
    run.worker.close()
    run.worker = run.start(attempt=1)
    run.steps(15, 30)
    (run.folder / "run.json").write_text(
        json.dumps({
            "schema": "asys.run/1", "run_id": "r", "hooks": [], "host_pid": 1,
            "attempts": [{"attempt": 0, "first_step": 0}, {"attempt": 1, "first_step": 15}],
        })
    )  # fmt: skip
    rows = run.rows()
    assert [(rows.attempt[rows.host_step == s].tolist()) for s in (14, 15)] == [[0] * 4, [1] * 4]
    assert len(rows) == 120


def test_a_damaged_window_is_refused_by_the_reader_and_passed_over_by_the_worker(run):
    run.steps(0, 20)
    run.worker.close()
    folder = reservoir_folder(run.folder, NAMES[1])
    run.steps(20, 40)
    run.worker.close()
    (folder / "w-0-19-1.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ReservoirError, match="w-0-19-1"):
        read_reservoir(run.folder, NAMES[1])
    run.worker = run.start()
    run.steps(40, 50)
    sample = run.worker._hooks[1].samples[False]
    assert len(sample) == 31
    run.worker.close()
    assert (folder / "w-0-19-1.safetensors").exists(), "somebody may want to look at it"


def test_a_run_without_a_reservoir_has_no_rows(tmp_path):
    assert read_reservoir(tmp_path, "x") is None
    assert WindowedSample(4, None).rows() is None


def test_rows_of_heads_are_of_their_tokens_sequence_and_carry_no_text(run):
    kernel = HeadsPreprocessor(2)
    names = ("identity", *NAMES[1:], kernel.encoding)
    decoder = Decoder(names.__getitem__)
    run.worker._context = replace(
        run.worker._context, decode=decoder, rows=decoder.rows, grid=decoder.grid,
        rows_each=decoder.rows_each,
    )  # fmt: skip
    heads = packet(
        torch.zeros(3, 5, 2, 2), 0, encoding_id=names.index(kernel.encoding), host_step=1, text=1
    )
    lease = FakeLease([heads])
    run.worker.consume(lease)
    lease.release()
    rows = run.rows()
    assert rows.sequence.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert set(rows.about["text"].tolist()) == {0}
    assert rows.row.tolist() == list(range(30))


def test_windows_that_are_written_together_share_a_file(run):
    run.steps(0, 40)
    run.worker._flush()
    folder = reservoir_folder(run.folder, NAMES[1])
    assert {path.name for path in folder.iterdir()} == {
        "w-0-39-1.safetensors", "w-39-1.safetensors",
    }  # fmt: skip
    run.steps(40, 60)
    run.worker._flush()
    assert {path.name for path in folder.iterdir()} == {
        "w-0-39-1.safetensors", "w-39-1.safetensors", "w-40-19-1.safetensors", "w-59-1.safetensors",
    }  # fmt: skip
    assert run.rows().host_step.tolist() == [step for step in range(60) for _ in range(4)]


@pytest.mark.parametrize("late", [5, 17, 30])
@pytest.mark.parametrize("restarts", [False, True])
def test_rows_that_come_late_are_kept_whatever_file_their_window_is_in(
    run, tmp_path, late, restarts
):
    """Of a window among those of a file, of one that no row was of, and before all of them."""
    whole = Run(tmp_path / "whole")
    for one in (run, whole):
        for begin, end in ((10, 17), (18, 40), (40, 50)):
            one.steps(begin, end)
            if one is run:
                one.worker._flush()
                one.worker = one.start() if restarts else one.worker
        one.steps(late, late + 1, call_index=7)
    found, wanted = run.rows(), whole.rows()
    whole.page.close()
    assert same(found, wanted)
    assert (found.host_step == late).sum() == (8 if late == 30 else 4)


def test_a_kill_between_two_files_of_joined_windows_loses_no_row(run, few_windows, monkeypatch):
    monkeypatch.setattr("asys_bench.change.reservoir.windows.FILE_BYTES", 1)  # a file each
    run.steps(0, 32)
    run.worker._flush()
    folder = reservoir_folder(run.folder, NAMES[1])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run.steps(32, 40)
    wanted = run.rows()
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in sorted(made)[1::2]:  # those that were not written yet
        (folder / name).unlink()
    for name, data in before.items():
        (folder / name).write_bytes(data)
    found = read_reservoir(run.folder, NAMES[1])
    assert set(found.host_step.tolist()) >= set(range(32))
    run.worker = run.start()
    run.steps(0, 40)  # what was lost comes again
    assert same(run.rows(), wanted)


def test_a_window_begins_with_the_limit_of_those_before_it():
    sample, rows = WindowedSample(100, None), 40
    taken = []
    for step in range(6016):
        rank_N = ranks(
            np.repeat(moment_hash(np.array([step])), rows), np.arange(rows), np.ones(rows)
        )
        wanted = rank_N < sample.limits(np.array([step]))
        table = np.zeros(int(wanted.sum()), ABOUT)
        table["host_step"], table["weight"] = step, 1.0
        table["row"], table["rank"] = np.flatnonzero(wanted), rank_N[wanted]
        taken.append(len(table))
        sample.extend(ReservoirRows(torch.zeros(len(table), 1), table))
    assert sample.width == 32
    assert sum(taken[4096:]) < 60 * 100 * 2.2, "100 (1 + ln 12.8) of each window would be 3.5"
    found = sample.rows()
    assert np.bincount(found.host_step // 32).tolist() == [100] * 188


@pytest.mark.parametrize("values", [torch.randn(5, 3), torch.randn(5, 3).bfloat16()])
def test_rows_that_are_copied_from_payloads_are_those_that_are_decoded_one_by_one(
    tmp_path, monkeypatch, values
):
    """Of matrices of several heights; of the second calls a window wants some rows or none."""
    monkeypatch.setattr("asys_bench.change.reservoir.windows.MOST_ROWS", 2)
    found: list[ReservoirRows] = []
    for number in range(2):
        one = Run(tmp_path / str(number))
        for call in range(2):
            packets = [
                packet(values[: step % 6] * step, step, host_step=step, call_index=call)
                for step in range(1, 25)
            ]
            lease = FakeLease(packets)
            del packets
            one.worker.consume(lease)
            lease.release()
        found.append(one.rows())
        one.page.close()
        monkeypatch.setattr(
            "asys_bench.change.reservoir.sink._picked_from_payloads", lambda *_: None
        )
    assert len(found[0]) == 40
    assert len(set(found[0].call.tolist())) == 2
    assert same(*found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_a_file_is_the_one_that_safetensors_writes(dtype):
    from safetensors.torch import save

    from asys_bench.sae.checkpoint.checkpoint_files import tensor_parts

    rows = ReservoirRows(torch.arange(21).reshape(7, 3).to(dtype), np.zeros(7, ABOUT))
    for tensors in (part.tensors() for part in (rows, rows[:0], rows[2:5], rows[6:])):
        assert b"".join(tensor_parts(tensors)) == save(tensors)


def test_rows_that_come_out_of_order_are_given_in_the_hosts_order():
    table = np.zeros(6, ABOUT)
    table["host_step"], table["call"] = [1, 1, 2, 2, 2, 2], [0, 0, 1, 1, 0, 0]
    table["row"] = [0, 1, 0, 1, 1, 0]
    rows = ReservoirRows(torch.arange(6.0)[:, None], table)
    assert rows.of_time().values[:, 0].tolist() == [0, 1, 5, 4, 2, 3]
    assert rows[:4].of_time().values[:, 0].tolist() == [0, 1, 2, 3]
