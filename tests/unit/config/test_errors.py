"""Every mistake is reported at its place, with the valid words and a fix, and all at once."""

from __future__ import annotations

import pytest

from asys_bench.config import ConfigError

HEAD = "host: {kind: toy}\n"


def problems(load, path, **more):
    with pytest.raises(ConfigError) as caught:
        load(path, **more)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "line", "column", "path", "message", "fix"),
    [
        (HEAD + "bsu: {}\n", 2, 1, "bsu", "unknown key `bsu`", "did you mean `bus`?"),
        (HEAD + "bus:\n  chekcsum: true\n", 3, 3, "bus.chekcsum", "unknown key", "`checksum`"),
        (
            HEAD + "device:\n  encode_on: host_stream\n",
            3, 3, "device.encode_on", "an option of an earlier version", "remove the line",
        ),
        (
            HEAD + "hooks:\n- {match: a, sampling: {seed: 3}}\n",
            3, 25, "hooks[0].sampling.seed", "an option of an earlier version", "remove the line",
        ),
        (HEAD + "bus:\n  on_full: dorp\n", 3, 12, "bus.on_full", "valid words", "`drop`"),
        (HEAD + "run_profile: hpc\n", 2, 14, "run_profile", "valid words", "`HPC`"),
        (HEAD + "schema: asys.config/9\n", 2, 9, "schema", "valid words", "`asys.config/1`"),
        (HEAD + "run:\n  seed: yes\n", 3, 9, "run.seed", "a number is needed", ""),
        (HEAD + "run:\n  seed: many\n", 3, 9, "run.seed", "valid integer", ""),
        (HEAD + "run:\n  name: 12\n", 3, 9, "run.name", "valid string", "quotes"),
        (HEAD + "run:\n  name: a/b\n", 3, 9, "run.name", "a name for a folder", "letters"),
        (HEAD + "bus:\n  capacity_mib: 0\n", 3, 17, "bus.capacity_mib", "greater than", "limit"),
        (HEAD + "watchdog: {tick_s: .nan}\n", 2, 20, "watchdog.tick_s", "finite", ""),
        (HEAD + "bus: 3\n", 2, 6, "bus", "valid dictionary", "indent"),
        (HEAD + "hooks: 3\n", 2, 8, "hooks", "valid tuple", "list"),
        (HEAD + "hooks:\n- match: []\n", 3, 10, "hooks[0].match", "at least 1", ""),
        (HEAD + "hooks:\n- phase: any\n", 3, 3, "hooks[0].match", "is missing", "add `match"),
        (HEAD + "hooks:\n- {match: a, select: [1]}\n", 3, 22, "hooks[0].select", "integer", ""),
        (HEAD + "hooks:\n- {match: a, select: .}\n", 3, 22, "hooks[0].select", "single dots", ""),
        (
            HEAD + "hooks:\n- {match: a, capture: [input, input]}\n",
            3, 23, "hooks[0].capture", "listed once", "",
        ),
        (HEAD + "sinks: {A B: {kind: trainer}}\n", 2, 14, 'sinks["A B"]', "small letters", "a to z"),
        (HEAD + "monitors:\n  m: {}\n", 3, 3, "monitors.m.kind", "is missing", "add `kind"),
        ("run: {seed: 1}\n", 1, 1, "host", "is missing", "add `host"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_file_line_and_column(
    load, write, text, line, column, path, message, fix
):
    (found,) = problems(load, write(text))
    assert (found.file, found.line, found.column, found.path) == ("c.yaml", line, column, path)
    assert message in str(found)
    assert fix in found.fix
    assert str(found).startswith(f"c.yaml:{line}:{column}: {path}: ")


@pytest.mark.parametrize(
    ("text", "line", "column", "path", "message", "fix"),
    [
        ("host: {kind: tou}\n", 1, 14, "host.kind", "no host plugin", "did you mean `toy`?"),
        ("host: {kind: broken}\n", 1, 14, "host.kind", "no compiler", "install"),
        (
            "host:\n  kind: toy\n  options: {toy: {steps: 0}}\n",
            3, 26, "host.options.toy.steps", "greater than", "limit",
        ),
        (
            "host:\n  kind: toy\n  options: {other: {stesp: 1}}\n",
            3, 21, "host.options.other.stesp", "unknown key", "`steps`",
        ),
        (
            "host:\n  kind: toy\n  options: {otehr: {}}\n",
            3, 13, "host.options.otehr", "no host plugin", "`other`",
        ),
        (HEAD + "bus: {backend: rings}\n", 2, 16, "bus.backend", "no backend", "`ring`"),
        (
            HEAD + "hooks:\n- {match: a, preprocess: [cats]}\n",
            3, 27, "hooks[0].preprocess[0]", "no kernel", "`cast`",
        ),
        (
            HEAD + "hooks:\n- match: a\n  preprocess: [cast, identity]\n",
            4, 15, "hooks[0].preprocess", "the hook on a goes on after the encoder cast", "move cast",
        ),
        (
            HEAD + "hooks:\n- match: a\n  preprocess: [{cast: {dtype: float61}}]\n",
            4, 31, "hooks[0].preprocess[0].cast.dtype", "valid words", "`float16`",
        ),
        (
            HEAD + "sinks:\n  t:\n    kind: trainer\n    enabled: false\n"
            "    options: {sae: {architecture: topj}}\n",
            6, 35, "sinks.t.options.sae.architecture", "valid: topk, relu", "`topk`",
        ),
        (
            HEAD + "sinks:\n  t:\n    kind: trainer\n    enabled: false\n"
            "    options: {overrides: {'a.*': {kk: 1}}}\n",
            6, 35, 'sinks.t.options.overrides["a.*"].kk', "valid: architecture, k", "",
        ),
        (HEAD + "monitors: {m: {kind: lgo}}\n", 2, 22, "monitors.m.kind", "no monitor", "`log`"),
    ],
)  # fmt: skip
def test_wrong_plugins_and_their_options_are_found_in_place(
    load, write, text, line, column, path, message, fix
):
    (found,) = problems(load, write(text))
    assert (found.line, found.column, found.path) == (line, column, path)
    assert message in str(found)
    assert fix in found.fix


@pytest.mark.parametrize(
    ("text", "line", "path", "message"),
    [
        ("watchdog: {tick_s: 1,\n heartbeat_timeout_s: 3}", 3, "heartbeat_timeout_s", "3 * "),
        ("resources:\n  worker_cpu: idle\n", 3, "worker_cpu", "pinned"),
        ("watchdog:\n  startup_timeout_s: 9\n", 3, "startup_timeout_s", "heartbeat_timeout_s = 10"),
        ("watchdog:\n  backoff_max_s: 0.01\n", 3, "backoff_max_s", "backoff_initial_s = 0.1"),
        ("watchdog:\n  restart_window_s: 3\n", 3, "restart_window_s", "never reached"),
        ("run:\n  drain_timeout_s: 0.2\n", 3, "drain_timeout_s", "tick_s = 0.2"),
        ("bus: {on_full: block,\n block_timeout_s: 10}", 3, "block_timeout_s", "outlasts"),
        (
            "hooks:\n- {match: a, sampling: {min_rate: 1,\n max_rate: 0.5}}",
            3,
            "min_rate",
            "at most",
        ),
        ("hooks:\n- {match: a, sampling: {low_watermark: 0.9}}", 3, "low_watermark", "less than"),
        ("sinks:\n  t: {kind: trainer}\nhooks: []", 4, "hooks", "never receive"),
    ],
)
def test_relations_between_fields_are_reported_at_the_field_to_change(
    load, write, text, line, path, message
):
    (found,) = problems(load, write(HEAD + text))
    assert (found.file, found.line) == ("c.yaml", line)
    assert found.path.endswith(path)
    assert message in found.message
    assert found.fix


def test_all_problems_come_at_once_including_relations_and_plugin_options(load, write):
    text = """\
host: {kind: tou}
run: {seed: -1}
watchdog: {heartbeat_timeout_s: 0.1}
bus:
  options: {ring: {spin: 7}}
hooks:
- {match: a, sampling: {max_rat: 1}}
"""
    found = problems(load, write(text), sets=["bus.on_full=dorp", "nonsense"], env={"ASYS__X": "1"})
    places = [(p.file, p.line, p.path) for p in found]
    assert places == [
        ("--set bus.on_full=dorp", None, "bus.on_full"),
        ("--set nonsense", None, ""),
        ("c.yaml", 1, "host.kind"),
        ("c.yaml", 2, "run.seed"),
        ("c.yaml", 3, "watchdog.heartbeat_timeout_s"),
        ("c.yaml", 5, "bus.options.ring.spin"),
        ("c.yaml", 7, "hooks[0].sampling.max_rat"),
        ("environment variable ASYS__X", None, "x"),
    ]
    assert str(ConfigError(found)).startswith("8 problems in the configuration\n  --set bus")


def test_a_problem_prints_the_value_the_valid_words_and_the_fix(load, write):
    (found,) = problems(load, write(HEAD + "bus:\n  on_full: dorp\n"))
    assert str(found) == (
        "c.yaml:3:12: bus.on_full: must be one of the valid words "
        "(got 'dorp'; valid: drop, sample, block)\n    fix: did you mean `drop`?"
    )
