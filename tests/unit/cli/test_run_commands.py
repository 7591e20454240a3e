"""`asys-run COMMAND`: found by name, explained, and doing what it says."""

import runpy
from pathlib import Path

import pytest

from asys_bench.cli import run
from asys_bench.sae.exchange import FORMATS

OFFLINE = Path(__file__).parent.parent / "offline" / "conftest.py"


@pytest.fixture
def archived(tmp_path):
    return runpy.run_path(str(OFFLINE))["write_run"](tmp_path / "run", rows=6000, hooks=(1, 3))


def test_help_lists_every_command_and_each_explains_itself(capsys):
    with pytest.raises(SystemExit) as left:
        run.main(["--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "--config FILE" in said
    for name in run.COMMANDS.names:
        assert f"\n  {name} " in said
        with pytest.raises(SystemExit) as left:
            run.main([name, "--help"])
        assert left.value.code == 0
        assert f"usage: asys-run {name}" in capsys.readouterr().out


def test_a_misspelt_command_gets_a_hint(capsys):
    with pytest.raises(SystemExit) as left:
        run.main(["trian"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "no command 'trian'; did you mean `train`?" in said
    assert "asys-run --config FILE" in said


def test_the_flat_form_still_needs_a_configuration(capsys):
    with pytest.raises(SystemExit) as left:
        run.main(["--check"])
    assert left.value.code == 2
    assert "--config" in capsys.readouterr().err


SETS = ["--set", "sae.d_sae=24", "--set", "sae.k=3", "--set", "sae.buffer_rows=1024"]


def test_train_then_export_from_an_archive(archived, tmp_path, capsys):
    arguments = ["train", "--archive", str(archived / "archive"), *SETS, "--set", "epochs=2"]
    assert run.main(arguments) == 0
    said = capsys.readouterr().out
    for hook in ("policy.mlp", "encoder"):
        assert hook in said
        assert (archived / "sae-offline" / hook / "latest" / "cfg.json").exists()
    assert "FVU" in said

    source, out = str(archived / "sae-offline"), tmp_path / "out"
    for name in FORMATS:
        assert run.main(["export", source, "--format", name, "--out", str(out / name)]) == 0
    assert sorted(path.name for path in (out / "sparsify").iterdir()) == ["encoder", "policy.mlp"]
    assert (out / "dictionary_learning/encoder/trainer_0/ae.pt").exists()
    assert run.main(["export", source, "--format", "saelens", "--out", str(out / "saelens")]) == 1
    assert "add --overwrite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--archive", "nowhere"], "no such folder; did the run have an archiver?"),
        (["export", "nowhere", "--format", "saelens", "--out", "x"], "no SAE is there"),
    ],
)
def test_what_is_not_there_is_named(words, said, capsys):
    assert run.main(words) == 2
    assert said in capsys.readouterr().out


def test_hooks_that_do_not_exist_are_named(archived, capsys):
    assert run.main(["train", "--archive", str(archived), "--set", "hooks=other"]) == 2
    assert "match none of the archive's: encoder, policy.mlp" in capsys.readouterr().out


def test_a_bad_setting_is_a_usage_error(archived, capsys):
    assert run.main(["train", "--archive", str(archived), "--set", "epochs=none"]) == 2
    assert "--set epochs=none" in capsys.readouterr().err
