"""Rows of an archive for a training loop: each once an epoch, whoever reads, is killed or goes on."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from asys_bench.rundir.archive_view import ArchiveView
from asys_bench.rundir.live_run import ReadingError

RIG = runpy.run_path(str(Path(__file__).parent / "rows_rig.py"))
HOOK, OTHER = RIG["HOOK"], RIG["OTHER"]
keys, values, write_shards, Rig = RIG["keys"], RIG["values"], RIG["write_shards"], RIG["RIG"]
SHUFFLED = {"shuffle_window": 64, "seed": 1}


@pytest.fixture
def run(tmp_path):
    """(folder, rows) of 20 shards with 42 rows each."""
    return tmp_path, write_shards(tmp_path)


def once(found, rows):
    return len(found) == len(rows) and set(found) == rows


def test_an_epoch_has_each_row_once_in_another_order(run):
    folder, rows = run
    dataset = ArchiveView(folder).torch(HOOK, batch_rows=50, **SHUFFLED)
    assert dataset.rows == len(rows) == 840
    first = keys(dataset)
    dataset.set_epoch(1)
    second = keys(dataset)
    assert once(first, rows)
    assert once(second, rows)
    assert first != second
    assert first != sorted(first)
    dataset.set_epoch(0)
    assert keys(dataset) == first
    assert keys(ArchiveView(folder).torch(HOOK, **SHUFFLED)) == first
    assert keys(ArchiveView(folder).torch(HOOK, shuffle_window=64, seed=2)) != first


def test_without_a_window_rows_come_in_the_order_written_in_full_batches(run):
    folder, rows = run
    batches = list(ArchiveView(folder).torch(HOOK, batch_rows=100))
    assert [len(batch) for batch in batches] == [100] * 8 + [40]
    assert keys(batches) == sorted(rows)


def test_other_columns_stay_with_their_rows(run):
    folder, _ = run
    dataset = ArchiveView(folder).torch(
        HOOK, ("values", "host_step", "row", "hook", "timestamp", "grid"), 64, shuffle_window=200
    )
    for batch in dataset:
        assert torch.equal(batch["values"][:, 0].long(), batch["host_step"])
        assert torch.equal(batch["values"][:, 1].long(), batch["row"])
        assert batch["timestamp"].dtype == torch.int64
        assert set(batch["hook"]) == {HOOK}
        assert set(batch["grid"]) == {"7"}


def test_an_item_does_not_keep_its_window_in_memory(run):
    folder, _ = run
    batch = next(iter(ArchiveView(folder).torch(HOOK, batch_rows=5, shuffle_window=500)))
    assert batch.untyped_storage().nbytes() == 5 * 3 * 4


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("batch", [None, 16])
def test_ranks_share_the_rows_evenly(run, world, batch):
    folder, rows = run
    view = ArchiveView(folder)
    parts = [
        keys(view.torch(HOOK, batch_rows=batch, rank=rank, world_size=world, **SHUFFLED))
        for rank in range(world)
    ]
    assert once([key for part in parts for key in part], rows)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_with_drop_last_all_ranks_have_equally_many_full_batches_and_epochs_drop_others(run):
    folder, rows = run
    dropped = []
    for epoch in (0, 1):
        parts = [
            list(ArchiveView(folder).torch(
                HOOK, batch_rows=64, rank=rank, world_size=3, drop_last=True, epoch=epoch, **SHUFFLED
            ))
            for rank in range(3)
        ]  # fmt: skip
        assert [[len(batch) for batch in part] for part in parts] == [[64] * 4] * 3
        found = keys(batch for part in parts for batch in part)
        assert len(found) == len(set(found)) == 768
        dropped.append(rows - set(found))
    assert dropped[0] != dropped[1]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_and_ranks_share_the_rows_and_persistent_workers_hear_of_the_next_epoch(run):
    folder, rows = run
    datasets = [
        ArchiveView(folder).torch(HOOK, batch_rows=16, rank=rank, world_size=2, **SHUFFLED)
        for rank in range(2)
    ]
    loaders = [
        DataLoader(one, batch_size=None, num_workers=2, persistent_workers=True) for one in datasets
    ]
    epochs = []
    for epoch in range(2):
        for one in datasets:
            one.set_epoch(epoch)
        epochs.append([keys(loader) for loader in loaders])
        assert once(epochs[-1][0] + epochs[-1][1], rows)
    assert epochs[0] != epochs[1]
    with pytest.raises(RuntimeError, match="StatefulDataLoader"):
        datasets[0].state_dict()


@pytest.mark.parametrize("batch", [None, 16, 100])
@pytest.mark.parametrize("window", [0, 64, 10_000])
def test_a_reader_that_is_resumed_after_any_item_gives_the_rest(run, batch, window):
    folder, rows = run
    whole = list(ArchiveView(folder).torch(HOOK, batch_rows=batch, shuffle_window=window))
    expected = keys(whole)
    for stop in {0, 1, 2, len(whole) // 2, len(whole) - 1, len(whole)}:
        dataset = ArchiveView(folder).torch(HOOK, batch_rows=batch, shuffle_window=window)
        iterator = iter(dataset)
        before = [next(iterator) for _ in range(stop)]
        state = json.loads(json.dumps(dataset.state_dict()))
        resumed = ArchiveView(folder).torch(HOOK, batch_rows=batch)  # the window is the state's
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert keys(before) + keys(resumed) == expected
        resumed.set_epoch(1)
        assert once(keys(resumed), rows)


def test_a_state_is_small_and_a_resumed_reader_reads_only_what_is_left(run, monkeypatch):
    folder, _ = run
    dataset = ArchiveView(folder).torch(HOOK, batch_rows=8, shuffle_window=64)
    iterator = iter(dataset)
    for _ in range(100):
        next(iterator)
    state = dataset.state_dict()
    assert len(json.dumps(state)) < 2000
    read = []
    from asys_bench.sinks.archive import row_access

    plain = row_access.read_rows
    monkeypatch.setattr(
        row_access, "read_rows", lambda *given: read.append(plain(*given)) or read[-1]
    )
    resumed = ArchiveView(folder).torch(HOOK, batch_rows=8)
    resumed.load_state_dict(state)
    assert len(keys(resumed)) == 40
    assert (
        len(read) <= 2 * 6
    )  # chunks of 21 rows, as record batches are: two windows with three or four


def test_the_states_of_all_readers_are_shared_anew_over_others(run):
    folder, rows = run

    def dataset(rank, world):
        return ArchiveView(folder).torch(
            HOOK, batch_rows=16, rank=rank, world_size=world, **SHUFFLED
        )

    found, states = [], []
    for rank, taken in ((0, 3), (1, 17)):
        one = dataset(rank, 2)
        iterator = iter(one)
        found += keys(next(iterator) for _ in range(taken))
        states.append(one.state_dict())
    with pytest.raises(ValueError, match=r"states of ranks \[0\] of 2, and this is rank 2 of 3"):
        dataset(2, 3).load_state_dict(states[0])
    sizes = []
    for rank in range(3):
        one = dataset(rank, 3)
        one.load_state_dict(states)
        part = keys(one)
        found, sizes = found + part, [*sizes, len(part)]
    assert once(found, rows)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "x"}, "format 'x'"),
        ({"left": [[0, 10], [5, 20]]}, "overlap"),
        ({"left": [[0, 10**6]]}, "overlap"),
        ({"reader": [0, 1, 1, 2]}, "workers"),
        ({"plan": {}}, "not a state"),
        ({"epoch": None}, "not a state"),
    ],
)
def test_a_state_that_cannot_be_is_refused(run, change, reason):
    dataset = ArchiveView(run[0]).torch(HOOK, batch_rows=8)
    with pytest.raises(ValueError, match=reason):
        dataset.load_state_dict(dataset.state_dict() | change)


def test_states_of_other_rows_or_that_lead_out_of_the_archive_are_refused(run):
    dataset = ArchiveView(run[0]).torch(HOOK, batch_rows=8)
    state = dataset.state_dict()
    with pytest.raises(ValueError, match="not of one epoch of one dataset"):
        dataset.load_state_dict([state, state | {"epoch": 1}])
    state["plan"]["index"]["shards"][0][3] = "../../etc/a-0-0.arrows"
    with pytest.raises(ValueError, match="not the name of a shard"):
        dataset.load_state_dict(state)
    other = dataset.state_dict()
    other["plan"]["index"]["hooks"] = ["x"]
    with pytest.raises(ValueError, match="a state of rows of"):
        dataset.load_state_dict(other)


def test_a_shard_that_the_budget_deletes_during_the_epoch_is_left_out_and_counted(run, caplog):
    folder, rows = run
    dataset = ArchiveView(folder).torch(HOOK, batch_rows=10, shuffle_window=64)
    iterator = iter(dataset)
    found = keys(next(iterator) for _ in range(3))
    gone = sorted((folder / "archive").glob("*/*.arrows"))[4:7]
    for path in gone:
        path.unlink()
    found += keys(iterator)
    missing = rows - set(found)
    assert len(found) == len(set(found))
    assert len(found) + dataset.gone_rows == len(rows)
    assert len(missing) == dataset.gone_rows
    assert 84 <= dataset.gone_rows <= 126  # of 3 x 42, those that the first window had are there
    assert sum("was deleted" in line for line in caplog.messages) == 3


def test_a_reader_resumes_although_shards_were_deleted_since(run):
    folder, rows = run
    dataset = ArchiveView(folder).torch(HOOK, batch_rows=10, shuffle_window=64)
    iterator = iter(dataset)
    found = keys(next(iterator) for _ in range(30))
    state = dataset.state_dict()
    assert state["gone_rows"] == 0
    for path in sorted((folder / "archive").glob("*/*.arrows"))[:5]:
        path.unlink()
    resumed = ArchiveView(folder).torch(HOOK, batch_rows=10)
    resumed.load_state_dict(state)
    halfway = iter(resumed)
    found += keys(next(halfway) for _ in range(20))
    again = ArchiveView(folder).torch(HOOK, batch_rows=10)
    again.load_state_dict(resumed.state_dict())
    found += keys(again)
    assert len(found) == len(set(found))
    assert len(found) + again.gone_rows == len(rows)
    assert 0 < again.gone_rows <= 5 * 42


def test_rows_that_are_there_twice_come_once(tmp_path):
    """A worker died after it had written a lease that another one was then given."""
    rig = Rig(tmp_path)
    packets = [rig.packet(values(n, 5), n, host_step=n, call_index=0) for n in range(40)]
    for name, first, stop in (("archiver-0", 0, 25), ("archiver-1", 15, 40)):
        worker = rig.start(name=name, members=2)
        rig.feed(worker, *packets[first:stop])
        worker.close()
    rig.page.close()
    rows = {(packet, row) for packet in range(40) for row in range(5)}
    dataset = ArchiveView(tmp_path).torch(HOOK, batch_rows=7, shuffle_window=30)
    assert dataset.rows == 200
    assert once(keys(dataset), rows)
    assert keys(ArchiveView(tmp_path).torch(HOOK)) == keys(
        [torch.from_numpy(np.array(b["values"])) for b in ArchiveView(tmp_path).batches(HOOK)]
    )


@pytest.mark.parametrize("hooks", [(1,), (1, 3)])
def test_packets_that_are_stored_as_they_travelled_give_the_same_rows_in_the_same_order(
    tmp_path, hooks
):
    found = []
    for how in ("keep", "encoded"):
        rows = write_shards(tmp_path / how, shards=3, hooks=hooks, values=how)
        names = [HOOK, OTHER][: len(hooks)]
        dataset = ArchiveView(tmp_path / how).torch(names, batch_rows=8, shuffle_window=50)
        iterator = iter(dataset)
        first = keys(next(iterator) for _ in range(4))
        resumed = ArchiveView(tmp_path / how).torch(names, batch_rows=8)
        resumed.load_state_dict(dataset.state_dict())
        found.append(first + keys(resumed))
        assert once(found[-1], rows)
    assert found[0] == found[1]


def test_shards_can_be_chosen(run):
    folder, rows = run
    view = ArchiveView(folder)
    names = view.shards(HOOK)
    assert len(names) == 20
    trained = keys(view.torch(HOOK, shards=names[:15], **SHUFFLED))
    held_out = keys(view.torch(HOOK, shards=names[15:]))
    assert len(trained) == 15 * 42
    assert once(trained + held_out, rows)
    with pytest.raises(ReadingError, match=r"has no shards \['x'\]"):
        view.torch(HOOK, shards=["x"])


def test_rows_of_two_hooks_of_one_call_come_side_by_side(tmp_path):
    rows = write_shards(tmp_path, shards=4, hooks=(1, 3))
    dataset = ArchiveView(tmp_path).torch([OTHER, HOOK], ("values", "host_step"), 16, **SHUFFLED)
    batches = list(dataset)
    assert once(keys(batches), rows)
    for batch in batches:
        assert set(batch) == {OTHER, HOOK, "host_step"}
        assert torch.equal(batch[HOOK], batch[OTHER])
        assert torch.equal(batch[HOOK][:, 0].long(), batch["host_step"])
    assert dataset.left_out == 0


def test_rows_without_a_partner_are_left_out_and_counted(tmp_path):
    """Of the second hook, packets 3, 4 and 5 are missing, and of packet 7 there are rows 2, 3 and 6."""
    rig = Rig(tmp_path)
    worker = rig.start()
    for n in range(10):
        own = [rig.packet(values(n, 8), 2 * n, 1, host_step=n, call_index=0)]
        if n not in (3, 4, 5):
            other = values(n, 8)
            own.append(rig.packet(other, 2 * n + 1, 3, host_step=n, call_index=0))
        rig.feed(worker, *own)
    worker.close()
    rig.page.close()
    dataset = ArchiveView(tmp_path).torch([HOOK, OTHER], batch_rows=9, **SHUFFLED)
    batches = list(dataset)
    found = keys(batches)
    assert {packet for packet, _ in found} == {0, 1, 2, 6, 7, 8, 9}
    assert len(found) == len(set(found)) == dataset.rows == 56
    assert dataset.left_out == 24
    assert all(torch.equal(batch[HOOK], batch[OTHER]) for batch in batches)
    alone = ArchiveView(tmp_path).torch([OTHER, HOOK], batch_rows=9)
    assert (alone.rows, alone.left_out) == (56, 0)


def test_hooks_whose_tensors_differ_in_size_do_not_belong_together(tmp_path):
    """A pooled row is none of the tokens' rows, though both have a row 0."""
    rig = Rig(tmp_path)
    worker = rig.start()
    for n in range(10):
        rig.feed(
            worker,
            rig.packet(values(n, 8), 2 * n, 1, host_step=n, call_index=0),
            rig.packet(values(n, 2), 2 * n + 1, 3, host_step=n, call_index=0),
        )
    worker.close()
    rig.page.close()
    with pytest.raises(ReadingError, match="are of one call"):
        ArchiveView(tmp_path).torch([HOOK, OTHER])


