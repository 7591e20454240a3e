"""The processes beside the host, and who keeps them alive.

Read in this order: `supervisor` (the host's side), `watchdog` (a process of its own: starts, watches
and restarts), `restart` (when a dead worker may start again), `worker` (what runs inside a worker),
`decoding` (packet -> tensor). `fork_server` and `fork_server_guard`: how a worker starts in
milliseconds.
"""
