"""Which worker trains on which GPU. Pure; it reads nothing.

`auto`, in this order: a GPU that the host does not use, the one with the fewest workers first and, of
those, one on the worker's NUMA node; the host's, where the sink names how much of it may be taken; the
CPU. `cuda` does the same and never ends on the CPU where there is a GPU. `cuda:N` is that GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from asys_bench.placement.plan import Need, Placement, Plan
from asys_bench.placement.topology import Topology
from asys_bench.system.gpus import GpuCard


def planned_devices(
    plan: Plan, topology: Topology, needs: Sequence[Need], host_gpus: Collection[int]
) -> Plan:
    """`plan` with a device and the reason for it, for each need that wishes for one.

    host_gpus: indices of the GPUs that the host computes on.
    """
    found, gpus = dict(plan.placements), topology.gpus
    taken: Counter[int] = Counter()
    for need in needs:
        wish = need.device
        if wish.startswith("cuda:"):
            taken[int(wish.removeprefix("cuda:"))] += 1
    for need in needs:
        if not need.device:
            continue
        before = found.get(need.name, Placement())
        near = topology.nodes_of(before.cpus)
        node = next(iter(near)) if len(near) == 1 else None
        device, why = _chosen(need, gpus, host_gpus, taken, node)
        if need.device in ("auto", "cuda") and device.startswith("cuda:"):
            taken[int(device.removeprefix("cuda:"))] += 1
        shared = device.removeprefix("cuda:") in map(str, host_gpus)
        found[need.name] = Placement(before.cpus, before.node, device, why, shared)
    return replace(plan, placements=found)


def _chosen(
    need: Need,
    gpus: Sequence[GpuCard],
    host_gpus: Collection[int],
    taken: Mapping[int, int],
    node: int | None,
) -> tuple[str, str]:
    wish = need.device
    if wish.startswith("cuda:"):
        shared = int(wish.removeprefix("cuda:")) in host_gpus
        return wish, "asked for" + (", and the host uses it too" if shared else "")
    own = [gpu for gpu in gpus if gpu.index not in host_gpus]
    if own:
        best = min(own, key=lambda gpu: (taken.get(gpu.index, 0), gpu.node != node, gpu.index))
        others = taken.get(best.index, 0)
        why = "the host does not use it"
        return f"cuda:{best.index}", why + (f", {others} more of ours do" if others else "")
    if not gpus:
        # The driver lists none; torch may know better where a GPU was asked for.
        return (wish, "asked for") if wish == "cuda" else ("cpu", "no GPU is there")
    hosts = ", ".join(f"cuda:{index}" for index in sorted(host_gpus))
    if wish == "cuda" or need.shares_host_gpu:
        best = min(gpus, key=lambda gpu: (taken.get(gpu.index, 0), gpu.index))
        return f"cuda:{best.index}", "no other GPU is there, so the host shares it"
    return "cpu", f"the host uses {hosts}, no other GPU is there, and host_gpu_gib is not set"
