"""The model: plugin options, relations without a loader, dumps and fingerprints."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from asys_bench.config import (
    ConfigError,
    MasterConfig,
    config_from_data,
    config_sha256,
    dump_yaml,
    load_config,
)
from asys_bench.config.paths import format_path, parse_path
from asys_bench.contracts.bus import Delivery
from asys_bench.registry import PluginError

DATA = {
    "host": {"kind": "toy"},
    "hooks": [{"match": "a", "preprocess": ["identity", {"cast": None}]}],
    "sinks": {"t": {"kind": "trainer", "options": {"sae": {"k": 4}}}},
    "monitors": {"m": {"kind": "log"}},
}


def test_options_come_back_with_the_plugins_defaults(registries):
    config = config_from_data(DATA, registries=registries)
    assert config.host.options == {"toy": {"env_id": "CartPole-v1", "steps": 100}}
    assert config.bus.options == {"mp_queue": {"spin": False}}
    assert config.sinks["t"].options["sae"] == {"architecture": "topk", "k": 4}
    assert config.to_plain()["hooks"][0]["preprocess"] == [
        "identity",
        {"cast": {"dtype": "bfloat16"}},
    ]


def test_accessors_build_the_plugins_own_models(registries):
    config = config_from_data(DATA, registries=registries)
    assert config.host.plugin_options(registries).steps == 100
    assert config.bus.plugin_options(registries).spin is False
    assert config.sinks["t"].plugin_options(registries).sae.k == 4
    assert config.sinks["t"].resolved_delivery(registries) is Delivery.AT_MOST_ONCE
    assert config.monitors["m"].plugin_options(registries) is not None
    assert config.hooks[0].preprocess[1].plugin_options(registries).dtype == "bfloat16"
    with pytest.raises(PluginError, match="no compiler"):
        MasterConfig(host={"kind": "broken"}).host.plugin_options(registries)


def test_a_plugin_that_is_not_selected_may_fail_to_load(registries):
    data = DATA | {
        "bus": {"options": {"broken": {"anything": 1}}},
        "sinks": {"off": {"kind": "broken", "enabled": False, "options": {"x": 1}}},
    }
    config = config_from_data(data, registries=registries)
    assert config.bus.options["broken"] == {"anything": 1}
    assert config.enabled_sinks == {}


def test_relations_hold_for_models_built_without_a_file():
    with pytest.raises(ValidationError, match="late tick looks like a dead worker"):
        MasterConfig(host={"kind": "toy"}, watchdog={"heartbeat_timeout_s": 0.5})


def test_a_configuration_cannot_be_changed(registries):
    config = config_from_data(DATA, registries=registries)
    with pytest.raises(ValidationError, match="frozen"):
        config.run.seed = 3


def test_data_errors_name_their_source(registries):
    with pytest.raises(ConfigError, match=r"suite x: run\.seed:"):
        config_from_data(DATA | {"run": {"seed": "a"}}, "suite x", registries)


def test_the_fingerprint_ignores_order_and_sees_every_value(registries):
    one = config_from_data(DATA, registries=registries)
    two = config_from_data(dict(reversed(DATA.items())), registries=registries)
    assert config_sha256(one) == config_sha256(two)
    other = config_from_data(DATA | {"run_profile": "HPC"}, registries=registries)
    assert config_sha256(one) != config_sha256(other)


def test_a_dump_says_where_every_value_came_from(load, write):
    path = write("host: {kind: toy}\nrun: {seed: 5}\n")
    loaded = load(path, sets=["run.name=x # y"])
    text = dump_yaml(loaded.config, loaded.provenance)
    assert "seed: 5  # c.yaml:2:13\n" in text
    assert "worker_nice: 5  # default\n" in text
    assert load(write(text, "dumped.yaml")).config == loaded.config


names = st.from_regex(r"[a-z0-9_-]{1,8}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
selections = st.lists(texts.filter(lambda text: "." not in text), min_size=1, max_size=3).map(
    ".".join
)
hooks = st.fixed_dictionaries(
    {"match": st.one_of(texts, st.lists(texts, min_size=1, max_size=3))},
    optional={
        "capture": st.sampled_from(["activation", ["input", "gradient"]]),
        "select": st.one_of(st.none(), st.integers(-3, 3), selections),
        "preprocess": st.sampled_from(["identity", ["cast"], [{"cast": {"dtype": "float16"}}]]),
        "sampling": st.fixed_dictionaries(
            {"decrease_factor": st.floats(0.1, 0.9), "coin": st.sampled_from(["shared", "own"])}
        ),
    },
)
configs = st.fixed_dictionaries(
    {"host": st.just({"kind": "toy"}), "hooks": st.lists(hooks, min_size=1, max_size=3)},
    optional={
        "run": st.fixed_dictionaries(
            {"seed": st.integers(0, 2**32 - 1), "drain_timeout_s": st.floats(1, 99)}
        ),
        "bus": st.fixed_dictionaries(
            {"on_full": st.sampled_from(["drop", "sample"]), "checksum": st.booleans()}
        ),
        "sinks": st.dictionaries(
            names,
            st.fixed_dictionaries(
                {"kind": st.just("trainer"), "hooks": st.lists(texts, min_size=1, max_size=2)},
                optional={
                    "options": st.fixed_dictionaries(
                        {"overrides": st.dictionaries(texts, st.just({"k": 3}), max_size=2)}
                    )
                },
            ),
            max_size=2,
        ),
    },
)  # fmt: skip


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=configs)
def test_loading_a_dump_gives_an_equal_configuration(registries, tmp_path, data):
    config = config_from_data(data, registries=registries)
    path = tmp_path / "dump.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8", newline="")
    assert load_config(path, env={}, registries=registries).config == config
    everything = load_config(path, env={}, registries=registries)
    path.write_text(dump_yaml(config, everything.provenance), encoding="utf-8", newline="")
    assert load_config(path, env={}, registries=registries).config == config


@given(st.lists(st.one_of(texts, st.integers(0, 999)), min_size=1, max_size=5))
def test_paths_survive_text(path):
    assert parse_path(format_path(path)) == (tuple(path), "")
