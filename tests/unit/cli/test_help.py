"""Every command explains itself, at once."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import asys_bench
from asys_bench.cli import bench, run


@pytest.mark.parametrize("command", ["", *bench.COMMANDS.names])
def test_asys_bench_explains_every_command(command, capsys):
    with pytest.raises(SystemExit) as left:
        bench.main([*command.split(), "--help"])
    assert left.value.code == 0
    assert "usage: asys-bench" in capsys.readouterr().out


@pytest.mark.parametrize("program", [run, bench])
def test_a_command_alone_shows_its_commands_and_an_example(program, capsys):
    assert program.main([]) == 2
    said = capsys.readouterr().out
    for name in program.COMMANDS.names:
        assert f"\n  {name} " in said
    for command, _ in program.EXAMPLES:
        assert command in said


@pytest.mark.parametrize("program", [run, bench])
def test_the_version_has_one_place(program, capsys):
    with pytest.raises(SystemExit) as left:
        program.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"asys-i {asys_bench.__version__}\n"
    assert version("asys-i") == asys_bench.__version__


def test_a_word_that_names_no_command_of_the_bench_gets_a_hint(capsys):
    with pytest.raises(SystemExit) as left:
        bench.main(["jugde"])
    assert left.value.code == 2
    assert "no command 'jugde'; did you mean `judge`?" in capsys.readouterr().err


HEAVY = ("torch", "numpy", "pydantic", "pyarrow", "scipy", "rich", "yaml", "stable_baselines3")


def imported_by(code):
    """What a fresh interpreter prints that runs `code`; `loaded(*names)` is at hand there."""
    loaded = "import sys\ndef loaded(*names): return [n for n in names if n in sys.modules]\n"
    done = subprocess.run(
        [sys.executable, "-c", loaded + code],
        capture_output=True, text=True, check=True, timeout=240,
    )  # fmt: skip
    return done.stdout.split()


def test_help_and_version_import_nothing_heavy():
    code = f"""
from asys_bench.cli import bench, run
run.build_parser().format_help(), bench.build_parser().format_help()
print(*loaded(*{HEAVY}))
"""
    assert imported_by(code) == []


def test_explaining_a_command_and_reading_a_live_run_do_not_wait_for_torch():
    code = """
from asys_bench.cli import bench, run
for program in (run, bench):
    for name in program.COMMANDS.names:
        program.COMMANDS.parser(name)
        if loaded("torch", "scipy", "pyarrow", "stable_baselines3"):
            sys.exit(print(program.COMMANDS.program, name))
import asys_bench, asys_bench.config, asys_bench.monitors.live_view, asys_bench.workers.watchdog
print(*loaded("torch", "pyarrow"))
"""
    assert imported_by(code) == []


def test_a_store_without_the_run_is_found_out_without_torch(tmp_path):
    code = f"""
from asys_bench.monitors.upload.bringing import BringError, bring_back
try:
    bring_back("file://{tmp_path}/run-1")
except BringError as error:
    print(error.cause, *loaded("torch"))
"""
    assert imported_by(code) == ["no_copy"]


@pytest.mark.rest
def test_no_sink_brings_scipy_into_the_process_that_starts_a_run():
    code = """
from asys_bench.contracts.sink import SinkPlugin
from asys_bench.registry import registry
sinks = registry("sink")
print(*(name for name in sinks.names() if sinks.get(name, SinkPlugin) and loaded("scipy")))
"""
    assert imported_by(code) == []
