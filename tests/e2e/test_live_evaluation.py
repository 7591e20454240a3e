"""A language model trains while SAEs are trained on it and put back into it: it notices nothing."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import asys_bench
from asys_bench.rundir.evaluation_documents import read_evaluations

TINY = Path(__file__).parent.parent / "unit" / "rundir" / "tiny_lm.py"
PATIENCE_S = 300.0
HOOK = "transformer.h.1"
SCRIPT = """\
import hashlib, json, sys, time
from pathlib import Path
import torch
from asys_bench.config import load_config
from asys_bench.run.experiment import ExperimentPipeline

loaded = load_config("c.yaml")
losses = []


class Clock:
    should_stop = False

    def __init__(self, inner=None):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def report(self, name, value):
        losses.extend([value.hex()] if name == "loss" else [])
        if self.inner is not None:
            self.inner.report(name, value)

    def step(self, n=1):
        if self.inner is not None:
            self.inner.step(n)

    def weights_updated(self):
        if self.inner is not None:
            self.inner.weights_updated()


def digest(model):
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.detach().numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "plain":
        host = loaded.config.host.plugin().build(
            loaded.config.host.plugin_options(), loaded.config.run.seed
        )
        model = host.build()
        host.run(Clock())
    else:
        pipeline = ExperimentPipeline(loaded.config, provenance=loaded.provenance)
        pipeline.setup()
        model = pipeline._host._model
        real = pipeline._host.run
        pipeline._host.run = lambda clock: real(Clock(clock))
        pipeline.run()
        found = pipeline.run_dir.path / "evaluation"
        deadline = time.monotonic() + 200
        while len(list(found.glob("*/*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert pipeline.shutdown().orderly
        pipeline.close()
    print(json.dumps({"losses": losses, "weights": digest(model)}))
"""


@pytest.mark.rest
@pytest.mark.timeout(600)
def test_a_training_with_live_evaluations_is_the_same_to_the_last_bit(tmp_path):
    pytest.importorskip("transformers")
    tiny = runpy.run_path(str(TINY))
    tiny["write_model"](tmp_path)
    options = tiny["options"](tmp_path, task="train", total_tokens=12_000, learning_rate=1e-3)
    (tmp_path / "c.yaml").write_text(
        textwrap.dedent(
            f"""\
            run: {{seed: 5}}
            hooks: [{{match: {HOOK}}}]
            host: {{kind: transformers, options: {{transformers: {json.dumps(options)}}}}}
            sinks:
              trainer:
                kind: sae_trainer
                options:
                  evaluate: {{every: 1, tokens: 200}}
                  evaluate_interval_s: 0.2
                  sae: {{k: 4, d_sae: 64, batch_rows: 64, buffer_rows: 512, checkpoint_interval_s: 0.3}}
            monitors: {{log: {{kind: logging_csv}}}}
            """
        )
    )
    (tmp_path / "script.py").write_text(SCRIPT)
    found = {}
    for mode in ("plain", "observed"):
        done = subprocess.run(
            [sys.executable, "script.py", mode],
            capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout
        found[mode] = json.loads(done.stdout.splitlines()[-1])
    assert len(found["plain"]["losses"]) > 150
    assert found["observed"] == found["plain"]

    run = asys_bench.open_run(tmp_path / "runs")
    documents = read_evaluations(run.path)
    assert len(documents) >= 2
    for document in documents:
        assert document["sae"] == HOOK
        assert document["language"]["tokens"] >= 200
        assert document["weights"]["host_step"] > 0
        assert document["steps"] > 0
    (kept,) = run.metrics("sae_kl_nats")["hook"][-1:]
    assert kept == HOOK
    done = subprocess.run(
        [sys.executable, "-m", "asys_bench.cli.run", "report", str(run.path)],
        capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (run.path / "report.html").read_text()
    assert "What they do to the model" in page
    assert "KL with the SAE in the model over time" in page
    assert list((run.path / "host").glob("step_*/model.safetensors"))
    verified = subprocess.run(
        [sys.executable, "-m", "asys_bench.cli.run", "verify", str(run.path)],
        capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout
    assert "of no kind that a run writes" not in verified.stdout
