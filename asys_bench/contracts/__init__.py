"""What each kind of plugin must do, and what processes and files agree on. It imports `system` alone.

Read in this order: `packet`, `bus`, `stats` (what travels and is counted in shared memory), `host`,
`preprocessor`, `sink`, `monitor`, `reporter`, `scenario` (the kinds of plugins), `evaluated` (a host's model
without its host), `coin` (which calls are sampled), `launch` (what a worker is started with), `run_files` (a
run's folder).
"""
