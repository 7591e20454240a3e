"""What a run has written, through torch, numpy, datasets and pandas; and a reader on a live one."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import asys_bench
from asys_bench.rundir.live_run import LiveRunError, ReadingError
from asys_bench.rundir.open_run import Run

SAE = {"k": 4, "batch_rows": 64, "buffer_rows": 512, "checkpoint_interval_s": 0.3}
SINKS = {"trainer": {"options": {"sae": SAE, "final_train_s": 0.3}}}
WIDTH = 16


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 8)
    )


def observe(model, folder, **options):
    run = {"dir": str(folder), "drain_timeout_s": 60}
    return asys_bench.observe(model, run=run, sinks=SINKS, **options)


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """A finished run and what was really computed: {hook: rows}."""
    folder = tmp_path_factory.mktemp("runs")
    model = make_model()
    truth = {"0": [], "2": []}
    for hook in truth:
        model.get_submodule(hook).register_forward_hook(
            lambda module, args, output, hook=hook: truth[hook].append(output.detach().clone())
        )
    with observe(model, folder, hooks=["0", "2"]) as observation:
        for _ in range(60):
            model(torch.randn(32, 8))
            time.sleep(0.01)
    rows = {hook: torch.cat(parts).numpy() for hook, parts in truth.items()}
    return observation.run, rows


def test_a_run_is_found_by_its_folder_or_as_the_newest_of_many(observed, tmp_path):
    run, _ = observed
    for path in (run.path, str(run.path), run.path.parent):
        assert asys_bench.open_run(path).path == run.path
    assert run.hooks == ["0", "2"]
    assert not run.live
    assert "ended" in repr(run)
    with pytest.raises(ReadingError, match="neither a run"):
        asys_bench.open_run(tmp_path)


def test_numpy_has_every_row_as_it_was(observed):
    run, truth = observed
    assert run.archive.hooks == ["0", "2"]
    for hook, rows in truth.items():
        columns = run.archive.numpy(hook)
        assert np.array_equal(columns["values"], rows)
        assert columns["host_step"].tolist() == [step for step in range(60) for _ in range(32)]
        assert set(columns["hook"]) == {hook}
    limited = run.archive.numpy("0", ("values", "row"), limit=40)
    assert np.array_equal(limited["values"], truth["0"][:40])
    assert set(limited) == {"values", "row"}


def test_torch_datasets_give_single_rows_and_batches(observed):
    run, truth = observed
    rows = torch.stack(list(run.archive.torch("0")))
    assert torch.equal(rows, torch.from_numpy(truth["0"]))
    loader = DataLoader(run.archive.torch("0"), batch_size=100)
    assert [len(batch) for batch in loader] == [100] * 19 + [20]
    dataset = run.archive.torch("2", ("values", "host_step", "hook"), batch_rows=50)
    batches = list(DataLoader(dataset, batch_size=None))
    assert torch.equal(torch.cat([b["values"] for b in batches]), torch.from_numpy(truth["2"]))
    assert batches[0]["host_step"].dtype == torch.int64
    assert batches[0]["hook"][:2] == ["2", "2"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_of_a_data_loader_share_the_rows(observed):
    run, truth = observed
    loader = DataLoader(
        run.archive.torch("0", batch_rows=64),
        batch_size=None,
        num_workers=2,
        multiprocessing_context="forkserver",
    )
    rows = torch.cat(list(loader)).numpy()
    assert np.array_equal(np.sort(rows, axis=0), np.sort(truth["0"], axis=0))


@pytest.mark.interop
def test_datasets_opens_the_archive(observed):
    run, truth = observed
    dataset = run.archive.datasets("0")
    assert dataset.num_rows == len(truth["0"])
    values = np.array(dataset.with_format("numpy")[:]["values"])
    assert np.array_equal(values, truth["0"])


def test_saes_are_torch_modules_over_raw_rows(observed):
    run, truth = observed
    saes = run.saes()
    assert set(saes) == {"0", "2"}
    x = torch.from_numpy(truth["0"])
    acts = saes["0"].encode(x)
    assert acts.shape == (len(x), 8 * WIDTH)
    assert int((acts > 0).sum(1).max()) <= 4
    error = (saes["0"](x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert float(error) < 1.0
    assert not any(parameter.requires_grad for parameter in saes["0"].parameters())
    with pytest.raises(ReadingError, match=r"no SAE of 'nope' yet; there are \['0', '2'\]"):
        run.sae("nope")


def test_metrics_are_a_table_that_pandas_takes(observed):
    pandas = pytest.importorskip("pandas")
    run, _ = observed
    table = run.metrics("hook_captured", hook="0")
    assert table["value"][-1] == 60
    assert set(table["metric"]) == {"hook_captured"}
    assert table["time_s"].dtype == np.float64
    frame = pandas.DataFrame(run.metrics())
    assert frame[frame.metric == "host_steps"].value.max() == 60
    assert len(frame) == run.metrics().n_rows == len(list(run.metrics().rows()))
    with pytest.raises(ReadingError, match="no column 'hok'"):
        run.metrics(hok="0")


def test_what_is_not_there_is_named(observed):
    run, _ = observed
    with pytest.raises(KeyError, match="no hook 'nope'"):
        run.archive.torch("nope")
    with pytest.raises(ReadingError, match="no columns"):
        run.archive.numpy("0", ("values", "colour"))
    with pytest.raises(LiveRunError, match="the run has ended"):
        asys_bench.subscribe(run)


def test_a_half_written_line_of_metrics_is_left_out(observed, tmp_path):
    run, _ = observed
    text = (run.path / "metrics.csv").read_text()
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "run.json").write_text((run.path / "run.json").read_text())
    (copy / "metrics.csv").write_text(text + "1.0,2026-01-01,host,host_st")
    assert Run(copy).metrics().n_rows == run.metrics().n_rows
    (copy / "metrics.csv").write_text("something,else\n1,2\n")
    with pytest.raises(ReadingError, match="its columns are not"):
        Run(copy).metrics()


LIVE_FEATURES = Path(__file__).parents[2] / "docs" / "examples" / "live_features.py"


@pytest.mark.rest
@pytest.mark.parametrize("backend", ["mp_queue", "cpp_spmc"])
def test_another_process_reads_live_features_and_leaves_without_a_trace(tmp_path, backend):
    """As docs/examples/live_features.py does it."""
    assert len(LIVE_FEATURES.read_text().splitlines()) <= 15
    model = make_model()
    with observe(model, tmp_path, hooks=["0", "2"], bus={"backend": backend}) as observation:
        while len(observation.run.saes()) < 2:
            model(torch.randn(64, 8))
            time.sleep(0.01)
        assert observation.run.live
        reader = subprocess.Popen(
            [sys.executable, str(LIVE_FEATURES), str(observation.run_dir)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert reader.stdout is not None
        try:
            while not select.select([reader.stdout], [], [], 0.01)[0] and reader.poll() is None:
                model(torch.randn(64, 8))
            hook, step, feature, strength = reader.stdout.readline().split()
            assert hook in ("0", "2")
            assert int(step) <= observation.steps
            assert int(feature) < 8 * WIDTH
            assert float(strength) > 0
        finally:
            observation.close()
            reader.communicate(timeout=60)
        assert reader.returncode == 0, "it ends with the run"
    account = observation.account
    assert account.group("reader-0").missed > 0
    assert all(account.imbalance(group) == 0 for group in account.groups)


@pytest.mark.rest
def test_a_slow_reader_skips_samples_and_does_not_hold_up_the_run(tmp_path):
    model = make_model()
    bus = {"backend": "cpp_spmc", "on_full": "drop"}
    with observe(model, tmp_path, hooks="0", bus=bus) as observation:
        with asys_bench.subscribe(observation.run, keep=4) as live:
            for _ in range(200):
                model(torch.randn(8, 8))
                time.sleep(0.002)
            deadline = time.monotonic() + 60
            while live.skipped < 196 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert live.skipped == 196
            steps = [live.get(60.0).host_step for _ in range(4)]
            assert steps == sorted(steps)
            assert steps[-1] == 199
            assert live.get(0.05) is None
            assert not live.ended
            with asys_bench.subscribe(observation.run_dir) as other:
                groups = {group.group for group in other.account.groups}
                assert {"reader-0", "reader-1"} <= groups
            with pytest.raises(ReadingError, match="match none of"):
                asys_bench.subscribe(observation.run_dir, "nope")
        with asys_bench.subscribe(observation.run_dir) as again:
            model(torch.randn(8, 8))
            assert again.get(120.0).host_step == 200
            assert {g.group for g in again.account.groups} == groups, "a seat is used again"
    assert observation.account.dropped_total == 0
