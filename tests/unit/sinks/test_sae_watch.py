"""A known SAE watches a live model: figures while it runs, a report at the end."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import StatsPage
from asys_bench.sae import SAEConfig, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling, PairScaling
from asys_bench.sinks.sae_watch import SAEWatchOptions, SAEWatchWorker

RIG = runpy.run_path(str(Path(__file__).parent / "archive" / "conftest.py"))
NAMES = RIG["NAMES"]


@pytest.fixture
def sae_folder(tmp_path):
    sae = build_sae(SAEConfig(d_sae=16, k=3), 5)
    folder = tmp_path / "known"
    folder.mkdir()
    save_sae(folder, sae, InputScaling.identity(5), {"hook_name": "h"})
    return folder, sae


@pytest.fixture
def watch(tmp_path):
    pages = []

    def start(saes, **options):
        page = StatsPage.create(["watch-0"])
        pages.append(page)
        worker = SAEWatchWorker(SAEWatchOptions(saes=saes, **options))
        worker.open(
            SinkContext(
                name="watch-0", run_dir=tmp_path, run_id="run-1", seed=0,
                slot=page.slot("watch-0"), wall_offset_ns=0, incarnation=0,
                name_of=NAMES.__getitem__, decode=lambda packet: packet.raw_tensor(),
                heartbeat=lambda: None, time_left_s=lambda: float("inf"),
            )
        )  # fmt: skip
        return worker, page.slot("watch-0")

    yield start
    for page in pages:
        page.close()


def feed(worker, *packets):
    with RIG["FakeLease"](packets) as lease:
        worker.consume(lease)


def value(slot, name, hook="policy.mlp"):
    return slot.metrics()[f"{name}{{hook={hook}}}"].value


def test_the_window_and_the_report_tell_how_well_it_fits(tmp_path, sae_folder, watch):
    folder, sae = sae_folder
    worker, slot = watch({"policy.*": str(folder)}, window_rows=64)
    rows = torch.randn(128, 5, generator=torch.Generator().manual_seed(0))
    for seq in range(4):
        feed(worker, RIG["packet"](rows[seq * 32 : seq * 32 + 32], seq))
    with torch.no_grad():
        second, whole = rows[64:], rows
        window = (sae(second) - second).square().sum() / (second - second.mean(0)).square().sum()
        total = (sae(whole) - whole).square().sum() / (whole - whole.mean(0)).square().sum()
    assert value(slot, "sae_watch_fvu") == pytest.approx(float(window), rel=1e-4)
    assert value(slot, "sae_watch_rows") == 128
    worker.close()
    report = json.loads((tmp_path / "watch" / "policy.mlp-0.json").read_text())
    assert report["rows"] == 128
    assert report["fvu"] == pytest.approx(float(total), rel=1e-4)
    assert report["sae"] == str(folder)
    assert [w["rows"] for w in report["windows"]] == [64, 64]
    assert sum(report["density"]["counts"]) + report["density"]["silent"] == 16


def test_other_hooks_widths_and_broken_rows_are_passed_over(tmp_path, sae_folder, watch):
    folder, _ = sae_folder
    worker, slot = watch({"policy.*": str(folder), "enc*": str(tmp_path / "nowhere")})
    bad = torch.ones(4, 5)
    bad[1] = torch.nan
    feed(
        worker,
        RIG["packet"](bad, 0),
        RIG["packet"](torch.ones(3, 7), 1),
        RIG["packet"](torch.ones(3, 5), 2, hook=2),
        RIG["packet"](torch.ones(3, 5), 3, hook=3),
    )
    assert value(slot, "sae_watch_rows") == 3
    assert value(slot, "sae_watch_refused_rows") == 4
    worker.close()
    assert [path.name for path in (tmp_path / "watch").iterdir()] == ["policy.mlp-0.json"]


def test_an_sae_of_several_hooks_watches_none(tmp_path, watch, caplog):
    known = tmp_path / "transcoder"
    known.mkdir()
    sae = build_sae(SAEConfig(architecture="skip_transcoder", d_sae=16, k=3), 5)
    save_sae(known, sae, PairScaling(*2 * [InputScaling.identity(5)]), {"hook_name": "h"})
    worker, slot = watch({"policy.*": str(known)})
    feed(worker, RIG["packet"](torch.ones(3, 5), 0))
    assert "a skip_transcoder needs the rows of other hooks too" in caplog.text
    assert not slot.metrics()


def test_the_last_matching_glob_wins():
    options = SAEWatchOptions(saes={"*": "any", "policy.*": "policy"})
    assert options.folder_of("policy.mlp") == "policy"
    assert options.folder_of("x") == "any"
    assert SAEWatchOptions(saes={"a": "b"}).folder_of("x") is None
