"""The plan drawn: every core as a box with its owner, then a row per process. No I/O.

Owners have a letter as well as a colour: it is read on paper, by the colour-blind and in logs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from string import ascii_uppercase

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from asys_bench.config.sections.resources import CpuPriority, IoPriority
from asys_bench.monitors.readable import bytes_text
from asys_bench.placement.plan import Need, Plan
from asys_bench.placement.readback import Reading
from asys_bench.placement.topology import Core, Topology
from asys_bench.system.cpu_lists import format_cpus

HOST_STYLE = "bold white on dark_green"
STYLES = ("black on cyan", "black on yellow", "black on magenta", "black on bright_blue")
SERVICE_STYLE = "black on grey70"
SHARED_STYLE = "black on orange3"
FREE_STYLE, FORBIDDEN_STYLE = "dim", "dim strike"
SERVICES = "s"


def draw(
    topology: Topology,
    plan: Plan,
    needs: Sequence[Need],
    width: int,
    *,
    nice: int = 0,
    cpu: CpuPriority = CpuPriority.NORMAL,
    io: IoPriority = IoPriority.NORMAL,
    readings: Mapping[str, Reading] | None = None,
    host_gpus: Collection[int] = (),
) -> RenderableType:
    """The picture for a terminal of `width` columns.

    readings: processes of a running run; their column says whether the kernel agrees.
    host_gpus: indices of the GPUs that the host computes on.
    """
    letters = _letters(needs)
    parts: list[RenderableType] = [_head(topology, plan)]
    if plan.refusal is not None:
        parts += [
            Text.assemble(("refused  ", "bold red"), plan.refusal.reason),
            Text.assemble(("fix      ", "bold"), plan.refusal.fix),
            Text(),
        ]
    for node in topology.nodes:
        parts.append(_node(topology, plan, node, letters, width))
    if topology.gpus:
        parts.append(_gpus(topology, plan, letters, host_gpus))
    if plan.refusal is None:
        parts.append(_processes(plan, needs, letters, nice, cpu, io, readings))
    parts += [Text.assemble(("note     ", "bold yellow"), note) for note in plan.notes]
    return Group(*parts)


def _head(topology: Topology, plan: Plan) -> Text:
    cores, cpus = len(topology.usable_cores), len(topology.usable)
    text = Text.assemble(("machine  ", "bold"), f"{cores} usable cores")
    text.append(f", {cpus} CPUs" if cpus != cores else "")
    text.append(f", {len(topology.nodes)} NUMA nodes" if len(topology.nodes) > 1 else "")
    if topology.quota_cpus is not None:
        text.append(f", the cgroup allows {topology.quota_cpus:g} CPUs of time")
    text.append("   pinning ", "dim").append(plan.mode, "bold")
    return text


def _letters(needs: Sequence[Need]) -> dict[str, tuple[str, str]]:
    """Process -> (letter, style); the services share one."""
    found = {}
    letters = iter(letter for letter in ascii_uppercase if letter != "H")
    index = 0
    for need in needs:
        if need.role == "host":
            found[need.name] = ("H", HOST_STYLE)
        elif need.role == "service":
            found[need.name] = (SERVICES, SERVICE_STYLE)
        else:
            found[need.name] = (next(letters, "+"), STYLES[index % len(STYLES)])
            index += 1
    return found


def _node(
    topology: Topology, plan: Plan, node: int, letters: Mapping[str, tuple[str, str]], width: int
) -> RenderableType:
    memory = topology.memory_bytes.get(node)
    title = Text.assemble((f"node {node}", "bold"))
    title.append(f"  {bytes_text(memory)}" if memory else "  no memory of its own", "dim")
    line, lines = Text(), []
    package: int | None = None
    for core in topology.cores:
        if core.node != node:
            continue
        piece = Text()
        if package != core.package and len({c.package for c in topology.cores}) > 1:
            piece.append(f"socket {core.package} ", "dim")
        package = core.package
        piece.append_text(_core(core, topology, plan, letters)).append(" ")
        if line and line.cell_len + piece.cell_len > max(20, width - 2):
            lines.append(line)
            line = Text()
        line.append_text(piece)
    return Group(title, *lines, line, Text())


def _core(
    core: Core, topology: Topology, plan: Plan, letters: Mapping[str, tuple[str, str]]
) -> Text:
    text = Text("[", "dim")
    for index, cpu in enumerate(core.cpus):
        owners = [name for name in letters if cpu in plan.placement(name).cpus]
        marks = dict.fromkeys(letters[name][0] for name in owners)
        text.append(" " if index else "")
        if cpu not in topology.usable:
            text.append(f" {cpu} ", FORBIDDEN_STYLE)
        elif not owners:
            text.append(f" {cpu} ", FREE_STYLE)
        else:
            sharing = len(owners) > 1 and len({letters[n][1] for n in owners}) > 1
            style = SHARED_STYLE if sharing else letters[owners[0]][1]
            text.append(f" {cpu} {''.join(marks)} ", style)
    return text.append("]", "dim")


def _gpus(
    topology: Topology,
    plan: Plan,
    letters: Mapping[str, tuple[str, str]],
    host_gpus: Collection[int],
) -> RenderableType:
    lines = [Text("GPUs", "bold")]
    for gpu in topology.gpus:
        owners = [n for n in letters if plan.placement(n).device == f"cuda:{gpu.index}"]
        marks = [letters[name] for name in owners]
        if gpu.index in host_gpus:
            marks.insert(0, ("H", HOST_STYLE))
        style = FREE_STYLE if not marks else marks[0][1] if len(marks) == 1 else SHARED_STYLE
        text = Text("[", "dim")
        text.append(f" {gpu.index} {''.join(mark for mark, _ in marks)} ".replace("  ", " "), style)
        text.append("] ", "dim").append(gpu.model, "dim")
        text.append("" if gpu.node is None else f", node {gpu.node}", "dim")
        lines.append(text)
    return Group(*lines, Text())


def _nice(nice: int, idle: bool) -> RenderableType:
    if idle:
        return "idle"
    return f"+{nice}" if nice else Text("0", "dim")


def _processes(
    plan: Plan,
    needs: Sequence[Need],
    letters: Mapping[str, tuple[str, str]],
    nice: int,
    cpu: CpuPriority,
    io: IoPriority,
    readings: Mapping[str, Reading] | None,
) -> Table:
    made = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", border_style="dim"
    )
    for title in ("", "process", "CPUs", "memory", "threads", "nice", "disk"):
        made.add_column(title, no_wrap=True)
    chosen = any(plan.placement(need.name).device for need in needs)
    if chosen:
        made.add_column("trains on")
    if readings is not None:
        made.add_column("the kernel says", no_wrap=True)
    for need in needs:
        letter, style = letters[need.name]
        placement = plan.placement(need.name)
        ours = need.role in ("sink", "service") and need.name != "watchdog"
        row: list[RenderableType] = [
            Text(f" {letter} ", style),
            need.name,
            format_cpus(placement.cpus) or Text("not pinned", "dim"),
            f"node {placement.node}" if placement.node is not None else Text("-", "dim"),
            f"{need.threads}" if need.role != "service" else Text("-", "dim"),
            _nice(nice if ours else 0, need.role == "sink" and cpu is CpuPriority.IDLE),
            str(io) if ours else Text("normal", "dim"),
        ]
        if chosen:
            device = Text(placement.device or "-", "" if placement.device else "dim")
            row.append(device.append(f"  {placement.why}" if placement.why else "", "dim"))
        if readings is not None:
            row.append(_verdict(plan, need.name, readings))
        made.add_row(*row)
    return made


def _verdict(plan: Plan, name: str, readings: Mapping[str, Reading]) -> Text:
    reading = readings.get(name)
    if reading is None:
        return Text("not running", "dim")
    allowed = format_cpus(reading.allowed)
    text = Text(f"{allowed} on {len(reading.threads)} threads")
    if reading.pages:
        pages = ", ".join(f"N{node} {n:,}" for node, n in sorted(reading.pages.items()))
        text.append(f", pages {pages}", "dim")
    planned = plan.placement(name).cpus
    if not planned:
        return text
    agrees = reading.allowed == planned and set(reading.threads.values()) <= {planned}
    return text.append("  as planned" if agrees else "  DIFFERS", "green" if agrees else "bold red")
