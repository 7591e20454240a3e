"""The sink `probe`: rows and labels of packets in, files and figures out."""

from __future__ import annotations

import itertools
import json
import math
import runpy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from asys_bench.change.probe import features as features_module
from asys_bench.change.probe import fits as fits_module
from asys_bench.change.probe.blocks import is_held_out
from asys_bench.change.probe.features import FeatureSource
from asys_bench.change.probe.fit import Dense
from asys_bench.change.probe.options import ProbeOptions
from asys_bench.change.probe.sink import ProbeWorker
from asys_bench.change.probe.targets import Target
from asys_bench.change.probe.window import Rows, Window
from asys_bench.contracts.coin import hashed
from asys_bench.contracts.labels import label_encoding, text_bytes, text_code
from asys_bench.contracts.names import LABELS
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import StatsPage
from asys_bench.reports.run_report.page import render_run
from asys_bench.reports.run_report.record import read_run
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.open_run import open_run
from asys_bench.rundir.probes import read_probes
from asys_bench.sae import SAEConfig, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.exchange import ExchangeError
from asys_bench.sinks.sae import start

RIG = runpy.run_path(str(Path(__file__).parent.parent / "sinks" / "archive" / "conftest.py"))
HOOK = "policy.mlp"


class Fed:
    """A worker that is fed by hand."""

    def __init__(self, run_dir, **options):
        self.run_dir = run_dir
        self.names = ["identity", HOOK, LABELS, "label_text"]
        self.page = StatsPage.create(["probe-0"])
        self.slot = self.page.slot("probe-0")
        self.left = math.inf
        self.seq = 0
        self.worker = ProbeWorker(ProbeOptions(**{"evaluate_interval_s": 0.0, **options}))
        self.worker.open(
            SinkContext(
                name="probe-0", run_dir=run_dir, run_id="run-1", seed=0, slot=self.slot,
                wall_offset_ns=0, incarnation=0, name_of=lambda number: self.names[number],
                decode=lambda packet: packet.raw_tensor(), heartbeat=lambda: None,
                time_left_s=lambda: self.left, config={"labels": {"horizon": 100}},
            )
        )  # fmt: skip

    def feed(self, tensor, hook, step, **fields):
        fields = {"weights_version": 0, "microbatch": 0, "host_step": step, "source": 0, **fields}
        packet = RIG["packet"](tensor, self.seq, hook, **fields)
        self.seq += 1
        with RIG["FakeLease"]([packet]) as lease:
            self.worker.consume(lease)
        del packet

    def rows(self, step, x, **fields):
        self.feed(x, 1, step, **fields)

    def label(self, step, **labels):
        name = label_encoding(list(labels))
        if name not in self.names:
            self.names.append(name)
        columns = [torch.as_tensor(value).double() for value in labels.values()]
        self.feed(torch.stack(columns, -1), 2, step, encoding_id=self.names.index(name))

    def label_several(self, first, **labels):
        """Of as many steps from `first` on as the values [C, rows] have."""
        self.names.append(label_encoding(list(labels), several=True))
        columns = [torch.as_tensor(value).double() for value in labels.values()]
        zeros = torch.zeros_like(columns[0])
        offsets = zeros + torch.arange(len(zeros))[:, None]
        packed = torch.stack([offsets, zeros, zeros, *columns], -1)
        self.feed(packed, 2, first, encoding_id=len(self.names) - 1)

    def close(self):
        self.worker.close()
        (found,) = read_probes(self.run_dir).values()
        self.page.close()
        return {probe.label: probe for probe in found}


def test_an_sae_that_the_hub_does_not_give_is_asked_for_once(tmp_path, monkeypatch, caplog):
    asked = []

    def from_hub(place):
        asked.append(place)
        raise ExchangeError(place, "cannot be had", "check the name")

    monkeypatch.setattr(start, "from_hub", from_hub)
    clock = itertools.count(1000.0, 5.0)
    monkeypatch.setattr(features_module.time, "monotonic", lambda: next(clock))
    source = FeatureSource(HOOK, 8, "hf://org/none", tmp_path)
    for _ in range(3):
        assert not source.renew()
    assert source.missing
    assert asked == ["hf://org/none"]
    assert "has no probes: hf://org/none: cannot be had" in caplog.text


