"""Observing a training loop that is somebody else's: one line in it, or none.

Read in this order: `observation` (what `observe` returns), `settings` (what it is configured with),
`default_hooks` (what it hooks when nobody says), `script` (the same for a script as it is).
"""

from asys_bench.observing.observation import Observation, observe

__all__ = ["Observation", "observe"]
