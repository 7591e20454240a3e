"""The processes beside the host, and what keeps them alive.

Read in this order: `supervisor` (the host's side), `watchdog` (a process of its own: starts, watches
and restarts), `restart` (when a worker counts as hung, and when a dead one starts again), `worker` (what
runs inside a worker). `fork_server` and `fork_server_guard` start a worker
in milliseconds; `process_group` finds what is left of a run; `worker_log` reads why a worker ended;
`trainer_manager` restarts a trainer on demand; `shard_bus` is the bus of a rank.

It may import capture and what is below it; never `run`.
"""
