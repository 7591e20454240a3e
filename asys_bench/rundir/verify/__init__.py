"""Checking every file of a run, and mending what a killed writer left torn.

Read in this order: `finding` (what is found of a file), `verify_run` (the whole folder), `files`,
`archive` and `checkpoints` (the checks by kind).
"""

from asys_bench.rundir.verify.finding import Finding, State, Verification
from asys_bench.rundir.verify.verify_run import verify_run

__all__ = ["Finding", "State", "Verification", "verify_run"]
