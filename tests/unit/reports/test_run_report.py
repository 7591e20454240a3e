"""The run report over small runs made here: what it shows, what it survives, what it never contains."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from asys_bench.cli.commands import run_report
from asys_bench.contracts.bus import BusAccount, GroupAccount, Lease
from asys_bench.contracts.host import HostResult
from asys_bench.contracts.packet import ActivationPacket, Kind, tensor_bytes
from asys_bench.contracts.reporter import ReportError
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import StatsPage, WorkerState
from asys_bench.monitors.metrics_csv import MetricsCsv, rows_of
from asys_bench.monitors.snapshot import histograms, take_snapshot
from asys_bench.reports.run_report.analysis import EXAMPLES, analyse, look_at
from asys_bench.reports.run_report.archive_rows import newest_rows
from asys_bench.reports.run_report.cards import sae_section
from asys_bench.reports.run_report.coordinate_shifts import (
    coordinate_shifts,
    describe,
    kolmogorov_smirnov,
)
from asys_bench.reports.run_report.coordinates import Coordinate, read_observation_names
from asys_bench.reports.run_report.curves import Line, Moment, chart, time_ticks
from asys_bench.reports.run_report.feature_figures import decoder_map, density_histogram, heat
from asys_bench.reports.run_report.features import (
    Candidate,
    FeatureStats,
    activations,
    feature_stats,
    spread_out,
)
from asys_bench.reports.run_report.fields import receptive_field
from asys_bench.reports.run_report.input_pictures import field_map, observation, sentence
from asys_bench.reports.run_report.inputs import (
    Tokens,
    beside,
    observations,
    read_vocabulary,
    texts_of,
    tokens,
)
from asys_bench.reports.run_report.latency import steps
from asys_bench.reports.run_report.page import render_run
from asys_bench.reports.run_report.record import read_run
from asys_bench.reports.run_report.series import Metrics, rate, read_metrics, thin
from asys_bench.reports.run_report.token_levels import token_levels
from asys_bench.reports.run_report.worker_timeline import stretches
from asys_bench.reports.run_summary.document import write_json
from asys_bench.reports.run_summary.summarise import summarise
from asys_bench.sae import SAEConfig, build_sae, load_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling, JointScaling
from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore
from asys_bench.sinks.archive.reader import open_archive
from asys_bench.sinks.archiver import ArchiverOptions, ArchiverWorker

from ..cluster import documents

CARTPOLE = tuple(
    Coordinate(*words)
    for words in (
        ("cart position", "m", "the cart is left", "the cart is right"),
        ("cart velocity", "m/s", "the cart moves left", "the cart moves right"),
        ("pole angle", "rad", "the pole leans left", "the pole leans right"),
        ("pole angular velocity", "rad/s", "the pole swings left", "the pole swings right"),
    )
)
HOOK = "policy.net"
NAMES = ("identity", HOOK, f"{HOOK}:input", "tokens")
D_IN, D_SAE = 6, 32


class Batch(Lease):
    """Packets as a lease would hold them."""

    def __init__(self, packets: Sequence[ActivationPacket]) -> None:
        self._packets = list(packets)

    @property
    def packets(self) -> Sequence[ActivationPacket]:
        return self._packets

    def release(self) -> int:
        return len(self._packets)

    def give_back(self) -> None:
        self._packets = []


def packet(tensor: torch.Tensor, seq: int, hook: int, **fields: Any) -> ActivationPacket:
    base = ActivationPacket(
        seq=seq, source=0, shard=0, hook_id=hook, kind=Kind.ACTIVATION, dtype=tensor.dtype,
        shape=tuple(tensor.shape), host_step=seq, timestamp_ns=1000 + seq, weights_version=0,
        encoding_id=0, params=bytes(16), sampling_rate=1.0, call_index=0, microbatch=0,
        token_position=-1, crc=None, payload=memoryview(bytes(tensor_bytes(tensor.contiguous()))),
    )  # fmt: skip
    return replace(base, **fields)


def archive(run_dir: Path, packets: Sequence[ActivationPacket]) -> None:
    """Write packets with the real archiver."""
    page = StatsPage.create(["archive-0"])
    worker = ArchiverWorker(ArchiverOptions(rows_per_batch=64))
    worker.open(
        SinkContext(
            name="archive-0", run_dir=run_dir, run_id="a-run", seed=0, slot=page.slot("archive-0"),
            wall_offset_ns=0, incarnation=0, name_of=NAMES.__getitem__,
            decode=ActivationPacket.raw_tensor, heartbeat=lambda: None,
            time_left_s=lambda: float("inf"),
        )
    )  # fmt: skip
    worker.consume(Batch(packets))
    worker.close()
    page.close()


def checkpoint(run_dir: Path, hook: str = HOOK, k: int = 2) -> Any:
    sae = build_sae(SAEConfig(architecture="topk", d_sae=D_SAE, k=k, seed=3), D_IN)
    CheckpointStore(run_dir / "sae" / hook).write(
        10, lambda folder: save_sae(folder, sae, InputScaling.identity(D_IN), {})
    )
    return sae


def metrics(run_dir: Path, seconds: int = 6) -> StatsPage:
    """Six readings of a run whose trainer died at 3 s."""
    page = StatsPage.create(["host", "trainer-0"])
    host, trainer = page.slot("host"), page.slot("trainer-0")
    file = MetricsCsv(run_dir / "metrics.csv")
    before = None
    for second in range(seconds):
        host.counter("host_steps").add(100)
        host.gauge("host_reward_mean").set(20.0 * second)
        host.counter("hook_captured", hook=HOOK).add(50)
        host.gauge("hook_sampling_rate", hook=HOOK).set(1.0 if second < 3 else 0.5)
        host.histogram("hook_latency_ns", hook=HOOK).record(20_000 + 1000 * second)
        trainer.state = WorkerState.FAILED if second == 3 else WorkerState.READY
        trainer.counter("sae_rows_trained", hook=HOOK).add(1000)
        trainer.gauge("sae_fvu", hook=HOOK).set(1.0 / (1 + second))
        trainer.gauge("sae_l0", hook=HOOK).set(2.0)
        trainer.gauge("sae_dead_ratio", hook=HOOK).set(0.25)
        group = GroupAccount("trainer", 50 * second, 0, 0, 0, 5)
        account = BusAccount(50 * second + 7, {"full": 2 * second}, 1000, (group,))
        now = take_snapshot(page, account)
        file.write(float(second), 1.7e9 + second, rows_of(now, before))
        before = now
    file.close()
    return page


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "20260101-000000-cartpole"
    folder.mkdir()
    document = {
        "schema": "asys.run/1", "run_id": folder.name, "started_unix_ns": 1_700_000_000 * 10**9,
        "step_unit": "env step", "hooks": [HOOK], "environment": {"torch": "2"}, "host_pid": 1,
        "stats_page": "/proc/1/fd/3",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(document))
    (folder / "config.yaml").write_text(
        "host:\n  kind: ppo\n  options:\n    ppo: {env_id: CartPole-v1}\n"
    )
    return folder


@pytest.fixture
def whole_run(run_dir: Path) -> Path:
    """Checkpoint, archive with observations, metrics, events, histograms and a summary."""
    checkpoint(run_dir)
    generator = torch.Generator().manual_seed(0)
    sent = []
    for seq in range(20):
        seen = torch.randn(8, 4, generator=generator) * 0.1
        acts = torch.randn(8, D_IN, generator=generator)
        sent += [
            packet(acts, 2 * seq, 1, host_step=seq),
            packet(seen, 2 * seq + 1, 2, host_step=seq),
        ]
    archive(run_dir, sent)
    page = metrics(run_dir)
    (run_dir / "histograms.json").write_text(json.dumps(histograms(page)))
    group = GroupAccount("trainer", 290, 0, 0, 0, 0)
    summary = summarise(
        page,
        BusAccount(300, {"full": 10}, 1000, (group,)),
        HostResult(600, 6.0, figures={"reward_mean": 431.0}),
        (),
        run_id=run_dir.name,
        run_dir=run_dir,
        step_unit="env step",
        elapsed_s=9.0,
        configured_l0={HOOK: 2},
    )
    write_json(summary, run_dir)
    page.close()
    event = {
        "time": "x",
        "time_s": 3.0,
        "level": "warning",
        "event": "worker_failed",
        "worker": "trainer-0",
    }
    (run_dir / "monitor.log").write_text(json.dumps(event) + '\n{"time_s": 4, "ev')
    return run_dir


class Seen(HTMLParser):
    """Tags, attributes and text of a document; fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in ("meta", "br", "wbr"):
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] != "style":
            self.text += data


