"""`asys-run completion`: what bash offers when TAB is pressed, asked of bash itself."""

import io
import shutil
import subprocess
from contextlib import redirect_stdout

import pytest

from asys_bench.cli import bench, run
from asys_bench.cli.commands.run_completion import SHELLS

ASK = """
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
complete_it=$(complete -p "$1" | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$complete_it" "$1" "${@: -1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script_for(shell):
    written = io.StringIO()
    with redirect_stdout(written):
        assert run.main(["completion", shell]) == 0
    return written.getvalue()


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    (folder / "mine.yaml").touch()
    (folder / "some-run").mkdir()

    def ask(*words):
        done = subprocess.run(
            ["bash", "-c", script_for("bash") + ASK, "bash", *words],
            cwd=folder, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert not done.stderr
        return done.stdout.split()

    return ask


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("asys-run", ""), [*run.COMMANDS.names]),
        (("asys-run", "ver"), ["verify"]),
        (("asys-run", "--ch"), ["--check"]),
        (("asys-run", "--config", "m"), ["mine.yaml"]),
        (("asys-run", "verify", "--rep"), ["--repair"]),
        (("asys-run", "report", ""), ["some-run"]),
        (("asys-bench", ""), [*bench.COMMANDS.names]),
        (("asys-bench", "export", "--format", ""), ["csv", "asv", "schema"]),
    ],
)
def test_tab_offers_commands_options_files_and_choices(offered, words, expected):
    assert offered(*words) == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script_that_knows_every_command_of_both_programs(shell):
    script = script_for(shell)
    for name in (*run.COMMANDS.names, *bench.COMMANDS.names):
        assert name in script
