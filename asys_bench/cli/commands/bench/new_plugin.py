"""`asys-bench new-plugin`: a package of your own with a plugin in it that works from the first minute."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from string import Template

from rich.console import Console

from asys_bench.contracts.exit_codes import EXIT_USAGE

# The files of a new backend package: complete, and delegating to `mp_queue` until it is replaced.

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"

[project]
name = "asys-$dashed"
version = "0.1.0"
description = "A-Sys-I bus backend $name"
requires-python = ">=3.11"
dependencies = ["asys-i"]

[project.entry-points."asys.backend"]
$name = "asys_$name.plugin:plugin"

[tool.setuptools.packages.find]
where = ["src"]
"""

_README = """\
# $name

A bus backend for A-Sys-I. It starts as a complete one that passes everything on to `mp_queue`:
replace it in `src/asys_$name/bus.py` method by method, and keep the suite green.

```sh
pip install -e .
asys-bench list                           # shows $name
python -m asys_bench.conformance $name    # the contract
asys-run --config configs/profile_consumer.yaml --set bus.backend=$name
```

The contract is the docstring of `asys_bench.contracts.bus`. `plugin.py` says what this backend can do;
the suite leaves out, with a reason, what it says it cannot.
"""

_INIT = '"""Bus backend `$name` of A-Sys-I."""\n'

_CONFIG = '''\
"""Options of the $name bus (`bus.options.$name` in YAML)."""

from __future__ import annotations

from pydantic import Field

from asys_bench.contracts.bus import BusOptions


class $Options(BusOptions):
    """What a user may tune."""

    connect_timeout_s: float = Field(
        default=10.0, gt=0, description="How long a consumer waits for the owner, seconds."
    )
'''

_PLUGIN = '''\
"""Entry point of the $name backend."""

from __future__ import annotations

from asys_bench.contracts.bus import BusCapabilities, BusPlugin
from asys_$name.bus import $Bus, attach
from asys_$name.config import $Options

plugin = BusPlugin(
    name="$name",
    summary="new backend: passes everything on to mp_queue",
    capabilities=BusCapabilities(max_payload_bytes=1 << 30, shares_producers=True),
    options=$Options,
    build=$Bus,
    attach=attach,
)
'''

_BUS = '''\
"""`$Bus`: the bus as its owner holds it, and `attach`, how other processes join.

Every method passes on to `mp_queue`. Replace them one by one; `asys_bench.contracts.bus` says what
each must do.
"""

from __future__ import annotations

from dataclasses import replace

from asys_bench.backends.mp_queue.bus import PythonQueueBus
from asys_bench.backends.mp_queue.client import QueueClient
from asys_bench.backends.mp_queue.config import MpQueueOptions
from asys_bench.contracts.bus import (
    BaseDataBus,
    BusAccount,
    BusClient,
    BusHandle,
    BusProducer,
    BusRequest,
    BusSubscription,
    GroupSpec,
)
from asys_$name.config import $Options

BACKEND = "$name"


class $Bus(BaseDataBus):
    """What the host process holds: memory, producers, names and counters."""

    def __init__(self, request: BusRequest) -> None:
        """Take all memory now. Raises BusError: the request cannot be met."""
        super().__init__()
        options = request.options
        if not isinstance(options, $Options):
            options = $Options(**options.model_dump())
        theirs = MpQueueOptions(connect_timeout_s=options.connect_timeout_s)
        self._inner = PythonQueueBus(replace(request, options=theirs))

    def producer(self, shard: int = 0) -> BusProducer:
        """The one writer of a shard; its `try_push` is the hook's hot path."""
        return self._inner.producer(shard)

    def intern(self, name: str) -> int:
        """The id of a hook or encoding name."""
        return self._inner.intern(name)

    def name_of(self, name_id: int) -> str:
        """The name behind an id."""
        return self._inner.name_of(name_id)

    def handle(self) -> BusHandle:
        """What another process needs: JSON-able parameters and descriptors, never a pickle."""
        return replace(self._inner.handle(), backend=BACKEND)

    def fill_ratio(self) -> float:
        """How full the fullest shard is, 0..1; called on the hot path."""
        return self._inner.fill_ratio()

    def subscribe(self, group: str, member: str, spec: GroupSpec | None = None) -> BusSubscription:
        """Join a group from this process."""
        return self._inner.subscribe(group, member, spec)

    def account(self) -> BusAccount:
        """Every packet offered so far; the identity holds for every group."""
        return self._inner.account()

    def reap(self, pid: int) -> int:
        """Take back the claims of a process that is confirmed dead."""
        return self._inner.reap(pid)

    def retire(self, group: str) -> None:
        """Nobody will come back for this group: it must not fill the bus."""
        self._inner.retire(group)

    def finish(self) -> None:
        """No more packets: consumers drain and then see `ended`."""
        self._inner.finish()

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self._inner.close()


def attach(handle: BusHandle) -> BusClient:
    """Another process's attachment to the bus behind `handle`."""
    return QueueClient.attach(replace(handle, backend="mp_queue"))
'''

