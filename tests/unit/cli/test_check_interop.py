"""Which SAEs a run has is what their metadata says, whatever their folders are called."""

from __future__ import annotations

import torch

from asys_bench.cli.check_interop import main, saes_of
from asys_bench.sae import SAEConfig, SAETrainer


def test_variants_and_renamed_folders_are_found_with_their_hook(tmp_path):
    for folder, hook in (("a#wide", "layers.a"), ("a#narrow", "layers.a"), ("renamed", "layers.b")):
        config = SAEConfig(d_sae=16, k=2, batch_rows=32, buffer_rows=64, threads=1)
        trainer = SAETrainer(config, hook_name=hook)
        trainer.ingest(torch.randn(64, 4), (0, 0, 0))
        trainer.save(tmp_path / "sae" / folder)
    found = {(name, hook) for name, hook, _ in saes_of(tmp_path)}
    assert found == {
        ("layers.a (a#wide)", "layers.a"),
        ("layers.a (a#narrow)", "layers.a"),
        ("layers.b", "layers.b"),
    }


def test_a_run_without_saes_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "no SAE is there" in capsys.readouterr().out


def test_without_a_name_the_newest_run_is_meant_and_no_other_folder_of_runs(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUN", raising=False)
    (tmp_path / "runs" / "bench").mkdir(parents=True)
    assert main([]) == 1
    assert "runs/ has no runs" in capsys.readouterr().out
    run = tmp_path / "runs" / "a"
    run.mkdir()
    (run / "run.json").write_text("{}")
    assert main([]) == 1
    assert "no SAE is there" in capsys.readouterr().out
