"""Text that has not the form which an option asks for is answered in words, not with a regular expression."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from asys_bench.cli.run import main
from asys_bench.config.plugin_access import CONFIGURED_KINDS, options_model
from asys_bench.config.schema import MasterConfig
from asys_bench.harness.planning.suite import Suite
from asys_bench.offline.plan import OfflinePlan
from asys_bench.registry import PluginError, registry


def models() -> Iterator[type[BaseModel]]:
    """Whatever a user's file is checked with."""
    yield from (MasterConfig, Suite, OfflinePlan)
    for kind in CONFIGURED_KINDS:
        for name in registry(kind).names():
            try:
                yield options_model(kind, name, registry)
            except PluginError:
                continue


def bare_patterns(schema: Any) -> Iterator[str]:
    """Of a core schema: what pydantic itself would check, and show as it stands."""
    if isinstance(schema, dict):
        if schema.get("type") == "str" and schema.get("pattern") is not None:
            yield str(schema["pattern"])
        for inner in schema.values():
            yield from bare_patterns(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            yield from bare_patterns(inner)


def test_no_option_of_ours_is_checked_by_a_bare_pattern():
    class Bare(BaseModel):
        text: dict[str, list[Annotated[str, Field(pattern="^a$")]]] | None = None

    assert list(bare_patterns(Bare.__pydantic_core_schema__)) == ["^a$"]
    found = {
        f"{model.__name__}: {pattern}"
        for model in models()
        for pattern in bare_patterns(model.__pydantic_core_schema__)
    }
    assert found == set()


@pytest.mark.parametrize(
    ("arguments", "value", "told"),
    [
        (["--listen", "node-3"], "node-3", "must be host:port; write the port too: 0.0.0.0:7400"),
        (["--listen", "7400"], "7400", "must be host:port; write the port too"),
        (["--listen", "::1:x"], "::1:x", "must be host:port; IPv6 as [::1]:7400"),
        (["--listen", "tcp://0.0.0.0:1"], "tcp://0.0.0.0:1", "must be host:port"),
        (["--listen", "127.0.0.1:70000"], "127.0.0.1:70000", "a port that is not 0 to 65535"),
        (["--advertise", "tcp://a:1"], "tcp://a:1", "must be host or host:port; without tcp://"),
        (["--advertise", "*:7400"], "*:7400", "must be host or host:port"),
        (["--advertise", "node-3:0"], "node-3:0", "a port that is not 1 to 65535"),
        (["--name", "a b"], "a b", "must be a name for a receiver; use letters, digits"),
        (["--name", "-x"], "-x", "must be a name for a receiver"),
    ],
)
def test_receive_says_what_an_option_should_be(
    tmp_path, monkeypatch, capsys, arguments, value, told
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text("bus: {backend: mp_queue}\nsinks: {a: {kind: archiver}}\n")
    option, given = arguments
    assert main(["receive", "--config", "t.yaml", f"{option}={given}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"got '{value}'" in said
    for part in told.split("; "):
        assert part in said
    assert "pattern" not in said
    assert "[A-Z" not in said


@pytest.mark.parametrize(
    ("model", "field", "wrong", "right"),
    [
        ("forwarder", "to", ["node-3:7400", "tcp://node-3", "tcp://a:1\n"], ["tcp://[::1]:7400"]),
        ("sae_trainer", "device", ["gpu", "cuda:", "cuda:0 "], ["cpu", "cuda:12", "auto"]),
    ],
)
def test_the_whole_text_has_the_form(model, field, wrong, right):
    options = options_model("sink", model, registry)
    for text in wrong:
        with pytest.raises(ValidationError, match="must be"):
            options.model_validate({field: text})
    for text in right:
        assert getattr(options.model_validate({field: text}), field) == text


def test_editors_see_the_form_as_a_pattern():
    found = options_model("host", "receiver", registry).model_json_schema()["properties"]
    assert found["listen"]["pattern"].endswith(r":\d{1,5}$")
    assert found["advertise"]["anyOf"][0]["pattern"].startswith("^(")
    groups = MasterConfig.model_json_schema()["$defs"]["PoolConfig"]["properties"]["groups"]
    assert list(groups["patternProperties"]) == ["^[a-z0-9_-]{1,48}$"]
