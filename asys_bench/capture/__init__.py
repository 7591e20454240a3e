"""Hooks on a model -> packets on the bus.

Read in this order: `capture` (what a hook does with one tensor: the hot path), `hook_stream` (the state
of one hook point and its counters), `hooker` (all hooks of a model), `sampling` (the rate that follows bus
and budget), `host_state` (what of the host's must not reach our operations). `points/` which modules and
which of their tensors, `hooks/` the hooks themselves, `tags/` step, weights version, token and position of
each packet, `gpu/` tensors that live on a device (behind `offload`). `silent_hooks` and `notices` tell a
person what went unobserved.
"""
