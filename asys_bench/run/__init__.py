"""The life of a run, from its configuration to its summary.

Read in this order: `lifecycle` (`RunLifecycle`: every step of a run, whoever hosts it), `session` (bus,
stats page, workers and hooks of one model), `experiment` (`ExperimentPipeline`: a configured host),
`observation` (`observe()`: somebody else's training loop) and `settings` (its configuration),
`eyepiece` (starts `asys_bench.eye` beside a run),
`rank_session` and `rendezvous` (the other ranks of a node), `script` (a training script under torchrun).
`weights` keeps those of a host that trains. `forecast` and `preflight` say what cannot work before it
starts.

It may import everything below the harness and the commands.
"""
