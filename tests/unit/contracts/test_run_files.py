"""Names of a run's files are spelled once, and run.json is read in one place."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from asys_bench.contracts import run_files
from asys_bench.contracts.run_files import (
    RunFileError,
    accepted_by,
    attempts_in,
    checkpoint_order,
    is_run,
    read_run_file,
    runs_in,
    share_coin,
)

ROOT = Path(__file__).parents[3]
SPELLS = "asys_bench/contracts/run_files.py"
NAMES = sorted(value for key, value in vars(run_files).items() if key.endswith("_FILE"))
DOCUMENT = {"schema": "asys.run/1", "run_id": "r", "hooks": ["a"], "host_pid": 1}


def texts(path: Path) -> Iterator[str]:
    """Text constants of a module but its docstrings, parts of f-strings too."""
    tree = ast.parse(path.read_text())
    documents = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        said = isinstance(node, ast.Constant) and id(node) not in documents
        if said and isinstance(node.value, str):
            yield node.value


@cache
def spelled() -> list[tuple[str, str]]:
    return [
        (path.relative_to(ROOT).as_posix(), text)
        for folder in ("asys_bench", "reports")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in texts(path)
    ]


def test_each_files_name_is_spelled_once():
    assert {"run.json", "summary.json", "config.yaml", "metrics.csv"} <= set(NAMES)
    again = {(path, text) for path, text in spelled() if text in NAMES and path != SPELLS}
    assert again == set()
    once = [text for path, text in spelled() if path == SPELLS and text in NAMES]
    assert sorted(once) == NAMES


@pytest.mark.parametrize("name", ["run.json", "summary.json"])
def test_no_message_spells_it_either(name):
    wanted = {(path, text) for path, text in spelled() if name in text and path != SPELLS}
    assert wanted == set()


def test_a_run_file_says_what_every_run_says(tmp_path):
    path = tmp_path / "run.json"
    with pytest.raises(RunFileError, match=r"no run\.json there"):
        read_run_file(tmp_path)
    for document, reason in (
        ([], "not an asys.run/1 document"),
        (DOCUMENT | {"schema": "asys.run/9"}, "not an asys.run/1 document"),
        ({k: v for k, v in DOCUMENT.items() if k != "host_pid"}, "lacks host_pid"),
        (DOCUMENT | {"hooks": [1]}, "hooks are not all names"),
    ):
        path.write_text(json.dumps(document))
        with pytest.raises(RunFileError, match=reason):
            read_run_file(tmp_path)
    path.write_text(json.dumps(DOCUMENT))
    assert read_run_file(tmp_path) == DOCUMENT


def test_runs_are_folders_with_a_regular_run_file(tmp_path):
    for name in ("run", "link", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    os.symlink(tmp_path / "run" / "run.json", tmp_path / "link" / "run.json")
    assert runs_in(tmp_path) == [tmp_path / "run"]
    assert is_run(tmp_path / "run")
    assert not is_run(tmp_path / "link")
    assert runs_in(tmp_path / "none") == []


@pytest.mark.parametrize(
    "odd",
    [
        *(3, [], {}, {"attempt": "0"}, {"attempt": True}, {"attempt": -1}, {"attempt": 1 << 63}),
        *({"attempt": 1, "first_packet": "x"}, {"attempt": 1, "first_step": 0.5}),
        *({"attempt": 1, "account": 3}, {"attempt": 1, "account": {"produced": "many"}}),
    ],
)
def test_what_is_no_attempt_is_left_out(tmp_path, odd):
    real = {"attempt": 0, "first_step": 4, "first_packet": 9, "last_step": None, "account": None}
    (tmp_path / "run.json").write_text(json.dumps(DOCUMENT | {"attempts": [odd, real]}))
    assert attempts_in(tmp_path) == [real]


SHARED, OWN = {"name": "a", "coin": "shared"}, {"name": "b", "coin": "own"}


@pytest.mark.parametrize(
    ("streams", "hooks", "expected"),
    [
        ([SHARED, {"name": "c", "coin": "shared"}], ("a", "c"), True),
        ([SHARED, OWN], ("a", "b"), False),
        ([SHARED, {"name": "b"}], ("a", "b"), False),
        ([SHARED], ("a", "b"), False),
        ([3, SHARED, {"name": [], "coin": "shared"}], ("a",), True),
        ("shared", ("a",), False),
        (None, ("a",), False),
    ],
    ids=["one coin", "own coin", "earlier version", "missing", "odd ones", "no list", "nothing"],
)
def test_hooks_share_a_coin_where_the_run_says_so(tmp_path, streams, hooks, expected):
    (tmp_path / "run.json").write_text(json.dumps({**DOCUMENT, "streams": streams}))
    assert share_coin(tmp_path, hooks) is expected


def test_hooks_of_a_folder_that_is_no_run_share_no_coin(tmp_path):
    assert not share_coin(tmp_path, ("a",))


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("step_000000012", (12, 0)),
        ("step_000000012.3", (12, 3)),
        ("step_1234567890", (1234567890, 0)),
        ("step_12", None),
        ("step_000000012.", None),
        ("latest", None),
        (".tmp-step_000000012", None),
    ],
)
def test_checkpoints_follow_each_other_by_step_and_by_how_often_it_was_written(name, order):
    assert checkpoint_order(name) == order


@pytest.mark.parametrize(
    ("account", "accepted"),
    [({"produced": 30, "dropped": {"full": 1, "closed": 2}}, 27), ({"produced": 5}, 5),
     ({"produced": None, "dropped": {}}, 0), ({"produced": 5, "dropped": [1]}, 5),
     ({"produced": 5, "dropped": {"full": "1"}}, 5)],
)  # fmt: skip
def test_what_a_bus_took_is_read_of_any_document(account, accepted):
    assert accepted_by(account) == accepted