def read(document: str) -> Seen:
    seen = Seen()
    seen.feed(document)
    assert seen.stack == []
    return seen


def render(run_dir: Path) -> str:
    record = read_run(run_dir)
    return render_run(record, analyse(run_dir, record.saes), read_vocabulary(run_dir))


def test_the_report_of_a_whole_run_shows_every_part(whole_run: Path) -> None:
    document = render(whole_run)
    seen = read(document)
    words = " ".join(seen.text.split())
    for wanted in (
        "What the SAEs found", "How they learnt", "The run over time", "What observing cost",
        "Feature densities", "Decoder map", "Fraction of variance unexplained, held out",
        "Hook latency spectrum", "trainer-0 died", "reward mean", "431", "finished", "3.3 %",
        "topk, 6 values in, 32 features", "What the model saw when each feature fired most",
    ):  # fmt: skip
        assert wanted in words, wanted
    assert "NaN" not in document
    assert "nan" not in re.sub(r"<style>.*?</style>", "", document, flags=re.S).lower()


def test_a_run_that_went_on_has_a_table_of_its_attempts(whole_run: Path) -> None:
    assert "Attempts" not in render(whole_run)
    summary = json.loads((whole_run / "summary.json").read_text())
    attempts = [
        {"attempt": 0, "end": "<b>killed", "first_step": 0, "last_step": 400, "packets": None,
         "balanced": None},
        {"attempt": 1, "end": "finished", "first_step": 300, "last_step": 600, "packets": 90,
         "balanced": True},
    ]  # fmt: skip
    (whole_run / "summary.json").write_text(json.dumps(summary | {"attempts": attempts}))
    words = " ".join(read(render(whole_run)).text.split())
    assert "unaccounted for, attempt 1" in words or "accounted for, attempt 1" in words
    assert "0<b>killed0 to 400--" in words
    assert "1finished300 to 60090OK" in words
    assert "allat least 90" in words


