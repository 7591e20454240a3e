"""The life of a run, from its configuration to its summary.

Read in this order: `session` (one observation: bus, stats page, workers, hooks, drained end),
`experiment` (`ExperimentPipeline`: a configured host under it), `observation` (`observe()`: a session
around somebody else's loop) and `settings` (what that is configured with), `rank_session` and
`rendezvous` (ranks of one node).
"""
