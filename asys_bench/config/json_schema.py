"""JSON Schema of configuration files, for editors: the root model plus every plugin that loads.

Files are layers, so nothing is required in any one of them; whether the merged whole is complete is
`load_config`'s to say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from asys_bench.config.plugin_access import CONFIGURED_KINDS, Registries, options_model
from asys_bench.config.schema import MasterConfig
from asys_bench.registry import PluginError, registry

SCHEMA_FILE = "schema/master.schema.json"
"""Where it stands in the folder of configurations."""

_EXTENDS = {
    "description": "file or files that this one is merged on top of, relative to this file; "
    "later ones win",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def json_schema(registries: Registries = registry) -> dict[str, Any]:
    """The schema (draft 2020-12). Options of plugins that do not load are left open."""
    models = {
        (kind, name): model
        for kind in CONFIGURED_KINDS
        for name in registries(kind).names()
        if (model := _loadable(kind, name, registries)) is not None
    }
    unique = dict.fromkeys([MasterConfig, *models.values()])
    refs, top = models_json_schema([(model, "validation") for model in unique], by_alias=True)
    definitions: dict[str, Any] = top["$defs"]
    root: dict[str, Any] = definitions.pop(refs[MasterConfig, "validation"]["$ref"].split("/")[-1])
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "asys.config/1",
        **root,
        "title": "A-Sys-I configuration",
        "properties": {"extends": _EXTENDS, **root["properties"]},
        "$defs": definitions,
    }
    for kind in CONFIGURED_KINDS:
        options = {
            name: refs[models[kind, name], "validation"] if (kind, name) in models else True
            for name in registries(kind).names()
        }
        _insert(definitions, kind, options)
    _accept_single_elements(definitions)
    for section in ("sinks", "monitors"):
        entries = schema["properties"][section]
        entry = entries.pop("additionalProperties", None)
        if entry is not None:
            entries["additionalProperties"] = {"anyOf": [entry, {"type": "null"}]}
        for pattern, inner in entries.get("patternProperties", {}).items():
            entries["patternProperties"][pattern] = {"anyOf": [inner, {"type": "null"}]}
    _drop_required(schema)
    return schema


def schema_text(registries: Registries = registry) -> str:
    """The schema as the committed file has it."""
    return json.dumps(json_schema(registries), indent=1, sort_keys=True) + "\n"


def write_schema(folder: Path, registries: Registries = registry) -> Path:
    """Write the schema under `folder` (the folder of configurations) and return its path."""
    path = folder / SCHEMA_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(schema_text(registries), encoding="utf-8")
    return path


def _loadable(kind: str, name: str, registries: Registries) -> Any:
    try:
        return options_model(kind, name, registries)
    except PluginError:
        return None


def _insert(definitions: dict[str, Any], kind: str, options: dict[str, Any]) -> None:
    """Put the option schemas of one kind of plugin where its options are written."""
    names = list(options)
    if kind in ("host", "backend"):
        properties = definitions["HostConfig" if kind == "host" else "BusConfig"]["properties"]
        properties["kind" if kind == "host" else "backend"]["enum"] = names
        described = properties["options"].get("description", "")
        properties["options"] = {
            "type": "object",
            "description": described,
            "additionalProperties": False,
            "properties": options,
        }
    elif kind in ("sink", "monitor"):
        entry = definitions["SinkConfig" if kind == "sink" else "MonitorConfig"]
        entry["properties"]["kind"]["enum"] = names
        entry["allOf"] = [
            {
                "if": {"properties": {"kind": {"const": name}}, "required": ["kind"]},
                "then": {"properties": {"options": schema}},
            }
            for name, schema in options.items()
        ]
    else:
        steps = definitions["HookConfig"]["properties"]["preprocess"]
        step = {
            "anyOf": [
                {"enum": names},
                {
                    "type": "object",
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": False,
                    "properties": {
                        name: {"anyOf": [schema, {"type": "null"}]}
                        for name, schema in options.items()
                    },
                },
            ]
        }
        steps["anyOf"] = [*step["anyOf"], {"type": "array", "minItems": 1, "items": step}]
        for key in ("type", "items", "minItems"):
            steps.pop(key, None)


def _accept_single_elements(definitions: dict[str, Any]) -> None:
    """`match`, `capture` and a sink's `hooks` may be written as one element instead of a list."""
    for name, key in (("HookConfig", "match"), ("HookConfig", "capture"), ("SinkConfig", "hooks")):
        field = definitions[name]["properties"][key]
        if "items" in field:
            array = {part: field.pop(part) for part in ("type", "items", "minItems")}
            field["anyOf"] = [array["items"], array]


def _drop_required(schema: Any) -> None:
    if isinstance(schema, dict):
        if isinstance(schema.get("required"), list):
            del schema["required"]
        for key, value in schema.items():
            if key != "if":
                _drop_required(value)
    elif isinstance(schema, list):
        for value in schema:
            _drop_required(value)
