"""The files that come with the package, the JSON Schema and the reference page."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from asys_bench.config import ConfigError, config_from_data, load_config, shipped_names
from asys_bench.config.json_schema import SCHEMA_FILE, json_schema, schema_text
from asys_bench.config.plugin_access import CONFIGURED_KINDS
from asys_bench.config.reference import main, render, write_reference
from asys_bench.config.sources import SHIPPED
from asys_bench.registry import registry


def _plugins_that_do_not_load() -> str:
    failures = {
        f"{k} {n}": why for k in CONFIGURED_KINDS for n, why in registry(k).failures().items()
    }
    if not all(registry(kind).names() for kind in CONFIGURED_KINDS):
        return "the package's entry points are not installed"
    return "; ".join(failures.values())


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_configuration_loads_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        loaded = load_config(f"configs/{name}", env={})
    except ConfigError as error:
        away = [
            p for p in error.problems if "does not load" in p.message or "no backend" in p.message
        ]
        if len(away) == len(error.problems):
            pytest.skip(str(error))
        raise
    assert loaded.config == load_config(name, env={}).config
    assert loaded.config == config_from_data(loaded.config.to_plain())


def test_base_spells_every_default(registries):
    data = yaml.safe_load((SHIPPED / "base.yaml").read_text())
    data["host"] = {"kind": "toy"}
    data["bus"]["options"] = {}  # of plugins, like the host's: what production wants of them
    for name, kind in (("sinks", "trainer"), ("monitors", "log")):
        data[name] = {
            key: entry | {"kind": kind, "options": {}} for key, entry in data[name].items()
        }
    spelled = config_from_data(data, registries=registries).to_plain()
    bare = {key: {"kind": entry["kind"]} for key, entry in data["sinks"].items()}
    bare_monitors = {key: {"kind": "log"} for key in data["monitors"]}
    hooks = [{"match": hook["match"]} for hook in data["hooks"]]
    short = {"host": {"kind": "toy"}, "sinks": bare, "monitors": bare_monitors, "hooks": hooks}
    assert spelled == config_from_data(short, registries=registries).to_plain()

    def keys(value):
        return (
            {key: keys(inner) for key, inner in value.items()} if isinstance(value, dict) else None
        )

    for section in ("run", "watchdog", "resources"):
        assert keys(data[section]) == keys(spelled[section])
    assert keys(data["hooks"][0]) == keys(spelled["hooks"][0])


def test_the_unobserved_host_has_nothing_attached(registries):
    data = yaml.safe_load((SHIPPED / "pipelines/none.yaml").read_text())
    assert data["hooks"] == []
    assert set(data["sinks"].values()) == {None}


def test_the_schema_accepts_what_loads_and_refuses_what_does_not(registries):
    schema = json_schema(registries)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = {
        "extends": ["a.yaml"],
        "host": {"kind": "toy", "options": {"toy": {"steps": 3}, "broken": {"x": 1}}},
        "hooks": [{"match": "a", "preprocess": {"cast": {"dtype": "float16"}}, "select": None}],
        "sinks": {"t": {"workers": 2}, "u": None, "v": {"kind": "trainer", "options": {"sae": {"k": 3}}}},
        "resources": {"host_threads": None},
    }  # fmt: skip
    assert list(validator.iter_errors(good)) == []
    for bad in (
        {"bsu": {}},
        {"host": {"kind": "nope"}},
        {"host": {"options": {"toy": {"steps": 0}}}},
        {"hooks": [{"match": "a", "preprocess": ["nope"]}]},
        {"hooks": [{"preprocess": {"cast": {"dtype": "int3"}}}]},
        {"sinks": {"v": {"kind": "trainer", "options": {"sae": {"k": 0}}}}},
        {"resources": {"host_threads": 0}},
        {"bus": {"on_full": "dorp"}},
    ):
        assert list(validator.iter_errors(bad)), bad


def test_shipped_configurations_follow_the_schema():
    if reason := _plugins_that_do_not_load():
        pytest.skip(reason)
    validator = jsonschema.Draft202012Validator(json_schema())
    for name in shipped_names():
        data = yaml.safe_load((SHIPPED / name).read_text())
        if data.get("bus", {}).get("backend", "mp_queue") not in registry("backend").names():
            continue
        assert [error.message for error in validator.iter_errors(data)] == [], name


def test_the_committed_schema_is_the_generated_one():
    if reason := _plugins_that_do_not_load():
        pytest.skip(reason)
    committed = (SHIPPED / SCHEMA_FILE).read_text()
    assert json.loads(committed) == json.loads(schema_text()), (
        "run: python -m asys_bench.config.reference"
    )


def test_the_committed_reference_is_the_generated_one():
    page = SHIPPED.resolve().parent / "docs" / "config.md"
    if not page.exists():
        pytest.skip("docs/ comes with a checkout only")
    if reason := _plugins_that_do_not_load():
        pytest.skip(reason)
    assert page.read_text() == render(), "run: python -m asys_bench.config.reference"


def test_the_reference_describes_every_field(registries, tmp_path: Path):
    page, schema = write_reference(tmp_path, registries)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    own = rows[: next(i for i, row in enumerate(rows) if "worker_nice" in row) + 1]
    assert len(own) > 40
    assert [row for row in own if row.rstrip(" |").endswith("|")] == []
    assert json.loads(schema.read_text())["$id"] == "asys.config/1"


def test_the_reference_command_refuses_a_folder_that_is_no_checkout(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "no folder configs/" in capsys.readouterr().err
