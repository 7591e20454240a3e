"""The unobserved twin: its weights and rows are the host's, and one changed bit of a row is seen."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from asys_bench.config import load_config
from asys_bench.harness.faults.disk import changed_rows
from asys_bench.harness.faults.twin import digest, read_rows, row_sums, train_twin

ARCHIVER = Path(__file__).parents[1] / "sinks/archive/conftest.py"
PIPELINE = Path(__file__).parents[3] / "suites/pipelines/chaos.yaml"
HOOK, STEPS, ROWS, WIDTH = "policy.mlp", 6, 4, 8
NAN = np.uint32(0x7FC00001).view(np.float32)


@pytest.fixture
def outputs():
    return torch.randn(STEPS, ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def archived(tmp_path, outputs, steps):
    """A run whose archive holds these steps' outputs."""
    rig = runpy.run_path(str(ARCHIVER))["Rig"](tmp_path)
    worker = rig.start()
    rig.feed(worker, *(rig.packet(outputs[step], step, host_step=step) for step in steps))
    worker.close()
    rig.page.close()
    return tmp_path


def sums(outputs):
    return {HOOK: np.stack([row_sums(step.numpy()) for step in outputs])}


def test_an_archive_of_what_the_twin_made_has_no_changed_row(tmp_path, outputs):
    run = archived(tmp_path, outputs, (0, 2, 5))
    assert changed_rows(run, sums(outputs)) == (0, 3 * ROWS)


@pytest.mark.parametrize("bit", [0, 1, 23, 31])
def test_one_bit_of_one_row_is_seen(tmp_path, outputs, bit):
    run = archived(tmp_path, outputs, range(STEPS))
    truth = outputs.clone()
    truth.numpy().view(np.uint32)[3, 2, 5] ^= np.uint32(1 << bit)
    assert changed_rows(run, sums(truth)) == (1, STEPS * ROWS)


def test_rows_that_changed_places_and_steps_that_never_were_are_seen(tmp_path, outputs):
    truth = outputs.clone()
    truth[1, [0, 1]] = outputs[1, [1, 0]]
    run = archived(tmp_path, outputs, range(STEPS))
    assert changed_rows(run, sums(truth)) == (2, STEPS * ROWS)
    assert changed_rows(run, sums(outputs[:-1])) == (ROWS, STEPS * ROWS)


def test_not_a_number_is_compared_by_its_bits(tmp_path, outputs):
    outputs[0, 0, 0] = float("nan")
    run = archived(tmp_path, outputs, (0,))
    assert changed_rows(run, sums(outputs)) == (0, ROWS)
    other = outputs.clone()
    other.numpy()[0, 0, 0] = NAN
    assert changed_rows(run, sums(other)) == (1, ROWS)


@pytest.mark.rest
def test_the_twin_takes_the_steps_that_it_is_told_and_keeps_what_its_modules_made(tmp_path):
    config = load_config(str(PIPELINE), [], env={}).config
    twin = train_twin(config, 5, ["layers.0", "layers.0:gradient"])
    twin.save(tmp_path)
    rows = read_rows(tmp_path)
    assert {name: part.shape for name, part in rows.items()} == dict.fromkeys(
        ("layers.0", "layers.0:gradient"), (5, 32)
    )
    assert train_twin(config, 5, []).weights == twin.weights
    assert train_twin(config, 6, []).weights != twin.weights
    host = config.host.plugin().build(config.host.plugin_options(), config.run.seed)
    model = host.build()
    assert digest(model) == train_twin(config, 0, []).weights
    first = torch.randn((1, 32, 64), generator=torch.Generator().manual_seed(config.run.seed))
    out = model(first)
    out.retain_grad()
    out.square().mean().backward()
    assert (rows["layers.0"][0] == row_sums(out[0].detach().numpy())).all()
    assert (rows["layers.0:gradient"][0] == row_sums(out.grad[0].numpy())).all()
