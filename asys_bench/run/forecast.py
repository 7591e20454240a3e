"""What a run will take, before it takes it: memory and disk of each SAE.

`asys-run` (at the first rows, and with `--check`), `observe()` and `doctor` show it; what cannot work is
named there and not in a worker that dies of it. How much the archive writes depends on how often the
host calls its model, so only the size of a row is known of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asys_bench.config.schema import MasterConfig
from asys_bench.contracts.names import matches
from asys_bench.contracts.sink import PlannedSAE
from asys_bench.placement.topology import cgroup_folders
from asys_bench.sae.footprint import CONTEXT_BYTES, Footprint, footprint

MIB, GIB = 1 << 20, 1 << 30
_CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Limit and use of a memory cgroup, version 2 and version 1."""


@dataclass(frozen=True, slots=True)
class SaeForecast:
    """One SAE of a hook. `label` is its name in metrics; one of the last two is None."""

    hook: str
    label: str
    size: Footprint | None
    misfit: str | None
    """Why it cannot be trained: what was asked for, what there is, the fix."""
    device: str = "cpu"
    """What it is trained on, as configured."""

    def __str__(self) -> str:
        if self.size is None:
            return f"{self.label}: cannot be trained: {self.misfit}"
        memory = f"{size_text(self.size.memory_bytes)} of memory"
        if self.device != "cpu":
            there = (
                f"{size_text(self.size.device_bytes)} of a GPU (and {size_text(CONTEXT_BYTES)} for the "
                f"context of each worker) and {size_text(self.size.host_bytes)} of memory"
            )
            memory = there if self.device != "auto" else f"{there}, or on the CPU {memory}"
        return (
            f"{self.label}: d_in {self.size.d_in}, d_sae {self.size.d_sae}, {memory}, "
            f"{size_text(self.size.checkpoint_bytes)} per checkpoint"
        )


def planned_saes(config: MasterConfig, hook: str) -> dict[str, PlannedSAE]:
    """Label -> every SAE on the rows of `hook` alone, over all sinks that train.

    Raises:
        ValueError: `overrides` and `variants` of a sink do not go together for this hook.
    """
    found: dict[str, PlannedSAE] = {}
    for sink in config.enabled_sinks.values():
        if any(matches(hook, glob) for glob in sink.hooks):
            saes = sink.plugin_options().planned_saes([hook])
            found |= {sae.label: sae for sae in saes if not sae.others}
    return found


class RunForecast:
    """The SAEs of a run: configurations now, sizes as the widths of the hooks' rows become known."""

    def __init__(self, config: MasterConfig, hooks: Sequence[str]) -> None:
        """hooks: names of the hooks that are trained on."""
        self.problems: list[str] = []
        """Hooks whose `overrides` and `variants` do not go together."""
        self._limit = memory_limit_bytes()
        self._planned: dict[str, dict[str, PlannedSAE]] = {}
        self._of_several_hooks = list(_of_several_hooks(config))
        self._widths: dict[str, int] = {}
        self.saes: list[SaeForecast] = []
        """Of the hooks whose width is known."""
        for hook in hooks:
            try:
                self._planned[hook] = planned_saes(config, hook)
            except ValueError as error:
                self.problems.append(f"the SAE of hook {hook!r}: {_first_line(error)}")

    def saw(self, hook: str, width: int) -> list[SaeForecast]:
        """The rows of `hook` are `width` wide: what became known by that."""
        self._widths[hook] = width
        found = [
            _forecast(sae, width, None, self._limit) for sae in self._planned.get(hook, {}).values()
        ]
        for sae in self._of_several_hooks:
            if hook in sae.hooks and all(name in self._widths for name in sae.hooks):
                widths = [self._widths[name] for name in sae.hooks]
                transcodes = sae.config.architecture == "skip_transcoder"
                d_in, d_out = widths if transcodes else (sum(widths), None)
                found.append(_forecast(sae, d_in, d_out, self._limit))
        self.saes += found
        return found


def configured_l0(config: MasterConfig, hooks: Sequence[str]) -> Mapping[str, float]:
    """Label -> the L0 its SAE was configured for, where one was."""
    targets: dict[str, float] = {}
    for sink in config.enabled_sinks.values():
        for sae in sink.plugin_options().planned_saes(hooks):
            if sae.config.wanted_l0 is not None:
                targets[sae.label] = sae.config.wanted_l0
    return targets


