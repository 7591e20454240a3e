"""Compiled code of the cluster: `_arrivals`, which arrivals.py uses where it is there."""
