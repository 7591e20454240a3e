"""Modules under any name: archive, SAEs, transcoders, metrics, report, exports and verify know them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import asys_bench
from asys_bench.contracts.names import SIDE_STREAMS
from asys_bench.contracts.packet import Kind
from asys_bench.reports.run_report.analysis import analyse
from asys_bench.reports.run_report.page import render_run
from asys_bench.reports.run_report.record import read_run
from asys_bench.rundir.verify.verify_run import verify_run
from asys_bench.sae.exchange.export import export, find_saes
from asys_bench.sae.exchange.formats import FORMATS

pytestmark = pytest.mark.rest

NAMES = [
    "user:item", "x", "x:input", "x:grad", "p->q", "q#x", "a@b", "a/b", "A", "a", "a b", "[0]", "*",
    "tokens", "-dash", "ünï", "new\nline", "quote\"s,=}", "back\\slash", "n" * 300,
]  # fmt: skip
TRAINED = [
    "user:item", "user:item:input", "x", "x:input", "x:input~2", "p->q", "q#x", "[0]", "new\\nline",
]  # fmt: skip
LABELS = {f"{hook}#v" for hook in TRAINED} | {"user:item:input->p->q"}
SAE = {"k": 2, "d_sae": 16, "batch_rows": 64, "buffer_rows": 256, "checkpoint_interval_s": 0.2}


class Marked(torch.nn.Module):
    """Gives out what came in, with its own number in the first column."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x):
        y = x.clone()
        y[:, 0] = self.number
        return y


class Tree(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for number, name in enumerate(NAMES):
            self._modules[name] = Marked(number)

    def forward(self, x):
        return sum(module(x + number) for number, module in enumerate(self._modules.values()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    trained = {"variants": {"v": {}}, "sae": SAE, "final_train_s": 8.0}
    trained["transcoders"] = [{"input": "user:item:input", "output": "p->q"}]
    model = Tree()
    with asys_bench.observe(
        model,
        hooks=[{"match": "*", "capture": ["activation", "input"]}],
        run={"dir": str(tmp_path_factory.mktemp("runs")), "drain_timeout_s": 30.0},
        sinks={"trainer": {"options": trained, "hooks": TRAINED}},
        monitors={"log": {"options": {"interval_s": 0.5, "tensorboard": False}}},
    ) as observation:
        for _ in range(80):
            model(torch.randn(16, 4))
            observation.step()
    return observation.run


def test_each_stream_has_the_rows_of_its_own_module(run):
    streams = json.loads((run.path / "run.json").read_text())["streams"]
    streams = [s for s in streams if s["name"] not in SIDE_STREAMS]
    assert [s["module"] for s in streams] == [name for name in NAMES for _ in range(2)]
    assert len({s["name"] for s in streams}) == 2 * len(NAMES)
    assert set(run.archive.hooks) == {s["name"] for s in streams}
    for stream in streams:
        columns = run.archive.numpy(stream["name"])
        assert set(columns["kind"]) == {Kind[stream["kind"].upper()]}
        first = columns["values"][:, 0]
        if stream["kind"] == "activation":
            assert set(first) == {NAMES.index(stream["module"])}
        else:
            assert abs(np.mean(columns["values"][:, 1]) - NAMES.index(stream["module"])) < 0.5


def test_metrics_tell_every_hook_and_every_sae_apart(run):
    table = run.metrics("hook_captured")
    assert set(table["hook"]) == set(run.hooks)
    assert set(run.metrics("sae_rows")["hook"]) == LABELS
    assert set(run.metrics("archive_rows")["hook"]) >= set(run.hooks)


def test_report_exports_and_verify_take_these_names(run, tmp_path):
    record = read_run(run.path)
    looked = {found.hook: found for found in analyse(run.path, record.saes)}
    assert set(looked) == LABELS
    assert {label: found.problem for label, found in looked.items() if found.problem} == {}
    shown = {
        label
        for label, found in looked.items()
        if any(example.observation is not None for card in found.cards for example in card.examples)
    }
    assert "x#v" in shown
    assert "x:input~2#v" in shown
    assert "user:item#v" in shown
    assert "user:item" in render_run(record, list(looked.values()), None)
    exported = [export(path, FORMATS["saelens"], tmp_path) for path in find_saes(run.path)]
    assert len({sae.folder for sae in exported}) == len(LABELS)
    assert not verify_run(run.path).damaged
