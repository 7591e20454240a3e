"""A run with SAEs of every architecture, and things in its files that must not leave the machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from asys_bench.contracts.names import file_slug
from asys_bench.reports.run_summary.document import write_json
from asys_bench.reports.run_summary.summary import (
    BusSummary,
    HookSummary,
    HostSummary,
    RunSummary,
    SaeSummary,
)
from asys_bench.sae import SAEConfig, SparseAutoencoder, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling, PairScaling

D_IN, D_SAE, D_OUT, K = 6, 24, 5, 3
TOKEN = "hf_veryverysecretsecretsecret"
PRIVATE = ("/home/somebody/models", "somebodys-machine", TOKEN, "rows of the archive", "/tmp/texts")
"""In the run's files, and never in what is sent."""
LATENCY_NS = 30_000_000


def save(folder: Path, architecture: str, hook: str, outlier_norm: float = float("inf")) -> None:
    """An SAE with random weights, as a trainer leaves it."""
    config = SAEConfig.model_validate({"architecture": architecture, "d_sae": D_SAE, "k": K})
    transcodes = architecture == "skip_transcoder"
    sae: SparseAutoencoder = build_sae(config, D_IN, D_OUT if transcodes else None)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            if name == "threshold" and architecture != "jumprelu":
                tensor.fill_(0.3)
            else:
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
        sae.normalize_decoder_()
    folder.mkdir(parents=True, exist_ok=True)
    scaling = InputScaling(2.5, torch.linspace(-0.5, 0.5, D_IN))
    if transcodes:
        scaling = PairScaling(scaling, InputScaling(0.5, torch.linspace(-1, 1, D_OUT)))
    metadata = {
        "model_name": "20261130-run",
        "hook_name": hook,
        "training_rows": 1000,
        "host_file": PRIVATE[0],
    }
    save_sae(folder, sae, scaling, metadata, outlier_norm)


@pytest.fixture
def run_with(tmp_path: Path) -> Callable[..., Path]:
    """A run's folder with an SAE per architecture, called after it."""

    def make(*architectures: str, outlier_norm: float = float("inf")) -> Path:
        run = tmp_path / "runs" / "20261130-run"
        run.mkdir(parents=True)
        hooks = [f"layers.{index}.{name}" for index, name in enumerate(architectures)]
        for architecture, hook in zip(architectures, hooks, strict=True):
            save(run / "sae" / file_slug(hook), architecture, hook, outlier_norm)
        (run / "run.json").write_text(
            json.dumps(
                {
                    "schema": "asys.run/1",
                    "run_id": "20261130-run",
                    "hooks": hooks,
                    "host_pid": 1,
                    "step_unit": "batch",
                    "attempts": [{"machine": PRIVATE[1], "started_unix_ns": 1}],
                    "environment": {"asys_i": "9.9", "torch": "2", "platform": PRIVATE[1]},
                }
            )
        )
        (run / "config.yaml").write_text(
            "host:\n  kind: transformers\n  options:\n    transformers:\n"
            f"      model: {PRIVATE[0]}/SmolThing\n      texts: [{PRIVATE[4]}]\n      task: train\n"
            f"monitors:\n  x: {{kind: y, options: {{token: {TOKEN}}}}}\n"
        )
        write_json(_summary(run, hooks), run)
        latency = {"count": 2, "sum": LATENCY_NS, "max": 20_000_000, "buckets": []}
        host = {f"hook_latency_ns{{hook={hook}}}": latency for hook in hooks}
        (run / "histograms.json").write_text(json.dumps({"host": host}))
        (run / "archive").mkdir()
        (run / "archive" / "archive-0-0-0.arrows").write_text(PRIVATE[3])
        return run

    return make


def _summary(run: Path, hooks: list[str]) -> RunSummary:
    return RunSummary(
        run_id="20261130-run",
        run_dir=str(run),
        outcome="finished",
        elapsed_s=12.0,
        host=HostSummary(400, "batch", 10.0, 40.0, False, 4, {}),
        bus=BusSummary(100, 1000, {}, ()),
        hooks=tuple(
            HookSummary(hook, 400, 300, 100, 0, 0, 1000, 1.0, 20.0, 30.0, 9437.5, 20000.0)
            for hook in hooks
        ),
        saes=tuple(
            SaeSummary(hook, "trainer-0", 900, 800, 4, 1, 0, 0.5, 0.125, 3.5, 3, 0.25, 0.0, 0.25)
            for hook in hooks
        ),
        archives=(),
        workers=(),
        files=(),
        next_steps=(),
    )


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(200, D_IN, generator=torch.Generator().manual_seed(1)) * 2 + 0.3


@pytest.fixture
def blocks() -> Callable[[Path], list[tuple[str, str, str]]]:
    """(the SAE's folder, what opens it, the code) of each code block of a card."""

    def read(folder: Path) -> list[tuple[str, str, str]]:
        return list(_blocks((folder / "README.md").read_text()))

    return read


def _blocks(card: str) -> Iterator[tuple[str, str, str]]:
    sae = ""
    for found in re.finditer(
        r"^### `(?P<sae>[^`\n]*)`[^\n]*$|^(?P<what>[^\n`]*):\n\n```python\n(?P<code>.*?)^```$",
        card,
        re.MULTILINE | re.DOTALL,
    ):
        sae = found["sae"] or sae
        if found["code"]:
            yield sae, found["what"], found["code"]
