"""SAE trainings as scenarios: real ones, small, in processes of their own."""

import json
from pathlib import Path

import numpy as np
import pytest

from asys_bench.contracts.scenario import ScenarioError
from asys_bench.harness.planning.suite_file import load_suite
from asys_bench.harness.plugins import scenario_plugin
from asys_bench.harness.scenarios.sae_synthetic import SyntheticOptions, write_synthetic
from asys_bench.harness.scenarios.sae_training import (
    Stopwatch,
    TrainerSpec,
    TrainingError,
    train_in_process,
)

from .conftest import round_of

SMALL = {
    "features": 32, "width": 16, "mean_l0": 3.0, "rows": 40_960, "batch_rows": 256,
    "d_sae": 64, "k": 3, "threads": 1, "timeout_s": 400,
}  # fmt: skip


@pytest.mark.rest
def test_a_round_on_known_features_recovers_them(tmp_path):
    found = round_of("sae_synthetic", {**SMALL, "sae": {"learning_rate": 0.01}}, tmp_path)
    assert found["rows_per_s"] > 0
    assert found["mmcs"] > 0.7
    assert found["recovered_ratio"] > 0.2
    assert found["fvu"] < 0.5
    assert found["l0"] <= 3.001
    assert found.keys() == scenario_plugin("sae_synthetic").metrics.keys()


def test_equal_options_make_equal_files(tmp_path):
    options = SyntheticOptions(**SMALL)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_synthetic(tmp_path / name, options)
    for file in ("train.npy", "held_out.npy", "truth.npy"):
        one, two = (np.load(tmp_path / name / file) for name in ("one", "two"))
        assert np.array_equal(one, two)
    assert np.load(tmp_path / "one/train.npy").shape == (40_960, 16)


@pytest.mark.rest
def test_a_training_that_fails_says_what_it_said(tmp_path):
    spec = TrainerSpec("asys", str(tmp_path), rows=10, batch_rows=5, d_sae=8, k=2)
    with pytest.raises(TrainingError, match=r"(?s)asys: exit 1: .*train\.npy"):
        train_in_process(spec, 100)
    with pytest.raises(TrainingError, match=r"not done in 0\.1 s; raise the time or lower rows"):
        train_in_process(spec, 0.1)


@pytest.mark.rest
def test_a_scenario_passes_the_failure_on(tmp_path):
    with pytest.raises(ScenarioError, match="architecture"):
        round_of("sae_synthetic", {**SMALL, "architecture": "none"}, tmp_path)


def test_the_warm_up_does_not_count():
    watch = Stopwatch(warm_rows=10)
    for rows in (0, 5, 10, 20, 40):
        watch.tick(rows)
    assert watch.measured[1] == 30
    short = Stopwatch(warm_rows=100)
    short.tick(0)
    assert short.measured == (1e-9, 0)


@pytest.fixture(scope="module")
def peers():
    """The comparisons of suites/peers.yaml are registered by loading it."""
    return load_suite("peers.yaml")


def test_peers_that_are_not_installed_are_unavailable_with_the_way_to_get_them(peers, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for peer in ("sae_lens", "dictionary_learning", "sparsify"):
        reason = scenario_plugin(f"sae_peer_{peer}").unavailable()
        assert "is not installed; make test-interop installs it" in reason


@pytest.mark.rest
def test_ours_trains_in_the_process_of_the_peers_as_in_its_own(peers, tmp_path):
    options = SyntheticOptions(**{**SMALL, "rows": 4096})
    write_synthetic(tmp_path, options)
    spec = TrainerSpec(
        "asys", str(tmp_path), rows=4096, batch_rows=256, d_sae=64, k=3, threads=1, seed=1
    )
    program = (str(Path(peers.path).parent / "peers/trainers.py"),)
    own, same = train_in_process(spec, 100), train_in_process(spec, 100, program)
    assert (own.fvu, own.l0, own.mmcs) == (same.fvu, same.l0, same.mmcs)


def test_the_shipped_suites_name_scenarios_that_exist():
    for name in ("peers.yaml", "synthetic_sae.yaml"):
        loaded = load_suite(name)
        assert loaded.suite.defaults.on_inconclusive == "warn"
        assert json.dumps(loaded.suite.to_plain())
