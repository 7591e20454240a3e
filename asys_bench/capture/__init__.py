"""Hooks on a model -> packets on the bus.

Read in this order: `capture` (what a hook does with one tensor: the hot path), `hook_stream` (the state
of one hook point), `hooker` (all hooks of a model), `backpressure` and `row_budget` (the sampling
rate). `points/` which modules and which of their tensors, `hooks/` the hooks themselves, `tags/` step,
weights version, token and position of each packet, `gpu/` tensors that live on a device.
"""
