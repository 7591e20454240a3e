"""A configuration as others may see it: without what is, or looks like, a secret.

Left out as `***`: values under names of secrets (token, password, webhook, ...), whatever is the value of an
environment variable with such a name, tokens by their form (hf_, sk-, ghp_, ...), credentials and parameters
of addresses, and what follows a flag of such a name in a list of arguments.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from asys_bench.store.uri import without_secrets

HIDDEN = "***"
_WORDS = (
    r"token|secret|passw(?:or)?d|passphrase|credentials?|api_?key|access_?key|private_?key|webhook"
)
_SECRET = re.compile(rf"(?:^|[_-])(?:{_WORDS})$", re.IGNORECASE)
"""Of a name; `token_sample` and `total_tokens` are none."""
_VARIABLE = re.compile(
    r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|WEBHOOK|(?:^|_)(?:AUTH|PAT|PWD)$", re.IGNORECASE
)
_FORMS = re.compile(
    r"hf_[A-Za-z0-9]{12,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}"
    r"|A[KS]IA[0-9A-Z]{16}|xox[a-z]-[\w-]{10,}|wandb_v\d_\w{16,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*"
)
_PARAMETERS = re.compile(r"(https?://[^\s'\"?]*)\?[^\s'\"]*")
_FLAG = re.compile(r"--?(?P<name>[A-Za-z][\w-]*)(?P<value>=.*)?", re.DOTALL)
SHORTEST = 8
"""Values of variables that are shorter say nothing (`1`, `true`)."""


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """See the module. `config` is plain data; keys are kept."""
    found = _public(config, _values_of_variables())
    assert isinstance(found, dict)
    return found


def _values_of_variables() -> list[str]:
    values = [
        value for name, value in os.environ.items()
        if _VARIABLE.search(name) and len(value) >= SHORTEST
        and not value.startswith("/")  # a file that holds one is none, and AUTH sockets are paths
    ]  # fmt: skip
    return sorted(values, key=len, reverse=True)


def _public(value: Any, variables: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): HIDDEN if _SECRET.search(str(key)) and inner else _public(inner, variables)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return _arguments([_public(inner, variables) for inner in value])
    return _text(value, variables) if isinstance(value, str) else value


def _text(text: str, variables: list[str]) -> str:
    for secret in variables:
        text = text.replace(secret, HIDDEN)
    text = _PARAMETERS.sub(rf"\1?{HIDDEN}", without_secrets(text))
    return _FORMS.sub(HIDDEN, text)


def _arguments(values: list[Any]) -> list[Any]:
    """A list that may be a command line: what follows `--api-key`, or stands behind its `=`."""
    shown, hides = [], False
    for value in values:
        flag = _FLAG.fullmatch(value) if isinstance(value, str) else None
        secret = flag is not None and _SECRET.search(flag["name"].replace("-", "_")) is not None
        if flag is not None and secret and flag["value"]:
            shown.append(value.partition("=")[0] + f"={HIDDEN}")
        else:
            shown.append(HIDDEN if hides and flag is None else value)
        hides = secret and flag is not None and not flag["value"]
    return shown
