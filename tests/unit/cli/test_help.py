"""Every command explains itself."""

import pytest

from asys_bench.cli import bench, run


@pytest.mark.parametrize("command", ["", *bench._COMMANDS])
def test_asys_bench_explains_every_command(command, capsys):
    with pytest.raises(SystemExit) as left:
        bench.main([*command.split(), "--help"])
    assert left.value.code == 0
    assert "usage: asys-bench" in capsys.readouterr().out


def test_asys_run_explains_itself(capsys):
    with pytest.raises(SystemExit) as left:
        run.main(["--help"])
    assert left.value.code == 0
    assert "--config FILE" in capsys.readouterr().out
