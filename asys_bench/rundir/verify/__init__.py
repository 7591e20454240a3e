"""Checking every file of a run, and mending what a killed writer left torn."""

from asys_bench.rundir.verify.finding import Finding, State, Verification
from asys_bench.rundir.verify.verify_run import verify_run

__all__ = ["Finding", "State", "Verification", "verify_run"]
