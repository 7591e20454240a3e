"""The SLA harness: suite -> rounds -> verdict.

Read in this order: `planning/` (what a suite says, and in which order its contenders run), `measuring/`
(one round, in a process of its own), `judging/` (statistics and verdicts), `results/` (what is kept),
`runner` (carries it out). `judging.stats`, `planning.plan` and `judging.verdict` are pure. `scenarios/`
load a bus or a pipeline, `faults/` break one.
"""