@pytest.fixture
def fed(tmp_path):
    made = []

    def make(**options):
        made.append(Fed(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.page.close()


def planted(steps=600, envs=8, width=12, seed=0):
    """[(x, episode, labels)] per step: activations of which the labels are noisy linear functions."""
    draw = torch.Generator().manual_seed(seed)
    way = torch.randn(width, 3, generator=draw)
    made = []
    for step in range(steps):
        episode = torch.arange(envs) * 1000 + step // 25
        x = torch.randn(envs, width, generator=draw)
        noisy = x @ way + 2.0 * torch.randn(envs, 3, generator=draw)
        made.append(
            (x, episode, {
                "done": (noisy[:, 0] > 4).double(),
                "action": torch.bucketize(noisy[:, 1].contiguous(), torch.tensor([-2.0, 2.0])),
                "advantage": noisy[:, 2],
            })
        )  # fmt: skip
    return made


def test_probes_are_as_good_as_scikit_learns_on_the_same_rows(fed):
    one, data = fed(), planted(400)
    for step, (x, episode, labels) in enumerate(data):
        one.rows(step, x)
        one.label(step, done=labels["done"], action=labels["action"], episode=episode)
        if step >= 3:  # advantages come late
            one.label(step - 3, advantage=data[step - 3][2]["advantage"])
    found = one.close()
    assert found.keys() == {"done", "action", "advantage"}, "an episode is a block and not learnt"
    assert {probe.block for probe in found.values()} == {"episode"}
    x = torch.cat([x for x, *_ in data]).numpy()
    episodes = torch.cat([episode for _, episode, _ in data]).numpy().astype(float)
    out = is_held_out(hashed(3, 0, 0, episodes.view(np.int64)), 0)
    scaled = StandardScaler().fit(x[~out])
    x_in, x_out = scaled.transform(x[~out]), scaled.transform(x[out])

    def of(name):
        y = torch.cat([labels[name] for *_, labels in data]).numpy()
        return y[~out], y[out]

    y_in, y_out = of("done")
    theirs = LogisticRegression(max_iter=500).fit(x_in, y_in).decision_function(x_out)
    expected = roc_auc_score(y_out, theirs)
    assert found["done"].value == pytest.approx(expected, abs=0.01)
    assert 0.7 < found["done"].low < found["done"].value < found["done"].high < 0.95
    y_in, y_out = of("action")
    theirs = LogisticRegression(max_iter=500).fit(x_in, y_in).predict_proba(x_out)
    expected = np.mean([roc_auc_score(y_out == c, theirs[:, c]) for c in range(3)])
    assert found["action"].value == pytest.approx(expected, abs=0.01)
    assert found["action"].classes == (0.0, 1.0, 2.0)
    y_in, y_out = of("advantage")
    expected = r2_score(y_out, Ridge().fit(x_in, y_in).predict(x_out))
    assert found["advantage"].value == pytest.approx(expected, abs=0.02)
    assert found["advantage"].metric == "r2"
    assert found["done"].rows + found["done"].held_out_rows == len(x)


def test_labels_of_a_whole_rollout_in_one_packet_are_as_good_as_a_packet_for_each_step(fed):
    data, found = planted(160), []
    for several in (False, True):
        one = fed()
        for begin in range(0, 160, 32):
            rollout = data[begin : begin + 32]
            for step, (x, *_) in enumerate(rollout, begin):
                one.rows(step, x)
            joined = {
                "done": torch.stack([labels["done"] for *_, labels in rollout]),
                "episode": torch.stack([episode for _, episode, _ in rollout]),
            }
            if several:
                one.label_several(begin, **joined)
            else:
                for step in range(32):
                    one.label(begin + step, **{n: of_C[step] for n, of_C in joined.items()})
        found.append(one.close()["done"])
    assert found[0].value == found[1].value > 0.7
    assert found[0].rows == found[1].rows > 800


def test_the_file_is_read_with_plain_torch_and_figures_are_in_the_metrics(fed, tmp_path):
    one, data = fed(), planted(200)
    for step, (x, episode, labels) in enumerate(data):
        one.rows(step, x)
        one.label(step, done=labels["done"], episode=episode)
    one.worker.close()
    tensors = load_file(tmp_path / "probes" / f"{HOOK}.safetensors")
    x = torch.cat([x for x, *_ in data])
    logits = x @ tensors["done.weight"].T + tensors["done.bias"]
    y = torch.cat([labels["done"] for *_, labels in data])
    assert roc_auc_score(y, logits[:, 0]) > 0.75
    document = json.loads((tmp_path / "probes" / f"{HOOK}.json").read_text())
    (probe,) = document["probes"]
    metrics = one.slot.metrics()
    shown = metrics[f"probe_auc{{hook={HOOK},label=done}}"].value
    assert shown == pytest.approx(probe["value"])
    assert probe["history"][-1][:2] == [199, probe["value"]]
    assert metrics[f"probe_labelled_rows{{hook={HOOK}}}"].value == 1600
    assert probe["shares"] == pytest.approx([1 - float(y.mean()), float(y.mean())])


def test_the_report_says_what_each_probe_is_worth(fed, tmp_path):
    write_run = runpy.run_path(str(Path(__file__).parent.parent / "rundir" / "tiny_lm.py"))[
        "write_run"
    ]
    run_dir = write_run(tmp_path, {"kind": "synthetic"})
    one, data = fed(), planted(200)
    one.worker.open(replace(one.worker._context, run_dir=run_dir))
    for step, (x, episode, labels) in enumerate(data):
        one.rows(step, x)
        one.label(step, done=labels["done"], advantage=labels["advantage"], episode=episode)
    one.worker.close()
    found = {probe.label: probe for probe in open_run(run_dir).probes(HOOK)[HOOK]}
    page = render_run(read_run(run_dir), [], {})
    assert f"AUC {found['done'].value:.4g} [{found['done'].low:.4g}" in page
    assert f"R2 {found['advantage'].value:.4g}" in page
    assert "a block is episode" in page


def test_no_block_is_on_both_sides(fed):
    one, data = fed(), planted(200)
    for step, (x, episode, labels) in enumerate(data):
        one.rows(step, x)
        one.label(step, done=labels["done"], episode=episode)
    (hook,) = one.worker._known()
    one.worker.close()
    sides = [set(window.settle().block_N) for window in (hook.trained, hook.held_out)]
    assert min(map(len, sides)) >= 10
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 64


def test_a_label_that_rows_of_one_block_share_is_not_learnt_by_heart(fed):
    """An id in disguise: each episode has a direction of its own, and its label is a coin's."""
    one, draw = fed(), torch.Generator().manual_seed(3)

    @cache
    def way_of(episode):
        return torch.randn(24, generator=torch.Generator().manual_seed(episode))

    for step in range(400):
        episode = torch.arange(8) * 1000 + step // 40
        shift = torch.stack([way_of(e) for e in episode.tolist()])
        coin = (episode * 2654435761 >> 5) % 2
        one.rows(step, shift + 0.1 * torch.randn(8, 24, generator=draw))
        one.label(step, lucky=coin, episode=episode)
    probe = one.close()["lucky"]
    assert probe.low < 0.5 < probe.high, "80 episodes, and nothing to learn"
    assert probe.value < 0.75


def test_texts_are_classes_under_their_names(fed):
    one, draw = fed(), torch.Generator().manual_seed(1)
    one.names.append("label(domain)")
    for text in ("code", "prose"):
        payload = torch.frombuffer(bytearray(text_bytes(text)), dtype=torch.uint8)
        one.feed(payload[None], 2, 0, encoding_id=3)
    for step in range(100):
        which = torch.randint(0, 2, (4,), generator=draw)
        x = torch.randn(4, 5, 6, generator=draw)
        x[which == 1, :, 2] += 2.0
        one.rows(step, x)
        codes = torch.tensor([text_code("code"), text_code("prose")], dtype=torch.float64)[which]
        one.feed(codes[:, None], 2, step, encoding_id=4)
    probe = one.close()["domain"]
    assert set(probe.classes) == {"code", "prose"}
    assert probe.block == "sequence"
    assert probe.value > 0.9
    assert probe.held_out_blocks > 60


@pytest.mark.parametrize(("step_s", "pace"), [(0.0, 1.0), (0.01, 0.02133)])
def test_rows_of_a_rare_class_are_kept_more_often_and_weigh_less(fed, monkeypatch, step_s, pace):
    """However much time passes: after a second a full window slows the pace at which rows are let in."""
    now = [100.0]
    monkeypatch.setattr(fits_module.time, "monotonic", lambda: now[0])
    one, draw = fed(window_rows=1024), torch.Generator().manual_seed(5)
    for step in range(500):
        now[0] += step_s
        x = torch.randn(64, 8, generator=draw)
        rare = (torch.rand(64, generator=draw) < 0.01).double()
        x[rare == 1, 0] += 2.0
        one.rows(step, x)
        one.label(step, done=rare)
    (hook,) = one.worker._known()
    assert hook.gate.pace == pytest.approx(pace, rel=0.01)
    probe = one.close()["done"]
    rows = hook.trained.settle()
    rare = rows.labels_NK[:, 0] == 1
    assert rare.mean() > 0.04
    weight = hook.trained.weights(rows)
    assert weight[rare].sum() / weight.sum() == pytest.approx(0.01, abs=0.006)
    assert probe.value == pytest.approx(0.92, abs=0.08), "Phi(2 / sqrt 2), of 20 rows of the class"


@pytest.mark.parametrize("source", ["folder", "run"])
def test_probes_read_the_features_of_an_sae(fed, tmp_path, source):
    sae = build_sae(SAEConfig(d_sae=32, k=4), 6)
    folder = tmp_path / ("sae" if source == "run" else "known") / HOOK
    folder.mkdir(parents=True)
    save_sae(folder, sae, InputScaling.identity(6), {"hook_name": HOOK})
    one = fed(saes={"policy.*": "run" if source == "run" else str(folder)})
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for step in range(150):
            x = torch.randn(16, 6, generator=draw)
            active = sae.encode(x)[:, :32] > 0
            one.rows(step, x)
            one.label(step, fires=active[:, 5].double())
    probe = one.close()["fires"]
    assert probe.features == str(folder)
    assert probe.weight.shape == (1, 32)
    assert int(probe.weight[0].argmax()) == 5
    assert probe.value > 0.99


def test_rows_without_labels_and_labels_without_rows_are_counted(fed):
    one, data = fed(), planted(50)
    for step, (x, _, labels) in enumerate(data):
        if step % 2:
            one.rows(step, x)
        if step % 5 == 0:
            one.label(step, done=labels["done"])
    one.rows(1000, data[0][0])
    metrics = one.slot.metrics()
    assert metrics["probe_unjoined_rows"].value == 20 * 8
    assert metrics["probe_unjoined_labels"].value == 5 * 8


def test_the_constant_batch_is_left_out(fed):
    one, data = fed(), planted(50)
    for step, (x, _, labels) in enumerate(data):
        one.rows(step, x, microbatch=2**16 - 1)
        one.label(step, done=labels["done"])
    assert one.worker._known() == []


def test_fits_take_a_fortieth_of_the_time(fed, monkeypatch):
    now = [100.0]
    one, data = fed(), planted(60)
    for step, (x, episode, labels) in enumerate(data):
        one.rows(step, x)
        one.label(step, done=labels["done"], episode=episode)
    one.worker.idle()
    hook, future = one.worker._fits._running
    future.result()
    future._result = (future.result()[0], 0.5)  # it took half a second
    monkeypatch.setattr(fits_module.time, "monotonic", lambda: now[0])
    one.worker._fits._not_before = 0.0
    one.worker.idle()
    hook.changed, hook.due = 480, 0.0
    for second, expected in ((0.0, False), (19.0, False), (20.5, True)):
        now[0] = 100.0 + second
        one.worker.idle()
        assert (one.worker._fits._running is not None) is expected
    monkeypatch.undo()


def test_a_hook_is_fitted_again_when_half_of_its_rows_are_new_or_a_minute_has_passed(
    fed, monkeypatch
):
    now = [100.0]
    monkeypatch.setattr(fits_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(fits_module, "SHARE_OF_TIME", 1e9)
    one, data, fits = fed(), planted(600), []
    for step, (x, episode, labels) in enumerate(data):
        now[0] += 0.001
        one.rows(step, x)
        one.label(step, done=labels["done"], episode=episode)
        one.worker.idle()
        if one.worker._fits._running is not None:
            fits.append(8 * (step + 1))
            one.worker._fits._running[1].result()
            one.worker.idle()
    assert 8 <= len(fits) <= 20
    assert all(later >= 1.9 * earlier for earlier, later in itertools.pairwise(fits))
    (hook,) = one.worker._known()
    hook.changed = 1
    assert not hook.is_due(now[0] + 59)
    assert hook.is_due(now[0] + 61)


def test_labels_of_calls_whose_rows_are_not_let_in_are_not_read(fed):
    """Nor are the rows: neither is decoded, and those that are find each other."""
    one, draw, read = fed(), torch.Generator().manual_seed(5), []
    one.rows(0, torch.randn(128, 8, generator=draw))
    one.label(0, done=torch.zeros(128))
    (hook,) = one.worker._known()
    hook.gate.want(0.02)
    decode = one.worker._context.decode
    one.worker._context = replace(
        one.worker._context, decode=lambda p: read.append((p.hook_id, p.host_step)) or decode(p)
    )
    for step in range(1, 500):
        one.rows(step, torch.randn(128, 8, generator=draw))
        one.label(step, done=torch.zeros(128))
    steps = {hook: {step for which, step in read if which == hook} for hook in (1, 2)}
    assert steps[1] <= steps[2]
    assert len(steps[1]) == pytest.approx(499 / 16, abs=20)
    assert len(read) < 2 * 499 / 5
    assert one.worker._join.unjoined_rows == 0


def test_a_worker_that_has_no_time_left_writes_what_it_has(fed, tmp_path):
    one, data = fed(), planted(60)
    for step, (x, episode, labels) in enumerate(data):
        one.rows(step, x)
        one.label(step, done=labels["done"], episode=episode)
    one.left = 0.2
    one.worker.close()
    assert not (tmp_path / "probes").exists()


def test_damaged_files_are_an_error_of_reading(fed, tmp_path):
    one, data = fed(), planted(60)
    for step, (x, episode, labels) in enumerate(data):
        one.rows(step, x)
        one.label(step, done=labels["done"], episode=episode)
    one.close()
    path = tmp_path / "probes" / f"{HOOK}.safetensors"
    raw = path.read_bytes()
    for damage in (raw[:10], b"", raw[:8] + b"x" * 50):
        path.write_bytes(damage)
        with pytest.raises(ReadingError):
            read_probes(tmp_path)
    path.write_bytes(raw)
    json_path = path.with_suffix(".json")
    text = json_path.read_text()
    for damage in (
        "{",
        "[]",
        text.replace("asys.probes/1", "asys.probes/9"),
        text.replace('"probes"', '"x"'),
    ):
        json_path.write_text(damage)
        with pytest.raises(ReadingError):
            read_probes(tmp_path)


# ---- the window


def window_rows(count, block, first=0):
    draw = np.random.default_rng(first)
    x = torch.arange(first, first + count).float()[:, None]
    block_N = hashed(np.full(count, block)) if np.ndim(block) == 0 else hashed(block)
    return Rows(Dense(x), np.zeros((count, 1)), draw.random(count), np.ones(count), block_N)


def test_a_window_of_many_blocks_holds_the_newest_rows():
    window = Window(2000)
    for part in range(20):
        window.add(window_rows(1000, np.arange(1000) + 1000 * part, 1000 * part))
    held = window.settle().features.x_ND[:, 0]
    assert held.tolist() == [*range(18_000, 20_000)]
    assert window.share == 1.0


def test_a_window_that_a_few_blocks_fill_is_thinned_over_all_of_them():
    window = Window(2000)
    for part in range(64):
        window.add(window_rows(1000, part, 1000 * part))
    rows = window.settle()
    assert 1000 <= len(rows) <= 2000
    assert len(np.unique(rows.block_N)) == 64
    assert window.share == 2.0**-5
    per_block = np.unique(rows.block_N, return_counts=True)[1]
    assert per_block.min() > 10


# ---- what a label is


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.0, 1.0] * 40, "class"),
        ([*map(float, range(16))] * 5, "class"),
        ([*map(float, range(17))] * 5, "number"),
        ([0.5, 1.0] * 40, "number"),
        ([float(text_code(str(n))) for n in range(40)] * 2, "class"),
        ([0.0, 1.0] * 3, None),
        ([math.nan, 1.0] * 60, None),
    ],
)  # fmt: skip
def test_few_whole_numbers_and_texts_are_classes_and_everything_else_is_a_number(values, kind):
    target = Target("x")
    target.saw(np.array(values))
    assert target.kind == kind


def test_what_was_asked_for_is_what_a_label_is():
    target = Target("x", "class")
    target.saw(np.random.default_rng(0).integers(0, 1000, 20_000).astype(float))
    assert target.kind == "class"
    assert len(target.classes) == 64