def test_joined_rows_resume_too(tmp_path):
    rows = write_shards(tmp_path, shards=5, hooks=(1, 3))
    dataset = ArchiveView(tmp_path).torch([HOOK, OTHER], batch_rows=16, **SHUFFLED)
    iterator = iter(dataset)
    found = keys(next(iterator) for _ in range(5))
    resumed = ArchiveView(tmp_path).torch([HOOK, OTHER], batch_rows=16)
    resumed.load_state_dict(dataset.state_dict())
    batches = list(resumed)
    assert once(found + keys(batches), rows)
    assert all(torch.equal(batch[HOOK], batch[OTHER]) for batch in batches)


@pytest.mark.parametrize(
    ("wrong", "error", "reason"),
    [
        ({"batch_rows": 0}, ValueError, "batch_rows 0"),
        ({"shuffle_window": -1}, ValueError, "shuffle_window -1"),
        ({"rank": 2, "world_size": 2}, ValueError, r"rank 2 must be in 0\.\.1"),
        ({"rank": 0}, ValueError, "go together"),
        ({"columns": ("colour",)}, ReadingError, "no columns"),
        ({"hook": [HOOK, HOOK]}, ReadingError, "named twice"),
        ({"hook": []}, ReadingError, "hooks"),
        ({"hook": "x"}, KeyError, "no hook 'x'"),
    ],
)
def test_what_cannot_be_asked_for_is_said(run, wrong, error, reason):
    with pytest.raises(error, match=reason):
        ArchiveView(run[0]).torch(**({"hook": HOOK} | wrong))
