"""Checking every file of a run, and mending what a killed writer left torn."""

from asys_bench.verification.finding import Finding, State, Verification
from asys_bench.verification.run import verify_run

__all__ = ["Finding", "State", "Verification", "verify_run"]
