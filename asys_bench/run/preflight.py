"""What can be known to be wrong before a host starts: places of this machine, hosts' own options.

`load_config` finds what is wrong with a configuration anywhere; `preflight` what cannot work here and now.
`asys-run` calls it before it builds the host, and so does `asys-run --check`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from asys_bench.capture.points.hookpoints import HookError
from asys_bench.config import LoadedConfig, MasterConfig
from asys_bench.config.assembly import AssemblyError
from asys_bench.config.paths import Path as FieldPath
from asys_bench.config.paths import format_path
from asys_bench.config.problems import Origin, Problem
from asys_bench.registry import PluginError
from asys_bench.run.forecast import memory_limit_bytes, size_text

LEAST_DISK_BYTES = 64 << 20


def preflight(loaded: LoadedConfig) -> list[Problem]:
    """Every reason why this run cannot work here, each with the place that asks for it."""
    config = loaded.config
    found = [
        *_plugins(config),
        *_host(config),
        *_folders(config),
        *_bus(config),
        *_evaluations(config),
    ]
    return [
        Problem.at(origin_of(loaded, path), message, path=format_path(path), value=value, fix=fix)
        for path, message, value, fix in found
    ]


Finding = tuple[FieldPath, str, object, str]
"""(field, message, value, fix)"""


def origin_of(loaded: LoadedConfig, path: FieldPath) -> Origin:
    """Where the value at `path` was given, or what is around it; the file itself for a default."""
    if path[:2] == ("host", "options"):
        given = format_path(path[:3])
        if not any(name.startswith(given) for name in loaded.provenance):
            path = ("host", "kind")  # nobody gave options: the choice of the host asks for them
    for length in range(len(path), 0, -1):
        start = format_path(path[:length])
        if start in loaded.provenance:
            return loaded.provenance[start]
        inside = [
            o
            for name, o in loaded.provenance.items()
            if name.startswith((start + ".", start + "["))
        ]
        if inside:
            return inside[0]
    return Origin(os.fspath(loaded.sources[-1]) if loaded.sources else "the configuration")


def place_of(loaded: LoadedConfig, error: Exception) -> str:
    """Where in the configuration the cause of an error of the set-up stands; "" when no field is."""
    if isinstance(error, AssemblyError) and error.path:
        return str(origin_of(loaded, error.path))
    if isinstance(error, HookError) and error.pattern is not None:
        for index, hook in enumerate(loaded.config.hooks):
            if error.pattern in hook.match:
                found = origin_of(
                    loaded, ("hooks", index, "match", hook.match.index(error.pattern))
                )
                return str(found)
    return ""


def place_of_saes(loaded: LoadedConfig) -> str:
    """Where the settings of the SAEs stand."""
    for name, sink in loaded.config.enabled_sinks.items():
        if sink.plugin().trains_saes:
            return str(origin_of(loaded, ("sinks", name, "options", "sae", "k")))
    return ""


def _plugins(config: MasterConfig) -> Iterator[Finding]:
    """Plugins that are there and cannot run here; a bus has stand-ins, a monitor is left out."""
    parts: list[tuple[FieldPath, str, object]] = [
        (("host", "kind"), config.host.kind, config.host.plugin)
    ]
    for name, sink in config.enabled_sinks.items():
        parts.append((("sinks", name, "kind"), sink.kind, sink.plugin))
    for path, kind, plugin in parts:
        try:
            reason = plugin().unavailable()  # type: ignore[operator]
        except PluginError as error:
            reason = str(error)
        if reason is not None:
            yield path, f"cannot run here: {reason}", kind, ""


def _host(config: MasterConfig) -> Iterator[Finding]:
    plugin = config.host.plugin()
    if plugin.unavailable() is not None:
        return
    for misfit in config.host.plugin_options().misfits():
        path = ("host", "options", config.host.kind, *misfit.path)
        yield path, misfit.message, misfit.value, misfit.fix


def _evaluations(config: MasterConfig) -> Iterator[Finding]:
    """Sinks that are to put SAEs back into a model that nobody but the host can make."""
    plugin = config.host.plugin()
    if plugin.evaluated is not None:
        return
    for name, sink in config.enabled_sinks.items():
        if sink.plugin_options().weights_every_s is not None:
            yield (
                ("sinks", name, "options", "evaluate"),
                f"the model of a host {plugin.name!r} is known to the host alone, so that no other process "
                "can put an SAE into it",
                "",
                "leave it out; asys-run evaluate SAE --model ... does it afterwards",
            )


def _folders(config: MasterConfig) -> Iterator[Finding]:
    path = ("run", "dir")
    folder = Path(config.run.dir).absolute()
    shown = str(config.run.dir)
    there = next(place for place in (folder, *folder.parents) if place.exists())
    fix = "name a folder that you may write in"
    if not there.is_dir():
        yield path, f"{there} is a file, so that no folder can be made there", shown, fix
    elif not os.access(there, os.W_OK | os.X_OK):
        yield path, f"{there} cannot be written in", shown, fix
    else:
        free = shutil.disk_usage(there).free
        if free < LEAST_DISK_BYTES:
            message = f"only {size_text(free)} are free there, and a run needs {size_text(LEAST_DISK_BYTES)}"
            yield path, message, shown, "free some, or name a folder on another disk"
    try:
        tempfile.gettempdir()
    except OSError as error:
        message = f"no folder for temporary files: {error}"
        yield (
            path,
            message,
            os.environ.get("TMPDIR", "/tmp"),
            "set TMPDIR to a folder that you may write in",
        )


def _bus(config: MasterConfig) -> Iterator[Finding]:
    wanted, limit = config.bus.capacity_bytes, memory_limit_bytes()
    if limit is not None and wanted > limit:
        yield (
            ("bus", "capacity_mib"),
            f"takes {size_text(wanted)} of memory at the start, and this machine has {size_text(limit)}",
            config.bus.capacity_mib,
            "lower it: some seconds of packets are enough",
        )