def test_what_was_sent_to_other_machines_and_what_came_from_them_have_a_table(
    whole_run: Path,
) -> None:
    assert "Other machines" not in render(whole_run)
    folder = whole_run / "cluster"
    folder.mkdir()
    (folder / "remote-0.json").write_text(
        json.dumps(documents.forwarder(taken=1234, acked=1229, dropped={"slow": 5}))
    )
    shown = " ".join(read(render(whole_run)).text.split())
    assert "Other machines" in shown
    assert "remote-0sae1,2341,2295 slow010" in shown
    quiet = documents.reported(100, 97, {"slow": 3}, 0)
    hosts = [
        documents.sender(97, 0, quiet, run_id="host-a", duplicates=2),
        documents.sender(97, 1, quiet, run_id="host-b"),
    ]
    document = documents.receiver(*hosts, refused={"key": 7})
    (folder / "receiver.json").write_text(json.dumps(document))
    shown = " ".join(read(render(whole_run)).text.split())
    assert "194 packets accepted at tcp://10.0.0.1:7000, job job, refused: 7 key." in shown
    assert "host-a/remote-0node0equal10097973 slow201.00 kB0.5 s" in shown
    assert "host-b/remote-0node0broken" in shown
    assert "host-b/remote-0: acked 97 is more than sae accepted" in shown
    (folder / "receiver.json").write_text("{")
    (folder / "remote-0.json").write_text("{}")
    assert "Other machines" not in render(whole_run)


def test_the_report_is_one_file_that_asks_nobody_for_anything(whole_run: Path) -> None:
    document = render(whole_run)
    seen = read(document)
    assert seen.links == []
    assert not {"script", "link", "img", "iframe", "object"} & set(seen.tags)
    assert "default-src 'none'" in html.unescape(document)
    assert "http" not in document.replace("http-equiv", "")
    assert "url(" not in document
    assert len(document) < 2_000_000


def test_the_same_run_gives_the_same_document(whole_run: Path) -> None:
    assert render(whole_run) == render(whole_run)


@pytest.mark.parametrize(
    "lost",
    [
        "metrics.csv",
        "monitor.log",
        "histograms.json",
        "summary.json",
        "config.yaml",
        "archive",
        "sae",
    ],
)
def test_a_run_that_lacks_a_part_is_shown_without_it(whole_run: Path, lost: str) -> None:
    path = whole_run / lost
    path.rename(whole_run / f"gone-{lost}")
    assert whole_run.name in read(render(whole_run)).text


def test_numbers_that_are_no_counts_leave_a_part_out(whole_run: Path) -> None:
    histograms_file, events = whole_run / "histograms.json", whole_run / "monitor.log"
    one = {"buckets": [[3, float("inf")]], "sum": 1, "max": 1}
    histograms_file.write_text(json.dumps({"host": {f'hook_latency_ns{{hook="{HOOK}"}}': one}}))
    with events.open("a") as file:
        file.write('{"event": "a", "time_s": 1' + "0" * 400 + "}\n")
    record = read_run(whole_run)
    assert record.latencies == {}
    assert "a" not in {event.name for event in record.events}


@pytest.mark.parametrize("text", ["[]", "7", '{"schema": "another"}'])
def test_a_summary_that_is_none_is_left_out(whole_run: Path, text: str) -> None:
    (whole_run / "summary.json").write_text(text)
    assert read_run(whole_run).summary is None
    assert whole_run.name in read(render(whole_run)).text


