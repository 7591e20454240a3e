"""Fault injection: what can break around a run, broken on purpose, and what the run makes of it.

`signals.FAULTS` lists the faults by name; each is a `fault.Fault`, in `signals` or `disk`. The run
under test is a process of its own (`host_process`), watched from outside (`observed`): a fault may
then kill the host, fill its disk or move its clock. The `chaos` scenario puts them together.
"""
