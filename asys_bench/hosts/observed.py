"""The `observed` host: in the configuration of a run whose host was somebody else's script.

`observe()` writes it, so that a run's config.yaml does not name a host that never ran. It cannot be
started: the script is what starts such a run.
"""

from __future__ import annotations

from asys_bench.contracts.host import BaseHost, HostError, HostOptions, HostPlugin

_WHY = (
    "this is the configuration of a training script that called observe(); run that script again, "
    "or choose another host.kind"
)


class ObservedOptions(HostOptions):
    """None: the script has its own."""


def _build(options: HostOptions, seed: int) -> BaseHost:
    raise HostError(f"host.kind: {_WHY}")


plugin = HostPlugin(
    name="observed",
    summary="a training script of your own that calls observe(); cannot be started from here",
    options=ObservedOptions,
    build=_build,
    unavailable=lambda: _WHY,
)
