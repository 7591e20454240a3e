"""The SLA harness: suite -> rounds -> verdict.

Read in this order: `planning/` (what a suite says, and in which order its contenders run), `round` (one
round, in a process of its own; `fork_server` forks such processes), `measuring/` (what a round needs),
`judging/` (statistics and verdicts), `results/` (what is kept), `runner` (carries it out). A `baseline:`
of another version is started by the names of `round` and `fork_server`: they stay. `judging.stats`,
`planning.plan` and `judging.verdict` are pure. `scenarios/` load a bus or a pipeline, `faults/` break one.
"""
