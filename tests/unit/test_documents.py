"""The fenced blocks of the documents work: configurations load, code compiles and runs, commands parse.

A block that cannot be checked says so in the line before it, with the reason: `<!-- unchecked: why -->`.
`<!-- runs -->` before a Python block: it is run as well, in an empty folder, with a small model at hand.
All blocks of README.zh-CN.md are run by tests/e2e/test_readme_commands.py.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from asys_bench.config import load_config

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "README.zh-CN.md",
    "docs/quickstart.md",
    "docs/recipes.md",
    "docs/plugins.md",
    "docs/faq.md",
    "docs/hosts.md",
    "docs/cluster.md",
    "docs/migration.md",
    "docs/trackers.md",
    "docs/hub.md",
)
LANGUAGES = ("python", "yaml", "sh", "text")
"""`text` is what a program prints."""
MARK = re.compile(r"<!-- (unchecked: \S.*|runs) -->")
OURS = ("asys-run", "asys-bench", "make", "python", "torchrun", "pip")


@dataclass(frozen=True)
class Block:
    place: str
    language: str
    text: str
    mark: str

    @property
    def reason(self) -> str:
        """Why it is not checked; empty when it is."""
        return self.mark.removeprefix("unchecked: ") if self.mark.startswith("unchecked") else ""


def blocks_of(text: str, name: str) -> Iterator[Block]:
    """The fenced blocks, with the mark in the last line before each that is not empty."""
    lines, index = text.splitlines(), 0
    while index < len(lines):
        opened = re.fullmatch(r"```(\w*)", lines[index])
        if not opened:
            index += 1
            continue
        end = next(n for n in range(index + 1, len(lines)) if lines[n] == "```")
        before = next((line for line in reversed(lines[:index]) if line.strip()), "")
        marked = MARK.fullmatch(before.strip())
        body = "\n".join(lines[index + 1 : end]) + "\n"
        yield Block(f"{name}:{index + 1}", opened[1], body, marked[1] if marked else "")
        index = end + 1


ALL = [
    block
    for name in DOCUMENTS
    if (ROOT / name).is_file()
    for block in blocks_of((ROOT / name).read_text(), name)
]


def checked(language: str) -> list[pytest.param]:
    found = [block for block in ALL if block.language == language]
    return [
        pytest.param(
            block, id=block.place, marks=[pytest.mark.skip(block.reason)] if block.reason else []
        )
        for block in found
    ]


def test_every_table_has_a_head_so_that_it_is_drawn_as_one():
    """A blank line inside a table turns the rest of it into raw pipes."""
    headless = []
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]):
        before, fenced = "", False
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            fenced ^= line.startswith("```")
            starts = line.startswith("|") and not before.startswith("|") and not fenced
            below = lines[number + 1] if number + 1 < len(lines) else ""
            if starts and not re.fullmatch(r"\|[\s:|-]+\|", below):
                headless.append(f"{path.relative_to(ROOT)}:{number + 1}")
            before = line
    assert headless == []


def test_every_block_has_a_language_and_every_mark_a_block():
    plain = [b.place for b in ALL if b.language and b.language not in LANGUAGES]
    assert plain == []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        marks = [block.mark for block in blocks_of(text, name) if block.mark]
        assert len(marks) == len(
            re.findall(r"^\s*<!-- (?:unchecked|runs)\b", text, re.MULTILINE)
        ), name


def test_the_marks_are_understood():
    text = "<!-- unchecked: needs a GPU -->\n```yaml\na: 1\n```\n\n```python\nx\n```\n"
    first, second = blocks_of(text, "f")
    assert (first.reason, first.place, second.reason) == ("needs a GPU", "f:2", "")
    assert first.text == "a: 1\n"


@pytest.mark.parametrize("block", checked("yaml"))
def test_a_configuration_loads(block, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = block.text
    if "extends:" not in text:
        text = "extends: profile_consumer.yaml\n" + text
    text = re.sub(r"extends: (?:configs/)?(\S+)", r"extends: \1", text)
    (tmp_path / "c.yaml").write_text(text)
    load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("block", checked("python"))
def test_code_compiles(block):
    ast.parse(block.text, block.place)


SETTING = """\
import torch
torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(16, 16)) for _ in range(8))
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x
model = Net()
data = [torch.randn(64, 16) for _ in range(40)]
def train(model):
    for batch in data:
        model(batch)