def test_a_run_of_which_only_run_json_is_left_is_still_a_page(run_dir: Path) -> None:
    text = read(render(run_dir)).text
    assert "still running, or ended without a summary" in text


def test_names_and_texts_of_a_run_are_escaped(whole_run: Path) -> None:
    document = json.loads((whole_run / "run.json").read_text())
    document["run_id"] = '<script>alert("x")</script>'
    (whole_run / "run.json").write_text(json.dumps(document))
    assert "<script" not in render(whole_run)


def test_damaged_checkpoints_and_shards_are_named(whole_run: Path) -> None:
    shard = next(whole_run.glob("archive/*/*.arrows"))
    raw = bytearray(shard.read_bytes())
    raw[8:80] = b"\xff" * 72
    shard.write_bytes(bytes(raw))
    assert any("archive" in found.problem for found in analyse(whole_run, (HOOK,)))
    weights = next(whole_run.glob("sae/*/step_*/sae_weights.safetensors"))
    weights.write_bytes(b"broken")
    (found,) = analyse(whole_run, (HOOK,))
    assert "sae_weights.safetensors" in found.problem
    assert "sae_weights.safetensors" in read(render(whole_run)).text


def test_top_rows_are_those_that_encoding_everything_at_once_finds(run_dir: Path) -> None:
    sae = checkpoint(run_dir)
    rows = torch.randn(700, D_IN, generator=torch.Generator().manual_seed(1))
    archive(run_dir, [packet(rows[i : i + 100], i // 100, 1) for i in range(0, 700, 100)])
    blocks = list(newest_rows(open_archive(run_dir), HOOK, 10_000))
    stats = feature_stats(sae, blocks)
    with torch.no_grad():
        acts = sae.encode(rows)
    assert stats.rows == 700
    np.testing.assert_allclose(stats.density_F, (acts > 0).double().mean(0).numpy())
    np.testing.assert_allclose(stats.top_KF[0], acts.max(0).values.numpy(), rtol=1e-5)
    feature = stats.most_active(1)[0]
    assert stats.where_KF[0, feature] == int(acts[:, feature].argmax())
    mass, density = acts.double().sum(0), (acts > 0).double().mean(0)
    sparse = density <= 0.1
    assert feature == int(torch.where(sparse, mass, -1.0).argmax())
    order = stats.most_active(D_SAE)
    assert [bool(sparse[f]) for f in order] == sorted(
        (bool(sparse[f]) for f in order), reverse=True
    )
    np.testing.assert_allclose(activations(sae, blocks, [feature, 0]), acts[:, [feature, 0]])


def test_only_the_newest_rows_are_looked_at(run_dir: Path) -> None:
    rows = torch.arange(640.0).reshape(640, 1).expand(640, D_IN)
    archive(run_dir, [packet(rows, 0, 1)])
    blocks = list(newest_rows(open_archive(run_dir), HOOK, 100))
    assert sum(map(len, blocks)) == 128
    assert blocks[0].values[0, 0] == 512


def test_rows_that_are_not_finite_activate_nothing(run_dir: Path) -> None:
    sae = checkpoint(run_dir)
    archive(run_dir, [packet(torch.full((4, D_IN), float("nan")), 0, 1)])
    stats = feature_stats(sae, list(newest_rows(open_archive(run_dir), HOOK, 100)))
    assert stats.rows == 4
    assert not stats.density_F.any()
    assert stats.most_active(5) == []
    assert "32 features never fired" in density_histogram(stats)


def test_observations_are_those_of_the_very_call_and_row(whole_run: Path) -> None:
    opened = open_archive(whole_run)
    inputs = list(newest_rows(opened, f"{HOOK}:input", 10_000))
    block = inputs[0]
    keys = [block.key(0), block.key(5)]
    found = observations(inputs, [*keys, (0, 999, 0, 0, 0, 0)])
    assert list(found) == keys
    np.testing.assert_array_equal(found[keys[1]], block.values[5])
    (looked,) = analyse(whole_run, (HOOK,))
    examples = [example for card in looked.cards for example in card.examples]
    assert examples
    assert all(example.observation is not None for example in examples)
    assert all(len(card.examples) <= EXAMPLES for card in looked.cards)


def test_every_row_gets_the_input_that_belongs_to_it(run_dir: Path) -> None:
    sent = []
    for seq in range(30):
        acts = torch.full((8, D_IN), float(seq)) + torch.arange(8.0).unsqueeze(1) / 10
        tags = {"host_step": seq // 10, "weights_version": seq % 10, "call_index": 0}
        sent.append(packet(acts, 2 * seq, 1, **tags))
        if seq % 3:  # the streams are sampled apart
            sent.append(packet(acts[:, :2] * 10, 2 * seq + 1, 2, **tags))
    archive(run_dir, sent)
    opened = open_archive(run_dir)
    blocks = list(newest_rows(opened, HOOK, 1000))
    joined = beside(list(newest_rows(opened, f"{HOOK}:input", 1000)), blocks)
    assert joined is not None
    values = np.concatenate([block.values for block in blocks])
    known = np.isfinite(joined).all(1)
    np.testing.assert_array_equal(known, values[:, 0].astype(int) % 3 != 0)
    np.testing.assert_allclose(joined[known], 10 * values[known][:, :2], rtol=1e-6)
    assert beside([], blocks) is None


def test_a_receptive_field_finds_the_coordinates_that_the_feature_reads() -> None:
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(20_000, 4)).astype(np.float32)
    seen[:, 3] = 1.0
    acts = np.maximum(0, seen[:, 1] + 0.5 * seen[:, 2]).astype(np.float32)
    found = receptive_field(acts, seen)
    assert found is not None
    assert (found.x, found.y) == (1, 2)
    assert 0.85 < found.explained < 1
    # Cells on the diagonal of the sum: the warm corner is where both are high.
    mean = np.nan_to_num(found.mean_YX)
    assert mean[-4:, -4:].mean() > 4 * mean[:4, :4].mean()
    drawn = field_map(found, CARTPOLE)
    assert "cart velocity" in drawn
    assert "nan" not in drawn
    wide = np.concatenate([rng.normal(size=(20_000, 20)).astype(np.float32), seen], 1)
    chosen = receptive_field(acts, wide)
    assert chosen is not None
    assert (chosen.x, chosen.y) == (21, 22)


def states(rows: int = 4000) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)


def test_a_feature_is_said_in_the_words_of_the_coordinates_it_fires_on() -> None:
    seen = states()
    acts = np.maximum(0, seen[:, 2] + seen[:, 3])
    found = coordinate_shifts(acts, seen)
    assert [one.p < 1e-3 for one in found] == [False, False, True, True]
    words = describe(found, CARTPOLE)
    assert words in (
        "the pole leans right and swings right",
        "the pole swings right and leans right",
    )
    left = describe(coordinate_shifts(np.maximum(0, -seen[:, 0]), seen), CARTPOLE)
    assert left == "the cart is left"
    assert describe(found, ()) in (
        "input 2 is high and input 3 is high",
        "input 3 is high and input 2 is high",
    )


def test_a_side_is_named_only_where_the_values_are_on_it() -> None:
    seen = states() * 0.1 + 5  # always right of the centre
    low = describe(coordinate_shifts(np.maximum(0, 5 - seen[:, 0]), seen), CARTPOLE)
    assert low == "cart position is low"
    near = describe(coordinate_shifts(np.maximum(0, 0.01 - np.abs(seen[:, 0] - 5)), seen), CARTPOLE)
    assert near.startswith("cart position is near 5")


def test_noise_has_no_words_and_a_feature_of_few_states_nothing() -> None:
    seen = states()
    noise = np.random.default_rng(1).random(len(seen)).astype(np.float32)
    assert describe(coordinate_shifts(noise, seen), CARTPOLE) == ""
    assert (
        coordinate_shifts(np.where(np.arange(len(seen)) < 5, 1.0, 0.0).astype(np.float32), seen)
        == ()
    )


def test_checkpoints_behind_a_link_are_said_to_be_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "mid").symlink_to(tmp_path)
    (only,) = analyse(tmp_path, ["mid", "other"])
    assert "symbolic link" in only.problem


def test_the_kolmogorov_smirnov_test_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    for shift in (0.0, 0.2, 0.5, 1.0):
        a, b = rng.normal(size=50) + shift, rng.normal(size=2000)
        distance, p = kolmogorov_smirnov(a, b)
        right = stats.ks_2samp(a, b)
        assert distance == pytest.approx(right.statistic)
        assert p == pytest.approx(right.pvalue, rel=0.3, abs=1e-4)


def test_names_of_an_observation_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    assert read_observation_names(tmp_path).coordinates == ()
    for text in ("", "[]", '{"coordinates": 3}', '{"coordinates": [3], "streams": []}'):
        (tmp_path / "observation.json").write_text(text)
        assert read_observation_names(tmp_path).coordinates == ()
    (tmp_path / "observation.json").write_text(
        json.dumps({"coordinates": [], "streams": ["x"], "left_out": "images"})
    )
    assert read_observation_names(tmp_path).left_out == "images"


def test_there_is_no_receptive_field_of_noise_or_of_few_rows() -> None:
    rng = np.random.default_rng(1)
    seen = rng.normal(size=(5000, 3)).astype(np.float32)
    assert receptive_field(rng.random(5000).astype(np.float32), seen) is None
    assert receptive_field(seen[:100, 0], seen[:100]) is None
    assert receptive_field(np.zeros(5000, np.float32), seen) is None
    assert receptive_field(seen[:, 0], np.ones((5000, 3), np.float32)) is None


def test_tokens_are_found_by_call_and_row_and_stay_in_their_sequence(run_dir: Path) -> None:
    checkpoint(run_dir)
    positions = torch.arange(20).repeat(2)
    pairs = torch.stack([torch.arange(40), positions], 1).to(torch.int32)
    acts = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(2))
    archive(
        run_dir,
        [
            packet(pairs, 0, 3, host_step=5, text=2),
            packet(pairs + 100, 1, 3, host_step=5, text=1),
            packet(acts, 2, 1, host_step=5, call_index=2, text=2),
            packet(acts, 3, 1, host_step=6, call_index=2),
        ],
    )
    opened = open_archive(run_dir)
    wanted = [(0, 5, 0, 0, 2, 27), (0, 5, 0, 0, 2, 39), (0, 5, 1, 0, 2, 27), (0, 6, 0, 0, 2, 0)]
    blocks = list(newest_rows(opened, HOOK, 100))
    texts = texts_of(blocks, wanted)
    assert texts == {wanted[0]: 2, wanted[1]: 2}, "rows that say they are tokens"
    found = tokens(opened, texts, 100)
    assert found == {
        wanted[0]: Tokens(tuple(range(20, 36)), 7),
        wanted[1]: Tokens(tuple(range(20, 40)), 19),
    }
    document = render(run_dir)
    assert re.search(r'<mark class="fires h\d hit"', document)
    assert re.search(r'<mark class="fires h\d"', document), "neighbours are marked too"
    (run_dir / "vocabulary.json").write_text(
        json.dumps({"tokens": [f"\u0120w{n}" for n in range(40)]})
    )
    assert re.search(r"<mark[^>]*> w\d+</mark>", render(run_dir))


