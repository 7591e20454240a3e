"""`asys-run completion`: what bash offers when TAB is pressed, asked of bash itself."""

import argparse
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
            cwd=folder, capture_output=True, text=True, timeout=240, check=True,
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


ASK_ALL = """
ask() {
  COMP_WORDS=("$1" "$2" --); COMP_CWORD=2; COMPREPLY=()
  "_shtab_${1//-/_}" "$1" --
  echo "$1 $2 ${COMPREPLY[*]}"
}
while read -r program name; do ask "$program" "$name"; done
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_tab_offers_every_option_of_every_command():
    parsers = {
        (program.COMMANDS.program, name): program.COMMANDS.parser(name)
        for program in (run, bench)
        for name in program.COMMANDS.names
    }
    asked = "".join(f"{program} {name}\n" for program, name in parsers)
    done = subprocess.run(
        ["bash", "-c", script_for("bash") + ASK_ALL],
        input=asked, capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    assert not done.stderr
    offered = {tuple(line.split()[:2]): set(line.split()[2:]) for line in done.stdout.splitlines()}
    for command, parser in parsers.items():
        actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
        options = {option for action in actions for option in action.option_strings}
        assert offered[command] == {option for option in options if option.startswith("--")}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_second_names_of_the_programs_are_completed_too(shell):
    last_lines = [line for line in script_for(shell).splitlines() if "asys-i-" in line]
    assert [line.split()[0] for line in last_lines] == [
        "compdef" if shell == "zsh" else "complete"
    ] * 2
