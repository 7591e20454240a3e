"""What of a configuration others may see."""

from __future__ import annotations

import pytest

from asys_bench.monitors.tracker.public_config import HIDDEN, public_config


def test_values_under_names_of_secrets_are_hidden_and_others_stay() -> None:
    config = {
        "hooks": [{"preprocess": [{"token_sample": {"every": 4}}]}],
        "total_tokens": 100,
        "api_key": "x" * 20,
        "WANDB_API_KEY": "y" * 20,
        "webhook": "https://hooks.example/a/b",
        "webhook_unset": None,
        "auth": {"password": "p", "user": "u"},
        "token": "",
    }
    shown = public_config(config)
    assert shown["hooks"] == config["hooks"]
    assert shown["total_tokens"] == 100
    assert shown["auth"] == {"password": HIDDEN, "user": "u"}
    assert shown["api_key"] == shown["WANDB_API_KEY"] == shown["webhook"] == HIDDEN
    assert shown["token"] == ""


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--lr", "1", "--api-key", "abc", "--x"], ["--lr", "1", "--api-key", HIDDEN, "--x"]),
        (["--hf_token=abc", "a"], [f"--hf_token={HIDDEN}", "a"]),
        (["--token", "--other", "b"], ["--token", "--other", "b"]),
        (["--tokens", "100"], ["--tokens", "100"]),
        ([1, None, "a"], [1, None, "a"]),
    ],
)
def test_arguments_after_flags_of_such_names_are_hidden(arguments: list, shown: list) -> None:  # type: ignore[type-arg]
    assert public_config({"args": arguments}) == {"args": shown}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hf_abcdefghijklmnop", HIDDEN),
        ("key sk-abcdefghijklmnopqrst!", f"key {HIDDEN}!"),
        ("https://me:pw@host/x", f"https://{HIDDEN}@host/x"),
        ("https://host/x?sig=abc&y=1", f"https://host/x?{HIDDEN}"),
        ("s3://bucket/x?a=b", f"s3://bucket/x?{HIDDEN}"),
        ("layers.3.mlp", "layers.3.mlp"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, shown: str) -> None:
    assert public_config({"a": text}) == {"a": shown}


def test_values_of_variables_with_such_names_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "whatever-it-is")
    monkeypatch.setenv("A_KEY", "short")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    assert public_config({"a": ["x whatever-it-is y"]}) == {"a": [f"x {HIDDEN} y"]}
    assert public_config({"a": "short", "b": "/run/agent"}) == {"a": "short", "b": "/run/agent"}
