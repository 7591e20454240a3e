"""`observe()` speaks as the documents say, lets its model go, and says what went wrong."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path

import pytest
import torch

import asys_bench

QUICKSTART = Path(__file__).parents[2] / "docs" / "quickstart.md"
SAE = {"batch_rows": 64, "buffer_rows": 512, "d_sae": None, "expansion_factor": 8, "k": 16}
TRAINER = {"trainer": {"options": {"sae": SAE, "final_train_s": 0.5}}}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(8))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def documented():
    blocks = re.findall(r"```text\n(.*?)```", QUICKSTART.read_text(), re.S)
    (block,) = [block for block in blocks if block.startswith("asys: ")]
    return block


def without_numbers(text):
    lines = [line for line in text.splitlines() if line.startswith("asys: ")]
    kept = [
        line
        for line in lines
        if "torch.set_num_threads" not in line and "are free where" not in line
    ]
    return [re.sub(r"-(?=,)|\d+(?:[.,-]\d+)*", "N", line) for line in kept]


@pytest.mark.rest
def test_the_lines_are_those_of_the_documents_and_the_model_is_let_go(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    model = Net()
    observation = asys_bench.observe(
        model, hooks=["layers.3", "layers.6"], sinks=TRAINER, run__drain_timeout_s=60
    )
    for _ in range(300):
        model(torch.randn(64, 64))
        observation.step()
    observation.close()
    said = capfd.readouterr().err
    assert without_numbers(said) == without_numbers(documented())
    assert observation.run.summary["warnings"] == []
    assert "observation of Net" in repr(observation)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.rest
def test_silent_hooks_and_saes_that_do_not_fit_are_in_the_log_the_terminal_and_the_summary(
    tmp_path, capfd, caplog
):
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    hooks = ["self_attn.out_proj", "linear1", "linear2"]
    sinks = {"trainer": {"options": {"sae": {**SAE, "k": 300}}}}
    run = {"dir": str(tmp_path), "drain_timeout_s": 60}
    with asys_bench.observe(layer, hooks=hooks, sinks=sinks, run=run) as observation:
        for _ in range(50):
            layer(torch.randn(4, 5, 32))
            observation.step()
    warnings = observation.run.summary["warnings"]
    assert len(warnings) == 2
    assert warnings[0] == (
        "SAE 'linear2' cannot be trained: k 300 is more than d_sae 256 (d_in 32); lower k or raise "
        "d_sae"
    )
    assert warnings[1].startswith("hook self_attn.out_proj: nothing was captured in 50 host steps")
    said = capfd.readouterr().err
    for warning in warnings:
        assert caplog.text.count(warning) == 1
        assert f"asys: ! {warning}\n" in said
    assert list(observation.run.archive.hooks) == ["linear1"]


@pytest.mark.rest
def test_quiet_says_nothing(tmp_path, capfd):
    with asys_bench.observe(
        Net(), hooks="layers.3", sinks={"trainer": None}, run__dir=str(tmp_path), quiet=True
    ) as observation:
        observation.step()
    assert "asys:" not in capfd.readouterr().err