def test_each_token_around_has_the_features_own_activation(run_dir: Path) -> None:
    checkpoint(run_dir)
    acts = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(2))
    archive(run_dir, [packet(acts, 1, 1, host_step=5, call_index=2)])
    latest = CheckpointStore(run_dir / "sae" / HOOK).latest()
    assert latest is not None
    sae, _ = load_sae(latest)
    blocks = list(newest_rows(open_archive(run_dir), HOOK, 100))
    shown = Tokens(tuple(range(7)), 3)
    key = (0, 5, 0, 0, 2, 20)
    elsewhere = (0, 6, 0, 0, 2, 20)
    at_the_edge = (0, 5, 0, 0, 2, 38)
    places = [(4, key, shown), (9, key, shown), (4, elsewhere, shown), (4, at_the_edge, shown)]
    first, second, unknown, edge = token_levels(sae, blocks, places)
    with torch.no_grad():
        acts_NF = sae.encode(acts)
    assert np.allclose(first, acts_NF[17:24, 4], atol=1e-6)
    assert np.allclose(second, acts_NF[17:24, 9], atol=1e-6)
    assert np.isnan(unknown).all()
    assert np.allclose(edge[:5], acts_NF[35:40, 4], atol=1e-6)
    assert np.isnan(edge[5:]).all()
    assert token_levels(sae, blocks, []) == []