"""


@pytest.mark.soak("starts a run, 10 to 25 s")
def test_the_marked_blocks_of_each_document_run_in_order(tmp_path):
    """One process for all: what one block leaves (a run), the next one reads. Those of docs/migration.md run
    in tests/interop/test_migration.py."""
    parts = [SETTING]
    for block in ALL:
        if block.mark == "runs" and not block.place.startswith("docs/migration.md:"):
            assert block.language == "python"
            body = re.sub(r"(?m)^( +)\.\.\.$", r"\1model(batch)", block.text)
            parts.append(f"# {block.place}\nexec(compile({body!r}, {block.place!r}, 'exec'))\n")
    assert len(parts) > 2
    (tmp_path / "blocks.py").write_text("\n".join(parts))
    done = subprocess.run(
        [sys.executable, "blocks.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stderr.splitlines() if line.startswith("asys: ")]
    for block in ALL:
        if block.language == "text" and block.text.startswith("asys: observing Net"):
            shown = block.text.splitlines()
            assert [shape(line) for line in printed[: len(shown)]] == [shape(s) for s in shown]
            break
    else:
        pytest.fail("no document shows what observe() says")


def shape(line: str) -> str:
    """Without its numbers, units and times."""
    return re.sub(r"[-\d.,]+(?: [KMG]?i?B\b)?", "#", line)


def commands_of(block: Block) -> Iterator[list[str]]:
    """Its lines as words, without comments, assignments in front, prompts and continuations."""
    for line in block.text.replace("\\\n", " ").splitlines():
        line = re.sub(r"\$\(([^()]*)\)", "VALUE", line)
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            yield words


@pytest.mark.parametrize("block", checked("sh"))
def test_commands_are_ones_that_exist(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands_of(block):
        command, *rest = words
        assert command in OURS, f"{block.place}: {command!r} is not one of {OURS}"
        if command in ("asys-run", "asys-bench"):
            check_ours(block.place, command, rest)
        if command == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in rest if "=" not in word} <= set(targets), block.place
        if command == "python" and rest[:1] == ["-m"]:
            module = rest[1].replace(".", "/")
            there = [ROOT / f"{module}.py", ROOT / module / "__main__.py"]
            assert any(path.exists() for path in there), f"{block.place}: no module {rest[1]}"


def check_ours(place: str, command: str, rest: list[str]) -> None:
    """The subcommand exists; a configuration that is named loads with its overrides."""
    if command == "asys-bench" or rest[0][:1] != "-":
        commands = ROOT / "asys_bench/cli/commands"
        bench = command == "asys-bench"
        source = (commands / "bench").glob("[!_]*.py") if bench else commands.glob("run_*.py")
        known = {path.stem.removeprefix("run_").replace("_", "-") for path in source}
        assert rest[0] in known, f"{place}: {command} has no {rest[0]!r}"
        if rest[0] == "run":
            assert (ROOT / rest[1]).exists() or "<" in rest[1], f"{place}: no {rest[1]}"
        return
    assert rest[0] in ("--config", "--resume", "--version", "--help"), place
    if rest[0] == "--resume":
        return
    sets = [rest[index + 1] for index, word in enumerate(rest) if word == "--set"]
    load_config(rest[1], sets)


DESCRIPTIONS = sorted(
    path
    for folder in ("asys_bench", "backends", "kernels", "reports", "suites")
    for pattern in ("README.md", "__init__.py")
    for path in (ROOT / folder).rglob(pattern)
)


@pytest.mark.parametrize("path", DESCRIPTIONS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folders_own_description_names_files_that_are_there(path):
    named = set(re.findall(r"`([\w./]+\.(?:py|hpp|cpp|yaml|md))`", path.read_text()))
    there = {file.name for file in path.parent.rglob("*")}
    bases = (*path.parents, ROOT / "asys_bench")
    assert {n for n in named - there if not any((base / n).exists() for base in bases)} == set()
