"""From what is passed to `observe` to one configuration."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.capture.points.hookpoints import HookError
from asys_bench.config import ConfigError, config_from_data, load_config
from asys_bench.config.paths import assignment
from asys_bench.run.observation import observe
from asys_bench.run.settings import ARGUMENTS, resolve_settings


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(8, 16)
        self.head = torch.nn.Linear(16, 2)


def settings(config=None, model=None, **overrides):
    return resolve_settings(config, overrides, model or Net()).config


def test_without_a_configuration_it_is_the_consumer_defaults_made_quiet():
    config = settings()
    assert config.bus.backend == "mp_queue"
    assert config.host.kind == "observed"
    assert config.run.name == "Net"
    assert config.monitors["log"].options["plain_interval_s"] == 0
    assert config.resources.host_threads is None
    assert [rule.match for rule in config.hooks] == [("body",)]
    assert set(config.enabled_sinks) == {"trainer", "archive"}


@pytest.mark.parametrize(
    "overrides",
    [
        {"bus": {"backend": "cpp_spmc"}},
        {"bus__backend": "cpp_spmc"},
        {"bus.backend": "cpp_spmc"},
    ],
)
def test_overrides_are_nested_dotted_or_underscored(overrides):
    config = settings(**overrides)
    assert config.bus.backend == "cpp_spmc"
    assert config.bus.capacity_packets == 4096


@pytest.mark.parametrize("hooks", ["body", ["body"], [{"match": ["body"]}], {"match": "body"}])
def test_hooks_may_be_globs(hooks):
    assert [rule.match for rule in settings(hooks=hooks).hooks] == [("body",)]


def test_a_mapping_lies_over_the_defaults_and_overrides_over_it():
    config = settings({"run": {"seed": 3, "name": "mine"}, "sinks": {"trainer": None}}, run__seed=4)
    assert (config.run.seed, config.run.name) == (4, "mine")
    assert set(config.sinks) == {"archive"}


def test_a_master_config_is_taken_as_it_is_but_for_overrides():
    given_config = config_from_data({"host": {"kind": "ppo"}, "hooks": [{"match": "x"}]})
    config = settings(given_config, run={"seed": 9})
    assert config.host.kind == "ppo"
    assert config.run.seed == 9
    assert config.hooks == given_config.hooks


def test_a_file_keeps_its_own_hooks_name_and_talk(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "extends: base.yaml\nrun: {name: mine}\nhooks: [{match: head}]\n"
        "monitors: {log: {kind: logging_csv, options: {plain_interval_s: 7}}}\n"
    )
    config = settings(file)
    assert config.run.name == "mine"
    assert config.hooks[0].match == ("head",)
    assert config.monitors["log"].options["plain_interval_s"] == 7


def test_a_file_without_hooks_gets_default_hooks_not_those_of_the_shipped_base(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: base.yaml\nrun: {seed: 1}\n")
    assert settings(file).hooks[0].match == ("body",)
    bare = tmp_path / "bare.yaml"
    bare.write_text("sinks: {archive: {kind: archiver}}\n")
    assert settings(bare).hooks[0].match == ("body",)
    assert settings("profile_hpc.yaml").hooks[0].match == ("body",)


def sinks(**arguments):
    return settings(**arguments).sinks


def test_saes_and_the_archive_have_arguments_of_their_own():
    found = sinks(sae={"k": 24, "architecture": "batchtopk"}, archive={"shard_rotate_mib": 5})
    options = found["trainer"].options["sae"]
    assert (options["k"], options["architecture"]) == (24, "batchtopk")
    assert options["checkpoint_interval_s"] == 5, "of the consumer defaults, which it lies over"
    assert found["archive"].options["shard_rotate_mib"] == 5
    for arguments in ({}, {"sae": {}, "archive": {}}, {"sae": True, "archive": True}):
        assert sinks(**arguments) == sinks(sae=None, archive=None)


def test_either_may_be_left_out():
    assert [s.enabled for s in sinks(archive=False).values()] == [True, False]
    assert [s.enabled for s in sinks(sae=False).values()] == [False, True]


def test_they_reach_the_sinks_of_their_kind_whatever_their_names_are(tmp_path: Path):
    found = sinks(sinks={"trainer": None, "mine": {"kind": "sae_trainer"}}, sae={"k": 3})
    assert found["mine"].options["sae"]["k"] == 3
    assert "trainer" not in found
    bare = tmp_path / "bare.yaml"
    bare.write_text("sinks: {keep: {kind: archiver, enabled: false}}\n")
    found = settings(bare, sae={"k": 3}, archive=True).sinks
    assert found["keep"].enabled
    assert found["trainer"].options["sae"]["k"] == 3
    given = config_from_data(settings().to_plain())
    found = settings(given, sae={"k": 5}, archive=False).sinks
    assert (found["trainer"].options["sae"]["k"], found["archive"].enabled) == (5, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"sae": {"kk": 24}},
            ["observe(): sae.kk: unknown key `kk`", "normalize", "did you mean `k`?"],
        ),
        ({"sae": {"k": "x"}}, ["observe(): sae.k: should be a valid integer"]),
        (
            {"sae": 24},
            ["observe(): sae: is a mapping of options, True or False (got 24)", '"k": 24'],
        ),
        ({"archive": "no"}, ["observe(): archive: is a mapping of options, True or False"]),
        (
            {"archive": {"max": 1}},
            ["observe(): archive.max: unknown key `max`", "shard_rotate_mib"],
        ),
        (
            {"sae": {"matryoshka_widths": [1]}},
            ["observe(): sae: matryoshka_widths needs matryoshka"],
        ),
        ({"archives": False}, ["observe(): archives: unknown key", "did you mean `archive`?"]),
        ({"bus": {"backend": 3}}, ["observe(): bus.backend"]),
    ],
)
def test_a_wrong_argument_is_named_as_it_was_passed(arguments, words):
    with pytest.raises(ConfigError) as caught:
        settings(**arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("eye", [True, False, None])
def test_eye_is_a_field_of_the_run(eye, tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: profile_consumer.yaml\nrun: {eye: true}\n")
    assert settings(eye=eye).run.eye == bool(eye)
    assert settings(tmp_path / "mine.yaml", eye=eye).run.eye == (eye is not False)


def test_the_arguments_that_an_error_lists_are_those_of_observe():
    named = [p.name for p in signature(observe).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert sorted(ARGUMENTS) == sorted(["config", *named])


@pytest.mark.parametrize("step", [-1, 2**63, 1.5, True, "3", None])
def test_a_step_to_start_at_is_a_whole_number(step):
    with pytest.raises(ValueError, match=r"start_step: .* is no step; pass a whole number"):
        observe(Net(), start_step=step, hooks="body")


def test_mistakes_name_the_field_and_the_fix():
    with pytest.raises(ConfigError) as caught:
        settings(bus={"backend": "cpp_spmk"}, run__seed=-1)
    text = str(caught.value)
    assert "bus.backend" in text
    assert "cpp_spmc" in text
    assert "run.seed" in text
    with pytest.raises(ConfigError, match="no such file"):
        settings("nowhere.yaml")


def test_a_model_without_layers_needs_hooks():
    with pytest.raises(HookError, match="pass hooks="):
        settings(model=torch.nn.ReLU())


def test_a_class_name_that_is_no_run_name_is_made_one():
    class Wéird(Net):
        pass

    assert settings(model=Wéird()).run.name == "W-ird"


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc_.-", min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(value=plain)
def test_an_assignment_is_read_back_as_what_it_was(value):
    """`bus.options` takes anything, as long as nobody looks into it."""
    options = {"keep": value}
    text = assignment(("host", "options", "anyone"), options)
    from asys_bench.config.node import Node
    from asys_bench.config.overrides import apply_sets
    from asys_bench.config.problems import Origin

    root = Node({}, Origin("test"))
    assert apply_sets(root, [text]) == []
    found = root.to_data()["host"]["options"]["anyone"]
    assert json.dumps(found) == json.dumps(options)


def test_assignments_go_through_the_loader():
    text = assignment(("run", "name"), "on")  # YAML 1.1 would read a bare `on` as true
    assert load_config("profile_consumer.yaml", [text]).config.run.name == "on"


@pytest.mark.parametrize("name", ["resources", "resources__pinning", "resources.pinning"])
def test_a_mapping_may_stand_where_a_single_value_was(name):
    value = {"host": "0"} if name != "resources" else {"pinning": {"host": "0"}}
    assert settings(**{name: value}).resources.pinning.host == "0"
    assert settings({name: value}).resources.pinning.host == "0"
    plain = config_from_data(settings().to_plain())
    assert settings(plain, **{name: value}).resources.pinning.host == "0"