def test_an_archive_that_is_little_too_long_is_not_thinned_to_a_quarter(run_dir: Path) -> None:
    sae = checkpoint(run_dir)
    rows = torch.randn(1600, D_IN, generator=torch.Generator().manual_seed(1))
    archive(run_dir, [packet(rows[i : i + 50], i // 50, 1) for i in range(0, 1600, 50)])
    assert look_at(run_dir, HOOK, sae, 2000).stats.rows == 1600
    # Whole record batches of 64 rows: all of the newest 24, a third of those, a quarter of the newest 7.
    assert look_at(run_dir, HOOK, sae, 1500).stats.rows == 24 * 64
    assert look_at(run_dir, HOOK, sae, 500).stats.rows == 8 * 64
    assert look_at(run_dir, HOOK, sae, 100).stats.rows == 2 * 64


def test_rare_features_are_ranked_by_their_strongest_row() -> None:
    stats = FeatureStats(
        rows=1000,
        density_F=np.array([0.5, 0.005, 0.009, 0.001, 0.0]),
        mean_F=np.ones(5),
        top_KF=np.array([[9.0, 2.0, 3.0, 8.0, 0.0]], np.float32),
        where_KF=np.zeros((1, 5), np.int64),
    )
    assert stats.rare_and_strong(9, least_rows=4) == [2, 1]
    assert stats.rare_and_strong(1, least_rows=1) == [3]


@pytest.mark.parametrize(
    ("pieces", "read"),
    [
        (["\u0120caf\u00c3\u00a9", "a", "<\u4e00>"], [" café", "a", "<\u4e00>"]),
        (["play", "##ing"], [" play", "ing"]),
        (["\u2581the", "s"], [" the", "s"]),
    ],
)
def test_pieces_of_a_tokenizer_read_as_text(
    tmp_path: Path, pieces: list[str], read: list[str]
) -> None:
    assert read_vocabulary(tmp_path) == {}
    (tmp_path / "vocabulary.json").write_text(json.dumps({"tokens": pieces}))
    assert read_vocabulary(tmp_path) == dict(enumerate(read))
    (tmp_path / "vocabulary.json").write_text("{")
    assert read_vocabulary(tmp_path) == {}


def test_text_of_tokens_is_escaped() -> None:
    shown = sentence(Tokens((1, 2), 1), {1: "<b>", 2: "&"}, 1.0, 2.0)
    assert "&lt;b&gt;" in shown
    assert ">&amp;</mark>" in shown


def test_an_sae_is_called_as_it_was_trained_and_its_outliers_are_said(tmp_path: Path) -> None:
    sae = build_sae(SAEConfig(architecture="batchtopk", d_sae=D_SAE, k=2), D_IN)
    CheckpointStore(tmp_path / "sae" / HOOK).write(
        10, lambda folder: save_sae(folder, sae, InputScaling.identity(D_IN), {}, 12.5)
    )
    (found,) = analyse(tmp_path, [HOOK])
    assert (found.architecture, found.outlier_norm) == ("batchtopk", 12.5)
    text = str(sae_section(found, "", {}))
    assert "batchtopk" in text
    assert "jumprelu" not in text
    assert "rows with a norm above 12.5 left as they are" in text


def test_a_crosscoder_is_shown_by_its_decoder_and_says_why_by_no_rows(tmp_path: Path) -> None:
    config = SAEConfig(architecture="crosscoder", d_sae=D_SAE, k=2, hook_widths=(3, 4))
    sae = build_sae(config, 7)
    CheckpointStore(tmp_path / "sae" / "both").write(
        10, lambda folder: save_sae(folder, sae, JointScaling.identity((3, 4)), {"hook_name": HOOK})
    )
    (found,) = analyse(tmp_path, ["both"])
    assert (found.architecture, found.d_in) == ("crosscoder", 7)
    assert "features are of several hooks" in str(sae_section(found, "", {}))
    assert found.plane is not None


def test_rows_that_look_alike_are_shown_once() -> None:
    looks = [np.array([value, 0.0], np.float32) for value in (1, 1, 1.001, -1, -1, 0)]
    rows = [Candidate(6.0 - i, (0, i, 0, 0, 0, 0), look) for i, look in enumerate(looks)]
    assert spread_out(rows, looks, 3) == [0, 3, 5]
    assert spread_out(rows, looks, 5) == [0, 1, 2, 3, 5]
    assert spread_out([], [], 3) == []


def test_features_that_write_alike_are_near_on_the_map() -> None:
    sae = build_sae(SAEConfig(architecture="topk", d_sae=8, k=2), D_IN)
    with torch.no_grad():
        sae.W_dec[1] = 5 * sae.W_dec[0]
    plane = decoder_map(sae)
    assert plane is not None
    np.testing.assert_allclose(plane.xy_F2[0], plane.xy_F2[1], atol=1e-6)
    assert 0 < plane.explained[1] <= plane.explained[0] <= 1
    with torch.no_grad():
        sae.W_dec[:] = 1.0
    assert decoder_map(sae) is None


@pytest.mark.parametrize(
    ("density", "level"), [(0, 0), (1e-6, 1), (2e-4, 2), (0.005, 3), (0.05, 4), (0.5, 5), (1.0, 5)]
)
def test_warmer_points_fire_more_often(density: float, level: int) -> None:
    assert heat(density) == level


def test_a_cart_pole_is_drawn_as_one_and_anything_else_as_bars() -> None:
    values = np.array([0.5, -1.0, 0.1, 2.0], np.float32)
    scene = observation(values, "CartPole-v1", (-2.0, 2.0), CARTPOLE)
    assert 'class="pole"' in scene
    assert "pole angular velocity 2.00 rad/s" in scene
    for environment, look in (("LunarLander-v3", values), ("CartPole-v1", values[:3])):
        assert 'class="plus"' in observation(look, environment, (-2.0, 2.0))
    broken = observation(np.array([np.nan] * 4, np.float32), "CartPole-v1", (0.0, 0.0))
    assert "nan" not in broken
    assert observation(np.ones(500, np.float32), "x", (0.0, 1.0)).count('class="plus"') == 64


@pytest.mark.parametrize("environment", ["CartPole", "MountainCar", "Pendulum", "Acrobot"])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e6, -1e6])
def test_no_observation_breaks_its_picture(environment: str, size: float) -> None:
    width = {"CartPole": 4, "MountainCar": 2, "Pendulum": 3, "Acrobot": 6}[environment]
    drawn = observation(np.full(width, size, np.float32), f"{environment}-v1", (-1.0, 1.0))
    assert "nan" not in drawn
    assert "inf" not in drawn.replace("info", "")


def test_a_counter_becomes_its_growth_per_second() -> None:
    assert rate([(0, 0), (1, 10), (3, 50), (4, 5)]) == [(1, 10.0), (3, 20.0), (4, 0.0)]
    assert rate([(0, 1)]) == []


def test_thinning_keeps_spikes() -> None:
    points = [(float(t), 100.0 if t == 777 else 1.0) for t in range(5000)]
    kept = thin(points, 100)
    assert len(kept) <= 110
    assert (777.0, 100.0) in kept
    assert [t for t, _ in kept] == sorted(t for t, _ in kept)


def test_half_a_line_at_the_end_of_the_metrics_is_passed_over(whole_run: Path) -> None:
    path = whole_run / "metrics.csv"
    whole = read_metrics(path)
    with path.open("a") as file:
        file.write("6.000,2026-01-01T00:00:0")
    assert repr(read_metrics(path)) == repr(whole)
    assert read_metrics(path.with_name("none.csv")) == Metrics()


@pytest.mark.parametrize("end", [0.5, 3.0, 30.0, 119.0, 3600.0, 86400.0, 10 * 86400.0])
def test_the_clock_has_a_few_round_ticks(end: float) -> None:
    ticks = time_ticks(end)
    assert 1 <= len(ticks) <= 6
    assert ticks[0] == 0
    assert ticks[-1] <= end


def test_a_chart_without_points_is_left_out_and_one_with_a_single_point_is_a_dot() -> None:
    assert chart("t", "", [Line("a", [(0.0, float("nan"))])], 1.0) is None
    assert "<circle" in (chart("t", "", [Line("a", [(0.5, 2.0)])], 1.0) or "")
    marked = chart(
        "t", "", [Line("a", [(0.0, 1.0), (1.0, 2.0)])], 1.0, moments=[Moment(0.5, "x died")]
    )
    assert "x died" in (marked or "")


def test_lanes_show_when_a_worker_was_down(whole_run: Path) -> None:
    found = stretches(read_metrics(whole_run / "metrics.csv"), 5.0)
    assert [(one.state.name, one.start_s, one.end_s) for one in found["trainer-0"]] == [
        ("READY", 0.0, 3.0), ("FAILED", 3.0, 4.0), ("READY", 4.0, 5.0),
    ]  # fmt: skip


def test_the_spectrum_ends_at_the_maximum(whole_run: Path) -> None:
    (histogram,) = read_run(whole_run).latencies.values()
    line = steps(histogram)
    assert line[-1] == (1.0, 25.0)
    assert [share for share, _ in line] == sorted(share for share, _ in line)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"run\.json"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": "asys.run/9"}')
    with pytest.raises(ReportError, match=r"asys\.run/1"):
        read_run(tmp_path)


def command(*words: str) -> tuple[int, str]:
    import argparse
    import io

    parser = argparse.ArgumentParser()
    run_report.add(parser)
    out = io.StringIO()
    return run_report.main(parser.parse_args(words), Console(file=out, width=200)), out.getvalue()


@pytest.fixture
def asys_run_report() -> Callable[..., tuple[int, str]]:
    return command


def test_the_command_writes_the_page_beside_the_run(
    whole_run: Path, tmp_path: Path, asys_run_report: Callable[..., tuple[int, str]]
) -> None:
    code, said = asys_run_report(str(whole_run))
    assert code == 0
    assert "report.html" in said
    assert (whole_run / "report.html").stat().st_mode & 0o777 == 0o600, "it shows activations"
    first = (whole_run / "report.html").read_text()
    assert asys_run_report(str(whole_run), "--out", str(tmp_path / "r.html"))[0] == 0
    assert (tmp_path / "r.html").read_text() == first
    assert asys_run_report(str(whole_run), "--out", str(tmp_path / "no" / "r.html"))[0] == 1
    assert asys_run_report(str(tmp_path / "nowhere"))[0] == 2