def forecast_saes(config: MasterConfig, widths: Mapping[str, int]) -> list[SaeForecast]:
    """The SAEs of hooks whose rows' width is known, transcoders included.

    widths: hook -> width of its rows as a sink gets them.

    Raises:
        ValueError: settings of a hook's SAE that do not go together.
    """
    forecast = RunForecast(config, list(widths))
    if forecast.problems:
        raise ValueError("; ".join(forecast.problems))
    for hook, width in widths.items():
        forecast.saw(hook, width)
    return forecast.saes


def _forecast(sae: PlannedSAE, d_in: int, d_out: int | None, limit: int | None) -> SaeForecast:
    try:
        size = footprint(sae.config, d_in, d_out)
    except ValueError as error:
        return SaeForecast(sae.hook, sae.label, None, _first_line(error), sae.device)
    if sae.copies > 1:  # rows, held out or not, are with one of them
        size = replace(
            size,
            weights_bytes=size.weights_bytes * sae.copies,
            optimizer_bytes=size.optimizer_bytes * sae.copies,
            host_lives_bytes=size.host_lives_bytes * sae.copies,
        )
    takes = _memory(size, sae.device)
    if limit is not None and takes > limit:
        misfit = (
            f"d_sae {size.d_sae} (d_in {d_in}) takes {size_text(takes)} of memory, and "
            f"this machine has {size_text(limit)}; lower d_sae, expansion_factor or buffer_rows"
        )
        return SaeForecast(sae.hook, sae.label, None, misfit, sae.device)
    return SaeForecast(sae.hook, sae.label, size, None, sae.device)


def _memory(size: Footprint, device: str) -> int:
    """Of the machine, not of a GPU; `auto` may end on the CPU."""
    return size.host_bytes if device.startswith("cuda") else size.memory_bytes


def shortage(forecasts: list[SaeForecast]) -> str | None:
    """One warning when all SAEs together exceed the memory that is free; else None."""
    needed = sum(_memory(f.size, f.device) for f in forecasts if f.size is not None)
    free = memory_available_bytes()
    if free is None or needed <= free:
        return None
    return (
        f"the SAEs will take {size_text(needed)} of memory and {size_text(free)} are free: lower d_sae, "
        "expansion_factor or buffer_rows, or observe fewer hooks"
    )


def _of_several_hooks(config: MasterConfig) -> Iterator[PlannedSAE]:
    for sink in config.enabled_sinks.values():
        yield from (sae for sae in sink.plugin_options().planned_saes(()) if sae.others)


def memory_limit_bytes() -> int | None:
    """The memory that this process may have at most: the machine's, or its cgroup's limit."""
    found = [value for value in (_meminfo("MemTotal"), *_cgroup_limits()) if value is not None]
    return min(found, default=None)


def memory_available_bytes() -> int | None:
    """What is free for new processes here, as the kernel estimates it."""
    found = [_meminfo("MemAvailable")]
    for folder, (most, taken) in itertools.product(cgroup_folders(), _CGROUP_FILES):
        limit, used = _integer(folder / most), _integer(folder / taken)
        if limit is not None and used is not None:
            found.append(max(0, limit - used))
    return min((value for value in found if value is not None), default=None)


def _cgroup_limits() -> Iterator[int | None]:
    for folder in cgroup_folders():
        for name, _ in _CGROUP_FILES:
            yield _integer(folder / name)


def _meminfo(name: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if fields[:1] == [f"{name}:"] and fields[1].isdigit():
            return int(fields[1]) << 10
    return None


def _integer(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max": no limit
        return None


def size_text(nbytes: float) -> str:
    """Binary units, as memory is sold: 12.3 MiB, 7.63 GiB."""
    if nbytes >= GIB:
        return f"{nbytes / GIB:,.2f} GiB" if nbytes < 100 * GIB else f"{nbytes / GIB:,.0f} GiB"
    return f"{nbytes / MIB:.1f} MiB" if nbytes < 100 * MIB else f"{nbytes / MIB:.0f} MiB"


def _first_line(error: ValueError) -> str:
    """The message alone: pydantic puts a heading around what a model's validator raised."""
    lines = str(error).splitlines()
    found = [line.strip() for line in lines if "Value error, " in line]
    return found[0].partition("Value error, ")[2].partition(" [type=")[0] if found else lines[0]
