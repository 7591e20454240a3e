"""Files that are not usable YAML end in a ConfigError at the right place, quickly."""

from __future__ import annotations

import os

import pytest

from asys_bench.config import ConfigError, shipped_names
from asys_bench.config.document import host_options


def only_problem(load, path, **more):
    with pytest.raises(ConfigError) as caught:
        load(path, **more)
    (found,) = caught.value.problems
    return found


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("", 1, 1, "is empty"),
        ("# nothing\n", 1, 1, "is empty"),
        ("- a\n", 1, 1, "must be a mapping"),
        ("just text\n", 1, 1, "must be a mapping"),
        ("run: {seed: 1\nbus: 2\n", 2, 4, "not valid YAML"),
        ("run:\n\tseed: 1\n", 2, 1, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, 1, "not valid YAML"),
        ("run: *nowhere\n", 1, 6, "not valid YAML: found undefined alias"),
        ("run:\n  seed: 1\n  name: x\n  seed: 2\n", 4, 3, "given twice (first at c.yaml:2:3)"),
        ("run:\n  1: x\n", 2, 3, "a key must be text"),
        ("run:\n  on: x\n", 2, 3, "a key must be text"),
        ("run: !!python/object/apply:os.system [ls]\n", 1, 6, "is not allowed"),
        ("run: {name: !secret x}\n", 1, 13, "is not allowed"),
        ("run: {seed: !!int abc}\n", 1, 13, "cannot be read"),
        ("run: {name: 2024-13-45}\n", 1, 13, "cannot be read"),
        ("run: &r\n  a: *r\n", 1, 6, "an alias contains itself"),
        ("run: {<<: 3}\n", 1, 11, "`<<` takes a mapping"),
        ("run:\n  name: \x01\n", 2, 9, "is not a text file"),
        ("extends: 3\nrun: {}\n", 1, 10, "must be a file name"),
        ("run: {}\nextends: gone.yaml\n", 2, 10, "no such file 'gone.yaml'"),
    ],
)
def test_a_bad_document_is_located(load, write, text, line, column, message):
    found = only_problem(load, write(text))
    assert message in found.message
    assert (found.file, found.line, found.column) == ("c.yaml", line, column)


def test_binary_garbage_is_not_utf8_at_its_first_bad_byte(load, write):
    found = only_problem(load, write(b"run: {}\nab\xff\xfe\x00"))
    assert (found.line, found.column, found.message) == (2, 3, "is not UTF-8 text")


def test_nesting_is_bounded(load, write):
    found = only_problem(load, write("run: " + "[" * 100_000))
    assert "nested deeper" in found.message
    assert found.line == 1


def test_an_alias_bomb_is_refused(load, write):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "expands to more than" in only_problem(load, write("\n".join(lines))).message


def test_an_alias_bomb_in_a_set_or_variable_is_refused(load, write):
    path = write("host: {kind: toy}\n")
    bomb = "[&a [1,1,1,1,1,1,1,1], " + ", ".join(
        f"&{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 8)}]" for i in range(10)
    )
    found = only_problem(load, path, env={"ASYS__HOOKS": bomb + "]"})
    assert (found.file, found.line) == ("environment variable ASYS__HOOKS", None)


def test_a_file_past_one_mebibyte_is_refused(load, write):
    found = only_problem(load, write(b"#" * ((1 << 20) + 1)))
    assert "larger than 1048576 bytes" in found.message


def test_special_files_are_refused_without_reading_them(load, write, tmp_path):
    write("x: 1")
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "not a regular file" in only_problem(load, "pipe.yaml").message
    assert "not a regular file" in only_problem(load, ".").message


@pytest.mark.parametrize("name", ["nowhere.yaml", "a\0b.yaml", "", "x" * 5000])
def test_a_missing_file_names_itself_and_the_shipped_ones(load, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if not name:
        assert "not a regular file" in only_problem(load, name).message
        return
    found = only_problem(load, name)
    assert found.file == name
    assert list(found.valid) == shipped_names()
    assert "base.yaml" in found.valid


def test_a_misspelt_shipped_name_is_guessed(load, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = only_problem(load, "configs/profile_consumr.yaml")
    assert found.fix == "did you mean `profile_consumer.yaml`?"


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"host": {"kind": "ppo", "options": {"ppo": {"env_id": "x"}, "script": {"entry": "y"}}}},
         ("ppo", {"env_id": "x"})),
        ({"host": {"kind": "ppo", "options": {"script": {"entry": "y"}}}}, ("ppo", {})),
        ({"host": {"kind": "ppo", "options": {"ppo": 3}}}, ("ppo", {})),
        ({"host": {"kind": "ppo", "options": 3}}, ("ppo", {})),
        ({"host": {"kind": "ppo"}}, ("ppo", {})),
        ({"host": {"kind": ["ppo"], "options": {"ppo": {}}}}, ("", {})),
        ({"host": {"options": {"ppo": {"env_id": "x"}}}}, ("", {})),
        ({"host": 3}, ("", {})),
        ({}, ("", {})),
    ],
)  # fmt: skip
def test_a_hosts_options_are_those_of_its_kind(config, found) -> None:
    assert host_options(config) == found
