"""What wins over what: base < extends in order < file < environment < --set."""

from __future__ import annotations

import pytest

from asys_bench.config import ConfigError

BASE = """\
host: {kind: toy, options: {toy: {steps: 5}}}
run: {seed: 1, name: base}
bus: {capacity_mib: 1}
hooks: [{match: a}, {match: b}]
sinks: {t: {kind: trainer}, u: {kind: trainer}}
"""


def test_each_layer_wins_over_the_one_before(load, write):
    write(BASE, "base.yaml")
    write("run: {name: second}\nbus: {capacity_mib: 2, checksum: true}\n", "sub/second.yaml")
    path = write("extends: [base.yaml, sub/second.yaml]\nrun: {seed: 3}\n")
    loaded = load(path)
    assert loaded.config.run.name == "second"
    assert loaded.config.run.seed == 3
    assert loaded.config.bus.capacity_mib == 2
    assert loaded.config.bus.capacity_bytes == 2 << 20
    assert [file.name for file in loaded.sources] == ["base.yaml", "second.yaml", "c.yaml"]
    env = {"ASYS__RUN__SEED": "4", "ASYS__BUS__CAPACITY_MIB": "5", "OTHER": "x"}
    loaded = load(path, env=env, sets=["run.seed=6", "run.seed=7"])
    assert loaded.config.run.seed == 7
    assert loaded.config.bus.capacity_mib == 5
    assert {
        key: str(loaded.provenance[key]) for key in ("run.seed", "run.name", "hooks[1].match")
    } == {
        "run.seed": "--set run.seed=7",
        "run.name": "sub/second.yaml:1:13",
        "hooks[1].match": "base.yaml:4:29",
    }
    assert str(loaded.provenance["bus.capacity_mib"]).endswith("ASYS__BUS__CAPACITY_MIB")
    assert "watchdog.tick_s" not in loaded.provenance


def test_lists_are_replaced_and_null_removes_a_sink(load, write):
    write(BASE, "base.yaml")
    path = write("extends: base.yaml\nhooks: [{match: z}]\nsinks: {u: null}\n")
    config = load(path).config
    assert [hook.match for hook in config.hooks] == [("z",)]
    assert list(config.sinks) == ["t"]


def test_extends_is_relative_to_its_file_and_chains(load, write):
    write(BASE, "deep/base.yaml")
    write("extends: base.yaml\nrun: {seed: 9}\n", "deep/mid.yaml")
    assert load(write("extends: deep/mid.yaml\n")).config.run.seed == 9


def test_a_cycle_of_extends_is_an_error_at_the_line_that_closes_it(load, write):
    write("run: {}\nextends: c.yaml\n", "d.yaml")
    with pytest.raises(ConfigError) as caught:
        load(write("extends: d.yaml\n"))
    (found,) = caught.value.problems
    assert (found.file, found.line, found.column) == ("d.yaml", 2, 10)
    assert found.message == "extends itself: c.yaml -> d.yaml -> c.yaml"


def test_merge_keys_work_as_in_yaml(load, write):
    path = write("host: {kind: toy}\nrun: &r {seed: 3, name: x}\n", "m.yaml")
    assert load(path).config.run.seed == 3
    path = write("host: {kind: toy}\nhooks:\n- &h {match: a, phase: eval}\n- {<<: *h, match: b}\n")
    assert [(h.match, h.phase) for h in load(path).config.hooks] == [
        (("a",), "eval"),
        (("b",), "eval"),
    ]


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("hooks[1].phase=train", lambda c: c.hooks[1].phase, "train"),
        ("hooks.0.phase=eval", lambda c: c.hooks[0].phase, "eval"),
        ("hooks[2]={match: c}", lambda c: len(c.hooks), 3),
        ("sinks={}", lambda c: c.sinks, {}),
        ("sinks.t.workers=3", lambda c: c.sinks["t"].workers, 3),
        ("host.options.toy.env_id='5'", lambda c: c.host.options["toy"]["env_id"], "5"),
        (
            'sinks.t.options.overrides["a.*"]={k: 2}',
            lambda c: c.sinks["t"].options["overrides"]["a.*"]["k"],
            2,
        ),
        ("run.name=a=b", None, None),
        ("resources.host_threads=", lambda c: c.resources.host_threads, None),
        ("monitors.m.kind=log", lambda c: c.monitors["m"].kind, "log"),
    ],
)
def test_a_set_reaches_any_depth_and_is_read_as_yaml(load, write, override, read, expected):
    path = write(BASE)
    if read is None:
        with pytest.raises(ConfigError, match=r"--set run\.name=a=b: run\.name"):
            load(path, sets=[override])
    else:
        assert read(load(path, sets=[override]).config) == expected


def test_a_variable_reaches_list_elements_and_keys_in_any_case(load, write):
    path = write(BASE)
    env = {"ASYS__HOOKS__1__PHASE": "train", "ASYS__HOST__OPTIONS__TOY": "{steps: 8}"}
    config = load(path, env=env).config
    assert config.hooks[1].phase == "train"
    assert config.host.options["toy"] == {"env_id": "CartPole-v1", "steps": 8}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("=3", "must be path=value"),
        ("run.seed", "must be path=value"),
        ("run..seed=3", "must be path=value"),
        (".run=3", "must be path=value"),
        ("run.seed=[", "not valid YAML"),
        ("hooks.first.phase=any", "list of 2"),
        ("hooks[9].phase=any", "list of 2"),
        ("hooks[3]={match: a}", "list of 2"),
        ("run[0]=1", "a mapping, not a list"),
        ("run.seed.x=1", "single value"),
        ("run.sede=1", "did you mean `seed`?"),
    ],
)
def test_a_bad_set_is_named_in_full(load, write, override, message):
    with pytest.raises(ConfigError) as caught:
        load(write(BASE), sets=[override])
    (found,) = caught.value.problems
    assert found.file == f"--set {override}"
    assert found.line is None
    assert message in str(found)


def test_a_variable_with_an_empty_part_is_named(load, write):
    with pytest.raises(ConfigError, match="environment variable ASYS__BUS__: has an empty part"):
        load(write(BASE), env={"ASYS__BUS__": "1"})
