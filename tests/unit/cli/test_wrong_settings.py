"""What a file can tell to be wrong ends `asys-run` before its host starts, with `--check` too: exit code
2, the place and the field."""

from __future__ import annotations

import sys

import pytest

from asys_bench.cli.run import main
from asys_bench.run import preflight

FILE = """\
extends: profile_consumer.yaml
run:
  dir: {runs}
"""
SCRIPT, CALLABLE = "host.options.script", "host.options.callable"
TEXT = "host.options.transformers"
WRONG = [
    ("sinks: {trainer: {options: {sae: {d_sae: 512, k: 2000}}}}", "k 2000 is more than d_sae 512"),
    (
        "sinks: {trainer: {options: {overrides: {'*': {d_sae: 8}}, sae: {k: 9}}}}",
        "k 9 is more than d_sae 8",
    ),
    (
        "sinks: {trainer: {options: {sae: {architecture: relu, target_l0: 90, d_sae: 64}}}}",
        "target_l0 90 is more than d_sae 64",
    ),
    (
        "sinks: {trainer: {options: {sae: {architecture: matryoshka, matryoshka_widths: [8, 32]}}}}",
        "must ascend from at least 1 to d_sae None",
    ),
    (
        "host: {options: {ppo: {env_id: CartPole-v99}}}",
        "host.options.ppo.env_id: gymnasium has no such environment",
    ),
    (
        "host: {options: {ppo: {batch_size: 100}}}",
        "host.options.ppo.batch_size: does not divide the rollout of n_envs x n_steps = 256 rows",
    ),
    (
        "host: {options: {ppo: {device: tpu9}}}",
        "host.options.ppo.device: torch knows no such device",
    ),
    ("bus: {capacity_mib: 1048576}", "bus.capacity_mib: takes 1,024 GiB of memory at the start"),
    ("run: {dir: %(file)s/runs}", "run.dir: %(file)s is a file"),
    (
        "host: {kind: script, options: {script: {path: no/such.py}}}",
        f"{SCRIPT}.path: is no file here",
    ),
    ("host: {kind: script}", f"{SCRIPT}: give either `path` or `module`"),
    (
        "host: {kind: callable, options: {callable: {function: 'no_such_module_of_mine:f'}}}",
        f"{CALLABLE}.function: 'no_such_module_of_mine:f' cannot be loaded",
    ),
    ("host: {kind: transformers}", f"{TEXT}.model: must be given"),
    (
        "host: {kind: transformers, options: {transformers: {model: ./none, texts: [./none/*.txt]}}}",
        f"{TEXT}.texts[0]: './none/*.txt' matches no file",
    ),
]


@pytest.mark.parametrize("check", [["--check"], []])
@pytest.mark.parametrize(("setting", "message"), WRONG)
def test_a_wrong_setting_is_told_with_its_place_before_the_host_starts(
    tmp_path, capsys, monkeypatch, setting, message, check
):
    if "transformers" in setting:
        pytest.importorskip("transformers")
    (tmp_path / "file").write_text("")
    places = {"file": str(tmp_path / "file")}
    setting, message = setting.replace("%(file)s", places["file"]), message % places
    text = FILE.format(runs=tmp_path / "runs")
    if setting.startswith("run:"):
        text = text.partition("run:")[0]
    (tmp_path / "mine.yaml").write_text(f"{text}{setting}\n")
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["--config", str(tmp_path / "mine.yaml"), *check]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert f"{tmp_path / 'mine.yaml'}:" in said.err
    assert "setting up" not in said.out
    assert not (tmp_path / "runs").exists()


def test_what_is_given_on_the_command_line_is_named_as_it_was_given(capsys, tmp_path):
    words = ["--config", "profile_consumer.yaml", "--set", f"run.dir={tmp_path}"]
    assert main([*words, "--set", "host.options.ppo.env_id=None-v0"]) == 2
    assert "--set host.options.ppo.env_id=None-v0" in capsys.readouterr().err


def test_a_full_disk_is_told_before_the_host_starts(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "LEAST_DISK_BYTES", 1 << 60)
    words = ["--config", "profile_consumer.yaml", "--set", f"run.dir={tmp_path}", "--check"]
    assert main(words) == 2
    assert "are free there, and a run needs" in capsys.readouterr().err


def test_a_valid_configuration_passes_the_check(capsys, tmp_path):
    words = ["--config", "profile_consumer.yaml", "--set", f"run.dir={tmp_path}", "--check"]
    assert main(words) == 0
    assert "valid" in capsys.readouterr().out


def test_the_check_works_without_standard_streams(monkeypatch, tmp_path):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    words = ["--config", "profile_consumer.yaml", "--set", f"run.dir={tmp_path}", "--check"]
    assert main(words) == 0
    sys.stdout.close()