_TEST = '''\
"""The contract of every bus backend, run against this one as it is installed."""

from __future__ import annotations

import subprocess
import sys


def test_the_backend_conforms() -> None:
    command = [sys.executable, "-m", "asys_bench.conformance", "$name", "-q"]
    assert subprocess.run(command, check=False).returncode == 0
'''


def backend_files(name: str) -> dict[str, str]:
    """Relative path -> text of every file of the package `asys-NAME`."""
    package = f"src/asys_{name}"
    templates = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"{package}/__init__.py": _INIT,
        f"{package}/config.py": _CONFIG,
        f"{package}/plugin.py": _PLUGIN,
        f"{package}/bus.py": _BUS,
        "tests/test_conformance.py": _TEST,
    }
    title = "".join(part.capitalize() for part in name.split("_"))
    words = {"name": name, "dashed": name.replace("_", "-")}
    words |= {"Bus": f"{title}Bus", "Options": f"{title}Options"}
    return {path: _Filled(text).substitute(words) for path, text in templates.items()}


class _Filled(Template):
    """`$name` may stand inside a word (`asys_$name.bus`); a placeholder is exactly one of ours."""

    idpattern = r"(?a:name|dashed|Bus|Options)"
    flags = re.RegexFlag(0)


_NAME = re.compile(r"[a-z][a-z0-9_]{1,40}")


EXAMPLES = (
    ("asys-bench new-plugin backend myring", "into ./asys-myring"),
    ("asys-bench new-plugin backend myring --dir plugins/myring", "into a folder of your choice"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """KIND, NAME and `--dir`."""
    parser.add_argument("kind", choices=("backend",), help="what the plugin is")
    parser.add_argument("name", metavar="NAME", help="its name, as bus.backend will say it")
    parser.add_argument(
        "--dir", metavar="FOLDER", help="where the package goes; default: ./asys-NAME (dashes)"
    )


def main(arguments: argparse.Namespace, console: Console) -> int:
    """0, or 2 when the name cannot be one or the folder is not empty."""
    name: str = arguments.name
    if not _NAME.fullmatch(name):
        console.print(
            f"asys-bench new-plugin: {name!r} must be 2 to 41 lower-case letters, digits and "
            "underscores, beginning with a letter",
            style="red",
            markup=False,
        )
        return EXIT_USAGE
    folder = Path(arguments.dir or f"asys-{name.replace('_', '-')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        console.print(
            f"asys-bench new-plugin: {folder} is there already; give an empty --dir",
            style="red",
            markup=False,
        )
        return EXIT_USAGE
    for relative, text in backend_files(name).items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        console.print(f"wrote {path}", markup=False)
    console.print(
        f"\nNext:\n  pip install -e {folder}\n  asys-bench list\n"
        f"  python -m asys_bench.conformance {name}\n"
        f"Then replace it method by method: {folder}/src/asys_{name}/bus.py",
        markup=False,
    )
    return 0
